//! PostgreSQL, 13 or newer.

mod outbox;
mod schema;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use larder_core::{CommitFailure, ErrorKind, Outbox, Savepoint, Source, Transactional};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgDatabaseError, PgPool, PgPoolOptions, PgSeverity};
use sqlx::{AssertSqlSafe, SqlStr, Transaction};

pub use outbox::PgOutbox;
pub use schema::{MIGRATIONS, migrate};

use crate::trouble::{self, Codes};

/// PostgreSQL as a source that can be written: a pool, and the outbox in its database.
///
/// Every connection of the pool must be one to the primary, since a standby answers what was true some time ago, and a
/// load that reads it fills the cache with that: see [`only_primaries`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_sqlx::{Postgres, postgres};
/// use sqlx::postgres::PgPoolOptions;
///
/// let pool = postgres::only_primaries(PgPoolOptions::new().max_connections(20))
///     .connect("postgres://chat@db.example.com/chat")
///     .await?;
/// postgres::migrate(&pool).await?;
/// let source = Postgres::new(pool);
/// # let _ = source;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Postgres {
    pool: PgPool,
    outbox: Option<Arc<PgOutbox>>,
}

impl Postgres {
    /// A source over this pool, with an outbox in its database: what [`migrate`] has made.
    ///
    /// Loads, writes and the outbox share the pool. The outbox needs a connection a few times a second, for a moment.
    pub fn new(pool: PgPool) -> Self {
        let outbox = Arc::new(PgOutbox::new(pool.clone()));
        Self {
            pool,
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

    /// Its pool.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

impl Source for Postgres {
    type Conn = PgConnection;
    type Guard = PoolConnection<sqlx::Postgres>;
    type Error = sqlx::Error;

    async fn acquire(&self) -> Result<Self::Guard, sqlx::Error> {
        self.pool.acquire().await
    }

    fn outbox(&self) -> Option<Arc<dyn Outbox<PgConnection>>> {
        let outbox = Arc::clone(self.outbox.as_ref()?);
        Some(outbox)
    }
}

impl Transactional for Postgres {
    type Tx = Tx;

    async fn begin(&self) -> Result<Tx, sqlx::Error> {
        begin(&self.pool, None).await.map(Tx)
    }

    /// Where a statement has failed before and the error was passed over, PostgreSQL rolls back and sqlx doesn't say so.
    /// Larder's own insert finds that out, so it is told of every commit that has something to flush, with an outbox.
    async fn commit(tx: Tx) -> Result<(), CommitFailure<sqlx::Error>> {
        tx.0.commit().await.map_err(commit_failure)
    }

    async fn rollback(tx: Tx) -> Result<(), sqlx::Error> {
        tx.0.rollback().await
    }

    async fn savepoint(tx: &mut Tx, step: Savepoint, depth: u32) -> Result<(), sqlx::Error> {
        let statement = savepoint(step, depth);
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn has_written(tx: &mut Tx) -> Result<Option<bool>, sqlx::Error> {
        has_written(tx).await.map(Some)
    }
}

/// A transaction; dropped, it is rolled back.
#[derive(Debug)]
pub struct Tx(Transaction<'static, sqlx::Postgres>);

impl Deref for Tx {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

/// Begins a transaction, by this statement if there is one. Whoever waits for it may leave.
///
/// sqlx forgets that it has said BEGIN if it is dropped before the answer, and gives the connection back to the pool:
/// what comes next on it is in a transaction that nobody ends.
async fn begin(
    pool: &PgPool,
    statement: Option<&'static str>,
) -> Result<Transaction<'static, sqlx::Postgres>, sqlx::Error> {
    let conn = pool.acquire().await?;
    // A task comes to its end, and what it has begun is rolled back if nobody waits for it any more.
    let begun = tokio::spawn(Transaction::begin(conn, statement.map(SqlStr::from_static)));
    begun
        .await
        .unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(sqlx::Error::WorkerCrashed),
        })
}

/// Lets a pool refuse standbys: each new connection is asked once whether its server is one.
///
/// It takes the place of the options' [`after_connect`](PgPoolOptions::after_connect); who has one calls
/// [`is_primary`] in it.
///
/// Once is enough: a standby can become the primary under its connections, but a primary becomes a standby only by a
/// restart, which closes them. Behind a pooler that isn't so, since it keeps them open and connects anew: it has to lead to
/// primaries only.
pub fn only_primaries(options: PgPoolOptions) -> PgPoolOptions {
    options.after_connect(|conn, _| {
        Box::pin(async move {
            match is_primary(conn).await? {
                true => Ok(()),
                false => Err(sqlx::Error::Configuration(
                    "the server is a standby, whose data may be old; let the address name the primary".into(),
                )),
            }
        })
    })
}

/// Whether this connection's server is the primary.
///
/// # Errors
///
/// The connection's.
pub async fn is_primary(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT NOT pg_is_in_recovery() /* larder */")
        .fetch_one(conn)
        .await
}

/// Whether this transaction has run a statement that writes, temporary tables aside.
///
/// A write holds a lock of its own kind on its table until the transaction ends, which a row lock doesn't; and it has given the
/// transaction a number. What was undone by a savepoint doesn't count. (The statistics of the transaction would be no
/// answer: they have those of the connection's transactions before it, for up to a second.)
///
/// # Errors
///
/// The connection's.
pub async fn has_written(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT pg_current_xact_id_if_assigned() IS NOT NULL AND EXISTS ( \
             SELECT FROM pg_locks AS held JOIN pg_class AS class ON class.oid = held.relation \
             WHERE held.pid = pg_backend_pid() AND held.locktype = 'relation' \
                 AND held.mode IN ('RowExclusiveLock', 'AccessExclusiveLock') \
                 AND class.relkind IN ('r', 'p') AND class.relpersistence <> 't' \
                 AND class.relnamespace <> 'pg_catalog'::regnamespace) /* larder */",
    )
    .fetch_one(conn)
    .await
}

/// What an error of a commit says: that nothing was committed, or nothing.
///
/// An answer of the server says that nothing was. Everything else, and the last words of a server process that ends,
/// leave it open.
pub fn commit_failure(error: sqlx::Error) -> CommitFailure<sqlx::Error> {
    trouble::commit_failure::<Codebook>(error)
}

/// The statement that does this to the savepoint of this depth.
fn savepoint(step: Savepoint, depth: u32) -> String {
    match step {
        Savepoint::Set => format!("SAVEPOINT larder_{depth}"),
        Savepoint::Release => format!("RELEASE SAVEPOINT larder_{depth}"),
        Savepoint::RollBack => format!("ROLLBACK TO SAVEPOINT larder_{depth}"),
    }
}

/// What PostgreSQL's answers mean.
struct Codebook;

impl Codes for Codebook {
    const NAME: &'static str = "PostgreSQL";

    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)> {
        let code = error.code()?;
        Some(match &*code {
            "42P01" | "42703" => (
                ErrorKind::Config,
                "call `larder_sqlx::postgres::migrate` once, and see that the tables are in the connections' search_path",
            ),
            "42501" => (
                ErrorKind::Config,
                "give the role the privileges that docs/databases.md lists",
            ),
            "25006" => (
                ErrorKind::Config,
                "let the pool connect to the primary, and not read-only",
            ),
            "25P02" => (
                ErrorKind::Config,
                "a statement before it failed, so that nothing of the transaction can be committed; roll back",
            ),
            "25P03" => (ErrorKind::Unavailable, "it is tried again"),
            _ => match code.get(..2) {
                Some("08" | "40" | "53" | "55" | "57") => {
                    (ErrorKind::Unavailable, "it is tried again")
                }
                _ => return None,
            },
        })
    }

    fn is_refusal(error: &dyn sqlx::error::DatabaseError) -> bool {
        let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else {
            return false;
        };
        // 08: the connection; 40003: of a pooler that doesn't know either; 57P: the server is going down.
        let is_error = matches!(error.severity(), PgSeverity::Error);
        let code = error.code();
        is_error && !code.starts_with("08") && !code.starts_with("57P") && code != "40003"
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::fmt;

    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// What is said by something between here and PostgreSQL, or by another database.
    #[derive(Debug)]
    struct Strange(&'static str);

    impl fmt::Display for Strange {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("strange")
        }
    }

    impl std::error::Error for Strange {}

    impl DatabaseError for Strange {
        fn message(&self) -> &str {
            "strange"
        }

        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    #[test]
    fn strange_answers_are_errors_that_say_nothing_of_a_commit() {
        for code in ["", "5", "\u{20ac}", "23505"] {
            let error = || sqlx::Error::Database(Box::new(Strange(code)));
            let failed = trouble::failed::<Codebook>("asking", error());
            assert_eq!(failed.kind(), larder_core::ErrorKind::Protocol, "{code}");
            let failure = commit_failure(error());
            assert!(matches!(failure, CommitFailure::Unknown(_)), "{code}");
        }
    }
}
