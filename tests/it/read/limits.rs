//! Loads that panic, hang, recurse or come in crowds, and the end of a cache.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use larder_core::{
    Cache, Dataset, Lifetime, LoadError, NoTier, Plain, Prefix, Rows, Source, get, get_many,
};

use super::shelf::{Broken, HOUR, Row, Shelf, cache, clock, dataset, memory, text};

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_everyone_who_waits_and_frees_the_key() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { get::<Row>(&cache, &7).await })
        })
        .collect();
    shelf.held().await;
    tokio::task::yield_now().await;
    shelf.panic();
    shelf.let_go();
    for reader in readers {
        let error = reader.await.unwrap().unwrap_err();
        assert!(
            matches!(error, LoadError::Panicked { accessor: "row" }),
            "{error:?}"
        );
    }
    shelf.recover();
    assert_eq!(get::<Row>(&cache, &7).await.unwrap(), text(7));
    let stats = &cache.stats().accessors[0];
    assert_eq!((stats.load_panics, stats.busy), (1, 0));
}

#[test]
fn the_end_of_the_runtime_reaches_everyone_who_waits() {
    let loads = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let waits = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let shelf = Shelf::of([7]);
    let (cache, reader) = loads.block_on(async {
        let cache = cache(&shelf).await;
        shelf.hold();
        let started = tokio::spawn({
            let cache = cache.clone();
            async move { get::<Row>(&cache, &7).await }
        });
        shelf.held().await;
        drop(started);
        let follower = cache.clone();
        (
            cache,
            waits.spawn(async move { get::<Row>(&follower, &7).await }),
        )
    });
    waits.block_on(tokio::task::yield_now());
    drop(loads);
    let error = waits.block_on(reader).unwrap().unwrap_err();
    assert!(matches!(error, LoadError::Panicked { .. }), "{error:?}");
    drop(cache);
}

dataset!(Slow = "slow", Lifetime::Ttl(HOUR), LOAD_TIMEOUT: Duration = Duration::from_secs(5), MAX_LOADS: usize = 2);

#[tokio::test(start_paused = true)]
async fn a_load_that_hangs_fails_after_its_timeout() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let started = tokio::time::Instant::now();
    let error = get::<Slow>(&cache, &7).await.unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Timeout {
                accessor: "slow",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    shelf.let_go();
    assert_eq!(get::<Slow>(&cache, &7).await.unwrap(), text(7));
}

#[tokio::test(start_paused = true)]
async fn loads_beyond_the_cap_wait_and_then_are_overloaded() {
    let shelf = Shelf::of(0..10);
    let cache = Cache::builder(shelf.clone())
        .backend(memory())
        .rt(clock())
        .load_queue(Duration::from_secs(1))
        .build()
        .await
        .unwrap();
    shelf.hold();
    let readers: Vec<_> = (0..4)
        .map(|id| {
            let cache = cache.clone();
            tokio::spawn(async move { get::<Slow>(&cache, &id).await })
        })
        .collect();
    shelf.held().await;
    shelf.held().await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(shelf.loads(), 2, "two run, two were turned away");
    shelf.let_go();
    let mut answers = Vec::new();
    for reader in readers {
        answers.push(reader.await.unwrap());
    }
    let overloaded = |answer: &Result<_, LoadError<Broken>>| {
        matches!(
            answer,
            Err(LoadError::Overloaded {
                accessor: "slow",
                ..
            })
        )
    };
    assert_eq!(
        answers.iter().filter(|answer| overloaded(answer)).count(),
        2
    );
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2);
    assert_eq!(get::<Slow>(&cache, &9).await.unwrap(), text(9));
}

/// A source whose connection carries the cache itself, so that loaders can read through it.
#[derive(Clone)]
struct Nested(Arc<OnceLock<Cache<Self>>>);

impl Source for Nested {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

#[derive(Debug)]
struct Inner(String);

impl std::fmt::Display for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Inner {}

impl From<Infallible> for Inner {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// 0 is itself; every other number is one more than the one below; 1000 asks for itself, and 2000 and 2001 for each
/// other.
enum Count {}

impl Dataset for Count {
    const NAME: &'static str = "count";
    const LIFETIME: Lifetime = Lifetime::TtlOnly(HOUR);
    const MAX_LOADS: usize = 1;
    type Source = Nested;
    type Key = u64;
    type Value = u64;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Inner;

    async fn load(nested: &mut Nested, keys: Vec<u64>) -> Result<Rows<Self>, Inner> {
        let mut rows = Vec::new();
        for key in keys {
            let below = match key {
                0 => {
                    rows.push((0, 0));
                    continue;
                }
                1_000 => 1_000,
                2_000 => 2_001,
                2_001 => 2_000,
                _ => key - 1,
            };
            let cache = nested.0.get().expect("the cache is there");
            rows.push((key, read(cache, below).await? + 1));
        }
        Ok(rows)
    }
}

/// Boxed, because a loader that reads its own data set would have an endless type.
fn read(
    cache: &Cache<Nested>,
    key: u64,
) -> Pin<Box<dyn Future<Output = Result<u64, Inner>> + Send>> {
    let cache = cache.clone();
    Box::pin(async move {
        let read = get::<Count>(&cache, &key).await;
        let read = read.map_err(|error| Inner(error.to_string()))?;
        Ok(read.expect("every number exists"))
    })
}

async fn nested() -> Cache<Nested> {
    let cell = Arc::new(OnceLock::new());
    let cache = Cache::builder(Nested(Arc::clone(&cell)))
        .backend(memory())
        .rt(clock())
        .build()
        .await
        .unwrap();
    cell.set(cache.clone()).expect("set once");
    cache
}

#[tokio::test(start_paused = true)]
async fn loads_may_nest_deeper_than_the_cap() {
    let cache = nested().await;
    assert_eq!(get::<Count>(&cache, &40).await.unwrap(), Some(40));
}

#[tokio::test(start_paused = true)]
async fn a_load_that_asks_for_itself_is_told_so() {
    let cache = nested().await;
    for key in [1_000, 2_000] {
        let error = get::<Count>(&cache, &key).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("asked through the cache for a value it was loading"),
            "{text}"
        );
    }
}

/// A loader's reads aren't batched: what reads a batch is a task that isn't inside the loader, and waits for it unnoticed.
#[tokio::test(start_paused = true)]
async fn loads_do_not_meet_others_in_a_batch() {
    let cell = Arc::new(OnceLock::new());
    let cache = Cache::builder(Nested(Arc::clone(&cell)))
        .backend(memory())
        .rt(clock());
    let cache = cache.build().await.unwrap();
    let batched = cache.batched();
    cell.set(batched.clone()).expect("set once");
    let started = tokio::time::Instant::now();
    // There is always a batch to be joined.
    let others = async {
        loop {
            assert_eq!(get::<Count>(&batched, &0).await.unwrap(), Some(0));
        }
    };
    let nested = async {
        assert_eq!(get::<Count>(&cache, &40).await.unwrap(), Some(40));
        get::<Count>(&cache, &1_000).await.unwrap_err().to_string()
    };
    let text = tokio::select! {
        text = nested => text,
        never = others => never,
    };
    assert!(
        text.contains("asked through the cache for a value it was loading"),
        "{text}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

/// A batch is a bulk read: the loader of both keys is asked for both, and one needs the other.
#[tokio::test(start_paused = true)]
async fn a_batch_whose_keys_need_each_other_is_told_so() {
    let batched = nested().await.batched();
    let (one, other) = tokio::join!(get::<Count>(&batched, &8), get::<Count>(&batched, &9));
    for error in [one.unwrap_err(), other.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("a value it was loading"), "{text}");
    }
}

/// The one place is held by the load of 41, whose loader asks for 40, whose load waits for the place.
#[tokio::test(start_paused = true)]
async fn a_nested_read_does_not_wait_behind_its_own_place() {
    let cache = nested().await;
    let started = tokio::time::Instant::now();
    let (outer, queued) = tokio::join!(get::<Count>(&cache, &41), get::<Count>(&cache, &40));
    assert_eq!((outer.unwrap(), queued.unwrap()), (Some(41), Some(40)));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn loads_that_ask_for_each_other_are_told_so() {
    let cache = nested().await;
    let started = tokio::time::Instant::now();
    let (one, other) = tokio::join!(get::<Count>(&cache, &2_000), get::<Count>(&cache, &2_001));
    for error in [one.unwrap_err(), other.unwrap_err()] {
        let text = error.to_string();
        assert!(
            text.contains("asked through the cache for a value it was loading"),
            "{text}"
        );
    }
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_load_under_way_may_read_through_the_cache_while_it_closes() {
    let cache = nested().await;
    let read = get::<Count>(&cache, &20);
    let (read, ()) = tokio::join!(read, cache.close(Duration::from_secs(10)));
    assert_eq!(read.unwrap(), Some(20));
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_loads_and_their_fills_and_starts_no_more() {
    let shelf = Shelf::of([7, 8]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Row>(&cache, &7).await }
    });
    shelf.held().await;
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(Duration::from_secs(10)).await }
    });
    tokio::task::yield_now().await;
    let error = get::<Row>(&cache, &8).await.unwrap_err();
    assert!(
        matches!(error, LoadError::Closed { accessor: "row" }),
        "{error:?}"
    );
    assert!(!closing.is_finished());
    shelf.let_go();
    assert_eq!(reader.await.unwrap().unwrap(), text(7));
    closing.await.unwrap();
    assert_eq!(cache.stats().accessors[0].fills_stored, 1);
}

#[tokio::test(start_paused = true)]
async fn close_gives_up_at_its_deadline() {
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { get::<Row>(&cache, &7).await }
    });
    shelf.held().await;
    let started = tokio::time::Instant::now();
    cache.close(Duration::from_secs(1)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    shelf.let_go();
    assert_eq!(reader.await.unwrap().unwrap(), text(7));
}

#[tokio::test]
async fn what_cannot_be_cached_fails_when_the_cache_is_built() {
    dataset!(Nameless = "no name", Lifetime::Ttl(HOUR));
    dataset!(Momentary = "momentary", Lifetime::Ttl(Duration::ZERO));
    dataset!(Eternal = "eternal", Lifetime::Ttl(Duration::MAX));
    dataset!(Unleased = "unleased", Lifetime::Ttl(HOUR), LEASE: Duration = Duration::ZERO);
    dataset!(Reserved = "reserved", Lifetime::Ttl(HOUR), LEASE: Duration = Duration::MAX);

    #[track_caller]
    fn check(built: Result<Cache<Shelf>, larder_core::Error>, expected: &str) {
        let error = built.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let builder = || Cache::builder(Shelf::default()).backend(memory());
    check(
        builder().register::<Nameless>().build().await,
        "data set `no name` needs a NAME of",
    );
    check(
        builder().register::<Momentary>().build().await,
        "needs a TTL above zero",
    );
    check(
        builder().register::<Eternal>().build().await,
        "of at most 100 years",
    );
    check(
        builder().register::<Reserved>().build().await,
        "needs a LEASE of 1s to 1h",
    );
    check(
        builder().register::<Unleased>().build().await,
        "needs a LEASE of 1s to 1h",
    );
    check(
        Cache::builder(Shelf::default()).build().await,
        "has no backend",
    );
    assert!(
        builder()
            .prefix(Prefix::new("v1").unwrap())
            .build()
            .await
            .is_ok()
    );

    // Unregistered, it is read past the cache.
    let shelf = Shelf::of([7]);
    let cache = cache(&shelf).await;
    for loads in 1..=2 {
        assert_eq!(get_many::<Nameless>(&cache, [7]).await.unwrap().len(), 1);
        assert_eq!(shelf.loads(), loads);
    }
}
