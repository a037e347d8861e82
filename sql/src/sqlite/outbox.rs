//! The outbox and the register in SQLite.
//!
//! Whoever writes has the file for itself, so there is nothing to lock; and what needn't write reads first, so that an
//! idle process writes nothing. Correctness needs no `foreign_keys`: the insert asks for its generation itself.

use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backlog, Decide, Edit, Error, ErrorKind, Outbox, PutOff, Register, Registered, Result, Row,
    RowId,
};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use super::Codebook;
use crate::read::{self, ListedGeneration, ListedPurge};
use crate::trouble::failed;

/// The outbox and the register in a file of SQLite.
///
/// [`Sqlite`](super::Sqlite) has one. By itself it is for a connection type that isn't sqlx's: implement [`Outbox`] for
/// that, and call this one.
#[derive(Clone, Debug)]
pub struct SqliteOutbox {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl SqliteOutbox {
    /// The outbox in the file of these pools, which may be the same.
    pub fn new(readers: SqlitePool, writer: SqlitePool) -> Self {
        Self { readers, writer }
    }

    async fn generations(&self) -> Result<Registered, sqlx::Error> {
        let mut conn = self.readers.acquire().await?;
        registered(&mut conn).await
    }

    /// What [`Register::edit`] does; `Ok(Err)` is an error of the decision.
    async fn try_edit(&self, decide: Decide<'_>) -> Result<Result<()>, sqlx::Error> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        let known = registered(&mut tx).await?;
        let edits = match decide(&known) {
            Ok(edits) => edits,
            Err(error) => return Ok(Err(error)),
        };
        for edit in edits {
            if let Err(error) = apply(&mut tx, edit).await? {
                return Ok(Err(error));
            }
        }
        tx.commit().await.map(Ok)
    }

    async fn try_push(
        conn: &mut SqliteConnection,
        generation: &str,
        text: &str,
        grace: Duration,
    ) -> Result<Option<RowId>, sqlx::Error> {
        sqlx::query_scalar(
            "INSERT INTO larder_outbox (generation, created_at, next_at, text) \
             SELECT id, now, now + ?2, ?3 \
             FROM larder_generation, (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now) \
             WHERE id = ?1 RETURNING id",
        )
        .bind(generation)
        .bind(millis(grace))
        .bind(text)
        .fetch_optional(conn)
        .await
    }

    async fn try_put_off(&self, rows: &[PutOff]) -> Result<(), sqlx::Error> {
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        for row in rows {
            sqlx::query(
                "UPDATE larder_outbox \
                 SET text = ?2, next_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?3 WHERE id = ?1",
            )
            .bind(row.id)
            .bind(&*row.text)
            .bind(millis(row.pause))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await
    }

    async fn try_claim(
        &self,
        limit: usize,
        hold: Duration,
        interval: Duration,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let interval = millis(interval);
        let mut conn = self.readers.acquire().await?;
        if !is_due(&mut conn, interval).await? {
            return Ok(Vec::new());
        }
        drop(conn);
        let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        if !is_due(&mut tx, interval).await? {
            return Ok(Vec::new());
        }
        sqlx::query(
            "UPDATE larder_relay SET claimed_at = CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        )
        .execute(&mut *tx)
        .await?;
        let due: Vec<(RowId, String, i64, i64)> = sqlx::query_as(
            "SELECT id, text, attempts, now - created_at \
             FROM larder_outbox, (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now) \
             WHERE next_at <= now ORDER BY next_at, id LIMIT ?1",
        )
        .bind(read::count(limit))
        .fetch_all(&mut *tx)
        .await?;
        let ids: Vec<RowId> = due.iter().map(|(id, ..)| *id).collect();
        sqlx::query(
            "UPDATE larder_outbox \
             SET next_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) + ?2, attempts = attempts + 1 \
             WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(list(&ids))
        .bind(millis(hold))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(due.into_iter().map(row).collect())
    }
}

#[async_trait]
impl Outbox<SqliteConnection> for SqliteOutbox {
    async fn push(
        &self,
        conn: &mut SqliteConnection,
        generation: &str,
        rows: &[String],
        grace: Duration,
    ) -> Result<Vec<RowId>> {
        let mut ids = Vec::with_capacity(rows.len());
        for text in rows {
            let id = Self::try_push(conn, generation, text, grace)
                .await
                .map_err(|error| failed::<Codebook>("inserting into larder's outbox", error))?;
            ids.push(id.ok_or_else(|| {
                Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the generation {generation} isn't registered any more, so that this write can't be flushed \
                         everywhere; roll back and try again, this process registers anew within seconds"
                    ),
                )
            })?);
        }
        Ok(ids)
    }

    async fn claim(&self, limit: usize, hold: Duration, interval: Duration) -> Result<Vec<Row>> {
        self.try_claim(limit, hold, interval)
            .await
            .map_err(|error| failed::<Codebook>("claiming rows of larder's outbox", error))
    }

    async fn rows(&self, limit: usize) -> Result<Vec<Row>> {
        let rows: Vec<(RowId, String, i64, i64)> = sqlx::query_as(
            "SELECT id, text, attempts, CAST(unixepoch('subsec') * 1000 AS INTEGER) - created_at \
             FROM larder_outbox ORDER BY id LIMIT ?1",
        )
        .bind(read::count(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(|error| failed::<Codebook>("reading larder's outbox", error))?;
        Ok(rows.into_iter().map(row).collect())
    }

    async fn done(&self, ids: &[RowId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        sqlx::query("DELETE FROM larder_outbox WHERE id IN (SELECT value FROM json_each(?1))")
            .bind(list(ids))
            .execute(&self.writer)
            .await
            .map_err(|error| failed::<Codebook>("deleting from larder's outbox", error))?;
        Ok(())
    }

    async fn put_off(&self, rows: &[PutOff]) -> Result<()> {
        self.try_put_off(rows)
            .await
            .map_err(|error| failed::<Codebook>("putting off rows of larder's outbox", error))
    }

    async fn left(&self, ids: &[RowId]) -> Result<Vec<RowId>> {
        sqlx::query_scalar(
            "SELECT id FROM larder_outbox WHERE id IN (SELECT value FROM json_each(?1))",
        )
        .bind(list(ids))
        .fetch_all(&self.readers)
        .await
        .map_err(|error| failed::<Codebook>("reading larder's outbox", error))
    }

    async fn drop_older(&self, age: Duration) -> Result<u64> {
        let any = |error| failed::<Codebook>("dropping old rows of larder's outbox", error);
        let is_old: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM larder_outbox \
                 WHERE created_at < CAST(unixepoch('subsec') * 1000 AS INTEGER) - ?1)",
        )
        .bind(millis(age))
        .fetch_one(&self.readers)
        .await
        .map_err(any)?;
        if !is_old {
            return Ok(0);
        }
        let dropped = sqlx::query(
            "DELETE FROM larder_outbox WHERE created_at < CAST(unixepoch('subsec') * 1000 AS INTEGER) - ?1",
        )
        .bind(millis(age))
        .execute(&self.writer)
        .await
        .map_err(any)?;
        Ok(dropped.rows_affected())
    }

    async fn backlog(&self) -> Result<Backlog> {
        let (rows, oldest): (i64, Option<i64>) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM larder_outbox LIMIT ?1)), \
                 (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) - created_at \
                  FROM larder_outbox ORDER BY id LIMIT 1)",
        )
        .bind(read::COUNTED)
        .fetch_one(&self.readers)
        .await
        .map_err(|error| failed::<Codebook>("counting larder's outbox", error))?;
        Ok(Backlog {
            rows: rows.unsigned_abs(),
            oldest: oldest.map(duration),
        })
    }
}

#[async_trait]
impl Register for SqliteOutbox {
    async fn read(&self) -> Result<Registered> {
        self.generations()
            .await
            .map_err(|error| failed::<Codebook>("reading larder's generations", error))
    }

    async fn edit(&self, decide: Decide<'_>) -> Result<()> {
        self.try_edit(decide)
            .await
            .map_err(|error| failed::<Codebook>("editing larder's generations", error))?
    }

    async fn renew(&self, id: &str, ttl: Duration, unless: Duration) -> Result<bool> {
        let any =
            |error| failed::<Codebook>("renewing a registration in larder's generations", error);
        let is_old: Option<bool> = sqlx::query_scalar(
            "SELECT renewed_at NOT BETWEEN now - ?2 + 1 AND now \
             FROM larder_generation, (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now) \
             WHERE id = ?1 AND expires_at > 0",
        )
        .bind(id)
        .bind(millis(unless))
        .fetch_optional(&self.readers)
        .await
        .map_err(any)?;
        if is_old == Some(false) {
            return Ok(true);
        }
        let renewed = sqlx::query(
            "UPDATE larder_generation SET renewed_at = now, expires_at = now + ?2 \
             FROM (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now) \
             WHERE id = ?1 AND expires_at > 0",
        )
        .bind(id)
        .bind(millis(ttl))
        .execute(&self.writer)
        .await
        .map_err(any)?;
        Ok(renewed.rows_affected() > 0)
    }
}

/// Whether a row is due, and nobody has claimed any for so long. A relay's time beyond the present is that of a clock
/// which was set back since.
async fn is_due(conn: &mut SqliteConnection, interval: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM larder_outbox WHERE next_at <= now) \
             AND EXISTS (SELECT 1 FROM larder_relay WHERE claimed_at NOT BETWEEN now - ?1 + 1 AND now) \
         FROM (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now)",
    )
    .bind(interval)
    .fetch_one(conn)
    .await
}

async fn registered(conn: &mut SqliteConnection) -> Result<Registered, sqlx::Error> {
    let generations: Vec<ListedGeneration<i64>> = sqlx::query_as(
        "SELECT id, version, pool, holder, manifest, now - created_at, expires_at - now \
         FROM larder_generation, (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now) \
         ORDER BY created_at, id",
    )
    .fetch_all(&mut *conn)
    .await?;
    let purges: Vec<ListedPurge<i64>> = sqlx::query_as(
        "SELECT accessor, epoch, former, CAST(unixepoch('subsec') * 1000 AS INTEGER) - purged_at \
         FROM larder_purge ORDER BY accessor",
    )
    .fetch_all(conn)
    .await?;
    Ok(read::registered(generations, purges, duration))
}

async fn apply(conn: &mut SqliteConnection, edit: Edit) -> Result<Result<()>, sqlx::Error> {
    match edit {
        Edit::Mint {
            id,
            version,
            pool,
            holder,
            manifest,
            ttl,
        } => {
            // Whoever empties all tables, as tests do, takes the relay's row away as well.
            sqlx::query("INSERT INTO larder_relay VALUES (1, 0) ON CONFLICT DO NOTHING")
                .execute(&mut *conn)
                .await?;
            sqlx::query(
                "INSERT INTO larder_generation \
                     (id, version, pool, holder, manifest, created_at, renewed_at, expires_at) \
                 SELECT ?1, ?2, ?3, ?4, ?5, now, now, now + ?6 \
                 FROM (SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER) AS now)",
            )
            .bind(id)
            .bind(version)
            .bind(pool)
            .bind(holder)
            .bind(manifest)
            .bind(millis(ttl))
            .execute(conn)
            .await?;
        }
        Edit::End { id } => {
            // A time that can't come by itself, and isn't renewed.
            sqlx::query("UPDATE larder_generation SET expires_at = 0 WHERE id = ?1")
                .bind(id)
                .execute(conn)
                .await?;
        }
        Edit::Delete { id } => {
            // The foreign key does it too, where the connection has its foreign keys on.
            sqlx::query("UPDATE larder_outbox SET generation = NULL WHERE generation = ?1")
                .bind(&id)
                .execute(&mut *conn)
                .await?;
            sqlx::query("DELETE FROM larder_generation WHERE id = ?1")
                .bind(id)
                .execute(conn)
                .await?;
        }
        Edit::Purge { accessor, epoch } => {
            sqlx::query(
                "INSERT INTO larder_purge (accessor, epoch, purged_at) \
                 VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000 AS INTEGER)) \
                 ON CONFLICT (accessor) DO UPDATE \
                 SET former = larder_purge.epoch, epoch = excluded.epoch, purged_at = excluded.purged_at",
            )
            .bind(accessor)
            .bind(epoch)
            .execute(conn)
            .await?;
        }
        edit => return Ok(Err(read::unknown(&edit))),
    }
    Ok(Ok(()))
}

fn row((id, text, attempts, age): (RowId, String, i64, i64)) -> Row {
    Row {
        id,
        text,
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        age: duration(age),
    }
}

/// Ids as a JSON array.
fn list(ids: &[RowId]) -> String {
    let ids: Vec<String> = ids.iter().map(RowId::to_string).collect();
    format!("[{}]", ids.join(","))
}

/// A time that a clock which was set back made negative is none.
fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}
