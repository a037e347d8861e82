//! The database: one SQLite file, many readers, one writer.
//!
//! Write-ahead logging lets readers go on while somebody writes. Readers take a connection for one query and give it
//! back: there is no transaction around a request, so that a loader's snapshot always begins after its lease was won.

use std::path::Path;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

use crate::{During as _, StartError, StartResult};

/// How long a writer waits for a writer of another process, anybody for a free connection, and a load for its turn.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connections for reading: each is a thread, and one query of a loader occupies one.
pub const READERS: u32 = 8;

/// SQLite's code for a lock that wasn't free in time; its upper bits say which.
const SQLITE_BUSY: u32 = 5;

/// Statements that bring the schema from version N to N + 1, where N is the position in this list.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// The chat's database: what loads come from, and where writes go.
#[derive(Clone, Debug)]
pub struct Db {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Db {
    /// Opens this file, creates it if it isn't there, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// If the file can't be opened, isn't a database, or was made by a newer version of the chat.
    pub async fn open(path: &Path) -> StartResult<Self> {
        let what = format!("{}: can't open the database", path.display());
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(PATIENCE);
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(PATIENCE)
                .idle_timeout(None)
                .max_lifetime(None)
                // The other end is a file: there is no connection that could have died unnoticed.
                .test_before_acquire(false)
        };
        // The writer comes first: it creates the file and sets its journal mode.
        let writer = pool()
            .max_connections(1)
            .connect_with(options.clone())
            .await
            .during(&what)?;
        migrate(&writer, path).await?;
        let readers = pool()
            .max_connections(READERS)
            .connect_with(options.pragma("query_only", "on"))
            .await
            .during(&what)?;
        Ok(Self { readers, writer })
    }

    /// A connection that can't write, outside any transaction.
    pub async fn read(&self) -> sqlx::Result<PoolConnection<Sqlite>> {
        self.readers.acquire().await
    }

    /// A transaction that may write from its first statement on, and so never fails for having read before it wrote.
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// Waits for the connections in use, closes them all, and moves the write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl larder::Source for Db {
    type Conn = SqliteConnection;
    type Guard = PoolConnection<Sqlite>;
    type Error = sqlx::Error;

    async fn acquire(&self) -> Result<Self::Guard, Self::Error> {
        self.read().await
    }
}

/// Whether this error says only that everybody wants the database at once: no connection, or not the lock, in time.
pub(crate) fn is_overload(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error
            .code()
            .and_then(|code| code.parse().ok())
            .is_some_and(|code: u32| code & 0xff == SQLITE_BUSY),
        _ => false,
    }
}

/// Runs the migrations this file lacks, all or none.
async fn migrate(writer: &SqlitePool, path: &Path) -> StartResult<()> {
    let what = format!("{}: can't bring the schema up to date", path.display());
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await.during(&what)?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version")
        .fetch_one(&mut *tx)
        .await
        .during(&what)?;
    let known = MIGRATIONS.len();
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > known {
        return Err(StartError::new(format!(
            "{}: the schema has version {version}, this program knows {known}; start a newer program or choose another --db",
            path.display()
        )));
    }
    for migration in &MIGRATIONS[done..] {
        sqlx::raw_sql(*migration)
            .execute(&mut *tx)
            .await
            .during(&what)?;
    }
    // A pragma takes no parameters; what is formatted in is a number.
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "PRAGMA user_version = {known}"
    )))
    .execute(&mut *tx)
    .await
    .during(&what)?;
    tx.commit().await.during(&what)
}
