//! The chat's writes: transactions that say what they changed.
//!
//! Each locks the rows that it changes, writes them, and says so: [`Tx::changed`] with the image before and the one after.
//! What that makes stale, the data sets have declared; that it is flushed after the commit, whatever happens to the
//! request or the process, is larder's. No function here knows a key.
//!
//! The cache is that of the request that writes: what the request has read of the past is dropped as well.

use std::fmt;

use larder::{Cache, Change, CommitError, Committed, Entity as _, LoadError, Tx};

use crate::data::{
    Email, Message, MessageField, MessageId, NewMessage, Reaction, ReactionId, Stream, StreamId,
    StreamPatch, Subscription, Topic, User, UserId, UserPatch, streams, users,
};
use crate::db::Db;

/// What was written, and what is known of its flush.
#[derive(Clone, Debug)]
pub struct Written<T> {
    /// What was written, as it is now.
    pub value: T,
    /// Whether everybody sees it.
    pub committed: Committed,
}

/// Why a write wasn't done.
#[derive(Debug)]
pub enum WriteError {
    /// There is no such user.
    UnknownUser(UserId),
    /// There is no such stream.
    UnknownStream(StreamId),
    /// There is no such message.
    UnknownMessage(MessageId),
    /// There is no message in the topic.
    UnknownTopic(Topic),
    /// Nobody has reacted like that.
    UnknownReaction(ReactionId),
    /// The user has reacted like that before.
    HasReacted(ReactionId),
    /// The user may not write.
    Inactive(UserId),
    /// Another user has the address.
    EmailTaken(Email),
    /// The database's trouble.
    Database(sqlx::Error),
    /// The trouble of a read in the same transaction.
    Load(LoadError<sqlx::Error>),
    /// The trouble of the commit: it may have come about even so.
    Commit(CommitError<sqlx::Error>),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownUser(id) => write!(f, "there is no user {id}"),
            Self::UnknownStream(id) => write!(f, "there is no stream {id}"),
            Self::UnknownMessage(id) => write!(f, "there is no message {id}"),
            Self::UnknownTopic(Topic { stream_id, subject }) => {
                write!(f, "stream {stream_id} has no message about `{subject}`")
            }
            Self::UnknownReaction((message, user, ..)) => {
                write!(
                    f,
                    "user {user} hasn't reacted like that to message {message}"
                )
            }
            Self::HasReacted((message, user, ..)) => {
                write!(f, "user {user} has reacted like that to message {message}")
            }
            Self::Inactive(id) => write!(f, "user {id} is not active, so it can't write"),
            Self::EmailTaken(email) => {
                write!(f, "another user has the e-mail address {}", email.as_str())
            }
            Self::Database(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::Commit(error) => error.fmt(f),
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

impl From<CommitError<sqlx::Error>> for WriteError {
    fn from(error: CommitError<sqlx::Error>) -> Self {
        Self::Commit(error)
    }
}

/// What a write answers.
pub type WriteResult<T> = Result<Written<T>, WriteError>;

/// A message as it was sent, with what a reader needs of others.
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
pub async fn send_message(cache: &Cache<Db>, new: NewMessage) -> WriteResult<Sent> {
    let mut tx = cache.begin().await?;
    let sender = writer(&mut tx, new.sender_id).await?;
    let stream = stream(&mut tx, new.stream_id).await?;
    let message = new.insert(&mut tx).await?;
    tx.changed(Change::create(&message));
    let sent = Sent {
        message,
        stream,
        sender,
    };
    commit(tx, sent).await
}

/// Changes a user.
pub async fn change_user(cache: &Cache<Db>, id: UserId, patch: UserPatch) -> WriteResult<User> {
    let mut tx = cache.begin().await?;
    let before = tx.lock::<User>(&id).await?;
    let before = before.ok_or(WriteError::UnknownUser(id))?;
    let after = patch.apply(&before);
    let updated = after.update(&mut tx).await;
    updated.map_err(|error| email_taken(error, &after.email))?;
    tx.changed(Change::update(&before, &after));
    commit(tx, after).await
}

/// Gives each of two users the other one's e-mail address: both addresses lead to somebody else at once.
pub async fn swap_emails(cache: &Cache<Db>, one: UserId, other: UserId) -> WriteResult<[User; 2]> {
    let mut tx = cache.begin().await?;
    // Always the smaller id first, so that two who swap the same users don't wait for each other.
    let mut locked = Vec::with_capacity(2);
    for id in [one.min(other), one.max(other)] {
        let user = tx.lock::<User>(&id).await?;
        locked.push(user.ok_or(WriteError::UnknownUser(id))?);
    }
    let patch = |email: &Email| UserPatch {
        email: Some(email.clone()),
        ..UserPatch::default()
    };
    let first = patch(&locked[1].email).apply(&locked[0]);
    let second = patch(&locked[0].email).apply(&locked[1]);
    locked[0].lend_email(&mut tx).await?;
    second.update(&mut tx).await?;
    first.update(&mut tx).await?;
    tx.changed_many([
        Change::update(&locked[0], &first),
        Change::update(&locked[1], &second),
    ]);
    let users = match first.id == one {
        true => [first, second],
        false => [second, first],
    };
    commit(tx, users).await
}

/// Changes a stream: its readers' lists show its name, and larder asks the database who they are.
pub async fn change_stream(
    cache: &Cache<Db>,
    id: StreamId,
    patch: StreamPatch,
) -> WriteResult<Stream> {
    let mut tx = cache.begin().await?;
    let before = tx.lock::<Stream>(&id).await?;
    let before = before.ok_or(WriteError::UnknownStream(id))?;
    let after = patch.apply(&before);
    after.update(&mut tx).await?;
    tx.changed(Change::update(&before, &after));
    commit(tx, after).await
}

/// Has a user read a stream, or no longer.
pub async fn subscribe(
    cache: &Cache<Db>,
    stream_id: StreamId,
    user_id: UserId,
    is_active: bool,
) -> WriteResult<Subscription> {
    let mut tx = cache.begin().await?;
    stream(&mut tx, stream_id).await?;
    user(&mut tx, user_id).await?;
    let id = (stream_id, user_id);
    let before = tx.lock::<Subscription>(&id).await?;
    let after = Subscription::store(&mut tx, id, is_active).await?;
    tx.changed(match &before {
        Some(before) => Change::update(before, &after),
        None => Change::create(&after),
    });
    commit(tx, after).await
}

/// Moves a whole topic by one statement: the messages' ids and versions are all that is known of them, and all that their
/// entries need.
pub async fn move_topic(
    cache: &Cache<Db>,
    from: &Topic,
    to: &Topic,
) -> WriteResult<Vec<(MessageId, i64)>> {
    let mut tx = cache.begin().await?;
    stream(&mut tx, to.stream_id).await?;
    let moved = from.rename(&mut tx, to).await?;
    if moved.is_empty() {
        return Err(WriteError::UnknownTopic(from.clone()));
    }
    let ids = moved.iter().map(|(id, _)| *id);
    let fields = [
        MessageField::StreamId,
        MessageField::Subject,
        MessageField::Version,
    ];
    tx.changed(Change::<Message>::rows(ids, fields));
    commit(tx, moved).await
}

/// Adds a reaction to a message; answers the message.
pub async fn react(cache: &Cache<Db>, reaction: Reaction) -> WriteResult<Message> {
    let mut tx = cache.begin().await?;
    writer(&mut tx, reaction.user_id).await?;
    // The message's row stands for its reactions: whoever holds it is the only one who reacts.
    let before = tx.lock::<Message>(&reaction.message_id).await?;
    let before = before.ok_or(WriteError::UnknownMessage(reaction.message_id))?;
    if before.reactions.iter().any(|known| known.is(&reaction)) {
        return Err(WriteError::HasReacted(reaction.id()));
    }
    reaction.insert(&mut tx).await?;
    let reactions = before.reactions.iter().chain([&reaction]).cloned();
    let after = before.reacted(&mut tx, reactions.collect()).await?;
    tx.changed(Change::create(&reaction));
    tx.changed(Change::update(&before, &after));
    commit(tx, after).await
}

/// Takes a reaction back; answers the message.
pub async fn unreact(cache: &Cache<Db>, id: ReactionId) -> WriteResult<Message> {
    let mut tx = cache.begin().await?;
    let message = id.0;
    let before = tx.lock::<Message>(&message).await?;
    let before = before.ok_or(WriteError::UnknownMessage(message))?;
    let reaction = tx.lock::<Reaction>(&id).await?;
    let Some(reaction) = reaction else {
        return Err(WriteError::UnknownReaction(id));
    };
    reaction.delete(&mut tx).await?;
    let reactions = before.reactions.iter().filter(|known| !known.is(&reaction));
    let reactions = reactions.cloned().collect();
    let after = before.reacted(&mut tx, reactions).await?;
    tx.changed(Change::delete(&reaction));
    tx.changed(Change::update(&before, &after));
    commit(tx, after).await
}

async fn commit<T>(tx: Tx<Db>, value: T) -> WriteResult<T> {
    let committed = tx.commit().await?;
    Ok(Written { value, committed })
}

/// A user who may write. It is read through the transaction: past the cache, and as of the write.
async fn writer(tx: &mut Tx<Db>, id: UserId) -> Result<User, WriteError> {
    let user = user(tx, id).await?;
    match user.is_active {
        true => Ok(user),
        false => Err(WriteError::Inactive(id)),
    }
}

async fn user(tx: &mut Tx<Db>, id: UserId) -> Result<User, WriteError> {
    let user = users::one(tx, id).await?;
    user.ok_or(WriteError::UnknownUser(id))
}

async fn stream(tx: &mut Tx<Db>, id: StreamId) -> Result<Stream, WriteError> {
    let stream = streams::one(tx, id).await?;
    stream.ok_or(WriteError::UnknownStream(id))
}

fn email_taken(error: sqlx::Error, email: &Email) -> WriteError {
    let answer = error.as_database_error();
    match answer.is_some_and(|answer| answer.is_unique_violation()) {
        true => WriteError::EmailTaken(email.clone()),
        false => error.into(),
    }
}
