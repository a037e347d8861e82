//! Larder's outbox, of whichever database it is.

use std::time::Duration;

use async_trait::async_trait;
use larder::{Backlog, Decide, Outbox, PutOff, Register, Registered, Row, RowId};
use larder_sqlx::{PgOutbox, SqliteOutbox};

use super::Conn;

/// The outbox in the chat's database.
#[derive(Clone, Debug)]
pub(super) enum EitherOutbox {
    Sqlite(SqliteOutbox),
    Postgres(PgOutbox),
}

/// The same call of whichever it is.
macro_rules! either {
    ($of:expr, $outbox:ident => $call:expr) => {
        match $of {
            EitherOutbox::Sqlite($outbox) => $call.await,
            EitherOutbox::Postgres($outbox) => $call.await,
        }
    };
}

#[async_trait]
impl Outbox<Conn> for EitherOutbox {
    async fn push(
        &self,
        conn: &mut Conn,
        generation: &str,
        rows: &[String],
        grace: Duration,
    ) -> larder::Result<Vec<RowId>> {
        match (self, conn) {
            (Self::Sqlite(outbox), Conn::Sqlite(conn)) => {
                outbox.push(conn, generation, rows, grace).await
            }
            (Self::Postgres(outbox), Conn::Postgres(conn)) => {
                outbox.push(conn, generation, rows, grace).await
            }
            _ => Err(larder::Error::new(
                larder::ErrorKind::Config,
                "the outbox of one database was given a connection to another",
            )),
        }
    }

    async fn claim(
        &self,
        limit: usize,
        hold: Duration,
        interval: Duration,
    ) -> larder::Result<Vec<Row>> {
        either!(self, outbox => outbox.claim(limit, hold, interval))
    }

    async fn rows(&self, limit: usize) -> larder::Result<Vec<Row>> {
        either!(self, outbox => outbox.rows(limit))
    }

    async fn done(&self, ids: &[RowId]) -> larder::Result<()> {
        either!(self, outbox => outbox.done(ids))
    }

    async fn put_off(&self, rows: &[PutOff]) -> larder::Result<()> {
        either!(self, outbox => outbox.put_off(rows))
    }

    async fn left(&self, ids: &[RowId]) -> larder::Result<Vec<RowId>> {
        either!(self, outbox => outbox.left(ids))
    }

    async fn drop_older(&self, age: Duration) -> larder::Result<u64> {
        either!(self, outbox => outbox.drop_older(age))
    }

    async fn backlog(&self) -> larder::Result<Backlog> {
        either!(self, outbox => outbox.backlog())
    }
}

#[async_trait]
impl Register for EitherOutbox {
    async fn read(&self) -> larder::Result<Registered> {
        either!(self, outbox => outbox.read())
    }

    async fn edit(&self, decide: Decide<'_>) -> larder::Result<()> {
        either!(self, outbox => outbox.edit(decide))
    }

    async fn renew(&self, id: &str, ttl: Duration, unless: Duration) -> larder::Result<bool> {
        either!(self, outbox => outbox.renew(id, ttl, unless))
    }
}
