//! Subscriptions: who reads which stream, from both ends.

use larder::{Entity, FlushQuery, LockRow};
use serde::{Deserialize, Serialize};

use super::{Stream, StreamId, User, UserId};
use crate::db::{Conn, Db, Sql, row, sql};

/// That a user reads a stream, or did once: who leaves keeps the row, so that its version never goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
pub struct Subscription {
    /// The stream.
    #[entity(id)]
    pub stream_id: StreamId,
    /// Who reads it.
    #[entity(id)]
    pub user_id: UserId,
    /// Whether the user reads it now.
    pub is_active: bool,
    /// How often the row was written.
    pub version: i64,
}

row!(Subscription: stream_id, user_id, is_active, version);

/// Somebody who reads a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// Who it is.
    pub user_id: UserId,
    /// The version of the subscription.
    pub version: i64,
}

row!(Subscriber: user_id, version);

/// Who reads a stream. A stream that isn't there is absent; one that nobody reads is not.
#[larder::cached(source = Db, key = "subscribers:{stream}", ttl = "1h",
    flush_on(
        Subscription { .. } => |subscription| subscription.stream_id,
        // A new stream is absent no longer; what it is called isn't shown.
        Stream {} => id,
    ))]
pub async fn subscribers(db: &mut Conn, stream: StreamId) -> sqlx::Result<Option<Vec<Subscriber>>> {
    let subscribers = Sql::same(
        "SELECT user_id, subscriptions.version FROM streams \
         LEFT JOIN subscriptions ON stream_id = streams.id AND is_active WHERE streams.id = $1 ORDER BY user_id",
    );
    db.query(subscribers).bind(stream).joined().await
}

/// A stream that a user reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// The stream.
    pub stream_id: StreamId,
    /// What it is called.
    pub name: String,
    /// The version of the stream.
    pub stream_version: i64,
    /// The version of the subscription.
    pub version: i64,
}

row!(Subscribed: stream_id, name, stream_version, version);

/// What a user reads, with what it is called. Somebody who isn't there is absent.
///
/// It shows the names of streams, so that a stream's new name makes those of all its readers stale. Who they are only the
/// database knows: [`ReadersOf`] asks it.
#[larder::cached(source = Db, key = "subscriptions:{user}", ttl = "1h",
    flush_on(
        Subscription { .. } => |subscription| subscription.user_id,
        Stream { .. } => query |stream| ReadersOf { stream_id: stream.id },
        // A new user is absent no longer; what it is called isn't shown.
        User {} => id,
    ))]
pub async fn subscriptions(db: &mut Conn, user: UserId) -> sqlx::Result<Option<Vec<Subscribed>>> {
    let subscribed = Sql::same(
        "SELECT stream_id, name, streams.version AS stream_version, subscriptions.version FROM users \
         LEFT JOIN subscriptions ON user_id = users.id AND subscriptions.is_active \
         LEFT JOIN streams ON streams.id = stream_id WHERE users.id = $1 ORDER BY stream_id",
    );
    db.query(subscribed).bind(user).joined().await
}

/// All who read this stream: whose [`subscriptions`](fn@subscriptions) show its name.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadersOf {
    stream_id: StreamId,
}

impl FlushQuery<subscriptions> for ReadersOf {
    const NAME: &'static str = "readers_of";

    async fn keys(
        &self,
        db: &mut Conn,
        after: Option<&UserId>,
        limit: usize,
    ) -> sqlx::Result<Vec<UserId>> {
        let readers = Sql::same(
            "SELECT user_id FROM subscriptions WHERE stream_id = $1 AND user_id > $2 AND is_active \
             ORDER BY user_id LIMIT $3",
        );
        let after = after.map_or(i64::MIN, |user| user.0);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = db.query(readers).bind(self.stream_id).bind(after);
        query.bind(limit).column().await
    }
}

impl LockRow<Db> for Subscription {
    async fn lock(
        db: &mut Conn,
        (stream_id, user_id): &(StreamId, UserId),
    ) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT stream_id, user_id, is_active, version FROM subscriptions WHERE stream_id = $1 AND user_id = $2",
            for_update
        );
        let query = db.query(lock).bind(stream_id).bind(user_id);
        query.optional().await
    }
}

impl Subscription {
    /// Stores whether the user reads the stream, whether or not there is a row yet.
    pub async fn store(
        db: &mut Conn,
        (stream_id, user_id): (StreamId, UserId),
        is_active: bool,
    ) -> sqlx::Result<Self> {
        let store = Sql::same(
            "INSERT INTO subscriptions (stream_id, user_id, is_active) VALUES ($1, $2, $3) \
             ON CONFLICT (stream_id, user_id) \
             DO UPDATE SET is_active = excluded.is_active, version = subscriptions.version + 1 \
             RETURNING stream_id, user_id, is_active, version",
        );
        let query = db.query(store).bind(stream_id).bind(user_id);
        query.bind(is_active).one().await
    }
}
