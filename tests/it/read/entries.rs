//! What a read makes of entries that are damaged, foreign, old, or from another time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Backend, BackendExt as _, BoxError, Cache, Dataset, FlushOn, Form, GetOptions, Lifetime,
    Lookup, NoTier, Plain, Prefix, Rows, Rt, Set, get, get_many,
};

use super::shelf::{Broken, Conn, HOUR, Row, Shelf, cache, cache_on, clock, dataset, memory, text};

fn wire(cache: &Cache<Shelf>, id: u64) -> String {
    format!("{}/row:{id}", cache.prefix())
}

#[tokio::test(start_paused = true)]
async fn a_damaged_entry_is_a_counted_miss_and_is_replaced() {
    let shelf = Shelf::of([7]);
    let (cache, tally) = cache(&shelf).await.tallied();
    let damaged = Set::new(&b"anything but an entry, and long enough to be one"[..]);
    cache
        .backend()
        .set_immutable(&wire(&cache, 7), damaged)
        .await
        .unwrap();

    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    tally.settled().await;
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    assert_eq!(shelf.loads(), 1);
    let stats = &cache.stats().accessors[0];
    assert_eq!(stats.rejected_foreign + stats.rejected_damaged, 1);
    assert_eq!(stats.fills_stored, 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_under_another_key_is_a_miss() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    get::<Row>(&cache, &8).await.unwrap();
    let options = GetOptions::look();
    let Ok(Lookup::Hit { value, .. }) = cache.backend().get(&wire(&cache, 8), &options).await
    else {
        panic!("8 was stored");
    };
    cache
        .backend()
        .set_immutable(&wire(&cache, 7), Set::new(value))
        .await
        .unwrap();
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    assert_eq!(cache.stats().accessors[0].rejected_damaged, 1);
}

dataset!(Revised = "row", Lifetime::Ttl(HOUR), REVISION: u32 = 1);

enum Longer {}

impl Dataset for Longer {
    const NAME: &'static str = "row";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Shelf;
    type Key = u64;
    type Value = (String, u32);
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        let rows = Row::load(shelf, ids).await?;
        Ok(rows.into_iter().map(|(id, row)| (id, (row, 1))).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn another_revision_or_type_under_one_key_is_a_miss_for_both() {
    let shelf = Shelf::of([7]);
    let store = memory();
    let old = cache_on(&shelf, Arc::clone(&store)).await;
    let revised = cache_on(&shelf, Arc::clone(&store)).await;
    let retyped = cache_on(&shelf, store).await;
    for loads in [3, 6] {
        assert_eq!(get::<Row>(&old, &7).await.unwrap(), text(7));
        assert_eq!(get::<Revised>(&revised, &7).await.unwrap(), text(7));
        assert_eq!(
            get::<Longer>(&retyped, &7).await.unwrap(),
            Some(("row 7".into(), 1))
        );
        assert_eq!(shelf.loads(), loads);
    }
}

dataset!(Brief = "brief", Lifetime::TtlOnly(Duration::from_secs(100)));

/// A store that keeps everything for ever, such as one that was suspended: the reader's own check counts.
#[tokio::test(start_paused = true)]
async fn the_reader_enforces_the_ttl_exactly() {
    let shelf = Shelf::of([7]);
    // The wall clock moves, the store's clock doesn't.
    let store: Arc<dyn Backend> = Arc::new(Memory::new(MemoryConfig::default(), clock()).unwrap());
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 - 2_000);
    let at = async |seconds: f64| {
        Cache::builder(shelf.clone())
            .backend(Arc::clone(&store))
            .prefix(Prefix::new("test").unwrap())
            .rt(Rt::following_tokio(
                start + Duration::from_secs_f64(2_000.0 + seconds),
            ))
            .build()
            .await
            .unwrap()
    };
    let (cache, tally) = at(0.0).await.tallied();
    get::<Brief>(&cache, &7).await.unwrap();
    tally.settled().await;

    let just_in_time = at(99.9).await;
    get::<Brief>(&just_in_time, &7).await.unwrap();
    assert_eq!(shelf.loads(), 1);

    let skewed = at(161.0).await;
    get::<Brief>(&skewed, &7).await.unwrap();
    assert_eq!(
        (shelf.loads(), skewed.stats().accessors[0].clock_skew),
        (2, 1)
    );
    get::<Brief>(&just_in_time, &7).await.unwrap();
    assert_eq!(
        shelf.loads(),
        2,
        "the entry was left alone: the clock may be the reader's"
    );

    let from_before = at(-1_000.0).await;
    get::<Brief>(&from_before, &7).await.unwrap();
    assert_eq!(
        (shelf.loads(), from_before.stats().accessors[0].from_future),
        (2, 1)
    );

    let (late, tally) = at(100.1).await.tallied();
    get::<Brief>(&late, &7).await.unwrap();
    tally.settled().await;
    assert_eq!(
        (shelf.loads(), late.stats().accessors[0].rejected_expired),
        (3, 1)
    );
    assert_eq!(
        late.stats().accessors[0].fills_stored,
        1,
        "taken over under its token"
    );
}

/// Stores the text without its beginning; refuses texts on both ways that show it can't be.
enum Tail {}

impl Form<String> for Tail {
    type Out<'a> = &'a str;
    type In = String;

    fn to_stored(row: &String) -> Result<&str, BoxError> {
        Ok(row
            .strip_prefix("row ")
            .ok_or("a row that doesn't begin like one")?)
    }

    fn from_stored(tail: String) -> Result<String, BoxError> {
        if tail == "13" {
            return Err("13 brings bad luck".into());
        }
        Ok(format!("row {tail}"))
    }
}

enum Hooked {}

impl Dataset for Hooked {
    const NAME: &'static str = "hooked";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Shelf;
    type Key = u64;
    type Value = String;
    type Form = Tail;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        Row::load(shelf, ids).await
    }
}

#[tokio::test(start_paused = true)]
async fn marshalling_hooks_convert_both_ways_and_cost_loads_when_they_fail() {
    let shelf = Shelf::of([7, 13]);
    shelf.write(8, "no beginning");
    let cache = cache(&shelf).await;
    for _ in 0..2 {
        let rows = get_many::<Hooked>(&cache, [7, 8, 13])
            .await
            .unwrap()
            .require()
            .unwrap();
        assert_eq!(rows, ["row 7", "no beginning", "row 13"]);
    }
    assert_eq!(shelf.asked(), [vec![7, 8, 13], vec![8, 13]]);
    let stats = &cache.stats().accessors[0];
    assert_eq!((stats.refused_codec, stats.rejected_undecodable), (2, 1));
}

dataset!(Small = "small", Lifetime::Ttl(HOUR), MAX_VALUE: usize = 100);

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_served_and_not_stored_and_holds_no_lease() {
    let shelf = Shelf::of([7]);
    shelf.write(8, &"x".repeat(101));
    let (cache, tally) = cache(&shelf).await.tallied();
    for _ in 0..2 {
        let rows = get_many::<Small>(&cache, [7, 8]).await.unwrap();
        assert_eq!(rows.into_found().len(), 2);
        tally.settled().await;
    }
    assert_eq!(shelf.asked(), [vec![7, 8], vec![8]]);
    let stats = &cache.stats().accessors[0];
    assert_eq!(
        (stats.refused_too_large, stats.fills_stored, stats.busy),
        (2, 1, 0)
    );
}

enum ByText {}

impl Dataset for ByText {
    const NAME: &'static str = "by_text";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Shelf;
    type Key = String;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(shelf: &mut Conn, texts: Vec<String>) -> Result<Rows<Self>, Broken> {
        Row::load(shelf, vec![texts.len() as u64]).await?;
        Ok(texts.into_iter().map(|text| (text.clone(), text)).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_a_key_is_loaded_uncached() {
    let shelf = Shelf::default();
    let cache = cache(&shelf).await;
    let long = "x".repeat(300);
    for loads in [1, 2] {
        assert_eq!(
            get::<ByText>(&cache, &long).await.unwrap(),
            Some(long.clone())
        );
        assert_eq!(shelf.loads(), loads);
    }
    let short = "not / a : key at first sight %".to_owned();
    let both = get_many::<ByText>(&cache, [&short, &long]).await.unwrap();
    assert_eq!(both.into_found(), [short.clone(), long]);
    get::<ByText>(&cache, &short).await.unwrap();
    assert_eq!(
        shelf.loads(),
        3,
        "the short one was stored with the load that both shared"
    );
}
