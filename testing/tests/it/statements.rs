//! Statements of a real database, as sqlx tells them.

use larder_testing::{assert_queries, captured};
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};

async fn pool() -> SqlitePool {
    let pool = SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect("sqlite::memory:").await.unwrap();
    let tables =
        "CREATE TABLE users (id INTEGER, name TEXT); CREATE TABLE larder_note (id INTEGER)";
    sqlx::raw_sql(tables).execute(&pool).await.unwrap();
    pool
}

async fn count(pool: &SqlitePool) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM users WHERE id > 0");
    count.fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn statements_are_counted_by_their_span() {
    let pool = pool().await;
    count(&pool).await;
    let elsewhere = pool.clone();
    let (_, captured) = captured(async {
        count(&pool).await;
        tokio::spawn(async move { count(&elsewhere).await })
            .await
            .unwrap();
        let insert = sqlx::query("INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace')");
        insert.execute(&pool).await.unwrap();
    })
    .await;
    let statements: Vec<&str> = captured.statements().collect();
    assert_eq!(
        statements,
        [
            "SELECT count(*) FROM users WHERE id > 0",
            "INSERT INTO users VALUES (1, 'Ada'), (2, 'Grace')"
        ]
    );
    let table = captured.to_string();
    assert!(
        table.contains("     query          INSERT INTO users VALUES (1, 'Ada…        2 rows\n"),
        "{table}"
    );
}

#[tokio::test]
async fn larders_own_statements_are_listed_and_not_counted() {
    let pool = pool().await;
    let (_, captured) = captured(async {
        let note = sqlx::query("INSERT INTO larder_note VALUES (1)");
        note.execute(&pool).await.unwrap();
    })
    .await;
    captured.assert_queries(0);
    assert!(captured.to_string().contains("(not counted)"));
}

#[tokio::test]
async fn what_begins_and_ends_a_transaction_isnt_counted() {
    let pool = pool().await;
    let (_, captured) = captured(async {
        let mut connection = pool.acquire().await.unwrap();
        for step in ["BEGIN IMMEDIATE", "SAVEPOINT one", "RELEASE one", "COMMIT"] {
            sqlx::query(step).execute(&mut *connection).await.unwrap();
        }
    })
    .await;
    captured.assert_queries(0);
}

#[tokio::test]
async fn a_loop_of_statements_is_named() {
    let pool = pool().await;
    let (_, captured) = captured(async {
        count(&pool).await;
        count(&pool).await;
    })
    .await;
    let loops = captured.loops();
    let told: Vec<String> = loops.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["2 times `SELECT count(*) FROM users WHERE id > 0`"]);
    assert_eq!(assert_queries!(1, count(&pool)), 0);
}
