//! Messages: the long history that the chat is about.

use std::time::Duration;

use larder::{Compression, Dataset, FlushOn, Lifetime, NoTier, Plain};
use serde::{Deserialize, Serialize};
use sqlx::QueryBuilder;
use sqlx::sqlite::{Sqlite, SqliteConnection};

use super::{MessageId, StreamId, UserId, id_list};
use crate::db::Db;

/// A message, without anything that changes for other reasons than the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
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
    /// Who reacted how.
    pub reactions: Vec<Reaction>,
}

impl Message {
    /// Everybody who has to do with it: who sent it, edited it, reacted to it. Some may come twice.
    pub fn people(&self) -> impl Iterator<Item = UserId> {
        let editors = self.edit_history.iter().filter_map(|edit| edit.user_id);
        let reactors = self.reactions.iter().map(|reaction| reaction.user_id);
        [self.sender_id].into_iter().chain(editors).chain(reactors)
    }
}

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

/// One person's reaction to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// Such as `thumbs_up`.
    pub emoji_name: String,
    /// Its code point in hexadecimal, or the id of a custom emoji.
    pub emoji_code: String,
    /// Such as `unicode_emoji`.
    pub reaction_type: String,
    /// Who reacted.
    pub user_id: UserId,
}

/// Messages by id: small entries, many at a time.
#[derive(Debug)]
pub struct Messages;

impl Dataset for Messages {
    const NAME: &'static str = "message";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(24));
    const COMPRESSION: Compression = Compression::Zstd;

    type Source = Db;
    type Key = MessageId;
    type Value = Message;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(
        db: &mut SqliteConnection,
        ids: Vec<MessageId>,
    ) -> sqlx::Result<Vec<(MessageId, Message)>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, \
             last_edit_timestamp, edit_history, reactions \
             FROM messages WHERE id IN (SELECT value FROM json_each(?))",
        )
        .bind(id_list(&ids))
        .fetch_all(db)
        .await?;
        rows.into_iter()
            .map(|row| from_row(row).map(|message| (message.id, message)))
            .collect()
    }
}

type Row = (
    i64,
    i64,
    i64,
    String,
    String,
    String,
    String,
    i64,
    Option<i64>,
    String,
    String,
);

fn from_row(row: Row) -> sqlx::Result<Message> {
    let (id, stream, sender, subject, content, rendered, client, sent, edited, history, reactions) =
        row;
    let undecodable = |error| sqlx::Error::Decode(Box::new(error));
    Ok(Message {
        id: MessageId(id),
        stream_id: StreamId(stream),
        sender_id: UserId(sender),
        subject,
        content,
        rendered_content: rendered,
        client,
        timestamp: sent,
        last_edit_timestamp: edited,
        edit_history: serde_json::from_str(&history).map_err(undecodable)?,
        reactions: serde_json::from_str(&reactions).map_err(undecodable)?,
    })
}

/// The ranges of a page: the parameters are the anchor, the number of messages, and the stream.
const BEFORE: &str = "SELECT id FROM messages WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
const AFTER: &str = "SELECT id FROM messages WHERE id >= ?1 ORDER BY id LIMIT ?2";
const STREAM_BEFORE: &str =
    "SELECT id FROM messages WHERE stream_id = ?3 AND id < ?1 ORDER BY id DESC LIMIT ?2";
const STREAM_AFTER: &str =
    "SELECT id FROM messages WHERE stream_id = ?3 AND id >= ?1 ORDER BY id LIMIT ?2";

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
    pub async fn ids(&self, db: &mut SqliteConnection) -> sqlx::Result<Vec<MessageId>> {
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
        db: &mut SqliteConnection,
        sql: &'static str,
        anchor: i64,
        limit: u32,
    ) -> sqlx::Result<Vec<MessageId>> {
        let mut query = sqlx::query_scalar(sql).bind(anchor).bind(limit);
        if let Some(stream) = self.stream {
            query = query.bind(stream.0);
        }
        let ids: Vec<i64> = query.fetch_all(db).await?;
        Ok(ids.into_iter().map(MessageId).collect())
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
    pub async fn insert(self, db: &mut SqliteConnection) -> sqlx::Result<Message> {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO messages (stream_id, sender_id, subject, content, rendered_content, client, timestamp) \
             VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(self.stream_id.0)
        .bind(self.sender_id.0)
        .bind(&self.subject)
        .bind(&self.content)
        .bind(&self.rendered_content)
        .bind(Self::CLIENT)
        .bind(self.timestamp)
        .fetch_one(db)
        .await?;
        Ok(Message {
            id: MessageId(id),
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
        })
    }

    /// What messages sent over the API are sent with.
    const CLIENT: &'static str = "api";
}

/// Stores messages with the ids they have, in one statement; SQLite takes 32,766 parameters, so about 2,900 messages.
pub(crate) async fn insert_all(
    db: &mut SqliteConnection,
    messages: &[Message],
) -> sqlx::Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let unencodable = |error| sqlx::Error::Encode(Box::new(error));
    let lists = messages
        .iter()
        .map(|message| {
            Ok((
                serde_json::to_string(&message.edit_history)?,
                serde_json::to_string(&message.reactions)?,
            ))
        })
        .collect::<serde_json::Result<Vec<_>>>()
        .map_err(unencodable)?;
    let mut insert = QueryBuilder::<Sqlite>::new(
        "INSERT INTO messages (id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, \
         last_edit_timestamp, edit_history, reactions) ",
    );
    insert.push_values(
        messages.iter().zip(&lists),
        |mut row, (message, (history, reactions))| {
            row.push_bind(message.id.0)
                .push_bind(message.stream_id.0)
                .push_bind(message.sender_id.0)
                .push_bind(&message.subject)
                .push_bind(&message.content)
                .push_bind(&message.rendered_content)
                .push_bind(&message.client)
                .push_bind(message.timestamp)
                .push_bind(message.last_edit_timestamp)
                .push_bind(history)
                .push_bind(reactions);
        },
    );
    insert.build().execute(db).await?;
    Ok(())
}

/// At most this many messages, spread evenly over the history.
pub(crate) async fn sample(db: &mut SqliteConnection, at_most: i64) -> sqlx::Result<Vec<Message>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS position FROM messages) \
         WHERE position % (SELECT max(1, (count(*) + ?1 - 1) / ?1) FROM messages) = 0",
    )
    .bind(at_most)
    .fetch_all(&mut *db)
    .await?;
    let ids = ids.into_iter().map(MessageId).collect();
    let messages = Messages::load(db, ids).await?;
    Ok(messages.into_iter().map(|(_, message)| message).collect())
}

#[cfg(test)]
mod tests {
    use super::{AFTER, BEFORE, STREAM_AFTER, STREAM_BEFORE};
    use crate::db::Db;

    /// What SQLite does for this statement, in its own words.
    async fn plan(sql: &str) -> String {
        let place = tempfile::tempdir().unwrap();
        let db = Db::open(&place.path().join("chat.db")).await.unwrap();
        let mut connection = db.read().await.unwrap();
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(explain)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
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
