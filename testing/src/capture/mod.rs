//! Counting what a piece of work asks for: reads, loads, exchanges with stores, statements of the database.

mod empty;
mod expect;
mod queries;
mod record;
mod recorder;
pub(crate) mod scope;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tracing::Instrument as _;

pub use empty::empty_cache;
pub use record::Asked;
pub use recorder::{Recorded, Recording};
pub use scope::layer;

use crate::Op;
use record::Record;
use scope::Mark;
use table::Counted;

/// Runs this, and tells what it asked for.
///
/// What is counted is what happens in the span that this opens: the future itself, what it awaits, and the loads, fills,
/// commits and flushes that larder has in tasks for it, until all of them are over. What a task of the test's own does is
/// counted if it is told to be part of it:
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_testing::{TestCache, captured};
/// use tracing::Instrument as _;
///
/// let cache = TestCache::new(Db::of(["Ada", "Grace"])).await;
/// let (user, captured) = captured(async {
///     let (handle, inner) = (cache.handle(), cache.handle());
///     let counted = async move { larder_core::get::<UserById>(&handle, &1).await };
///     let elsewhere = async move { larder_core::get::<UserById>(&inner, &0).await };
///     tokio::spawn(elsewhere).await.unwrap().unwrap();
///     tokio::spawn(counted.in_current_span()).await.unwrap().unwrap()
/// })
/// .await;
///
/// assert_eq!(user.unwrap().name, "Grace");
/// let reads = captured.accessor("user_by_id");
/// assert_eq!((reads.reads, reads.misses, reads.loads, reads.fills), (1, 1, 1, 1));
/// assert_eq!(captured.trips(), 2); // a look-up and a fill
/// # }
/// ```
///
/// Captures may be nested, and then both count; those that run at the same time don't see each other's work. The caches may
/// be any that tell the kit what they do: a [`TestCache`](crate::TestCache), or one that is built with [`Recorded`].
///
/// Statements of the database are counted if sqlx executes them, and their logging isn't turned off.
///
/// # Panics
///
/// If the program has set a `tracing` subscriber without [`layer`].
pub async fn captured<T>(work: impl Future<Output = T>) -> (T, Captured) {
    let record = Arc::new(Record::default());
    let span = scope::open(Mark::Capture(Arc::clone(&record)));
    let hears_statements = span.in_scope(scope::hears_statements);
    let answer = work.instrument(span).await;
    record.settled().await;
    let captured = Captured {
        asked: record.take(),
        hears_statements,
    };
    (answer, captured)
}

/// What a piece of work asked for: see [`captured`].
///
/// It prints as a table.
#[derive(Clone, Debug)]
pub struct Captured {
    asked: Vec<Asked>,
    hears_statements: bool,
}

/// What was asked of one data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessorCounts {
    /// Calls that were answered, or failed.
    pub reads: u64,
    /// Of these, those for one key.
    pub singles: u64,
    /// Distinct keys of each call, added up.
    pub keys: u64,
    /// Of these, those that an in-process tier had.
    pub tier_hits: u64,
    /// Those whose value the store had.
    pub hits: u64,
    /// Those whose absence the store had.
    pub absent: u64,
    /// Those that were loaded.
    pub misses: u64,
    /// Those that were taken from a load that somebody else had started.
    pub shared: u64,
    /// Calls of the loader.
    pub loads: u64,
    /// Values and absences that were stored.
    pub fills: u64,
    /// Keys that were flushed.
    pub flushed: u64,
}

/// What was asked of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendCounts {
    /// The store, without credentials.
    pub backend: Arc<str>,
    /// Exchanges: one per call and server.
    pub trips: u64,
    /// Keys in them.
    pub keys: u64,
}

/// A read, or a statement, that was made again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loop {
    /// How often.
    pub times: usize,
    /// The data set that was read key by key, or the statement.
    pub of: String,
    /// What reads all of them at once; `None` for a statement.
    pub bulk: Option<&'static str>,
}

impl Captured {
    /// Everything, in order.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// Exchanges with stores.
    pub fn trips(&self) -> u64 {
        self.backends().iter().map(|counts| counts.trips).sum()
    }

    /// What was asked of each store, in the order of asking.
    pub fn backends(&self) -> Vec<BackendCounts> {
        let mut backends: Vec<BackendCounts> = Vec::new();
        for asked in &self.asked {
            let Asked::Call {
                backend,
                keys,
                trips,
                ..
            } = asked
            else {
                continue;
            };
            let known = backends.iter().position(|known| known.backend == *backend);
            let place = known.unwrap_or_else(|| {
                backends.push(BackendCounts {
                    backend: Arc::clone(backend),
                    trips: 0,
                    keys: 0,
                });
                backends.len() - 1
            });
            backends[place].trips += trips;
            backends[place].keys += *keys as u64;
        }
        backends
    }

    /// Calls of loaders.
    pub fn loads(&self) -> u64 {
        let is_load = |asked: &&Asked| matches!(asked, Asked::Load { .. });
        self.asked.iter().filter(is_load).count() as u64
    }

    /// Statements of the database.
    ///
    /// Those of larder's own, and those that set a connection up, aren't counted: how many there are depends on when the
    /// register was last read, and how many connections the pool has. Nor are those that begin and end transactions, which
    /// sqlx tells of on some databases only.
    pub fn queries(&self) -> u64 {
        self.statements().count() as u64
    }

    /// The statements of the database, in order, without those that aren't counted.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.asked.iter().filter_map(|asked| match asked {
            Asked::Query {
                text,
                is_aside: false,
                ..
            } => Some(text.as_str()),
            _ => None,
        })
    }

    /// What was asked of the data set of this name.
    pub fn accessor(&self, name: &str) -> AccessorCounts {
        self.accessors().remove(name).unwrap_or_default()
    }

    /// What was asked of each data set, by its name.
    pub fn accessors(&self) -> BTreeMap<&str, AccessorCounts> {
        let mut accessors: BTreeMap<&str, AccessorCounts> = BTreeMap::new();
        for asked in &self.asked {
            match asked {
                Asked::Read {
                    accessor,
                    is_single,
                    keys,
                    tier_hits,
                    hits,
                    absent,
                    misses,
                    shared,
                    ..
                } => {
                    let counts = accessors.entry(accessor).or_default();
                    counts.reads += 1;
                    counts.singles += u64::from(*is_single);
                    counts.keys += keys;
                    counts.tier_hits += tier_hits;
                    counts.hits += hits;
                    counts.absent += absent;
                    counts.misses += misses;
                    counts.shared += shared;
                }
                Asked::Load { accessor, .. } => accessors.entry(accessor).or_default().loads += 1,
                Asked::Filled { accessor, entries } => {
                    accessors.entry(accessor).or_default().fills += *entries as u64;
                }
                Asked::Flushed { keys, .. } => {
                    for key in keys {
                        let accessor = key.split_once(':').map_or(&**key, |(name, _)| name);
                        accessors.entry(accessor).or_default().flushed += 1;
                    }
                }
                Asked::Call { .. } | Asked::Query { .. } => {}
            }
        }
        accessors
    }

    /// Reads of one key each, and statements of one text, that were made more than once: they could have been one.
    ///
    /// Reads that an in-process tier answered cost nothing, and aren't among them.
    pub fn loops(&self) -> Vec<Loop> {
        let mut loops: Vec<Loop> = Vec::new();
        for asked in &self.asked {
            let (of, bulk) = match asked {
                Asked::Read {
                    accessor,
                    is_single: true,
                    bulk,
                    tier_hits: 0,
                    ..
                } => ((*accessor).to_owned(), Some(*bulk)),
                Asked::Query {
                    text,
                    is_aside: false,
                    ..
                } => (text.clone(), None),
                _ => continue,
            };
            match loops.iter_mut().find(|known| known.of == of) {
                Some(known) => known.times += 1,
                None => loops.push(Loop { times: 1, of, bulk }),
            }
        }
        loops.retain(|known| known.times > 1);
        loops
    }
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { times, of, bulk } = self;
        match bulk {
            Some(bulk) => write!(f, "{times} single gets of `{of}`: use `{bulk}`"),
            None => write!(f, "{times} times `{}`", table::shortened(of, 60)),
        }
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        table::write(f, &self.asked, Counted::Trips)
    }
}
