//! Whether what is read is true: some hits are loaded again and compared.
//!
//! A hit that differs from the source isn't stale yet: somebody may have written between the two, and flush it a moment
//! later. So it is looked at again once every flush has had its time; what is then another value was flushed during the
//! check, and tells nothing. What is still the same, and still isn't what the source has, nobody is going to flush.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_64;

use super::{AnyKey, BoxError, Cache, Difference, Event, HitEvent, Listener, Seen, Source};
use crate::contract::Keys;
use crate::{Instant, Rt};

/// After this long every flush has arrived: beyond the relay's grace and its poll.
const SETTLE: Duration = Duration::from_secs(3);

/// How many hits are checked at once. A check that waits for its flush is one of them.
const AT_ONCE: usize = 4;

/// How many flushes of a data set are remembered.
const REMEMBERED: usize = 8;

/// How many keys of a flush are remembered.
const REMEMBERED_KEYS: usize = 10_000;

tokio::task_local! {
    /// That this task checks a hit, whose own look-ups aren't checked.
    static CHECKING: ();
}

/// Whether this task checks a hit.
pub(super) fn is_checking() -> bool {
    CHECKING.try_with(|()| ()).is_ok()
}

/// Is told of a stale hit.
type Tell = Arc<dyn Fn(&StaleHit) + Send + Sync>;

/// Loads a sample of hits again and compares them with the source: see
/// [`CacheBuilder::check_hits`](crate::CacheBuilder::check_hits).
///
/// ```
/// # use larder_core::{Backend, Cache, HitCheck, Source};
/// # async fn build<S: Source>(pool: S, memcached: std::sync::Arc<dyn Backend>) -> larder_core::Result<()> {
/// let cache = Cache::builder(pool)
///     .backend(memcached)
///     .check_hits(HitCheck::one_in(10_000))
///     .build()
///     .await?;
/// // … some million reads later
/// if let Some(checks) = cache.stats().hit_checks {
///     println!("{} in a million reads are stale, at most {}", checks.stale_per_million, checks.at_most_per_million);
/// }
/// # Ok(()) }
/// ```
///
/// What isn't checked is data that never changes, and data that may be old up to its TTL
/// ([`Lifetime::TtlOnly`](crate::Lifetime::TtlOnly)): that it differs says nothing.
///
/// A check costs a load, beside those that its accessor's `MAX_LOADS` bounds, and at most two loads and a look-up more where
/// something differs. It runs in a task of its own, belongs to no caller's tally, and is left out when others are under
/// way, when a test's transaction is open, and when the cache is closed.
#[derive(Clone)]
pub struct HitCheck {
    one_in: u64,
    settle: Duration,
    at_once: usize,
    reveals: bool,
    tell: Option<Tell>,
}

impl HitCheck {
    /// Checks one hit of so many, chosen at random.
    ///
    /// # Panics
    ///
    /// For 0.
    pub fn one_in(hits: u64) -> Self {
        assert!(hits > 0, "one hit of none can't be checked");
        Self {
            one_in: hits,
            settle: SETTLE,
            at_once: AT_ONCE,
            reveals: false,
            tell: None,
        }
    }

    /// How long a flush may take to arrive, after the write was committed: 3 s if not given, which is longer than the relay
    /// of an outbox takes.
    #[must_use]
    pub fn settle(mut self, settle: Duration) -> Self {
        self.settle = settle;
        self
    }

    /// How many hits are checked at once; 4 if not given.
    #[must_use]
    pub fn at_once(mut self, count: usize) -> Self {
        self.at_once = count.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Logs keys and values too: for tests, whose values are nobody's.
    #[must_use]
    pub fn reveal(mut self) -> Self {
        self.reveals = true;
        self
    }

    /// Calls this for each stale hit, beside logging it.
    #[must_use]
    pub fn on_stale(mut self, tell: impl Fn(&StaleHit) + Send + Sync + 'static) -> Self {
        self.tell = Some(Arc::new(tell));
        self
    }
}

impl fmt::Debug for HitCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HitCheck")
            .field("one_in", &self.one_in)
            .field("settle", &self.settle)
            .field("at_once", &self.at_once)
            .finish_non_exhaustive()
    }
}

/// A reader was given what isn't true, and nobody was about to flush it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StaleHit {
    /// The data set.
    pub accessor: &'static str,
    /// The key, without prefix. It may name people: don't log it.
    pub key: String,
    /// Stands for the key, where that mustn't be shown.
    pub digest: String,
    /// Where the value differs from the source's.
    pub differences: Vec<Difference>,
    /// The last flushes of the data set that this process made, the latest first.
    pub flushes: Vec<RecentFlush>,
}

impl StaleHit {
    /// The places that differ, without what is there: names of fields and numbers of elements. What isn't like a field's
    /// name, a key of a map say, is shown as `*`.
    pub fn paths(&self) -> String {
        let paths = self.differences.iter().map(|difference| {
            let is_name = |text: &str| {
                let text = text.split('[').next().unwrap_or_default();
                !text.contains(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            };
            let parts = difference.path.split('.');
            let parts: Vec<&str> = parts
                .map(|part| if is_name(part) { part } else { "*" })
                .collect();
            match parts.join(".") {
                path if path.is_empty() => "the value".to_owned(),
                path => path,
            }
        });
        paths.collect::<Vec<_>>().join(", ")
    }

    fn flushes_shown(&self) -> String {
        if self.flushes.is_empty() {
            return "none".to_owned();
        }
        let shown = self.flushes.iter().map(ToString::to_string);
        shown.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for StaleHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "`{}` has a stale entry, {}:", self.accessor, self.key)?;
        for difference in &self.differences {
            writeln!(f, "  {difference}")?;
        }
        write!(f, "  its last flushes: {}", self.flushes_shown())
    }
}

/// A flush that this process made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecentFlush {
    /// How long ago.
    pub ago: Duration,
    /// How many keys of the data set.
    pub keys: usize,
    /// Whether this key was among them.
    pub had_this_key: bool,
}

impl fmt::Display for RecentFlush {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let among = match self.had_this_key {
            true => "with this one",
            false => "without this one",
        };
        let plural = if self.keys == 1 { "" } else { "s" };
        write!(f, "{:.1?} ago {} key{plural} {among}", self.ago, self.keys)
    }
}

/// What checks of hits found, since the cache was built.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct HitChecks {
    /// Hits that were compared, and were what the source has or weren't.
    pub checked: u64,
    /// Of these, those that weren't.
    pub stale: u64,
    /// So many of a million hits are stale, as far as these tell.
    pub stale_per_million: f64,
    /// With 95 % confidence there are at least so many.
    pub at_least_per_million: f64,
    /// With 95 % confidence there are at most so many.
    pub at_most_per_million: f64,
}

impl HitChecks {
    /// What so many checks say, of which so many were stale: the share, and Wilson's interval around it, which is right
    /// for shares near zero too.
    ///
    /// ```
    /// # use larder_core::HitChecks;
    /// let none = HitChecks::of(0, 10_000);
    /// assert_eq!((none.stale_per_million, none.at_least_per_million), (0.0, 0.0));
    /// assert_eq!(none.at_most_per_million.round(), 384.0); // ten thousand good hits say no more than that
    /// ```
    pub fn of(stale: u64, checked: u64) -> Self {
        const MILLION: f64 = 1e6;
        // 97.5 % of a normal distribution lie below it.
        const Z: f64 = 1.959_963_985;
        if checked == 0 {
            return Self {
                checked,
                stale,
                stale_per_million: 0.0,
                at_least_per_million: 0.0,
                at_most_per_million: MILLION,
            };
        }
        let n = checked as f64;
        let share = stale as f64 / n;
        let scale = 1.0 + Z * Z / n;
        let middle = (share + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let at_least = match stale {
            // Rounding would leave a little more than nothing.
            0 => 0.0,
            _ => (middle - half).max(0.0),
        };
        Self {
            checked,
            stale,
            stale_per_million: share * MILLION,
            at_least_per_million: at_least * MILLION,
            at_most_per_million: (middle + half).min(1.0) * MILLION,
        }
    }
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fresh,
    Stale,
    /// The key was flushed, or filled anew, while it was checked.
    Excluded,
    /// The source, or the store, couldn't be asked.
    Failed,
    /// Others were under way.
    Skipped,
}

/// The listener that samples.
#[derive(Clone)]
pub(crate) struct HitChecker {
    check: HitCheck,
    places: Arc<Semaphore>,
    flushes: Arc<Mutex<HashMap<String, VecDeque<Flushed>>>>,
    rt: Rt,
}

/// A flush of one data set.
struct Flushed {
    at: Instant,
    keys: usize,
    /// Of their texts, which may name people.
    hashes: Vec<u64>,
}

impl<S: Source> Listener<S> for HitChecker {
    fn hear(&self, event: &Event<'_, S>) {
        match event {
            Event::Hit(hit) => self.sample(hit),
            Event::Flush { keys } => self.remember(keys),
            _ => {}
        }
    }
}

impl fmt::Debug for HitChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.check.fmt(f)
    }
}

impl HitChecker {
    pub(crate) fn new(check: HitCheck, rt: Rt) -> Self {
        Self {
            places: Arc::new(Semaphore::new(check.at_once)),
            check,
            flushes: Arc::default(),
            rt,
        }
    }

    /// Waits for the checks under way.
    pub(crate) async fn over(&self) {
        let all = u32::try_from(self.check.at_once).unwrap_or(u32::MAX);
        // It is never closed, so this fails for nobody.
        let _ = self.places.acquire_many(all).await;
    }

    /// Starts to check this hit, or leaves it out.
    fn sample<S: Source>(&self, hit: &HitEvent<'_, S>) {
        if fastrand::u64(..self.check.one_in) > 0 || is_checking() {
            return;
        }
        let shared = &hit.cache.shared;
        let is_free = !hit.cache.is_closed() && shared.writes.open_transaction().is_none();
        let place = Arc::clone(&self.places).try_acquire_owned();
        let Some(place) = place.ok().filter(|_| is_free) else {
            return shared.count_checked(hit.accessor, Verdict::Skipped);
        };
        let Some((key, seen)) = hit.again() else {
            return;
        };
        // Of nobody's request, and on nobody's account.
        let cache = Cache {
            shared: Arc::clone(shared),
            tally: None,
            scope: None,
            gathering: None,
        };
        let (checker, accessor) = (self.clone(), hit.accessor);
        let check = async move {
            let closing = cache.shared.closing.clone();
            let check = checker.check(&cache, accessor, &*key, seen);
            // What is cut off by the end says nothing.
            if let Some(verdict) = closing.run_until_cancelled(check).await {
                let verdict = verdict.unwrap_or(Verdict::Failed);
                cache.shared.count_checked(accessor, verdict);
            }
            drop(place);
        };
        let tracked = shared.tasks.track_future(CHECKING.scope((), check));
        drop(self.rt.spawn_apart(tracked));
    }

    async fn check<S: Source>(
        &self,
        cache: &Cache<S>,
        accessor: &'static str,
        key: &dyn AnyKey<S>,
        seen: Seen,
    ) -> Result<Verdict, BoxError> {
        let began = self.rt.now();
        if key.fresh(cache).await? == seen {
            return Ok(Verdict::Fresh);
        }
        self.rt.sleep(self.check.settle).await;
        if key.cached(cache).await? != seen || self.was_flushed(key, began) {
            return Ok(Verdict::Excluded);
        }
        let differences = seen.differences(&key.fresh(cache).await?);
        if differences.is_empty() {
            return Ok(Verdict::Excluded);
        }
        let hash = xxh3_64(key.key().as_bytes());
        self.report(&StaleHit {
            accessor,
            key: key.key().to_owned(),
            digest: format!("{hash:016x}"),
            differences,
            flushes: self.flushes_of(accessor, hash),
        });
        Ok(Verdict::Stale)
    }

    fn report(&self, stale: &StaleHit) {
        match self.check.reveals {
            true => tracing::error!("{stale}"),
            false => tracing::error!(
                accessor = stale.accessor,
                digest = stale.digest,
                differs = stale.paths(),
                flushes = stale.flushes_shown(),
                "a cached value isn't what the source has, and nobody was about to flush it"
            ),
        }
        if let Some(tell) = &self.check.tell {
            tell(stale);
        }
    }

    /// Remembers which keys are being flushed.
    fn remember(&self, keys: &Keys) {
        let mut hashes: HashMap<&str, (usize, Vec<u64>)> = HashMap::new();
        for key in keys.iter() {
            let (count, hashes) = hashes.entry(key.accessor()).or_default();
            *count += 1;
            if hashes.len() < REMEMBERED_KEYS {
                hashes.push(xxh3_64(key.as_bytes()));
            }
        }
        let at = self.rt.now();
        let mut flushes = self.lock();
        for (accessor, (keys, hashes)) in hashes {
            let of_accessor = flushes.entry(accessor.to_owned()).or_default();
            of_accessor.truncate(REMEMBERED - 1);
            of_accessor.push_front(Flushed { at, keys, hashes });
        }
    }

    fn was_flushed<S: Source>(&self, key: &dyn AnyKey<S>, since: Instant) -> bool {
        let hash = xxh3_64(key.key().as_bytes());
        let flushes = self.lock();
        let mut of_accessor = flushes.get(key.accessor()).into_iter().flatten();
        of_accessor.any(|flushed| flushed.at >= since && flushed.hashes.contains(&hash))
    }

    fn flushes_of(&self, accessor: &str, key: u64) -> Vec<RecentFlush> {
        let flushes = self.lock();
        let of_accessor = flushes.get(accessor).into_iter().flatten();
        let recent = of_accessor.map(|flushed| RecentFlush {
            ago: self.rt.now().saturating_duration_since(flushed.at),
            keys: flushed.keys,
            had_this_key: flushed.hashes.contains(&key),
        });
        recent.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Flushed>>> {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
