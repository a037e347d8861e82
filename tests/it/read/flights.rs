//! What readers share, and what they must not: one load for many, never a value older than an acknowledged write.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder_core::{
    BackendExt as _, Cache, Dataset, FlushOn, Lifetime, LoadError, NoTier, Plain, Rows, get,
    get_many,
};
use tokio::task::JoinHandle;

use super::gate::Gate;
use super::shelf::{Broken, Conn, HOUR, Row, Shelf, cache, cache_on, dataset, memory, text};

type Answer = Result<Option<String>, LoadError<Broken>>;

fn reading(cache: &Cache<Shelf>, id: u64) -> JoinHandle<Answer> {
    let cache = cache.clone();
    tokio::spawn(async move { get::<Row>(&cache, &id).await })
}

/// Lets everything that can run do so, without moving the clock.
async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn gated(shelf: &Shelf) -> (Arc<Gate>, Cache<Shelf>) {
    let gate = Gate::new(memory());
    let cache = cache_on(shelf, Arc::clone(&gate) as _).await;
    (gate, cache)
}

#[tokio::test(start_paused = true)]
async fn many_readers_share_one_load() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let readers: Vec<_> = (0..64).map(|_| reading(&cache, 7)).collect();
    shelf.held().await;
    quiet().await;
    shelf.let_go();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), text(7));
    }
    assert_eq!(shelf.loads(), 1);
    let stats = &cache.stats().accessors[0];
    assert_eq!((stats.misses, stats.shared + stats.hits), (1, 63));
}

#[tokio::test(start_paused = true)]
async fn a_bulk_read_joins_the_loads_of_single_keys_and_the_reverse() {
    let shelf = Shelf::of([7, 8, 9]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let single = reading(&cache, 7);
    shelf.held().await;
    let bulk = tokio::spawn({
        let cache = cache.clone();
        async move { get_many::<Row>(&cache, [7, 8]).await }
    });
    shelf.held().await;
    let late = reading(&cache, 8);
    quiet().await;
    shelf.let_go();
    assert_eq!(single.await.unwrap().unwrap(), text(7));
    assert_eq!(bulk.await.unwrap().unwrap().into_found().len(), 2);
    assert_eq!(late.await.unwrap().unwrap(), text(8));
    assert_eq!(shelf.asked(), [[7], [8]]);
}

#[tokio::test(start_paused = true)]
async fn a_load_outlives_the_caller_that_started_it() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let caller = reading(&cache, 7);
    shelf.held().await;
    caller.abort();
    let follower = reading(&cache, 7);
    quiet().await;
    shelf.let_go();
    assert_eq!(follower.await.unwrap().unwrap(), text(7));
    assert_eq!(shelf.loads(), 1);
}

/// The fill was executed and its answer is under way; a write is committed, flushed and acknowledged. A reader that
/// begins now must not be given what the fill's load read, though the answer will say `Stored`.
#[tokio::test(start_paused = true)]
async fn a_stored_answer_under_way_is_not_shared_past_a_write() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.answered_fills().close();
    let first = reading(&cache, 7);
    gate.answered_fills().arrived().await;
    assert_eq!(
        first.await.unwrap().unwrap(),
        text(7),
        "it needn't wait for the answer"
    );

    // The write comes from another process: nothing here is detached.
    let other = cache_on(&shelf, Arc::clone(&gate) as _).await;
    shelf.write(7, "new");
    other.flush::<Row>([7]).await.unwrap();

    let second = reading(&cache, 7);
    quiet().await;
    gate.answered_fills().open();
    assert_eq!(second.await.unwrap().unwrap().as_deref(), Some("new"));
}

/// A look-up was answered and its answer is under way; a write is acknowledged. A reader that begins now must make a
/// look-up of its own.
#[tokio::test(start_paused = true)]
async fn an_answered_look_up_is_not_shared() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();
    gate.answered_gets().close();
    let first = reading(&cache, 7);
    gate.answered_gets().arrived().await;

    let other = cache_on(&shelf, Arc::clone(&gate) as _).await;
    shelf.write(7, "new");
    other.flush::<Row>([7]).await.unwrap();

    let second = reading(&cache, 7);
    quiet().await;
    gate.answered_gets().open();
    assert_eq!(
        first.await.unwrap().unwrap(),
        text(7),
        "it began before the write"
    );
    assert_eq!(second.await.unwrap().unwrap().as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn who_joined_a_load_whose_fill_is_lost_looks_again() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    shelf.hold();
    let first = reading(&cache, 7);
    shelf.held().await;

    let other = cache_on(&shelf, Arc::clone(&gate) as _).await;
    shelf.write(7, "new");
    other.flush::<Row>([7]).await.unwrap();
    let second = reading(&cache, 7); // joins: nothing here knows of the write
    quiet().await;
    shelf.let_go();

    assert_eq!(
        first.await.unwrap().unwrap(),
        text(7),
        "it began before the write"
    );
    assert_eq!(second.await.unwrap().unwrap().as_deref(), Some("new"));
    assert_eq!(cache.stats().accessors[0].fills_lost_voided, 1);
}

/// A reader that begins between the execution of a fill and the moment the connection has it whole joins nothing.
#[tokio::test(start_paused = true)]
async fn nobody_joins_while_the_fill_is_handed_over() {
    let shelf = Shelf::of([7]);
    let store = memory();
    let gate = Gate::new(Arc::clone(&store));
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (sender, late) = tokio::sync::oneshot::channel();
    gate.after_fill({
        let (shelf, cache) = (shelf.clone(), cache.clone());
        async move {
            shelf.write(7, "new");
            store
                .delete(&format!("{}/row:7", cache.prefix()))
                .await
                .unwrap();
            // On a thread of its own, since what the load's task reads counts as the loader's.
            let runtime = tokio::runtime::Handle::current();
            let begun = std::thread::spawn(move || {
                let _inside = runtime.enter();
                let mut late = Box::pin(async move { get::<Row>(&cache, &7).await });
                let mut context = Context::from_waker(Waker::noop());
                assert!(late.as_mut().poll(&mut context).is_pending());
                late
            });
            let late = begun.join().unwrap();
            let _ = sender.send(late);
        }
    });
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    let late = late.await.unwrap_or_else(|_| panic!("the hook ran"));
    assert_eq!(late.await.unwrap().as_deref(), Some("new"));
}

/// A load whose lease was voided is still there, and somebody elsewhere has the next lease: to be told `Busy` isn't
/// enough to take the old load's value.
#[tokio::test(start_paused = true)]
async fn a_busy_answer_joins_only_the_load_of_that_very_lease() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.answered_fills().close();
    shelf.hold();
    let first = reading(&cache, 7);
    shelf.held().await;
    let follower = reading(&cache, 7); // keeps the value in the load
    quiet().await;
    shelf.let_go();
    gate.answered_fills().arrived().await;
    assert_eq!(first.await.unwrap().unwrap(), text(7));

    let other = cache_on(&shelf, Arc::clone(&gate) as _).await;
    shelf.write(7, "new");
    other.flush::<Row>([7]).await.unwrap();
    shelf.hold();
    let elsewhere = reading(&other, 7);
    shelf.held().await;
    let late = reading(&cache, 7);
    quiet().await;
    shelf.let_go();
    gate.answered_fills().open();
    assert_eq!(late.await.unwrap().unwrap().as_deref(), Some("new"));
    assert_eq!(elsewhere.await.unwrap().unwrap().as_deref(), Some("new"));
    assert_eq!(
        follower.await.unwrap().unwrap(),
        text(7),
        "it began before the write"
    );
}

#[tokio::test(start_paused = true)]
async fn a_local_flush_detaches_the_load() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.set_down(true);
    shelf.hold();
    let first = reading(&cache, 7);
    shelf.held().await;
    shelf.write(7, "new");
    assert!(cache.flush::<Row>([7]).await.is_err(), "the store is down");
    let second = reading(&cache, 7);
    quiet().await;
    assert_eq!(
        shelf.loads(),
        2,
        "the second load doesn't wait for the first"
    );
    shelf.let_go();
    assert_eq!(second.await.unwrap().unwrap().as_deref(), Some("new"));
    assert_eq!(first.await.unwrap().unwrap(), text(7));
}

/// Without a store nothing tells whether a load is older than a write, so only loads that haven't started are shared;
/// and a herd is two loads per key, not one per reader.
#[tokio::test(start_paused = true)]
async fn without_a_store_one_load_runs_and_one_waits() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.set_down(true);
    shelf.hold();
    let first = reading(&cache, 7);
    shelf.held().await;
    shelf.write(7, "new");
    let herd: Vec<_> = (0..64).map(|_| reading(&cache, 7)).collect();
    quiet().await;
    assert_eq!(shelf.loads(), 1, "the second load waits for the first");
    shelf.let_go();
    assert_eq!(first.await.unwrap().unwrap(), text(7));
    for reader in herd {
        assert_eq!(reader.await.unwrap().unwrap().as_deref(), Some("new"));
    }
    assert_eq!(shelf.loads(), 2);
}

/// The same when all of them were asking the store while nobody loaded yet.
#[tokio::test(start_paused = true)]
async fn a_herd_whose_look_ups_fail_together_shares_a_load() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.set_down(true);
    gate.answered_gets().close();
    let herd: Vec<_> = (0..64).map(|_| reading(&cache, 7)).collect();
    for _ in 0..64 {
        gate.answered_gets().arrived().await;
    }
    gate.answered_gets().open();
    for reader in herd {
        assert_eq!(reader.await.unwrap().unwrap(), text(7));
    }
    assert!(shelf.loads() <= 2, "{} loads", shelf.loads());
    let stats = &cache.stats().accessors[0];
    assert_eq!(stats.misses + stats.shared, 64);
}

#[tokio::test(start_paused = true)]
async fn trouble_with_the_store_is_never_the_callers_error() {
    let shelf = Shelf::of(0..100);
    let (gate, cache) = gated(&shelf).await;
    gate.set_down(true);
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    let batch = get_many::<Row>(&cache, 0..100).await.unwrap();
    assert_eq!(batch.into_found().len(), 100);
    assert_eq!(cache.stats().accessors[0].failed, 101);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_lists_its_keys() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.set_down(true);
    let error = cache.flush::<Row>([7, 8]).await.unwrap_err();
    assert_eq!(error.keys(), ["row:7", "row:8"]);
    assert!(
        error.to_string().contains("2 of the flushed keys of `row`"),
        "{error}"
    );
    assert!(error.cause().is_retryable());
}

#[tokio::test(start_paused = true)]
async fn a_flush_goes_on_when_its_caller_is_dropped() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    get::<Row>(&cache, &7).await.unwrap();
    tally.settled().await;
    shelf.write(7, "new");
    {
        let mut flush = std::pin::pin!(cache.flush::<Row>([7]));
        let once =
            std::future::poll_fn(|context| Poll::Ready(flush.as_mut().poll(context).is_ready()));
        assert!(!once.await, "it was only started");
    }
    tally.settled().await;
    assert_eq!(
        get::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
}

/// A caller is dropped when it has won leases and hasn't loaded yet.
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_gives_its_leases_back() {
    let shelf = Shelf::of([7, 8]);
    let store = memory();
    let gate = Gate::new(Arc::clone(&store));
    let leaving = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let other = cache_on(&shelf, store).await;
    gate.delivered_gets().close();
    let caller = tokio::spawn({
        let leaving = leaving.clone();
        async move { get_many::<Row>(&leaving, [7, 8]).await.map(drop) }
    });
    gate.delivered_gets().arrived().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    quiet().await;
    let (other, tally) = other.tallied();
    get_many::<Row>(&other, [7, 8]).await.unwrap();
    tally.settled().await;
    let stats = &other.stats().accessors[0];
    assert_eq!((stats.busy, stats.fills_stored), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_comes_while_the_cache_closes_leaves_no_lease() {
    let shelf = Shelf::of([7, 8]);
    let store = memory();
    let closing = cache_on(&shelf, Arc::clone(&store)).await;
    let other = cache_on(&shelf, store).await;
    shelf.hold();
    let under_way = reading(&closing, 7);
    shelf.held().await;
    let close = tokio::spawn({
        let closing = closing.clone();
        async move { closing.close(Duration::from_secs(10)).await }
    });
    quiet().await;
    assert!(matches!(
        get::<Row>(&closing, &8).await,
        Err(LoadError::Closed { .. })
    ));
    quiet().await;
    shelf.let_go();
    assert_eq!(get::<Row>(&other, &8).await.unwrap(), text(8));
    assert_eq!(other.stats().accessors[0].busy, 0);
    assert_eq!(under_way.await.unwrap().unwrap(), text(7));
    close.await.unwrap();
}

/// A value that can't be copied: whoever would share it loads for itself, and nothing else is harmed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Unique(u64);

impl Clone for Unique {
    fn clone(&self) -> Self {
        panic!("a copy of {}", self.0)
    }
}

enum Uniques {}

impl Dataset for Uniques {
    const NAME: &'static str = "unique";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Shelf;
    type Key = u64;
    type Value = Unique;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        shelf.0.load(&ids).await?;
        Ok(ids.into_iter().map(|id| (id, Unique(id))).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_costs_who_shares_a_look_of_its_own() {
    let shelf = Shelf::of([7]);
    let (gate, cache) = gated(&shelf).await;
    gate.answered_fills().close();
    shelf.hold();
    let read = || {
        let cache = cache.clone();
        tokio::spawn(async move { get::<Uniques>(&cache, &7).await })
    };
    let first = read();
    shelf.held().await;
    let follower = read();
    quiet().await;
    shelf.let_go();
    assert_eq!(
        first.await.unwrap().unwrap().map(|unique| unique.0),
        Some(7)
    );
    gate.answered_fills().open();
    assert_eq!(
        follower.await.unwrap().unwrap().map(|unique| unique.0),
        Some(7)
    );
    assert_eq!(
        read().await.unwrap().unwrap().map(|unique| unique.0),
        Some(7)
    );
    assert_eq!(shelf.loads(), 1);
}

/// Two caches on one store are two processes: they share no memory.
#[tokio::test(start_paused = true)]
async fn the_loser_of_a_lease_gets_what_the_winner_stores() {
    let shelf = Shelf::of([7]);
    let store = memory();
    let winner = cache_on(&shelf, Arc::clone(&store)).await;
    let loser = cache_on(&shelf, store).await;
    shelf.hold();
    let won = reading(&winner, 7);
    shelf.held().await;
    let lost = reading(&loser, 7);
    quiet().await;
    shelf.let_go();
    assert_eq!(won.await.unwrap().unwrap(), text(7));
    assert_eq!(lost.await.unwrap().unwrap(), text(7));
    assert_eq!(shelf.loads(), 1);
    assert!(loser.stats().accessors[0].busy >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_loser_that_waits_in_vain_loads_without_filling() {
    let shelf = Shelf::of([7]);
    let store = memory();
    let winner = cache_on(&shelf, Arc::clone(&store)).await;
    let loser = cache_on(&shelf, store).await;
    shelf.hold();
    let won = reading(&winner, 7);
    shelf.held().await;
    let lost = reading(&loser, 7);
    shelf.held().await; // after its polls
    shelf.let_go();
    assert_eq!(won.await.unwrap().unwrap(), text(7));
    assert_eq!(lost.await.unwrap().unwrap(), text(7));
    assert_eq!(shelf.loads(), 2);
    assert_eq!(loser.stats().accessors[0].fills_stored, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_grew_old_is_taken_over() {
    let shelf = Shelf::of([7]);
    let store = memory();
    let stuck = cache_on(&shelf, Arc::clone(&store)).await;
    let (cache, tally) = cache_on(&shelf, store).await.tallied();
    shelf.hold();
    let first = reading(&stuck, 7);
    shelf.held().await;
    tokio::time::advance(Duration::from_millis(2_100)).await;

    let second = reading(&cache, 7);
    shelf.held().await;
    shelf.let_go();
    assert_eq!(first.await.unwrap().unwrap(), text(7));
    assert_eq!(second.await.unwrap().unwrap(), text(7));
    tally.settled().await;
    assert_eq!(cache.stats().accessors[0].taken_over, 1);
    assert_eq!(shelf.loads(), 2);
}

dataset!(Hasty = "hasty", Lifetime::Ttl(HOUR), LEASE: Duration = Duration::from_secs(1));

#[tokio::test(start_paused = true)]
async fn a_load_slower_than_its_lease_is_served_and_counted() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    shelf.hold();
    let slow = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Hasty>(&cache, &7).await }
    });
    shelf.held().await;
    tokio::time::advance(Duration::from_secs(5)).await;
    shelf.let_go();
    assert_eq!(slow.await.unwrap().unwrap(), text(7));
    tally.settled().await;
    assert_eq!(cache.stats().accessors[0].fills_lost_expired, 1);
}

/// Readers and writers at random, on two processes: no read is older than the last write acknowledged before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_an_acknowledged_write() {
    use std::sync::atomic::{AtomicU64, Ordering};

    let shelf = Shelf::of([]);
    shelf.write(7, "0");
    let store = memory();
    let caches = [
        cache_on(&shelf, Arc::clone(&store)).await,
        cache_on(&shelf, store).await,
    ];
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for reader in 0..8 {
        let cache = caches[reader % 2].clone();
        let acknowledged = Arc::clone(&acknowledged);
        readers.push(tokio::spawn(async move {
            let mut hits = 0;
            while acknowledged.load(Ordering::SeqCst) < 2_000 {
                let before = acknowledged.load(Ordering::SeqCst);
                let read = get::<Row>(&cache, &7).await.unwrap().unwrap();
                let read: u64 = read.parse().unwrap();
                assert!(
                    read >= before,
                    "read {read} after {before} was acknowledged"
                );
                hits += 1;
                tokio::task::yield_now().await;
            }
            hits
        }));
    }
    for write in 1..=2_000 {
        shelf.write(7, &write.to_string());
        caches[write as usize % 2].flush::<Row>([7]).await.unwrap();
        acknowledged.store(write, Ordering::SeqCst);
        if write % 3 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    let stats = caches.map(|cache| cache.stats().accessors.remove(0));
    assert!(
        stats.iter().all(|stats| stats.hits + stats.shared > 0),
        "{stats:?}"
    );
}
