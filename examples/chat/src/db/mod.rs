//! The database: a SQLite file or a PostgreSQL server, chosen when the chat starts.
//!
//! [`Db`] is what the cache knows of it, and joins larder by its traits: [`larder::Source`] hands out connections for
//! loads, [`larder::Transactional`] begins and ends transactions, [`larder::Outbox`] remembers what they make stale.
//! `larder-sqlx` has all of them for each database; here it is only said which of both it is.
//!
//! Readers take a connection for one query and give it back: there is no transaction around a request, so that a loader's
//! snapshot always begins after its lease was won. Writers have connections of their own, of which SQLite has one.

mod location;
mod migrate;
mod outbox;
mod query;
mod row;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use larder::{CommitFailure, Outbox, Savepoint, Source as _, Transactional};
use larder_sqlx::{PgOutbox, SqliteOutbox, postgres, sqlite};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Database, Postgres, Sqlite};

use self::outbox::EitherOutbox;
use crate::{During as _, StartResult};

pub use location::Location;
pub(crate) use migrate::{commit, one_at_a_time};
pub(crate) use query::sql;
pub use query::{Query, Row, Sql};
pub use row::Joined;
pub(crate) use row::{column, json, row};

/// How long a writer waits for another one, anybody for a free connection, and a load for its turn.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Connections for reading. SQLite's are threads, and one query of a loader occupies one.
pub const READERS: u32 = 8;

/// Connections to PostgreSQL for writing; larder's outbox is read and written over them as well.
const WRITERS: u32 = 8;

/// SQLite's code for a lock that wasn't free in time; its upper bits say which.
const SQLITE_BUSY: u32 = 5;

/// What PostgreSQL says when transactions are in each other's way: a lock that wasn't free in time, a deadlock, a failed
/// serialization, no connection left.
const IN_THE_WAY: [&str; 4] = ["55P03", "40P01", "40001", "53300"];

/// The chat's database: what loads come from, and where writes go.
#[derive(Clone, Debug)]
pub struct Db {
    pools: Pools,
    outbox: Arc<EitherOutbox>,
}

#[derive(Clone, Debug)]
enum Pools {
    Sqlite(larder_sqlx::Sqlite),
    Postgres {
        readers: PgPool,
        writers: larder_sqlx::Postgres,
    },
}

/// A connection of either database: what loaders and writers run their statements on.
#[derive(Debug)]
pub enum Conn {
    /// To a file of SQLite's.
    Sqlite(Lent<Sqlite, sqlite::Tx>),
    /// To a PostgreSQL server.
    Postgres(Lent<Postgres, postgres::Tx>),
}

/// A connection that goes back to its pool, by itself or with a transaction, which is rolled back then.
pub enum Lent<D: Database, T> {
    /// No transaction is open.
    Alone(PoolConnection<D>),
    /// One is.
    Open(T),
}

/// A connection for as long as it is held.
#[derive(Debug)]
pub struct Held(Conn);

impl Db {
    /// Opens this database, creates it if it is a file that isn't there, and brings its schema up to date.
    ///
    /// # Errors
    ///
    /// If it can't be opened, isn't a database, or was made by a newer version of the chat.
    pub async fn open(location: &Location) -> StartResult<Self> {
        let what = format!("{location}: can't open the database");
        let db = match location {
            Location::Sqlite(path) => {
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
                let writer = pool().max_connections(1);
                let writer = writer.connect_with(options.clone()).await.during(&what)?;
                sqlite::migrate(&writer).await.during(&what)?;
                let readers = pool().max_connections(READERS);
                let readers = readers.connect_with(options.pragma("query_only", "on"));
                let readers = readers.await.during(&what)?;
                let outbox = SqliteOutbox::new(readers.clone(), writer.clone());
                Self {
                    pools: Pools::Sqlite(larder_sqlx::Sqlite::with_writer(readers, writer)),
                    outbox: Arc::new(EitherOutbox::Sqlite(outbox)),
                }
            }
            Location::Postgres(url) => {
                let options: PgConnectOptions = url.parse().during(&what)?;
                let patience = PATIENCE.as_millis().to_string();
                let options = options
                    .application_name("larder-chat")
                    .options([("lock_timeout", patience)]);
                let pool =
                    || postgres::only_primaries(PgPoolOptions::new().acquire_timeout(PATIENCE));
                let writers = pool().max_connections(WRITERS);
                let writers = writers.connect_with(options.clone()).await.during(&what)?;
                postgres::migrate(&writers).await.during(&what)?;
                let readers = pool().max_connections(READERS).connect_with(options);
                let readers = readers.await.during(&what)?;
                let outbox = PgOutbox::new(writers.clone());
                let writers = larder_sqlx::Postgres::new(writers);
                Self {
                    pools: Pools::Postgres { readers, writers },
                    outbox: Arc::new(EitherOutbox::Postgres(outbox)),
                }
            }
        };
        migrate::migrate(&db, location).await?;
        Ok(db)
    }

    /// A connection for reading, outside any transaction.
    pub async fn read(&self) -> sqlx::Result<Held> {
        Ok(Held(match &self.pools {
            Pools::Sqlite(sqlite) => Conn::Sqlite(Lent::Alone(sqlite.acquire().await?)),
            Pools::Postgres { readers, .. } => {
                Conn::Postgres(Lent::Alone(readers.acquire().await?))
            }
        }))
    }

    /// Waits for the connections in use, closes them all, and moves SQLite's write-ahead log into its file.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite(sqlite) => {
                sqlite.readers().close().await;
                sqlite.writer().close().await;
            }
            Pools::Postgres { readers, writers } => {
                readers.close().await;
                writers.pool().close().await;
            }
        }
    }
}

impl larder::Source for Db {
    type Conn = Conn;
    type Guard = Held;
    type Error = sqlx::Error;

    async fn acquire(&self) -> sqlx::Result<Held> {
        self.read().await
    }

    fn outbox(&self) -> Option<Arc<dyn Outbox<Conn>>> {
        let outbox = Arc::clone(&self.outbox);
        Some(outbox)
    }
}

impl Transactional for Db {
    type Tx = Held;

    /// A transaction that may write from its first statement on, and so never fails for having read before it wrote.
    async fn begin(&self) -> sqlx::Result<Held> {
        Ok(Held(match &self.pools {
            Pools::Sqlite(sqlite) => Conn::Sqlite(Lent::Open(sqlite.begin().await?)),
            Pools::Postgres { writers, .. } => Conn::Postgres(Lent::Open(writers.begin().await?)),
        }))
    }

    async fn commit(tx: Held) -> Result<(), CommitFailure<sqlx::Error>> {
        match tx.0 {
            Conn::Sqlite(Lent::Open(tx)) => larder_sqlx::Sqlite::commit(tx).await,
            Conn::Postgres(Lent::Open(tx)) => larder_sqlx::Postgres::commit(tx).await,
            // A connection without one.
            Conn::Sqlite(Lent::Alone(_)) | Conn::Postgres(Lent::Alone(_)) => Ok(()),
        }
    }

    async fn rollback(tx: Held) -> sqlx::Result<()> {
        match tx.0 {
            Conn::Sqlite(Lent::Open(tx)) => larder_sqlx::Sqlite::rollback(tx).await,
            Conn::Postgres(Lent::Open(tx)) => larder_sqlx::Postgres::rollback(tx).await,
            Conn::Sqlite(Lent::Alone(_)) | Conn::Postgres(Lent::Alone(_)) => Ok(()),
        }
    }

    async fn savepoint(tx: &mut Held, step: Savepoint, depth: u32) -> sqlx::Result<()> {
        match &mut tx.0 {
            Conn::Sqlite(Lent::Open(tx)) => larder_sqlx::Sqlite::savepoint(tx, step, depth).await,
            Conn::Postgres(Lent::Open(tx)) => {
                larder_sqlx::Postgres::savepoint(tx, step, depth).await
            }
            Conn::Sqlite(Lent::Alone(_)) | Conn::Postgres(Lent::Alone(_)) => Ok(()),
        }
    }

    async fn has_written(tx: &mut Held) -> sqlx::Result<Option<bool>> {
        match &mut tx.0 {
            Conn::Sqlite(Lent::Open(tx)) => larder_sqlx::Sqlite::has_written(tx).await,
            Conn::Postgres(Lent::Open(tx)) => larder_sqlx::Postgres::has_written(tx).await,
            Conn::Sqlite(Lent::Alone(_)) | Conn::Postgres(Lent::Alone(_)) => Ok(None),
        }
    }
}

impl<D: Database, T: DerefMut<Target = D::Connection>> Deref for Lent<D, T> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        match self {
            Self::Alone(connection) => connection,
            Self::Open(tx) => tx,
        }
    }
}

impl<D: Database, T: DerefMut<Target = D::Connection>> DerefMut for Lent<D, T> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        match self {
            Self::Alone(connection) => connection,
            Self::Open(tx) => tx,
        }
    }
}

impl<D: Database, T> fmt::Debug for Lent<D, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone(_) => "Alone",
            Self::Open(_) => "Open",
        })
    }
}

impl Deref for Held {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.0
    }
}

impl DerefMut for Held {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.0
    }
}

/// Whether this error says only that everybody wants the database at once: no connection, or not the lock, in time.
pub(crate) fn is_overload(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(answer) = error else {
        return matches!(error, sqlx::Error::PoolTimedOut);
    };
    let Some(code) = answer.code() else {
        return false;
    };
    let is_busy = |code: u32| code & 0xff == SQLITE_BUSY;
    // SQLite's codes have fewer digits than PostgreSQL's have characters.
    IN_THE_WAY.contains(&&*code) || (code.len() < 5 && code.parse().is_ok_and(is_busy))
}
