//! Hits that are checked: what is found, what is left out, and what is said of it.

use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_core::{
    AccessorStats, Cache, Dataset, HitCheck, HitChecks, Lifetime, NoTier, Plain, Rows, Source, get,
    warm,
};
use larder_testing::{TestCache, captured, empty_cache};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::users::{Name, Names};

const SOON: Duration = Duration::from_millis(20);

async fn cache(names: &Names) -> TestCache<Names> {
    let cache = TestCache::builder(names.clone()).settle(SOON).build().await;
    warm::<Name>(&cache, 0..10).await.unwrap();
    cache
}

fn counts<S: Source>(cache: &Cache<S>) -> [u64; 5] {
    let counts = |stats: &AccessorStats| {
        [
            stats.checks_fresh,
            stats.checks_stale,
            stats.checks_excluded,
            stats.checks_failed,
            stats.checks_skipped,
        ]
    };
    let stats = cache.stats();
    let own = stats
        .accessors
        .iter()
        .find(|stats| stats.name == "name_by_id");
    own.map(counts).unwrap_or_default()
}

async fn read(cache: &Cache<Names>, id: u64) {
    get::<Name>(cache, &id).await.unwrap();
}

#[tokio::test]
async fn a_hit_that_is_true_is_fresh() {
    let names = Names::of(0..9);
    let cache = cache(&names).await;
    for id in 0..10 {
        read(&cache, id).await;
        cache.hits_checked().await;
    }
    assert!(cache.stale_hits().await.is_empty());
    // An absence is a hit too.
    assert_eq!(counts(&cache), [10, 0, 0, 0, 0]);
}

#[tokio::test]
async fn readers_join_no_load_of_a_check() {
    let names = Names::of(0..10);
    let builder = TestCache::builder(names).with(|builder| builder.max_loads(1));
    let cache = builder.build().await;
    warm::<Name>(&cache, 0..10).await.unwrap();
    for patience in 0..8 {
        for id in 0..10 {
            read(&cache, id).await;
        }
        // The checks' loads wait for each other meanwhile.
        for _ in 0..patience {
            tokio::task::yield_now().await;
        }
        let ((), captured) = captured(empty_cache(read(&cache, 9))).await;
        let counts = captured.accessor("name_by_id");
        assert_eq!((counts.shared, counts.loads), (0, 1), "{patience}");
        cache.hits_checked().await;
    }
}

#[tokio::test]
async fn a_stale_hit_tells_key_difference_and_last_flushes() {
    let names = Names::of(0..10);
    let cache = cache(&names).await;
    cache.flush::<Name>([4, 5]).await.unwrap();
    names.write(3, "renamed");
    read(&cache, 3).await;
    let [stale] = &cache.stale_hits().await[..] else {
        panic!("one hit is stale");
    };
    assert_eq!(
        (stale.accessor, &*stale.key),
        ("name_by_id", "name_by_id:3")
    );
    let told = stale.to_string();
    let expected = "`name_by_id` has a stale entry, name_by_id:3:\n  cached \"user 3\", true \"renamed\"\n  its last flushes: ";
    assert!(told.starts_with(expected), "{told}");
    assert!(told.ends_with("ago 2 keys without this one"), "{told}");
    assert_eq!(counts(&cache), [0, 1, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_flushed_during_the_check_is_excluded() {
    let names = Names::of(0..10);
    let cache = cache(&names).await;
    names.write(3, "renamed");
    read(&cache, 3).await;
    cache.flush::<Name>([3]).await.unwrap();
    assert!(cache.stale_hits().await.is_empty());
    assert_eq!(counts(&cache), [0, 0, 1, 0, 0]);
}

/// The same names, where one that is an hour old will do.
enum OldName {}

impl Dataset for OldName {
    const NAME: &'static str = "old_name";
    const LIFETIME: Lifetime = Lifetime::TtlOnly(Duration::from_secs(3600));
    type Source = Names;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    async fn load(names: &mut Names, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(names.load(ids))
    }
}

#[tokio::test]
async fn what_may_be_old_is_not_stale() {
    let names = Names::of(0..10);
    let cache = cache(&names).await;
    warm::<OldName>(&cache, [3]).await.unwrap();
    names.write(3, "renamed");
    let name = get::<OldName>(&cache, &3).await.unwrap();
    assert_eq!(name.as_deref(), Some("user 3"));
    assert!(cache.stale_hits().await.is_empty());
    assert_eq!(
        cache.stats().hit_checks.map(|checks| checks.checked),
        Some(0)
    );
}

#[tokio::test]
async fn more_than_are_checked_at_once_are_skipped() {
    let names = Names::of(0..10);
    let cache = TestCache::builder(names.clone())
        .unchecked_hits()
        .with(|builder| builder.check_hits(HitCheck::one_in(1).settle(SOON).at_once(1)))
        .build()
        .await;
    warm::<Name>(&cache, 0..10).await.unwrap();
    names.write(3, "renamed");
    read(&cache, 3).await;
    read(&cache, 4).await;
    cache.hits_checked().await;
    assert_eq!(counts(&cache), [0, 1, 0, 0, 1]);
}

#[tokio::test]
async fn a_closed_cache_checks_nothing() {
    let names = Names::of(0..10);
    let cache = cache(&names).await;
    names.write(3, "renamed");
    read(&cache, 3).await;
    // A check under way is cut off, and says nothing.
    cache.close(Duration::from_secs(1)).await;
    assert!(cache.stale_hits().await.is_empty());
    assert_eq!(counts(&cache), [0; 5]);
}

#[tokio::test]
async fn checks_are_on_nobodys_account() {
    let cache = cache(&Names::of(0..10)).await;
    let (handle, tally) = cache.tallied();
    let ((), captured) = larder_testing::captured(read(&handle, 3)).await;
    cache.hits_checked().await;
    tally.settled().await;
    assert_eq!((tally.loads(), tally.hits()), (0, 1));
    captured.assert_loads(0);
}

#[tokio::test]
async fn a_test_that_is_over_is_told_of_stale_hits() {
    let names = Names::of(0..10);
    let cache = cache(&names).await;
    names.write(3, "renamed");
    read(&cache, 3).await;
    cache.hits_checked().await;
    let told = catch_unwind(AssertUnwindSafe(|| drop(cache))).unwrap_err();
    let told = told.downcast::<String>().unwrap();
    assert!(told.contains("name_by_id:3"), "{told}");
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl<S: tracing::Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut Fields(&mut self.0.lock().unwrap()));
    }
}

struct Fields<'l>(&'l mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        writeln!(self.0, "{field}: {value:?}").unwrap();
    }
}

#[tokio::test]
async fn the_log_shows_neither_keys_nor_values() {
    let log = Log::default();
    let subscriber = tracing_subscriber::registry().with(log.clone());
    let _logging = tracing::subscriber::set_default(subscriber);
    let names = Names::of(0..10);
    let cache = TestCache::builder(names.clone())
        .unchecked_hits()
        .with(|builder| builder.check_hits(HitCheck::one_in(1).settle(SOON)))
        .build()
        .await;
    warm::<Name>(&cache, 0..10).await.unwrap();
    names.write(3, "renamed");
    read(&cache, 3).await;
    cache.hits_checked().await;
    let log = log.0.lock().unwrap().clone();
    assert!(log.contains("accessor: \"name_by_id\""), "{log}");
    assert!(log.contains("differs: \"the value\""), "{log}");
    assert!(log.contains("flushes: \"none\""), "{log}");
    for secret in ["renamed", "user 3", "name_by_id:3"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn the_estimate_is_that_of_the_sample() {
    let names = Names::of(0..1_000);
    let cache = TestCache::builder(names.clone())
        .unchecked_hits()
        .with(|builder| builder.check_hits(HitCheck::one_in(4).settle(SOON).at_once(1_000)))
        .build()
        .await;
    warm::<Name>(&cache, 0..1_000).await.unwrap();
    for id in 0..50 {
        names.write(id, "renamed"); // one in twenty
    }
    for id in 0..1_000 {
        read(&cache, id).await;
    }
    cache.hits_checked().await;
    let checks = cache.stats().hit_checks.expect("hits are checked");
    assert!((150..=350).contains(&checks.checked), "{checks:?}");
    // Five standard deviations around the truth: wrong once in a million runs.
    let around = 0.05 - 5.0 * (0.05_f64 * 0.95 / checks.checked as f64).sqrt();
    assert!(
        checks.at_most_per_million > 1e6 * around.max(0.0),
        "{checks:?}"
    );
    assert!(
        checks.at_least_per_million < 1e6 * (0.1 - around),
        "{checks:?}"
    );
    assert!(checks.at_least_per_million <= checks.stale_per_million);
    assert!(checks.stale_per_million <= checks.at_most_per_million);
}

/// The bounds have the truth between them as often as they say, whatever it is.
#[test]
fn ninety_five_in_a_hundred_intervals_have_the_truth() {
    let mut random = fastrand::Rng::with_seed(7);
    for (stale_per_million, checked) in [(500, 20_000), (10_000, 2_000), (200_000, 300)] {
        let runs = 2_000;
        let right = (0..runs).filter(|_| {
            let stale = (0..checked).filter(|_| random.u64(..1_000_000) < stale_per_million);
            let checks = HitChecks::of(stale.count() as u64, checked);
            let truth = stale_per_million as f64;
            (checks.at_least_per_million..=checks.at_most_per_million).contains(&truth)
        });
        let right = right.count() as f64 / f64::from(runs);
        assert!(
            (0.93..0.975).contains(&right),
            "{stale_per_million}: {right}"
        );
    }
}

#[test]
fn no_checks_say_nothing() {
    let none = HitChecks::of(0, 0);
    assert_eq!(none.at_least_per_million, 0.0);
    assert_eq!(none.at_most_per_million, 1e6);
}
