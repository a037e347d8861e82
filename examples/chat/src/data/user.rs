//! People: read with every page of messages, and changed now and then.

use std::fmt;

use larder::{Entity, KeyPart, LockRow};
use serde::{Deserialize, Serialize};

use super::UserId;
use crate::db::{Conn, Db, Sql, column, row, sql};

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
pub struct User {
    /// Its id.
    #[entity(id)]
    pub id: UserId,
    /// The name shown beside messages.
    pub full_name: String,
    /// Where mail goes; no two users have the same.
    // An address checks what it is made of, so that its stored shape can't be derived by trying.
    #[entity(schema = 1)]
    pub email: Email,
    /// Whether the user may send messages.
    pub is_active: bool,
    /// How often the row was written.
    pub version: i64,
}

row!(User: id, full_name, email, is_active, version);

/// Users by id.
#[larder::cached(many, source = Db, key = "user:{ids}", by = |user| user.id, ttl = "1h",
    flush_on(User { .. } => id))]
pub async fn users(db: &mut Conn, ids: &[UserId]) -> sqlx::Result<Vec<User>> {
    let users = sql!(
        "SELECT id, full_name, email, is_active, version FROM users WHERE id",
        in_list(1)
    );
    db.query(users).bind_ids(ids).all().await
}

/// The id of the user who has this e-mail address.
///
/// It answers the id and not the user, so that a new name leaves these entries alone: only the address itself matters.
/// Of a user who gets another one, both are flushed: the one that leads nowhere now, and the one that led nowhere before.
#[larder::cached(source = Db, key = "user_by_email:{email}", ttl = "1h",
    flush_on(User { email } => |user| user.email.clone()))]
pub async fn user_by_email(db: &mut Conn, email: &Email) -> sqlx::Result<Option<UserId>> {
    let id = Sql::same("SELECT id FROM users WHERE email = $1");
    db.query(id).bind(email).value().await
}

/// What a user is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplayName {
    /// The name.
    pub full_name: String,
    /// The version of the user that it is of.
    pub version: i64,
}

/// What users are called, by id: kept by each request that reads them, for the rest of it.
///
/// A page of messages mentions few people and each of them often. Who puts one message into words asks for the names it
/// mentions, as if there were no others; what the request has read before costs neither a trip nor a copy.
#[larder::cached(many, source = Db, key = "display_name:{ids}", ttl = "1h", tier = request,
    flush_on(User { full_name, version } => id))]
pub async fn display_names(
    db: &mut Conn,
    ids: &[UserId],
) -> sqlx::Result<Vec<(UserId, DisplayName)>> {
    let names = sql!(
        "SELECT id, full_name, version FROM users WHERE id",
        in_list(1)
    );
    let rows: Vec<(UserId, String, i64)> = db.query(names).bind_ids(ids).all().await?;
    let name = |(id, full_name, version)| (id, DisplayName { full_name, version });
    Ok(rows.into_iter().map(name).collect())
}

impl LockRow<Db> for User {
    async fn lock(db: &mut Conn, id: &UserId) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT id, full_name, email, is_active, version FROM users WHERE id = $1",
            for_update
        );
        db.query(lock).bind(id).optional().await
    }
}

/// An e-mail address in lower case: the key and the loader see the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KeyPart)]
#[serde(try_from = "String", into = "String")]
// People choose their addresses, of any length.
pub struct Email(#[key(digest)] String);

column!(Email(String));

impl Email {
    /// The address in this text, without the blanks around it.
    pub fn new(text: &str) -> Result<Self, BadEmail> {
        let address = text.trim().to_lowercase();
        let blank = |c: char| c.is_whitespace() || c.is_control();
        let parts = address.split_once('@');
        let good = address.len() <= 254
            && !address.contains(blank)
            && parts.is_some_and(|(local, domain)| {
                !local.is_empty() && !domain.is_empty() && !domain.contains('@')
            });
        if good {
            Ok(Self(address))
        } else {
            Err(BadEmail)
        }
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not an e-mail address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEmail;

impl fmt::Display for BadEmail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not an e-mail address: it takes NAME@DOMAIN, without blanks and at most 254 bytes",
        )
    }
}

impl std::error::Error for BadEmail {}

impl TryFrom<String> for Email {
    type Error = BadEmail;

    fn try_from(text: String) -> Result<Self, BadEmail> {
        Self::new(&text)
    }
}

impl From<Email> for String {
    fn from(email: Email) -> Self {
        email.0
    }
}

/// Fields of a user to change; those left out stay.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserPatch {
    /// The new name.
    pub full_name: Option<String>,
    /// The new address.
    pub email: Option<Email>,
    /// Whether the user may send messages from now on.
    pub is_active: Option<bool>,
}

impl UserPatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.full_name.is_none() && self.email.is_none() && self.is_active.is_none()
    }

    /// The user after the change, as [`User::update`] writes it.
    pub fn apply(self, before: &User) -> User {
        User {
            id: before.id,
            full_name: self.full_name.unwrap_or_else(|| before.full_name.clone()),
            email: self.email.unwrap_or_else(|| before.email.clone()),
            is_active: self.is_active.unwrap_or(before.is_active),
            version: before.version + 1,
        }
    }
}

impl User {
    /// Stores every field of a user whose row is locked; its version becomes the next one.
    pub async fn update(&self, db: &mut Conn) -> sqlx::Result<()> {
        let update = Sql::same(
            "UPDATE users SET full_name = $1, email = $2, is_active = $3, version = version + 1 WHERE id = $4",
        );
        let query = db.query(update).bind(&self.full_name).bind(&self.email);
        let query = query.bind(self.is_active).bind(self.id);
        query.execute().await.map(drop)
    }

    /// Takes the user's address away for the rest of the transaction, so that another user can have it: databases check
    /// that addresses are unique with each row they write.
    pub async fn lend_email(&self, db: &mut Conn) -> sqlx::Result<()> {
        let lend = Sql::same("UPDATE users SET email = $1 WHERE id = $2");
        // No address is like this.
        let nobodys = format!("lent by {}", self.id);
        let query = db.query(lend).bind(nobodys).bind(self.id);
        query.execute().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::{BadEmail, Email};

    #[track_caller]
    fn check(text: &str, expected: Result<&str, BadEmail>) {
        assert_eq!(
            Email::new(text).as_ref().map(Email::as_str),
            expected.as_ref().copied()
        );
    }

    #[test]
    fn addresses_are_normalised_or_refused() {
        check(" Ada@Example.COM ", Ok("ada@example.com"));
        check("ada", Err(BadEmail));
        check("@example.com", Err(BadEmail));
        check("ada@", Err(BadEmail));
        check("a@b@c", Err(BadEmail));
        check("a da@example.com", Err(BadEmail));
        check(&format!("{}@example.com", "a".repeat(250)), Err(BadEmail));
    }
}
