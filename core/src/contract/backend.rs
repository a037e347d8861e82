//! The contract between larder and its stores.

use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;

use super::{Error, Key, Keys, Lease, Result, Token};
use crate::stats::Latency;

/// A store of bytes by key, with leases.
///
/// Every `_many` answers once per input, in input order, duplicates included; an empty batch does no I/O; one dead
/// server fails only its keys; dropping a future never harms the handle. [`Display`] shows the store without
/// credentials. What each sentence means in practice is the suite in the module `conformance` (a feature), and
/// `docs/backend-guide.md` walks through writing one.
///
/// Callers with one key use [`BackendExt`].
#[async_trait]
pub trait Backend: Debug + Display + Send + Sync + 'static {
    /// Looks these keys up, wins leases on what is absent if the options ask for them, and hands each answer over as it
    /// comes: once for every position of the batch, in any order.
    ///
    /// Whoever decodes the answers does so while the store still sends. [`BackendExt::get_many`] collects them.
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>);

    /// Stores each value if its lease still stands; `fills` and `keys` have the same length.
    ///
    /// An empty value is refused with [`ErrorKind::Config`](super::ErrorKind::Config): on the wire it means a
    /// placeholder, and one that the server wouldn't take with [`ErrorKind::TooLarge`](super::ErrorKind::TooLarge),
    /// before it is sent. A refused fill gives its lease back: its placeholder would keep all others waiting.
    ///
    /// The first poll hands the fills to the connection, so that a later look-up of the same handle comes behind them.
    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>>;

    /// Gives leases back, so that the next reader may win at once; a lease that no longer stands is success.
    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>>;

    /// Deletes the entries of these keys and voids their leases; an absent entry is success.
    ///
    /// Once it has answered `Ok`, no fill whose lease was won before can succeed. Repeated or late, a delete only
    /// removes: it is safe in every order.
    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>>;

    /// Stores values whatever is there, without a lease: for entries of immutable data sets, and raw bytes in tests.
    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>>;

    /// Connects, if the configuration demands that the servers answer before the first use; otherwise does nothing.
    ///
    /// [`CacheBuilder::build`](crate::CacheBuilder::build) calls it.
    async fn start(&self) -> Result<()>;

    /// Asks every server for its state, now.
    async fn check(&self) -> Vec<ServerCheck>;

    /// Waits for what is under way, at most this long, and closes the connections; later calls fail.
    async fn close(&self, deadline: Duration);

    /// Which servers these are.
    fn pool(&self) -> Pool;

    /// Which server has this key: its place among those of [`Backend::check`] and [`Backend::stats`]. 0 where there is one,
    /// or where keys move between them.
    ///
    /// What happens to one server, an outage, concerns its keys only; those of 0 where that stands for all.
    fn server_of(&self, key: Key<'_>) -> usize;

    /// What was counted so far.
    fn stats(&self) -> BackendStats;
}

/// Takes the answers of a look-up: the key's position in the batch, and what was found.
///
/// It is called between awaits, and doesn't block for longer than opening an entry takes.
pub type Found<'a> = &'a mut (dyn FnMut(usize, Result<Lookup>) + Send);

/// How to look up.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GetOptions {
    /// Win leases of this length on what is absent; `None` only looks.
    pub lease: Option<Duration>,
    /// At most this many of the batch's first keys ask for a lease.
    ///
    /// Placeholders live in the store's smallest slabs: on a full small server those of a batch of 20,000 evict each
    /// other before they are filled.
    pub lease_at_most: usize,
    /// Where the trips are counted.
    pub trips: Trips,
}

impl GetOptions {
    /// Looks, and wins nothing.
    pub fn look() -> Self {
        Self::default()
    }

    /// Asks for leases of this length on every key.
    pub fn lease(length: Duration) -> Self {
        Self {
            lease: Some(length),
            lease_at_most: usize::MAX,
            trips: Trips::default(),
        }
    }

    /// Asks for leases on the first `count` keys only.
    pub fn lease_at_most(mut self, count: usize) -> Self {
        self.lease_at_most = count;
        self
    }

    /// Counts trips here.
    pub fn trips(mut self, trips: Trips) -> Self {
        self.trips = trips;
        self
    }

    /// The lease to ask for at this position of the batch.
    pub fn lease_of(&self, position: usize) -> Option<Duration> {
        self.lease.filter(|_| position < self.lease_at_most)
    }
}

/// How to write.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Where the trips are counted.
    pub trips: Trips,
}

impl WriteOptions {
    /// Counts trips here.
    pub fn trips(trips: Trips) -> Self {
        Self { trips }
    }
}

/// What a look-up found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Lookup {
    /// A value, never empty.
    Hit {
        /// The stored bytes. They may share a larger read buffer: copy what is kept for long.
        value: Bytes,
        /// What is replaced by a lease made from it.
        token: Token,
    },
    /// Nothing there.
    Miss {
        /// The right to fill it, if it was asked for and won.
        lease: Option<Lease>,
    },
    /// Nothing there, and somebody else has the lease.
    Busy {
        /// How long they have had it, as far as the store can tell.
        age: Duration,
        /// Names their lease.
        token: Token,
    },
}

/// A value for a key whose lease was won.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fill {
    /// The right to store it.
    pub lease: Lease,
    /// The bytes to store; never empty.
    pub value: Bytes,
    /// How long the store keeps it; `None` for as long as it can.
    pub ttl: Option<Duration>,
}

impl Fill {
    /// A fill that the store keeps for as long as it can.
    pub fn new(lease: Lease, value: impl Into<Bytes>) -> Self {
        Self {
            lease,
            value: value.into(),
            ttl: None,
        }
    }

    /// Keeps it this long.
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.ttl = ttl.into();
        self
    }
}

/// Whether a fill was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FillOutcome {
    /// Stored: no delete came between the lease and this.
    Stored,
    /// Not stored, since the lease no longer stood; or not known to be stored, since the connection was lost under it.
    Lost(Lost),
}

/// Why a fill was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lost {
    /// The key was deleted, evicted, or leased to somebody else.
    Voided,
    /// The lease ran out before the fill.
    Expired,
    /// The connection, or the server, that issued the lease is gone.
    ConnectionGone,
}

impl Lost {
    /// The reason in one word, as it appears in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Voided => "voided",
            Self::Expired => "expired",
            Self::ConnectionGone => "connection_gone",
        }
    }
}

/// A value to store without a lease.
#[derive(Debug)]
#[non_exhaustive]
pub struct Set {
    /// The bytes to store; never empty.
    pub value: Bytes,
    /// How long the store keeps it; `None` for as long as it can.
    pub ttl: Option<Duration>,
}

impl Set {
    /// A value that the store keeps for as long as it can.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self {
            value: value.into(),
            ttl: None,
        }
    }

    /// Keeps it this long.
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.ttl = ttl.into();
        self
    }
}

/// Counts trips for whoever started a call.
///
/// A trip is one command batch to one server: three servers are three, a poll is one, the second step of a two-step
/// form is one; dials and probes are none. The memory store counts one a call.
#[derive(Clone, Debug, Default)]
pub struct Trips([Option<Arc<AtomicU64>>; 3]);

impl Trips {
    /// Counts into these two, for a call that is reported twice: to an accessor's statistics and to a tally.
    pub fn into_both(first: Arc<AtomicU64>, second: Option<Arc<AtomicU64>>) -> Self {
        Self([Some(first), second, None])
    }

    /// The same, counted here as well: for a backend around a backend, of which there is one that counts.
    #[must_use]
    pub fn and(mut self, counter: Arc<AtomicU64>) -> Self {
        self.0[2] = Some(counter);
        self
    }

    /// Adds this many.
    pub fn add(&self, count: u64) {
        for counter in self.0.iter().flatten() {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl From<Arc<AtomicU64>> for Trips {
    fn from(counter: Arc<AtomicU64>) -> Self {
        Self([Some(counter), None, None])
    }
}

/// Which servers a backend stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pool {
    /// The canonical description, without secrets: equal for two processes exactly if they share their entries.
    pub description: String,
    /// Who can share it.
    pub reach: Reach,
    /// Whether its leases can be trusted, as they can't be where something between us and the server redials for us.
    ///
    /// Without them only immutable data sets are cached.
    pub leases: bool,
}

impl Pool {
    /// A pool of this description and reach, with leases.
    pub fn new(description: impl Into<String>, reach: Reach) -> Self {
        Self {
            description: description.into(),
            reach,
            leases: true,
        }
    }

    /// The same without leases.
    #[must_use]
    pub fn without_leases(mut self) -> Self {
        self.leases = false;
        self
    }
}

/// Who can share a pool's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// This process only.
    Process,
    /// The processes of this host: servers on loopback or unix sockets.
    Host,
    /// Any host.
    Network,
}

/// What a server said when it was asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerCheck {
    /// The server, as configured, without credentials.
    pub server: String,
    /// Its version and how long it took to answer, or why it didn't.
    pub answer: Result<ServerAnswer>,
}

impl ServerCheck {
    /// The check of this server.
    pub fn new(server: impl Into<String>, answer: Result<ServerAnswer>) -> Self {
        Self {
            server: server.into(),
            answer,
        }
    }
}

/// What a server that is up said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerAnswer {
    /// The version it gave.
    pub version: String,
    /// How long it took.
    pub latency: Duration,
}

impl ServerAnswer {
    /// This version, after this long.
    pub fn new(version: impl Into<String>, latency: Duration) -> Self {
        Self {
            version: version.into(),
            latency,
        }
    }
}

/// Plain numbers about a backend, since it was made.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BackendStats {
    /// One per server.
    pub servers: Vec<ServerStats>,
    /// One per kind of call, where an [`Observed`](crate::Observed) measures them.
    pub calls: Vec<CallStats>,
}

/// Plain numbers about one kind of call, as an [`Observed`](crate::Observed) measures them.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CallStats {
    /// Which: `get`, `fill`, `release`, `delete`, `set`.
    pub command: &'static str,
    /// How long calls took, those included whose callers left before the end.
    ///
    /// A look-up's time has in it what was done with its answers as they came.
    pub latency: Latency,
    /// Keys that had no answer within the deadline.
    pub timed_out: u64,
    /// Keys whose server couldn't be reached.
    pub unavailable: u64,
    /// Keys that failed for another reason, which trying again wouldn't change.
    pub refused: u64,
    /// Calls whose caller left before the end.
    pub abandoned: u64,
}

/// Plain numbers about one server.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ServerStats {
    /// The server, as configured, without credentials.
    pub server: String,
    /// Whether it is being asked: `up`, `connecting`, `down` (its breaker is open), `idle` (not asked yet).
    pub state: &'static str,
    /// The last thing that went wrong, also when all is well again. It names no credentials.
    pub last_error: Option<String>,
    /// How many seconds ago that was.
    pub last_error_age_s: Option<u64>,
    /// Command batches sent.
    pub trips: u64,
    /// Keys in them.
    pub keys: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Requests sent and not answered yet.
    pub in_flight: u64,
    /// Connections made.
    pub connects: u64,
    /// Those of them that took the place of one that was lost.
    pub reconnects: u64,
    /// Requests whose caller stopped waiting before the answer came.
    pub timeouts: u64,
    /// How often it was taken for down.
    pub times_down: u64,
    /// Replies that couldn't be placed. Anything above zero deserves a page.
    pub protocol_violations: u64,
    /// Stores the server had no room for.
    pub out_of_memory: u64,
    /// Entries kept, where the backend knows.
    pub entries: Option<u64>,
    /// Bytes kept, where the backend knows.
    pub stored_bytes: Option<u64>,
    /// Entries dropped for room, where the backend knows.
    pub evictions: Option<u64>,
}

/// The contract's calls for one key.
///
/// ```
/// # #[derive(Debug)] struct Unused;
/// use larder_core::{Backend, BackendExt, GetOptions, Lookup};
///
/// async fn is_cached(backend: &dyn Backend, key: &str) -> larder_core::Result<bool> {
///     Ok(matches!(backend.get(key, &GetOptions::look()).await?, Lookup::Hit { .. }))
/// }
/// ```
pub trait BackendExt: Backend {
    /// [`Backend::get_each`], with the answers collected in the order of the batch.
    fn get_many(
        &self,
        keys: &Keys,
        options: &GetOptions,
    ) -> impl Future<Output = Vec<Result<Lookup>>> + Send {
        async move {
            let mut answers: Vec<Option<Result<Lookup>>> = Vec::new();
            answers.resize_with(keys.len(), || None);
            let found = &mut |position: usize, answer| answers[position] = Some(answer);
            self.get_each(keys, options, found).await;
            let answers = answers.into_iter();
            answers
                .map(|answer| answer.unwrap_or_else(|| Err(no_answer())))
                .collect()
        }
    }

    /// [`Backend::get_each`] for one key.
    fn get(&self, key: &str, options: &GetOptions) -> impl Future<Output = Result<Lookup>> + Send {
        async move { only(self.get_many(&Keys::one(key)?, options).await) }
    }

    /// [`Backend::fill_many`] for one key.
    fn fill(&self, key: &str, fill: Fill) -> impl Future<Output = Result<FillOutcome>> + Send {
        async move {
            let keys = Keys::one(key)?;
            only(
                self.fill_many(&keys, vec![fill], &WriteOptions::default())
                    .await,
            )
        }
    }

    /// [`Backend::release_many`] for one key.
    fn release(&self, key: &str, lease: Lease) -> impl Future<Output = Result<()>> + Send {
        async move {
            let keys = Keys::one(key)?;
            only(
                self.release_many(&keys, vec![lease], &WriteOptions::default())
                    .await,
            )
        }
    }

    /// [`Backend::delete_many`] for one key.
    fn delete(&self, key: &str) -> impl Future<Output = Result<()>> + Send {
        async move {
            only(
                self.delete_many(&Keys::one(key)?, &WriteOptions::default())
                    .await,
            )
        }
    }

    /// [`Backend::set_immutable_many`] for one key.
    fn set_immutable(&self, key: &str, set: Set) -> impl Future<Output = Result<()>> + Send {
        async move {
            let keys = Keys::one(key)?;
            only(
                self.set_immutable_many(&keys, vec![set], &WriteOptions::default())
                    .await,
            )
        }
    }
}

impl<B: Backend + ?Sized> BackendExt for B {}

fn only<T>(answers: Vec<Result<T>>) -> Result<T> {
    answers
        .into_iter()
        .next()
        .unwrap_or_else(|| Err(no_answer()))
}

fn no_answer() -> Error {
    Error::new(
        super::ErrorKind::Protocol,
        "the backend left a key of a batch without an answer; it breaks its contract",
    )
}
