//! The names of users, cached: `cargo run --example quickstart`

use larder::{BuilderExt as _, Cache, Config};
use larder_sqlx::Sqlite;
use sqlx::{Executor as _, SqliteConnection, SqlitePool};

#[larder::cached(many, source = Sqlite, key = "user_name:{ids}", ttl = "7d", by_hand)]
async fn names(db: &mut SqliteConnection, ids: &[i64]) -> sqlx::Result<Vec<(i64, String)>> {
    let sql = "SELECT id, name FROM users WHERE id IN (SELECT value FROM json_each($1))";
    let missing = sqlx::query_as(sql).bind(format!("{ids:?}"));
    missing.fetch_all(db).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let db = SqlitePool::connect("sqlite::memory:").await?;
    let users = "CREATE TABLE users AS SELECT 7 AS id, 'Ada' AS name UNION SELECT 8, 'Grace'";
    db.execute(users).await?;
    let source = Sqlite::new(db.clone()).bounded();
    let store = Config::new("memory://")?; // or memcached://… or redis://…
    let cache = Cache::builder(source).config(store).build().await?;
    println!("{:?}", names::one(&cache, 7).await?); // a query
    println!("{:?}", names(&cache, [8, 7, 9]).await?); // one for 8 and 9
    db.execute("UPDATE users SET name = upper(name)").await?;
    names::flush(&cache, [7, 8]).await?;
    println!("{:?}", names::one(&cache, 7).await?);
    Ok(())
}
