//! People: read with every page of messages, and changed now and then.

use std::fmt;
use std::time::Duration;

use larder::{
    BoxError, Dataset, Entity, FieldBits, FieldSet, FlushOn, Form, KeyPart, KeyWriter, Lifetime,
    LockRow, NoTier, Plain, RequestTier,
};
use serde::{Deserialize, Serialize};

use super::UserId;
use crate::db::{Conn, Db, Sql, sql};

larder::dataset!(Users, DisplayNames, UsersByEmail);

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The name shown beside messages.
    pub full_name: String,
    /// Where mail goes; no two users have the same.
    pub email: Email,
    /// Whether the user may send messages.
    pub is_active: bool,
    /// How often the row was written.
    pub version: i64,
}

/// What of a user can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserField {
    /// [`User::full_name`]
    FullName,
    /// [`User::email`]
    Email,
    /// [`User::is_active`]
    IsActive,
    /// [`User::version`], with every write
    Version,
}

impl FieldSet for UserField {
    const ALL: &'static [Self] = &[Self::FullName, Self::Email, Self::IsActive, Self::Version];

    fn name(self) -> &'static str {
        match self {
            Self::FullName => "full_name",
            Self::Email => "email",
            Self::IsActive => "is_active",
            Self::Version => "version",
        }
    }
}

impl Entity for User {
    const NAME: &'static str = "user";

    type Id = UserId;
    type Field = UserField;

    fn id(&self) -> UserId {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([
            (UserField::FullName, self.full_name != other.full_name),
            (UserField::Email, self.email != other.email),
            (UserField::IsActive, self.is_active != other.is_active),
            (UserField::Version, self.version != other.version),
        ])
    }
}

impl LockRow<Db> for User {
    async fn lock(conn: &mut Conn, id: &UserId) -> sqlx::Result<Option<Self>> {
        let lock = sql!(
            "SELECT id, full_name, email, is_active, version FROM users WHERE id = $1",
            for_update
        );
        let row = conn.query(lock).bind(id.0).optional().await?;
        Ok(row.map(Self::from_row))
    }
}

type Row = (i64, String, String, bool, i64);

impl User {
    fn from_row((id, full_name, email, is_active, version): Row) -> Self {
        Self {
            id: UserId(id),
            full_name,
            email: Email(email),
            is_active,
            version,
        }
    }
}

/// Users by id.
#[derive(Debug)]
pub struct Users;

/// How a user is stored: the address as plain text, checked again when it is read.
///
/// An [`Email`] checks what it is made of, so that the shape of a type with one inside can't be derived by trying; the
/// shape of this can.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredUser<T> {
    id: UserId,
    full_name: T,
    email: T,
    is_active: bool,
    version: i64,
}

impl Form<User> for StoredUser<String> {
    type Out<'a> = StoredUser<&'a str>;
    type In = Self;

    fn to_stored(user: &User) -> Result<StoredUser<&str>, BoxError> {
        Ok(StoredUser {
            id: user.id,
            full_name: &user.full_name,
            email: user.email.as_str(),
            is_active: user.is_active,
            version: user.version,
        })
    }

    fn from_stored(stored: Self) -> Result<User, BoxError> {
        Ok(User {
            id: stored.id,
            full_name: stored.full_name,
            email: Email::new(&stored.email)?,
            is_active: stored.is_active,
            version: stored.version,
        })
    }
}

impl Dataset for Users {
    const NAME: &'static str = "user";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = UserId;
    type Value = User;
    type Form = StoredUser<String>;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<User>(FieldBits::ALL, |&id| id);
    }

    async fn load(db: &mut Conn, ids: Vec<UserId>) -> sqlx::Result<Vec<(UserId, User)>> {
        let users = sql!(
            "SELECT id, full_name, email, is_active, version FROM users WHERE id",
            in_list(1)
        );
        let rows = db.query(users).bind_ids(&ids).all().await?;
        let users = rows.into_iter().map(User::from_row);
        Ok(users.map(|user| (user.id, user)).collect())
    }
}

/// What users are called, by id: kept by each request that reads them, for the rest of it.
///
/// A page of messages mentions few people and each of them often. Who puts one message into words asks for the names it
/// mentions, as if there were no others; what the request has read before costs neither a trip nor a copy.
#[derive(Debug)]
pub struct DisplayNames;

/// What a user is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisplayName {
    /// The name.
    pub full_name: String,
    /// The version of the user that it is of.
    pub version: i64,
}

impl Dataset for DisplayNames {
    const NAME: &'static str = "display_name";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = UserId;
    type Value = DisplayName;
    type Form = Plain;
    type Tier = RequestTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<User>([UserField::FullName, UserField::Version], |&id| id);
    }

    async fn load(db: &mut Conn, ids: Vec<UserId>) -> sqlx::Result<Vec<(UserId, DisplayName)>> {
        let names = sql!(
            "SELECT id, full_name, version FROM users WHERE id",
            in_list(1)
        );
        let rows: Vec<(i64, String, i64)> = db.query(names).bind_ids(&ids).all().await?;
        let name = |(id, full_name, version)| (UserId(id), DisplayName { full_name, version });
        Ok(rows.into_iter().map(name).collect())
    }
}

/// Ids of users by e-mail address.
///
/// It answers the id and not the user, so that a new name leaves these entries alone: only the address itself matters.
/// Of a user who gets another one, both are flushed: the one that leads nowhere now, and the one that led nowhere before.
#[derive(Debug)]
pub struct UsersByEmail;

impl Dataset for UsersByEmail {
    const NAME: &'static str = "user_by_email";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_hours(1));

    type Source = Db;
    type Key = Email;
    type Value = UserId;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.entity([UserField::Email], |user: &User| [user.email.clone()]);
    }

    async fn load(db: &mut Conn, emails: Vec<Email>) -> sqlx::Result<Vec<(Email, UserId)>> {
        let ids = sql!("SELECT email, id FROM users WHERE email", in_list(1));
        let emails = emails.into_iter().map(String::from).collect();
        let rows: Vec<(String, i64)> = db.query(ids).bind_list(emails).all().await?;
        let found = rows
            .into_iter()
            .map(|(email, id)| (Email(email), UserId(id)));
        Ok(found.collect())
    }
}

/// An e-mail address in lower case: the key and the loader see the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Email(String);

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

impl KeyPart for Email {
    fn write(&self, key: &mut KeyWriter<'_>) {
        // People choose their addresses, of any length.
        key.digest(self.0.as_bytes());
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
        db.query(update)
            .bind(&self.full_name)
            .bind(self.email.as_str())
            .bind(self.is_active)
            .bind(self.id.0)
            .execute()
            .await?;
        Ok(())
    }

    /// Takes the user's address away for the rest of the transaction, so that another user can have it: databases check
    /// that addresses are unique with each row they write.
    pub async fn lend_email(&self, db: &mut Conn) -> sqlx::Result<()> {
        let lend = Sql::same("UPDATE users SET email = $1 WHERE id = $2");
        // No address is like this.
        let nobodys = format!("lent by {}", self.id);
        db.query(lend)
            .bind(nobodys)
            .bind(self.id.0)
            .execute()
            .await?;
        Ok(())
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
