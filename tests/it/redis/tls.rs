//! TLS and ACL users: what works, and what is refused with which words.

use std::path::Path;
use std::time::{Duration, Instant};

use larder_backends::redis::{Redis, RedisConfig};
use larder_core::config::Secret;
use larder_core::{
    Backend, BackendExt, Error, ErrorKind, Fill, FillOutcome, GetOptions, Lookup, Rt, WriteOptions,
};
use larder_harness::redis::RedisServer;
use larder_harness::server::Listen;
use larder_harness::tls::{Authority, Identity};

use super::{asking, config, hit, numbered, ok, until_it_answers, won};

/// A server that shows this certificate on a port of its own, and answers without TLS on the one it is known by.
fn start_tls(authority: &Authority, identity: &Identity, more: &[&str]) -> RedisServer {
    let text = |path: &Path| path.display().to_string();
    RedisServer::start_at(Listen::Tcp, |port| {
        let port = tls_port(port).to_string();
        let ca = text(&authority.file());
        let (certificate, key) = (text(&identity.certificate), text(&identity.key));
        [
            ["--tls-port", &port],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &ca],
        ]
        .concat()
        .into_iter()
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect()
    })
}

fn tls_port(port: u16) -> u16 {
    port + 10_000
}

/// No certificate is demanded of clients.
const NONE_DEMANDED: [&str; 2] = ["--tls-auth-clients", "no"];

/// A client that trusts this authority.
fn trusting(server: &RedisServer, authority: &Authority) -> RedisConfig {
    let mut config = config(server);
    config.servers = vec![format!("127.0.0.1:{}", tls_port(server.port()))];
    config.tls = true;
    config.ca_file = Some(authority.file());
    config
}

/// Fills, reads and deletes values of many sizes on both lanes, which takes more than one record.
async fn use_it(redis: &Redis) {
    let lease = won(redis.get("one", &asking()).await);
    let outcome = redis.fill("one", Fill::new(lease, "value")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    assert_eq!(hit(redis.get("one", &asking()).await), b"value");

    let keys = numbered("large", 300);
    let value = |number: usize| vec![b'a' + (number % 26) as u8; number * 677];
    let leases = redis.get_many(&keys, &asking()).await;
    let fills = leases.into_iter().enumerate();
    let fills = fills.map(|(number, lookup)| Fill::new(won(lookup), value(number + 1)));
    let options = WriteOptions::default();
    for outcome in redis.fill_many(&keys, fills.collect(), &options).await {
        assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    }
    let found = redis.get_many(&keys, &GetOptions::look()).await;
    for (number, lookup) in found.into_iter().enumerate() {
        assert!(hit(lookup) == value(number + 1), "value {number}");
    }
    for deleted in redis.delete_many(&keys, &options).await {
        deleted.unwrap();
    }
    for lookup in redis.get_many(&keys, &GetOptions::look()).await {
        assert!(matches!(lookup, Ok(Lookup::Miss { .. })), "{lookup:?}");
    }
}

#[tokio::test]
async fn tls_carries_everything() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let server = start_tls(&authority, &identity, &NONE_DEMANDED);
    let redis = Redis::new(trusting(&server, &authority), Rt::new()).unwrap();
    use_it(&redis).await;
    // Asked without TLS, so that we don't deceive ourselves.
    let stored = server.raw().await.get("one").await.unwrap();
    assert!(stored.ends_with(b"value"));
    let stats = &redis.stats().servers[0];
    assert_eq!((stats.protocol_violations, stats.connects), (0, 2));
}

#[tokio::test]
async fn certificates_of_both_sides_and_a_user_go_together() {
    let authority = Authority::new();
    let theirs = authority.issue(&["127.0.0.1"]);
    let ours = authority.issue(&["larder"]);
    let server = start_tls(&authority, &theirs, &["--tls-auth-clients", "yes"]);
    let rule = [
        "ACL",
        "SETUSER",
        "larder",
        "on",
        ">correct-horse",
        "~*",
        "+@all",
    ];
    ok(&mut server.raw().await, &rule).await;
    let mut config = trusting(&server, &authority);
    config.cert_file = Some(ours.certificate);
    config.key_file = Some(ours.key);
    config.user = Some("larder".to_owned());
    config.password = Some(Secret::new("correct-horse"));
    use_it(&Redis::new(config.clone(), Rt::new()).unwrap()).await;

    config.password = Some(Secret::new("wrong-horse"));
    let error = refused(config).await;
    check(&error, &["refuses the user"]);
    assert!(!format!("{error:?}").contains("wrong-horse"), "{error:?}");
}

#[tokio::test]
async fn a_unix_socket_stays_plain() {
    let authority = Authority::new();
    let server = RedisServer::start(Listen::Unix, &[]);
    let mut config = config(&server);
    config.tls = true;
    config.ca_file = Some(authority.file());
    use_it(&Redis::new(config, Rt::new()).unwrap()).await;
}

/// The error of the first use, which comes within the connect deadline.
async fn refused(mut config: RedisConfig) -> Error {
    config.connect_timeout = Duration::from_secs(3);
    let redis = Redis::new(config, Rt::new()).unwrap();
    let start = Instant::now();
    let error = redis.get("k", &asking()).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(redis.stats().servers[0].connects, 0);
    error
}

#[track_caller]
fn check(error: &Error, words: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` in `{error}`");
    }
}

#[tokio::test]
async fn certificates_that_prove_nothing_are_refused() {
    let authority = Authority::new();
    let good = authority.issue(&["127.0.0.1"]);
    let server = start_tls(&authority, &good, &NONE_DEMANDED);
    let stranger = Authority::new();
    let mut config = trusting(&server, &authority);
    config.ca_file = Some(stranger.file());
    check(&refused(config).await, &["doesn't come from", "`ca_file`"]);

    let expired = authority.issue_expired(&["127.0.0.1"]);
    let server = start_tls(&authority, &expired, &NONE_DEMANDED);
    let error = refused(trusting(&server, &authority)).await;
    check(&error, &["has expired"]);

    let other = authority.issue(&["cache-2.example.com"]);
    let server = start_tls(&authority, &other, &NONE_DEMANDED);
    let error = refused(trusting(&server, &authority)).await;
    check(&error, &["is for cache-2.example.com", "`server_name`"]);
    let mut config = trusting(&server, &authority);
    config.server_name = Some("cache-2.example.com".to_owned());
    use_it(&Redis::new(config, Rt::new()).unwrap()).await;
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_demanded_is_told_so() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let server = start_tls(&authority, &identity, &["--tls-auth-clients", "yes"]);
    let error = refused(trusting(&server, &authority)).await;
    assert!(error.to_string().contains("`cert_file`"), "{error:?}");
}

#[tokio::test]
async fn a_plain_client_at_a_tls_port_is_told_so() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let server = start_tls(&authority, &identity, &NONE_DEMANDED);
    let mut config = trusting(&server, &authority);
    config.tls = false;
    config.ca_file = None;
    let error = refused(config).await;
    assert!(error.to_string().contains("rediss://"), "{error:?}");
}

#[tokio::test]
async fn a_tls_client_at_a_plain_port_is_told_so() {
    let authority = Authority::new();
    let server = RedisServer::start(Listen::Tcp, &[]);
    let mut config = trusting(&server, &authority);
    config.servers = vec![server.address()];
    // Redis says nothing to what it takes for half a command.
    let error = refused(config).await;
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("take `tls` away"), "{error}");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let identity = old.issue(&["127.0.0.1"]);
    let mut server = start_tls(&old, &identity, &NONE_DEMANDED);
    let redis = Redis::new(trusting(&server, &old), Rt::new()).unwrap();
    use_it(&redis).await;
    identity.replace(&new.issue(&["127.0.0.1"]));
    std::fs::copy(new.file(), old.file()).unwrap();
    server.restart();
    until_it_answers(&redis).await;
}
