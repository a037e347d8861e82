//! Single reads that become one bulk read: what they cost, what they answer, and that nobody waits in vain.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Cache, Direct, Lifetime, LoadError, Prefix, Rt, Tally, get, get_many, refresh, uncached,
};
use larder_harness::server::{Listen, MemcachedServer};
use tokio::task::JoinSet;

use super::gate::Gate;
use super::shelf::{Broken, Conn, HOUR, Row, Shelf, cache, cache_on, dataset, memory, text};

dataset!(Other = "other", Lifetime::Ttl(HOUR));

/// A handle that batches and counts.
fn counting(cache: &Cache<Shelf>) -> (Cache<Shelf>, Arc<Tally>) {
    let (cache, tally) = cache.tallied();
    (cache.batched(), tally)
}

type Read = Result<Option<String>, LoadError<Broken>>;

/// All at once, each by a call of its own.
async fn read_all(cache: &Cache<Shelf>, ids: impl IntoIterator<Item = u64>) -> Vec<Read> {
    join_all(ids.into_iter().map(|id| read(cache, id))).await
}

async fn read(cache: &Cache<Shelf>, id: u64) -> Read {
    get::<Row>(cache, &id).await
}

#[track_caller]
fn expect_rows(read: Vec<Read>, ids: impl IntoIterator<Item = u64>) {
    let rows: Vec<_> = read.into_iter().map(Result::unwrap).collect();
    assert_eq!(rows, ids.into_iter().map(text).collect::<Vec<_>>());
}

/// Polls it once, and answers whether it is ready.
async fn begin<F: Future>(mut future: Pin<&mut F>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

async fn on_memcached(shelf: &Shelf, server: &MemcachedServer) -> Cache<Shelf> {
    let client = Memcached::new(MemcachedConfig::new([server.address()]), Rt::new()).unwrap();
    Cache::builder(shelf.clone())
        .backend(Arc::new(client))
        .prefix(Prefix::new("test").unwrap())
        .build()
        .await
        .unwrap()
}

async fn a_hundred_reads_cost_what_one_bulk_read_costs() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let shelf = Shelf::of(0..200);
    let cache = on_memcached(&shelf, &server).await;
    let (bulk, expected) = cache.tallied();
    let (batched, tally) = counting(&cache);
    for loads in [1, 1] {
        get_many::<Row>(&bulk, 100..200).await.unwrap();
        expect_rows(read_all(&batched, 0..100).await, 0..100);
        expected.settled().await;
        tally.settled().await;
        assert_eq!(tally.loads(), loads);
        assert_eq!(tally.trips(), expected.trips());
        assert_eq!(tally.keys(), expected.keys());
        assert_eq!(tally.hits(), expected.hits());
    }
    assert_eq!(tally.trips(), 3, "a look-up and a fill, then a look-up");
    let stats = &cache.stats().accessors[0];
    assert_eq!((stats.keys, stats.hits, stats.loads), (400, 200, 2));
}

#[tokio::test]
async fn a_hundred_reads_are_one_trip_and_one_load() {
    a_hundred_reads_cost_what_one_bulk_read_costs().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reads_are_one_trip_and_one_load_beside_other_threads() {
    // Polled by no worker, and by one: a turn is given in another way.
    a_hundred_reads_cost_what_one_bulk_read_costs().await;
    let task = tokio::spawn(a_hundred_reads_cost_what_one_bulk_read_costs());
    task.await.unwrap();
}

#[tokio::test]
async fn a_stream_of_ten_at_once_makes_batches_of_ten() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let cache = on_memcached(&Shelf::of(0..100), &server).await;
    let (batched, tally) = counting(&cache);
    for _ in 0..2 {
        let reads = stream::iter(0..100).map(|id| read(&batched, id));
        let read: Vec<_> = reads.buffered(10).collect().await;
        expect_rows(read, 0..100);
        tally.settled().await;
    }
    let lookups = tally.trips() - tally.loads();
    assert!((20..=30).contains(&lookups), "{lookups} batches, not 20");
    assert!((10..=15).contains(&tally.loads()), "{}", tally.loads());
}

/// Tasks meet too, as far as they run at the same time.
#[tokio::test(start_paused = true)]
async fn reads_of_many_tasks_are_batched() {
    let shelf = Shelf::of(0..100);
    let (batched, tally) = counting(&cache(&shelf).await);
    let mut readers = JoinSet::new();
    for id in 0..100 {
        let batched = batched.clone();
        readers.spawn(async move { assert_eq!(read(&batched, id).await.unwrap(), text(id)) });
    }
    readers.join_all().await;
    assert_eq!((shelf.loads(), tally.keys()), (1, 100));
}

#[tokio::test(start_paused = true)]
async fn a_key_asked_for_twice_costs_one_key() {
    let shelf = Shelf::of(0..9);
    let (batched, tally) = counting(&cache(&shelf).await);
    let ids = [7, 8, 7, 7, 9, 8];
    let read = read_all(&batched, ids).await;
    let rows: Vec<_> = read.into_iter().map(Result::unwrap).collect();
    assert_eq!(rows, [text(7), text(8), text(7), text(7), None, text(8)]);
    assert_eq!(shelf.asked(), [[7, 8, 9]]);
    assert_eq!((tally.keys(), tally.misses(), tally.shared()), (3, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn each_data_set_has_its_own_batch() {
    let shelf = Shelf::of(0..2);
    let (batched, tally) = counting(&cache(&shelf).await);
    for _ in 0..2 {
        let (a, b, c, d) = tokio::join!(
            get::<Row>(&batched, &0),
            get::<Other>(&batched, &0),
            get::<Row>(&batched, &1),
            get::<Other>(&batched, &1),
        );
        assert_eq!([a.unwrap(), b.unwrap()], [text(0), text(0)]);
        assert_eq!([c.unwrap(), d.unwrap()], [text(1), text(1)]);
        tally.settled().await;
    }
    assert_eq!(shelf.asked(), [[0, 1], [0, 1]]);
    assert_eq!(tally.trips(), 2 * (1 + 1 + 1));
}

/// Handles that count apart read apart, and so does who doesn't batch.
#[tokio::test(start_paused = true)]
async fn only_clones_share_a_batch() {
    let shelf = Shelf::of(0..9);
    let cache = cache(&shelf).await;
    let (batched, tally) = counting(&cache);
    let (apart, other) = batched.tallied();
    let clone = batched.clone().batched();
    let _ = tokio::join!(
        read(&batched, 0),
        read(&apart, 1),
        read(&clone, 2),
        read(&cache, 3),
        read(&apart, 4),
        read(&cache, 5),
    );
    let mut asked = shelf.asked();
    asked.sort();
    assert_eq!(asked, [vec![0, 2], vec![1, 4], vec![3], vec![5]]);
    assert_eq!((tally.keys(), other.keys()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn other_ways_to_read_are_not_batched() {
    let shelf = Shelf::of(0..9);
    let (batched, _) = counting(&cache(&shelf).await);
    let mut conn = Conn(shelf.clone());
    let _ = tokio::join!(
        uncached::<Row>(&batched, &0),
        uncached::<Row>(&batched, &1),
        refresh::<Row>(&batched, &2),
        refresh::<Row>(&batched, &3),
        get::<Row>(Direct(&mut conn), &4),
        get_many::<Row>(&batched, [5, 6]),
    );
    let mut asked = shelf.asked();
    asked.sort();
    assert_eq!(
        asked,
        [vec![0], vec![1], vec![2], vec![3], vec![4], vec![5, 6]]
    );
}

/// A look-up may be answered before a later call begins, and before a write that the call must see.
#[tokio::test(start_paused = true)]
async fn a_call_that_begins_after_a_batch_was_sent_is_in_the_next_one() {
    let shelf = Shelf::of([7, 8]);
    let gate = Gate::new(memory());
    let (batched, tally) = counting(&cache_on(&shelf, Arc::clone(&gate) as _).await);
    expect_rows(read_all(&batched, [7, 8]).await, [7, 8]);
    tally.settled().await;

    gate.answered_gets().close();
    let early = tokio::spawn({
        let batched = batched.clone();
        async move { read_all(&batched, [7, 8]).await }
    });
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    batched.flush::<Row>([7]).await.unwrap();
    let late = tokio::spawn({
        let batched = batched.clone();
        async move { read_all(&batched, [8, 7]).await }
    });
    gate.answered_gets().arrived().await;
    gate.answered_gets().open();
    expect_rows(early.await.unwrap(), [7, 8]);
    let late: Vec<_> = late
        .await
        .unwrap()
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(late, [text(8), Some("new".to_owned())]);
}

/// The batch is looked up after the flush that was acknowledged while it was open.
#[tokio::test(start_paused = true)]
async fn what_is_flushed_before_a_batch_is_sent_is_read_new() {
    let shelf = Shelf::of([7, 8]);
    let (batched, tally) = counting(&cache(&shelf).await);
    expect_rows(read_all(&batched, [7, 8]).await, [7, 8]);
    tally.settled().await;
    let (mut one, mut other) = (pin!(read(&batched, 7)), pin!(read(&batched, 8)));
    assert!(!begin(one.as_mut()).await && !begin(other.as_mut()).await);
    shelf.write(7, "new");
    batched.flush::<Row>([7]).await.unwrap();
    let (one, other) = tokio::join!(one, other);
    assert_eq!(one.unwrap().as_deref(), Some("new"));
    assert_eq!(other.unwrap(), text(8));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_before_the_batch_is_sent_harms_nobody() {
    for leaves in 0..3 {
        let shelf = Shelf::of(0..3);
        let batched = cache(&shelf).await.batched();
        let mut reads: Vec<_> = (0..3).map(|id| Box::pin(read(&batched, id))).collect();
        for read in &mut reads {
            assert!(!begin(read.as_mut()).await);
        }
        drop(reads.remove(leaves));
        let left = (0..3).filter(|id| *id != leaves as u64);
        expect_rows(join_all(reads).await, left);
        assert_eq!(shelf.loads(), 1);
    }
}

/// As the futures of a stream are while its consumer is busy with what came out of it.
#[tokio::test(start_paused = true)]
async fn whoever_is_not_polled_again_harms_nobody() {
    for stuck in 0..3 {
        let shelf = Shelf::of(0..3);
        let batched = cache(&shelf).await.batched();
        let mut reads: Vec<_> = (0..3).map(|id| Box::pin(read(&batched, id))).collect();
        for read in &mut reads {
            assert!(!begin(read.as_mut()).await);
        }
        let kept = reads.remove(stuck);
        let others = (0..3).filter(|id| *id != stuck as u64);
        expect_rows(join_all(reads).await, others);
        assert_eq!(kept.await.unwrap(), text(stuck as u64));
        assert_eq!(shelf.asked(), [[0, 1, 2]]);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_after_the_batch_was_sent_harms_nobody() {
    for leaves in 0..3 {
        let shelf = Shelf::of(0..3);
        let (batched, tally) = counting(&cache(&shelf).await);
        let mut reads: Vec<_> = (0..3).map(|id| Box::pin(read(&batched, id))).collect();
        shelf.hold();
        for read in &mut reads {
            assert!(!begin(read.as_mut()).await);
        }
        tokio::task::yield_now().await;
        for read in &mut reads {
            assert!(!begin(read.as_mut()).await);
        }
        shelf.held().await;
        drop(reads.remove(leaves));
        shelf.let_go();
        let left = (0..3).filter(|id| *id != leaves as u64);
        expect_rows(join_all(reads).await, left);
        tally.settled().await;
        expect_rows(read_all(&batched, 0..3).await, 0..3);
        assert_eq!(shelf.asked(), [[0, 1, 2]]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_all_have_left_is_not_read() {
    let shelf = Shelf::of(0..9);
    let (batched, tally) = counting(&cache(&shelf).await);
    for id in 0..3 {
        let mut left = Box::pin(read(&batched, id));
        assert!(!begin(left.as_mut()).await);
    }
    assert_eq!(read(&batched, 7).await.unwrap(), text(7));
    {
        let mut left = Box::pin(read(&batched, 0));
        assert!(!begin(left.as_mut()).await);
    }
    expect_rows(read_all(&batched, [8, 5]).await, [8, 5]);
    assert_eq!(shelf.asked(), [vec![7], vec![5, 8]]);
    assert_eq!(tally.keys(), 3);
}

async fn check_failing(fail: fn(&Shelf), failed: fn(&LoadError<Broken>) -> bool) {
    let shelf = Shelf::of([1, 2, 3]);
    let (batched, tally) = counting(&cache(&shelf).await);
    // One row and one absence are stored.
    read_all(&batched, [1, 9]).await;
    tally.settled().await;
    fail(&shelf);
    let read = read_all(&batched, [1, 2, 9, 3]).await;
    let [Ok(hit), Err(one), Ok(None), Err(other)] = &read[..] else {
        panic!("{read:?}");
    };
    assert_eq!(*hit, text(1));
    assert!(failed(one) && failed(other), "{one:?}, {other:?}");
    assert_eq!(shelf.asked(), [[1, 9], [2, 3]], "nobody tries it again");
    shelf.recover();
    expect_rows(read_all(&batched, [1, 2, 3]).await, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_fails_all_that_wait_for_it_and_nobody_else() {
    check_failing(Shelf::fail, |error| error.loader() == Some(&Broken)).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_panics_fails_all_that_wait_for_it_and_nobody_else() {
    check_failing(Shelf::panic, |error| {
        matches!(error, LoadError::Panicked { accessor: "row" })
    })
    .await;
}

#[test]
fn the_end_of_the_runtime_reaches_everyone_in_the_batch() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all();
    let waits = runtime.build().unwrap();
    let sends = runtime.start_paused(true).build().unwrap();
    let shelf = Shelf::of([7, 8]);
    let batched = sends.block_on(cache(&shelf)).batched();
    let mut waiting = Box::pin(read(&batched, 8));
    assert!(!waits.block_on(begin(waiting.as_mut())));
    sends.block_on(async {
        shelf.hold();
        let batched = batched.clone();
        drop(tokio::spawn(async move { read(&batched, 7).await }));
        shelf.held().await;
    });
    assert_eq!(shelf.asked(), [[7, 8]]);
    drop(sends);
    let error = waits.block_on(waiting).unwrap_err();
    assert!(matches!(error, LoadError::Panicked { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_cache_answers_batches_as_it_answers_bulk_reads() {
    let shelf = Shelf::of([1, 2, 3]);
    let gate = Gate::new(memory());
    let (batched, tally) = counting(&cache_on(&shelf, Arc::clone(&gate) as _).await);
    read(&batched, 1).await.unwrap();
    tally.settled().await;
    // Sent before, it is waited for.
    gate.answered_gets().close();
    let early = tokio::spawn({
        let batched = batched.clone();
        async move { read_all(&batched, [1, 1]).await }
    });
    gate.answered_gets().arrived().await;
    let closing = tokio::spawn({
        let batched = batched.clone();
        async move { batched.close(Duration::from_secs(10)).await }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!closing.is_finished());
    gate.answered_gets().open();
    expect_rows(early.await.unwrap(), [1, 1]);
    closing.await.unwrap();
    let late = read_all(&batched, [1, 2, 3]).await;
    for read in &late[1..] {
        assert!(
            matches!(read, Err(LoadError::Closed { accessor: "row" })),
            "{read:?}"
        );
    }
    assert_eq!(shelf.asked(), [[1]]);
}

/// What can't be asked of the store, or mustn't, is loaded in one call too.
#[tokio::test(start_paused = true)]
async fn a_store_in_trouble_costs_one_load() {
    let shelf = Shelf::of(0..9);
    let gate = Gate::new(memory());
    let batched = cache_on(&shelf, Arc::clone(&gate) as _).await.batched();
    gate.set_down(true);
    expect_rows(read_all(&batched, 0..9).await, 0..9);
    batched.bypass(true);
    expect_rows(read_all(&batched, 0..9).await, 0..9);
    assert_eq!(shelf.asked(), [[0, 1, 2, 3, 4, 5, 6, 7, 8]; 2]);
}

#[tokio::test(start_paused = true)]
async fn more_keys_than_are_loaded_at_once_are_one_batch() {
    let shelf = Shelf::of(0..5_000);
    let (batched, tally) = counting(&cache(&shelf).await);
    expect_rows(read_all(&batched, 0..5_000).await, 0..5_000);
    assert_eq!((tally.keys(), shelf.loads()), (5_000, 3));
}

/// Whoever stays is answered as without batches, whatever the others do, and what is flushed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_are_those_of_single_reads_whoever_leaves() {
    const IDS: u64 = 40;
    let exists = |id: &u64| !id.is_multiple_of(7);
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let gate = Gate::new(Arc::new(memory));
    gate.dawdle(3);
    let shelf = Shelf::of((0..IDS).filter(exists));
    let cache = Cache::builder(shelf.clone()).backend(gate);
    let (batched, tally) = counting(&cache.build().await.unwrap());
    let mut tasks = JoinSet::new();
    for seed in 0..20 {
        let batched = batched.clone();
        tasks.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut stayed, mut left) = (0, 0);
            for _ in 0..100 {
                let reads = (0..random.u32(1..10)).map(|_| {
                    let (id, polls) = (random.u64(0..IDS), random.u32(1..12));
                    let read = leaving(polls, read(&batched, id));
                    async move { (id, read.await) }
                });
                for (id, read) in join_all(reads.collect::<Vec<_>>()).await {
                    match read {
                        Some(read) => {
                            assert_eq!(read.unwrap(), text(id).filter(|_| exists(&id)), "{seed}");
                            stayed += 1;
                        }
                        None => left += 1,
                    }
                }
                if random.bool() {
                    batched.flush::<Row>([random.u64(0..IDS)]).await.unwrap();
                }
            }
            assert!(stayed > 100 && left > 10, "{stayed} stayed, {left} left");
        });
    }
    tasks.join_all().await;
    tally.settled().await;
    let lookups = batched.stats().accessors[0].read_latency.count;
    assert!(
        tally.keys() > lookups * 3 / 2,
        "{} keys in {lookups} reads",
        tally.keys()
    );
}

/// The future's answer, unless it isn't ready when it is polled this often.
async fn leaving<F: Future>(mut polls: u32, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        polls -= 1;
        match future.as_mut().poll(context) {
            Poll::Pending if polls == 0 => Poll::Ready(None),
            poll => poll.map(Some),
        }
    })
    .await
}
