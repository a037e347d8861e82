//! Larder's tables in SQLite.

use larder_core::Result;
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::Codebook;
use crate::trouble::failed;

/// The statements that bring larder's tables from one version to the next, each with its last statement about
/// `larder_schema`: for those who apply them with a tool of their own.
pub const MIGRATIONS: &[&str] = &[include_str!("../../migrations/sqlite/1.sql")];

/// Makes larder's tables, or brings them up to date; where they are, it is one short query.
///
/// Any number of processes may call it at once, each with a pool that can write. It touches no table but larder's own.
///
/// Tables that a newer version of larder has changed are left alone: what it changes, older ones can go on with.
///
/// # Errors
///
/// The database's.
pub async fn migrate(writer: &SqlitePool) -> Result<()> {
    apply(writer)
        .await
        .map_err(|error| failed::<Codebook>("making larder's tables", error))
}

async fn apply(writer: &SqlitePool) -> Result<(), sqlx::Error> {
    let mut conn = writer.acquire().await?;
    if version(&mut conn).await? >= MIGRATIONS.len() {
        return Ok(());
    }
    drop(conn);
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let done = version(&mut tx).await?;
    for migration in MIGRATIONS.iter().skip(done) {
        sqlx::raw_sql(*migration).execute(&mut *tx).await?;
    }
    tx.commit().await
}

async fn version(conn: &mut SqliteConnection) -> Result<usize, sqlx::Error> {
    let exists: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'larder_schema')",
    )
    .fetch_one(&mut *conn)
    .await?;
    if !exists {
        return Ok(0);
    }
    let version: i64 = sqlx::query_scalar("SELECT version FROM larder_schema")
        .fetch_one(conn)
        .await?;
    Ok(usize::try_from(version).unwrap_or(0))
}
