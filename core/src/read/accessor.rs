//! What all reads of one data set share: its marshaller, its flights, its counters and caps.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use tokio::sync::Semaphore;

use super::backoff::Backoff;
use super::flight::Flights;
use super::{Answer, Dataset, Form, Lifetime, Tier, TierKind, Verdict};
use crate::contract::{Error, ErrorKind, Key, Pool, Result};
use crate::entry::{Dictionary, Marshaller, Rejection, fingerprint};
use crate::expansion::demand;
use crate::generation::Listed;
use crate::stats::{AccessorCounters, AccessorStats};
use crate::write::{AccessorPlan, FlushOn, OwnKeys};

/// Absences are remembered this long at most, unless the data set says otherwise.
const ABSENT_TTL: Duration = Duration::from_secs(60);

/// An entry this far past its TTL should have been dropped by the store, so that some clock is wrong.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Longer than anybody means; the clock's arithmetic would overflow some time after.
const LONGEST_TTL: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// A placeholder without its filler keeps readers polling: more than an hour of that is a mistake.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);

/// The dictionaries of one data set: the one to write with, and those that may still be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dictionaries {
    pub(crate) current: Option<Dictionary>,
    pub(crate) older: Vec<Dictionary>,
}

/// What an accessor needs to know of its cache.
pub(crate) struct Setting<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) dictionaries: &'a HashMap<TypeId, Dictionaries>,
    /// Whether the cache is built already, so that the flush plans don't know this any more.
    pub(crate) late: bool,
    /// Whether there are other versions, which must find the keys of what is flushed.
    pub(crate) outbox: bool,
    /// Whether the cache has in-process tiers.
    pub(crate) tiers: bool,
}

/// What all reads of one data set share.
pub(crate) struct Accessor<D: Dataset> {
    /// How entries are written and read; an error if the data set can't be cached as it is.
    pub(crate) marshaller: Result<Marshaller>,
    pub(crate) counters: AccessorCounters,
    pub(crate) flights: Flights<D>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) warned: Warned,
    /// Whether fills are fenced by leases. Where they aren't, the data set is immutable.
    pub(crate) fenced: bool,
    /// The one value of a data set of the deploy tier that has no arguments, once it is built.
    pub(crate) only: OnceLock<Only<D>>,
    /// When builds for the deploy tier may be tried again.
    pub(crate) backoff: Backoff<D::Key>,
    /// Under which keys its values may be filled.
    pub(crate) own_keys: OwnKeys<D>,
    plan: AccessorPlan,
    bypass: AtomicBool,
}

/// A value that the accessor itself keeps.
pub(crate) struct Only<D: Dataset> {
    pub(crate) value: Answer<D>,
    /// Its bytes of the tiers' budget.
    #[expect(dead_code, reason = "it is held")]
    pub(crate) reserved: Box<dyn Any + Send + Sync>,
}

/// What was warned about: once each, since it would repeat with every read.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    pub(crate) unkeyable: Once,
    pub(crate) too_large: Once,
    pub(crate) unencodable: Once,
    pub(crate) expired: Once,
    pub(crate) no_room: Once,
    pub(crate) unflushable: Once,
}

/// True the first time it is asked.
#[derive(Debug, Default)]
pub(crate) struct Once(AtomicBool);

impl Once {
    pub(crate) fn first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

impl<D: Dataset> Accessor<D> {
    pub(crate) fn new(setting: &Setting<'_>) -> Self {
        const {
            demand(
                !matches!(D::Tier::KIND, TierKind::Deploy)
                    || matches!(D::LIFETIME, Lifetime::Immutable),
                "a data set with `type Tier = DeployTier` never changes while this code runs, so its LIFETIME is \
                 Lifetime::Immutable; data that changes has RequestTier or NoTier",
            );
            demand(
                D::Form::STORED || !matches!(D::Tier::KIND, TierKind::None),
                "a data set with `type Form = Unstored` lives in a tier alone: its Tier is RequestTier or DeployTier; \
                 one with NoTier is stored, as Plain or in a form of its own",
            );
        }
        let pool = setting.pool;
        let (plan, own_keys) = FlushOn::<D>::declared().into_parts();
        Self {
            marshaller: marshaller::<D>(setting, &plan),
            own_keys,
            plan,
            counters: AccessorCounters::new(D::NAME),
            flights: Flights::default(),
            places: Arc::new(Semaphore::new(
                D::MAX_LOADS.clamp(1, Semaphore::MAX_PERMITS),
            )),
            warned: Warned::default(),
            fenced: pool.leases,
            only: OnceLock::new(),
            backoff: Backoff::default(),
            bypass: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_bypassed(&self) -> bool {
        self.bypass.load(Ordering::Relaxed)
    }

    /// About how many bytes a value takes in memory.
    pub(crate) fn weigh(value: &Answer<D>) -> usize {
        // Estimating may be the user's code: a value that panics there is never kept.
        let weigh = || D::Form::bytes(D::Tier::value(value));
        catch_unwind(AssertUnwindSafe(weigh)).unwrap_or(usize::MAX)
    }

    /// How long an absence is remembered; `None` if it isn't.
    pub(crate) fn absent_ttl() -> Option<Duration> {
        let ttl = D::ABSENT_TTL.unwrap_or(ABSENT_TTL).min(D::LIFETIME.ttl()?);
        Some(ttl).filter(|ttl| !ttl.is_zero())
    }

    /// Appends the entry of a value, or of its absence; on an error nothing is appended.
    pub(crate) fn seal(
        &self,
        key: Key<'_>,
        value: Option<&Answer<D>>,
        filled_at: SystemTime,
        cost: Duration,
        entries: &mut BytesMut,
    ) -> Result<()> {
        let marshaller = self.marshaller.as_ref().map_err(Clone::clone)?;
        let unencodable = |problem: String| {
            Error::new(
                ErrorKind::Codec,
                format!(
                    "data set `{}`: a value has no stored form: {problem}",
                    D::NAME
                ),
            )
        };
        // Converting and serializing are the user's code: a panic there costs the entry, not the load.
        let sealed = catch_unwind(AssertUnwindSafe(|| {
            let stored = value
                .map(D::Tier::value)
                .map(D::Form::to_stored)
                .transpose();
            let stored = stored.map_err(|error| unencodable(error.to_string()))?;
            marshaller.seal(key, stored.as_ref(), filled_at, cost, entries)
        }));
        sealed.unwrap_or_else(|_| Err(unencodable("the conversion panicked".into())))
    }

    /// What a stored entry says.
    pub(crate) fn open(&self, key: Key<'_>, entry: &[u8], now: SystemTime) -> Opened<D::Value> {
        let Ok(marshaller) = &self.marshaller else {
            return Opened::Rejected;
        };
        let checked = match marshaller.check(key, entry) {
            Ok(checked) => checked,
            Err(rejection) => {
                self.counters.rejected(rejection);
                return Opened::Rejected;
            }
        };
        let ttl = if checked.is_absent() {
            // What remembers no absence now may have done so when this was filled.
            Some(Self::absent_ttl().unwrap_or_default())
        } else {
            D::LIFETIME.ttl()
        };
        match (now.duration_since(checked.filled_at()), ttl) {
            (Err(_), _) => self.counters.from_future.add(1),
            (Ok(age), Some(ttl)) if age >= ttl + CLOCK_SLACK => {
                self.counters.clock_skew.add(1);
                return Opened::FromAnotherTime;
            }
            (Ok(age), Some(ttl)) if age >= ttl => {
                self.counters.rejected_expired.add(1);
                return Opened::Rejected;
            }
            (Ok(_), _) => {}
        }
        // Deserializing and converting are the user's code: a panic there costs a load.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let stored = marshaller.open::<<D::Form as Form<D::Value>>::In>(checked)?;
            let value = stored.map(D::Form::from_stored).transpose();
            value.map_err(|_| Rejection::Undecodable)
        }));
        match opened.unwrap_or(Err(Rejection::Undecodable)) {
            Ok(Some(value)) => Opened::Value(value),
            Ok(None) => Opened::Absent,
            Err(rejection) => {
                self.counters.rejected(rejection);
                Opened::Rejected
            }
        }
    }
}

/// What a stored entry says.
pub(crate) enum Opened<V> {
    Value(V),
    Absent,
    /// A miss that is overwritten under the token of what was read.
    Rejected,
    /// A miss that is left alone: a clock is wrong, and it may be this one.
    FromAnotherTime,
}

/// The shape of what is stored: as declared, as serde tells, or, of an entity that is stored as it is, as its derive tells.
fn shape<D: Dataset>(plan: &AccessorPlan) -> Option<u64> {
    let of_entity = || (D::Form::PLAIN).then(|| plan.shape_of_values())?;
    D::SCHEMA
        .or_else(fingerprint::<<D::Form as Form<D::Value>>::In>)
        .or_else(of_entity)
}

/// The part of an accessor that needs no types.
pub(crate) trait AnyAccessor: Any + Send + Sync {
    fn name(&self) -> &'static str;
    fn problem(&self) -> Option<&Error>;
    fn stats(&self) -> AccessorStats;
    fn tier(&self) -> TierKind;
    fn set_bypass(&self, bypass: bool);
    /// What makes it stale.
    fn plan(&self) -> &AccessorPlan;
    /// Its line in the manifest of a generation, where what is old of it may be served for so long; `None` if nothing of
    /// it is stored.
    fn listed(&self, life: Option<Duration>) -> Option<Listed>;
    /// How long an entry may be served.
    fn ttl(&self) -> Option<Duration>;
    fn count_flushed(&self, confirmed: u64, unconfirmed: u64);
    fn count_checked(&self, verdict: Verdict);
    /// How many hits were stale, and how many were compared.
    fn checked(&self) -> (u64, u64);
}

impl<D: Dataset> AnyAccessor for Accessor<D> {
    fn name(&self) -> &'static str {
        D::NAME
    }

    fn problem(&self) -> Option<&Error> {
        self.marshaller.as_ref().err()
    }

    fn stats(&self) -> AccessorStats {
        self.counters.snapshot()
    }

    fn tier(&self) -> TierKind {
        D::Tier::KIND
    }

    fn set_bypass(&self, bypass: bool) {
        self.bypass.store(bypass, Ordering::Relaxed);
    }

    fn plan(&self) -> &AccessorPlan {
        &self.plan
    }

    fn listed(&self, life: Option<Duration>) -> Option<Listed> {
        if !D::Form::STORED {
            return None;
        }
        Some(Listed {
            shape: format!("{:016x}", shape::<D>(&self.plan)?),
            rule: self.plan.rule::<D>(),
            entities: self.plan.entities().map(str::to_owned).collect(),
            flushed: matches!(D::LIFETIME, Lifetime::Ttl(_)),
            ttl_s: life.map(|life| life.as_secs() + 1),
            lasting: D::OUTLIVES_DEPLOYS.then(String::new),
        })
    }

    fn ttl(&self) -> Option<Duration> {
        D::LIFETIME.ttl()
    }

    fn count_flushed(&self, confirmed: u64, unconfirmed: u64) {
        self.counters.flushed.add(confirmed);
        self.counters.flush_failures.add(unconfirmed);
    }

    fn count_checked(&self, verdict: Verdict) {
        self.counters.count_checked(verdict);
    }

    fn checked(&self) -> (u64, u64) {
        self.counters.checked()
    }
}

fn marshaller<D: Dataset>(setting: &Setting<'_>, plan: &AccessorPlan) -> Result<Marshaller> {
    let (name, pool) = (D::NAME, setting.pool);
    let refuse = |problem: String| {
        Err(Error::new(
            ErrorKind::Config,
            format!("data set `{}` {problem}", name.escape_debug()),
        ))
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        return refuse("needs a NAME of 1 to 64 characters of A-Z a-z 0-9 . _ -".into());
    }
    if let Some(ttl) = D::LIFETIME.ttl()
        && (ttl.is_zero() || ttl > LONGEST_TTL)
    {
        return refuse(format!(
            "needs a TTL above zero and of at most 100 years, not {ttl:?}; what never changes is Lifetime::Immutable"
        ));
    }
    let remembers_absence = Accessor::<D>::absent_ttl().is_some();
    if let Some(problem) = plan.problem(D::LIFETIME, remembers_absence) {
        return refuse(problem);
    }
    let by_hand = matches!(D::LIFETIME, Lifetime::Ttl(_)) && setting.outbox;
    if setting.late && (plan.watches_something() || by_hand) {
        return refuse(
            "is flushed, and wasn't registered when the cache was built; name it in `larder::dataset!`".into(),
        );
    }
    if D::OUTLIVES_DEPLOYS && D::REVISION == 0 {
        return refuse(
            "OUTLIVES_DEPLOYS, and so needs a REVISION of at least 1, to be raised when its loader means something else"
                .into(),
        );
    }
    if D::LEASE < SHORTEST_LEASE || D::LEASE > LONGEST_LEASE {
        return refuse(format!("needs a LEASE of 1s to 1h, not {:?}", D::LEASE));
    }
    if D::Tier::KIND != TierKind::None && !setting.tiers {
        return refuse(format!(
            "has the {} tier, and the cache has no tiers; give the builder some: `.tiers(Tiers::default())`",
            D::Tier::KIND
        ));
    }
    if D::Form::STORED && !pool.leases && D::LIFETIME != Lifetime::Immutable {
        return refuse(format!(
            "may change, and {} gives no leases that can be trusted (`via_proxy`); only data sets with \
             Lifetime::Immutable can be cached there",
            pool.description
        ));
    }
    if D::MAX_LOADS == 0 {
        return refuse("needs MAX_LOADS of at least 1".into());
    }
    let Some(shape) = shape::<D>(plan) else {
        return refuse(
            "stores a type whose shape can't be derived from serde; give it `const SCHEMA: Option<u64> = Some(1)` and \
             raise the number with every change of the type"
                .into(),
        );
    };
    let seed = xxhash_rust::xxh3::xxh3_64_with_seed(&shape.to_le_bytes(), u64::from(D::REVISION));
    let marshaller = Marshaller::new(D::CODEC, seed)
        .and_then(|marshaller| marshaller.compression(D::COMPRESSION))
        .map_err(|error| Error::new(error.kind(), format!("data set `{name}`: {error}")))?;
    let dictionaries = setting.dictionaries.get(&TypeId::of::<D>());
    let dictionaries = dictionaries.cloned().unwrap_or_default();
    Ok(marshaller
        .dictionaries(dictionaries.current, dictionaries.older)
        .max_value(D::MAX_VALUE))
}
