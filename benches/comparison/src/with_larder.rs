//! What a user writes with larder. Lines between `begin` and `end` are counted.

use larder::{BoxError, BuilderExt as _, Cache, Change, Config, Entity, LockRow};
use larder_sqlx::{Sqlite, sqlite};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, SqliteConnection, SqlitePool};

#[derive(Clone, Debug, Entity, FromRow, Serialize, Deserialize)]
pub struct User {
    #[entity(id)]
    pub id: i64,
    pub realm_id: i64,
    pub email: String,
    pub name: String,
    pub is_active: bool,
}

#[derive(Clone, Debug, FromRow, Serialize, Deserialize)]
pub struct Message {
    pub id: i64,
    pub sender_id: i64,
    pub content: String,
}

// begin: set up
pub async fn start(db: &SqlitePool, url: &str) -> Result<Cache<Sqlite>, BoxError> {
    sqlite::migrate(db).await?;
    let cache = Cache::builder(Sqlite::new(db.clone()));
    Ok(cache.config(Config::new(url)?).build().await?)
}
// end

// begin: user by e-mail
#[larder::cached(
    source = Sqlite, key = "user_by_email:{realm}:{email:digest}", ttl = "7d",
    flush_on(User { .. } => |user| (user.realm_id, user.email.clone())),
)]
pub async fn user_by_email(
    db: &mut SqliteConnection,
    realm: i64,
    email: &str,
) -> sqlx::Result<Option<User>> {
    let user = sqlx::query_as("SELECT * FROM users WHERE realm_id = $1 AND email = $2");
    user.bind(realm).bind(email).fetch_optional(db).await
}
// end

// begin: a new e-mail
impl LockRow<Sqlite> for User {
    async fn lock(db: &mut SqliteConnection, id: &i64) -> sqlx::Result<Option<Self>> {
        let user = sqlx::query_as("SELECT * FROM users WHERE id = $1");
        user.bind(id).fetch_optional(db).await
    }
}

pub async fn change_email(cache: &Cache<Sqlite>, id: i64, email: &str) -> Result<(), BoxError> {
    let mut tx = cache.begin().await?;
    let before = tx.lock::<User>(&id).await?.ok_or("no such user")?;
    let email = email.to_owned();
    let after = User {
        email,
        ..before.clone()
    };
    let update = sqlx::query("UPDATE users SET email = $1 WHERE id = $2");
    update.bind(&after.email).bind(id).execute(&mut *tx).await?;
    tx.changed(Change::update(&before, &after));
    tx.commit().await?;
    Ok(())
}
// end

// begin: message page
#[larder::cached(many, source = Sqlite, key = "message:{ids}", by = |m| m.id, ttl = "1d", by_hand)]
pub async fn messages(db: &mut SqliteConnection, ids: &[i64]) -> sqlx::Result<Vec<Message>> {
    let sql = "SELECT * FROM messages WHERE id IN (SELECT value FROM json_each($1))";
    let messages = sqlx::query_as(sql).bind(format!("{ids:?}"));
    messages.fetch_all(db).await
}
// end

// begin: active users
#[larder::cached(
    source = Sqlite, key = "active_user_ids:{realm}", ttl = "7d",
    flush_on(User { is_active } => |user| user.realm_id),
)]
pub async fn active_user_ids(db: &mut SqliteConnection, realm: i64) -> sqlx::Result<Vec<i64>> {
    let ids = sqlx::query_scalar("SELECT id FROM users WHERE realm_id = $1 AND is_active");
    ids.bind(realm).fetch_all(db).await
}
// end

// begin: a deactivation
pub async fn deactivate(cache: &Cache<Sqlite>, id: i64) -> Result<(), BoxError> {
    let mut tx = cache.begin().await?;
    let before = tx.lock::<User>(&id).await?.ok_or("no such user")?;
    let after = User {
        is_active: false,
        ..before.clone()
    };
    let update = sqlx::query("UPDATE users SET is_active = FALSE WHERE id = $1");
    update.bind(id).execute(&mut *tx).await?;
    tx.changed(Change::update(&before, &after));
    tx.commit().await?;
    Ok(())
}
// end
