//! Bringing the schema up to date: what this program's version of it lacks, all or nothing.

use larder::{CommitFailure, Transactional as _};
use sqlx::{PgConnection, SqliteConnection};

use super::{Conn, Db, Held, Location, Sql};
use crate::{During as _, StartError, StartResult};

/// Statements that bring the schema from version N to N + 1, where N is the position in these lists.
const SQLITE: &[&str] = &[include_str!("sqlite/1.sql"), include_str!("sqlite/2.sql")];
const POSTGRES: &[&str] = &[include_str!("postgres/1.sql")];

/// Runs the migrations that this database lacks, all or none.
pub(super) async fn migrate(db: &Db, location: &Location) -> StartResult<()> {
    let what = format!("{location}: can't bring the schema up to date");
    let mut tx = db.begin().await.during(&what)?;
    one_at_a_time(&mut tx).await.during(&what)?;
    let (version, migrations) = match &mut *tx {
        Conn::Sqlite(conn) => {
            let version = sqlx::query_scalar("PRAGMA user_version");
            (version.fetch_one(&mut **conn).await.during(&what)?, SQLITE)
        }
        Conn::Postgres(conn) => (postgres_version(conn).await.during(&what)?, POSTGRES),
    };
    let version: i64 = version;
    let known = migrations.len();
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > known {
        return Err(StartError::new(format!(
            "{location}: the schema has version {version}, this program knows {known}; start a newer program or choose another --db",
        )));
    }
    for migration in &migrations[done..] {
        match &mut *tx {
            Conn::Sqlite(conn) => sqlite_run(conn, migration).await,
            Conn::Postgres(conn) => postgres_run(conn, migration).await,
        }
        .during(&what)?;
    }
    if done < known {
        match &mut *tx {
            // A pragma takes no parameters; what is formatted in is a number.
            Conn::Sqlite(_) => tx.assembled(format!("PRAGMA user_version = {known}")),
            Conn::Postgres(_) => tx.assembled(format!("UPDATE chat_schema SET version = {known}")),
        }
        .execute()
        .await
        .during(&what)?;
    }
    commit(tx).await.during(&what)
}

/// Waits until no other process creates or fills this database, and keeps others from it until the transaction ends: on
/// SQLite it is the only one that writes.
pub(crate) async fn one_at_a_time(conn: &mut Conn) -> sqlx::Result<()> {
    match conn {
        Conn::Sqlite(_) => Ok(()),
        Conn::Postgres(_) => {
            // Filling takes as long as it takes, and is no trouble.
            let patience = Sql::same("SET LOCAL lock_timeout = 0");
            conn.query(patience).execute().await?;
            let lock = Sql::same("SELECT pg_advisory_xact_lock(7310846927114)");
            conn.query(lock).execute().await.map(drop)
        }
    }
}

/// Commits what makes nothing stale, since nobody has read anything yet.
pub(crate) async fn commit(tx: Held) -> sqlx::Result<()> {
    Db::commit(tx).await.map_err(|failure| match failure {
        CommitFailure::Failed(error) | CommitFailure::Unknown(error) => error,
    })
}

/// The version of the schema, 0 if there is none.
async fn postgres_version(conn: &mut PgConnection) -> sqlx::Result<i64> {
    let exists = sqlx::query_scalar("SELECT to_regclass('chat_schema') IS NOT NULL");
    if !exists.fetch_one(&mut *conn).await? {
        sqlx::raw_sql("CREATE TABLE chat_schema (version BIGINT NOT NULL); INSERT INTO chat_schema VALUES (0)")
            .execute(&mut *conn)
            .await?;
    }
    let version = sqlx::query_scalar("SELECT version FROM chat_schema");
    version.fetch_one(conn).await
}

async fn sqlite_run(conn: &mut SqliteConnection, migration: &'static str) -> sqlx::Result<()> {
    sqlx::raw_sql(migration).execute(conn).await?;
    Ok(())
}

async fn postgres_run(conn: &mut PgConnection, migration: &'static str) -> sqlx::Result<()> {
    sqlx::raw_sql(migration).execute(conn).await?;
    Ok(())
}
