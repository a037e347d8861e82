//! SQLite, 3.42 or newer.

mod outbox;
mod schema;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use larder_core::{CommitFailure, ErrorKind, Outbox, Savepoint, Source, Transactional};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{AssertSqlSafe, Transaction};

pub use outbox::SqliteOutbox;
pub use schema::{MIGRATIONS, migrate};

use crate::trouble::{self, Codes};

/// SQLite as a source that can be written: a pool or two, and the outbox in their file.
///
/// Write-ahead logging (`journal_mode(SqliteJournalMode::Wal)`) lets loads go on while somebody writes. A pool for the writers
/// of its own, of one connection, lets them queue in order where they would else ask the file again and again:
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_sqlx::{Sqlite, sqlite};
/// use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
///
/// let options = SqliteConnectOptions::new()
///     .filename("chat.db")
///     .create_if_missing(true)
///     .journal_mode(SqliteJournalMode::Wal);
/// let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
/// sqlite::migrate(&writer).await?;
/// let readers = SqlitePoolOptions::new()
///     .max_connections(8)
///     .connect_with(options.pragma("query_only", "on"))
///     .await?;
/// let source = Sqlite::with_writer(readers, writer);
/// # let _ = source;
/// # Ok(()) }
/// ```
///
/// Several processes on one host may share the file.
#[derive(Clone, Debug)]
pub struct Sqlite {
    readers: SqlitePool,
    writer: SqlitePool,
    outbox: Option<Arc<SqliteOutbox>>,
}

impl Sqlite {
    /// A source over one pool that reads and writes, with an outbox in its file: what [`migrate`] has made.
    ///
    /// If that pool has but one connection, a load waits for whatever transaction is open.
    pub fn new(pool: SqlitePool) -> Self {
        Self::with_writer(pool.clone(), pool)
    }

    /// A source over a pool that reads, and one that writes.
    pub fn with_writer(readers: SqlitePool, writer: SqlitePool) -> Self {
        let outbox = Arc::new(SqliteOutbox::new(readers.clone(), writer.clone()));
        Self {
            readers,
            writer,
            outbox: Some(outbox),
        }
    }

    /// The same without an outbox: it needs no tables, its processes are told nothing of each other, and a flush that a
    /// crash prevents is made up for by the TTL.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            outbox: None,
            ..self
        }
    }

    /// The pool that reads.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// The pool that writes.
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
    }
}

impl Source for Sqlite {
    type Conn = SqliteConnection;
    type Guard = PoolConnection<sqlx::Sqlite>;
    type Error = sqlx::Error;

    async fn acquire(&self) -> Result<Self::Guard, sqlx::Error> {
        self.readers.acquire().await
    }

    fn outbox(&self) -> Option<Arc<dyn Outbox<SqliteConnection>>> {
        let outbox = Arc::clone(self.outbox.as_ref()?);
        Some(outbox)
    }
}

impl Transactional for Sqlite {
    type Tx = Tx;

    async fn begin(&self) -> Result<Tx, sqlx::Error> {
        let mut inner = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let changes_before = total_changes(&mut inner).await?;
        Ok(Tx {
            inner,
            changes_before,
        })
    }

    async fn commit(tx: Tx) -> Result<(), CommitFailure<sqlx::Error>> {
        tx.inner.commit().await.map_err(commit_failure)
    }

    async fn rollback(tx: Tx) -> Result<(), sqlx::Error> {
        tx.inner.rollback().await
    }

    async fn savepoint(tx: &mut Tx, step: Savepoint, depth: u32) -> Result<(), sqlx::Error> {
        let statement = savepoint(step, depth);
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn has_written(tx: &mut Tx) -> Result<Option<bool>, sqlx::Error> {
        let changes = total_changes(&mut tx.inner).await?;
        Ok(Some(changes != tx.changes_before))
    }
}

/// A transaction that may write from its first statement on; dropped, it is rolled back.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, sqlx::Sqlite>,
    /// Rows that the connection had changed when this began.
    changes_before: i64,
}

impl Deref for Tx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.inner
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.inner
    }
}

/// How many rows this connection has ever changed: more than at the beginning of a transaction if that has written.
///
/// # Errors
///
/// The connection's.
pub async fn total_changes(conn: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT total_changes() /* larder */")
        .fetch_one(conn)
        .await
}

/// What an error of a commit says: that nothing was committed, or nothing.
///
/// An answer of SQLite says that nothing was, unless it couldn't write: then a crash may bring the transaction back.
pub fn commit_failure(error: sqlx::Error) -> CommitFailure<sqlx::Error> {
    trouble::commit_failure::<Codebook>(error)
}

/// The statement that does this to the savepoint of this depth.
fn savepoint(step: Savepoint, depth: u32) -> String {
    match step {
        Savepoint::Set => format!("SAVEPOINT larder_{depth}"),
        Savepoint::Release => format!("RELEASE larder_{depth}"),
        Savepoint::RollBack => format!("ROLLBACK TO larder_{depth}"),
    }
}

/// What SQLite's answers mean.
struct Codebook;

const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;
const SQLITE_READONLY: u32 = 8;
const SQLITE_IOERR: u32 = 10;
const SQLITE_FULL: u32 = 13;

impl Codes for Codebook {
    const NAME: &'static str = "SQLite";

    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)> {
        Some(match primary_code(error)? {
            SQLITE_BUSY | SQLITE_LOCKED => (
                ErrorKind::Unavailable,
                "somebody else writes; it is tried again, and a longer busy_timeout lets it wait",
            ),
            SQLITE_READONLY => (ErrorKind::Config, "let the writer's pool write"),
            SQLITE_IOERR | SQLITE_FULL => {
                (ErrorKind::Unavailable, "see to the disk; it is tried again")
            }
            _ if error.message().starts_with("no such ") => (
                ErrorKind::Config,
                "call `larder_sqlx::sqlite::migrate` once for this file",
            ),
            _ => return None,
        })
    }

    fn is_refusal(error: &dyn sqlx::error::DatabaseError) -> bool {
        primary_code(error).is_some_and(|code| code != SQLITE_IOERR)
    }
}

/// The lower byte of SQLite's code; the others say more.
fn primary_code(error: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    let code: u32 = error.code()?.parse().ok()?;
    Some(code & 0xff)
}
