//! What reads answer and what they cost, hit and miss.

use std::time::Duration;

use larder_core::{
    Cache, Direct, FlushOn, Lifetime, Reader, Route, get, get_many, prime, refresh, uncached, warm,
};

use super::shelf::{Broken, Conn, Fact, HOUR, Row, Shelf, cache, dataset, text};

#[tokio::test(start_paused = true)]
async fn a_miss_is_loaded_and_stored_and_then_a_hit() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();

    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    tally.settled().await;
    assert_eq!(
        (tally.trips(), tally.misses(), tally.loads()),
        (2, 1, 1),
        "a look and a fill"
    );

    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    assert_eq!((tally.trips(), tally.hits(), tally.loads()), (3, 1, 1));
    assert_eq!(shelf.asked(), [[7]]);
}

#[tokio::test(start_paused = true)]
async fn a_bulk_read_is_one_trip_warm_and_two_cold() {
    let shelf = Shelf::of(0..1_000);
    let (cache, tally) = cache(&shelf).await.tallied();

    let cold = get_many::<Row>(&cache, 0..1_000).await.unwrap();
    tally.settled().await;
    assert_eq!(
        (tally.trips(), tally.loads(), tally.loaded()),
        (2, 1, 1_000)
    );

    let warm = get_many::<Row>(&cache, 0..1_000).await.unwrap();
    assert_eq!((tally.trips(), tally.loads(), tally.hits()), (3, 1, 1_000));
    assert!(cold.iter().eq(warm.iter()));
    assert!(warm.iter().all(|(id, row)| row == text(*id).as_ref()));
}

#[tokio::test(start_paused = true)]
async fn a_bulk_read_loads_only_what_is_missing_once_per_key_in_the_order_asked() {
    let shelf = Shelf::of(0..10);
    let cache = cache(&shelf).await;
    get_many::<Row>(&cache, [1, 3]).await.unwrap();

    let batch = get_many::<Row>(&cache, [5, 3, 5, 99, 1, 4, 3, 99])
        .await
        .unwrap();
    let answered: Vec<_> = batch.iter().map(|(id, row)| (*id, row.cloned())).collect();
    let asked = [5, 3, 5, 99, 1, 4, 3, 99];
    let expected: Vec<_> = asked.map(|id| (id, text(id).filter(|_| id < 10))).into();
    assert_eq!(answered, expected);
    assert_eq!(shelf.asked(), [vec![1, 3], vec![4, 5, 99]]);
}

#[tokio::test(start_paused = true)]
async fn nothing_asked_costs_nothing() {
    let shelf = Shelf::default();
    let (cache, tally) = cache(&shelf).await.tallied();
    assert!(
        get_many::<Row>(&cache, [0_u64; 0])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!((tally.trips(), shelf.loads()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn single_and_bulk_reads_share_entries() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();
    get_many::<Row>(&cache, [7, 8]).await.unwrap();
    get::<Row>(&cache, &8).await.unwrap();
    assert_eq!(shelf.asked(), [[7], [8]]);
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_cold_keys_are_loaded_in_windows() {
    let shelf = Shelf::of(0..20_000);
    let (cache, tally) = cache(&shelf).await.tallied();
    let batch = get_many::<Row>(&cache, 0..20_000).await.unwrap();
    assert_eq!(batch.into_found().len(), 20_000);
    assert_eq!(
        shelf.asked().iter().map(Vec::len).collect::<Vec<_>>(),
        [2_000; 10]
    );
    tally.settled().await;
    assert_eq!(
        tally.trips(),
        1 + 9 + 10,
        "one look at all, one at each later window, ten fills"
    );
    assert_eq!(cache.stats().accessors[0].fills_stored, 20_000);
}

#[tokio::test(start_paused = true)]
async fn absence_is_remembered_for_its_own_time_and_ends_with_a_flush() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), None);
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), None);
    assert_eq!(shelf.loads(), 1);

    shelf.write(7, "row 7");
    cache.flush::<Row>([7]).await.unwrap();
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));

    assert_eq!(get::<Row>(&cache, &8).await.unwrap(), None);
    shelf.write(8, "row 8");
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(
        get::<Row>(&cache, &8).await.unwrap(),
        text(8),
        "a minute is the most"
    );
}

#[tokio::test(start_paused = true)]
async fn immutable_data_sets_remember_values_and_no_absence() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    assert_eq!(get::<Fact>(&cache, &7).await.unwrap(), None);
    shelf.write(7, "row 7");
    assert_eq!(get::<Fact>(&cache, &7).await.unwrap(), text(7));
    tokio::time::advance(HOUR * 24 * 365).await;
    assert_eq!(get::<Fact>(&cache, &7).await.unwrap(), text(7));
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn errors_reach_the_caller_and_are_never_stored() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.fail();
    let error = get::<Row>(&cache, &7).await.unwrap_err();
    assert_eq!(error.loader(), Some(&Broken));
    assert_eq!(error.to_string(), "the shelf is broken");

    shelf.recover();
    let (cache, tally) = cache.tallied();
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    tally.settled().await;
    assert_eq!(
        tally.trips(),
        2,
        "the failed load gave its lease back, so that nobody waits for it"
    );
}

#[tokio::test(start_paused = true)]
async fn rows_that_nobody_asked_for_are_ignored_and_counted() {
    enum TooMuch {}
    impl larder_core::Dataset for TooMuch {
        const NAME: &'static str = "too_much";
        const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
        type Source = Shelf;
        type Key = u64;
        type Value = String;
        type Form = larder_core::Plain;
        type Tier = larder_core::NoTier;
        type Error = Broken;
        fn flush_on(plan: &mut FlushOn<Self>) {
            plan.by_hand();
        }

        async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Vec<(u64, String)>, Broken> {
            let mut rows = shelf.0.load(&ids).await?;
            rows.push((99, "unasked".into()));
            Ok(rows)
        }
    }
    let cache = cache(&Shelf::of([7])).await;
    assert_eq!(get::<TooMuch>(&cache, &7).await.unwrap(), text(7));
    assert_eq!(cache.stats().accessors[0].loaded_extra, 1);
    assert_eq!(
        get::<TooMuch>(&cache, &99).await.unwrap().as_deref(),
        Some("unasked")
    );
}

#[tokio::test(start_paused = true)]
async fn a_direct_reader_sees_its_own_writes_and_fills_nothing() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();

    let mut transaction = Conn(shelf.clone());
    shelf.write(7, "not committed");
    let direct = get::<Row>(Direct(&mut transaction), &7).await.unwrap();
    assert_eq!(direct.as_deref(), Some("not committed"));
    let direct = get_many::<Row>(Direct(&mut transaction), [8, 7, 8])
        .await
        .unwrap();
    assert_eq!(direct.len(), 3);
    assert_eq!(direct.get(&7).map(String::as_str), Some("not committed"));

    shelf.write(7, "row 7"); // rolled back
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    assert_eq!(get::<Row>(&cache, &8).await.unwrap(), None);
    assert_eq!(shelf.asked(), [vec![7], vec![7], vec![7, 8], vec![8]]);
}

#[tokio::test(start_paused = true)]
async fn an_application_reads_through_its_own_state() {
    struct App {
        cache: Cache<Shelf>,
    }
    impl<'a> Reader<'a, Shelf> for &'a App {
        fn route(self) -> Route<'a, Shelf> {
            Route::Cached(&self.cache)
        }
    }
    let app = App {
        cache: cache(&Shelf::of([7])).await,
    };
    assert_eq!(get::<Row>(&app, &7).await.unwrap(), text(7));
    let task = tokio::spawn(async move { get::<Row>(&app, &7).await });
    assert_eq!(task.await.unwrap().unwrap(), text(7));
}

#[tokio::test(start_paused = true)]
async fn bypass_loads_and_stores_nothing_but_still_flushes() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    get::<Row>(&cache, &7).await.unwrap();
    tally.settled().await;
    let trips = tally.trips();

    cache.bypass(true);
    shelf.write(7, "new");
    assert_eq!(
        get::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
    assert_eq!(tally.trips(), trips);
    cache.flush::<Row>([7]).await.unwrap();
    assert_eq!(tally.trips(), trips + 1);
    cache.bypass(false);

    assert!(cache.bypass_accessor("row", true));
    assert!(!cache.bypass_accessor("no such", true));
    get::<Row>(&cache, &7).await.unwrap();
    assert_eq!(tally.trips(), trips + 1);
    cache.bypass_accessor("row", false);
    get::<Row>(&cache, &7).await.unwrap();
    tally.settled().await;
    assert_eq!(tally.trips(), trips + 3);
    assert_eq!(cache.stats().accessors[0].bypassed, 2);
}

#[tokio::test(start_paused = true)]
async fn uncached_asks_the_source_and_leaves_the_entry_alone() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();
    shelf.write(7, "new");
    assert_eq!(
        uncached::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
}

#[tokio::test(start_paused = true)]
async fn refresh_loads_again_and_replaces_the_entry() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    assert_eq!(
        refresh::<Row>(&cache, &7).await.unwrap(),
        text(7),
        "on a miss too"
    );
    shelf.write(7, "new");
    assert_eq!(
        refresh::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
    tally.settled().await;
    assert_eq!(
        get::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_leaves_the_entry() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    get::<Row>(&cache, &7).await.unwrap();
    shelf.fail();
    assert!(refresh::<Row>(&cache, &7).await.is_err());
    tally.settled().await;
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_a_flush_overtakes_stores_nothing() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();
    shelf.hold();
    let refreshing = tokio::spawn({
        let cache = cache.clone();
        async move { refresh::<Row>(&cache, &7).await }
    });
    shelf.held().await;
    shelf.write(7, "new");
    cache.flush::<Row>([7]).await.unwrap();
    shelf.let_go();
    assert_eq!(
        refreshing.await.unwrap().unwrap(),
        text(7),
        "its read overlapped the write"
    );
    assert_eq!(
        get::<Row>(&cache, &7).await.unwrap().as_deref(),
        Some("new")
    );
}

#[tokio::test(start_paused = true)]
async fn warm_goes_through_the_loader_in_windows() {
    let shelf = Shelf::of(0..3_000);
    let (cache, tally) = cache(&shelf).await.tallied();
    warm::<Row>(&cache, 0..3_000).await.unwrap();
    tally.settled().await;
    assert_eq!(
        shelf.asked().iter().map(Vec::len).collect::<Vec<_>>(),
        [2_000, 1_000]
    );
    get_many::<Row>(&cache, 0..3_000).await.unwrap();
    assert_eq!(shelf.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn prime_stores_immutable_values_without_a_load() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    prime::<Fact>(&cache, (0..3_000).map(|id| (id, format!("row {id}"))))
        .await
        .unwrap();
    assert_eq!(
        get_many::<Fact>(&cache, 0..3_000)
            .await
            .unwrap()
            .into_found()
            .len(),
        3_000
    );
    assert_eq!(shelf.loads(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tally_counts_only_its_own_clone() {
    let cache = cache(&Shelf::of(0..10)).await;
    let (first, mine) = cache.tallied();
    let (second, theirs) = cache.tallied();
    get_many::<Row>(&first, 0..10).await.unwrap();
    mine.settled().await;
    get_many::<Row>(&second, 0..5).await.unwrap();
    get::<Row>(&cache, &1).await.unwrap();
    assert_eq!(
        (mine.trips(), mine.keys(), mine.hits(), mine.loaded()),
        (2, 10, 0, 10)
    );
    assert_eq!(
        (
            theirs.trips(),
            theirs.keys(),
            theirs.hits(),
            theirs.loaded()
        ),
        (1, 5, 5, 0)
    );
    let stats = &cache.stats().accessors[0];
    assert_eq!(
        (stats.keys, stats.hits, stats.misses, stats.trips),
        (16, 6, 10, 4)
    );
    // Ten entries of eighteen bytes of envelope, one of length and five of text; six were read.
    assert_eq!((stats.filled_bytes, stats.read_bytes), (240, 144));
}

dataset!(Other = "row", Lifetime::Ttl(HOUR));

#[tokio::test(start_paused = true)]
async fn a_second_data_set_of_one_name_is_refused() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &7).await.unwrap();
    for _ in 0..2 {
        assert_eq!(get::<Other>(&cache, &7).await.unwrap(), text(7));
    }
    assert_eq!(shelf.loads(), 3, "the second one is read past the cache");

    let built = Cache::builder(shelf)
        .backend(super::shelf::memory())
        .register::<Row>()
        .register::<Other>()
        .build()
        .await;
    let error = built.unwrap_err().to_string();
    assert!(
        error.contains("two data sets have the NAME `row`"),
        "{error}"
    );
}
