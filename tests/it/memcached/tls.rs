//! TLS and passwords: what works, what is refused with which words, and that no password is ever shown.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder_backends::memcached::{Address, Io, Memcached, MemcachedConfig, Sockets, Transport};
use larder_core::config::Secret;
use larder_core::{
    Backend, BackendExt, Error, ErrorKind, Fill, FillOutcome, GetOptions, Lease, Lookup, Lost,
    Result, Rt, Set, WriteOptions,
};
use larder_harness::sasl::SaslUser;
use larder_harness::server::{Listen, MemcachedServer};
use larder_harness::tls::{Authority, Identity, password_file};

use super::{asking, client, config, hit, numbered, won};

const USER: &str = "anna";
const SASL_USER: &str = "zulip@localhost";
const PASSWORD: &str = "correct-horse:battery";

/// A server that shows this certificate.
fn start_tls(identity: &Identity, options: &str) -> MemcachedServer {
    let options = format!("{}{options}", identity.server_options());
    MemcachedServer::start(Listen::Tcp, &["-Z", "-o", &options])
}

/// A client that trusts this authority.
fn trusting(server: &MemcachedServer, authority: &Authority) -> MemcachedConfig {
    let mut config = config(server);
    config.tls = true;
    config.ca_file = Some(authority.file());
    config
}

/// A server that demands the password, in a file of this directory.
fn start_guarded(directory: &Path, more: &[&str]) -> MemcachedServer {
    let passwords = password_file(directory, USER, PASSWORD);
    let arguments = [&["-Y", passwords.to_str().unwrap()], more].concat();
    MemcachedServer::start(Listen::Tcp, &arguments)
}

fn with_password(mut config: MemcachedConfig, password: &str) -> MemcachedConfig {
    config.user = Some(USER.to_owned());
    config.password = Some(Secret::new(password));
    config
}

fn with_sasl(mut config: MemcachedConfig, password: &str) -> MemcachedConfig {
    config = with_password(config, password);
    config.user = Some(SASL_USER.to_owned());
    config.sasl = true;
    config
}

/// Fills and reads values of many sizes on both lanes, which takes more than one record, and more than a socket takes.
async fn use_it(memcached: &Memcached) {
    let lease = won(memcached.get("one", &asking()).await);
    let outcome = memcached.fill("one", Fill::new(lease, "value")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    assert_eq!(hit(memcached.get("one", &asking()).await), b"value");

    let keys = numbered("large", 300);
    let value = |number: usize| vec![b'a' + (number % 26) as u8; number * 677];
    let leases = memcached.get_many(&keys, &asking()).await;
    let fills = leases.into_iter().enumerate().map(|(number, lookup)| {
        let lease = won(lookup);
        Fill::new(lease, value(number + 1))
    });
    let options = WriteOptions::default();
    let outcomes = memcached.fill_many(&keys, fills.collect(), &options);
    for outcome in outcomes.await {
        let stats = memcached.stats();
        assert_eq!(outcome.unwrap(), FillOutcome::Stored, "{stats:?}");
    }
    let found = memcached.get_many(&keys, &GetOptions::look()).await;
    for (number, lookup) in found.into_iter().enumerate() {
        assert!(hit(lookup) == value(number + 1), "value {number}");
    }
    for deleted in memcached.delete_many(&keys, &options).await {
        deleted.unwrap();
    }
    let found = memcached.get_many(&keys, &GetOptions::look()).await;
    assert!(
        found
            .iter()
            .all(|lookup| matches!(lookup, Ok(Lookup::Miss { .. })))
    );
}

#[tokio::test]
async fn tls_carries_everything() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue(&["127.0.0.1"]), "");
    let memcached = Memcached::new(trusting(&server, &authority), Rt::new()).unwrap();
    use_it(&memcached).await;
    let item = authority.connect(&server.address()).await.get("one").await;
    assert_eq!(item.unwrap().value, "value");
    let stats = &memcached.stats().servers[0];
    assert_eq!((stats.protocol_violations, stats.connects), (0, 2));
}

/// A memcached before 1.6.39 falls asleep over stores that follow each other, unless records end where it needs them to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_of_stores_never_hang_over_tls() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue(&["127.0.0.1"]), "");
    let memcached = Memcached::new(trusting(&server, &authority), Rt::new()).unwrap();
    let memcached = Arc::new(memcached);
    let callers: Vec<_> = (0..4)
        .map(|seed| {
            let memcached = Arc::clone(&memcached);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for round in 0..60 {
                    // Around one record, and around what a server reads into its buffer at once.
                    let largest = *random.choice(&[40, 600, 17_000, 70_000]).unwrap();
                    let keys = numbered(&format!("{seed}:{round}"), random.usize(1..40));
                    let sets: Vec<Set> = (0..keys.len())
                        .map(|_| Set::new(vec![b'x'; random.usize(1..largest)]))
                        .collect();
                    let lengths: Vec<usize> = sets.iter().map(|set| set.value.len()).collect();
                    let options = WriteOptions::default();
                    for stored in memcached.set_immutable_many(&keys, sets, &options).await {
                        stored.unwrap();
                    }
                    let found = memcached.get_many(&keys, &GetOptions::look()).await;
                    for (lookup, length) in found.into_iter().zip(lengths) {
                        assert_eq!(hit(lookup).len(), length);
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(memcached.stats().servers[0].connects, 2);
}

#[tokio::test]
async fn a_password_opens_every_connection() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = start_guarded(directory.path(), &[]);
    let memcached = Memcached::new(with_password(config(&server), PASSWORD), Rt::new()).unwrap();
    use_it(&memcached).await;
    server.restart();
    until_it_answers(&memcached).await;
}

#[tokio::test]
async fn tls_certificates_of_both_sides_and_a_password_go_together() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let passwords = password_file(directory.path(), USER, PASSWORD);
    let identity = authority.issue(&["cache.internal"]);
    let options = format!(
        "{},ssl_verify_mode=2,ssl_ca_cert={}",
        identity.server_options(),
        authority.file().display()
    );
    let server = MemcachedServer::start(
        Listen::Tcp,
        &["-Y", passwords.to_str().unwrap(), "-Z", "-o", &options],
    );
    let mut config = with_password(trusting(&server, &authority), PASSWORD);
    config.server_name = Some("cache.internal".to_owned());
    let ours = authority.issue(&["a client"]);
    config.cert_file = Some(ours.certificate);
    config.key_file = Some(ours.key);
    use_it(&Memcached::new(config, Rt::new()).unwrap()).await;
}

#[tokio::test]
async fn sasl_opens_every_connection_with_tls_or_without() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let mut server = user.start(Listen::Tcp, &[]);
    let memcached = Memcached::new(with_sasl(config(&server), PASSWORD), Rt::new()).unwrap();
    use_it(&memcached).await;
    server.restart();
    until_it_answers(&memcached).await;

    let authority = Authority::new();
    let options = authority.issue(&["127.0.0.1"]).server_options();
    let server = user.start(Listen::Tcp, &["-Z", "-o", &options]);
    let config = with_sasl(trusting(&server, &authority), PASSWORD);
    use_it(&Memcached::new(config, Rt::new()).unwrap()).await;
}

/// Somebody else's lease is as old as it is, and can be taken over and lost by the rules of all leases.
#[tokio::test]
async fn leases_by_sasl_grow_old_and_are_taken_over() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let server = user.start(Listen::Tcp, &[]);
    let process = || Memcached::new(with_sasl(config(&server), PASSWORD), Rt::new()).unwrap();
    let (first, second) = (process(), process());
    let lease = won(first.get("key", &asking()).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let Ok(Lookup::Busy { age, token }) = second.get("key", &asking()).await else {
        panic!("the lease stands");
    };
    let range = Duration::from_millis(300)..Duration::from_secs(5);
    assert!(range.contains(&age), "{age:?}");
    let taken = Lease::new(token, lease.won_at);
    let outcome = second.fill("key", Fill::new(taken, "second")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    let outcome = first.fill("key", Fill::new(lease, "first")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Lost(Lost::Voided));
    assert_eq!(hit(first.get("key", &asking()).await), b"second");
}

#[tokio::test]
async fn a_server_without_memory_fails_what_it_has_no_room_for_by_sasl() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let server = user.start(Listen::Tcp, &["-M", "-m", "8"]);
    let memcached = Memcached::new(with_sasl(config(&server), PASSWORD), Rt::new()).unwrap();
    let keys = numbered("room", 40);
    let sets = (0..40).map(|number| Set::new(vec![b'a' + number; 400_000]));
    let options = WriteOptions::default();
    let stored = memcached
        .set_immutable_many(&keys, sets.collect(), &options)
        .await;
    let found = memcached.get_many(&keys, &GetOptions::look()).await;
    let mut refused = 0;
    for (number, (stored, found)) in (0..).zip(stored.into_iter().zip(found)) {
        match stored {
            Ok(()) => assert!(hit(found) == vec![b'a' + number; 400_000], "{number}"),
            Err(error) => {
                assert!(error.to_string().contains("out of memory"), "{error}");
                assert!(matches!(found, Ok(Lookup::Miss { .. })), "{found:?}");
                refused += 1;
            }
        }
    }
    assert!((1..40).contains(&refused), "{refused}");
    let stats = &memcached.stats().servers[0];
    assert_eq!((stats.protocol_violations, stats.connects), (0, 1));
    assert_eq!(stats.out_of_memory, refused);
}

#[tokio::test]
async fn a_unix_socket_stays_plain_in_a_pool_with_tls() {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let authority = Authority::new();
    let config = trusting(&server, &authority);
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    use_it(&memcached).await;
}

#[tokio::test]
async fn a_server_without_a_password_is_used_and_not_told_ours() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let memcached = Memcached::new(with_password(config(&server), PASSWORD), Rt::new()).unwrap();
    memcached.ready().await.unwrap();
    assert!(matches!(
        client(&server).get("auth", &GetOptions::look()).await,
        Ok(Lookup::Miss { .. })
    ));
}

// --- what is refused

/// Sockets that count how often they are dialled.
#[derive(Debug)]
struct Counted {
    sockets: Sockets,
    dials: AtomicUsize,
}

#[async_trait::async_trait]
impl Transport for Counted {
    async fn dial(&self, address: &Address) -> std::io::Result<Io> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        self.sockets.dial(address).await
    }
}

/// The first call fails with this reason well within the time for a connection, and calls without end make few dials.
async fn check_refused(
    mut config: MemcachedConfig,
    kind: impl Into<Option<ErrorKind>>,
    reason: &str,
) {
    config.connect_timeout = Duration::from_secs(3);
    config.backoff = Duration::from_millis(50);
    let transport = Arc::new(Counted {
        sockets: Sockets::new(Rt::new(), config.connect_timeout),
        dials: AtomicUsize::new(0),
    });
    let memcached = Memcached::with_transport(
        config.clone(),
        Rt::new(),
        Arc::clone(&transport) as Arc<dyn Transport>,
    )
    .unwrap();
    let start = Instant::now();
    let error = memcached.get("key", &asking()).await.unwrap_err();
    let took = start.elapsed();
    assert!(took < config.connect_timeout, "{took:?}: {error}");
    assert!(error.to_string().contains(reason), "{error}");
    assert!(
        error.to_string().contains(&config.servers[0]),
        "it says which server: {error}"
    );
    assert_eq!(error.kind(), kind.into().unwrap_or(error.kind()), "{error}");
    check_hides(&config, &memcached, &error);

    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < Duration::from_millis(300) {
        memcached.get("key", &asking()).await.unwrap_err();
        memcached.delete("key").await.unwrap_err();
        calls += 2;
        tokio::task::yield_now().await;
    }
    // Pauses of at least 25, 50, 100 and 200 ms.
    let dials = transport.dials.load(Ordering::Relaxed);
    assert!(dials <= 4, "{dials} dials for {calls} calls");
    let stats = &memcached.stats().servers[0];
    let last = stats.last_error.as_deref().unwrap_or_default();
    assert!(last.contains(reason), "{last}");
}

/// Nothing that can be printed has the password in it.
#[track_caller]
fn check_hides(config: &MemcachedConfig, memcached: &Memcached, error: &Error) {
    let Some(password) = &config.password else {
        return;
    };
    let shown = format!(
        "{config:?} {memcached:?} {memcached} {error} {error:?} {:?} {}",
        memcached.stats(),
        serde_json::to_string(&config).unwrap()
    );
    assert!(!shown.contains(password.expose()), "{shown}");
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue(&["127.0.0.1"]), "");
    let other = Authority::new();
    let config = trusting(&server, &other);
    check_refused(
        config,
        ErrorKind::Config,
        "name the certificate of the authority",
    )
    .await;
    // The system knows it as little.
    let mut config = trusting(&server, &authority);
    config.ca_file = None;
    match Memcached::new(config.clone(), Rt::new()) {
        Ok(_) => check_refused(config, ErrorKind::Config, "that this system knows").await,
        Err(error) => assert!(error.to_string().contains("`ca_file`"), "{error}"),
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue_expired(&["127.0.0.1"]), "");
    let config = trusting(&server, &authority);
    check_refused(config, ErrorKind::Config, "has expired; renew it").await;
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue(&["cache.internal"]), "");
    let reason = "cache.internal and not for 127.0.0.1; set `server_name`";
    check_refused(trusting(&server, &authority), ErrorKind::Config, reason).await;
}

#[tokio::test]
async fn an_authoritys_own_certificate_is_refused_for_a_server() {
    let authority = Authority::new();
    let server = start_tls(&authority.own(), "");
    let config = trusting(&server, &authority);
    check_refused(config, ErrorKind::Config, "(CA:TRUE)").await;
}

#[tokio::test]
async fn a_client_without_the_certificate_that_is_demanded_is_told_so() {
    let authority = Authority::new();
    let demanding = format!(
        ",ssl_verify_mode=2,ssl_ca_cert={}",
        authority.file().display()
    );
    let server = start_tls(&authority.issue(&["127.0.0.1"]), &demanding);
    let mut config = trusting(&server, &authority);
    let reason = "by `cert_file` and `key_file`";
    check_refused(config.clone(), ErrorKind::Config, reason).await;
    // One of another authority is no better.
    let other = Authority::new();
    let theirs = other.issue(&["a client"]);
    config.cert_file = Some(theirs.certificate);
    config.key_file = Some(theirs.key);
    let reason = "`cert_file` has to hold one";
    check_refused(config, ErrorKind::Config, reason).await;
}

#[tokio::test]
async fn a_plain_client_at_a_tls_port_is_told_so() {
    let authority = Authority::new();
    let server = start_tls(&authority.issue(&["127.0.0.1"]), "");
    let reason = "if it speaks TLS (-Z), set `tls = true`";
    check_refused(config(&server), ErrorKind::Unavailable, reason).await;
    let config = with_password(config(&server), PASSWORD);
    check_refused(config, ErrorKind::Unavailable, reason).await;
}

#[tokio::test]
async fn a_tls_client_at_a_plain_port_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let plain = MemcachedServer::start(Listen::Tcp, &[]);
    let guarded = start_guarded(directory.path(), &[]);
    let authority = Authority::new();
    for server in [plain, guarded] {
        let config = trusting(&server, &authority);
        let reason = "answers the TLS handshake with something else";
        check_refused(config, ErrorKind::Config, reason).await;
    }
}

#[tokio::test]
async fn a_missing_or_wrong_password_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = start_guarded(directory.path(), &[]);
    let reason = "demands a password (-Y); set `user` and `password_env`";
    check_refused(config(&server), ErrorKind::Config, reason).await;
    let config = with_password(config(&server), "wrong-horse");
    check_refused(config, ErrorKind::Config, "refuses `user` or the password").await;
}

#[tokio::test]
async fn a_client_of_one_protocol_is_told_of_the_other() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let sasl = user.start(Listen::Tcp, &[]);
    let reason = "if it runs with SASL (-S), set `sasl = true`";
    check_refused(config(&sasl), ErrorKind::Unavailable, reason).await;
    let by_text = with_password(config(&sasl), PASSWORD);
    check_refused(by_text, ErrorKind::Unavailable, reason).await;

    let directory = tempfile::tempdir().unwrap();
    let text = start_guarded(directory.path(), &[]);
    let by_sasl = with_sasl(config(&text), PASSWORD);
    check_refused(by_sasl, None, "take `sasl` away").await;
    // Some versions say `ERROR`, others hang up.
    let text = MemcachedServer::start(Listen::Tcp, &["-B", "ascii"]);
    let by_sasl = with_sasl(config(&text), PASSWORD);
    check_refused(by_sasl, None, "take `sasl` away").await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_by_sasl() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let server = user.start(Listen::Tcp, &[]);
    let config = with_sasl(config(&server), "wrong-horse");
    check_refused(config, ErrorKind::Config, "refuses `user` or the password").await;
}

#[tokio::test]
async fn a_server_full_of_connections_says_so_by_sasl() {
    let user = SaslUser::new(SASL_USER, PASSWORD);
    let server = user.start(Listen::Tcp, &["-c", "32"]);
    let crowd: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    let config = with_sasl(config(&server), PASSWORD);
    check_refused(config, ErrorKind::Unavailable, "no connection to spare").await;
    drop(crowd);
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let authority = Authority::new();
    let (ours, theirs) = (authority.issue(&["a"]), authority.issue(&["b"]));
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let check = |change: &dyn Fn(&mut MemcachedConfig), reason: &str| {
        let mut config = MemcachedConfig::new(["cache-1"]);
        config.tls = true;
        config.ca_file = Some(authority.file());
        change(&mut config);
        let error = Memcached::new(config, Rt::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(reason), "{error}");
    };
    let missing = directory.path().join("missing.pem");
    check(
        &|config| config.ca_file = Some(missing.clone()),
        "missing.pem can't be read",
    );
    check(
        &|config| config.ca_file = Some(empty.clone()),
        "empty.pem holds no certificate",
    );
    check(
        &|config| {
            config.cert_file = Some(ours.certificate.clone());
            config.key_file = Some(ours.certificate.clone());
        },
        "certificate.pem holds no private key",
    );
    check(
        &|config| {
            config.cert_file = Some(ours.certificate.clone());
            config.key_file = Some(theirs.key.clone());
        },
        "can't be used together",
    );
    check(
        &|config| config.server_name = Some("a b".to_owned()),
        "`server_name`",
    );
    check(
        &|config| config.servers = vec!["cache-.".to_owned()],
        "set `server_name`",
    );
}

// --- files that change

/// Asks until the server is back; how long that takes is the probe's business.
async fn until_it_answers(memcached: &Memcached) {
    let start = Instant::now();
    while let Err(error) = memcached.get("any", &GetOptions::look()).await {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let (old, new) = (Authority::new(), Authority::new());
    let shown = old.issue(&["127.0.0.1"]);
    let mut server = start_tls(
        &shown,
        &format!(",ssl_verify_mode=2,ssl_ca_cert={}", old.file().display()),
    );
    let mut config = trusting(&server, &old);
    let ours = old.issue(&["a client"]);
    config.cert_file = Some(ours.certificate.clone());
    config.key_file = Some(ours.key.clone());
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    memcached.ready().await.unwrap();

    // Somebody is in the middle of it: the key is new, its certificate isn't there yet.
    let next = new.issue(&["a client"]);
    std::fs::copy(&next.key, &ours.key).unwrap();
    server.restart();
    until_it_answers(&memcached).await;

    // All of it is new, on both sides.
    ours.replace(&next);
    shown.replace(&new.issue(&["127.0.0.1"]));
    std::fs::copy(new.file(), old.file()).unwrap();
    server.restart();
    until_it_answers(&memcached).await;
}

// --- what is shown

/// A log that a test reads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_shows_a_password() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let directory = tempfile::tempdir().unwrap();
    let guarded = start_guarded(directory.path(), &[]);
    let open = MemcachedServer::start(Listen::Tcp, &[]);
    for server in [&guarded, &open] {
        for password in [PASSWORD, "wrong-horse"] {
            let mut config = with_password(config(server), password);
            // The name of a server that isn't there: it would be told in the clear.
            config.servers.push("cache.invalid".to_owned());
            let memcached = Memcached::new(config, Rt::new()).unwrap();
            let answers: Vec<Result<Lookup>> =
                memcached.get_many(&numbered("key", 20), &asking()).await;
            drop(answers);
            for check in memcached.check().await {
                tracing::info!(?check, "checked");
            }
        }
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in ["in the clear", "demands no password", "refuses `user`"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    for password in [PASSWORD, "wrong-horse"] {
        assert!(!log.contains(password), "{log}");
    }
}
