//! Servers that die, hang and come back, and callers who leave.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_backends::memcached::Memcached;
use larder_core::{
    Backend, BackendExt, ErrorKind, Fill, FillOutcome, GetOptions, Lookup, Lost, Rt, Set,
    WriteOptions,
};
use larder_harness::server::{Listen, MemcachedServer};

use super::{asking, config, hit, numbered, start, won};

/// Asks until the server is back; how long that takes is the probe's business.
async fn until_it_answers(memcached: &Memcached) {
    let start = Instant::now();
    while memcached.get("any", &GetOptions::look()).await.is_err() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it never came back"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_lease_from_before_a_restart_is_lost() {
    for listen in [Listen::Tcp, Listen::Unix] {
        let mut server = MemcachedServer::start(listen, &[]);
        let memcached = Memcached::new(config(&server), Rt::new()).unwrap();
        let lease = won(memcached.get("key", &asking()).await);
        server.restart();
        until_it_answers(&memcached).await;
        // The new server numbers from the start: the same key gets the same number.
        let second = won(memcached.get("key", &asking()).await);
        assert_eq!(lease.token.token, second.token.token);
        assert_ne!(lease.token, second.token);
        let outcome = memcached
            .fill("key", Fill::new(lease, "old"))
            .await
            .unwrap();
        assert_eq!(outcome, FillOutcome::Lost(Lost::ConnectionGone));
        let outcome = memcached
            .fill("key", Fill::new(second, "new"))
            .await
            .unwrap();
        assert_eq!(outcome, FillOutcome::Stored);
    }
}

#[tokio::test]
async fn fills_queued_before_the_reconnect_are_lost() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let memcached = Arc::new(Memcached::new(config(&server), Rt::new()).unwrap());
    let keys = numbered("queued", 50);
    let leases = memcached.get_many(&keys, &asking()).await;
    server.stop();
    let fill = tokio::spawn({
        let memcached = Arc::clone(&memcached);
        let fills: Vec<Fill> = leases
            .into_iter()
            .map(|lookup| Fill::new(won(lookup), vec![b'x'; 1000]))
            .collect();
        async move {
            memcached
                .fill_many(&keys, fills, &WriteOptions::default())
                .await
        }
    });
    while memcached.stats().servers[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
    server.restart();
    for outcome in fill.await.unwrap() {
        assert_eq!(outcome.unwrap(), FillOutcome::Lost(Lost::ConnectionGone));
    }
    until_it_answers(&memcached).await;
    for lookup in memcached
        .get_many(&numbered("queued", 50), &GetOptions::look())
        .await
    {
        assert!(matches!(lookup, Ok(Lookup::Miss { .. })), "{lookup:?}");
    }
}

#[tokio::test]
async fn a_server_killed_under_way_fails_what_was_asked_and_nothing_later() {
    let mut server = MemcachedServer::start(Listen::Tcp, &[]);
    let memcached = Arc::new(Memcached::new(config(&server), Rt::new()).unwrap());
    memcached.get_many(&numbered("warm", 100), &asking()).await;
    server.stop();
    let asked = tokio::spawn({
        let memcached = Arc::clone(&memcached);
        async move {
            memcached
                .get_many(&numbered("asked", 1_000), &asking())
                .await
        }
    });
    while memcached.stats().servers[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
    server.kill();
    for lookup in asked.await.unwrap() {
        let error = lookup.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_retryable());
    }
    let start = Instant::now();
    let error = memcached.get("later", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(1));
    server.restart();
    until_it_answers(&memcached).await;
    let stats = &memcached.stats().servers[0];
    assert_eq!((stats.state, stats.in_flight), ("up", 0));
}

#[tokio::test]
async fn a_server_that_hangs_delays_only_what_is_under_way() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.timeout = Duration::from_millis(300);
    config.stall = Duration::from_secs(1);
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    memcached
        .set_immutable("key", Set::new("value"))
        .await
        .unwrap();
    server.stop();
    let start = Instant::now();
    let error = memcached.get("key", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(start.elapsed() >= Duration::from_millis(300));
    // Nobody else waits: look-ups, fills and deletes fail at once.
    let start = Instant::now();
    for _ in 0..100 {
        let error = memcached.get("key", &asking()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let error = memcached.delete("key").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert!(
        start.elapsed() < Duration::from_millis(250),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(memcached.stats().servers[0].state, "down");
    // Long enough for the connection to be given up, and for a probe or two to fail.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(memcached.stats().servers[0].state, "down");
    server.resume();
    until_it_answers(&memcached).await;
    assert_eq!(hit(memcached.get("key", &asking()).await), b"value");
    assert_eq!(memcached.stats().servers[0].protocol_violations, 0);
}

#[tokio::test]
async fn a_short_hang_closes_no_connection() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.timeout = Duration::from_millis(100);
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    let lease = won(memcached.get("key", &asking()).await);
    server.stop();
    let late = memcached.get("key", &asking()).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout);
    server.resume();
    until_it_answers(&memcached).await;
    // The late reply was read and dropped; the lease of the same connection still stands.
    let outcome = memcached
        .fill("key", Fill::new(lease, "value"))
        .await
        .unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    assert_eq!(memcached.stats().servers[0].connects, 1);
}

#[tokio::test]
async fn one_dead_server_fails_only_its_keys() {
    let servers: Vec<_> = (0..2)
        .map(|_| MemcachedServer::start(Listen::Unix, &[]))
        .collect();
    let mut config = config(&servers[0]);
    config.servers = servers.iter().map(MemcachedServer::address).collect();
    let memcached = Memcached::new(config, Rt::new()).unwrap();
    let keys = numbered("half", 200);
    let sets = (0..200)
        .map(|number| Set::new(number.to_string()))
        .collect();
    let _ = memcached
        .set_immutable_many(&keys, sets, &WriteOptions::default())
        .await;
    let mut servers = servers;
    let dead = servers.pop().unwrap();
    drop(dead);
    let (mut found, mut failed) = (0, 0);
    for (number, lookup) in memcached
        .get_many(&keys, &asking())
        .await
        .into_iter()
        .enumerate()
    {
        match lookup {
            Ok(Lookup::Hit { value, .. }) => {
                assert_eq!(value, number.to_string());
                found += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable);
                failed += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(found > 60 && failed > 60, "{found} {failed}");
    let deleted = memcached.delete_many(&keys, &WriteOptions::default()).await;
    assert_eq!(
        deleted.iter().filter(|deleted| deleted.is_ok()).count(),
        found
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_leave_never_cross_replies() {
    let (_server, memcached) = start(&[]);
    let memcached = Arc::new(memcached);
    let keys = numbered("own", 500);
    let sets = (0..500)
        .map(|number| Set::new(format!("value {number}")))
        .collect();
    let _ = memcached
        .set_immutable_many(&keys, sets, &WriteOptions::default())
        .await;
    let callers: Vec<_> = (0..300)
        .map(|seed| {
            let memcached = Arc::clone(&memcached);
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..60 {
                    let first = random.usize(..500);
                    let count = *random.choice(&[1, 1, 1, 20, 90]).unwrap();
                    let numbers: Vec<usize> = (0..count).map(|more| (first + more) % 500).collect();
                    let mut keys = larder_core::Keys::new();
                    for number in &numbers {
                        keys.push_raw(&format!("own:{number}")).unwrap();
                    }
                    let patience = Duration::from_micros(random.u64(..3_000));
                    let options = asking();
                    let found = memcached.get_many(&keys, &options);
                    let Ok(found) = tokio::time::timeout(patience, found).await else {
                        continue;
                    };
                    for (number, lookup) in numbers.into_iter().zip(found) {
                        assert_eq!(hit(lookup), format!("value {number}").into_bytes());
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let stats = &memcached.stats().servers[0];
    assert_eq!((stats.protocol_violations, stats.connects), (0, 2));
    assert_eq!(hit(memcached.get("own:7", &asking()).await), b"value 7");
}

/// What the server counts while only the test itself asks.
const ALONE: u64 = 1;

/// Waits until the server has so many connections; it notices a few moments later than their owners.
async fn until_connections(raw: &mut super::Raw, count: u64) {
    let start = Instant::now();
    loop {
        let now = raw.stat("curr_connections");
        if now == count {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{now} instead of {count}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_closed_client_refuses_and_closes_its_connections() {
    let (server, memcached) = start(&[]);
    let mut raw = super::Raw::new(&server);
    memcached.ready().await.unwrap();
    memcached
        .get_many(&numbered("some", 100), &GetOptions::look())
        .await;
    until_connections(&mut raw, ALONE + 2).await;
    memcached.close(Duration::from_secs(5)).await;
    let error = memcached.get("key", &asking()).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    until_connections(&mut raw, ALONE).await;
}

#[tokio::test]
async fn closing_answers_what_is_under_way_or_gives_up_at_the_deadline() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let memcached = Arc::new(Memcached::new(config(&server), Rt::new()).unwrap());
    memcached.ready().await.unwrap();
    server.stop();
    let asked = tokio::spawn({
        let memcached = Arc::clone(&memcached);
        async move { memcached.get("key", &GetOptions::look()).await }
    });
    while memcached.stats().servers[0].in_flight == 0 {
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    memcached.close(Duration::from_millis(300)).await;
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(
        asked.await.unwrap().unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn a_dropped_client_leaves_no_connection_behind() {
    let (server, memcached) = start(&[]);
    let mut raw = super::Raw::new(&server);
    memcached.ready().await.unwrap();
    until_connections(&mut raw, ALONE + 1).await;
    drop(memcached);
    until_connections(&mut raw, ALONE).await;
}
