//! A request that writes sees what it wrote, whenever its reads began and whatever became of its flush.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{Cache, Dataset, Rt, get, get_many};
use larder_harness::server::{Listen, MemcachedServer};
use larder_tiers::Request;
use tokio::task::{JoinHandle, JoinSet};

use super::stage::{
    Badge, Draft, Name, Text, all, builder, cache, cache_on, counting, quiet, rows, said, text,
};
use crate::read::gate::Gate;
use crate::read::shelf::{Broken, Shelf, memory};

/// A store that has these rows, behind a gate, and a process that may be held up there.
async fn stocked(ids: impl IntoIterator<Item = u64>) -> (Shelf, Arc<Gate>, Cache<Shelf>) {
    let ids: Vec<u64> = ids.into_iter().collect();
    let shelf = Shelf::of(ids.iter().copied());
    let gate = Gate::new(memory());
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (request, tally) = counting(&cache);
    get_many::<Name>(&request, &ids).await.unwrap();
    tally.settled().await;
    drop(request);
    quiet().await;
    (shelf, gate, cache)
}

/// A read of this request in a task of its own.
fn reading<D>(request: &Request<Shelf>, id: u64) -> JoinHandle<Option<String>>
where
    D: Dataset<
            Source = Shelf,
            Key = u64,
            Value = Text,
            Tier = larder_core::RequestTier,
            Error = Broken,
        >,
{
    let request = request.clone();
    tokio::spawn(async move { said(get::<D>(&request, &id).await.unwrap()) })
}

/// A flush by this request in a task of its own.
fn flushing(request: &Request<Shelf>, id: u64) -> JoinHandle<bool> {
    let request = request.clone();
    tokio::spawn(async move { request.cache().flush::<Name>([id]).await.is_ok() })
}

async fn read(request: &Request<Shelf>, id: u64) -> Option<String> {
    said(get::<Name>(request, &id).await.unwrap())
}

fn new() -> Option<String> {
    Some("new".to_owned())
}

#[tokio::test(start_paused = true)]
async fn what_a_load_read_before_the_write_is_not_kept() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    shelf.hold();
    let early = reading::<Name>(&request, 7);
    shelf.held().await;
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    shelf.let_go();
    assert_eq!(early.await.unwrap(), text(7), "it began before the write");
    for _ in 0..2 {
        assert_eq!(read(&request, 7).await, new());
    }
    tally.settled().await;
    assert_eq!(tally.tier_hits(), 1);
    assert_eq!(cache.stats().accessors[0].tier_too_late, 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_answered_before_the_write_is_not_kept() {
    let (shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    gate.answered_gets().close();
    let early = reading::<Name>(&request, 7);
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    gate.answered_gets().open();
    assert_eq!(early.await.unwrap(), text(7), "it began before the write");
    assert_eq!(read(&request, 7).await, new());
    assert_eq!(cache.stats().accessors[0].tier_too_late, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unstored_value_read_before_the_write_is_not_kept() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    shelf.hold();
    let early = reading::<Draft>(&request, 7);
    shelf.held().await;
    shelf.write(7, "new");
    request.cache().flush::<Draft>([7]).await.unwrap();
    shelf.let_go();
    assert_eq!(early.await.unwrap(), text(7), "it began before the write");
    for _ in 0..2 {
        assert_eq!(reading::<Draft>(&request, 7).await.unwrap(), new());
    }
    assert_eq!((tally.tier_hits(), tally.trips()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_while_the_flush_is_under_way_goes_when_it_is_confirmed() {
    let (shelf, gate, cache) = stocked([7]).await;
    let (request, tally) = counting(&cache);
    assert_eq!(read(&request, 7).await, text(7));
    shelf.write(7, "new");
    gate.arriving_deletes().close();
    let flush = flushing(&request, 7);
    gate.arriving_deletes().arrived().await;
    for tier_hits in [0, 1] {
        // The store still has what is old, and nothing was acknowledged yet.
        assert_eq!(read(&request, 7).await, text(7));
        assert_eq!(tally.tier_hits(), tier_hits);
    }
    gate.arriving_deletes().open();
    assert!(flush.await.unwrap());
    assert_eq!(read(&request, 7).await, new());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_began_while_the_flush_was_under_way_and_ends_after_it_is_not_kept() {
    let (shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    shelf.write(7, "new");
    gate.arriving_deletes().close();
    let flush = flushing(&request, 7);
    gate.arriving_deletes().arrived().await;
    gate.answered_gets().close();
    let early = reading::<Name>(&request, 7);
    gate.answered_gets().arrived().await;
    gate.arriving_deletes().open();
    assert!(flush.await.unwrap());
    gate.answered_gets().open();
    assert_eq!(early.await.unwrap(), text(7));
    assert_eq!(read(&request, 7).await, new());
}

#[tokio::test(start_paused = true)]
async fn a_flush_drops_its_own_keys_from_a_bulk_read_and_no_others() {
    let (shelf, gate, cache) = stocked([6, 7, 8]).await;
    let (request, tally) = counting(&cache);
    assert_eq!(read(&request, 6).await, text(6));
    gate.answered_gets().close();
    let early = tokio::spawn({
        let request = request.clone();
        async move { all(&get_many::<Name>(&request, [6, 7, 8]).await.unwrap()) }
    });
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    request.cache().flush::<Badge>([6, 8]).await.unwrap();
    gate.answered_gets().open();
    assert_eq!(early.await.unwrap(), rows([6, 7, 8]));
    let hits = tally.tier_hits();
    let batch = get_many::<Name>(&request, [8, 7, 6]).await.unwrap();
    assert_eq!(all(&batch), [(8, text(8)), (7, new()), (6, text(6))]);
    assert_eq!(tally.tier_hits() - hits, 2, "6 and 8 stayed");
}

#[tokio::test(start_paused = true)]
async fn a_flush_by_somebody_else_drops_nothing_of_the_request() {
    let (shelf, _gate, cache) = stocked([7]).await;
    let (request, writer) = (Request::begin(&cache), Request::begin(&cache));
    assert_eq!(read(&request, 7).await, text(7));
    assert_eq!(read(&writer, 7).await, text(7));
    shelf.write(7, "new");
    writer.cache().flush::<Name>([7]).await.unwrap();
    assert_eq!(read(&writer, 7).await, new());
    assert_eq!(read(&request, 7).await, text(7));
}

#[tokio::test(start_paused = true)]
async fn keys_whose_flush_was_not_confirmed_are_loaded_for_the_rest_of_the_request() {
    let (shelf, gate, cache) = stocked([6, 7, 8]).await;
    let (request, tally) = counting(&cache);
    assert_eq!(read(&request, 6).await, text(6));
    assert_eq!(read(&request, 7).await, text(7));
    shelf.write(7, "new");
    gate.set_down(true);
    let error = request.cache().flush::<Name>([7]).await.unwrap_err();
    assert_eq!(error.keys().len(), 1);
    gate.set_down(false);

    let other = Request::begin(&cache);
    assert_eq!(
        read(&other, 7).await,
        new(),
        "the process waits for its flush"
    );
    for round in 1..=3 {
        let (trips, hits) = (tally.trips(), tally.tier_hits());
        assert_eq!(read(&request, 7).await, new());
        assert_eq!(tally.loads(), round, "it isn't kept");
        assert_eq!((tally.trips(), tally.tier_hits()), (trips, hits));
    }
    for round in 0..2 {
        let (trips, hits) = (tally.trips(), tally.tier_hits());
        let batch = get_many::<Name>(&request, [6, 7, 8, 7]).await.unwrap();
        let answers = [(6, text(6)), (7, new()), (8, text(8)), (7, new())];
        assert_eq!(all(&batch), answers);
        assert_eq!(tally.loads(), 4 + round);
        // The others still use the tier, and the store for what it hasn't.
        assert_eq!(tally.trips() - trips, 1 - round);
        assert_eq!(tally.tier_hits() - hits, 1 + round);
    }
    shelf.write(7, "newer");
    assert_eq!(read(&request, 7).await.as_deref(), Some("newer"));
    assert_eq!(shelf.asked()[1..], vec![[7]; 7]);
    let stats = &cache.stats().accessors[0];
    assert_eq!((stats.tier_distrusted, stats.flush_failures), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_distrusted_for_its_own_data_set_and_request_only() {
    let (shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    get::<Badge>(&request, &7).await.unwrap();
    quiet().await;
    shelf.write(7, "new");
    gate.set_down(true);
    request.cache().flush::<Name>([7]).await.unwrap_err();
    gate.set_down(false);
    let loads = shelf.loads();
    assert_eq!(reading::<Badge>(&request, 7).await.unwrap(), text(7));
    assert_eq!(shelf.loads(), loads);
    assert_eq!(read(&Request::begin(&cache), 7).await, new());
    assert_eq!(
        shelf.loads(),
        loads + 1,
        "the whole process waits for the flush"
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_under_way_when_a_flush_fails_is_not_kept() {
    let (shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    gate.answered_gets().close();
    let early = reading::<Name>(&request, 7);
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    gate.set_down(true);
    request.cache().flush::<Name>([7]).await.unwrap_err();
    gate.set_down(false);
    gate.answered_gets().open();
    assert_eq!(early.await.unwrap(), text(7));
    assert_eq!(read(&request, 7).await, new());
}

#[tokio::test(start_paused = true)]
async fn distrust_outlives_bypass_refresh_and_a_later_flush() {
    let (shelf, gate, cache) = stocked([7, 8]).await;
    let request = Request::begin(&cache);
    shelf.write(7, "new");
    gate.set_down(true);
    request.cache().flush::<Name>([7]).await.unwrap_err();
    gate.set_down(false);

    cache.bypass(true);
    let batch = get_many::<Name>(&request, [7, 8]).await.unwrap();
    assert_eq!(all(&batch), [(7, new()), (8, text(8))]);
    cache.bypass(false);
    assert_eq!(read(&request, 7).await, new());
    shelf.write(7, "newer");
    let newer = larder_core::refresh::<Name>(&request, &7).await.unwrap();
    assert_eq!(said(newer).as_deref(), Some("newer"));
    shelf.write(7, "newest");
    request.cache().flush::<Name>([7]).await.unwrap();
    assert_eq!(read(&request, 7).await.as_deref(), Some("newest"));
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_a_task_that_outlives_its_caller_reaches_the_request() {
    let (shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    assert_eq!(read(&request, 7).await, text(7));
    gate.arriving_deletes().close();
    let handler = tokio::spawn({
        let request = request.clone();
        let shelf = shelf.clone();
        async move {
            let write = async move {
                shelf.write(7, "new");
                request.cache().flush::<Name>([7]).await.unwrap();
            };
            tokio::spawn(write).await.unwrap();
        }
    });
    gate.arriving_deletes().arrived().await;
    handler.abort();
    assert!(handler.await.unwrap_err().is_cancelled());
    assert_eq!(read(&request, 7).await, text(7), "nothing is acknowledged");
    gate.arriving_deletes().open();
    quiet().await;
    assert_eq!(read(&request, 7).await, new());
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_is_dropped_half_way_reaches_the_request() {
    for confirmed in [true, false] {
        let (shelf, gate, cache) = stocked([7]).await;
        let (request, tally) = counting(&cache);
        assert_eq!(read(&request, 7).await, text(7));
        shelf.write(7, "new");
        gate.arriving_deletes().close();
        let flush = flushing(&request, 7);
        gate.arriving_deletes().arrived().await;
        flush.abort();
        assert!(flush.await.unwrap_err().is_cancelled());
        assert_eq!(read(&request, 7).await, text(7), "nothing is acknowledged");
        gate.set_down(!confirmed);
        gate.arriving_deletes().open();
        tally.settled().await;
        gate.set_down(false);
        assert_eq!(read(&request, 7).await, new());
        let distrusted = cache.stats().accessors[0].tier_distrusted;
        assert_eq!(distrusted, u64::from(!confirmed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flush_under_way_does_not_keep_a_request_that_is_over() {
    let (_shelf, gate, cache) = stocked([7]).await;
    let request = Request::begin(&cache);
    read(&request, 7).await;
    assert_eq!(cache.stats().tiers.unwrap().request.entries, 1);
    gate.answered_deletes().close();
    let flush = request.clone();
    let flush = tokio::spawn(async move {
        let flush = flush.cache().flush::<Name>([8]);
        flush.await.unwrap();
    });
    gate.answered_deletes().arrived().await;
    flush.abort();
    assert!(flush.await.unwrap_err().is_cancelled());
    drop(request);
    quiet().await;
    assert_eq!(cache.stats().tiers.unwrap().request.entries, 0);
    gate.answered_deletes().open();
}

#[tokio::test(start_paused = true)]
async fn the_value_of_a_load_that_somebody_else_started_is_kept() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (loading, request) = (Request::begin(&cache), counting(&cache));
    let (request, tally) = request;
    shelf.hold();
    let loader = reading::<Name>(&loading, 7);
    shelf.held().await;
    let follower = reading::<Name>(&request, 7);
    quiet().await;
    shelf.let_go();
    assert_eq!(loader.await.unwrap(), text(7));
    assert_eq!(follower.await.unwrap(), text(7));
    assert_eq!((tally.shared(), tally.loads()), (1, 0));
    assert_eq!(read(&request, 7).await, text(7));
    assert_eq!((tally.tier_hits(), tally.trips()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_value_of_a_load_that_somebody_else_started_before_the_write_is_not_kept() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (loading, request) = (Request::begin(&cache), Request::begin(&cache));
    shelf.hold();
    let loader = reading::<Name>(&loading, 7);
    shelf.held().await;
    let follower = reading::<Name>(&request, 7);
    quiet().await;
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    let late = reading::<Name>(&request, 7);
    quiet().await;
    shelf.let_go();
    assert_eq!(loader.await.unwrap(), text(7));
    follower.await.unwrap();
    assert_eq!(late.await.unwrap(), new(), "it began after the write");
    assert_eq!(read(&request, 7).await, new());
}

/// A load that runs without a lease is nobody's to share once it began, so nothing of it gets into a request either.
#[tokio::test(start_paused = true)]
async fn the_value_of_a_load_without_a_lease_is_not_kept_by_those_who_came_later() {
    let (shelf, gate, cache) = stocked([7]).await;
    gate.set_down(true);
    let (loading, request) = (Request::begin(&cache), Request::begin(&cache));
    shelf.hold();
    let loader = reading::<Name>(&loading, 7);
    shelf.held().await;
    shelf.write(7, "new");
    let follower = reading::<Name>(&request, 7);
    quiet().await;
    shelf.let_go();
    assert_eq!(loader.await.unwrap(), text(7));
    assert_eq!(follower.await.unwrap(), new());
    assert_eq!(read(&request, 7).await, new());
}

/// Real time: a stopped process answers nothing, and no paused clock can tell when.
#[tokio::test]
async fn a_stopped_server_confirms_nothing_and_is_not_trusted_when_it_is_back() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = MemcachedConfig::new([server.address()]);
    config.flush_timeout = Duration::from_millis(100);
    let client = Memcached::new(config, Rt::new()).unwrap();
    let shelf = Shelf::of([6, 7]);
    let builder = builder(&shelf, Arc::new(client)).rt(Rt::new());
    let tiers = larder_tiers::Tiers::default();
    let cache = builder.tiers(tiers).build().await.unwrap();
    let (request, tally) = counting(&cache);
    get_many::<Name>(&request, [6, 7]).await.unwrap();
    tally.settled().await;

    shelf.write(7, "new");
    server.stop();
    let error = request.cache().flush::<Name>([7]).await.unwrap_err();
    assert!(error.keys()[0].contains("name:7"), "{error}");
    server.resume();
    let loads = shelf.loads();
    for round in 1..=3 {
        assert_eq!(read(&request, 7).await, new());
        assert_eq!(shelf.loads() - loads, round);
        assert_eq!(read(&request, 6).await, text(6));
    }
    assert_eq!(tally.tier_hits(), 3);
}

/// Of two servers one is gone: what the other one confirmed is read as ever.
#[tokio::test]
async fn only_keys_of_the_server_that_did_not_confirm_are_distrusted() {
    let here = MemcachedServer::start(Listen::Tcp, &[]);
    let mut gone = MemcachedServer::start(Listen::Tcp, &[]);
    let client = Memcached::new(
        MemcachedConfig::new([here.address(), gone.address()]),
        Rt::new(),
    );
    let shelf = Shelf::of(0..40);
    let builder = builder(&shelf, Arc::new(client.unwrap())).rt(Rt::new());
    let tiers = larder_tiers::Tiers::default();
    let cache = builder.tiers(tiers).build().await.unwrap();
    let (request, tally) = counting(&cache);
    get_many::<Name>(&request, 0..40).await.unwrap();
    tally.settled().await;
    gone.kill();
    let error = request.cache().flush::<Name>(0..40).await.unwrap_err();
    let of_gone = error.keys().len() as u64;
    assert!((1..40).contains(&of_gone), "{error}");
    for round in 0..3 {
        let hits = tally.tier_hits();
        let loaded = shelf.asked().iter().map(Vec::len).sum::<usize>();
        let batch = get_many::<Name>(&request, 0..40).await.unwrap();
        assert_eq!(all(&batch), rows(0..40));
        if round > 0 {
            let now = shelf.asked().iter().map(Vec::len).sum::<usize>();
            assert_eq!((now - loaded) as u64, of_gone);
            assert_eq!(tally.tier_hits() - hits, 40 - of_gone);
        }
    }
}

/// Whatever the timing: what a request reads isn't older than its last flush that was confirmed when the read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn own_writes_are_seen_by_readers_in_many_tasks() {
    own_writes_are_seen(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn own_writes_are_seen_by_readers_that_share_batches() {
    own_writes_are_seen(true).await;
}

async fn own_writes_are_seen(batched: bool) {
    const WRITES: u64 = 2_000;
    let shelf = Shelf::default();
    shelf.write(7, "0");
    let gate = Gate::new(memory_in_real_time());
    gate.dawdle(3);
    let cache = builder(&shelf, Arc::clone(&gate) as _).rt(Rt::new());
    let tiers = larder_tiers::Tiers::default();
    let cache = cache.tiers(tiers).build().await.unwrap();
    let (mut request, tally) = counting(&cache);
    if batched {
        request = request.batched();
    }
    let confirmed = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let (request, confirmed) = (request.clone(), Arc::clone(&confirmed));
        let done = Arc::clone(&done);
        readers.spawn(async move {
            let mut changes = 0;
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                let least = confirmed.load(Ordering::SeqCst);
                let version: u64 = read(&request, 7).await.unwrap().parse().unwrap();
                assert!(
                    version >= least,
                    "{version} was read after {least} was flushed"
                );
                changes += u64::from(version != last);
                last = version;
                tokio::task::yield_now().await;
            }
            changes
        });
    }
    for version in 1..=WRITES {
        shelf.write(7, &version.to_string());
        request.cache().flush::<Name>([7]).await.unwrap();
        confirmed.store(version, Ordering::SeqCst);
        for _ in 0..fastrand::u32(0..4) {
            tokio::task::yield_now().await;
        }
    }
    done.store(true, Ordering::SeqCst);
    let seen: u64 = readers.join_all().await.iter().sum();
    assert!(seen > WRITES / 10, "only {seen} versions were seen at all");
    assert!(tally.tier_hits() > 0);
    let stats = &cache.stats().accessors[0];
    assert!(stats.tier_too_late > 0, "no read was ever overtaken");
    drop(request);
    let entries = || cache.stats().tiers.unwrap().request.entries;
    for _ in 0..1_000 {
        if entries() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} entries stayed when the request was over", entries());
}

fn memory_in_real_time() -> Arc<dyn larder_core::Backend> {
    let config = larder_backends::MemoryConfig::default();
    Arc::new(larder_backends::Memory::new(config, Rt::new()).unwrap())
}
