//! How often a read allocates: a binary of its own, because it counts by the global allocator.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use larder_backends::{Memory, MemoryConfig};
use larder_core::{Cache, Dataset, Lifetime, NoTier, Plain, Rt, Source};

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
