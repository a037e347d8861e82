//! Builds that fail: everyone who waits learns why, nothing of it is kept, and the next one takes its time.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{Cache, Lifetime, LoadError, get, get_many};
use tokio::time::Instant;

use super::stage::{Chart, Map, Name, builder, built, cache, quiet, said, text, tiered};
use crate::read::shelf::{Broken, Shelf, memory};

tiered!(
    /// A build that may take a second.
    Hurried = "hurried": DeployTier, Unstored, Lifetime::Immutable,
    LOAD_TIMEOUT: Duration = Duration::from_secs(1)
);

/// What the pause after so many failures may be, in milliseconds.
fn pause(failures: u32) -> RangeInclusive<u128> {
    let longest = (100 << (failures - 1)).min(5_000);
    longest * 3 / 4..=longest
}

/// How long a read took, in milliseconds of the paused clock; it fails if `fails`.
async fn timed(cache: &Cache<Shelf>, fails: bool) -> u128 {
    let start = Instant::now();
    let answer = get::<Map>(cache, &1).await;
    assert_eq!(answer.is_err(), fails, "{answer:?}");
    start.elapsed().as_millis()
}

#[tokio::test(start_paused = true)]
async fn a_failure_reaches_everyone_who_waits_and_is_not_kept() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.hold();
    shelf.fail();
    let readers: Vec<_> = (0..10)
        .map(|reader| {
            let cache = cache.clone();
            tokio::spawn(async move {
                match reader % 2 {
                    0 => get::<Map>(&cache, &1).await.map(said),
                    _ => get_many::<Map>(&cache, [1]).await.map(|_| None),
                }
            })
        })
        .collect();
    shelf.held().await;
    quiet().await;
    shelf.let_go();
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert_eq!(error.loader(), Some(&Broken));
    }
    assert_eq!(shelf.loads(), 1);
    shelf.recover();
    assert_eq!(said(get::<Map>(&cache, &1).await.unwrap()), text(1));
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_waits_about_twice_as_long_as_the_one_before_up_to_five_seconds() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.fail();
    assert_eq!(timed(&cache, true).await, 0);
    for failures in 1..=8 {
        let waited = timed(&cache, true).await;
        let expected = pause(failures);
        assert!(expected.contains(&waited), "{waited} isn't in {expected:?}");
    }
    shelf.recover();
    let waited = timed(&cache, false).await;
    assert!(pause(9).contains(&waited), "{waited}");
    assert_eq!(timed(&cache, false).await, 0);
    assert_eq!(shelf.loads(), 10);
}

#[tokio::test(start_paused = true)]
async fn time_that_passed_anyway_is_not_waited_for_again() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.fail();
    timed(&cache, true).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(timed(&cache, true).await, 0);
}

/// What has no row was built as far as it can be, and isn't kept: so the next build may fail again, for the first time.
#[tokio::test(start_paused = true)]
async fn a_success_ends_the_row_of_failures() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    shelf.fail();
    for _ in 0..4 {
        timed(&cache, true).await;
    }
    shelf.recover();
    timed(&cache, false).await;
    assert_eq!(timed(&cache, false).await, 0);
    shelf.fail();
    assert_eq!(timed(&cache, true).await, 0);
    let waited = timed(&cache, true).await;
    assert!(pause(1).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn other_keys_and_other_data_sets_do_not_wait() {
    let shelf = Shelf::of([1, 2]);
    let cache = cache(&shelf).await;
    shelf.fail();
    for _ in 0..4 {
        timed(&cache, true).await;
    }
    shelf.recover();
    let start = Instant::now();
    assert_eq!(said(get::<Map>(&cache, &2).await.unwrap()), text(2));
    assert_eq!(said(get::<Chart>(&cache, &1).await.unwrap()), text(1));
    assert_eq!(start.elapsed(), Duration::ZERO);
    get_many::<Map>(&cache, [1, 2]).await.unwrap();
    let waited = start.elapsed().as_millis();
    assert!(pause(4).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn what_only_requests_keep_is_loaded_again_at_once() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let request = larder_tiers::Request::begin(&cache);
    shelf.fail();
    let start = Instant::now();
    for _ in 0..5 {
        get::<Name>(&request, &7).await.unwrap_err();
    }
    shelf.recover();
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn readers_that_come_during_the_pause_share_the_next_attempt() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.fail();
    timed(&cache, true).await;
    let start = Instant::now();
    let mut readers = Vec::new();
    for _ in 0..10 {
        let cache = cache.clone();
        readers.push(tokio::spawn(async move { get::<Map>(&cache, &1).await }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shelf.recover();
    for reader in readers {
        assert_eq!(said(reader.await.unwrap().unwrap()), text(1));
    }
    let waited = start.elapsed().as_millis();
    assert!(pause(1).contains(&waited), "{waited}");
    assert_eq!(shelf.loads(), 2);
}

/// A bypassed reader shares no load that is running. It waits for it, and then for the pause that it leaves.
#[tokio::test(start_paused = true)]
async fn a_build_that_waited_for_one_that_failed_makes_a_pause_too() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    cache.bypass(true);
    shelf.hold();
    shelf.fail();
    let reading = || {
        let cache = cache.clone();
        tokio::spawn(async move { get::<Map>(&cache, &1).await })
    };
    let first = reading();
    shelf.held().await;
    let second = reading();
    quiet().await;
    let start = Instant::now();
    shelf.let_go();
    first.await.unwrap().unwrap_err();
    shelf.recover();
    assert_eq!(said(second.await.unwrap().unwrap()), text(1));
    let waited = start.elapsed().as_millis();
    assert!(pause(1).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.panic();
    let error = get::<Map>(&cache, &1).await.unwrap_err();
    assert!(matches!(error, LoadError::Panicked { accessor: "map" }));
    shelf.recover();
    let waited = timed(&cache, false).await;
    assert!(pause(1).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_is_a_failure() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let start = Instant::now();
    let error = get::<Hurried>(&cache, &1).await.unwrap_err();
    assert!(matches!(error, LoadError::Timeout { .. }), "{error:?}");
    assert_eq!(start.elapsed().as_millis(), 1_000);
    shelf.let_go();
    assert_eq!(said(get::<Hurried>(&cache, &1).await.unwrap()), text(1));
    let waited = start.elapsed().as_millis() - 1_000;
    assert!(pause(1).contains(&waited), "{waited}");
}

/// Nobody tried, so nothing failed.
#[tokio::test(start_paused = true)]
async fn a_build_that_found_no_place_leaves_no_pause() {
    let shelf = Shelf::of([1, 2]);
    let queue = Duration::from_secs(2);
    let cache = builder(&shelf, memory()).max_loads(1).load_queue(queue);
    let cache = built(cache.tiers(larder_tiers::Tiers::default())).await;
    shelf.hold();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Map>(&cache, &2).await }
    });
    shelf.held().await;
    let error = get::<Map>(&cache, &1).await.unwrap_err();
    assert!(matches!(error, LoadError::Overloaded { .. }), "{error:?}");
    shelf.let_go();
    first.await.unwrap().unwrap();
    assert_eq!(timed(&cache, false).await, 0);
}

#[tokio::test(start_paused = true)]
async fn close_ends_the_wait_for_the_next_attempt() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.fail();
    for _ in 0..6 {
        timed(&cache, true).await;
    }
    let start = Instant::now();
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Map>(&cache, &1).await }
    });
    quiet().await;
    cache.close(Duration::from_secs(60)).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(error, LoadError::Closed { accessor: "map" }),
        "{error:?}"
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(shelf.loads(), 6);
    let map = &cache.stats().accessors[0];
    assert_eq!(map.load_errors, 6, "the last one wasn't tried");
    let error = get::<Map>(&cache, &1).await.unwrap_err();
    assert!(matches!(error, LoadError::Closed { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_a_build_that_failed_is_given_back() {
    let shelf = Shelf::of([1]);
    let store = memory();
    let here = super::stage::cache_on(&shelf, Arc::clone(&store)).await;
    let elsewhere = super::stage::cache_on(&shelf, store).await;
    shelf.fail();
    get::<Chart>(&here, &1).await.unwrap_err();
    quiet().await;
    shelf.recover();
    let start = Instant::now();
    assert_eq!(said(get::<Chart>(&elsewhere, &1).await.unwrap()), text(1));
    assert_eq!(start.elapsed(), Duration::ZERO, "it waited for nobody");
}
