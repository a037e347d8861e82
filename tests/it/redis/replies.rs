//! What the server's refusals cost: an error or a miss, rarely the connection.

use std::time::{Duration, Instant};

use larder_backends::redis::Redis;
use larder_core::{
    Backend, BackendExt, ErrorKind, Fill, FillOutcome, GetOptions, Lookup, Lost, Rt, Set,
    WriteOptions,
};
use larder_harness::redis::{RedisServer, Reply};
use larder_harness::server::Listen;

use super::{asking, client, config, hit, numbered, ok, start, until, won};

#[tokio::test]
async fn forgotten_scripts_are_loaded_again() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    for count in [1, 2_000] {
        let keys = numbered(&format!("of {count}").replace(' ', "-"), count);
        let leases = redis.get_many(&keys, &asking()).await;
        ok(&mut raw, &["SCRIPT", "FLUSH"]).await;
        let fills = leases
            .into_iter()
            .map(|lookup| Fill::new(won(lookup), "value"));
        let outcomes = redis
            .fill_many(&keys, fills.collect(), &WriteOptions::default())
            .await;
        for outcome in outcomes {
            assert_eq!(outcome.unwrap(), FillOutcome::Stored);
        }
        for lookup in redis.get_many(&keys, &GetOptions::look()).await {
            assert_eq!(hit(lookup), b"value");
        }
    }
    // Releases, and fills that are refused among others that aren't.
    let keys = numbered("released", 3);
    let mut leases = redis.get_many(&keys, &asking()).await.into_iter().map(won);
    ok(&mut raw, &["SCRIPT", "FLUSH"]).await;
    let fills = ["a", "", "c"].map(|value| Fill::new(leases.next().unwrap(), value));
    let outcomes = redis
        .fill_many(&keys, fills.into(), &WriteOptions::default())
        .await;
    assert_eq!(outcomes[0].as_ref().ok(), Some(&FillOutcome::Stored));
    assert_eq!(outcomes[1].as_ref().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(raw.get("released:1").await, None);
    let lease = won(redis.get("released:1", &asking()).await);
    ok(&mut raw, &["SCRIPT", "FLUSH"]).await;
    redis.release("released:1", lease).await.unwrap();
    assert_eq!(raw.get("released:1").await, None);
    assert_eq!(redis.stats().servers[0].connects, 2);
}

#[tokio::test]
async fn the_script_that_leases_is_loaded_again() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    redis.get("any", &GetOptions::look()).await.unwrap();
    let keys = numbered("k", 700);
    for key in keys.iter() {
        raw.set(key.as_str(), b"what somebody else left there")
            .await;
    }
    ok(&mut raw, &["SCRIPT", "FLUSH"]).await;
    for lookup in redis.get_many(&keys, &asking()).await {
        won(lookup);
    }
}

#[tokio::test]
async fn what_somebody_else_stored_is_a_miss_and_replaced() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    for value in [&b""[..], b"x", &[b'E'; 100], &[0; 17], &[b'L'; 33]] {
        raw.set("k", value).await;
        let found = redis.get("k", &GetOptions::look()).await;
        assert!(
            matches!(found, Ok(Lookup::Miss { lease: None })),
            "{found:?}"
        );
        let lease = won(redis.get("k", &asking()).await);
        let outcome = redis.fill("k", Fill::new(lease, "ours")).await.unwrap();
        assert_eq!(outcome, FillOutcome::Stored);
        assert_eq!(hit(redis.get("k", &asking()).await), b"ours");
    }
}

#[tokio::test]
async fn somebody_elses_list_is_an_error_that_says_so() {
    let (server, redis) = start(&[]);
    let mut raw = server.raw().await;
    let lease = won(redis.get("filled", &asking()).await);
    redis.delete("filled").await.unwrap();
    for key in ["k", "filled"] {
        assert_eq!(raw.call(&["RPUSH", key, "x"]).await, Reply::Number(1));
    }
    let error = redis.get("k", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("somebody else"), "{error}");
    let outcome = redis.fill("filled", Fill::new(lease, "ours")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Lost(Lost::Voided));
    // A look that asks for nothing sees nothing, and a delete deletes it.
    let found = redis.get("k", &GetOptions::look()).await;
    assert!(
        matches!(found, Ok(Lookup::Miss { lease: None })),
        "{found:?}"
    );
    redis.delete("k").await.unwrap();
    won(redis.get("k", &asking()).await);
    assert_eq!(redis.stats().servers[0].connects, 1);
}

#[tokio::test]
async fn a_full_server_is_a_miss_without_a_lease_and_keeps_its_connection() {
    let (server, redis) = start(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]);
    let lease = won(redis.get("leased", &asking()).await);
    let mut raw = server.raw().await;
    // Until it takes nothing for long: what its own buffers take comes and goes.
    let filling = vec![b'x'; 8 << 10];
    let mut refused = 0;
    for number in 0.. {
        let key = format!("other:{number}");
        let words: [&[u8]; 3] = [b"SET", key.as_bytes(), &filling];
        match raw.call_bytes(&words).await {
            Reply::Error(error) => {
                assert!(error.starts_with("OOM"), "{error}");
                refused += 1;
            }
            _ => refused = 0,
        }
        if refused == 1_000 {
            break;
        }
    }
    for lookup in redis.get_many(&numbered("k", 20), &asking()).await {
        assert!(
            matches!(lookup, Ok(Lookup::Miss { lease: None })),
            "{lookup:?}"
        );
    }
    let error = redis
        .fill("leased", Fill::new(lease, "value"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("maxmemory"), "{error}");
    let error = redis
        .set_immutable("k", Set::new("value"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // Deletes go on: they make room.
    redis.delete("other:0").await.unwrap();
    let stats = &redis.stats().servers[0];
    assert_eq!((stats.out_of_memory, stats.connects), (22, 2));
    assert_eq!((stats.state, stats.protocol_violations), ("up", 0));
}

#[tokio::test]
async fn a_busy_server_is_an_error_and_keeps_its_connection() {
    let (server, redis) = start(&["--busy-reply-threshold", "10"]);
    redis.set_immutable("k", Set::new("value")).await.unwrap();
    let mut busy = server.raw().await;
    let script = tokio::spawn(async move { busy.call(&["EVAL", "while true do end", "0"]).await });
    let mut errors = Vec::new();
    until("it is busy", async || {
        match redis.get("k", &GetOptions::look()).await {
            Ok(_) => false,
            Err(error) => {
                errors.push(error);
                true
            }
        }
    })
    .await;
    assert!(errors[0].is_retryable());
    assert!(errors[0].to_string().contains("script"), "{:?}", errors[0]);
    ok(&mut server.raw().await, &["SCRIPT", "KILL"]).await;
    script.await.unwrap();
    assert_eq!(hit(redis.get("k", &GetOptions::look()).await), b"value");
    assert_eq!(redis.stats().servers[0].connects, 1);
}

#[tokio::test]
async fn a_server_that_is_loading_is_waited_for() {
    let mut server = RedisServer::start(Listen::Tcp, &[]);
    let mut raw = server.raw().await;
    for number in 0..500 {
        raw.set(&format!("k:{number}"), b"value").await;
    }
    ok(&mut raw, &["SAVE"]).await;
    // So many microseconds a key, and a look at its clients after every few bytes.
    server.set_arguments(&[
        "--key-load-delay",
        "4000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    server.restart_unawaited();
    let redis = client(&server);
    let mut errors = Vec::new();
    until("it has loaded", async || {
        match redis.get("k:0", &GetOptions::look()).await {
            Ok(_) => true,
            Err(error) => {
                errors.push(error);
                false
            }
        }
    })
    .await;
    assert!(
        errors
            .iter()
            .any(|error| error.is_retryable() && error.to_string().contains("loading")),
        "{errors:?}"
    );
}

#[tokio::test]
async fn a_hanging_server_costs_a_deadline_once() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let mut config = config(&server);
    config.timeout = Duration::from_millis(200);
    let redis = Redis::new(config, Rt::new()).unwrap();
    redis.set_immutable("k", Set::new("value")).await.unwrap();
    server.stop();
    let start = Instant::now();
    let error = redis.get("k", &GetOptions::look()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(start.elapsed() >= Duration::from_millis(200));
    let start = Instant::now();
    for _ in 0..100 {
        let error = redis.get("k", &GetOptions::look()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "calls don't wait for a server that is down"
    );
    assert_eq!(redis.stats().servers[0].state, "down");
    server.resume();
    until("it is up", async || {
        redis.get("k", &GetOptions::look()).await.is_ok()
    })
    .await;
    assert_eq!(redis.stats().servers[0].state, "up");
}
