//! How often a read allocates: a binary of its own, because it counts by the global allocator.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use larder_backends::{Memcached, MemcachedConfig, Memory, MemoryConfig};
use larder_core::{
    Backend as _, Cache, Dataset, GetOptions, Keys, Lifetime, Lookup, NoTier, Plain, Rt, Set,
    Source, WriteOptions,
};
use larder_harness::server::{Listen, MemcachedServer};

/// Every id has itself as its value: nothing that is counted belongs to a value.
#[derive(Clone)]
struct Identity;

impl Source for Identity {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

enum Itself {}

impl Dataset for Itself {
    const NAME: &'static str = "itself";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Identity;
    type Key = u64;
    type Value = u64;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    async fn load((): &mut (), ids: Vec<u64>) -> Result<Vec<(u64, u64)>, Infallible> {
        Ok(ids.into_iter().map(|id| (id, id)).collect())
    }
}

/// A cache on the memory store that holds the values of these ids.
async fn warm(ids: std::ops::Range<u64>) -> Cache<Identity> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let cache = Cache::builder(Identity)
        .backend(Arc::new(memory))
        .register::<Itself>()
        .build()
        .await
        .unwrap();
    let (filling, tally) = cache.tallied();
    larder_core::get_many::<Itself>(&filling, ids.clone())
        .await
        .unwrap();
    tally.settled().await;
    // Once more, so that what is allocated once per thread is there.
    let (reading, tally) = cache.tallied();
    larder_core::get_many::<Itself>(&reading, ids)
        .await
        .unwrap();
    larder_core::get::<Itself>(&reading, &0).await.unwrap();
    assert_eq!(tally.loads(), 0);
    cache
}

/// How often this thread allocates while the future runs on it.
#[track_caller]
fn allocations<T>(runtime: &tokio::runtime::Runtime, future: impl Future<Output = T>) -> u64 {
    // The runtime's own part of entering it is not the reader's.
    let entering = allocation_counter::measure(|| runtime.block_on(async {}));
    let running = allocation_counter::measure(|| drop(runtime.block_on(future)));
    running.count_total - entering.count_total
}

#[test]
fn hit_on_memory_allocates_three_times_at_most() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cache = runtime.block_on(warm(0..1));
    let count = allocations(&runtime, async {
        let value = larder_core::get::<Itself>(&cache, &0).await.unwrap();
        assert_eq!(value, Some(0));
    });
    assert!(count <= 3, "a hit allocates {count} times");
}

#[test]
fn bulk_hit_on_memory_allocates_per_call_not_per_key() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let cache = runtime.block_on(warm(0..1_000));
    let count = allocations(&runtime, async {
        let batch = larder_core::get_many::<Itself>(&cache, 0..1_000)
            .await
            .unwrap();
        assert_eq!(batch.missing().count(), 0);
    });
    assert!(count <= 16, "1,000 hits allocate {count} times");
}

/// How often a call over so many keys of three servers allocates, in this thread, in which the connections run too.
fn allocations_in_a_pool(count: usize, servers: &[MemcachedServer]) -> [u64; 3] {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut config = MemcachedConfig::new(servers.iter().map(MemcachedServer::address));
    config.timeout = Duration::from_secs(5);
    let pool = Memcached::new(config, Rt::new()).unwrap();
    let mut keys = Keys::new();
    for number in 0..count {
        keys.push_raw(&format!("v1/user:{number}")).unwrap();
    }
    let sets = || -> Vec<Set> {
        let values = (0..count).map(|number| Set::new(number.to_string()));
        values.collect()
    };
    let again = sets();
    let (options, writing) = (
        GetOptions::lease(Duration::from_secs(10)),
        WriteOptions::default(),
    );
    let mut answered = vec![false; count];
    let mut found = |position: usize, answer: larder_core::Result<Lookup>| {
        let own = |value: &[u8]| {
            std::str::from_utf8(value).is_ok_and(|text| text.parse() == Ok(position))
        };
        answered[position] = matches!(answer, Ok(Lookup::Hit { value, .. }) if own(&value));
    };
    runtime.block_on(async {
        pool.set_immutable_many(&keys, sets(), &writing).await;
        pool.get_each(&keys, &options, &mut |_, _| {}).await;
    });
    let counts = [
        allocations(&runtime, pool.get_each(&keys, &options, &mut found)),
        allocations(&runtime, pool.set_immutable_many(&keys, again, &writing)),
        allocations(&runtime, pool.delete_many(&keys, &writing)),
    ];
    assert!(answered.into_iter().all(|answered| answered));
    counts
}

#[test]
fn bulk_on_three_servers_allocates_per_server_not_per_key() {
    let servers: Vec<_> = (0..3)
        .map(|_| MemcachedServer::start(Listen::Unix, &["-m", "16"]))
        .collect();
    let few = allocations_in_a_pool(100, &servers);
    let many = allocations_in_a_pool(2_000, &servers);
    for ((few, many), call) in few.into_iter().zip(many).zip(["get", "set", "delete"]) {
        println!("{call}: {few} for 100 keys, {many} for 2,000");
        assert!(many <= 80, "a {call} of 2,000 keys allocates {many} times");
    }
}
