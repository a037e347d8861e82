//! Streams: where messages are sent.

use larder::{Entity, LockRow};
use serde::{Deserialize, Serialize};

use super::StreamId;
use crate::db::{Conn, Db, Sql, row, sql};

/// A stream: where messages are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
pub struct Stream {
    /// Its id.
    #[entity(id)]
    pub id: StreamId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// How often the row was written.
    pub version: i64,
}

row!(Stream: id, name, description, version);

/// Streams by id.
#[larder::cached(many, source = Db, key = "stream:{ids}", by = |stream| stream.id, ttl = "1h",
    flush_on(Stream { .. } => id))]
pub async fn streams(db: &mut Conn, ids: &[StreamId]) -> sqlx::Result<Vec<Stream>> {
    let streams = sql!(
        "SELECT id, name, description, version FROM streams WHERE id",
        in_list(1)
    );
    db.query(streams).bind_ids(ids).all().await
}

impl LockRow<Db> for Stream {
    async fn lock(db: &mut Conn, id: &StreamId) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT id, name, description, version FROM streams WHERE id = $1",
            for_update
        );
        db.query(lock).bind(id).optional().await
    }
}

impl Stream {
    /// The ids of all streams, in order.
    pub async fn ids(db: &mut Conn) -> sqlx::Result<Vec<StreamId>> {
        let ids = Sql::same("SELECT id FROM streams ORDER BY id");
        db.query(ids).column().await
    }

    /// Stores every field of a stream whose row is locked; its version becomes the next one.
    pub async fn update(&self, db: &mut Conn) -> sqlx::Result<()> {
        let update = Sql::same(
            "UPDATE streams SET name = $1, description = $2, version = version + 1 WHERE id = $3",
        );
        let query = db.query(update).bind(&self.name).bind(&self.description);
        query.bind(self.id).execute().await.map(drop)
    }
}

/// Fields of a stream to change; those left out stay.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPatch {
    /// The new name.
    pub name: Option<String>,
    /// The new description.
    pub description: Option<String>,
}

impl StreamPatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.description.is_none()
    }

    /// The stream after the change, as [`Stream::update`] writes it.
    pub fn apply(self, before: &Stream) -> Stream {
        Stream {
            id: before.id,
            name: self.name.unwrap_or_else(|| before.name.clone()),
            description: self
                .description
                .unwrap_or_else(|| before.description.clone()),
            version: before.version + 1,
        }
    }
}
