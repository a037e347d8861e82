//! Larder's tables in PostgreSQL.

use larder_core::Result;
use sqlx::postgres::{PgConnection, PgPool};

use super::{Codebook, begin};
use crate::trouble::failed;

/// The statements that bring larder's tables from one version to the next, each with its last statement about
/// `larder_schema`: for those who apply them with a tool of their own.
pub const MIGRATIONS: &[&str] = &[include_str!("../../migrations/postgres/1.sql")];

/// Held by whoever makes or changes larder's tables, or edits the register.
pub(super) const LOCK: i64 = 0x6c61_7264_6572;

/// Makes larder's tables, or brings them up to date; where they are, it is one short query.
///
/// Any number of processes may call it at once. It touches no table but larder's own and locks no other; the role needs
/// the right to create tables in the first schema of its `search_path` if something is to be made.
///
/// Tables that a newer version of larder has changed are left alone: what it changes, older ones can go on with.
///
/// # Errors
///
/// The database's.
pub async fn migrate(pool: &PgPool) -> Result<()> {
    apply(pool)
        .await
        .map_err(|error| failed::<Codebook>("making larder's tables", error))
}

async fn apply(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut conn = pool.acquire().await?;
    if version(&mut conn).await? >= MIGRATIONS.len() {
        return Ok(());
    }
    drop(conn);
    // Read committed, so that what is read under the lock is what its last holder has left.
    let mut tx = begin(pool, Some("BEGIN ISOLATION LEVEL READ COMMITTED")).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await?;
    let done = version(&mut tx).await?;
    for migration in MIGRATIONS.iter().skip(done) {
        sqlx::raw_sql(*migration).execute(&mut *tx).await?;
    }
    tx.commit().await
}

async fn version(conn: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('larder_schema') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?;
    if !exists {
        return Ok(0);
    }
    let version: i32 = sqlx::query_scalar("SELECT version FROM larder_schema")
        .fetch_one(conn)
        .await?;
    Ok(usize::try_from(version).unwrap_or(0))
}
