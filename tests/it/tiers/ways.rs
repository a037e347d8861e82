//! Ways around the tiers, and the end of a request.

use std::sync::Arc;

use larder_core::{Direct, Reader, Route, ScopedReader, Source, get, get_many, refresh, uncached};
use larder_tiers::Request;

use super::stage::{
    Badge, Cost, Draft, Map, Name, all, cache, cache_on, check, counting, quiet, rows, said, text,
};
use crate::read::gate::Gate;
use crate::read::shelf::{Shelf, memory};

#[tokio::test(start_paused = true)]
async fn a_bypassed_request_neither_asks_its_tier_nor_keeps() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    tally.settled().await;
    let before = tally.trips();
    shelf.write(7, "new");
    cache.bypass(true);
    for loads in 2..=4 {
        let batch = get_many::<Name>(&request, [7, 8]).await.unwrap();
        assert_eq!(all(&batch), [(7, Some("new".into())), (8, text(8))]);
        assert_eq!(tally.loads(), loads);
    }
    assert_eq!((tally.trips(), tally.tier_hits()), (before, 0));
    cache.bypass(false);
    get::<Name>(&request, &8).await.unwrap();
    assert_eq!((tally.loads(), tally.tier_hits()), (5, 0), "8 wasn't kept");
}

#[tokio::test(start_paused = true)]
async fn one_data_set_can_be_bypassed() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    get::<Badge>(&request, &7).await.unwrap();
    assert!(cache.bypass_accessor("name", true));
    get::<Name>(&request, &7).await.unwrap();
    get::<Badge>(&request, &7).await.unwrap();
    assert_eq!((tally.loads(), tally.tier_hits()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn bypass_leaves_the_deploy_tier_alone() {
    let shelf = Shelf::of([1, 2]);
    let cache = cache(&shelf).await;
    get::<Map>(&cache, &1).await.unwrap();
    cache.bypass(true);
    for _ in 0..2 {
        let batch = get_many::<Map>(&cache, [1, 2]).await.unwrap();
        assert_eq!(all(&batch), rows([1, 2]));
    }
    assert_eq!(shelf.asked(), [[1], [2]]);
}

#[tokio::test(start_paused = true)]
async fn refresh_replaces_what_the_request_and_the_store_have() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    tally.settled().await;
    shelf.write(7, "new");
    let refreshed = refresh::<Name>(&request, &7).await.unwrap();
    assert_eq!(said(refreshed).as_deref(), Some("new"));
    tally.settled().await;
    let (trips, other) = (tally.trips(), Request::begin(&cache));
    for reader in [&request, &other] {
        let name = get::<Name>(reader, &7).await.unwrap();
        assert_eq!(said(name).as_deref(), Some("new"));
    }
    assert_eq!((tally.trips(), tally.tier_hits()), (trips, 1));
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn refresh_replaces_a_value_that_is_never_stored() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    let request = Request::begin(&cache);
    get::<Draft>(&request, &7).await.unwrap();
    shelf.write(7, "new");
    let refreshed = refresh::<Draft>(&request, &7).await.unwrap();
    assert_eq!(said(refreshed).as_deref(), Some("new"));
    let kept = get::<Draft>(&request, &7).await.unwrap();
    assert_eq!(said(kept).as_deref(), Some("new"));
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_a_refresh_overtook_is_not_kept() {
    let shelf = Shelf::of([7]);
    let gate = Gate::new(memory());
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (first, tally) = counting(&cache);
    get::<Name>(&first, &7).await.unwrap();
    tally.settled().await;
    let request = Request::begin(&cache);
    gate.answered_gets().close();
    let early = tokio::spawn({
        let request = request.clone();
        async move { said(get::<Name>(&request, &7).await.unwrap()) }
    });
    gate.answered_gets().arrived().await;
    shelf.write(7, "new");
    let late = tokio::spawn({
        let request = request.clone();
        async move { said(refresh::<Name>(&request, &7).await.unwrap()) }
    });
    gate.answered_gets().arrived().await;
    gate.answered_gets().open();
    assert_eq!(early.await.unwrap(), text(7));
    assert_eq!(late.await.unwrap().as_deref(), Some("new"));
    let kept = get::<Name>(&request, &7).await.unwrap();
    assert_eq!(said(kept).as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn uncached_neither_asks_the_request_nor_keeps() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    tally.settled().await;
    shelf.write(7, "new");
    let now = uncached::<Name>(&request, &7).await.unwrap();
    assert_eq!(said(now).as_deref(), Some("new"));
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    uncached::<Name>(&request, &8).await.unwrap();
    get::<Name>(&request, &8).await.unwrap();
    tally.settled().await;
    let cost = Cost {
        trips: 4,
        keys: 5,
        tier_hits: 1,
        hits: 0,
        loads: 4,
    };
    check(&tally, cost);
}

#[tokio::test(start_paused = true)]
async fn a_connection_neither_asks_a_tier_nor_keeps() {
    let shelf = Shelf::of([1, 7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &7).await.unwrap();
    get::<Map>(&request, &1).await.unwrap();
    tally.settled().await;
    let before = (tally.trips(), tally.keys());
    shelf.write(7, "new");
    let mut conn = shelf.acquire().await.unwrap();
    let own = get::<Name>(Direct(&mut *conn), &7).await.unwrap();
    assert_eq!(said(own).as_deref(), Some("new"));
    let own = get_many::<Name>(Direct(&mut *conn), [7, 9]).await.unwrap();
    assert_eq!(all(&own), [(7, Some("new".into())), (9, None)]);
    let map = get::<Map>(Direct(&mut *conn), &1).await.unwrap();
    assert_eq!(said(map), text(1));
    assert_eq!((tally.trips(), tally.keys()), before);
    assert_eq!(shelf.loads(), 5);
    assert_eq!(said(get::<Name>(&request, &7).await.unwrap()), text(7));
    get::<Name>(&request, &9).await.unwrap();
    assert_eq!(shelf.loads(), 6, "the absence of 9 wasn't kept");
}

/// What an application makes of a request.
struct Visit {
    request: Request<Shelf>,
}

impl<'a> Reader<'a, Shelf> for &'a Visit {
    fn route(self) -> Route<'a, Shelf> {
        self.request.route()
    }
}

impl<'a> ScopedReader<'a, Shelf> for &'a Visit {}

#[tokio::test(start_paused = true)]
async fn a_type_that_holds_a_request_reads_like_it() {
    let shelf = Shelf::of([1, 7]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    let visit = Visit { request };
    for _ in 0..2 {
        assert_eq!(said(get::<Name>(&visit, &7).await.unwrap()), text(7));
        assert_eq!(said(get::<Map>(&visit, &1).await.unwrap()), text(1));
    }
    assert_eq!((tally.tier_hits(), shelf.loads()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_read_that_its_request_does_not_live_to_see_is_answered_and_not_kept() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let (request, tally) = counting(&cache);
    get::<Name>(&request, &8).await.unwrap();
    shelf.hold();
    let read = tokio::spawn({
        let request = request.clone();
        async move { all(&get_many::<Name>(&request, [7, 8]).await.unwrap()) }
    });
    shelf.held().await;
    request.end();
    shelf.let_go();
    assert_eq!(read.await.unwrap(), rows([7, 8]));
    let stats = cache.stats();
    assert_eq!(stats.accessors[0].tier_too_late, 1);
    quiet().await;
    assert_eq!(cache.stats().tiers.unwrap().request.entries, 0);

    let hits = tally.tier_hits();
    for _ in 0..2 {
        let batch = get_many::<Name>(&request, [7, 8]).await.unwrap();
        assert_eq!(all(&batch), rows([7, 8]), "who still asks is answered");
    }
    assert_eq!(tally.tier_hits(), hits);
    assert_eq!(cache.stats().tiers.unwrap().request.entries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_with_its_last_clone() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let entries = || cache.stats().tiers.unwrap().request.entries;
    let request = Request::begin(&cache);
    get_many::<Name>(&request, [7, 8]).await.unwrap();
    let clone = request.clone();
    drop(request);
    quiet().await;
    assert_eq!(entries(), 2);
    drop(clone);
    quiet().await;
    assert_eq!(entries(), 0);
    assert_eq!(cache.stats().tiers.unwrap().request.bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_under_way_does_not_keep_a_request_that_is_over() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    let entries = || cache.stats().tiers.unwrap().request.entries;
    let request = Request::begin(&cache);
    get::<Name>(&request, &8).await.unwrap();
    assert_eq!(entries(), 1);
    shelf.hold();
    let read = tokio::spawn(async move { get::<Name>(&request, &7).await.is_ok() });
    shelf.held().await;
    read.abort();
    assert!(read.await.unwrap_err().is_cancelled());
    quiet().await;
    assert_eq!(entries(), 0);
    shelf.let_go();
}
