//! Single reads of one request that become one bulk read: the tier's rules hold for each of them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;
use larder_core::{get, get_many};
use larder_tiers::Request;

use super::stage::{
    Badge, Cost, Draft, Map, Name, builder, built, cache, cache_on, check, counting, quiet, said,
    text,
};
use crate::read::gate::Gate;
use crate::read::shelf::{Shelf, memory};

async fn read(request: &Request<Shelf>, id: u64) -> Option<String> {
    said(get::<Name>(request, &id).await.unwrap())
}

async fn read_all(
    request: &Request<Shelf>,
    ids: impl IntoIterator<Item = u64>,
) -> Vec<Option<String>> {
    join_all(ids.into_iter().map(|id| read(request, id))).await
}

/// A read that has joined a batch, which isn't sent yet.
async fn joined<'a>(
    request: &'a Request<Shelf>,
    id: u64,
) -> Pin<Box<dyn Future<Output = Option<String>> + Send + 'a>> {
    let mut read = Box::pin(read(request, id));
    let ready = std::future::poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_ready()));
    assert!(!ready.await);
    read
}

fn new() -> Option<String> {
    Some("new".to_owned())
}

#[tokio::test(start_paused = true)]
async fn only_what_the_request_has_not_is_asked_for() {
    let shelf = Shelf::of(0..9);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    assert_eq!(read_all(&request, [1, 2]).await, [text(1), text(2)]);
    let again = read_all(&request, [1, 3, 2, 4, 3]).await;
    assert_eq!(again, [1, 3, 2, 4, 3].map(text));
    assert_eq!(shelf.asked(), [[1, 2], [3, 4]]);
    tally.settled().await;
    let cost = Cost {
        trips: 4,
        keys: 6,
        tier_hits: 2,
        hits: 0,
        loads: 2,
    };
    check(&tally, cost);
}

#[tokio::test(start_paused = true)]
async fn a_batch_answers_one_value_for_all_of_the_request() {
    let cache = cache(&Shelf::of([7, 8])).await;
    let request = Request::begin(&cache).batched();
    let clone = request.clone();
    let (one, other, _) = tokio::join!(
        get::<Name>(&request, &7),
        get::<Name>(&clone, &7),
        get::<Name>(&clone, &8)
    );
    let later = get::<Name>(&request, &7).await.unwrap().unwrap();
    let (one, other) = (one.unwrap().unwrap(), other.unwrap().unwrap());
    assert!(Arc::ptr_eq(&one, &other) && Arc::ptr_eq(&one, &later));
    assert_eq!(cache.stats().accessors[0].loads, 1);
}

#[tokio::test(start_paused = true)]
async fn two_requests_never_share_a_batch() {
    let shelf = Shelf::of(0..9);
    let without_tiers = built(builder(&shelf, memory())).await;
    for cache in [cache(&shelf).await, without_tiers] {
        let before = shelf.loads();
        let batched = cache.batched();
        let [one, other] = [(); 2].map(|()| Request::begin(&batched));
        let clone = one.clone();
        tokio::join!(
            read(&one, 1),
            read(&other, 2),
            read(&clone, 3),
            read(&other, 4)
        );
        let mut asked = shelf.asked().split_off(before);
        asked.sort();
        assert_eq!(asked, [[1, 3], [2, 4]]);
    }
}

/// The flush was acknowledged while the batch was open.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_flushed_before_its_batch_is_sent_is_read_new_and_kept() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (first, filled) = counting(&cache);
    read_all(&first, [7, 8]).await;
    filled.settled().await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    let (one, other) = (joined(&request, 7).await, joined(&request, 8).await);
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    assert_eq!(tokio::join!(one, other), (new(), text(8)));
    let hits = tally.tier_hits();
    assert_eq!(read_all(&request, [7, 8]).await, [new(), text(8)]);
    assert_eq!(tally.tier_hits() - hits, 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_flushed_while_its_batch_is_read_is_not_kept() {
    let shelf = Shelf::of([7, 8]);
    let gate = Gate::new(memory());
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (first, filled) = counting(&cache);
    read_all(&first, [7, 8]).await;
    filled.settled().await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    gate.answered_gets().close();
    let early = tokio::spawn({
        let request = request.clone();
        async move { read_all(&request, [7, 8]).await }
    });
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    request.cache().flush::<Name>([7]).await.unwrap();
    gate.answered_gets().open();
    assert_eq!(
        early.await.unwrap(),
        [text(7), text(8)],
        "they began before the write"
    );
    assert_eq!(cache.stats().accessors[0].tier_too_late, 1);
    assert_eq!(read_all(&request, [7, 8]).await, [new(), text(8)]);
    assert_eq!(tally.tier_hits(), 1);
}

/// Its flush wasn't confirmed, so that the store may have what is old.
#[tokio::test(start_paused = true)]
async fn a_key_that_is_distrusted_before_its_batch_is_sent_is_read_past_the_store() {
    let shelf = Shelf::of([7, 8]);
    let gate = Gate::new(memory());
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (first, filled) = counting(&cache);
    read_all(&first, [7, 8]).await;
    filled.settled().await;
    let request = Request::begin(&cache).batched();
    let (one, other) = (joined(&request, 7).await, joined(&request, 8).await);
    shelf.write(7, "new");
    gate.set_deaf_to_deletes(true);
    request.cache().flush::<Name>([7]).await.unwrap_err();
    assert_eq!(tokio::join!(one, other), (new(), text(8)));
    assert_eq!(shelf.asked().last(), Some(&vec![7]));
    assert_eq!(cache.stats().accessors[0].tier_distrusted, 1);
}

/// Within a request a key is as fresh as its first read.
#[tokio::test(start_paused = true)]
async fn what_is_kept_before_a_batch_is_sent_is_taken_from_the_tier() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    let (one, other) = (joined(&request, 7).await, joined(&request, 8).await);
    get_many::<Name>(&request, [7, 8]).await.unwrap();
    // Not flushed: nobody is promised to see it.
    shelf.write(7, "new");
    assert_eq!(tokio::join!(one, other), (text(7), text(8)));
    assert_eq!((shelf.loads(), tally.tier_hits()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_batch_had_from_the_store_is_kept() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (first, filled) = counting(&cache);
    read_all(&first, [7]).await;
    filled.settled().await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    shelf.fail();
    let (hit, failed) = tokio::join!(get::<Name>(&request, &7), get::<Name>(&request, &8));
    assert_eq!(said(hit.unwrap()), text(7));
    assert!(failed.is_err());
    assert_eq!(read(&request, 7).await, text(7));
    assert_eq!(tally.tier_hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ended_batches_and_keeps_nothing() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let request = request.batched();
    let (one, other) = (joined(&request, 7).await, joined(&request, 8).await);
    request.end();
    assert_eq!(tokio::join!(one, other), (text(7), text(8)));
    tally.settled().await;
    assert_eq!(read_all(&request, [7, 8]).await, [text(7), text(8)]);
    assert_eq!((tally.trips(), tally.tier_hits()), (3, 0));
}

/// A batch under way, whose callers have all left, doesn't keep the request's values.
#[tokio::test(start_paused = true)]
async fn what_is_kept_goes_with_the_request_and_its_batches() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache).batched();
    read_all(&request, [7, 8]).await;
    let entries = || cache.stats().tiers.unwrap().request.entries;
    assert_eq!(entries(), 2);
    drop(request);
    quiet().await;
    assert_eq!(entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_is_loaded_once() {
    let shelf = Shelf::of(0..9);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache).batched();
    let ids = [0, 1, 2, 3];
    join_all(ids.iter().map(|id| get::<Draft>(&request, id))).await;
    join_all(ids.iter().map(|id| get::<Badge>(&request, id))).await;
    assert_eq!(shelf.asked(), [[0, 1, 2, 3], [0, 1, 2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn what_the_running_code_keeps_is_built_once() {
    let shelf = Shelf::of(0..9);
    let batched = cache(&shelf).await.batched();
    for _ in 0..2 {
        let maps = [1, 2, 1].map(|id| {
            let batched = batched.clone();
            async move { said(get::<Map>(&batched, &id).await.unwrap()) }
        });
        assert_eq!(join_all(maps).await, [text(1), text(2), text(1)]);
    }
    assert_eq!(shelf.asked(), [[1, 2]]);
}
