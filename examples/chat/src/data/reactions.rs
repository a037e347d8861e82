//! Reactions: rows of their own, shown with the message they are to.

use larder::{Entity, FieldBits, FieldSet, LockRow};
use serde::{Deserialize, Serialize};

use super::messages::places;
use super::{MessageId, UserId};
use crate::db::{Conn, Db, Sql, sql};

/// One person's reaction to a message. It comes and goes as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// The message.
    pub message_id: MessageId,
    /// Who reacted.
    pub user_id: UserId,
    /// Such as `thumbs_up`.
    pub emoji_name: String,
    /// Its code point in hexadecimal, or the id of a custom emoji.
    pub emoji_code: String,
    /// Such as `unicode_emoji`.
    pub reaction_type: String,
    /// How often the row was written: once.
    pub version: i64,
}

/// Which reaction it is: nobody reacts twice alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReactionId {
    /// The message.
    pub message_id: MessageId,
    /// Who reacted.
    pub user_id: UserId,
    /// Such as `unicode_emoji`.
    pub reaction_type: String,
    /// Its code point in hexadecimal, or the id of a custom emoji.
    pub emoji_code: String,
}

/// What of a reaction can change: nothing but whether it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReactionField {}

impl FieldSet for ReactionField {
    const ALL: &'static [Self] = &[];

    fn name(self) -> &'static str {
        match self {}
    }
}

impl Entity for Reaction {
    const NAME: &'static str = "reaction";

    type Id = ReactionId;
    type Field = ReactionField;

    fn id(&self) -> ReactionId {
        ReactionId {
            message_id: self.message_id,
            user_id: self.user_id,
            reaction_type: self.reaction_type.clone(),
            emoji_code: self.emoji_code.clone(),
        }
    }

    fn diff(&self, _: &Self) -> FieldBits {
        FieldBits::NONE
    }
}

impl LockRow<Db> for Reaction {
    async fn lock(conn: &mut Conn, id: &ReactionId) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT emoji_name, version FROM reactions \
             WHERE message_id = $1 AND user_id = $2 AND reaction_type = $3 AND emoji_code = $4",
            for_update
        );
        let query = conn.query(lock).bind(id.message_id.0).bind(id.user_id.0);
        let query = query.bind(&id.reaction_type).bind(&id.emoji_code);
        let row: Option<(String, i64)> = query.optional().await?;
        let id = id.clone();
        Ok(row.map(|(emoji_name, version)| Self {
            message_id: id.message_id,
            user_id: id.user_id,
            emoji_name,
            emoji_code: id.emoji_code,
            reaction_type: id.reaction_type,
            version,
        }))
    }
}

impl Reaction {
    /// Whether both are the same person's, and alike.
    pub fn is(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// Stores it; the message's row is locked, so that nobody else reacts to it meanwhile.
    pub async fn insert(&self, db: &mut Conn) -> sqlx::Result<()> {
        insert_all(db, &[self]).await
    }

    /// Deletes it.
    pub async fn delete(&self, db: &mut Conn) -> sqlx::Result<()> {
        let delete = Sql::same(
            "DELETE FROM reactions WHERE message_id = $1 AND user_id = $2 AND reaction_type = $3 AND emoji_code = $4",
        );
        let query = db
            .query(delete)
            .bind(self.message_id.0)
            .bind(self.user_id.0);
        let query = query.bind(&self.reaction_type).bind(&self.emoji_code);
        query.execute().await?;
        Ok(())
    }
}

/// Stores reactions, each once; SQLite takes 32,766 parameters, so about 6,500.
pub(super) async fn insert_all(db: &mut Conn, reactions: &[&Reaction]) -> sqlx::Result<()> {
    // A message may have many of them, so that 500 messages don't say how many there are.
    for reactions in reactions.chunks(5_000) {
        let insert = "INSERT INTO reactions (message_id, user_id, emoji_name, emoji_code, reaction_type) VALUES ";
        let sql = insert.to_owned() + &places(reactions.len(), 5) + " ON CONFLICT DO NOTHING";
        let mut query = db.assembled(sql);
        for reaction in reactions {
            query = query
                .bind(reaction.message_id.0)
                .bind(reaction.user_id.0)
                .bind(&reaction.emoji_name)
                .bind(&reaction.emoji_code)
                .bind(&reaction.reaction_type);
        }
        query.execute().await?;
    }
    Ok(())
}
