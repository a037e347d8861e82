//! The Redis client against real servers, beyond what every backend passes.

mod cluster;
mod history;
mod refusals;
mod replies;
mod tls;
mod traffic;
mod wire;

use std::time::{Duration, Instant};

use larder_backends::redis::{Redis, RedisConfig};
use larder_core::{BackendExt, GetOptions, Keys, Lease, Lookup, Result, Rt};
use larder_harness::redis::{RawRedis, RedisServer, Reply};
use larder_harness::server::Listen;

const LEASE: Duration = Duration::from_secs(10);

/// A server on loopback and a client of it.
fn start(arguments: &[&str]) -> (RedisServer, Redis) {
    let server = RedisServer::start(Listen::Tcp, arguments);
    let client = client(&server);
    (server, client)
}

/// A patient client: the machine may be busy with other tests.
fn config(server: &RedisServer) -> RedisConfig {
    let mut config = RedisConfig::new(server.address());
    config.connect_timeout = Duration::from_secs(5);
    config.timeout = Duration::from_secs(5);
    config.flush_timeout = Duration::from_secs(5);
    config.stall = Duration::from_secs(5);
    config.backoff_limit = Duration::from_millis(100);
    config
}

fn client(server: &RedisServer) -> Redis {
    Redis::new(config(server), Rt::new()).unwrap()
}

/// Keys `name:0`, `name:1`, …
fn numbered(name: &str, count: usize) -> Keys {
    let mut keys = Keys::with_capacity(count);
    for number in 0..count {
        keys.push_raw(&format!("{name}:{number}")).unwrap();
    }
    keys
}

fn asking() -> GetOptions {
    GetOptions::lease(LEASE)
}

#[track_caller]
fn won(lookup: Result<Lookup>) -> Lease {
    match lookup {
        Ok(Lookup::Miss { lease: Some(lease) }) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

#[track_caller]
fn hit(lookup: Result<Lookup>) -> Vec<u8> {
    match lookup {
        Ok(Lookup::Hit { value, .. }) => value.to_vec(),
        other => panic!("expected a hit, got {other:?}"),
    }
}

/// Waits for something that only time can bring about.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: not within 20 s"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks until the server is back; how long that takes is the probe's business.
async fn until_it_answers(redis: &Redis) {
    until("it answers", async || {
        redis.get("any", &GetOptions::look()).await.is_ok()
    })
    .await;
}

async fn ok(raw: &mut RawRedis, words: &[&str]) {
    let reply = raw.call(words).await;
    assert!(
        matches!(&reply, Reply::Text(text) if text.starts_with("OK")),
        "{words:?}: {reply:?}"
    );
}
