//! Values of the deploy tier that are built in the background once the cache is there.

use std::time::Duration;

use larder_core::{Cache, get, get_many};
use larder_tiers::Tiers;
use tokio::time::sleep;

use super::stage::{Map, all, builder, built, quiet, rows, said, text};
use crate::read::shelf::{Shelf, memory};

/// A cache that warms these keys.
async fn warmed(shelf: &Shelf, keys: impl IntoIterator<Item = u64>) -> Cache<Shelf> {
    let builder = builder(shelf, memory()).tiers(Tiers::default());
    built(builder.warm::<Map>(keys)).await
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_there_before_what_it_warms() {
    let shelf = Shelf::of(1..=3);
    shelf.hold();
    let cache = warmed(&shelf, 1..=3).await;
    assert_eq!(shelf.loads(), 0);
    shelf.held().await;
    shelf.let_go();
    quiet().await;
    let batch = get_many::<Map>(&cache, 1..=3).await.unwrap();
    assert_eq!(all(&batch), rows(1..=3));
    assert_eq!(shelf.asked(), [[1], [2], [3]]);
    let map = &cache.stats().accessors[0];
    assert_eq!((map.name, map.tier_hits), ("map", 3));
}

#[tokio::test(start_paused = true)]
async fn readers_that_come_meanwhile_wait_for_the_same_build() {
    let shelf = Shelf::of([1, 2]);
    shelf.hold();
    let cache = warmed(&shelf, [1, 2]).await;
    shelf.held().await;
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { said(get::<Map>(&cache, &2).await.unwrap()) }
    });
    quiet().await;
    shelf.let_go();
    assert_eq!(reader.await.unwrap(), text(2));
    assert_eq!(shelf.asked(), [[1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_fails_is_tried_again_until_it_succeeds() {
    let shelf = Shelf::of([1]);
    shelf.fail();
    let cache = warmed(&shelf, [1]).await;
    sleep(Duration::from_secs(20)).await;
    let failed = shelf.loads();
    assert!((3..20).contains(&failed), "{failed} attempts in 20 seconds");
    shelf.panic();
    sleep(Duration::from_secs(20)).await;
    assert!(shelf.loads() > failed, "a panic doesn't end it");
    shelf.recover();
    sleep(Duration::from_secs(20)).await;
    let loads = shelf.loads();
    assert_eq!(said(get::<Map>(&cache, &1).await.unwrap()), text(1));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.loads(), loads, "once it succeeded, it is over");
}

#[tokio::test(start_paused = true)]
async fn what_has_no_row_does_not_keep_it_busy() {
    let shelf = Shelf::of([1]);
    let _cache = warmed(&shelf, [1, 9]).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.asked(), [[1], [9]]);
}

#[tokio::test(start_paused = true)]
async fn close_ends_it() {
    let shelf = Shelf::of([1]);
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let one = warmed(&shelf, []).await;
    quiet().await;
    // What a cache that warms nothing has running; it stays, so that only the other one's tasks come and go.
    let of_one = tasks();
    shelf.fail();
    let cache = warmed(&shelf, [1]).await;
    sleep(Duration::from_secs(10)).await;
    // One more attempt fails, and the next is a second away.
    shelf.hold();
    shelf.held().await;
    shelf.let_go();
    quiet().await;
    let before = tokio::time::Instant::now();
    cache.close(Duration::from_secs(1)).await;
    quiet().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    // What retries flushes ends with its cache, too.
    assert_eq!(tasks(), 2 * of_one - 1, "nothing waits for another attempt");
    let loads = shelf.loads();
    assert!(loads > 0);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.loads(), loads);
    drop((cache, one));
    assert_eq!(shelf.holders(), 1);
}

#[tokio::test(start_paused = true)]
async fn close_before_the_first_attempt_ends_it() {
    let shelf = Shelf::of([1]);
    let cache = warmed(&shelf, [1]).await;
    cache.close(Duration::from_secs(1)).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.loads(), 0);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_keep_a_dropped_cache_alive() {
    let shelf = Shelf::of([1]);
    shelf.fail();
    let cache = warmed(&shelf, [1]).await;
    sleep(Duration::from_secs(10)).await;
    assert!(shelf.holders() > 1, "the cache has its source");
    drop(cache);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(shelf.holders(), 1);
    let loads = shelf.loads();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.loads(), loads);
}

#[tokio::test(start_paused = true)]
async fn warming_nothing_is_nothing() {
    let shelf = Shelf::of([1]);
    let cache = warmed(&shelf, []).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(shelf.loads(), 0);
    assert_eq!(cache.stats().accessors[0].name, "map", "it is registered");
}
