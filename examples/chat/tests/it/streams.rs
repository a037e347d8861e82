//! Streams, and what their readers are shown.

use serde_json::json;

use crate::support::{Place, TestChat, on_each_database};

on_each_database! {
    streams_are_found_and_changed;
    both_ends_of_subscriptions_agree;
}

async fn chat(place: &Place) -> TestChat {
    place
        .chat(&["--messages", "100", "--users", "40", "--streams", "4"])
        .await
}

async fn streams_are_found_and_changed(place: Place) {
    let chat = chat(&place).await;
    let stream = chat.get("/api/streams/2").await.expect(200);
    assert_eq!(stream["version"], 1);
    let change = json!({ "description": " what is cooked " });
    let changed = chat
        .send("PATCH", "/api/streams/2", change)
        .await
        .expect(200);
    let expected = json!({
        "id": 2, "name": stream["name"], "description": "what is cooked", "version": 2, "flush": "fresh",
    });
    assert_eq!(changed, expected);
    for (path, change, status, words) in [
        ("/api/streams/2", json!({}), 400, "nothing to change"),
        (
            "/api/streams/2",
            json!({ "name": " " }),
            400,
            "name takes 1 to 60",
        ),
        (
            "/api/streams/2",
            json!({ "name": "x".repeat(61) }),
            400,
            "name takes 1 to 60",
        ),
        ("/api/streams/2", json!({ "id": 7 }), 400, "id"),
        (
            "/api/streams/99",
            json!({ "name": "x" }),
            404,
            "no stream 99",
        ),
        ("/api/streams/x", json!({ "name": "x" }), 400, "x"),
    ] {
        chat.send("PATCH", path, change)
            .await
            .refused(status, words);
    }
    chat.get("/api/streams/99")
        .await
        .refused(404, "no stream 99");
    chat.get("/api/users/99/subscriptions")
        .await
        .refused(404, "no user 99");
}

async fn both_ends_of_subscriptions_agree(place: Place) {
    let chat = chat(&place).await;
    let mut of_streams = Vec::new();
    for stream in 1..=4 {
        let page = chat
            .get(&format!("/api/streams/{stream}/subscribers"))
            .await
            .expect(200);
        let readers = page["subscribers"].as_array().unwrap().iter();
        of_streams.extend(readers.map(|user| (user["id"].as_i64().unwrap(), stream)));
    }
    let mut of_users = Vec::new();
    for user in 1..=40 {
        let page = chat
            .get(&format!("/api/users/{user}/subscriptions"))
            .await
            .expect(200);
        let streams = page["subscriptions"].as_array().unwrap().iter();
        of_users.extend(streams.map(|each| (user, each["stream_id"].as_i64().unwrap())));
    }
    of_streams.sort_unstable();
    assert_eq!(of_users, of_streams);
}
