//! How often a read allocates: a binary of its own, because it counts by the global allocator.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder_backends::{Memcached, MemcachedConfig, Memory, MemoryConfig};
use larder_core::{
    Backend as _, Cache, Dataset, DeployImmutable, DeployTier, FlushOn, GetOptions, Keys, Lifetime,
    Lookup, NoTier, Plain, RequestTier, Rt, Set, Source, WriteOptions,
};
use larder_harness::server::{Listen, MemcachedServer};
use larder_tiers::{Request, Tiers};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

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

/// A number that never changes.
#[derive(Clone, Serialize, Deserialize)]
struct Fixed(u64);

impl DeployImmutable for Fixed {}

macro_rules! datasets {
    ($($(#[doc = $doc:literal])+ $dataset:ident = $name:literal: $key:ty => $value:ty, $tier:ty, $lifetime:expr, $make:expr;)*) => {$(
        $(#[doc = $doc])+
        enum $dataset {}

        impl Dataset for $dataset {
            const NAME: &'static str = $name;
            const LIFETIME: Lifetime = $lifetime;
            type Source = Identity;
            type Key = $key;
            type Value = $value;
            type Form = Plain;
            type Tier = $tier;
            type Error = Infallible;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load((): &mut (), keys: Vec<$key>) -> Result<Vec<($key, $value)>, Infallible> {
                let make: fn($key) -> $value = $make;
                Ok(keys.into_iter().map(|key| (key, make(key))).collect())
            }
        }
    )*};
}

const HOUR: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));

datasets! {
    /// In the store alone.
    Itself = "itself": u64 => u64, NoTier, HOUR, |id| id;
    /// Kept for a request.
    ForRequest = "for_request": u64 => u64, RequestTier, HOUR, |id| id;
    /// Kept by the process.
    ForDeploy = "for_deploy": u64 => Fixed, DeployTier, Lifetime::Immutable, Fixed;
    /// Kept by the process, and there is one.
    TheOne = "the_one": () => Fixed, DeployTier, Lifetime::Immutable, |()| Fixed(1);
}

/// A cache on the memory store that holds the values of these ids.
async fn warm(ids: std::ops::Range<u64>) -> Cache<Identity> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let cache = Cache::builder(Identity)
        .backend(Arc::new(memory))
        .tiers(Tiers::default())
        .register::<Itself>()
        .register::<ForRequest>()
        .register::<ForDeploy>()
        .register::<TheOne>()
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

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// How often this thread allocates while the future runs on it.
#[track_caller]
fn allocations<T>(runtime: &Runtime, future: impl Future<Output = T>) -> u64 {
    // The runtime's own part of entering it is not the reader's.
    let entering = allocation_counter::measure(|| runtime.block_on(async {}));
    let running = allocation_counter::measure(|| drop(runtime.block_on(future)));
    running.count_total - entering.count_total
}

/// How often this thread allocates while a read is answered that has nothing to wait for.
#[track_caller]
fn allocations_of_hit<T>(read: impl Future<Output = T>) -> u64 {
    let mut answer = Poll::Pending;
    let mut read = pin!(read);
    let counted = allocation_counter::measure(|| {
        answer = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
    assert!(answer.is_ready(), "a hit in a tier waits for nothing");
    counted.count_total
}

#[test]
fn hit_on_memory_allocates_three_times_at_most() {
    let runtime = runtime();
    let cache = runtime.block_on(warm(0..1));
    let count = allocations(&runtime, async {
        let value = larder_core::get::<Itself>(&cache, &0).await.unwrap();
        assert_eq!(value, Some(0));
    });
    assert!(count <= 3, "a hit allocates {count} times");
}

#[test]
fn bulk_hit_on_memory_allocates_per_call_not_per_key() {
    let runtime = runtime();
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

#[test]
fn hit_in_a_tier_allocates_nothing() {
    let runtime = runtime();
    let cache = runtime.block_on(warm(0..1));
    let (tallied, tally) = cache.tallied();
    let request = Request::begin(&cache);
    let counting = Request::begin(&tallied);
    runtime.block_on(async {
        larder_core::get::<ForRequest>(&counting, &7).await.unwrap();
        larder_core::get::<ForDeploy>(&tallied, &7).await.unwrap();
        larder_core::get::<TheOne>(&tallied, &()).await.unwrap();
        tally.settled().await;
    });

    #[track_caller]
    fn check<T>(runtime: &Runtime, read: impl AsyncFn() -> T) {
        // A first one, so that the tier has it.
        runtime.block_on(read());
        assert_eq!(allocations_of_hit(read()), 0);
    }
    check(&runtime, async || {
        larder_core::get::<ForRequest>(&request, &7).await.unwrap()
    });
    check(&runtime, async || {
        larder_core::get::<ForRequest>(&counting, &7).await.unwrap()
    });
    check(&runtime, async || {
        larder_core::get::<ForDeploy>(&cache, &7).await.unwrap()
    });
    check(&runtime, async || {
        larder_core::get::<TheOne>(&cache, &()).await.unwrap()
    });
}

#[test]
fn bulk_hit_in_a_tier_allocates_per_call_not_per_key() {
    let runtime = runtime();
    let cache = runtime.block_on(warm(0..1));
    let (tallied, tally) = cache.tallied();
    let request = Request::begin(&tallied);
    let read = async || {
        let read = larder_core::get_many::<ForRequest>(&request, 0..200).await;
        assert_eq!(read.unwrap().missing().count(), 0);
    };
    runtime.block_on(async {
        read().await;
        tally.settled().await;
    });
    let count = allocations_of_hit(read());
    assert!(count <= 4, "200 hits allocate {count} times");
}

/// The keys are in memory, and of what is made of them for the store, one chunk.
#[test]
fn flush_of_a_million_keys_needs_memory_for_the_keys_and_a_chunk() {
    const KEYS: u64 = 1_000_000;
    let runtime = runtime();
    let cache = runtime.block_on(warm(0..1));
    let flushed = allocation_counter::measure(|| {
        let flush = cache.flush::<Itself>(0..KEYS);
        runtime.block_on(flush).unwrap();
    });
    // 8 bytes of arguments; `itself:999999` and where it ends twice, as they came and as they are delivered, in buffers
    // that grow by doubling. What is sent would be another 50.
    let a_key = flushed.bytes_max / KEYS;
    assert!(a_key < 125, "{a_key} bytes a key");
}
