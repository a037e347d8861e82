//! Reactions: rows of their own, shown with the message they are to.

use larder::{Entity, LockRow};
use serde::{Deserialize, Serialize};

use super::message::places;
use super::{MessageId, UserId};
use crate::db::{Conn, Db, Sql, row, sql};

/// One person's reaction to a message. It comes and goes as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
pub struct Reaction {
    /// The message.
    #[entity(id)]
    pub message_id: MessageId,
    /// Who reacted.
    #[entity(id)]
    pub user_id: UserId,
    /// Such as `thumbs_up`.
    pub emoji_name: String,
    /// Its code point in hexadecimal, or the id of a custom emoji.
    #[entity(id)]
    pub emoji_code: String,
    /// Such as `unicode_emoji`.
    #[entity(id)]
    pub reaction_type: String,
    /// How often the row was written: once.
    pub version: i64,
}

/// Which reaction it is, since nobody reacts twice alike: the message, who reacted, and the emoji's code and type.
pub type ReactionId = (MessageId, UserId, String, String);

row!(Reaction: message_id, user_id, emoji_name, emoji_code, reaction_type, version);

impl LockRow<Db> for Reaction {
    async fn lock(
        db: &mut Conn,
        (message, user, code, kind): &ReactionId,
    ) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT message_id, user_id, emoji_name, emoji_code, reaction_type, version FROM reactions \
             WHERE message_id = $1 AND user_id = $2 AND emoji_code = $3 AND reaction_type = $4",
            for_update
        );
        let query = db.query(lock).bind(message).bind(user);
        query.bind(code).bind(kind).optional().await
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
            "DELETE FROM reactions WHERE message_id = $1 AND user_id = $2 AND emoji_code = $3 AND reaction_type = $4",
        );
        let query = db.query(delete).bind(self.message_id).bind(self.user_id);
        let query = query.bind(&self.emoji_code).bind(&self.reaction_type);
        query.execute().await.map(drop)
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
                .bind(reaction.message_id)
                .bind(reaction.user_id)
                .bind(&reaction.emoji_name)
                .bind(&reaction.emoji_code)
                .bind(&reaction.reaction_type);
        }
        query.execute().await?;
    }
    Ok(())
}
