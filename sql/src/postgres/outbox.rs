//! The outbox and the register in PostgreSQL.
//!
//! Every call is one statement that commits by itself, [`edit`](Register::edit) aside; none waits for a lock that a
//! client could hold, so a process that is stopped in the middle stops nobody else.

use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backlog, Decide, Edit, Error, ErrorKind, Outbox, PutOff, Register, Registered, Result, Row,
    RowId,
};
use sqlx::postgres::{PgConnection, PgPool};

use super::schema::LOCK;
use super::{Codebook, begin};
use crate::read::{self, ListedGeneration, ListedPurge};
use crate::trouble::failed;

/// How long an editor may take between two statements, and wait for its turn, before the database ends it.
const EDIT_LIMITS: &str =
    "SET LOCAL idle_in_transaction_session_timeout = '5s'; SET LOCAL lock_timeout = '10s'";

/// So many rows of the outbox are changed by one edit: after an hour without a cache server there may be millions, and
/// everybody who registers waits for an edit.
const CLEARED: usize = 10_000;

/// The outbox and the register in a database of PostgreSQL.
///
/// [`Postgres`](super::Postgres) has one. By itself it is for a connection type that isn't sqlx's: implement
/// [`Outbox`] for that, and call this one.
#[derive(Clone, Debug)]
pub struct PgOutbox {
    pool: PgPool,
}

impl PgOutbox {
    /// The outbox in the database of this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    async fn generations(&self) -> Result<Registered, sqlx::Error> {
        let mut conn = self.pool.acquire().await?;
        registered(&mut conn).await
    }

    /// What [`Register::edit`] does, once; `Ok(Err)` is an error of the decision.
    async fn try_edit(&self, decide: Decide<'_>) -> Result<Result<()>, sqlx::Error> {
        // Read committed, so that what is read under the lock is what its last holder has left.
        let mut tx = begin(&self.pool, Some("BEGIN ISOLATION LEVEL READ COMMITTED")).await?;
        sqlx::raw_sql(EDIT_LIMITS).execute(&mut *tx).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1) /* larder */")
            .bind(LOCK)
            .execute(&mut *tx)
            .await?;
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
}

#[async_trait]
impl Outbox<PgConnection> for PgOutbox {
    async fn push(
        &self,
        conn: &mut PgConnection,
        generation: &str,
        rows: &[String],
        grace: Duration,
    ) -> Result<Vec<RowId>> {
        sqlx::query_scalar(
            "INSERT INTO larder_outbox (generation, created_at, next_at, text) \
             SELECT $1, statement_timestamp(), statement_timestamp() + make_interval(secs => $2), text \
             FROM unnest($3::text[]) AS text RETURNING id",
        )
        .bind(generation)
        .bind(grace.as_secs_f64())
        .bind(rows)
        .fetch_all(conn)
        .await
        .map_err(|error| match foreign_key(&error) {
            true => Error::with_source(
                ErrorKind::Unavailable,
                format!(
                    "the generation {generation} isn't registered any more, so that this write can't be flushed \
                     everywhere; roll back and try again, this process registers anew within seconds"
                ),
                error,
            ),
            false => failed::<Codebook>("inserting into larder's outbox", error),
        })
    }

    async fn claim(&self, limit: usize, hold: Duration, interval: Duration) -> Result<Vec<Row>> {
        // One who comes at the same moment may be a little ahead; a time far ahead is that of a clock which was set back.
        let claimed: Vec<(RowId, String, i32, f64)> = sqlx::query_as(
            "WITH turn AS ( \
                 UPDATE larder_relay SET claimed_at = statement_timestamp() WHERE id IN ( \
                     SELECT id FROM larder_relay \
                     WHERE (claimed_at <= statement_timestamp() - make_interval(secs => $3) \
                             OR claimed_at > statement_timestamp() + make_interval(secs => $3)) \
                         AND EXISTS (SELECT FROM larder_outbox WHERE next_at <= statement_timestamp()) \
                     FOR UPDATE SKIP LOCKED) \
                 RETURNING id \
             ), due AS MATERIALIZED ( \
                 SELECT id, next_at FROM larder_outbox \
                 WHERE next_at <= statement_timestamp() AND (SELECT count(*) FROM turn) > 0 \
                 ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED \
             ), claimed AS ( \
                 UPDATE larder_outbox AS row \
                 SET next_at = statement_timestamp() + make_interval(secs => $2), attempts = attempts + 1 \
                 FROM due WHERE row.id = due.id \
                 RETURNING row.id, row.text, row.attempts - 1 AS attempts, row.created_at, due.next_at AS due_at \
             ) \
             SELECT id, text, attempts, extract(epoch FROM statement_timestamp() - created_at)::float8 \
             FROM claimed ORDER BY due_at, id",
        )
        .bind(read::count(limit))
        .bind(hold.as_secs_f64())
        .bind(interval.as_secs_f64())
        .fetch_all(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("claiming rows of larder's outbox", error))?;
        Ok(claimed.into_iter().map(row).collect())
    }

    async fn rows(&self, limit: usize) -> Result<Vec<Row>> {
        let rows: Vec<(RowId, String, i32, f64)> = sqlx::query_as(
            "SELECT id, text, attempts, extract(epoch FROM statement_timestamp() - created_at)::float8 \
             FROM larder_outbox ORDER BY id LIMIT $1",
        )
        .bind(read::count(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("reading larder's outbox", error))?;
        Ok(rows.into_iter().map(row).collect())
    }

    async fn done(&self, ids: &[RowId]) -> Result<()> {
        // In order, so that two who delete the same rows don't wait for each other crosswise.
        sqlx::query(
            "DELETE FROM larder_outbox WHERE id IN ( \
                 SELECT id FROM larder_outbox WHERE id = ANY($1) ORDER BY id FOR UPDATE)",
        )
        .bind(ids)
        .execute(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("deleting from larder's outbox", error))?;
        Ok(())
    }

    async fn put_off(&self, rows: &[PutOff]) -> Result<()> {
        let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
        let texts: Vec<&str> = rows.iter().map(|row| &*row.text).collect();
        let pauses: Vec<f64> = rows.iter().map(|row| row.pause.as_secs_f64()).collect();
        // In order, as they are deleted.
        sqlx::query(
            "WITH known AS MATERIALIZED ( \
                 SELECT id FROM larder_outbox WHERE id = ANY($1) ORDER BY id FOR UPDATE \
             ) \
             UPDATE larder_outbox AS row \
             SET text = later.text, next_at = statement_timestamp() + make_interval(secs => later.pause) \
             FROM known JOIN unnest($1::bigint[], $2::text[], $3::float8[]) AS later (id, text, pause) USING (id) \
             WHERE row.id = known.id",
        )
        .bind(ids)
        .bind(texts)
        .bind(pauses)
        .execute(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("putting off rows of larder's outbox", error))?;
        Ok(())
    }

    async fn left(&self, ids: &[RowId]) -> Result<Vec<RowId>> {
        sqlx::query_scalar("SELECT id FROM larder_outbox WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(|error| failed::<Codebook>("reading larder's outbox", error))
    }

    async fn drop_older(&self, age: Duration) -> Result<u64> {
        let dropped = sqlx::query(
            "DELETE FROM larder_outbox WHERE id IN ( \
                 SELECT id FROM larder_outbox \
                 WHERE created_at < statement_timestamp() - make_interval(secs => $1) FOR UPDATE SKIP LOCKED)",
        )
        .bind(age.as_secs_f64())
        .execute(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("dropping old rows of larder's outbox", error))?;
        Ok(dropped.rows_affected())
    }

    async fn backlog(&self) -> Result<Backlog> {
        let (rows, oldest): (i64, Option<f64>) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM (SELECT FROM larder_outbox LIMIT $1) AS row), \
                 (SELECT extract(epoch FROM statement_timestamp() - created_at)::float8 \
                  FROM larder_outbox ORDER BY id LIMIT 1)",
        )
        .bind(read::COUNTED)
        .fetch_one(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("counting larder's outbox", error))?;
        Ok(Backlog {
            rows: rows.unsigned_abs(),
            oldest: oldest.map(seconds),
        })
    }
}

#[async_trait]
impl Register for PgOutbox {
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
        // What another process renews at this very moment isn't waited for: it is renewed.
        sqlx::query_scalar(
            "WITH renewed AS ( \
                 UPDATE larder_generation \
                 SET renewed_at = statement_timestamp(), expires_at = statement_timestamp() + make_interval(secs => $2) \
                 WHERE id IN ( \
                     SELECT id FROM larder_generation \
                     WHERE id = $1 AND expires_at > 'epoch' AND (renewed_at <= statement_timestamp() - make_interval(secs => $3) \
                             OR renewed_at > statement_timestamp() + make_interval(secs => $3)) \
                     FOR NO KEY UPDATE SKIP LOCKED) \
             ) \
             SELECT EXISTS (SELECT FROM larder_generation WHERE id = $1 AND expires_at > 'epoch')",
        )
        .bind(id)
        .bind(ttl.as_secs_f64())
        .bind(unless.as_secs_f64())
        .fetch_one(&self.pool)
        .await
        .map_err(|error| failed::<Codebook>("renewing a registration in larder's generations", error))
    }
}

async fn registered(conn: &mut PgConnection) -> Result<Registered, sqlx::Error> {
    let generations: Vec<ListedGeneration<f64>> = sqlx::query_as(
        "SELECT id, version, pool, holder, manifest, \
             extract(epoch FROM statement_timestamp() - created_at)::float8, \
             extract(epoch FROM expires_at - statement_timestamp())::float8 \
         FROM larder_generation ORDER BY created_at, id",
    )
    .fetch_all(&mut *conn)
    .await?;
    let purges: Vec<ListedPurge<f64>> = sqlx::query_as(
        "SELECT accessor, epoch, former, extract(epoch FROM statement_timestamp() - purged_at)::float8 \
         FROM larder_purge ORDER BY accessor",
    )
    .fetch_all(conn)
    .await?;
    Ok(read::registered(generations, purges, seconds))
}

async fn apply(conn: &mut PgConnection, edit: Edit) -> Result<Result<()>, sqlx::Error> {
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
            sqlx::query("INSERT INTO larder_relay VALUES (1, 'epoch') ON CONFLICT DO NOTHING")
                .execute(&mut *conn)
                .await?;
            sqlx::query(
                "INSERT INTO larder_generation \
                     (id, version, pool, holder, manifest, created_at, renewed_at, expires_at) \
                 SELECT $1, $2, $3, $4, $5, now, now, now + make_interval(secs => $6) \
                 FROM (SELECT statement_timestamp() AS now) AS clock",
            )
            .bind(id)
            .bind(version)
            .bind(pool)
            .bind(holder)
            .bind(manifest)
            .bind(ttl.as_secs_f64())
            .execute(conn)
            .await?;
        }
        Edit::End { id } => end(conn, id).await?,
        Edit::Delete { id } => {
            // A writer's row holds its generation, and a writer may be stopped for long: it isn't waited for.
            let is_free =
                sqlx::query("SELECT FROM larder_generation WHERE id = $1 FOR UPDATE SKIP LOCKED")
                    .bind(&id)
                    .fetch_optional(&mut *conn)
                    .await?;
            let is_cleared = is_free.is_some() && clear(conn, &id).await?;
            match is_cleared {
                true => delete(conn, id).await?,
                // Writers go on flushing it, and nobody reads by it any more. It is deleted by a later edit.
                false => end(conn, id).await?,
            }
        }
        Edit::Purge { accessor, epoch } => {
            sqlx::query(
                "INSERT INTO larder_purge AS known (accessor, epoch, purged_at) VALUES ($1, $2, statement_timestamp()) \
                 ON CONFLICT (accessor) DO UPDATE \
                 SET former = known.epoch, epoch = excluded.epoch, purged_at = excluded.purged_at",
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

/// Has rows of the outbox no longer refer to this generation; `false` if more do than one edit may take time for.
async fn clear(conn: &mut PgConnection, id: &str) -> Result<bool, sqlx::Error> {
    // The foreign key would do it as well, but all at once and in any order, and so wait crosswise with whoever deletes
    // rows.
    let cleared = sqlx::query(
        "UPDATE larder_outbox SET generation = NULL WHERE id IN ( \
             SELECT id FROM larder_outbox WHERE generation = $1 ORDER BY id LIMIT $2 FOR UPDATE)",
    )
    .bind(id)
    .bind(read::count(CLEARED))
    .execute(conn)
    .await?;
    Ok(cleared.rows_affected() < CLEARED as u64)
}

async fn delete(conn: &mut PgConnection, id: String) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM larder_generation WHERE id = $1")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

/// Ends a registration for good: that time can't come by itself, and isn't renewed.
async fn end(conn: &mut PgConnection, id: String) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE larder_generation SET expires_at = 'epoch' WHERE id = $1")
        .bind(id)
        .execute(conn)
        .await?;
    Ok(())
}

fn foreign_key(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_foreign_key_violation())
}

fn row((id, text, attempts, age): (RowId, String, i32, f64)) -> Row {
    Row {
        id,
        text,
        attempts: attempts.unsigned_abs(),
        age: seconds(age),
    }
}

/// A time that a clock which was set back made negative is none.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
