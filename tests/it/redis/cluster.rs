//! A real cluster, whose slots move and whose nodes die and come back.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::{
    BuilderExt as _, Cache, Config, Dataset, FlushOn, Lifetime, NoTier, Plain, Rows, Source, get,
    get_many,
};
use larder_backends::redis::{RedisCluster as Client, RedisConfig};
use larder_core::config::Secret;
use larder_core::{
    Backend, BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup, Lost,
    Result, Rt, Set, WriteOptions,
};
use larder_harness::redis::Reply;
use larder_harness::redis_cluster::RedisCluster;
use larder_harness::tls::Authority;

use super::traffic::Traffic;

/// A client with patience: the machine may be busy with other tests.
fn client_of(servers: Vec<String>) -> Client {
    Client::new(config_of(servers), Rt::new()).unwrap()
}

fn config_of(servers: Vec<String>) -> RedisConfig {
    let mut config = RedisConfig::default();
    config.servers = servers;
    config.connect_timeout = Duration::from_secs(5);
    config.timeout = Duration::from_secs(5);
    config.flush_timeout = Duration::from_secs(5);
    config.stall = Duration::from_secs(5);
    config.backoff_limit = Duration::from_millis(200);
    config
}

fn client(cluster: &RedisCluster) -> Client {
    client_of(cluster.addresses())
}

fn two_clients(cluster: &RedisCluster) -> [Arc<dyn Backend>; 2] {
    std::array::from_fn(|_| Arc::new(client(cluster)) as Arc<dyn Backend>)
}

fn asking() -> GetOptions {
    GetOptions::lease(Duration::from_secs(10))
}

#[track_caller]
fn won(lookup: Result<Lookup>) -> Lease {
    match lookup {
        Ok(Lookup::Miss { lease: Some(lease) }) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

#[track_caller]
fn expect_unleased(lookup: Result<Lookup>) {
    assert!(
        matches!(lookup, Ok(Lookup::Miss { lease: None })),
        "expected a miss without a lease, got {lookup:?}"
    );
}

async fn fill(client: &Client, key: &str, value: &'static str) {
    let lease = won(client.get(key, &asking()).await);
    let outcome = client.fill(key, Fill::new(lease, value)).await.unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
}

async fn is_hit(client: &Client, key: &str) -> bool {
    let found = client.get(key, &GetOptions::look()).await.unwrap();
    matches!(found, Lookup::Hit { .. })
}

// --- slots that move

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_moving_during_traffic_lose_nothing_and_give_no_error() {
    let cluster = RedisCluster::start(3, &[]).await;
    // All of one slot, which moves, and some of others.
    let keys: Vec<_> = (0..40)
        .map(|row| match row % 4 {
            0 => format!("row:{row}"),
            _ => format!("{{one}}:{row}"),
        })
        .collect();
    let slot = cluster.slot("{one}").await;
    let traffic = Traffic::start(two_clients(&cluster), keys);
    traffic.goes_on(50).await;
    for _ in 0..6 {
        let to = (cluster.owner(slot).await + 1) % 3;
        cluster.begin_move(slot, to).await;
        traffic.goes_on(5).await;
        while cluster.move_keys(slot, to, 3).await > 0 {
            tokio::task::yield_now().await;
        }
        traffic.goes_on(5).await;
        cluster.end_move(slot, to).await;
        traffic.goes_on(20).await;
    }
    let counts = traffic.end().await;
    assert_eq!(counts.errors, 0, "{counts:?}");
    assert!(counts.fills > 0, "{counts:?}");
    assert!(
        counts.unstored > 0,
        "nobody came by while it moved: {counts:?}"
    );
}

#[tokio::test]
async fn delete_follows_a_key_that_has_left() {
    let cluster = RedisCluster::start(3, &[]).await;
    let client = client(&cluster);
    let slot = cluster.slot("key").await;
    let to = (cluster.owner(slot).await + 1) % 3;
    client
        .set_immutable("key", Set::new("value"))
        .await
        .unwrap();
    cluster.begin_move(slot, to).await;
    cluster.move_keys(slot, to, 10).await;
    let mut target = cluster.raw(to).await;
    target.call(&["ASKING"]).await;
    assert!(target.get("key").await.is_some());
    client.delete("key").await.unwrap();
    target.call(&["ASKING"]).await;
    assert_eq!(target.get("key").await, None);
    // And one that is still there is deleted there.
    cluster.end_move(slot, to).await;
    fill(&client, "key", "value").await;
    let back = (to + 1) % 3;
    cluster.begin_move(slot, back).await;
    client.delete("key").await.unwrap();
    assert_eq!(cluster.move_keys(slot, back, 10).await, 0);
}

#[tokio::test]
async fn nothing_mutable_is_stored_where_a_slot_has_not_arrived() {
    let cluster = RedisCluster::start(3, &[]).await;
    let client = client(&cluster);
    let slot = cluster.slot("key").await;
    let to = (cluster.owner(slot).await + 1) % 3;
    cluster.begin_move(slot, to).await;
    expect_unleased(client.get("key", &asking()).await);
    let mut target = cluster.raw(to).await;
    target.call(&["ASKING"]).await;
    assert_eq!(target.get("key").await, None);
    // What can't be stale is stored, and read.
    client
        .set_immutable("key", Set::new("value"))
        .await
        .unwrap();
    assert!(is_hit(&client, "key").await);
    client.delete("key").await.unwrap();
    cluster.call_off_move(slot, to).await;
    fill(&client, "key", "value").await;
    assert!(is_hit(&client, "key").await);
}

#[tokio::test]
async fn what_came_along_with_a_slot_is_absent_and_its_leases_are_lost() {
    let cluster = RedisCluster::start(3, &[]).await;
    let client = client(&cluster);
    let slot = cluster.slot("{one}").await;
    let to = (cluster.owner(slot).await + 1) % 3;
    fill(&client, "{one}:entry", "value").await;
    let lease = won(client.get("{one}:leased", &asking()).await);
    let released = won(client.get("{one}:released", &asking()).await);
    cluster.move_slot(slot, to).await;
    let outcome = client.fill("{one}:leased", Fill::new(lease, "value")).await;
    assert_eq!(outcome.unwrap(), FillOutcome::Lost(Lost::ConnectionGone));
    client.release("{one}:released", released).await.unwrap();
    for key in ["{one}:entry", "{one}:leased", "{one}:released"] {
        fill(&client, key, "new").await;
        assert!(is_hit(&client, key).await);
    }
}

// --- nodes that die

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_back_from_a_snapshot_never_serves_what_was_deleted() {
    let mut cluster = RedisCluster::start(3, &[]).await;
    let keys: Vec<_> = (0..40).map(|row| format!("row:{row}")).collect();
    let traffic = Traffic::start(two_clients(&cluster), keys);
    for node in [0, 1] {
        traffic.goes_on(50).await;
        let saved = cluster.raw(node).await.call(&["SAVE"]).await;
        assert_eq!(saved, Reply::Text("OK".into()));
        // All that is in the snapshot is deleted, or nearly all, and that was acknowledged.
        traffic.goes_on(100).await;
        cluster.kill(node);
        cluster.restart(node).await;
    }
    traffic.goes_on(50).await;
    let counts = traffic.end().await;
    assert!(counts.errors > 0, "no node was missed: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_serves_nothing_of_its_primary_s() {
    let arguments = ["--cluster-node-timeout", "1000"];
    let mut cluster = RedisCluster::start_with_replicas(3, &arguments).await;
    let keys: Vec<_> = (0..40).map(|row| format!("row:{row}")).collect();
    let client = client(&cluster);
    let key = "row:0";
    let primary = cluster.owner(cluster.slot(key).await).await;
    let traffic = Traffic::start(two_clients(&cluster), keys);
    traffic.goes_on(50).await;
    cluster.kill(primary);
    let start = std::time::Instant::now();
    loop {
        if client.get(key, &GetOptions::look()).await.is_ok() {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "nobody took over"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    traffic.goes_on(50).await;
    // By hand, and without a loss: the primary of before is a replica now, with all connections it had.
    let second = (primary + 1) % 3;
    let promoted = cluster
        .raw(3 + second)
        .await
        .call(&["CLUSTER", "FAILOVER"])
        .await;
    assert_eq!(promoted, Reply::Text("OK".into()));
    let mut raw = cluster.raw(3 + second).await;
    while raw.info("role").await != "master" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    traffic.goes_on(50).await;
    traffic.end().await;
}

#[tokio::test]
async fn a_replica_among_the_configured_nodes_names_the_primaries_and_is_not_read() {
    let cluster = RedisCluster::start_with_replicas(1, &[]).await;
    let client = client_of(vec![cluster.node(1).address()]);
    fill(&client, "key", "value").await;
    assert!(is_hit(&client, "key").await);
    let servers = client.stats().servers;
    let names: Vec<_> = servers
        .iter()
        .map(|server| server.server.as_str())
        .collect();
    assert_eq!(names, [cluster.node(0).address()]);
}

#[tokio::test]
async fn a_server_of_its_own_is_no_cluster() {
    use larder_harness::redis::RedisServer;
    use larder_harness::server::Listen;

    let server = RedisServer::start(Listen::Tcp, &[]);
    let client = client_of(vec![server.address()]);
    let error = client.get("key", &asking()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("write redis://"), "{error}");
}

// --- users, and TLS

/// Deletes and reads a key that has left for a node that isn't its slot's owner yet, and everything that comes before.
async fn use_all(cluster: &RedisCluster, client: &Client) -> Result<()> {
    let slot = cluster.slot("key").await;
    let to = (cluster.owner(slot).await + 1) % 3;
    let mut keys = Keys::new();
    for key in ["key", "other", "third", "fourth"] {
        keys.push_raw(key)?;
    }
    // Something of somebody else's is replaced by a script.
    let mut raw = cluster.raw(cluster.owner(slot).await).await;
    raw.set("key", b"foreign").await;
    for lookup in client.get_many(&keys, &asking()).await {
        client.release("key", won(Ok(lookup?))).await?;
    }
    client
        .delete_many(&keys, &WriteOptions::default())
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    let lease = won(Ok(client.get("key", &asking()).await?));
    client.fill("key", Fill::new(lease, "value")).await?;
    client.set_immutable("key", Set::new("value")).await?;
    cluster.begin_move(slot, to).await;
    cluster.move_keys(slot, to, 10).await;
    let moved = client.get("key", &GetOptions::look()).await;
    let deleted = client.delete("key").await;
    cluster.end_move(slot, to).await;
    moved.and(deleted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_acl_rule_is_enough_for_a_cluster() {
    let cluster = RedisCluster::start(3, &[]).await;
    let rule = include_str!("../../../docs/redis-cluster.md")
        .lines()
        .find_map(|line| line.trim().strip_prefix("ACL SETUSER larder "))
        .expect("the guide has the rule");
    let outcome = async |left_out: &str| {
        for number in 0..3 {
            let mut words = vec!["ACL", "SETUSER", "larder", "reset"];
            words.extend(rule.split_whitespace().filter(|&word| word != left_out));
            let reply = cluster.raw(number).await.call(&words).await;
            assert_eq!(reply, Reply::Text("OK".into()));
        }
        let mut config = config_of(cluster.addresses());
        config.user = Some("larder".to_owned());
        config.password = Some(Secret::new("PASSWORD"));
        let client = Client::new(config, Rt::new()).unwrap();
        use_all(&cluster, &client).await
    };
    outcome("").await.unwrap();
    for left_out in ["+cluster|slots", "+asking", "+get"] {
        let error = outcome(left_out).await.expect_err(left_out);
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("ACL"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_every_node() {
    let authority = Authority::new();
    let identity = authority.issue(&["127.0.0.1"]);
    let cluster = RedisCluster::start_tls(3, &authority, &identity).await;
    let mut config = config_of(cluster.tls_addresses()[..1].to_vec());
    config.tls = true;
    config.ca_file = Some(authority.file());
    let client = Client::new(config, Rt::new()).unwrap();

    // On both lanes of every node, with values that take more than one record.
    for count in [6, 300] {
        let mut keys = Keys::new();
        for number in 0..count {
            keys.push_raw(&format!("key:{count}:{number}")).unwrap();
        }
        let value = |number: usize| vec![b'a' + (number % 26) as u8; 1 + number * 499];
        let leases = client.get_many(&keys, &asking()).await.into_iter();
        let fills = leases
            .enumerate()
            .map(|(number, lookup)| Fill::new(won(lookup), value(number)));
        let options = WriteOptions::default();
        for outcome in client.fill_many(&keys, fills.collect(), &options).await {
            assert_eq!(outcome.unwrap(), FillOutcome::Stored);
        }
        let found = client.get_many(&keys, &GetOptions::look()).await;
        for (number, lookup) in found.into_iter().enumerate() {
            let Ok(Lookup::Hit { value: found, .. }) = lookup else {
                panic!("{lookup:?}");
            };
            assert!(found == value(number), "value {number}");
        }
        for deleted in client.delete_many(&keys, &options).await {
            deleted.unwrap();
        }
        for lookup in client.get_many(&keys, &GetOptions::look()).await {
            assert!(matches!(lookup, Ok(Lookup::Miss { .. })), "{lookup:?}");
        }
    }
    let stats = client.stats();
    let mut servers: Vec<_> = stats
        .servers
        .iter()
        .map(|node| node.server.clone())
        .collect();
    let mut addresses = cluster.tls_addresses();
    servers.sort();
    addresses.sort();
    assert_eq!(
        servers, addresses,
        "the nodes are known by their ports with TLS"
    );
    assert!(stats.servers.iter().all(|node| node.bytes_in > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_another_authority_is_an_error_in_time_and_no_storm() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let identity = authority.issue(&["127.0.0.1"]);
    let cluster = RedisCluster::start_tls(3, &authority, &identity).await;
    let mut config = config_of(cluster.tls_addresses());
    config.tls = true;
    config.ca_file = Some(stranger.file());
    let client = Client::new(config, Rt::new()).unwrap();
    let dials = async |cluster: &RedisCluster| {
        let mut sum = 0;
        for number in 0..3 {
            let received = cluster
                .raw(number)
                .await
                .info("total_connections_received")
                .await;
            sum += received.parse::<u64>().unwrap();
        }
        sum
    };
    let before = dials(&cluster).await;
    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        let error = client.get("k", &asking()).await.unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(5), "{error}");
        assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
        assert!(error.to_string().contains("`ca_file`"), "{error}");
        calls += 1;
    }
    // Each question for the map dials every node at most once, and the next comes after a pause. Asking counts itself.
    let dialled = dials(&cluster).await - before;
    assert!(
        calls > 100 && dialled < 3 * 12,
        "{dialled} dials for {calls} calls"
    );
}

/// Who computes another slot than the server is sent on, which is a trip more, whenever the two are of different nodes.
#[tokio::test]
async fn slots_are_those_of_the_server() {
    let cluster = RedisCluster::start(3, &[]).await;
    let client = client(&cluster);
    let key = |number: usize| -> String {
        let characters = ["{", "}", "a", "b", "%"];
        let chosen = (0..6).map(|digit| characters[number / 5_usize.pow(digit) % 5]);
        chosen.collect()
    };
    for number in (0..15_625).step_by(97) {
        won(client.get(&key(number), &asking()).await);
    }
    let trips: u64 = client
        .stats()
        .servers
        .iter()
        .map(|server| server.trips)
        .sum();
    assert_eq!(trips, 2 * 15_625_u64.div_ceil(97));
}

// --- through a cache

/// Numbers, each its own text.
#[derive(Clone)]
struct Numbers;

impl Source for Numbers {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(Self))
    }
}

enum Texts {}

impl Dataset for Texts {
    const NAME: &'static str = "text";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Numbers;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(_: &mut Numbers, numbers: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(numbers.into_iter().map(|n| (n, n.to_string())).collect())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_costs_loads_of_its_keys_and_no_errors() {
    let mut cluster = RedisCluster::start(3, &[]).await;
    let url = format!(
        "redis+cluster://{}?prefix=numbers&timeout=5s&connect_timeout=5s&require_at_start=true",
        cluster.addresses().join(",")
    );
    let cache = Cache::builder(Numbers)
        .config(Config::new(&url).unwrap())
        .register::<Texts>()
        .build()
        .await
        .unwrap();
    let (cache, tally) = cache.tallied();
    get_many::<Texts>(&cache, 0..300).await.unwrap();
    tally.settled().await;
    let loads = tally.loads();
    let warm = get_many::<Texts>(&cache, 0..300).await.unwrap();
    assert_eq!(warm.into_found().len(), 300);
    assert_eq!(tally.loads(), loads);

    cluster.kill(0);
    let mut loaded = 0;
    for number in 0..300 {
        let before = tally.loads();
        let text = get::<Texts>(&cache, &number).await.unwrap();
        assert_eq!(text, Some(number.to_string()));
        loaded += tally.loads() - before;
    }
    // A third of all keys, more or less.
    assert!((50..150).contains(&loaded), "{loaded} of 300 were loaded");
    let all = get_many::<Texts>(&cache, 0..300).await.unwrap();
    assert_eq!(all.into_found().len(), 300);
}
