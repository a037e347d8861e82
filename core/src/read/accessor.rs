//! What all reads of one data set share: its marshaller, its flights, its counters and caps.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use super::flight::Flights;
use super::{Dataset, Form, Lifetime};
use crate::contract::{Error, ErrorKind, Key, Result};
use crate::entry::{Dictionary, Marshaller, fingerprint};
use crate::stats::{AccessorCounters, AccessorStats};

/// Absences are remembered this long at most, unless the data set says otherwise.
const ABSENT_TTL: Duration = Duration::from_secs(60);

/// An entry this far past its TTL should have been dropped by the store, so that some clock is wrong.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The dictionaries of one data set: the one to write with, and those that may still be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dictionaries {
    pub(crate) current: Option<Dictionary>,
    pub(crate) older: Vec<Dictionary>,
}

/// What all reads of one data set share.
pub(crate) struct Accessor<D: Dataset> {
    /// How entries are written and read; an error if the data set can't be cached as it is.
    pub(crate) marshaller: Result<Marshaller>,
    pub(crate) counters: AccessorCounters,
    pub(crate) flights: Flights<D>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) warned: Warned,
    bypass: AtomicBool,
}

/// What was warned about: once each, since it would repeat with every read.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    pub(crate) unkeyable: Once,
    pub(crate) too_large: Once,
    pub(crate) unencodable: Once,
    pub(crate) expired: Once,
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
    pub(crate) fn new(dictionaries: Dictionaries) -> Self {
        Self {
            marshaller: marshaller::<D>(dictionaries),
            counters: AccessorCounters::new(D::NAME),
            flights: Flights::default(),
            places: Arc::new(Semaphore::new(
                D::MAX_LOADS.clamp(1, Semaphore::MAX_PERMITS),
            )),
            warned: Warned::default(),
            bypass: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_bypassed(&self) -> bool {
        self.bypass.load(Ordering::Relaxed)
    }

    /// How long an absence is remembered; `None` if it isn't.
    pub(crate) fn absent_ttl() -> Option<Duration> {
        let ttl = D::LIFETIME.ttl()?;
        Some(D::ABSENT_TTL.unwrap_or(ABSENT_TTL).min(ttl))
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
            Self::absent_ttl()
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
        if checked.is_absent() && D::LIFETIME == Lifetime::Immutable {
            // The data set remembered absence when this was filled.
            self.counters.rejected_expired.add(1);
            return Opened::Rejected;
        }
        match marshaller.open::<<D::Form as Form<D::Value>>::In>(checked) {
            Ok(None) => Opened::Absent,
            Ok(Some(stored)) => match D::Form::from_stored(stored) {
                Ok(value) => Opened::Value(value),
                Err(_) => {
                    self.counters.rejected_undecodable.add(1);
                    Opened::Rejected
                }
            },
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

/// The part of an accessor that needs no types.
pub(crate) trait AnyAccessor: Any + Send + Sync {
    fn name(&self) -> &'static str;
    fn problem(&self) -> Option<&Error>;
    fn stats(&self) -> AccessorStats;
    fn set_bypass(&self, bypass: bool);
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

    fn set_bypass(&self, bypass: bool) {
        self.bypass.store(bypass, Ordering::Relaxed);
    }
}

fn marshaller<D: Dataset>(dictionaries: Dictionaries) -> Result<Marshaller> {
    let name = D::NAME;
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
    if D::LIFETIME.ttl().is_some_and(|ttl| ttl.is_zero()) {
        return refuse("needs a TTL above zero".into());
    }
    if D::LEASE < Duration::from_secs(1) {
        return refuse(format!("needs a LEASE of at least 1s, not {:?}", D::LEASE));
    }
    if D::MAX_LOADS == 0 {
        return refuse("needs MAX_LOADS of at least 1".into());
    }
    let shape = match D::SCHEMA {
        Some(schema) => schema,
        None => match fingerprint::<<D::Form as Form<D::Value>>::In>() {
            Some(fingerprint) => fingerprint,
            None => {
                return refuse(
                    "stores a type whose shape can't be derived from serde; give it `const SCHEMA: Option<u64> = \
                     Some(1)` and raise the number with every change of the type"
                        .into(),
                );
            }
        },
    };
    let seed = xxhash_rust::xxh3::xxh3_64_with_seed(&shape.to_le_bytes(), u64::from(D::REVISION));
    let marshaller = Marshaller::new(D::CODEC, seed)
        .and_then(|marshaller| marshaller.compression(D::COMPRESSION))
        .map_err(|error| Error::new(error.kind(), format!("data set `{name}`: {error}")))?;
    Ok(marshaller
        .dictionaries(dictionaries.current, dictionaries.older)
        .max_value(D::MAX_VALUE))
}
