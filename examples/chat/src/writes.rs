//! The chat's writes, and what each makes stale.
//!
//! A write changes the database, commits, and then flushes, in this order and never another: what is flushed before the
//! commit would be filled again with the old rows. One function per entity knows all keys that the entity appears under,
//! those of its old self and those of its new one. It must cover creation too, since absence is cached.
//!
//! The cache is that of the request that writes: so its flush also drops what the request has read of the past.
//!
//! Callers run these inside [`App::write`](crate::App::write), so that nobody can hang up in between.

use std::fmt;
use std::time::{Duration, Instant};

use larder::{Cache, Direct, FlushError, LoadError};
use sqlx::sqlite::SqliteConnection;
use tracing::warn;

use crate::data::{
    DisplayNames, Email, Message, MessageId, Messages, NewMessage, Stream, StreamId, Streams, User,
    UserId, UserPatch, Users, UsersByEmail,
};
use crate::db::Db;

/// What was committed, and whether the cache knows.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// What was committed.
    pub value: T,
    /// Whether the flush was confirmed.
    pub flush: Flush,
    /// How long the flush took.
    pub flushing: Duration,
}

/// Whether a flush was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// From now on nobody reads the past.
    Done,
    /// A server didn't confirm: its entries may show the past until their TTL.
    Failed,
}

/// Why a write wasn't done.
#[derive(Debug)]
pub enum WriteError {
    /// There is no such user.
    UnknownUser(UserId),
    /// There is no such stream.
    UnknownStream(StreamId),
    /// The user may not send messages.
    Inactive(UserId),
    /// Another user has the address.
    EmailTaken(Email),
    /// The database's trouble.
    Database(sqlx::Error),
    /// The trouble of a read in the same transaction.
    Load(LoadError<sqlx::Error>),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownUser(id) => write!(f, "there is no user {id}"),
            Self::UnknownStream(id) => write!(f, "there is no stream {id}"),
            Self::Inactive(id) => write!(f, "user {id} is not active, so it can't send messages"),
            Self::EmailTaken(email) => {
                write!(f, "another user has the e-mail address {}", email.as_str())
            }
            Self::Database(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for WriteError {}

impl From<sqlx::Error> for WriteError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<LoadError<sqlx::Error>> for WriteError {
    fn from(error: LoadError<sqlx::Error>) -> Self {
        Self::Load(error)
    }
}

/// A message as it was sent, with the names a reader needs.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The message.
    pub message: Message,
    /// Where it was sent.
    pub stream: Stream,
    /// Who sent it.
    pub sender: User,
}

/// Sends a message.
pub async fn send_message(
    db: Db,
    cache: Cache<Db>,
    new: NewMessage,
) -> Result<Written<Sent>, WriteError> {
    let mut tx = db.begin().await?;
    let sender = user(&mut tx, new.sender_id).await?;
    if !sender.is_active {
        return Err(WriteError::Inactive(sender.id));
    }
    let stream = larder::get::<Streams>(Direct(&mut *tx), &new.stream_id)
        .await?
        .ok_or(WriteError::UnknownStream(new.stream_id))?;
    let message = new.insert(&mut tx).await?;
    let committed = tx.commit().await;
    // A commit that failed may still have happened, and a flush too many harms nobody.
    let begin = Instant::now();
    let flush = flush_message(&cache, message.id).await;
    let flushing = begin.elapsed();
    committed?;
    let value = Sent {
        message,
        stream,
        sender,
    };
    Ok(Written {
        value,
        flush,
        flushing,
    })
}

/// Changes a user.
pub async fn change_user(
    db: Db,
    cache: Cache<Db>,
    id: UserId,
    patch: UserPatch,
) -> Result<Written<User>, WriteError> {
    let mut tx = db.begin().await?;
    // Read where it is written, past the cache: the image before the change must be exact.
    let before = user(&mut tx, id).await?;
    let after = patch.apply(&before);
    after.update(&mut tx).await.map_err(|error| {
        let taken = error
            .as_database_error()
            .is_some_and(|error| error.is_unique_violation());
        if taken {
            WriteError::EmailTaken(after.email.clone())
        } else {
            error.into()
        }
    })?;
    let committed = tx.commit().await;
    let begin = Instant::now();
    let flush = flush_user(&cache, Some(&before), &after).await;
    let flushing = begin.elapsed();
    committed?;
    Ok(Written {
        value: after,
        flush,
        flushing,
    })
}

async fn user(db: &mut SqliteConnection, id: UserId) -> Result<User, WriteError> {
    larder::get::<Users>(Direct(db), &id)
        .await?
        .ok_or(WriteError::UnknownUser(id))
}

/// Flushes everything that is cached of a message: it was created (`Messages` may remember that there was none) or
/// changed.
pub async fn flush_message(cache: &Cache<Db>, id: MessageId) -> Flush {
    confirmed([cache.flush::<Messages>([id]).await])
}

/// Flushes everything that is cached of a user: it was created (then there is no `before`) or changed.
///
/// Both its addresses are flushed, the one that no longer leads to the user and the one that led nowhere before.
pub async fn flush_user(cache: &Cache<Db>, before: Option<&User>, after: &User) -> Flush {
    let mut emails = vec![after.email.clone()];
    emails.extend(
        before
            .map(|user| user.email.clone())
            .filter(|email| *email != after.email),
    );
    // All are tried, whatever comes of the others.
    let (by_id, name, by_email) = tokio::join!(
        cache.flush::<Users>([after.id]),
        cache.flush::<DisplayNames>([after.id]),
        cache.flush::<UsersByEmail>(emails)
    );
    confirmed([by_id, name, by_email])
}

fn confirmed<const N: usize>(flushes: [Result<(), FlushError>; N]) -> Flush {
    let mut all = Flush::Done;
    for error in flushes.into_iter().filter_map(Result::err) {
        warn!(%error, "a flush failed: entries may show the past until their TTL");
        all = Flush::Failed;
    }
    all
}
