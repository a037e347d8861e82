//! Callers that leave at any moment, while rows are written and flushed: nothing gets stuck, and nothing gets old.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{
    Backend, Cache, Dataset, FlushOn, Lifetime, NoTier, Plain, Prefix, Rows, Rt, get, get_many,
};
use larder_harness::fake::{Fake, Step};
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;

use super::gate::Gate;
use super::shelf::{Broken, Conn, HOUR, Row, Shelf, clock, memory};

const IDS: Range<u64> = 0..3;

/// How many turns a load, a request or an answer may take.
const TURNS: u32 = 4;

/// A row whose loader is slow before it reads and after it.
enum Slow {}

impl Dataset for Slow {
    const NAME: &'static str = "slow_row";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    const ABSENT_TTL: Option<Duration> = None;
    type Source = Shelf;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        turns(TURNS).await;
        let rows = Row::load(shelf, ids).await;
        turns(TURNS).await;
        rows
    }
}

async fn turns(most: u32) {
    for _ in 0..fastrand::u32(0..=most) {
        yield_now().await;
    }
}

/// Polls the future this often, a turn of the scheduler apart, and drops it if it isn't ready by then.
async fn dropped_after<F: Future>(mut polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// What was written to each row, and what every read that begins now must see.
#[derive(Clone)]
struct Versions {
    shelf: Shelf,
    acknowledged: Arc<[AtomicU64]>,
    /// Whether this is all.
    written: Arc<AtomicBool>,
}

impl Versions {
    fn new() -> Self {
        let shelf = Shelf::default();
        IDS.for_each(|id| shelf.write(id, "0"));
        Self {
            shelf,
            acknowledged: IDS.map(|_| AtomicU64::new(0)).collect(),
            written: Arc::default(),
        }
    }

    fn acknowledged(&self, id: u64) -> u64 {
        self.acknowledged[id as usize].load(Ordering::SeqCst)
    }

    #[track_caller]
    fn check(&self, id: u64, read: &str, begun_after: u64) {
        let read: u64 = read.parse().unwrap();
        assert!(
            read >= begun_after,
            "row {id} was read as {read} after {begun_after} was acknowledged"
        );
    }

    /// Reads at random until all is written, leaving at random moments; answers how many reads were answered, and how
    /// many weren't.
    async fn read(self, cache: Cache<Shelf>) -> [u32; 2] {
        let (mut begun, mut answered) = (0, 0);
        while !self.written.load(Ordering::SeqCst) {
            begun += 1;
            let before: Vec<u64> = IDS.map(|id| self.acknowledged(id)).collect();
            let polls = fastrand::u32(0..40);
            if fastrand::bool() {
                let id = fastrand::u64(IDS);
                let read = dropped_after(polls, get::<Slow>(&cache, &id)).await;
                if let Some(read) = read {
                    self.check(id, &read.unwrap().unwrap(), before[id as usize]);
                    answered += 1;
                }
            } else {
                let ids = [fastrand::u64(IDS), fastrand::u64(IDS)];
                let read = dropped_after(polls, get_many::<Slow>(&cache, ids)).await;
                if let Some(batch) = read {
                    for (id, text) in batch.unwrap().iter() {
                        self.check(*id, text.unwrap(), before[*id as usize]);
                    }
                    answered += 1;
                }
            }
            turns(TURNS).await;
        }
        [answered, begun - answered]
    }

    /// Writes one row again and again; what was flushed and not dropped is acknowledged. The last flush is dropped as soon
    /// as it began, and takes place nevertheless.
    async fn write(self, cache: Cache<Shelf>, id: u64, writes: u64) {
        for version in 1..=writes {
            let mut polls = fastrand::u32(0..80);
            if version == writes {
                // So that there is something old to be kept, if it were kept.
                let _ = dropped_after(200, get::<Slow>(&cache, &id)).await;
                polls = 0;
            }
            self.shelf.write(id, &version.to_string());
            let flushed = dropped_after(polls, cache.flush::<Slow>([id])).await;
            if let Some(flushed) = flushed {
                flushed.unwrap();
                self.acknowledged[id as usize].store(version, Ordering::SeqCst);
            }
            turns(3 * TURNS).await;
        }
    }
}

/// Two processes on one store, with many readers each; then, when all is quiet, one reader that stays.
async fn check(seed: u64, stores: [Arc<dyn Backend>; 2], rt: Rt, batched: bool) {
    const WRITES: u64 = 150;
    fastrand::seed(seed);
    let versions = Versions::new();
    let mut caches = Vec::new();
    for store in stores {
        let cache = Cache::builder(versions.shelf.clone())
            .backend(store)
            .prefix(Prefix::new("test").unwrap())
            .rt(rt)
            .build()
            .await
            .unwrap();
        let (cache, tally) = cache.tallied();
        caches.push(match batched {
            true => (cache.batched(), tally),
            false => (cache, tally),
        });
    }
    let mut readers = JoinSet::new();
    let mut writers = JoinSet::new();
    for task in 0..12 {
        let cache = caches[task % 2].0.clone();
        readers.spawn(versions.clone().read(cache));
    }
    for id in IDS {
        let cache = caches[id as usize % 2].0.clone();
        writers.spawn(versions.clone().write(cache, id, WRITES));
    }
    // Somebody is always busy, so that the paused clock must be moved.
    let ticks = tokio::spawn(async {
        loop {
            turns(TURNS).await;
            tokio::time::advance(Duration::from_micros(100)).await;
        }
    });
    writers.join_all().await;
    versions.written.store(true, Ordering::SeqCst);
    for [answered, left] in readers.join_all().await {
        assert!(
            answered > 10 && left > 10,
            "{answered} answered, {left} left"
        );
    }
    ticks.abort();
    for (_, tally) in &caches {
        tally.settled().await;
    }

    // A lease whose caller left may still be there: no read waits longer than its polls for it.
    let newest = Some(WRITES.to_string());
    for (cache, _) in &caches {
        for id in IDS {
            let read = timeout(Duration::from_millis(200), get::<Slow>(cache, &id)).await;
            let read = read.unwrap_or_else(|_| panic!("row {id} is stuck, seed {seed}"));
            assert_eq!(
                read.unwrap(),
                newest,
                "row {id} after all writes, seed {seed}"
            );
        }
    }
    // When leases have run out, everything can be stored again.
    tokio::time::sleep(Slow::LEASE + Duration::from_secs(1)).await;
    for (cache, tally) in &caches {
        get_many::<Slow>(cache, IDS).await.unwrap();
        tally.settled().await;
        let hits = tally.hits();
        let batch = get_many::<Slow>(cache, IDS).await.unwrap();
        assert!(batch.iter().all(|(_, text)| text == newest.as_ref()));
        assert_eq!(tally.hits() - hits, 3, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_block_no_key_of_the_memory_store() {
    for seed in 0..10 {
        let gate = Gate::new(memory());
        gate.dawdle(TURNS);
        check(seed, [Arc::clone(&gate) as _, gate as _], clock(), false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_a_batch_block_no_key() {
    for seed in 0..10 {
        let gate = Gate::new(memory());
        gate.dawdle(TURNS);
        check(seed, [Arc::clone(&gate) as _, gate as _], clock(), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_block_no_key_of_memcached() {
    for seed in 0..10 {
        let fake = Fake::new();
        let client = || -> Arc<dyn Backend> {
            let config = MemcachedConfig::new(["cache"]);
            Arc::new(Memcached::with_transport(config, fake.rt(), fake.transport()).unwrap())
        };
        // Requests wait before a random step for a few turns, and go on.
        let network = tokio::spawn({
            let fake = fake.clone();
            async move {
                loop {
                    let step = [Step::Arrival, Step::Execution, Step::Reply];
                    let step = step[fastrand::usize(0..3)];
                    fake.hold(step);
                    turns(3 * TURNS).await;
                    fake.open(step);
                    tokio::task::yield_now().await;
                    if fake.requests().is_empty() {
                        // Nothing is under way: let time pass, if all wait for it.
                        tokio::time::sleep(Duration::from_micros(100)).await;
                    }
                }
            }
        });
        check(seed, [client(), client()], fake.rt(), false).await;
        network.abort();
        assert_eq!(fake.unmodelled(), [""; 0]);
    }
}
