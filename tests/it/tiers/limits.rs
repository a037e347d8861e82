//! Bounds in bytes and in time: what doesn't fit, or is too old, is answered all the same.

use std::time::Duration;

use larder_core::{Cache, get, get_many};
use larder_tiers::{Request, Tiers, TiersConfig};
use tokio::task::JoinSet;
use tokio::time::advance;

use super::stage::{Draft, Map, Name, builder, built, cache, counting, quiet, said, text};
use crate::read::shelf::{Shelf, memory};

/// What a row of these tests takes at least.
const ROW: usize = 1_000;

/// Budget and share of one request, in bytes.
pub(super) fn bounds(budget: u64, per_request: u64) -> TiersConfig {
    TiersConfig {
        budget,
        per_request,
        ..TiersConfig::default()
    }
}

/// Rows that are large enough for a few of them to fill a budget.
fn large(ids: impl IntoIterator<Item = u64>) -> Shelf {
    let shelf = Shelf::default();
    for id in ids {
        shelf.write(id, &row(id));
    }
    shelf
}

fn row(id: u64) -> String {
    format!("{id:0ROW$}")
}

async fn bounded(shelf: &Shelf, budget: u64, per_request: u64) -> (Cache<Shelf>, Tiers) {
    let tiers = Tiers::new(bounds(budget, per_request)).unwrap();
    let cache = built(builder(shelf, memory()).tiers(tiers.clone())).await;
    (cache, tiers)
}

#[tokio::test(start_paused = true)]
async fn beyond_the_share_of_a_request_values_are_served_and_not_kept() {
    let shelf = large(0..20);
    let (cache, tiers) = bounded(&shelf, 1 << 20, 8 * 1_024).await;
    let (request, tally) = counting(&cache);
    for _ in 0..2 {
        let batch = get_many::<Draft>(&request, 0..20).await.unwrap();
        for (id, text) in batch.iter() {
            assert_eq!(text.unwrap().0, row(*id));
        }
    }
    let kept = tally.tier_hits();
    assert!((3..8).contains(&kept), "{kept} rows in 8 KiB");
    let stats = tiers.stats();
    assert_eq!(stats.request.entries, kept);
    assert!(stats.request.bytes >= kept * ROW as u64);
    assert!(stats.request.bytes <= 8 * 1_024, "{stats:?}");
    let refused = cache.stats().accessors[0].tier_refused;
    assert_eq!(refused, (20 - kept) * 2);
    assert_eq!(stats.request.refused, refused);

    let (next, tally) = counting(&cache);
    get_many::<Draft>(&next, [18, 19]).await.unwrap();
    get_many::<Draft>(&next, [18, 19]).await.unwrap();
    assert_eq!(tally.tier_hits(), 2, "each request has its own share");
}

#[tokio::test(start_paused = true)]
async fn dropped_keys_make_room_for_others() {
    let shelf = large(0..20);
    let (cache, _tiers) = bounded(&shelf, 1 << 20, 8 * 1_024).await;
    let (request, tally) = counting(&cache);
    get_many::<Draft>(&request, 0..20).await.unwrap();
    request.cache().flush::<Draft>(0..20).await.unwrap();
    get::<Draft>(&request, &19).await.unwrap();
    get::<Draft>(&request, &19).await.unwrap();
    assert_eq!(tally.tier_hits(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_stay_within_the_budget_together() {
    const BUDGET: u64 = 256 * 1_024;
    let shelf = large(0..50);
    let (cache, tiers) = bounded(&shelf, BUDGET, BUDGET).await;
    let mut requests = Vec::new();
    for _ in 0..40 {
        let request = Request::begin(&cache);
        let batch = get_many::<Draft>(&request, 0..50).await.unwrap();
        assert!(batch.iter().all(|(id, text)| text.unwrap().0 == row(*id)));
        let stats = tiers.stats();
        assert!(stats.request.bytes <= BUDGET, "{stats:?}");
        requests.push(request);
    }
    let stats = tiers.stats().request;
    assert!(stats.bytes > BUDGET / 4, "the budget is used: {stats:?}");
    assert!(stats.refused + stats.evicted > 0, "{stats:?}");
    assert!(stats.entries < 40 * 50);
    drop(requests);
    quiet().await;
    let stats = tiers.stats().request;
    assert_eq!((stats.entries, stats.bytes), (0, 0));

    let (request, tally) = counting(&cache);
    get_many::<Draft>(&request, 0..50).await.unwrap();
    get_many::<Draft>(&request, 0..50).await.unwrap();
    assert_eq!(tally.tier_hits(), 50, "the room is there again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_of_many_threads_stay_within_the_budget_and_leave_nothing() {
    const BUDGET: u64 = 256 * 1_024;
    let shelf = large(0..50);
    let store = larder_backends::Memory::new(
        larder_backends::MemoryConfig::default(),
        larder_core::Rt::new(),
    );
    let tiers = Tiers::new(bounds(BUDGET, BUDGET / 4)).unwrap();
    let builder = builder_in_real_time(&shelf, store.unwrap());
    let cache = built(builder.tiers(tiers.clone())).await;
    let mut visits = JoinSet::new();
    for _ in 0..8 {
        let (cache, tiers) = (cache.clone(), tiers.clone());
        visits.spawn(async move {
            for _ in 0..50 {
                let request = Request::begin(&cache);
                for _ in 0..3 {
                    let first = fastrand::u64(0..40);
                    let batch = get_many::<Name>(&request, first..first + 10).await.unwrap();
                    assert!(batch.iter().all(|(id, text)| text.unwrap().0 == row(*id)));
                    let stats = tiers.stats();
                    // What is about to be refused counts for a moment: one value of each thread.
                    let most = BUDGET + 8 * 2 * ROW as u64;
                    assert!(stats.request.bytes <= most, "{stats:?}");
                }
            }
        });
    }
    visits.join_all().await;
    for _ in 0..1_000 {
        if tiers.stats().request.entries == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let stats = tiers.stats().request;
    assert_eq!((stats.entries, stats.bytes), (0, 0));
}

fn builder_in_real_time(
    shelf: &Shelf,
    store: larder_backends::Memory,
) -> larder_core::CacheBuilder<Shelf> {
    builder(shelf, std::sync::Arc::new(store)).rt(larder_core::Rt::new())
}

#[tokio::test(start_paused = true)]
async fn a_value_of_the_deploy_tier_that_gave_way_is_built_again() {
    let shelf = large(0..200);
    let (cache, tiers) = bounded(&shelf, 64 * 1_024, 1_024).await;
    for id in 0..200 {
        let map = get::<Map>(&cache, &id).await.unwrap().unwrap();
        assert_eq!(map.0, row(id));
        let stats = tiers.stats();
        assert!(stats.deploy.bytes <= stats.budget, "{stats:?}");
    }
    let stats = tiers.stats().deploy;
    assert!(stats.evicted + stats.refused > 100, "{stats:?}");
    assert!(stats.entries > 10, "{stats:?}");
    let before = shelf.loads();
    for id in 0..200 {
        let map = get::<Map>(&cache, &id).await.unwrap().unwrap();
        assert_eq!(map.0, row(id));
    }
    assert!(shelf.loads() > before + 100);
}

#[tokio::test(start_paused = true)]
async fn a_value_larger_than_the_budget_is_served_and_not_kept() {
    let shelf = Shelf::default();
    shelf.write(1, &"x".repeat(100_000));
    let (cache, tiers) = bounded(&shelf, 64 * 1_024, 64 * 1_024).await;
    let request = Request::begin(&cache);
    for loads in 1..=3 {
        let map = get::<Map>(&request, &1).await.unwrap().unwrap();
        let draft = get::<Draft>(&request, &1).await.unwrap().unwrap();
        assert_eq!((map.0.len(), draft.0.len()), (100_000, 100_000));
        assert_eq!(shelf.loads(), 2 * loads);
    }
    let stats = tiers.stats();
    assert_eq!((stats.request.entries, stats.deploy.entries), (0, 0));
    assert_eq!((stats.request.refused, stats.deploy.refused), (3, 3));
}

/// Requests come and go by the thousand, and what was expensive to build stays.
#[tokio::test(start_paused = true)]
async fn requests_do_not_drive_out_what_the_deploy_tier_has() {
    let shelf = large(0..50);
    let (cache, tiers) = bounded(&shelf, 128 * 1_024, 128 * 1_024).await;
    for id in 0..5 {
        get::<Map>(&cache, &id).await.unwrap();
    }
    let built = shelf.loads();
    let mut requests = Vec::new();
    for _ in 0..20 {
        let request = Request::begin(&cache);
        get_many::<Name>(&request, 0..50).await.unwrap();
        requests.push(request);
    }
    assert_eq!(tiers.stats().deploy.entries, 5);
    let loads = shelf.loads();
    for id in 0..5 {
        get::<Map>(&cache, &id).await.unwrap();
    }
    assert_eq!((built, shelf.loads()), (5, loads));
}

#[tokio::test(start_paused = true)]
async fn a_request_reads_again_what_it_has_kept_for_half_a_minute() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    assert_eq!(get::<Name>(&request, &9).await.unwrap(), None);
    shelf.write(7, "new");
    shelf.write(9, "there now");
    cache.flush::<Name>([7, 9]).await.unwrap();

    advance(Duration::from_millis(29_900)).await;
    get::<Name>(&request, &8).await.unwrap();
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    assert_eq!(get::<Name>(&request, &9).await.unwrap(), None);
    assert_eq!(tally.tier_hits(), 2);
    advance(Duration::from_millis(200)).await;
    for _ in 0..2 {
        let name = said(get::<Name>(&request, &7).await.unwrap());
        assert_eq!(name.as_deref(), Some("new"));
        let name = said(get::<Name>(&request, &9).await.unwrap());
        assert_eq!(name.as_deref(), Some("there now"));
    }
    assert_eq!(tally.tier_hits(), 4, "what was read again is kept again");
    assert_eq!(said(get::<Name>(&request, &8).await.unwrap()), text(8));
    assert_eq!(tally.tier_hits(), 5, "each value has its own age");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_is_served_nothing_older_than_the_age_it_was_given() {
    let shelf = Shelf::of([7]);
    let config = TiersConfig {
        max_age: Duration::from_secs(2),
        ..TiersConfig::default()
    };
    let tiers = Tiers::new(config).unwrap();
    let cache = built(builder(&shelf, memory()).tiers(tiers)).await;
    let request = Request::begin(&cache);
    for second in 0..20_u64 {
        shelf.write(7, &second.to_string());
        cache.flush::<Name>([7]).await.unwrap();
        let read = said(get::<Name>(&request, &7).await.unwrap()).unwrap();
        let read: u64 = read.parse().unwrap();
        assert_eq!(read, second / 2 * 2, "in second {second}");
        advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_deploy_tier_has_does_not_age() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    get::<Map>(&cache, &1).await.unwrap();
    advance(Duration::from_secs(365 * 24 * 3600)).await;
    get::<Map>(&cache, &1).await.unwrap();
    assert_eq!(shelf.loads(), 1);
}
