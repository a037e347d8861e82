//! More requests than the database can answer.
//!
//! While connections are held, tokio's clock is paused and leaps to the next deadline once everybody waits, so nobody
//! really does. It must go on while a query runs: SQLite's threads are none of tokio's, and it would leap past them.

use larder::Transactional as _;
use larder_chat::db::{PATIENCE, READERS, Sql};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Chat, Place};

async fn chat(place: &Place) -> Chat {
    place
        .start(&["--messages", "100", "--users", "60", "--streams", "3"])
        .await
        .expect("a chat")
}

#[tokio::test]
async fn without_a_free_connection_every_request_is_told_to_come_back() {
    let place = Place::new();
    let chat = chat(&place).await;
    let mut held = Vec::new();
    for _ in 0..READERS {
        held.push(chat.app.db().read().await.unwrap());
    }
    // More loads than connections and places for loads: some wait for one, some for the other.
    let users = (1..=40).map(|id| format!("/api/users/{id}"));
    let others = [
        "/api/messages",
        "/api/streams",
        "/api/streams/2/subscribers",
        "/api/users?email=nobody@example.com",
        "/healthz",
    ];
    tokio::time::pause();
    let begin = Instant::now();
    let mut requests = JoinSet::new();
    for path in users.chain(others.map(str::to_owned)) {
        let chat = chat.clone();
        requests.spawn(async move { chat.get(&path).await });
    }
    while let Some(answer) = requests.join_next().await {
        let answer = answer.unwrap();
        assert_eq!(answer.headers["retry-after"], "1");
        answer.refused(503, "try again");
    }
    // At the longest for a place, and then for a connection.
    assert!(begin.elapsed() < 2 * PATIENCE + PATIENCE / 10);

    tokio::time::resume();
    drop(held);
    for path in ["/api/users/1", "/api/messages", "/healthz"] {
        chat.get(path).await.expect(200);
    }
}

/// PostgreSQL waits by itself, so that its own deadline ends it: the row's lock, not the connection, isn't free in time.
#[tokio::test]
async fn a_write_behind_a_locked_row_is_told_to_come_back() {
    let place = Place::on_postgres();
    let chat = chat(&place).await;
    let mut stuck = chat.app.db().begin().await.unwrap();
    let lock = Sql::same("SELECT id FROM users WHERE id = 7 FOR UPDATE");
    stuck.query(lock).execute().await.unwrap();
    let change = json!({ "full_name": "Grace" });
    let refused = chat.send("PATCH", "/api/users/7", &change).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(503, "try again");
    drop(stuck);
    chat.send("PATCH", "/api/users/7", &change)
        .await
        .expect(200);
}

#[tokio::test]
async fn a_write_behind_a_stuck_one_is_told_to_come_back() {
    let place = Place::new();
    let chat = chat(&place).await;
    let stuck = chat.app.db().begin().await.unwrap();
    let change = json!({ "full_name": "Grace" });
    tokio::time::pause();
    let refused = chat.send("PATCH", "/api/users/7", &change).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.refused(503, "try again");

    tokio::time::resume();
    drop(stuck);
    let changed = chat.send("PATCH", "/api/users/7", &change).await;
    changed.expect(200);
}
