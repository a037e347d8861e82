//! What goes over the wire: how many trips, which commands, and what callers who leave leave behind.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use larder_backends::redis::Redis;
use larder_core::{
    Backend, BackendExt, ErrorKind, Fill, FillOutcome, GetOptions, Lookup, Rt, Set, Trips,
    WriteOptions,
};
use larder_harness::redis::{RedisServer, Reply};
use larder_harness::server::Listen;

use super::{
    LEASE, asking, client, config, hit, numbered, ok, start, until, until_it_answers, won,
};

/// What a call cost: trips.
async fn cost<F: Future>(call: impl FnOnce(Trips) -> F) -> (F::Output, u64) {
    let counter = Arc::new(AtomicU64::new(0));
    let output = call(Trips::from(Arc::clone(&counter))).await;
    (output, counter.load(Ordering::Relaxed))
}

#[tokio::test]
async fn hits_are_one_trip_and_misses_two() {
    let (_server, redis) = start(&[]);
    for count in [1, 1_000] {
        let keys = numbered(&format!("of-{count}"), count);
        let ask = async |trips: Trips| redis.get_many(&keys, &asking().trips(trips)).await;
        let (answers, trips) = cost(ask).await;
        assert_eq!(trips, 2, "{count} misses");
        let fills: Vec<Fill> = answers
            .into_iter()
            .map(|answer| Fill::new(won(answer), "value"))
            .collect();
        let busy = cost(ask).await;
        assert_eq!(busy.1, 1, "{count} leased keys");
        let fill = async |trips| {
            redis
                .fill_many(&keys, fills, &WriteOptions::trips(trips))
                .await
        };
        assert_eq!(cost(fill).await.1, 1, "{count} fills");
        assert_eq!(cost(ask).await.1, 1, "{count} hits");
    }
}

#[tokio::test]
async fn a_bulk_hit_sends_nothing_but_mget() {
    let (server, redis) = start(&[]);
    let keys = numbered("k", 1_000);
    let sets = (0..1_000).map(|_| Set::new("value")).collect();
    redis
        .set_immutable_many(&keys, sets, &WriteOptions::default())
        .await;
    let mut raw = server.raw().await;
    ok(&mut raw, &["CONFIG", "RESETSTAT"]).await;
    for lookup in redis.get_many(&keys, &asking()).await {
        assert_eq!(hit(lookup), b"value");
    }
    let Reply::Bytes(stats) = raw.call(&["INFO", "commandstats"]).await else {
        panic!("INFO is a text");
    };
    let stats = String::from_utf8_lossy(&stats).into_owned();
    for line in stats.lines().filter(|line| line.starts_with("cmdstat_")) {
        let name = line.split([':', '_']).nth(1).unwrap();
        // INFO and TIME may be a beat.
        assert!(
            ["mget", "config|resetstat", "info", "time"].contains(&name),
            "{line}"
        );
    }
    assert!(stats.contains("cmdstat_mget:calls=4"), "{stats}");
}

#[tokio::test]
async fn answers_are_handed_over_as_they_come() {
    let (_server, redis) = start(&[]);
    let keys = numbered("k", 2_000);
    let sets = (0..1_000).map(|_| Set::new(vec![b'x'; 5_000])).collect();
    let stored = keys.select(0..1_000);
    redis
        .set_immutable_many(&stored, sets, &WriteOptions::default())
        .await;
    // Hits come before the misses have their leases.
    let mut order = Vec::new();
    let mut found = |position: usize, answer: larder_core::Result<Lookup>| {
        order.push((position, matches!(answer, Ok(Lookup::Hit { .. }))));
    };
    redis.get_each(&keys, &asking(), &mut found).await;
    assert_eq!(order.len(), 2_000);
    let misses = order.iter().position(|(_, is_hit)| !is_hit).unwrap();
    assert_eq!(misses, 1_000);
}

/// Polls a call so often, and leaves.
async fn leave_after(polls: usize, call: impl Future) {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 || call.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        left -= 1;
        match left {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_of_callers_who_left_are_given_back() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    redis.get("warm", &GetOptions::look()).await.unwrap();
    for polls in 1..12 {
        for count in [1, 40, 600] {
            let keys = numbered(&format!("left-{polls}-{count}"), count);
            // What a caller who stayed was given is the caller's.
            let mut given = 0;
            let mut found = |_, _| given += 1;
            let options = asking();
            leave_after(polls, redis.get_each(&keys, &options, &mut found)).await;
            if given > 0 {
                continue;
            }
            until("the keys are free", async || {
                let free = redis.get_many(&keys, &GetOptions::look()).await;
                free.iter()
                    .all(|lookup| matches!(lookup, Ok(Lookup::Miss { .. })))
            })
            .await;
        }
    }
    // Nothing of theirs is under way, and nothing was left on the shelf but by those who took it.
    until("nothing is under way", async || {
        redis.stats().servers[0].in_flight == 0
    })
    .await;
    assert_eq!(raw.call(&["PING"]).await, Reply::Text("PONG".into()));
}

#[tokio::test]
async fn a_fill_is_sent_though_its_caller_leaves() {
    let (server, redis) = start(&[]);
    let lease = won(redis.get("k", &asking()).await);
    leave_after(1, redis.fill("k", Fill::new(lease, "value"))).await;
    until("it is filled", async || {
        let found = redis.get("k", &GetOptions::look()).await;
        matches!(found, Ok(Lookup::Hit { .. }))
    })
    .await;
    leave_after(1, redis.delete("k")).await;
    until("it is deleted", async || {
        server.raw().await.get("k").await.is_none()
    })
    .await;
}

#[tokio::test]
async fn lifetimes_are_exact_to_the_millisecond() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    let set = Set::new("value").ttl(Duration::from_micros(12_345_600));
    redis.set_immutable("set", set).await.unwrap();
    let lease = won(redis.get("filled", &asking()).await);
    let kept = raw.ttl("filled").await.unwrap();
    assert!(
        kept <= LEASE && kept > LEASE - Duration::from_secs(5),
        "{kept:?}"
    );
    let fill = Fill::new(lease, "value").ttl(Duration::from_millis(54_321));
    assert_eq!(
        redis.fill("filled", fill).await.unwrap(),
        FillOutcome::Stored
    );
    // What is left, and what has passed since, is at most what was asked.
    for (key, asked) in [("set", 12_346), ("filled", 54_321)] {
        let kept = raw.ttl(key).await.unwrap();
        assert!(
            kept <= Duration::from_millis(asked)
                && kept > Duration::from_millis(asked) - Duration::from_secs(5),
            "{key}: {kept:?}"
        );
    }
}

#[tokio::test]
async fn databases_are_stores_of_their_own() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let of = |database| {
        let mut config = config(&server);
        config.database = database;
        Redis::new(config, Rt::new()).unwrap()
    };
    let (first, other) = (of(0), of(3));
    first.set_immutable("k", Set::new("first")).await.unwrap();
    assert!(matches!(
        other.get("k", &GetOptions::look()).await,
        Ok(Lookup::Miss { .. })
    ));
    other.set_immutable("k", Set::new("other")).await.unwrap();
    assert_eq!(hit(first.get("k", &GetOptions::look()).await), b"first");
    assert_ne!(first.pool(), other.pool());
    let mut raw = server.raw().await;
    ok(&mut raw, &["SELECT", "3"]).await;
    assert!(raw.get("k").await.is_some());
}

#[tokio::test]
async fn a_check_says_version_and_latency() {
    let (server, redis) = start(&[]);
    let version = server.raw().await.info("redis_version").await;
    let checks = redis.check().await;
    assert_eq!(checks[0].server, server.address());
    let answer = checks[0].answer.as_ref().unwrap();
    assert!(answer.version.ends_with(&version) || answer.version.starts_with("valkey"));
    assert!(answer.latency > Duration::ZERO && answer.latency < Duration::from_secs(5));
}

#[tokio::test]
async fn bytes_are_counted_in_both_directions() {
    let (_server, redis) = start(&[]);
    redis
        .set_immutable("k", Set::new(vec![b'x'; 100_000]))
        .await
        .unwrap();
    let before = redis.stats().servers.remove(0);
    assert!(before.bytes_out > 100_000 && before.bytes_in < 50_000);
    redis.get("k", &GetOptions::look()).await.unwrap();
    let after = redis.stats().servers.remove(0);
    assert!(after.bytes_in - before.bytes_in > 100_000);
    assert_eq!((after.trips, after.keys), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_went_through_is_in_its_figures() {
    let mut server = RedisServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.timeout = Duration::from_secs(1);
    let redis = Redis::new(config, Rt::new()).unwrap();
    let figures = || redis.stats().servers.remove(0);
    redis.get("k", &GetOptions::look()).await.unwrap();
    let well = figures();
    assert_eq!((well.state, well.connects, well.reconnects), ("up", 1, 0));
    assert_eq!((well.last_error, well.last_error_age_s), (None, None));

    server.kill();
    until("it is known to be gone", async || {
        let failed = redis.get("k", &GetOptions::look()).await.is_err();
        failed && figures().state != "up"
    })
    .await;
    let gone = figures();
    assert!(gone.last_error.is_some() && gone.last_error_age_s.is_some());
    server.restart();
    until_it_answers(&redis).await;
    let back = figures();
    assert_eq!((back.state, back.reconnects), ("up", 1));
    assert!(back.last_error.is_some(), "what went wrong is remembered");

    server.stop();
    let error = redis.get("k", &GetOptions::look()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let hung = figures();
    assert_eq!(hung.state, "down");
    assert_eq!(hung.timeouts - back.timeouts, 1);
    assert_eq!(hung.times_down - back.times_down, 1);
    server.resume();
}

#[tokio::test]
async fn several_connections_serve_single_keys() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.connections = 3;
    let redis = Redis::new(config, Rt::new()).unwrap();
    for key in numbered("k", 40).iter() {
        let lease = won(redis.get(key.as_str(), &asking()).await);
        // On whichever connection of the same server: a lease isn't bound to one.
        let outcome = redis.fill(key.as_str(), Fill::new(lease, "value")).await;
        assert_eq!(outcome.unwrap(), FillOutcome::Stored);
    }
    redis.get_many(&numbered("k", 40), &asking()).await;
    assert_eq!(redis.stats().servers[0].connects, 4);
}

#[tokio::test]
async fn a_value_over_the_servers_limit_is_refused_here() {
    let (_server, redis) = start(&[]);
    let error = redis
        .set_immutable("k", Set::new(vec![0; 1 << 20]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("`max_item`"), "{error}");
    assert_eq!(redis.stats().servers[0].bytes_out / 100_000, 0);
}

#[tokio::test]
async fn a_handle_survives_the_runtime_it_was_first_used_on() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let redis = Arc::new(client(&server));
    let other = Arc::clone(&redis);
    let first_use = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            other.set_immutable("k", Set::new("value")).await.unwrap();
        });
    };
    tokio::task::spawn_blocking(first_use).await.unwrap();
    until("it dials anew", async || {
        redis.get("k", &GetOptions::look()).await.is_ok()
    })
    .await;
}
