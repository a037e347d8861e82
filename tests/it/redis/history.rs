//! What a server brings back from a snapshot, or from its time as a replica, is never read.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_backends::redis::Redis;
use larder_core::{
    Backend, BackendExt, Error, Fill, FillOutcome, GetOptions, Lookup, Lost, Set, WriteOptions,
};
use larder_harness::redis::{RedisServer, Reply};
use larder_harness::server::Listen;

use super::{asking, client, hit, numbered, ok, start, until, until_it_answers, won};

/// The readers that go on while the server dies and comes back.
struct Traffic {
    stops: Arc<AtomicBool>,
    served_deleted: Arc<AtomicBool>,
    hits: Arc<AtomicU64>,
    readers: Vec<tokio::task::JoinHandle<()>>,
}

const KEYS: usize = 50;

/// The version of the source that may be served: what is older was deleted.
fn version(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).unwrap();
    text.split('#').next_back().unwrap().parse().unwrap()
}

impl Traffic {
    /// Reads all keys without pause through several handles, loads what is absent, and notes whatever is older than the
    /// version whose delete was answered before the read began.
    fn start(server: &RedisServer, source: &Arc<AtomicU64>, acknowledged: &Arc<AtomicU64>) -> Self {
        let stops = Arc::new(AtomicBool::new(false));
        let served_deleted = Arc::new(AtomicBool::new(false));
        let hits = Arc::new(AtomicU64::new(0));
        let reader = |number: usize| {
            let redis = client(server);
            let (stops, served_deleted, hits) = (
                Arc::clone(&stops),
                Arc::clone(&served_deleted),
                Arc::clone(&hits),
            );
            let (source, acknowledged) = (Arc::clone(source), Arc::clone(acknowledged));
            tokio::spawn(async move {
                // Some read in bulk, others one by one: they go over different connections.
                let keys = numbered("k", if number.is_multiple_of(2) { KEYS } else { 1 });
                while !stops.load(Ordering::SeqCst) {
                    let oldest = acknowledged.load(Ordering::SeqCst);
                    let mut positions = Vec::new();
                    let mut fills = Vec::new();
                    let answers = redis.get_many(&keys, &asking()).await;
                    for (position, answer) in answers.into_iter().enumerate() {
                        match answer {
                            Ok(Lookup::Hit { value, .. }) => {
                                hits.fetch_add(1, Ordering::Relaxed);
                                if version(&value) < oldest {
                                    served_deleted.store(true, Ordering::SeqCst);
                                }
                            }
                            Ok(Lookup::Miss { lease: Some(lease) }) => {
                                // As a load: what the source says now, after the lease.
                                let now = source.load(Ordering::SeqCst);
                                positions.push(position);
                                fills.push(Fill::new(lease, format!("value#{now}")));
                            }
                            _ => {}
                        }
                    }
                    let keys = keys.select(positions.iter().copied());
                    let options = WriteOptions::default();
                    let _ = redis.fill_many(&keys, fills, &options).await;
                    tokio::task::yield_now().await;
                }
            })
        };
        let readers = (0..4).map(reader).collect();
        Self {
            stops,
            served_deleted,
            hits,
            readers,
        }
    }

    /// Waits until so many more hits were served.
    async fn more_hits(&self, count: u64) {
        let goal = self.hits.load(Ordering::Relaxed) + count;
        until("readers hit", async || {
            self.hits.load(Ordering::Relaxed) >= goal
        })
        .await;
    }

    async fn stop(self) {
        self.stops.store(true, Ordering::SeqCst);
        for reader in self.readers {
            reader.await.unwrap();
        }
        assert!(
            !self.served_deleted.load(Ordering::SeqCst),
            "what was deleted was served"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_never_brings_back_what_was_deleted() {
    let mut server = RedisServer::start(Listen::Tcp, &[]);
    let source = Arc::new(AtomicU64::new(1));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let traffic = Traffic::start(&server, &source, &acknowledged);
    traffic.more_hits(1_000).await;
    for _ in 0..3 {
        // The snapshot has the version of now.
        let mut raw = server.raw().await;
        ok(&mut raw, &["SAVE"]).await;
        let saved = raw.get("k:0").await;
        // The source changes, and the delete is acknowledged.
        let now = source.fetch_add(1, Ordering::SeqCst) + 1;
        let writer = client(&server);
        for deleted in writer
            .delete_many(&numbered("k", KEYS), &WriteOptions::default())
            .await
        {
            deleted.unwrap();
        }
        acknowledged.store(now, Ordering::SeqCst);
        traffic.more_hits(200).await;
        server.restart();
        // The old version is back on the server, or the test would prove nothing. A reader may have replaced it by now.
        assert!(saved.is_some());
        traffic.more_hits(1_000).await;
    }
    traffic.stop().await;
}

/// A client that doesn't look is what the test above would catch: the server really brings it all back.
#[tokio::test]
async fn a_restarted_server_does_bring_it_back() {
    for listen in [Listen::Tcp, Listen::Unix] {
        let mut server = RedisServer::start(listen, &[]);
        let redis = client(&server);
        redis.set_immutable("k", Set::new("old")).await.unwrap();
        let mut raw = server.raw().await;
        let before = raw.get("k").await.unwrap();
        ok(&mut raw, &["SAVE"]).await;
        redis.delete("k").await.unwrap();
        assert_eq!(raw.get("k").await, None);
        server.restart();
        let mut raw = server.raw().await;
        assert_eq!(raw.get("k").await, Some(before));
        until_it_answers(&redis).await;
        let found = redis.get("k", &GetOptions::look()).await;
        assert!(
            matches!(found, Ok(Lookup::Miss { lease: None })),
            "{found:?}"
        );
        // It is replaced under a lease, like what is absent.
        let lease = won(redis.get("k", &asking()).await);
        let outcome = redis.fill("k", Fill::new(lease, "new")).await.unwrap();
        assert_eq!(outcome, FillOutcome::Stored);
        assert_eq!(hit(redis.get("k", &asking()).await), b"new");
    }
}

#[tokio::test]
async fn a_placeholder_of_a_snapshot_fills_nothing_and_keeps_nobody_out() {
    let (mut server, redis) = start(&[]);
    let lease = won(redis.get("k", &asking()).await);
    let mut raw = server.raw().await;
    let placeholder = raw.get("k").await.unwrap();
    ok(&mut raw, &["SAVE"]).await;
    redis.delete("k").await.unwrap();
    server.restart();
    let mut raw = server.raw().await;
    assert_eq!(raw.get("k").await, Some(placeholder));
    until_it_answers(&redis).await;
    // Byte for byte what the lease was won on stands there again, and its delete was acknowledged.
    let outcome = redis.fill("k", Fill::new(lease, "old")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Lost(Lost::ConnectionGone));
    let next = won(redis.get("k", &asking()).await);
    let outcome = redis.fill("k", Fill::new(next, "new")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    assert_eq!(hit(redis.get("k", &asking()).await), b"new");
}

#[tokio::test]
async fn a_release_of_before_a_restart_touches_nothing() {
    let (mut server, redis) = start(&[]);
    let lease = won(redis.get("k", &asking()).await);
    ok(&mut server.raw().await, &["SAVE"]).await;
    server.restart();
    until_it_answers(&redis).await;
    redis.release("k", lease).await.unwrap();
    assert!(server.raw().await.get("k").await.is_some());
}

#[tokio::test]
async fn a_lease_outlives_its_connection_but_not_its_server() {
    let (server, redis) = start(&[]);
    let lease = won(redis.get("k", &asking()).await);
    let mut raw = server.raw().await;
    let reply = raw.call(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    assert!(matches!(reply, Reply::Number(1..)), "{reply:?}");
    until_it_answers(&redis).await;
    let outcome = redis.fill("k", Fill::new(lease, "new")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    assert_eq!(redis.stats().servers[0].connects, 2);
}

/// A new pair of a primary and its replica, which has all of it.
async fn pair() -> (RedisServer, RedisServer) {
    let arguments = ["--repl-diskless-sync-delay", "0"];
    let primary = RedisServer::start(Listen::Tcp, &arguments);
    let replica = RedisServer::start(Listen::Tcp, &arguments);
    follow(&replica, &primary).await;
    (primary, replica)
}

/// Makes this server the other's replica, and waits until it has all of it.
async fn follow(replica: &RedisServer, primary: &RedisServer) {
    let mut raw = replica.raw().await;
    let port = primary.port().to_string();
    ok(&mut raw, &["REPLICAOF", "127.0.0.1", &port]).await;
    until("the replica is in step", async || {
        let (mut raw, mut theirs) = (replica.raw().await, primary.raw().await);
        raw.info("role").await == "slave"
            && raw.info("master_link_status").await == "up"
            && raw.info("slave_repl_offset").await == theirs.info("master_repl_offset").await
    })
    .await;
}

async fn promote(server: &RedisServer) {
    ok(&mut server.raw().await, &["REPLICAOF", "NO", "ONE"]).await;
}

/// Fail-over and back, as it is done for maintenance: the process that is primary again is the same, and has in its data
/// what it had deleted, from a replica that hadn't heard of it yet.
#[tokio::test]
async fn a_primary_that_was_a_replica_meanwhile_brings_nothing_back() {
    let (first, second) = pair().await;
    let redis = client(&first);
    redis.set_immutable("k", Set::new("old")).await.unwrap();
    let lease = won(redis.get("leased", &asking()).await);
    follow(&second, &first).await;
    let run_id = first.raw().await.info("run_id").await;

    promote(&second).await;
    redis.delete("k").await.unwrap();
    redis.delete("leased").await.unwrap();
    follow(&first, &second).await;
    assert!(first.raw().await.get("k").await.is_some());
    promote(&first).await;
    assert_eq!(first.raw().await.info("run_id").await, run_id);

    let other = client(&first);
    let found = other.get("k", &GetOptions::look()).await;
    assert!(
        matches!(found, Ok(Lookup::Miss { lease: None })),
        "{found:?}"
    );
    let outcome = other.fill("leased", Fill::new(lease, "old")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Lost(Lost::ConnectionGone));
    // Who was connected all the time notices within a moment.
    until("the old connection is given up", async || {
        let found = redis.get("k", &GetOptions::look()).await;
        matches!(found, Ok(Lookup::Miss { .. }))
    })
    .await;
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_given_up() {
    let (first, second) = pair().await;
    let redis = client(&first);
    redis.set_immutable("k", Set::new("value")).await.unwrap();
    promote(&second).await;
    follow(&first, &second).await;
    // By reads alone, which a replica answers.
    let mut errors = HashSet::new();
    until("the replica is given up", async || {
        match redis.get("k", &GetOptions::look()).await {
            Ok(_) => false,
            Err(error) => errors.insert(error.to_string()),
        }
    })
    .await;
    assert!(
        errors.iter().all(|error| error.contains("replica")),
        "{errors:?}"
    );
    // And used again when it is the primary.
    promote(&first).await;
    until_it_answers(&redis).await;
}

#[tokio::test]
async fn a_write_that_a_replica_refuses_ends_the_connection() {
    let (first, second) = pair().await;
    let redis = client(&first);
    redis.set_immutable("k", Set::new("value")).await.unwrap();
    promote(&second).await;
    follow(&first, &second).await;
    let error = redis.delete("k").await.unwrap_err();
    assert!(error.is_retryable());
    assert!(error.to_string().contains("replica"), "{error}");
    // At once, and not at the next beat.
    let found = redis.get("k", &GetOptions::look()).await;
    assert!(found.is_err(), "{found:?}");
}

/// When the first replica comes the history of the data gets a new name, once: all handles agree on it again.
#[tokio::test]
async fn a_first_replica_costs_a_cold_cache_once() {
    let (first, redis) = start(&["--repl-diskless-sync-delay", "0"]);
    redis.set_immutable("k", Set::new("value")).await.unwrap();
    let second = RedisServer::start(Listen::Tcp, &[]);
    follow(&second, &first).await;
    let other = client(&first);
    let lease = won(other.get("k", &asking()).await);
    let outcome = other.fill("k", Fill::new(lease, "again")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    until("both see it", async || {
        let found: Result<Lookup, Error> = redis.get("k", &GetOptions::look()).await;
        matches!(found, Ok(Lookup::Hit { value, .. }) if value == "again")
    })
    .await;
}

/// Two processes may take the same server for different ones for a moment. Neither reads what the other stored, and both
/// can delete it.
#[tokio::test]
async fn a_delete_reaches_entries_of_every_incarnation() {
    let (mut server, before) = start(&[]);
    before.set_immutable("k", Set::new("old")).await.unwrap();
    ok(&mut server.raw().await, &["SAVE"]).await;
    server.restart();
    let after: Redis = client(&server);
    after.delete("k").await.unwrap();
    assert_eq!(server.raw().await.get("k").await, None);
}

/// How long a connection may still answer after its server was made a replica: it is asked every second.
#[tokio::test]
async fn an_idle_handle_asks_nothing() {
    let (server, redis) = start(&[]);
    redis.get("k", &GetOptions::look()).await.unwrap();
    let mut raw = server.raw().await;
    let commands = async |raw: &mut larder_harness::redis::RawRedis| -> u64 {
        let processed = raw.info("total_commands_processed").await;
        processed.parse().unwrap()
    };
    // It may ask once or twice after its last use.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let first = commands(&mut raw).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    // Our own INFO is the only one in between.
    assert_eq!(commands(&mut raw).await, first + 1);
}
