//! Streams, and who reads them.

use std::collections::HashMap;
use std::time::Duration;

use larder::{Dataset, FlushOn, Lifetime, NoTier, Plain};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnection;

use super::{StreamId, UserId, id_list};
use crate::db::Db;

/// A stream: where messages are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Its id.
    pub id: StreamId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
}

impl Stream {
    /// The ids of all streams, in order.
    pub async fn ids(db: &mut SqliteConnection) -> sqlx::Result<Vec<StreamId>> {
        let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM streams ORDER BY id")
            .fetch_all(db)
            .await?;
        Ok(ids.into_iter().map(StreamId).collect())
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
        plan.by_hand();
    }

    async fn load(
        db: &mut SqliteConnection,
        ids: Vec<StreamId>,
    ) -> sqlx::Result<Vec<(StreamId, Stream)>> {
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "SELECT id, name, description FROM streams WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(id_list(&ids))
        .fetch_all(db)
        .await?;
        Ok(rows
            .into_iter()
            .map(|(id, name, description)| {
                let id = StreamId(id);
                (
                    id,
                    Stream {
                        id,
                        name,
                        description,
                    },
                )
            })
            .collect())
    }
}

/// Who reads a stream: ids of users, by the stream's id. A stream that isn't there is absent; one that nobody reads is not.
#[derive(Debug)]
pub struct Subscribers;

impl Dataset for Subscribers {
    const NAME: &'static str = "subscribers";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = StreamId;
    type Value = Vec<UserId>;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(
        db: &mut SqliteConnection,
        ids: Vec<StreamId>,
    ) -> sqlx::Result<Vec<(StreamId, Vec<UserId>)>> {
        let rows: Vec<(i64, Option<i64>)> = sqlx::query_as(
            "SELECT streams.id, user_id FROM streams LEFT JOIN subscriptions ON stream_id = streams.id \
             WHERE streams.id IN (SELECT value FROM json_each(?)) ORDER BY user_id",
        )
        .bind(id_list(&ids))
        .fetch_all(db)
        .await?;
        let mut subscribers: HashMap<StreamId, Vec<UserId>> = HashMap::new();
        for (stream, user) in rows {
            let readers = subscribers.entry(StreamId(stream)).or_default();
            readers.extend(user.map(UserId));
        }
        Ok(subscribers.into_iter().collect())
    }
}
