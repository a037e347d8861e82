//! What a user writes with `cached` and Redis. Lines between `begin` and `end` are counted.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use cached::async_sync::OnceCell;
use cached::macros::concurrent_cached;
use cached::{AsyncRedisCache, ConcurrentCachedAsync as _, RedisCacheError};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sqlx::{FromRow, SqlitePool};

#[derive(Clone, Debug, FromRow, Serialize, Deserialize)]
pub struct User {
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
pub static REDIS: OnceLock<String> = OnceLock::new();
pub const DAY: Duration = Duration::from_secs(24 * 3600);

async fn store<K, V>(prefix: &str, ttl: Duration) -> AsyncRedisCache<K, V>
where
    K: std::fmt::Display + Clone + Send + Sync,
    V: Serialize + DeserializeOwned + Send,
{
    let redis = REDIS.get().expect("main sets it");
    let store = AsyncRedisCache::builder(prefix).connection_string(redis);
    let store = store.ttl(ttl).connection_manager(true).build().await;
    store.expect("Redis is there at the start")
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum Error {
    Database(#[from] sqlx::Error),
    Store(#[from] RedisCacheError),
}
// end

// begin: user by e-mail
#[concurrent_cached(
    ty = "AsyncRedisCache<String, Option<User>>",
    create = { store("user_by_email", 7 * DAY).await },
    key = "String",
    convert = { email_key(realm, email) },
    map_error = |e| Error::Store(e)
)]
pub async fn user_by_email(
    db: &SqlitePool,
    realm: i64,
    email: &str,
) -> Result<Option<User>, Error> {
    let user = sqlx::query_as("SELECT * FROM users WHERE realm_id = $1 AND email = $2");
    Ok(user.bind(realm).bind(email).fetch_optional(db).await?)
}

fn email_key(realm: i64, email: &str) -> String {
    format!("{realm}:{email}")
}
// end

// begin: a new e-mail
async fn flush_email(realm: i64, email: &str) -> Result<(), Error> {
    let users = USER_BY_EMAIL.get_or_init(|| store("user_by_email", 7 * DAY));
    let key = email_key(realm, email);
    users.await.async_cache_delete(&key).await?;
    Ok(())
}

pub async fn change_email(db: &SqlitePool, id: i64, email: &str) -> Result<(), Error> {
    let mut tx = db.begin_with("BEGIN IMMEDIATE").await?;
    let before = sqlx::query_as("SELECT * FROM users WHERE id = $1");
    let before: User = before.bind(id).fetch_one(&mut *tx).await?;
    let update = sqlx::query("UPDATE users SET email = $1 WHERE id = $2");
    update.bind(email).bind(id).execute(&mut *tx).await?;
    tx.commit().await?;
    flush_email(before.realm_id, &before.email).await?;
    flush_email(before.realm_id, email).await
}
// end

// begin: message page
static MESSAGES: OnceCell<AsyncRedisCache<i64, Message>> = OnceCell::new();

pub async fn messages(db: &SqlitePool, ids: &[i64]) -> Result<Vec<(i64, Option<Message>)>, Error> {
    let store = MESSAGES.get_or_init(|| store("message", DAY)).await;
    let found = try_join_all(ids.iter().map(|id| store.async_cache_get(id))).await?;
    let found = found
        .into_iter()
        .flatten()
        .map(|message| (message.id, message));
    let mut found: HashMap<i64, Message> = found.collect();
    let missing = ids.iter().filter(|id| !found.contains_key(id));
    let missing: Vec<i64> = missing.copied().collect();
    if !missing.is_empty() {
        let sql = "SELECT * FROM messages WHERE id IN (SELECT value FROM json_each($1))";
        let rows = sqlx::query_as(sql).bind(format!("{missing:?}"));
        let rows: Vec<Message> = rows.fetch_all(db).await?;
        let fills = rows
            .iter()
            .map(|row| store.async_cache_set(row.id, row.clone()));
        try_join_all(fills).await?;
        found.extend(rows.into_iter().map(|row| (row.id, row)));
    }
    Ok(ids.iter().map(|id| (*id, found.get(id).cloned())).collect())
}
// end

// begin: active users
#[concurrent_cached(
    ty = "AsyncRedisCache<i64, Vec<i64>>",
    create = { store("active_user_ids", 7 * DAY).await },
    key = "i64",
    convert = { realm },
    map_error = |e| Error::Store(e)
)]
pub async fn active_user_ids(db: &SqlitePool, realm: i64) -> Result<Vec<i64>, Error> {
    let ids = sqlx::query_scalar("SELECT id FROM users WHERE realm_id = $1 AND is_active");
    Ok(ids.bind(realm).fetch_all(db).await?)
}
// end

// begin: a deactivation
pub async fn deactivate(db: &SqlitePool, id: i64) -> Result<(), Error> {
    let update = "UPDATE users SET is_active = FALSE WHERE id = $1 RETURNING *";
    let user: User = sqlx::query_as(update).bind(id).fetch_one(db).await?;
    let active = ACTIVE_USER_IDS.get_or_init(|| store("active_user_ids", 7 * DAY));
    active.await.async_cache_delete(&user.realm_id).await?;
    flush_email(user.realm_id, &user.email).await
}
// end
