//! A request as the reader of a cache.

use larder_core::{get, get_many};
use larder_tiers::{Request, Tiers};

use super::support::{PerRequest, Stored, cache, settle};

#[tokio::test]
async fn a_request_reads_each_key_once() {
    let tiers = Tiers::default();
    let (cache, tally) = cache(Some(&tiers)).await.tallied();
    let request = Request::begin(&cache);
    let first = get::<PerRequest>(&request, &1).await.unwrap().unwrap();
    let trips = tally.trips();
    let again = get_many::<PerRequest>(&request, [1, 1, 1]).await.unwrap();
    assert_eq!(tally.trips(), trips);
    assert!(std::sync::Arc::ptr_eq(again.get(&1).unwrap(), &first));
    assert_eq!(request.tally().unwrap().tier_hits(), 1);
    let stats = cache.stats().tiers.unwrap();
    assert_eq!((stats.request.entries, stats.request.hits), (1, 1));
}

#[tokio::test]
async fn a_clone_in_a_task_is_the_same_request() {
    let tiers = Tiers::default();
    let cache = cache(Some(&tiers)).await;
    let request = Request::begin(&cache);
    let task = tokio::spawn({
        let request = request.clone();
        async move { get::<PerRequest>(&request, &1).await.unwrap() }
    });
    let theirs = task.await.unwrap();
    // As if another process had written: this request goes on with what it read.
    cache.flush::<PerRequest>([1]).await.unwrap();
    assert_eq!(get::<PerRequest>(&request, &1).await.unwrap(), theirs);
    let other = Request::begin(&cache);
    assert_ne!(get::<PerRequest>(&other, &1).await.unwrap(), theirs);
}

#[tokio::test]
async fn a_flush_by_the_request_drops_what_it_keeps() {
    let tiers = Tiers::default();
    let cache = cache(Some(&tiers)).await;
    let request = Request::begin(&cache);
    let before = get::<PerRequest>(&request, &1).await.unwrap();
    request.cache().flush::<PerRequest>([1]).await.unwrap();
    assert_ne!(get::<PerRequest>(&request, &1).await.unwrap(), before);
}

#[tokio::test]
async fn it_ends_with_its_last_clone() {
    let tiers = Tiers::default();
    let cache = cache(Some(&tiers)).await;
    let request = Request::begin(&cache);
    let clone = request.clone();
    get::<PerRequest>(&request, &1).await.unwrap();
    drop(request);
    settle().await;
    assert_eq!(tiers.stats().request.entries, 1);
    drop(clone);
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn reads_after_the_end_go_by_way_of_the_store() {
    let tiers = Tiers::default();
    let (cache, tally) = cache(Some(&tiers)).await.tallied();
    let request = Request::begin(&cache);
    let value = get::<PerRequest>(&request, &1).await.unwrap();
    tally.settled().await;
    request.end();
    for _ in 0..2 {
        let trips = tally.trips();
        assert_eq!(get::<PerRequest>(&request, &1).await.unwrap(), value);
        assert_eq!(tally.trips(), trips + 1);
    }
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn a_cache_without_tiers_gives_readers_that_keep_nothing() {
    let (cache, tally) = cache(None).await.tallied();
    let request = Request::begin(&cache);
    let value = get::<Stored>(&request, &1).await.unwrap();
    tally.settled().await;
    request.end();
    assert_eq!(get::<Stored>(&request, &1).await.unwrap(), value);
    assert!(cache.stats().tiers.is_none());
}

#[tokio::test]
async fn caches_may_share_tiers() {
    let tiers = Tiers::default();
    let (one, other) = (cache(Some(&tiers)).await, cache(Some(&tiers)).await);
    let (one, other) = (Request::begin(&one), Request::begin(&other));
    get::<PerRequest>(&one, &1).await.unwrap();
    get_many::<PerRequest>(&other, [1, 2]).await.unwrap();
    assert_eq!(tiers.stats().request.entries, 3);
    assert_eq!(one.cache().stats().tiers.unwrap().request.entries, 3);
    drop(one);
    settle().await;
    assert_eq!(tiers.stats().request.entries, 2);
}
