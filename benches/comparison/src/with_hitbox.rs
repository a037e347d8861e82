//! What a user writes with `hitbox-fn` and Redis. Lines between `begin` and `end` are counted.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use hitbox::backend::{Backend as _, BackendError, CacheBackend as _};
use hitbox::policy::PolicyConfig;
use hitbox::{CacheContext, CacheKey, CacheValue};
use hitbox_fn::{Cache, CacheableResponse, cached};
use hitbox_redis::{ConnectionMode, RedisBackend};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, SqlitePool};

#[derive(Clone, Debug, FromRow, Serialize, Deserialize)]
pub struct User {
    pub id: i64,
    pub realm_id: i64,
    pub email: String,
    pub name: String,
    pub is_active: bool,
}

#[derive(Clone, Debug, FromRow, Serialize, Deserialize, CacheableResponse)]
pub struct Message {
    pub id: i64,
    pub sender_id: i64,
    pub content: String,
}

// begin: set up
pub const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone)]
pub struct App {
    pub db: SqlitePool,
    pub cache: Cache<RedisBackend>,
}

pub fn start(db: SqlitePool, redis: &str) -> Result<App, hitbox_redis::error::Error> {
    let redis = RedisBackend::builder().connection(ConnectionMode::single(redis));
    let policy = PolicyConfig::builder().ttl(7 * DAY).build();
    let cache = Cache::builder().backend(redis.build()?).policy(policy);
    let cache = cache.build();
    Ok(App { db, cache })
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum Error {
    Database(#[from] sqlx::Error),
    Store(#[from] BackendError),
}
// end

// begin: user by e-mail
#[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
pub struct Found {
    pub user: Option<User>,
}

#[cached(prefix = "user_by_email", skip(db))]
pub async fn user_by_email(db: SqlitePool, realm: i64, email: String) -> Result<Found, Error> {
    let user = sqlx::query_as("SELECT * FROM users WHERE realm_id = $1 AND email = $2");
    let user = user.bind(realm).bind(email).fetch_optional(&db).await?;
    Ok(Found { user })
}

fn email_key(realm: i64, email: &str) -> CacheKey {
    let function = ("fn", Some("user_by_email"));
    CacheKey::from_slice(&[
        function,
        ("realm", Some(&realm.to_string())),
        ("email", Some(email)),
    ])
}
// end

// begin: a new e-mail
pub async fn change_email(app: &App, id: i64, email: &str) -> Result<(), Error> {
    let mut tx = app.db.begin_with("BEGIN IMMEDIATE").await?;
    let before = sqlx::query_as("SELECT * FROM users WHERE id = $1");
    let before: User = before.bind(id).fetch_one(&mut *tx).await?;
    let update = sqlx::query("UPDATE users SET email = $1 WHERE id = $2");
    update.bind(email).bind(id).execute(&mut *tx).await?;
    tx.commit().await?;
    let store = app.cache.backend();
    store
        .remove(&email_key(before.realm_id, &before.email))
        .await?;
    store.remove(&email_key(before.realm_id, email)).await?;
    Ok(())
}
// end

// begin: message page
fn message_key(id: i64) -> CacheKey {
    CacheKey::from_slice(&[("fn", Some("message")), ("id", Some(&id.to_string()))])
}

pub async fn messages(app: &App, ids: &[i64]) -> Result<Vec<(i64, Option<Message>)>, Error> {
    let store = app.cache.backend();
    let found = ids.iter().map(async |&id| {
        let mut context = CacheContext::default().boxed();
        store.get::<Message>(&message_key(id), &mut context).await
    });
    let found = try_join_all(found).await?.into_iter().flatten();
    let found = found
        .map(|value| value.into_inner())
        .map(|message| (message.id, message));
    let mut found: HashMap<i64, Message> = found.collect();
    let missing = ids.iter().filter(|id| !found.contains_key(id));
    let missing: Vec<i64> = missing.copied().collect();
    if !missing.is_empty() {
        let sql = "SELECT * FROM messages WHERE id IN (SELECT value FROM json_each($1))";
        let rows = sqlx::query_as(sql).bind(format!("{missing:?}"));
        let rows: Vec<Message> = rows.fetch_all(&app.db).await?;
        let fills = rows.iter().map(async |row| {
            let mut context = CacheContext::default().boxed();
            let value = CacheValue::new(row.clone(), Some(chrono::Utc::now() + DAY), None);
            store
                .set::<Message>(&message_key(row.id), &value, &mut context)
                .await
        });
        try_join_all(fills).await?;
        found.extend(rows.into_iter().map(|row| (row.id, row)));
    }
    Ok(ids.iter().map(|id| (*id, found.get(id).cloned())).collect())
}
// end

// begin: active users
#[cached(prefix = "active_user_ids", skip(db))]
pub async fn active_user_ids(db: SqlitePool, realm: i64) -> Result<Vec<i64>, Error> {
    let ids = sqlx::query_scalar("SELECT id FROM users WHERE realm_id = $1 AND is_active");
    Ok(ids.bind(realm).fetch_all(&db).await?)
}

fn active_key(realm: i64) -> CacheKey {
    let function = ("fn", Some("active_user_ids"));
    CacheKey::from_slice(&[function, ("realm", Some(&realm.to_string()))])
}
// end

// begin: a deactivation
pub async fn deactivate(app: &App, id: i64) -> Result<(), Error> {
    let update = "UPDATE users SET is_active = FALSE WHERE id = $1 RETURNING *";
    let user: User = sqlx::query_as(update).bind(id).fetch_one(&app.db).await?;
    let store = app.cache.backend();
    store.remove(&active_key(user.realm_id)).await?;
    store.remove(&email_key(user.realm_id, &user.email)).await?;
    Ok(())
}
// end
