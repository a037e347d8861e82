//! Messages: the long history that the chat is about.

use larder::{Entity, LockRow};
use serde::{Deserialize, Serialize};

use super::{MessageId, Reaction, StreamId, UserId};
use crate::db::{Conn, Db, Sql, row, sql};

/// A message, without anything that changes for other reasons than the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
// A topic is moved by one statement that shows no images: see `Topic::rename`.
#[entity(set_based(stream_id, subject, version))]
pub struct Message {
    /// Its id.
    #[entity(id)]
    pub id: MessageId,
    /// Where it was sent.
    pub stream_id: StreamId,
    /// Who sent it.
    pub sender_id: UserId,
    /// The topic inside the stream.
    pub subject: String,
    /// The text as it was typed.
    pub content: String,
    /// The text as HTML.
    pub rendered_content: String,
    /// The program it was sent with.
    pub client: String,
    /// When it was sent, in seconds since 1970.
    pub timestamp: i64,
    /// When it was last edited.
    pub last_edit_timestamp: Option<i64>,
    /// What it said before, latest edit first.
    pub edit_history: Vec<Edit>,
    /// Who reacted how, in the order they did.
    // They are entities themselves.
    #[entity(skip)]
    pub reactions: Vec<Reaction>,
    /// How often the row was written, or a reaction to it.
    pub version: i64,
}

row!(Message: id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, last_edit_timestamp,
    version; json edit_history, reactions);

/// One edit of a message, with what the message said before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// When, in seconds since 1970.
    pub timestamp: i64,
    /// Who edited.
    pub user_id: Option<UserId>,
    /// The text before, if the edit changed it.
    pub prev_content: Option<String>,
    /// The same as HTML.
    pub prev_rendered_content: Option<String>,
    /// The topic before, if the edit changed it.
    pub prev_topic: Option<String>,
}

/// Messages by id: small entries, many at a time.
#[larder::cached(many, source = Db, key = "message:{ids}", by = |message| message.id, ttl = "1d", compress,
    flush_on(Message { .. } => id, Reaction { .. } => |reaction| reaction.message_id))]
pub async fn messages(db: &mut Conn, ids: &[MessageId]) -> sqlx::Result<Vec<Message>> {
    db.query(MESSAGES).bind_ids(ids).all().await
}

/// One statement, so that a message and its reactions are of one time.
const MESSAGES: Sql = Sql::of(
    "SELECT id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, last_edit_timestamp, \
     edit_history, version, \
     (SELECT json_group_array(json_object('message_id', message_id, 'user_id', user_id, 'emoji_name', emoji_name, \
     'emoji_code', emoji_code, 'reaction_type', reaction_type, 'version', version)) \
     FROM (SELECT * FROM reactions WHERE message_id = messages.id ORDER BY id)) AS reactions \
     FROM messages WHERE id IN (SELECT value FROM json_each($1))",
    "SELECT id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, last_edit_timestamp, \
     edit_history, version, \
     (SELECT coalesce(json_agg(json_build_object('message_id', message_id, 'user_id', user_id, 'emoji_name', \
     emoji_name, 'emoji_code', emoji_code, 'reaction_type', reaction_type, 'version', version) ORDER BY id), '[]')::text \
     FROM reactions WHERE message_id = messages.id) AS reactions \
     FROM messages WHERE id = ANY($1)",
);

impl LockRow<Db> for Message {
    async fn lock(db: &mut Conn, id: &MessageId) -> sqlx::Result<Option<Self>> {
        // The reactions are read once the lock is there: before, others may still be writing them.
        let lock = sql!("SELECT id FROM messages WHERE id = $1", for_update);
        db.query(lock).bind(id).execute().await?;
        db.query(MESSAGES).bind_ids(&[*id]).optional().await
    }
}

impl Message {
    /// Everybody who has to do with it: who sent it, edited it, reacted to it. Some may come twice.
    pub fn people(&self) -> impl Iterator<Item = UserId> {
        let editors = self.edit_history.iter().filter_map(|edit| edit.user_id);
        let reactors = self.reactions.iter().map(|reaction| reaction.user_id);
        [self.sender_id].into_iter().chain(editors).chain(reactors)
    }

    /// Counts a write of this message, whose row is locked, that its reactions had; answers it as it is then.
    pub async fn reacted(&self, db: &mut Conn, reactions: Vec<Reaction>) -> sqlx::Result<Self> {
        let count = Sql::same("UPDATE messages SET version = version + 1 WHERE id = $1");
        db.query(count).bind(self.id).execute().await?;
        Ok(Self {
            reactions,
            version: self.version + 1,
            ..self.clone()
        })
    }
}

/// A topic of a stream: messages that are read together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    /// The stream.
    pub stream_id: StreamId,
    /// What the topic is called.
    pub subject: String,
}

impl Topic {
    /// Moves all messages of this topic to that one, by one statement; answers their ids and versions, in order.
    pub async fn rename(&self, db: &mut Conn, to: &Self) -> sqlx::Result<Vec<(MessageId, i64)>> {
        let rename = Sql::same(
            "UPDATE messages SET stream_id = $1, subject = $2, version = version + 1 \
             WHERE stream_id = $3 AND subject = $4 RETURNING id, version",
        );
        let query = db.query(rename).bind(to.stream_id).bind(&to.subject);
        let query = query.bind(self.stream_id).bind(&self.subject);
        let mut moved: Vec<(MessageId, i64)> = query.all().await?;
        moved.sort_unstable();
        Ok(moved)
    }
}

/// The ranges of a page: the parameters are the anchor, the number of messages, and the stream.
const BEFORE: Sql = Sql::same("SELECT id FROM messages WHERE id < $1 ORDER BY id DESC LIMIT $2");
const AFTER: Sql = Sql::same("SELECT id FROM messages WHERE id >= $1 ORDER BY id LIMIT $2");
const STREAM_BEFORE: Sql =
    Sql::same("SELECT id FROM messages WHERE stream_id = $3 AND id < $1 ORDER BY id DESC LIMIT $2");
const STREAM_AFTER: Sql =
    Sql::same("SELECT id FROM messages WHERE stream_id = $3 AND id >= $1 ORDER BY id LIMIT $2");

/// Which messages to show: those around a position, of one stream or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessagesPage {
    /// The position; `None` is behind the newest message.
    pub anchor: Option<MessageId>,
    /// How many messages with smaller ids than the anchor.
    pub before: u32,
    /// How many messages from the anchor on.
    pub after: u32,
    /// The stream they are in.
    pub stream: Option<StreamId>,
}

impl MessagesPage {
    /// The ids of the page's messages, oldest first: at most two ranges of an index, whatever the table's size.
    pub async fn ids(&self, db: &mut Conn) -> sqlx::Result<Vec<MessageId>> {
        let anchor = self.anchor.map_or(i64::MAX, |id| id.0);
        let mut ids = Vec::new();
        if self.before > 0 {
            let sql = if self.stream.is_some() {
                STREAM_BEFORE
            } else {
                BEFORE
            };
            ids = self.range(db, sql, anchor, self.before).await?;
            ids.reverse();
        }
        if self.after > 0 && self.anchor.is_some() {
            let sql = if self.stream.is_some() {
                STREAM_AFTER
            } else {
                AFTER
            };
            ids.extend(self.range(db, sql, anchor, self.after).await?);
        }
        Ok(ids)
    }

    async fn range(
        &self,
        db: &mut Conn,
        sql: Sql,
        anchor: i64,
        limit: u32,
    ) -> sqlx::Result<Vec<MessageId>> {
        let mut query = db.query(sql).bind(anchor).bind(i64::from(limit));
        if let Some(stream) = self.stream {
            query = query.bind(stream);
        }
        query.column().await
    }
}

/// A message to send: what isn't known before it is stored is missing.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Where to send it.
    pub stream_id: StreamId,
    /// Who sends it.
    pub sender_id: UserId,
    /// The topic inside the stream.
    pub subject: String,
    /// The text as it was typed.
    pub content: String,
    /// The text as HTML.
    pub rendered_content: String,
    /// When, in seconds since 1970.
    pub timestamp: i64,
}

impl NewMessage {
    /// Stores it with the next id.
    pub async fn insert(self, db: &mut Conn) -> sqlx::Result<Message> {
        let insert = Sql::same(
            "INSERT INTO messages (stream_id, sender_id, subject, content, rendered_content, client, timestamp) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id",
        );
        let query = db.query(insert).bind(self.stream_id).bind(self.sender_id);
        let query = query.bind(&self.subject).bind(&self.content);
        let query = query.bind(&self.rendered_content).bind(Self::CLIENT);
        let (id,) = query.bind(self.timestamp).one().await?;
        Ok(Message {
            id,
            stream_id: self.stream_id,
            sender_id: self.sender_id,
            subject: self.subject,
            content: self.content,
            rendered_content: self.rendered_content,
            client: Self::CLIENT.to_owned(),
            timestamp: self.timestamp,
            last_edit_timestamp: None,
            edit_history: Vec::new(),
            reactions: Vec::new(),
            version: 1,
        })
    }

    /// What messages sent over the API are sent with.
    const CLIENT: &'static str = "api";
}

/// Stores messages with the ids they have, and their reactions, in two statements; SQLite takes 32,766 parameters, so
/// about 3,000 messages.
pub(crate) async fn insert_all(db: &mut Conn, messages: &[Message]) -> sqlx::Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO messages (id, stream_id, sender_id, subject, content, rendered_content, client, \
                  timestamp, last_edit_timestamp, edit_history) VALUES ";
    let mut query = db.assembled(insert.to_owned() + &places(messages.len(), 10));
    for message in messages {
        let history = serde_json::to_string(&message.edit_history)
            .map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        query = query
            .bind(message.id)
            .bind(message.stream_id)
            .bind(message.sender_id)
            .bind(&message.subject)
            .bind(&message.content)
            .bind(&message.rendered_content)
            .bind(&message.client)
            .bind(message.timestamp)
            .bind(message.last_edit_timestamp)
            .bind(history);
    }
    query.execute().await?;
    let reactions = messages.iter().flat_map(|message| &message.reactions);
    super::reaction::insert_all(db, &reactions.collect::<Vec<_>>()).await
}

/// The places of parameters for rows: `($1, $2), ($3, $4)` for two rows of two columns.
pub(super) fn places(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let places = (1..=columns).map(|column| format!("${}", row * columns + column));
        format!("({})", places.collect::<Vec<_>>().join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

/// At most this many messages, spread evenly over the history.
pub(crate) async fn sample(db: &mut Conn, at_most: i64) -> sqlx::Result<Vec<Message>> {
    let ids = Sql::same(
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS nth FROM messages) AS numbered \
         WHERE nth % (SELECT (count(*) + $1 - 1) / $1 FROM messages) = 0 ORDER BY id",
    );
    let ids: Vec<MessageId> = db.query(ids).bind(at_most).column().await?;
    db.query(MESSAGES).bind_ids(&ids).all().await
}

#[cfg(test)]
mod tests {
    use super::{AFTER, BEFORE, STREAM_AFTER, STREAM_BEFORE};
    use crate::db::{Db, Location, Sql};

    /// What SQLite does for this statement, in its own words.
    async fn plan(sql: Sql) -> String {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Sqlite(place.path().join("chat.db"));
        let db = Db::open(&location).await.unwrap();
        let mut connection = db.read().await.unwrap();
        let explain = connection.assembled(format!("EXPLAIN QUERY PLAN {}", sql.sqlite()));
        let steps: Vec<(i64, i64, i64, String)> = explain.all().await.unwrap();
        steps
            .into_iter()
            .map(|(.., step)| step)
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[tokio::test]
    async fn pages_are_ranges_of_an_index_already_in_order() {
        for sql in [BEFORE, AFTER] {
            let plan = plan(sql).await;
            assert!(
                plan.starts_with("SEARCH messages USING INTEGER PRIMARY KEY (rowid"),
                "{plan}"
            );
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
        for sql in [STREAM_BEFORE, STREAM_AFTER] {
            let plan = plan(sql).await;
            let index =
                "SEARCH messages USING COVERING INDEX messages_by_stream (stream_id=? AND rowid";
            assert!(plan.starts_with(index), "{plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
        }
    }
}
