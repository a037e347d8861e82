//! What the server itself sees.

use std::time::{Duration, SystemTime};

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{
    Backend, BackendExt, ErrorKind, Fill, FillOutcome, GetOptions, Lease, Lookup, Lost, Rt, Set,
    WriteOptions,
};
use larder_harness::server::{Listen, MemcachedServer};

use super::{Raw, asking, client, config, numbered, start, won};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Seconds left according to the server; -1 for ever.
fn seconds_left(raw: &mut Raw, key: &str) -> i64 {
    let answer = raw.ask(&format!("mg {key} t"));
    let (_, left) = answer
        .split_once(" t")
        .unwrap_or_else(|| panic!("{answer}"));
    let left = left.split(' ').next().unwrap();
    left.parse().unwrap()
}

#[tokio::test]
async fn a_time_to_live_is_rounded_up_and_survives_thirty_days() {
    let (server, memcached) = start(&[]);
    let mut raw = Raw::new(&server);
    for (ttl, least, most) in [
        (Some(Duration::ZERO), 0, 1),
        (Some(Duration::from_millis(400)), 1, 2),
        (Some(Duration::from_secs(1)), 1, 2),
        (Some(Duration::from_millis(1500)), 2, 3),
        (Some(DAY * 30), 30 * 86_400, 30 * 86_400 + 2),
        (
            Some(DAY * 30 + Duration::from_secs(1)),
            30 * 86_400,
            30 * 86_400 + 3,
        ),
        (Some(DAY * 365), 365 * 86_400 - 1, 365 * 86_400 + 3),
        (None, -1, -1),
    ] {
        memcached
            .set_immutable("set", Set::new("x").ttl(ttl))
            .await
            .unwrap();
        let left = seconds_left(&mut raw, "set");
        assert!((least..=most).contains(&left), "{ttl:?}: {left}");
        memcached.delete("fill").await.unwrap();
        let lease = won(memcached.get("fill", &asking()).await);
        memcached
            .fill("fill", Fill::new(lease, "x").ttl(ttl))
            .await
            .unwrap();
        let left = seconds_left(&mut raw, "fill");
        assert!((least..=most).contains(&left), "{ttl:?}: {left}");
    }
}

#[tokio::test]
async fn a_lease_is_a_placeholder_that_ends_by_itself() {
    let (server, memcached) = start(&[]);
    let mut raw = Raw::new(&server);
    let options = GetOptions::lease(Duration::from_secs(1));
    let lease = won(memcached.get("key", &options).await);
    assert!((1..=2).contains(&seconds_left(&mut raw, "key")));
    match memcached.get("key", &options).await {
        Ok(Lookup::Busy { age, token }) => {
            assert!(age <= Duration::from_secs(2));
            assert_eq!(token, lease.token);
        }
        other => panic!("{other:?}"),
    }
    while raw.ask("mg key") != "EN" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let outcome = memcached
        .fill("key", Fill::new(lease, "late"))
        .await
        .unwrap();
    assert_eq!(outcome, FillOutcome::Lost(Lost::Expired));
}

#[tokio::test]
async fn a_delete_between_lease_and_fill_voids_the_lease() {
    let (_server, memcached) = start(&[]);
    for bulk in [1, 40] {
        let keys = numbered("race", bulk);
        let leases = memcached.get_many(&keys, &asking()).await;
        let deleted = memcached.delete_many(&keys, &WriteOptions::default()).await;
        assert!(deleted.iter().all(Result::is_ok));
        let fills = leases
            .into_iter()
            .map(|lookup| Fill::new(won(lookup), "old"));
        let outcomes = memcached
            .fill_many(&keys, fills.collect(), &WriteOptions::default())
            .await;
        for outcome in outcomes {
            assert_eq!(outcome.unwrap(), FillOutcome::Lost(Lost::Voided));
        }
    }
}

#[tokio::test]
async fn entries_marked_stale_by_somebody_are_not_served() {
    let (server, memcached) = start(&[]);
    let mut raw = Raw::new(&server);
    memcached
        .set_immutable("key", Set::new("old"))
        .await
        .unwrap();
    assert_eq!(raw.ask("md key I T30"), "HD");
    let lease = won(memcached.get("key", &asking()).await);
    assert!(matches!(
        memcached.get("key", &asking()).await,
        Ok(Lookup::Busy { .. })
    ));
    let outcome = memcached
        .fill("key", Fill::new(lease, "new"))
        .await
        .unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    assert!(matches!(
        memcached.get("key", &asking()).await,
        Ok(Lookup::Hit { .. })
    ));
}

#[tokio::test]
async fn an_empty_value_of_somebody_else_can_be_taken_over() {
    let (server, memcached) = start(&[]);
    let mut raw = Raw::new(&server);
    assert_eq!(raw.ask("ms key 0\r\n"), "HD");
    let Ok(Lookup::Busy { age, token }) = memcached.get("key", &asking()).await else {
        panic!("an empty value is a placeholder");
    };
    assert!(age >= super::LEASE);
    let lease = Lease::new(token, SystemTime::now());
    let outcome = memcached
        .fill("key", Fill::new(lease, "new"))
        .await
        .unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
}

#[tokio::test]
async fn leases_go_back_to_the_connections_that_issued_them() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.connections = 3;
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    let keys = numbered("mixed", 100);
    let mut fills: Vec<Option<Fill>> = (0..100).map(|_| None).collect();
    let bulk = numbered("mixed", 50);
    for (number, lookup) in memcached
        .get_many(&bulk, &asking())
        .await
        .into_iter()
        .enumerate()
    {
        fills[number] = Some(Fill::new(won(lookup), "bulk"));
    }
    for (number, fill) in fills.iter_mut().enumerate().skip(50) {
        let lease = won(memcached.get(&format!("mixed:{number}"), &asking()).await);
        *fill = Some(Fill::new(lease, "single"));
    }
    let outcomes = memcached
        .fill_many(
            &keys,
            fills.into_iter().flatten().collect(),
            &WriteOptions::default(),
        )
        .await;
    for outcome in outcomes {
        assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    }
    assert_eq!(memcached.stats().servers[0].connects, 4);
}

#[tokio::test]
async fn an_abandoned_lease_is_given_back() {
    let (server, memcached) = start(&[]);
    let mut raw = Raw::new(&server);
    memcached.ready().await.unwrap();
    {
        let options = asking();
        let get = memcached.get("left", &options);
        tokio::pin!(get);
        // Polled once, the look-up is with the connection; then its caller leaves.
        assert!(futures_poll(get.as_mut()).await.is_none());
    }
    // Answered behind the abandoned one on the same connection, and so behind its release.
    memcached.get("other", &GetOptions::look()).await.unwrap();
    memcached.get("other", &GetOptions::look()).await.unwrap();
    assert_eq!(raw.ask("mg left"), "EN");
    won(memcached.get("left", &asking()).await);
}

/// Polls once.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn empty_values_are_refused_and_their_lease_is_given_back() {
    let (_server, memcached) = start(&[]);
    let error = memcached
        .set_immutable("key", Set::new(""))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let lease = won(memcached.get("key", &asking()).await);
    let error = memcached
        .fill("key", Fill::new(lease, ""))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    won(memcached.get("key", &asking()).await);
}

#[tokio::test]
async fn a_release_frees_the_key_at_once() {
    let (_server, memcached) = start(&[]);
    let other = client(&_server);
    let lease = won(memcached.get("key", &asking()).await);
    assert!(matches!(
        other.get("key", &asking()).await,
        Ok(Lookup::Busy { .. })
    ));
    memcached.release("key", lease).await.unwrap();
    let second = won(other.get("key", &asking()).await);
    other.delete("key").await.unwrap();
    // It no longer stands, and that is fine.
    other.release("key", second).await.unwrap();
}

#[tokio::test]
async fn leases_are_refused_through_a_declared_proxy() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.via_proxy = true;
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    let error = memcached.get("key", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let lease = won(client(&server).get("other", &asking()).await);
    let filled = memcached.fill("other", Fill::new(lease, "x")).await;
    assert_eq!(filled.unwrap_err().kind(), ErrorKind::Unsupported);
    memcached.set_immutable("key", Set::new("x")).await.unwrap();
    let found = memcached.get("key", &GetOptions::look()).await;
    assert!(matches!(found, Ok(Lookup::Hit { .. })));
}

#[tokio::test]
async fn a_server_without_cas_is_refused() {
    let (_server, memcached) = start(&["-C"]);
    let error = memcached.get("key", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("-C"), "{error}");
    let mut config = config(&_server);
    config.require_at_start = true;
    let error = Memcached::new(config, Rt::new())
        .unwrap()
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_server_without_connections_to_spare_says_which_option_to_raise() {
    let server = MemcachedServer::start(Listen::Tcp, &["-c", "16", "-t", "1"]);
    let mut held = Vec::new();
    // Connections are taken until one is turned away.
    loop {
        let memcached = client(&server);
        match memcached.get("key", &GetOptions::look()).await {
            Ok(_) => held.push(memcached),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                assert!(error.to_string().contains("-c"), "{error}");
                break;
            }
        }
        assert!(held.len() < 20, "nobody was turned away");
    }
    assert!(!held.is_empty());
}

#[tokio::test]
async fn a_check_tells_version_and_who_is_away() {
    let (server, _) = start(&[]);
    let mut config = config(&server);
    config.servers.push("127.0.0.1:1".into());
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    assert_eq!(
        memcached.to_string(),
        format!("memcached (127.0.0.1:1, {})", server.address())
    );
    for check in memcached.check().await {
        match check.server == server.address() {
            true => assert!(check.answer.unwrap().version.starts_with("1.")),
            false => assert_eq!(check.answer.unwrap_err().kind(), ErrorKind::Unavailable),
        }
    }
}

#[tokio::test]
async fn config_is_read_from_words() {
    let text = r#"{"servers": ["a", "b:1"], "timeout": "50ms", "bulk": "get"}"#;
    let config: MemcachedConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config.timeout, Duration::from_millis(50));
    let back: MemcachedConfig =
        serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(back, config);
    assert!(serde_json::from_str::<MemcachedConfig>(r#"{"timout": "50ms"}"#).is_err());
}
