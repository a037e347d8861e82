//! Streams: where messages are sent.

use std::time::Duration;

use larder::{Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime, LockRow, NoTier, Plain};
use serde::{Deserialize, Serialize};

use super::StreamId;
use crate::db::{Conn, Db, Sql, sql};

larder::dataset!(Streams);

/// A stream: where messages are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// How often the row was written.
    pub version: i64,
}

/// What of a stream can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamField {
    /// [`Stream::name`]
    Name,
    /// [`Stream::description`]
    Description,
    /// [`Stream::version`], with every write
    Version,
}

impl FieldSet for StreamField {
    const ALL: &'static [Self] = &[Self::Name, Self::Description, Self::Version];

    fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Description => "description",
            Self::Version => "version",
        }
    }
}

impl Entity for Stream {
    const NAME: &'static str = "stream";

    type Id = StreamId;
    type Field = StreamField;

    fn id(&self) -> StreamId {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([
            (StreamField::Name, self.name != other.name),
            (
                StreamField::Description,
                self.description != other.description,
            ),
            (StreamField::Version, self.version != other.version),
        ])
    }
}

impl LockRow<Db> for Stream {
    async fn lock(conn: &mut Conn, id: &StreamId) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT id, name, description, version FROM streams WHERE id = $1",
            for_update
        );
        let row = conn.query(lock).bind(id.0).optional().await?;
        Ok(row.map(Self::from_row))
    }
}

type Row = (i64, String, String, i64);

impl Stream {
    fn from_row((id, name, description, version): Row) -> Self {
        Self {
            id: StreamId(id),
            name,
            description,
            version,
        }
    }

    /// The ids of all streams, in order.
    pub async fn ids(db: &mut Conn) -> sqlx::Result<Vec<StreamId>> {
        let ids = Sql::same("SELECT id FROM streams ORDER BY id");
        let ids: Vec<(i64,)> = db.query(ids).all().await?;
        Ok(ids.into_iter().map(|(id,)| StreamId(id)).collect())
    }

    /// Stores every field of a stream whose row is locked; its version becomes the next one.
    pub async fn update(&self, db: &mut Conn) -> sqlx::Result<()> {
        let update = Sql::same(
            "UPDATE streams SET name = $1, description = $2, version = version + 1 WHERE id = $3",
        );
        db.query(update)
            .bind(&self.name)
            .bind(&self.description)
            .bind(self.id.0)
            .execute()
            .await?;
        Ok(())
    }
}

/// Streams by id.
#[derive(Debug)]
pub struct Streams;

impl Dataset for Streams {
    const NAME: &'static str = "stream";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = StreamId;
    type Value = Stream;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<Stream>(FieldBits::ALL, |&id| id);
    }

    async fn load(db: &mut Conn, ids: Vec<StreamId>) -> sqlx::Result<Vec<(StreamId, Stream)>> {
        let streams = sql!(
            "SELECT id, name, description, version FROM streams WHERE id",
            in_list(1)
        );
        let rows = db.query(streams).bind_ids(&ids).all().await?;
        let streams = rows.into_iter().map(Stream::from_row);
        Ok(streams.map(|stream| (stream.id, stream)).collect())
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
