//! One load: a place below the caps, the source, the fill, in a task of its own.
//!
//! Callers may leave, the load goes on: its leases are filled or released whatever happens.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::accessor::{Accessor, AnyAccessor};
use super::flight::{Load, Outcome, Phase};
use super::{
    Answer, Cache, Dataset, Event, KeyOf, Lifetime, LoadError, Recall, Rows, Scope, Source, Tier,
    TierKind, check, memo,
};
use crate::contract::{
    Error, ErrorKind, Fill, FillOutcome, Keys, Lease, Lost, Prefix, Result, Set, Trips,
    WriteOptions,
};
use crate::rt::unwinding;
use crate::stats::Unsettled;
use crate::{Instant, Mechanism};

/// A load waits no longer for a connection while a transaction is open, where mistakes of writers are errors.
const SOON: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// The load that this task runs, and those that wait for it: the only thing in larder that travels with a task.
    static LOADING: Arc<Chain>;
}

/// A load, and the load whose loader asked for it.
struct Chain {
    /// The cache, so that equal keys of two caches don't count as one.
    cache: usize,
    dataset: TypeId,
    /// Its accessor, which knows its bases.
    accessor: Arc<dyn AnyAccessor>,
    /// The `Load<D>` of this data set.
    load: Arc<dyn Any + Send + Sync>,
    parent: Option<Arc<Self>>,
}

/// Whether the caller is the loader of one of these keys: waiting for it would never end.
pub(super) fn is_recursive<'k, D: Dataset>(
    cache: &Cache<D::Source>,
    mut keys: impl Iterator<Item = &'k D::Key>,
) -> bool {
    LOADING
        .try_with(|chain| {
            let mut links = Vec::new();
            let mut link = Some(chain);
            while let Some(chain) = link {
                if chain.cache == address(cache)
                    && chain.dataset == TypeId::of::<D>()
                    && let Some(load) = chain.load.downcast_ref::<Load<D>>()
                {
                    links.push(load);
                }
                link = chain.parent.as_ref();
            }
            !links.is_empty() && keys.any(|key| links.iter().any(|load| load.keys.contains(key)))
        })
        .unwrap_or(false)
}

fn address<S: Source>(cache: &Cache<S>) -> usize {
    Arc::as_ptr(&cache.shared) as usize
}

/// The keys of one load, and the leases under which what it answers may be stored.
pub(super) struct Order<D: Dataset> {
    pub(super) keys: Vec<D::Key>,
    pub(super) leases: Vec<Option<Lease>>,
    /// The wire keys of those that have a lease, in order.
    pub(super) wire: Keys,
    /// The leases are tokens of good entries, which stay if the load fails.
    pub(super) replaces: bool,
}

/// Whether the caller is the loader of something that isn't declared to be derived from this data set, which may be
/// flushed before this, and built from what is old of it.
pub(super) fn is_undeclared<D: Dataset>() -> bool {
    LOADING
        .try_with(|chain| {
            D::LIFETIME != Lifetime::Immutable && !chain.accessor.plan().has_base(D::NAME)
        })
        .unwrap_or(false)
}

/// Whether the caller is a loader.
pub(super) fn is_nested() -> bool {
    LOADING.try_with(|_| ()).is_ok()
}

/// Starts a load in a task of its own.
///
/// The caller waits with [`Load::lead`], or leaves.
pub(super) fn start<D: Dataset>(
    cache: &Cache<D::Source>,
    accessor: &Arc<Accessor<D>>,
    prefix: Prefix,
    order: Order<D>,
) -> Arc<Load<D>> {
    let tokens = order
        .leases
        .iter()
        .map(|lease| lease.as_ref().map(|lease| lease.token))
        .collect();
    let span = tracing::debug_span!("larder.load", accessor = D::NAME, keys = order.keys.len());
    let load = Load::new(order.keys, tokens, prefix);
    let before = match check::is_checking() {
        // Nobody joins it: what readers ask of the source is to be as without the check.
        true => Vec::new(),
        false => accessor.flights.register(&load),
    };
    if cache.shared.is_heard() {
        cache.shared.tell(&Event::LoadStarted {
            accessor: D::NAME,
            keys: load.keys.len(),
        });
    }
    let parent = LOADING.try_with(Arc::clone).ok();
    let running = Running {
        cache: cache.without_scope(),
        accessor: Arc::clone(accessor),
        load: Arc::clone(&load),
        nested: parent.is_some(),
        replaces: order.replaces,
        over: false,
        filled: 0,
        _unsettled: cache.tally.as_ref().map(|tally| tally.unsettled()),
    };
    let chain = Arc::new(Chain {
        cache: address(cache),
        dataset: TypeId::of::<D>(),
        accessor: Arc::clone(accessor) as _,
        load: Arc::clone(&load) as _,
        parent,
    });
    let task = LOADING.scope(chain, running.run(before, order.leases, order.wire));
    let tracked = cache.shared.tasks.track_future(task.instrument(span));
    drop(cache.shared.rt.spawn(tracked));
    load
}

/// A load under way. Dropped before it is over (by a panic, or with the runtime), it fails its waiters.
struct Running<D: Dataset> {
    cache: Cache<D::Source>,
    accessor: Arc<Accessor<D>>,
    load: Arc<Load<D>>,
    /// Whether a loader asked for it, which holds places already.
    nested: bool,
    replaces: bool,
    over: bool,
    /// How much of it the store took.
    filled: usize,
    _unsettled: Option<Unsettled>,
}

impl<D: Dataset> Drop for Running<D> {
    fn drop(&mut self) {
        if !self.over {
            self.load
                .publish(Err(LoadError::Panicked { accessor: D::NAME }));
            self.load.settle(Vec::new());
        }
        self.accessor.flights.remove(&self.load);
        if self.cache.shared.is_heard() {
            self.cache.shared.tell(&Event::LoadSettled {
                accessor: D::NAME,
                filled: self.filled,
            });
        }
    }
}

impl<D: Dataset> Running<D> {
    async fn run(mut self, before: Vec<Arc<Load<D>>>, leases: Vec<Option<Lease>>, wire: Keys) {
        let (rows, cost) = match self.place(before).await {
            Ok(_place) => {
                self.load.advance(Phase::Loading);
                match self.built() {
                    Some(built) if built.iter().all(Option::is_some) => (Ok(built), Duration::ZERO),
                    built => {
                        let known = built.iter().flatten().flatten().count();
                        let started = self.cache.shared.rt.now();
                        let rows = self.ask_source(built).await;
                        self.keep_built(&rows);
                        let cost = self.count(started, known, &rows);
                        (rows, cost)
                    }
                }
            }
            Err(error) => (Err(error), Duration::ZERO),
        };
        let fills = match &rows {
            Ok(values) => self.seal(values, leases, &wire, cost),
            Err(error) => {
                self.count_failure(error);
                match self.replaces {
                    true => Fills::default(),
                    false => Fills::release_all(leases),
                }
            }
        };
        let stored = self.store(rows, fills, &wire).await;
        self.filled = stored.iter().filter(|stored| **stored).count();
        self.load.settle(stored);
        self.over = true;
    }

    /// Waits for a place below the caps, and for the loads of the same keys that must be over first.
    async fn place(
        &self,
        before: Vec<Arc<Load<D>>>,
    ) -> Result<Option<[OwnedSemaphorePermit; 2]>, LoadError<D::Error>> {
        let shared = &self.cache.shared;
        let place = async {
            if self.nested {
                // The loader that asked holds a place, or the value that others wait for: were it to wait for another
                // one, as many of them as there are places would wait for each other.
                self.back_off().await?;
                return Ok(None);
            }
            for load in before {
                load.reached(Phase::Loaded).await;
            }
            // Not until now is it known which of them failed.
            self.back_off().await?;
            let own = Arc::clone(&self.accessor.places).acquire_owned().await;
            let common = Arc::clone(&shared.places).acquire_owned().await;
            Ok(Some([own, common].map(|permit| {
                permit.expect("the semaphores are never closed")
            })))
        };
        let limit = shared.load_queue;
        let place = shared.rt.timeout(limit, place).await;
        place.unwrap_or(Err(LoadError::Overloaded {
            accessor: D::NAME,
            after: limit,
        }))
    }

    /// Waits until what failed to be built for the deploy tier may be tried again.
    async fn back_off(&self) -> Result<(), LoadError<D::Error>> {
        if D::Tier::KIND != TierKind::Deploy {
            return Ok(());
        }
        let Some(until) = self.accessor.backoff.until(&self.load.keys) else {
            return Ok(());
        };
        let shared = &self.cache.shared;
        let waited = shared
            .closing
            .run_until_cancelled(shared.rt.sleep_until(until));
        waited.await.ok_or(LoadError::Closed { accessor: D::NAME })
    }

    /// What the deploy tier has of the keys by now: somebody else may have built it since the reader looked. `None` if
    /// there is no such tier.
    fn built(&self) -> Option<Vec<Option<Answer<D>>>> {
        let scope = self.deploy_scope()?;
        let recall = |key: &D::Key| match self.in_scope(scope, key)? {
            (_, Recall::Kept(value)) => value,
            _ => None,
        };
        let only = self.accessor.only.get();
        let built = self.load.keys.iter().map(|key| match only {
            Some(only) => Some(only.value.clone()),
            None => recall(key),
        });
        Some(built.collect())
    }

    /// Puts what was built into the deploy tier, whether or not its reader still waits; or remembers that it failed.
    fn keep_built(&self, rows: &Outcome<D>) {
        let Some(scope) = self.deploy_scope() else {
            return;
        };
        let keys = &self.load.keys;
        let Ok(values) = rows else {
            return self
                .accessor
                .backoff
                .failed(keys, self.cache.shared.rt.now());
        };
        self.accessor.backoff.succeeded(keys);
        for (key, value) in keys.iter().zip(values) {
            if let Some((wire, Recall::Unknown(mark))) = self.in_scope(scope, key) {
                let key = wire.get(0);
                memo::put(
                    &self.cache,
                    &*self.accessor,
                    scope,
                    key,
                    mark,
                    value.as_ref(),
                );
            }
        }
    }

    fn deploy_scope(&self) -> Option<&dyn Scope> {
        match D::Tier::KIND {
            TierKind::Deploy => self.cache.scope_of(&*self.accessor),
            TierKind::None | TierKind::Request => None,
        }
    }

    /// The wire key, and what the scope has of it; `None` for what can't be a key.
    fn in_scope(&self, scope: &dyn Scope, key: &D::Key) -> Option<(Keys, Recall<Answer<D>>)> {
        let mut wire = Keys::new();
        let arguments = KeyOf::<D>(key);
        wire.push(self.cache.prefix_of::<D>(), D::NAME, &arguments)
            .ok()?;
        let recalled = memo::recall::<D>(scope, wire.get(0));
        Some((wire, recalled))
    }

    /// Asks the source for what isn't built yet, and puts its rows into the order of the keys.
    async fn ask_source(&self, built: Option<Vec<Option<Answer<D>>>>) -> Outcome<D> {
        let mut values = built.unwrap_or_default();
        values.resize_with(self.load.keys.len(), || None);
        let missing = self.load.keys.iter().zip(&values);
        let missing = missing.filter(|(_, value)| value.is_none());
        let keys: Vec<D::Key> = missing.map(|(key, _)| key.clone()).collect();
        let rows = async {
            let mut connection = self.connection().await?;
            D::load(&mut connection, keys).await
        };
        let limit = self
            .cache
            .shared
            .rt
            .timeout(D::LOAD_TIMEOUT, unwinding(rows));
        match limit.await {
            Some(Some(Ok(rows))) => Ok(self.in_order(rows, values)),
            Some(Some(Err(error))) => Err(LoadError::Loader(Arc::new(error))),
            Some(None) => Err(LoadError::Panicked { accessor: D::NAME }),
            None => Err(LoadError::Timeout {
                accessor: D::NAME,
                after: D::LOAD_TIMEOUT,
            }),
        }
    }

    /// A connection for the load.
    ///
    /// # Panics
    ///
    /// Where mistakes of writers are errors, if there is none soon while a transaction is open.
    async fn connection(
        &self,
    ) -> Result<<D::Source as Source>::Guard, <D::Source as Source>::Error> {
        let shared = &self.cache.shared;
        let acquire = shared.source.acquire();
        let Some(place) = shared.writes.open_transaction() else {
            return acquire.await;
        };
        let acquired = shared.rt.timeout(SOON, acquire).await;
        acquired.unwrap_or_else(|| {
            panic!(
                "the load of `{}` waits for a connection while the transaction begun at {place} is open: on a pool of one \
                 connection it waits for itself; read with `&mut tx` there",
                D::NAME
            )
        })
    }

    fn in_order(
        &self,
        rows: Rows<D>,
        mut values: Vec<Option<Answer<D>>>,
    ) -> Vec<Option<Answer<D>>> {
        let keys = &self.load.keys;
        let counters = &self.accessor.counters;
        let index: HashMap<&D::Key, usize, foldhash::fast::RandomState> = keys
            .iter()
            .enumerate()
            .map(|(index, key)| (key, index))
            .collect();
        for (key, value) in rows {
            match index.get(&key) {
                Some(&index) => values[index] = Some(D::Tier::hold(value)),
                None => counters.loaded_extra.add(1),
            }
        }
        values
    }

    /// Counts one call of the loader, which was asked for all keys but those known; answers what it cost.
    fn count(&self, started: Instant, known: usize, rows: &Outcome<D>) -> Duration {
        let took = self.cache.shared.rt.now() - started;
        let counters = &self.accessor.counters;
        counters.loads.add(1);
        counters.load_latency.record(took);
        let keys = self.load.keys.len() - known;
        let found = rows
            .as_ref()
            .map(|values| values.iter().flatten().count() - known);
        if self.cache.shared.is_heard() {
            self.cache.shared.tell(&Event::Loaded {
                accessor: D::NAME,
                keys,
                found: found.as_ref().ok().copied(),
                took,
            });
        }
        if let Ok(found) = found {
            let absent = keys - found;
            counters.loaded.add(found as u64);
            counters.loaded_absent.add(absent as u64);
            if let Some(tally) = &self.cache.tally {
                tally.count_load(found as u64, took);
            }
        }
        took
    }

    fn count_failure(&self, error: &LoadError<D::Error>) {
        let counters = &self.accessor.counters;
        let counter = match error {
            LoadError::Closed { .. } => return,
            LoadError::Panicked { .. } => &counters.load_panics,
            LoadError::Timeout { .. } => &counters.load_timeouts,
            LoadError::Overloaded { .. } => &counters.load_overloads,
            _ => &counters.load_errors,
        };
        counter.add(1);
    }

    /// Makes entries of what was loaded, one per lease where there is something to store.
    fn seal(
        &self,
        values: &[Option<Answer<D>>],
        leases: Vec<Option<Lease>>,
        wire: &Keys,
        cost: Duration,
    ) -> Fills {
        let counters = &self.accessor.counters;
        let mut fills = Fills::default();
        let mut entries = BytesMut::new();
        let leased = leases
            .into_iter()
            .zip(self.load.keys.iter().zip(values))
            .filter_map(|(lease, row)| Some((lease?, row)));
        for (position, (lease, (asked, value))) in leased.enumerate() {
            let ttl = match value {
                Some(_) => D::LIFETIME.ttl(),
                None => Accessor::<D>::absent_ttl(),
            };
            if let Some(value) = value
                && !self.may_fill(asked, value)
            {
                fills.release.push((position, lease));
                continue;
            }
            if value.is_none() && ttl.is_none() {
                fills.release.push((position, lease));
                continue;
            }
            let (key, won_at) = (wire.get(position), lease.won_at);
            let sealed = self
                .accessor
                .seal(key, value.as_ref(), won_at, cost, &mut entries);
            match sealed {
                Ok(()) => {
                    counters.filled_bytes.add(entries.len() as u64);
                    let fill = Fill::new(lease, entries.split().freeze()).ttl(ttl.map(jittered));
                    fills.fill.push((position, fill));
                }
                Err(error) => {
                    self.count_refusal(&error);
                    fills.release.push((position, lease));
                }
            }
        }
        fills
    }

    /// Whether a change of this value would flush the key it was asked under, as far as its plan tells: under an address
    /// in capitals, found by a query that ignores case, nobody would.
    fn may_fill(&self, asked: &D::Key, value: &Answer<D>) -> bool {
        let own_keys = &self.accessor.own_keys;
        let shared = &self.cache.shared;
        // The plan's functions are the user's code.
        let has = || own_keys.have(D::Tier::value(value), asked);
        if catch_unwind(AssertUnwindSafe(has)).unwrap_or(false)
            || shared.without(Mechanism::OwnKeys)
        {
            return true;
        }
        self.accessor.counters.refused_unflushable.add(1);
        if self.accessor.warned.unflushable.first() {
            tracing::warn!(
                accessor = D::NAME,
                "a value is served and not stored, since its flush plan has another key for it than it was asked under; \
                 normalise the argument in its type"
            );
        }
        false
    }

    fn count_refusal(&self, error: &Error) {
        let counters = &self.accessor.counters;
        if error.kind() == ErrorKind::TooLarge {
            counters.refused_too_large.add(1);
            if self.accessor.warned.too_large.first() {
                tracing::warn!(
                    accessor = D::NAME,
                    max_value = D::MAX_VALUE,
                    "a value larger than MAX_VALUE is served and not stored; every read of it is a load"
                );
            }
        } else {
            counters.refused_codec.add(1);
            if self.accessor.warned.unencodable.first() {
                tracing::warn!(
                    accessor = D::NAME,
                    problem = %error,
                    "a value that can't be encoded is served and not stored; every read of it is a load"
                );
            }
        }
    }

    /// Hands the fills over, gives the callers their values, and waits for what the store answers: which of the load's
    /// keys were stored.
    async fn store(&self, rows: Outcome<D>, fills: Fills, wire: &Keys) -> Vec<bool> {
        let backend = &self.cache.shared.backend;
        let options = WriteOptions::trips(self.trips());
        let Fills { fill, release } = fills;
        if fill.is_empty() && release.is_empty() {
            self.load.publish(rows);
            return Vec::new();
        }
        // From here on nobody joins by key: their look-ups might be older than the fill's execution.
        self.load.advance(Phase::Filling);
        let (filled, fill): (Vec<usize>, Vec<Fill>) = fill.into_iter().unzip();
        let (released, release): (Vec<usize>, Vec<Lease>) = release.into_iter().unzip();
        let fill_keys = wire.select(filled.iter().copied());
        let release_keys = wire.select(released.iter().copied());
        let mut filling = pin!(async {
            if fill.is_empty() {
                Vec::new()
            } else if self.accessor.fenced {
                backend.fill_many(&fill_keys, fill, &options).await
            } else {
                let set = |fill: Fill| Set::new(fill.value).ttl(fill.ttl);
                let sets = fill.into_iter().map(set).collect();
                let answers = backend.set_immutable_many(&fill_keys, sets, &options);
                let stored = |answer: Result<()>| answer.map(|()| FillOutcome::Stored);
                answers.await.into_iter().map(stored).collect()
            }
        });
        let at_once = poll_once(filling.as_mut()).await;
        self.load.publish(rows);
        let outcomes = match at_once {
            Some(outcomes) => outcomes,
            None => filling.await,
        };
        if !release.is_empty() && self.accessor.fenced {
            // A release that fails leaves a placeholder, which readers take over when it has grown old.
            backend.release_many(&release_keys, release, &options).await;
        }
        self.count_outcomes(&filled, outcomes)
    }

    fn count_outcomes(&self, filled: &[usize], outcomes: Vec<Result<FillOutcome>>) -> Vec<bool> {
        let counters = &self.accessor.counters;
        let mut stored_leases = vec![false; self.load.leased()];
        for (&position, outcome) in filled.iter().zip(outcomes) {
            match outcome {
                Ok(FillOutcome::Stored) => {
                    counters.fills_stored.add(1);
                    stored_leases[position] = true;
                }
                Ok(FillOutcome::Lost(lost)) => {
                    counters.lost(lost);
                    if lost == Lost::Expired && self.accessor.warned.expired.first() {
                        tracing::warn!(
                            accessor = D::NAME,
                            lease = ?D::LEASE,
                            "a load, with the time it waited for its place, took longer than its lease, so that its \
                             value wasn't stored; raise LEASE"
                        );
                    }
                }
                Err(error) => {
                    counters.fills_failed.add(1);
                    tracing::debug!(accessor = D::NAME, %error, "a fill failed");
                }
            }
        }
        self.load.by_key(&stored_leases)
    }

    fn trips(&self) -> Trips {
        self.accessor.counters.trips(self.cache.tally.as_deref())
    }
}

/// What becomes of a load's leases; positions are those of the leased keys.
#[derive(Default)]
struct Fills {
    fill: Vec<(usize, Fill)>,
    release: Vec<(usize, Lease)>,
}

impl Fills {
    fn release_all(leases: Vec<Option<Lease>>) -> Self {
        Self {
            fill: Vec::new(),
            release: leases.into_iter().flatten().enumerate().collect(),
        }
    }
}

/// Up to a tenth less, so that what was filled together doesn't expire together. It only shortens what the store is
/// told: the reader's own check is exact.
fn jittered(ttl: Duration) -> Duration {
    ttl.mul_f64(1.0 - fastrand::f64() / 10.0)
}

/// The output of a future that is ready when it is polled for the first time.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
