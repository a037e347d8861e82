//! A cache of a test's own.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_backends::{BuilderExt as _, Registry};
use larder_core::{
    Backend, Cache, CacheBuilder, Clock, Config, Dataset, Dictionary, HitCheck, Prefix, Reader,
    Result, Route, Rt, Scopes, Source, StaleHit,
};

use crate::{Faults, Recorded as _};

/// Names the store of the tests, as a URL.
const VARIABLE: &str = "LARDER_TEST_CACHE";

/// The store of those who name none.
const DEFAULT: &str = "memory://";

/// How long a cache that is dropped waits for what is under way.
const PARTING: Duration = Duration::from_secs(1);

/// How long a flush may come behind its write before a hit between them is taken for stale: in a test both are done by the
/// process itself.
const SETTLE: Duration = Duration::from_millis(500);

/// How many hits are checked at once.
const CHECKS: usize = 16;

/// A cache of a test's own: it has a random prefix, so that no other test sees what it stores, however many of them use one
/// store. Nothing is emptied for it.
///
/// The store is the one that `LARDER_TEST_CACHE` in the environment names, and else one in the process; so the same tests
/// run by themselves, and on the memcached or Redis of production:
///
/// ```console
/// $ LARDER_TEST_CACHE=memcached://127.0.0.1:11211 cargo test
/// ```
///
/// It is a [`Cache`], and a reader; mistakes of writers are errors
/// ([`strict_writes`](larder_core::CacheBuilder::strict_writes)), its clock can be moved, and faults can be injected.
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_testing::{TestCache, assert_loads};
///
/// let cache = TestCache::new(Db::of(["Ada"])).await;
/// let user = async || larder_core::get::<UserById>(&cache, &0).await.unwrap();
/// assert_loads!(1, user());
/// assert_loads!(0, user());
///
/// cache.clock().advance(Duration::from_secs(3600)); // the TTL of UserById
/// assert_loads!(1, user());
/// # }
/// ```
///
/// Every hit is loaded again in the background and compared: of what was stale, and nobody was about to flush, the test is
/// told by [`stale_hits`](Self::stale_hits), or by a panic when the cache is dropped.
///
/// Keep it until the test is over, also if the service is given a [`handle`](Self::handle): dropped, it closes the cache.
pub struct TestCache<S: Source> {
    cache: Cache<S>,
    clock: Clock,
    rt: Rt,
    faults: Faults,
    /// Whether others use the store too, so that it stays open.
    is_shared: bool,
    stale: Stale,
}

/// The stale hits that were found and not told yet.
#[derive(Clone, Default)]
struct Stale(Arc<Mutex<Vec<StaleHit>>>);

impl Stale {
    fn lock(&self) -> MutexGuard<'_, Vec<StaleHit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> TestCache<S> {
    /// A cache whose loads come from this source.
    ///
    /// # Panics
    ///
    /// If it can't be built: what `LARDER_TEST_CACHE` names isn't a store, or a data set can't be cached.
    pub async fn new(source: S) -> Self {
        Self::builder(source).build().await
    }

    /// Starts to build one.
    pub fn builder(source: S) -> TestCacheBuilder<S> {
        let (rt, clock) = Rt::movable();
        // The version is that of the test alone, so that of a database which tests share each has a generation of its own.
        let prefix = Prefix::random();
        let builder = Cache::builder(source)
            .rt(rt)
            .prefix(prefix)
            .version(prefix.to_string())
            .bounded()
            .strict_writes();
        TestCacheBuilder {
            builder,
            store: Store::Named,
            registry: Registry::new(),
            clock,
            rt,
            faults: Faults::new(),
            settle: Some(SETTLE),
        }
    }

    /// A handle of the cache, for the service that is tested.
    pub fn handle(&self) -> Cache<S> {
        self.cache.clone()
    }

    /// Moves the cache's clocks: TTLs, absences and the patience with others' leases follow it, and in the store in the
    /// process the leases themselves.
    ///
    /// A memcached keeps its own time. What it still has, the reader takes for what its age says, so TTLs can be tested on
    /// it; a lease there ends when it does.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Waits for the checks under way, and takes the stale hits that were found: what a reader was given, and isn't what the
    /// source has, and nobody was about to flush.
    ///
    /// A check costs a load, which belongs to no [`captured`](crate::captured); of more than 16 hits at once, and while a
    /// transaction is open, some aren't checked.
    ///
    /// ```
    /// # use larder_testing::doc::{Db, UserById};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # use larder_testing::TestCache;
    /// let db = Db::of(["Ada"]);
    /// let cache = TestCache::new(db.clone()).await;
    /// larder_core::warm::<UserById>(&cache, [0]).await.unwrap();
    ///
    /// db.rename(0, "Augusta"); // and no flush
    /// let user = larder_core::get::<UserById>(&cache, &0).await.unwrap().unwrap();
    /// assert_eq!(user.name, "Ada");
    ///
    /// let stale = cache.stale_hits().await;
    /// assert_eq!(stale[0].key, "user_by_id:0");
    /// assert_eq!(stale[0].differences[0].to_string(), r#"name: cached "Ada", true "Augusta""#);
    /// # }
    /// ```
    pub async fn stale_hits(&self) -> Vec<StaleHit> {
        self.cache.hits_checked().await;
        std::mem::take(&mut self.stale.lock())
    }

    /// Ends the test: waits for the checks under way, and closes the cache.
    ///
    /// A test that only drops it is told of those stale hits that were found by then.
    ///
    /// # Panics
    ///
    /// If there were stale hits.
    pub async fn finish(self) {
        self.cache.hits_checked().await;
        if !self.is_shared {
            self.cache.close(PARTING).await;
        }
    }

    /// What goes wrong in its store.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl<S: Source> Deref for TestCache<S> {
    type Target = Cache<S>;

    fn deref(&self) -> &Cache<S> {
        &self.cache
    }
}

impl<'a, S: Source> Reader<'a, S> for &'a TestCache<S> {
    fn route(self) -> Route<'a, S> {
        Route::Cached(&self.cache)
    }
}

impl<S: Source> Drop for TestCache<S> {
    fn drop(&mut self) {
        if !self.is_shared {
            // Its entries are nobody's from now on, and go as the store needs their room.
            let cache = self.cache.clone();
            self.rt
                .spawn_if_running(async move { cache.close(PARTING).await });
        }
        let stale = std::mem::take(&mut *self.stale.lock());
        if !stale.is_empty() && !std::thread::panicking() {
            let told: Vec<String> = stale.iter().map(ToString::to_string).collect();
            panic!(
                "readers were given what isn't true:\n\n{}\n\nwhoever writes it has to flush it; a test that writes past \
                 the service's write path flushes by hand, or builds its cache with `unchecked_hits`",
                told.join("\n")
            );
        }
    }
}

impl<S: Source> fmt::Debug for TestCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCache")
            .field("cache", &self.cache)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// Builds a [`TestCache`].
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_testing::TestCache;
///
/// let cache = TestCache::builder(Db::of(["Ada"]))
///     .register::<UserById>()
///     .with(|builder| builder.max_loads(2)) // whatever else a cache is built with
///     .build()
///     .await;
/// # }
/// ```
#[must_use]
pub struct TestCacheBuilder<S: Source> {
    builder: CacheBuilder<S>,
    store: Store,
    registry: Registry,
    clock: Clock,
    rt: Rt,
    faults: Faults,
    /// How long a check waits; `None` if there is none.
    settle: Option<Duration>,
}

/// Where entries are stored.
enum Store {
    /// Where the environment says.
    Named,
    Url(String),
    Shared(Arc<dyn Backend>),
}

impl<S: Source> TestCacheBuilder<S> {
    /// Checks `D` when the cache is built, and makes it part of the flush plans, as `larder::dataset!` does.
    pub fn register<D: Dataset<Source = S>>(self) -> Self {
        self.with(|builder| builder.register::<D>())
    }

    /// Gives it in-process tiers, which data sets with a tier need: `Tiers::default()`.
    pub fn tiers(self, tiers: impl Scopes) -> Self {
        self.with(|builder| builder.tiers(tiers))
    }

    /// Compresses the values of `D` with a dictionary: see
    /// [`CacheBuilder::dictionaries`](larder_core::CacheBuilder::dictionaries).
    pub fn dictionaries<D: Dataset<Source = S>>(
        self,
        current: Option<Dictionary>,
        older: impl IntoIterator<Item = Dictionary>,
    ) -> Self {
        self.with(|builder| builder.dictionaries::<D>(current, older))
    }

    /// Whatever else a cache is built with.
    pub fn with(mut self, change: impl FnOnce(CacheBuilder<S>) -> CacheBuilder<S>) -> Self {
        self.builder = change(self.builder);
        self
    }

    /// Stores entries here, whatever the environment says.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.store = Store::Url(url.into());
        self
    }

    /// Stores entries here, whatever the environment says: a store of the program's own, or one that tests of one runtime
    /// share. It is left open.
    pub fn backend(mut self, backend: Arc<dyn Backend>) -> Self {
        self.store = Store::Shared(backend);
        self
    }

    /// Doesn't check hits: for tests that count the source's own calls, or write behind the cache's back.
    pub fn unchecked_hits(mut self) -> Self {
        self.settle = None;
        self
    }

    /// How long a flush may come behind its write: 500 ms if not given. See [`HitCheck::settle`](larder_core::HitCheck::settle).
    pub fn settle(mut self, settle: Duration) -> Self {
        self.settle = Some(settle);
        self
    }

    /// Knows schemes of the program's own.
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// The cache.
    ///
    /// # Panics
    ///
    /// As [`TestCache::new`].
    pub async fn build(self) -> TestCache<S> {
        match self.try_build().await {
            Ok(cache) => cache,
            Err(error) => panic!("the cache of the test can't be built: {error}"),
        }
    }

    /// The cache, or what is wrong with what it is built of: for tests of that.
    ///
    /// # Errors
    ///
    /// Those of [`CacheBuilder::build`](larder_core::CacheBuilder::build).
    pub async fn try_build(self) -> Result<TestCache<S>> {
        let is_shared = matches!(self.store, Store::Shared(_));
        let builder = match self.store {
            Store::Shared(backend) => self.builder.backend(backend),
            Store::Url(url) => self.builder.config_with(self.registry, Config::new(&url)?),
            Store::Named => {
                let url = std::env::var(VARIABLE).unwrap_or_else(|_| DEFAULT.to_owned());
                self.builder.config_with(self.registry, Config::new(&url)?)
            }
        };
        let stale = Stale::default();
        let builder = match self.settle {
            Some(settle) => {
                let found = stale.clone();
                builder.check_hits(
                    HitCheck::one_in(1)
                        .settle(settle)
                        .at_once(CHECKS)
                        .reveal()
                        .on_stale(move |hit| found.lock().push(hit.clone())),
                )
            }
            None => builder,
        };
        let builder = builder.wrap(self.faults.around()).recorded();
        Ok(TestCache {
            cache: builder.build().await?,
            clock: self.clock,
            rt: self.rt,
            faults: self.faults,
            is_shared,
            stale,
        })
    }
}

impl<S: Source> fmt::Debug for TestCacheBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCacheBuilder")
            .field("builder", &self.builder)
            .finish_non_exhaustive()
    }
}
