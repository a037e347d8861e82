//! Subscriptions: who reads which stream, from both ends.

use std::collections::HashMap;
use std::time::Duration;

use larder::{
    Dataset, Entity, FieldBits, FieldSet, FlushOn, FlushQuery, Lifetime, LockRow, NoTier, Plain,
};
use serde::{Deserialize, Serialize};

use super::{Stream, StreamId, User, UserId};
use crate::db::{Conn, Db, Sql, sql};

larder::dataset!(Subscribers, Subscriptions);

/// That a user reads a stream, or did once: who leaves keeps the row, so that its version never goes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// The stream.
    pub stream_id: StreamId,
    /// Who reads it.
    pub user_id: UserId,
    /// Whether the user reads it now.
    pub is_active: bool,
    /// How often the row was written.
    pub version: i64,
}

/// What of a subscription can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionField {
    /// [`Subscription::is_active`]
    IsActive,
    /// [`Subscription::version`], with every write
    Version,
}

impl FieldSet for SubscriptionField {
    const ALL: &'static [Self] = &[Self::IsActive, Self::Version];

    fn name(self) -> &'static str {
        match self {
            Self::IsActive => "is_active",
            Self::Version => "version",
        }
    }
}

impl Entity for Subscription {
    const NAME: &'static str = "subscription";

    type Id = (StreamId, UserId);
    type Field = SubscriptionField;

    fn id(&self) -> (StreamId, UserId) {
        (self.stream_id, self.user_id)
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([
            (
                SubscriptionField::IsActive,
                self.is_active != other.is_active,
            ),
            (SubscriptionField::Version, self.version != other.version),
        ])
    }
}

impl LockRow<Db> for Subscription {
    async fn lock(
        conn: &mut Conn,
        &(stream_id, user_id): &(StreamId, UserId),
    ) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT is_active, version FROM subscriptions WHERE stream_id = $1 AND user_id = $2",
            for_update
        );
        let query = conn.query(lock).bind(stream_id.0).bind(user_id.0);
        let row: Option<(bool, i64)> = query.optional().await?;
        Ok(row.map(|(is_active, version)| Self {
            stream_id,
            user_id,
            is_active,
            version,
        }))
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
             DO UPDATE SET is_active = excluded.is_active, version = subscriptions.version + 1 RETURNING version",
        );
        let query = db.query(store).bind(stream_id.0).bind(user_id.0);
        let (version,) = query.bind(is_active).one().await?;
        Ok(Self {
            stream_id,
            user_id,
            is_active,
            version,
        })
    }
}

/// Who reads a stream: by the stream's id. A stream that isn't there is absent; one that nobody reads is not.
#[derive(Debug)]
pub struct Subscribers;

/// Somebody who reads a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscriber {
    /// Who it is.
    pub user_id: UserId,
    /// The version of the subscription.
    pub version: i64,
}

impl Dataset for Subscribers {
    const NAME: &'static str = "subscribers";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = StreamId;
    type Value = Vec<Subscriber>;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.entity(FieldBits::ALL, |subscription: &Subscription| {
            [subscription.stream_id]
        })
        // A new stream is absent no longer; what it is called isn't shown.
        .id::<Stream>(FieldBits::NONE, |&id| id);
    }

    async fn load(
        db: &mut Conn,
        ids: Vec<StreamId>,
    ) -> sqlx::Result<Vec<(StreamId, Vec<Subscriber>)>> {
        let subscribers = sql!(
            "SELECT streams.id, user_id, subscriptions.version FROM streams \
             LEFT JOIN subscriptions ON stream_id = streams.id AND is_active WHERE streams.id",
            in_list(1),
            " ORDER BY user_id"
        );
        let rows: Vec<(i64, Option<i64>, Option<i64>)> =
            db.query(subscribers).bind_ids(&ids).all().await?;
        let mut subscribers: HashMap<StreamId, Vec<Subscriber>> = HashMap::new();
        for (stream, user, version) in rows {
            let readers = subscribers.entry(StreamId(stream)).or_default();
            readers.extend(user.zip(version).map(|(user, version)| Subscriber {
                user_id: UserId(user),
                version,
            }));
        }
        Ok(subscribers.into_iter().collect())
    }
}

/// What a user reads, with what it is called: by the user's id. Somebody who isn't there is absent.
///
/// It shows the names of streams, so that a stream's new name makes those of all its readers stale. Who they are only the
/// database knows: [`ReadersOf`] asks it.
#[derive(Debug)]
pub struct Subscriptions;

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

impl Dataset for Subscriptions {
    const NAME: &'static str = "subscriptions";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = UserId;
    type Value = Vec<Subscribed>;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.entity(FieldBits::ALL, |subscription: &Subscription| {
            [subscription.user_id]
        })
        .query(FieldBits::ALL, |stream: &Stream| ReadersOf {
            stream_id: stream.id,
        })
        // A new user is absent no longer; what it is called isn't shown.
        .id::<User>(FieldBits::NONE, |&id| id);
    }

    async fn load(db: &mut Conn, ids: Vec<UserId>) -> sqlx::Result<Vec<(UserId, Vec<Subscribed>)>> {
        let subscribed = sql!(
            "SELECT users.id, streams.id, streams.name, streams.version, subscriptions.version FROM users \
             LEFT JOIN subscriptions ON user_id = users.id AND subscriptions.is_active \
             LEFT JOIN streams ON streams.id = stream_id WHERE users.id",
            in_list(1),
            " ORDER BY streams.id"
        );
        type Row = (i64, Option<i64>, Option<String>, Option<i64>, Option<i64>);
        let rows: Vec<Row> = db.query(subscribed).bind_ids(&ids).all().await?;
        let mut subscribed: HashMap<UserId, Vec<Subscribed>> = HashMap::new();
        for (user, stream, name, stream_version, version) in rows {
            let streams = subscribed.entry(UserId(user)).or_default();
            if let (Some(stream), Some(name), Some(stream_version), Some(version)) =
                (stream, name, stream_version, version)
            {
                streams.push(Subscribed {
                    stream_id: StreamId(stream),
                    name,
                    stream_version,
                    version,
                });
            }
        }
        Ok(subscribed.into_iter().collect())
    }
}

/// All who read this stream: whose [`Subscriptions`] show its name.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReadersOf {
    stream_id: StreamId,
}

impl FlushQuery<Subscriptions> for ReadersOf {
    const NAME: &'static str = "readers_of";

    async fn keys(
        &self,
        conn: &mut Conn,
        after: Option<&UserId>,
        limit: usize,
    ) -> sqlx::Result<Vec<UserId>> {
        let readers = Sql::same(
            "SELECT user_id FROM subscriptions WHERE stream_id = $1 AND user_id > $2 AND is_active \
             ORDER BY user_id LIMIT $3",
        );
        let after = after.map_or(i64::MIN, |user| user.0);
        let query = conn.query(readers).bind(self.stream_id.0).bind(after);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let ids: Vec<(i64,)> = query.bind(limit).all().await?;
        Ok(ids.into_iter().map(|(id,)| UserId(id)).collect())
    }
}
