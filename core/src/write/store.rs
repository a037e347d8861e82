//! What a database does for larder: transactions, the outbox, and the register of generations.
//!
//! Everything that decides anything is core's; these are the statements. `larder-sqlx` has them for PostgreSQL and SQLite;
//! another database layer joins by implementing [`Transactional`], and [`Outbox`] with [`Register`] if its flushes shall
//! survive a crash.

use std::fmt;
use std::ops::DerefMut;
use std::time::Duration;

use async_trait::async_trait;

use crate::Rt;
use crate::Source;
use crate::contract::{Error, ErrorKind, Result};

/// A source whose connections can write in transactions.
///
/// How a crash between commit and flush ends is the source's to say, by [`Source::outbox`]: with one, the flush is
/// delivered by whoever lives (**durable**); without, entries may be old until their TTL (**bounded**).
pub trait Transactional: Source {
    /// An open transaction, which is a connection too. Dropped, it is rolled back.
    type Tx: DerefMut<Target = Self::Conn> + Send + 'static;

    /// Begins a transaction on the primary; on SQLite with `BEGIN IMMEDIATE`, since one that turns writer later fails.
    fn begin(&self) -> impl Future<Output = Result<Self::Tx, Self::Error>> + Send;

    /// Commits.
    fn commit(tx: Self::Tx) -> impl Future<Output = Result<(), CommitFailure<Self::Error>>> + Send;

    /// Rolls back.
    fn rollback(tx: Self::Tx) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Does this to the savepoint of this depth, 1 for the outermost: `SAVEPOINT larder_1`, `RELEASE …`,
    /// `ROLLBACK TO …`.
    fn savepoint(
        tx: &mut Self::Tx,
        step: Savepoint,
        depth: u32,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Whether the transaction has changed a row so far, `None` if the database doesn't tell: for
    /// [`CacheBuilder::strict_writes`](crate::CacheBuilder::strict_writes), which asks before each commit.
    fn has_written(
        tx: &mut Self::Tx,
    ) -> impl Future<Output = Result<Option<bool>, Self::Error>> + Send;
}

/// What is done to a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Savepoint {
    /// It is set.
    Set,
    /// It is given up, and what came after it stays.
    Release,
    /// What came after it is undone.
    RollBack,
}

/// How a commit fails.
#[derive(Debug)]
pub enum CommitFailure<E> {
    /// The database said that nothing was committed.
    Failed(E),
    /// The connection was lost, or the answer didn't come: it may have been committed, or may still be.
    Unknown(E),
}

/// The table of flushes that aren't known to be delivered yet, in the database of the writes.
///
/// A row is inserted in the transaction of the write; it is there exactly if the write is. It is deleted once every
/// owner of its keys, in every live generation, has confirmed.
#[async_trait]
pub trait Outbox<C: ?Sized>: Register {
    /// Inserts rows, in the transaction of this connection; each is due after `grace`. Answers their ids.
    ///
    /// Fails if the generation isn't registered any more: that is what stops a writer who was paused.
    async fn push(
        &self,
        conn: &mut C,
        generation: &str,
        rows: &[String],
        grace: Duration,
    ) -> Result<Vec<RowId>>;

    /// Takes rows that are due, those first that have been for the longest time, and puts off when they are due again by
    /// `hold`, in one short transaction.
    ///
    /// Answers none if any process has taken some within the last `interval`: one relay is enough.
    async fn claim(&self, limit: usize, hold: Duration, interval: Duration) -> Result<Vec<Row>>;

    /// All rows, oldest first, at most so many, whether due or not, and without claiming them.
    async fn rows(&self, limit: usize) -> Result<Vec<Row>>;

    /// Deletes rows; one that isn't there is fine.
    async fn done(&self, ids: &[RowId]) -> Result<()>;

    /// Replaces the texts of rows by what is left of them, and makes each due after its pause, in one short transaction:
    /// while a server is away there are hundreds. One that isn't there is fine; none is there twice.
    async fn put_off(&self, rows: &[PutOff]) -> Result<()>;

    /// Which of these rows are still there.
    async fn left(&self, ids: &[RowId]) -> Result<Vec<RowId>>;

    /// Deletes rows older than this; answers how many.
    async fn drop_older(&self, age: Duration) -> Result<u64>;

    /// How many rows there are, counted up to 100,000, and how old the oldest is: every process asks from time to time.
    async fn backlog(&self) -> Result<Backlog>;
}

/// How long core waits for an answer of the outbox or the register.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answer of the outbox or the register, unless it takes too long: a connection that was cut without a word mustn't
/// hold all commits up.
pub(crate) async fn answered<T>(rt: Rt, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let answer = rt.timeout(PATIENCE, call).await;
    answer.unwrap_or_else(|| {
        Err(Error::new(
            ErrorKind::Timeout,
            format!("the database didn't answer larder within {PATIENCE:?}; it is tried again"),
        ))
    })
}

/// Names a row of the outbox.
pub type RowId = i64;

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub id: RowId,
    /// What is to be flushed, as core wrote it.
    pub text: String,
    /// How often it was claimed before.
    pub attempts: u32,
    /// How long ago it was inserted.
    pub age: Duration,
}

/// A row of the outbox that couldn't be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutOff {
    /// Its name.
    pub id: RowId,
    /// What is left of it.
    pub text: String,
    /// How long from now it is due again.
    pub pause: Duration,
}

/// What waits in the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Backlog {
    /// How many rows; of more than 100,000, so many.
    pub rows: u64,
    /// How old the oldest is.
    pub oldest: Option<Duration>,
}

/// The table of generations: which running versions of the code cache what, and where.
///
/// Times are those of the database's clock; processes are told only how long ago, or how soon, something is.
#[async_trait]
pub trait Register: fmt::Debug + Send + Sync + 'static {
    /// What is registered now.
    async fn read(&self) -> Result<Registered>;

    /// Changes it: alone, so that nobody else changes it between what `decide` is shown and what it answers. An error
    /// of `decide` changes nothing.
    ///
    /// A generation that a transaction under way has put an outbox row under isn't waited for, and one that very many rows
    /// refer to needn't be deleted at once: instead it is ended, so that it is listed with nothing left and can't be
    /// renewed. Who finds it so asks for its deletion again.
    async fn edit(&self, decide: Decide<'_>) -> Result<()>;

    /// Puts the end of this registration off to `ttl` from now, unless somebody did within the last `unless`; `false` if
    /// it isn't registered, or was ended.
    async fn renew(&self, id: &str, ttl: Duration, unless: Duration) -> Result<bool>;
}

/// Answers what to change of what is registered.
pub type Decide<'a> = &'a mut (dyn FnMut(&Registered) -> Result<Vec<Edit>> + Send);

/// What is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// The generations, those included whose registration has ended and that nobody deleted yet.
    pub generations: Vec<Generation>,
    /// Accessors that were purged.
    pub purges: Vec<Purge>,
}

/// One running version of the code on one pool of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// A random id, never reused; the prefix of its keys.
    pub id: String,
    /// Which code it is.
    pub version: String,
    /// Where its entries live, without secrets.
    pub pool: String,
    /// Who registered it: a host and a process.
    pub holder: String,
    /// What it caches, as core wrote it.
    pub manifest: String,
    /// How long ago it was registered.
    pub age: Duration,
    /// How long it is registered for; zero once that is over.
    pub left: Duration,
}

/// An accessor whose entries were given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// The accessor.
    pub accessor: String,
    /// What its keys have in them since.
    pub epoch: String,
    /// What they had before, if it was purged before.
    pub former: Option<String>,
    /// How long ago.
    pub age: Duration,
}

/// One change of what is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edit {
    /// Registers a generation for so long.
    Mint {
        /// Its id.
        id: String,
        /// Which code it is.
        version: String,
        /// Where its entries live.
        pool: String,
        /// Who registers it.
        holder: String,
        /// What it caches.
        manifest: String,
        /// For how long.
        ttl: Duration,
    },
    /// Ends a generation, which stays listed with nothing left and can't be renewed; one that isn't there is fine.
    End {
        /// Which.
        id: String,
    },
    /// Deletes a generation, whose outbox rows stay.
    Delete {
        /// Which.
        id: String,
    },
    /// Gives an accessor another epoch; the one it had becomes its former.
    Purge {
        /// Which.
        accessor: String,
        /// Its epoch from now on.
        epoch: String,
    },
}
