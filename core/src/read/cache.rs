//! The handle: what one service shares between its reads and writes.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accessor::{Accessor, AnyAccessor, Dictionaries, Setting};
use super::accessors::Accessors;
use super::check::{HitCheck, HitChecker, HitChecks, Verdict};
use super::gather::Gathering;
use super::{
    Dataset, DeployImmutable, DeployTier, Event, Listener, Scope, Scopes, Source, Tier as _,
    TierKind,
};
use crate::Rt;
use crate::contract::{
    Backend, Error, ErrorKind, Key, Prefix, PrefixSettings, Result, ServerCheck,
};
use crate::entry::Dictionary;
use crate::generation::{Entrant, Generations, Manifest, OpenPool, holder, registered_pool};
use crate::stats::{CacheStats, Tally};
use crate::switches::{Mechanism, Switches};
use crate::write::{self, Backlog, LINKED, Outbox, Plans, Register, RegisterDataset, Writes};

/// How many loads run at once in one process, over all data sets.
const MAX_LOADS: usize = 32;

/// How long a load waits for a place below the caps.
const LOAD_QUEUE: Duration = Duration::from_secs(30);

/// How long a commit waits for the database.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A cache: a backend, a prefix, a source, and what reads share.
///
/// It is a handle: cloning it is cheap, and every clone is the same cache. Nothing is global, so that two caches in one
/// process, or a thousand in a test run, don't know of each other.
pub struct Cache<S: Source> {
    pub(crate) shared: Arc<Shared<S>>,
    pub(super) tally: Option<Arc<Tally>>,
    /// The request whose reads and flushes these are.
    pub(super) scope: Option<Arc<dyn Scope>>,
    /// Where its single reads meet, if they are batched. Handles that share it have the same tally and scope.
    pub(super) gathering: Option<Arc<Gathering>>,
}

/// What every clone of a cache shares.
pub(crate) struct Shared<S: Source> {
    pub(crate) source: S,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) generations: Generations,
    pub(crate) writes: Writes<S>,
    switches: Switches,
    pub(crate) rt: Rt,
    /// Places for loads, over all data sets.
    pub(crate) places: Arc<Semaphore>,
    pub(crate) load_queue: Duration,
    /// Loads, fills and flushes under way.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when no more loads may start.
    pub(crate) closing: CancellationToken,
    /// Fixed when the cache was built, so that hot paths find them without a lock.
    registered: Accessors,
    /// Those of data sets that were used without having been registered.
    others: RwLock<Accessors>,
    dictionaries: HashMap<TypeId, Dictionaries>,
    pub(crate) tiers: Option<Arc<dyn Scopes>>,
    /// What is kept as long as the cache lives.
    pub(crate) deploy: Option<Arc<dyn Scope>>,
    bypass: AtomicBool,
    listeners: Box<[Arc<dyn Listener<S>>]>,
    checker: Option<HitChecker>,
}

impl<S: Source> Shared<S> {
    /// Whether anybody listens: what there is to tell costs something.
    pub(crate) fn is_heard(&self) -> bool {
        !self.listeners.is_empty()
    }

    pub(crate) fn tell(&self, event: &Event<'_, S>) {
        for listener in &self.listeners {
            listener.hear(event);
        }
    }

    /// Whether a mechanism is switched off, as only a test does.
    pub(crate) fn without(&self, mechanism: Mechanism) -> bool {
        self.switches.is_off(mechanism)
    }

    /// Remembers that the server of this key was away, if that is what the error says.
    pub(crate) fn was_away(&self, error: &Error, key: Key<'_>) {
        if !self.without(Mechanism::AskAfterOutage) {
            self.writes.was_away(error, self.backend.server_of(key));
        }
    }

    /// Counts keys of a flush.
    pub(crate) fn count_flushed(&self, accessor: &str, confirmed: u64, unconfirmed: u64) {
        self.with(accessor, |known| {
            known.count_flushed(confirmed, unconfirmed);
        });
    }

    /// Counts a hit that was to be checked.
    pub(crate) fn count_checked(&self, accessor: &str, verdict: Verdict) {
        self.with(accessor, |known| known.count_checked(verdict));
    }

    /// What the checks of hits found; `None` if none is checked.
    pub(crate) fn hit_checks(&self) -> Option<HitChecks> {
        self.checker.as_ref()?;
        let (mut stale, mut checked) = (0, 0);
        self.each_accessor(|accessor| {
            let (of_stale, of_checked) = accessor.checked();
            stale += of_stale;
            checked += of_checked;
        });
        Some(HitChecks::of(stale, checked))
    }

    pub(crate) fn each_accessor(&self, mut see: impl FnMut(&dyn AnyAccessor)) {
        let others = self.others.read();
        let others = others.unwrap_or_else(PoisonError::into_inner);
        for accessor in self.registered.iter().chain(others.iter()) {
            see(&**accessor);
        }
    }

    /// Does this with the accessor of this name, if it is known.
    fn with(&self, accessor: &str, work: impl FnOnce(&dyn AnyAccessor)) {
        let others = self.others.read();
        let others = others.unwrap_or_else(PoisonError::into_inner);
        let known = self.registered.named(accessor).or(others.named(accessor));
        if let Some(known) = known {
            work(&**known);
        }
    }
}

impl<S: Source> Clone for Cache<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            tally: self.tally.clone(),
            scope: self.scope.clone(),
            gathering: self.gathering.clone(),
        }
    }
}

impl<S: Source> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("backend", &self.shared.backend)
            .field("generations", &self.shared.generations)
            .finish_non_exhaustive()
    }
}

impl<S: Source> Cache<S> {
    /// Starts to build a cache whose loads come from this source.
    pub fn builder(source: S) -> CacheBuilder<S> {
        CacheBuilder {
            source,
            open: None,
            wrap: Vec::new(),
            prefix: None,
            rt: Rt::new(),
            load_queue: LOAD_QUEUE,
            max_loads: MAX_LOADS,
            dictionaries: HashMap::new(),
            register: Vec::new(),
            tiers: None,
            warm: Vec::new(),
            version: None,
            bounded: false,
            strict: false,
            commit_timeout: COMMIT_TIMEOUT,
            open_pool: None,
            switches: Switches::default(),
            listeners: Vec::new(),
            check_hits: None,
        }
    }

    /// A clone that counts what its own reads and writes cost.
    ///
    /// For a request's response headers, a test that counts trips, a report of one job.
    pub fn tallied(&self) -> (Self, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        let clone = Self {
            shared: Arc::clone(&self.shared),
            tally: Some(Arc::clone(&tally)),
            scope: self.scope.clone(),
            gathering: self.gathering_apart(),
        };
        (clone, tally)
    }

    /// What this handle counts for, if it is a [`tallied`](Self::tallied) one.
    pub fn tally(&self) -> Option<&Arc<Tally>> {
        self.tally.as_ref()
    }

    /// A clone whose reads and flushes belong to this scope: what a request reader is made of.
    ///
    /// A handle that carries a scope isn't a [`ScopedReader`](super::ScopedReader) yet; the reader that holds it is.
    pub fn within(&self, scope: impl Into<Option<Arc<dyn Scope>>>) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            tally: self.tally.clone(),
            scope: scope.into(),
            gathering: self.gathering_apart(),
        }
    }

    /// A clone that belongs to no request: for what goes on when the request is over.
    pub(super) fn without_scope(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            tally: self.tally.clone(),
            scope: None,
            gathering: None,
        }
    }

    /// A clone that batches: calls of [`get`](super::get) that are made through it, or through its clones, at the same time
    /// become one bulk read for each data set: one trip, one call of the loader, one fill.
    ///
    /// For code whose parts know only their own keys: the lines of a page, the resolvers of a query, the futures of a
    /// stream. Each call gives everything that can run a turn, and what has come together by then is sent as
    /// [`get_many`](super::get_many) would. A call that finds itself alone reads as ever. Where all keys are in one hand,
    /// `get_many` is cheaper.
    ///
    /// A batch is closed when it is sent, and a call that begins later is in the next one, so that it sees every write that
    /// was acknowledged before it began. What a batch doesn't change is what an answer may be; it changes when it comes and
    /// what it shares:
    ///
    /// - All are answered together: a hit waits for what its siblings have to load.
    /// - A load that fails, fails every call that needed it. Calls that the store or a tier could answer are answered.
    /// - A loader that reads other keys of its own data set through the cache may find them in its own batch, and is told
    ///   [`Recursive`](super::LoadError::Recursive), as in any bulk read.
    ///
    /// Not batched are [`uncached`](super::uncached), [`refresh`](super::refresh), reads past the cache, and what loaders
    /// read. A handle made of this one that counts apart or belongs to a request batches too, apart from this one.
    ///
    /// ```
    /// # use larder_core::{Cache, Dataset, LoadError, Source};
    /// # async fn show<S: Source, UserById: Dataset<Source = S, Key = u64, Tier = larder_core::NoTier, Value: Clone>>(cache: Cache<S>) -> Result<(), LoadError<UserById::Error>> {
    /// let cache = cache.batched();
    /// let reads = [7, 9, 7].map(async |id| larder_core::get::<UserById>(&cache, &id).await);
    /// // 7 and 9 are asked for once, in one trip.
    /// let users = futures_util::future::try_join_all(reads).await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn batched(&self) -> Self {
        Self {
            gathering: Some(self.gathering.clone().unwrap_or_default()),
            ..self.clone()
        }
    }

    /// For a handle with another tally or scope: it batches like this one, and apart from it.
    fn gathering_apart(&self) -> Option<Arc<Gathering>> {
        self.gathering.as_ref().map(|_| Arc::default())
    }

    /// The scope that this handle's reads and flushes belong to, if it carries one.
    pub fn scope(&self) -> Option<&Arc<dyn Scope>> {
        self.scope.as_ref()
    }

    /// Whether both are handles of one cache.
    pub fn is_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The in-process tiers, if it has any.
    pub fn tiers(&self) -> Option<&Arc<dyn Scopes>> {
        self.shared.tiers.as_ref()
    }

    /// The store behind it.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.shared.backend
    }

    /// The prefix under which entries are read and filled now.
    pub fn prefix(&self) -> Prefix {
        self.shared.generations.prefix()
    }

    /// The prefix of this data set's keys.
    pub(super) fn prefix_of<D: Dataset>(&self) -> Prefix {
        self.shared.generations.prefix_of(D::NAME)
    }

    /// Plain numbers since the cache was built, one set per data set that was registered or used.
    pub fn stats(&self) -> CacheStats {
        let mut tiers = self.shared.tiers.as_ref().map(|tiers| tiers.stats());
        let mut accessors = Vec::new();
        self.shared.each_accessor(|accessor| {
            let stats = accessor.stats();
            let tier = match (accessor.tier(), &mut tiers) {
                (TierKind::Request, Some(tiers)) => Some(&mut tiers.request),
                (TierKind::Deploy, Some(tiers)) => Some(&mut tiers.deploy),
                _ => None,
            };
            if let Some(tier) = tier {
                tier.hits += stats.tier_hits;
                tier.misses += stats.tier_misses;
            }
            accessors.push(stats);
        });
        accessors.sort_by_key(|stats| stats.name);
        let Shared {
            generations,
            writes,
            ..
        } = &*self.shared;
        CacheStats {
            hit_checks: self.shared.hit_checks(),
            accessors,
            tiers,
            backend: self.shared.backend.stats(),
            writes: writes.stats(),
            generations: generations.live(),
            uncached: generations.uncached(),
        }
    }

    /// Waits for the [checks of hits](CacheBuilder::check_hits) that are under way: for tests.
    pub async fn hits_checked(&self) {
        if let Some(checker) = &self.shared.checker {
            checker.over().await;
        }
    }

    /// Asks every server of the backend for its state, now.
    pub async fn check(&self) -> Vec<ServerCheck> {
        self.shared.backend.check().await
    }

    /// Sends all reads past the store, or through it again; writes still flush.
    ///
    /// For the day on which the store is suspected. The in-process tiers go on: a request that reads a key a thousand
    /// times loads it once. What a request under way had already read, from the store, it keeps until it ends.
    pub fn bypass(&self, bypass: bool) {
        self.shared.bypass.store(bypass, Ordering::Relaxed);
    }

    /// Sends the reads of the data set of this name past the store, or through it again; `false` if there is none that
    /// was registered or used.
    pub fn bypass_accessor(&self, name: &str, bypass: bool) -> bool {
        let mut known = false;
        self.shared.each_accessor(|accessor| {
            if accessor.name() == name {
                accessor.set_bypass(bypass);
                known = true;
            }
        });
        known
    }

    /// Starts no more loads, waits for those under way, for their fills, and for commits and flushes, and closes the
    /// backend.
    ///
    /// Called before the runtime ends, since that would cut a flush off from its commit. What isn't flushed by then stays
    /// in the outbox, if there is one. It takes at most three times the deadline. Reads that still come are answered from the store until it is closed, and
    /// with [`LoadError::Closed`](super::LoadError::Closed) where they would have to load.
    pub async fn close(&self, deadline: Duration) {
        self.shared.tasks.close();
        self.shared.closing.cancel();
        let finished = self
            .shared
            .rt
            .timeout(deadline, self.shared.tasks.wait())
            .await;
        if finished.is_none() {
            tracing::warn!(
                tasks = self.shared.tasks.len(),
                "larder was closed with loads, fills or flushes under way"
            );
        }
        let finish = write::finish(&self.shared);
        self.shared.rt.timeout(deadline, finish).await;
        let Shared {
            backend,
            generations,
            ..
        } = &*self.shared;
        generations.close(backend, deadline).await;
        backend.close(deadline).await;
    }

    /// Gives up all entries of a data set, in every process that shares this cache's database: the next reads load.
    ///
    /// Every process knows within 2 s; until then those that don't read what they did before. Needs a source with an
    /// [outbox](Source::outbox), and can be done once a minute for each data set.
    ///
    /// # Errors
    ///
    /// If nothing tells the other processes, the database can't be asked, or the last purge was a moment ago.
    pub async fn purge(&self, accessor: &str) -> Result<()> {
        let mut known = false;
        self.shared
            .each_accessor(|each| known |= each.name() == accessor);
        if !known {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "there is no data set `{}` to purge",
                    accessor.escape_debug()
                ),
            ));
        }
        self.shared.generations.purge(accessor).await
    }

    /// What waits in the outbox now; `None` without one.
    ///
    /// # Errors
    ///
    /// If the database can't be asked.
    pub async fn backlog(&self) -> Result<Option<Backlog>> {
        match &self.shared.writes.outbox {
            Some(outbox) => outbox.backlog().await.map(Some),
            None => Ok(None),
        }
    }

    /// Begins anew: every live generation ends, and every process registers another one, with an empty cache.
    ///
    /// For after a restore of the database to an earlier state, when what is cached is newer than what is true. In SQL it
    /// is `DELETE FROM larder_generation`. Other processes notice when they look at the register again, within 2 s.
    /// Transactions under way aren't waited for.
    ///
    /// # Errors
    ///
    /// If the source has no [outbox](Source::outbox), or the database can't be asked.
    pub async fn rotate(&self) -> Result<()> {
        self.shared.generations.rotate().await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.tasks.is_closed()
    }

    /// Whether reads of this data set go past the store: by order, or because it can't be cached as it is.
    pub(super) fn is_bypassed_for<D: Dataset>(&self, accessor: &Accessor<D>) -> bool {
        self.shared.bypass.load(Ordering::Relaxed)
            || accessor.is_bypassed()
            || accessor.marshaller.is_err()
    }

    /// Where the tier of this data set keeps what this handle's readers get, if it keeps anything.
    pub(super) fn scope_of<D: Dataset<Source = S>>(
        &self,
        accessor: &Accessor<D>,
    ) -> Option<&dyn Scope> {
        match D::Tier::KIND {
            // What can't be cached as it is may have the name, and so the keys, of another data set.
            _ if accessor.marshaller.is_err() => None,
            TierKind::None => None,
            TierKind::Request => self.scope.as_deref(),
            TierKind::Deploy => self.shared.deploy.as_deref(),
        }
    }

    /// What all reads of this data set share, if it was registered: found without a lock.
    pub(super) fn registered<D: Dataset<Source = S>>(&self) -> Option<&Accessor<D>> {
        let accessor: &dyn Any = &**self.shared.registered.of::<D>()?;
        accessor.downcast_ref()
    }

    /// What all reads of this data set share; made on first use.
    pub(super) fn accessor<D: Dataset<Source = S>>(&self) -> Arc<Accessor<D>> {
        let any = match self.shared.registered.of::<D>() {
            Some(registered) => Arc::clone(registered),
            None => self.unregistered::<D>(),
        };
        let any: Arc<dyn Any + Send + Sync> = any;
        any.downcast().expect("accessors are kept by their type")
    }

    fn unregistered<D: Dataset<Source = S>>(&self) -> Arc<dyn AnyAccessor> {
        let known = {
            let others = self.shared.others.read();
            let others = others.unwrap_or_else(PoisonError::into_inner);
            others.of::<D>().map(Arc::clone)
        };
        known.unwrap_or_else(|| self.first_use::<D>())
    }

    fn first_use<D: Dataset<Source = S>>(&self) -> Arc<dyn AnyAccessor> {
        let shared = &*self.shared;
        let setting = Setting {
            late: true,
            outbox: shared.writes.outbox.is_some(),
            pool: &shared.backend.pool(),
            dictionaries: &shared.dictionaries,
            tiers: shared.tiers.is_some(),
        };
        let mut others = shared.others.write();
        let others = others.as_deref_mut();
        let others = others.unwrap_or_else(|poisoned| poisoned.get_mut());
        let accessor = others.add::<D>(&setting, &shared.registered);
        if let Some(problem) = accessor.problem() {
            tracing::error!(
                accessor = D::NAME,
                %problem,
                "reads of this data set go past the cache"
            );
        }
        accessor
    }
}

/// Has values built once the cache is there.
type Warm<S> = Box<dyn FnOnce(&Cache<S>) + Send>;

/// Opens the backend, when the cache is built.
type Open = Box<dyn FnOnce(Rt) -> Result<(Arc<dyn Backend>, PrefixSettings)> + Send>;

/// Puts something around the backend.
type Wrap = Box<dyn FnOnce(Arc<dyn Backend>, Rt) -> Arc<dyn Backend> + Send>;

/// Builds a [`Cache`].
///
/// ```
/// # use std::time::Duration;
/// # use larder_core::{Backend, Cache, Dataset, Prefix, Source};
/// # use std::sync::Arc;
/// # async fn build<S: Source, UserById: Dataset<Source = S>>(pool: S, backend: Arc<dyn Backend>) -> Result<(), Box<dyn std::error::Error>> {
/// let cache = Cache::builder(pool)
///     .backend(backend)
///     .prefix(Prefix::new("git-3f2a91c")?)
///     .register::<UserById>() // what can't be cached as it is fails here, not at night
///     .build()
///     .await?;
/// # Ok(()) }
/// ```
#[must_use]
pub struct CacheBuilder<S: Source> {
    source: S,
    open: Option<Open>,
    wrap: Vec<Wrap>,
    prefix: Option<Prefix>,
    rt: Rt,
    load_queue: Duration,
    max_loads: usize,
    dictionaries: HashMap<TypeId, Dictionaries>,
    register: Vec<RegisterDataset>,
    tiers: Option<Arc<dyn Scopes>>,
    warm: Vec<Warm<S>>,
    version: Option<String>,
    bounded: bool,
    strict: bool,
    commit_timeout: Duration,
    open_pool: Option<OpenPool>,
    switches: Switches,
    listeners: Vec<Arc<dyn Listener<S>>>,
    check_hits: Option<HitCheck>,
}

impl<S: Source> fmt::Debug for CacheBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl<S: Source> CacheBuilder<S> {
    /// Stores entries here.
    pub fn backend(self, backend: Arc<dyn Backend>) -> Self {
        self.open(|_| Ok((backend, PrefixSettings::default())))
    }

    /// Stores entries in what this opens when the cache is built, with the builder's time and tasks: the way in for a
    /// configuration, which says something about the prefix as well.
    pub fn open<F>(mut self, open: F) -> Self
    where
        F: FnOnce(Rt) -> Result<(Arc<dyn Backend>, PrefixSettings)> + Send + 'static,
    {
        self.open = Some(Box::new(open));
        self
    }

    /// Puts this around the backend, whatever opens that: [`Observed::new`](crate::Observed::new), or a wrapper of the
    /// program's own. Of several the last is the outermost.
    pub fn wrap<B: Backend>(
        mut self,
        wrapper: impl FnOnce(Arc<dyn Backend>, Rt) -> B + Send + 'static,
    ) -> Self {
        self.wrap
            .push(Box::new(|backend, rt| Arc::new(wrapper(backend, rt))));
        self
    }

    /// Begins every key with this, and a hash of the backend's pool: the same in all processes that share entries, and
    /// another for each version of the code that reads them differently.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = Some(prefix);
        self
    }

    /// Names the version of the code, for a source with an [outbox](Source::outbox): processes of one version and one pool
    /// share entries. The same for all programs of a deployment, the web server and the worker; another for every build
    /// that means something else.
    ///
    /// Not given, it is the configured prefix, or else a hash of the running program.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Allows a store that is private to this process on a database that other processes write to: their writes are seen
    /// after the TTL.
    pub fn bounded(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// Makes mistakes of writers errors, as tests want it: a transaction that wrote and says neither what changed nor that
    /// nothing did is refused, one that is dropped with changes panics.
    pub fn strict_writes(mut self) -> Self {
        self.strict = true;
        self
    }

    /// How long a commit waits for the database; 30 s if not given. What comes before the commit itself, as the insert into
    /// the outbox, is refused then; the commit is [`CommitError::Unknown`](crate::CommitError::Unknown).
    ///
    /// For connections that are cut without a word, which TCP gives up after a quarter of an hour or so. Longer than the
    /// database ever takes, as where it waits for a standby.
    pub fn commit_timeout(mut self, limit: Duration) -> Self {
        self.commit_timeout = limit;
        self
    }

    /// Opens the pools of other generations, by the description of each: those that are live after the configuration of the
    /// pool was changed have to be flushed too. The configuration that opens the own pool opens those as well.
    pub fn open_pools<F>(mut self, open: F) -> Self
    where
        F: Fn(&str, Rt) -> Result<Arc<dyn Backend>> + Send + Sync + 'static,
    {
        self.open_pool = Some(Box::new(open));
        self
    }

    /// Tells this what the cache does; several may listen.
    pub fn listener(mut self, listener: Arc<dyn Listener<S>>) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Loads a sample of hits again, and compares: what is cached and isn't true is counted, and logged as an error.
    ///
    /// Not given, nothing is checked.
    pub fn check_hits(mut self, check: HitCheck) -> Self {
        self.check_hits = Some(check);
        self
    }

    /// Switches a mechanism off, so that a test can see what it is for.
    #[cfg(feature = "switches")]
    pub fn without(mut self, mechanism: Mechanism) -> Self {
        self.switches.turn_off(mechanism);
        self
    }

    /// Time and tasks; a test may give clocks of its own.
    pub fn rt(mut self, rt: Rt) -> Self {
        self.rt = rt;
        self
    }

    /// How long a load waits for a place below the caps before it is `Overloaded`; 30 s if not given.
    pub fn load_queue(mut self, limit: Duration) -> Self {
        self.load_queue = limit;
        self
    }

    /// How many loads run at once, over all data sets; 32 if not given.
    pub fn max_loads(mut self, count: usize) -> Self {
        self.max_loads = count;
        self
    }

    /// Compresses the values of `D` with the `current` dictionary, and reads those of `older` ones too.
    ///
    /// To roll a new one out, first make every reader know it (`None`, or the former one, as current), then write with
    /// it. Without a current one values are compressed without.
    pub fn dictionaries<D: Dataset<Source = S>>(
        mut self,
        current: Option<Dictionary>,
        older: impl IntoIterator<Item = Dictionary>,
    ) -> Self {
        let dictionaries = Dictionaries {
            current,
            older: older.into_iter().collect(),
        };
        self.dictionaries.insert(TypeId::of::<D>(), dictionaries);
        self.register::<D>()
    }

    /// Checks `D` when the cache is built: its name, the shape of its value, its codec.
    ///
    /// A data set that isn't registered is checked at its first use, and read past the cache if it can't be cached.
    pub fn register<D: Dataset<Source = S>>(mut self) -> Self {
        self.register
            .push(|accessors, setting| accessors.add::<D>(setting, &Accessors::default()));
        self
    }

    /// Keeps the decoded values of requests, and of the running code, in these tiers: what data sets with a
    /// [`Tier`](super::Tier) need.
    ///
    /// Several caches of one process may share them, and so their budget.
    pub fn tiers(mut self, tiers: impl Scopes) -> Self {
        self.tiers = Some(Arc::new(tiers));
        self
    }

    /// Registers `D`, and has the values of these keys built in the background once the cache is there: `build` doesn't
    /// wait for them, and a build that fails is tried again until it succeeds or the cache is closed.
    pub fn warm<D>(mut self, keys: impl IntoIterator<Item = D::Key>) -> Self
    where
        D: Dataset<Source = S, Tier = DeployTier, Value: DeployImmutable>,
    {
        let keys: Vec<D::Key> = keys.into_iter().collect();
        self.warm.push(Box::new(move |cache| {
            super::fetch::warm_apart::<D>(cache, keys);
        }));
        self.register::<D>()
    }

    /// The cache.
    ///
    /// Fails if no backend was given or it can't be opened, if its configuration requires servers at the start and one
    /// doesn't answer, if a backend that others share has no prefix, or if a registered data set can't be cached. Without [`CacheBuilder::prefix`] the configuration's is taken, and a backend
    /// that is private to the process gets a random one.
    pub async fn build(self) -> Result<Cache<S>> {
        let Some(open) = self.open else {
            return Err(Error::new(
                ErrorKind::Config,
                "the cache has no backend; give it one by CacheBuilder::backend, or a configuration",
            ));
        };
        let (mut backend, configured) = open(self.rt)?;
        for wrap in self.wrap {
            backend = wrap(backend, self.rt);
        }
        backend.start().await?;
        let outbox = self.source.outbox();
        let mut registered = Accessors::default();
        let setting = Setting {
            late: false,
            outbox: outbox.is_some(),
            pool: &backend.pool(),
            dictionaries: &self.dictionaries,
            tiers: self.tiers.is_some(),
        };
        let source_type = TypeId::of::<S>();
        let linked = LINKED
            .iter()
            .filter(|linked| (linked.source)() == source_type);
        let linked = linked.map(|linked| linked.register);
        for register in linked.chain(self.register) {
            let accessor = register(&mut registered, &setting);
            if let Some(problem) = accessor.problem() {
                return Err(problem.clone());
            }
            tracing::debug!(accessor = accessor.name(), "registered");
        }
        // Before the registration, which would outlast a refusal.
        let plans = Plans::new(registered.iter())?;
        let generations = match &outbox {
            Some(outbox) => {
                let mut manifest = Manifest::default();
                for accessor in registered.iter() {
                    if let Some(listed) = accessor.listed(plans.life(accessor.name())) {
                        manifest.list(accessor.name(), listed);
                    }
                }
                let configured = || Some(configured.prefix?.to_string());
                let given = self.prefix.map(|prefix| prefix.to_string());
                let entrant = Entrant {
                    version: match self.version.or(given).or_else(configured) {
                        Some(version) => version,
                        None => program_hash(self.rt).await?,
                    },
                    pool: registered_pool(&backend.pool()),
                    holder: holder(),
                    manifest,
                    bounded: self.bounded,
                    switches: self.switches,
                };
                let open = self.open_pool.unwrap_or_else(|| Box::new(cant_open));
                let outbox: Arc<dyn Outbox<S::Conn>> = Arc::clone(outbox);
                let (register, backend) = (outbox as Arc<dyn Register>, Arc::clone(&backend));
                Generations::enter(register, entrant, backend, open, self.rt).await?
            }
            None => {
                let prefix = match self.prefix {
                    Some(prefix) => prefix,
                    None => configured.resolve(&backend.pool())?,
                };
                Generations::single(prefix, Arc::clone(&backend), self.rt, self.switches)
            }
        };
        let checker = self.check_hits.map(|check| HitChecker::new(check, self.rt));
        let mut listeners = self.listeners;
        listeners.extend(
            checker
                .clone()
                .map(|checker| Arc::new(checker) as Arc<dyn Listener<S>>),
        );
        let cache = Cache {
            shared: Arc::new(Shared {
                source: self.source,
                generations,
                writes: Writes::new(plans, outbox, self.strict, self.commit_timeout),
                switches: self.switches,
                backend,
                rt: self.rt,
                places: Arc::new(Semaphore::new(
                    self.max_loads.clamp(1, Semaphore::MAX_PERMITS),
                )),
                load_queue: self.load_queue,
                tasks: TaskTracker::new(),
                closing: CancellationToken::new(),
                registered,
                others: RwLock::default(),
                dictionaries: self.dictionaries,
                deploy: self.tiers.as_ref().map(|tiers| tiers.deploy()),
                tiers: self.tiers,
                bypass: AtomicBool::new(false),
                listeners: listeners.into(),
                checker,
            }),
            tally: None,
            scope: None,
            gathering: None,
        };
        if let Err(error) = write::start(&cache.shared).await {
            cache.shared.generations.leave().await;
            return Err(error);
        }
        for warm in self.warm {
            warm(&cache);
        }
        #[cfg(feature = "metrics")]
        drop(self.rt.spawn(crate::publish::keep_publishing(
            Arc::downgrade(&cache.shared),
            self.rt,
        )));
        Ok(cache)
    }
}

/// A hash of the running program: the version of the code where nobody names one.
async fn program_hash(rt: Rt) -> Result<String> {
    let hash = rt.spawn_blocking(|| {
        let path = std::env::current_exe()?;
        std::io::Result::Ok(blake3::hash(&std::fs::read(path)?))
    });
    match hash.await {
        Ok(Ok(hash)) => Ok(format!("program-{}", &hash.to_hex()[..16])),
        Ok(Err(error)) => Err(unnamed(error.to_string())),
        Err(error) => Err(unnamed(error.to_string())),
    }
}

fn unnamed(problem: String) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "the running program can't be read to tell its version ({problem}); name it by CacheBuilder::version, or \
             configure a prefix"
        ),
    )
}

fn cant_open(pool: &str, _: Rt) -> Result<Arc<dyn Backend>> {
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "a live generation has its entries in {pool}, which this process can't open to flush it; build the cache from \
             a configuration, or give it CacheBuilder::open_pools"
        ),
    ))
}
