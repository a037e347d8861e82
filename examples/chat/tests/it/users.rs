//! People, and what their changes make stale.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use larder::Request;
use larder::testing::{assert_loads, captured};
use larder_chat::data::{UserId, UserPatch, display_names};
use larder_chat::db::Sql;
use larder_chat::writes::change_user;
use serde_json::json;
use tower::ServiceExt as _;

use crate::support::{Place, TestChat, on_each_database, request};

on_each_database! {
    users_are_found_by_id_and_by_address;
    what_nobody_has_is_not_found_and_remembered;
    a_new_name_is_in_the_next_page_and_no_message_is_loaded_again;
    a_new_address_leads_to_the_user_and_the_old_one_nowhere;
    bad_changes_are_refused_and_change_nothing;
    subscribers_are_shown_as_they_are_today;
    a_client_that_hangs_up_leaves_nothing_old_behind;
}

async fn chat(place: &Place) -> TestChat {
    place
        .chat(&["--messages", "300", "--users", "40", "--streams", "4"])
        .await
}

async fn users_are_found_by_id_and_by_address(place: Place) {
    let chat = chat(&place).await;
    let user = chat.get("/api/users/7").await.expect(200);
    let email = user["email"].as_str().unwrap().to_uppercase();
    for path in [
        "/api/users/7".to_owned(),
        format!("/api/users?email=%20{email}"),
    ] {
        assert_eq!(chat.get(&path).await.expect(200), user);
        assert_eq!(assert_loads!(0, chat.get(&path)).expect(200), user);
    }
}

async fn what_nobody_has_is_not_found_and_remembered(place: Place) {
    let chat = chat(&place).await;
    for (path, words) in [
        ("/api/users/99", "no user 99"),
        ("/api/users/-1", "no user -1"),
        ("/api/users?email=x@example.com", "x@example.com"),
        ("/api/streams/99/subscribers", "no stream 99"),
    ] {
        chat.get(path).await.refused(404, words);
        let (again, captured) = captured(chat.get(path)).await;
        captured.assert_trips(1);
        captured.assert_loads(0);
        again.refused(404, words);
    }
    for (path, words) in [
        ("/api/users/ada", "ada"),
        ("/api/users/99999999999999999999", "i64"),
        ("/api/users", "email"),
        ("/api/users?email=ada", "not an e-mail address"),
        ("/api/users?email=a@b.c&name=x", "name"),
        ("/api/streams/x/subscribers", "x"),
    ] {
        chat.get(path).await.refused(400, words);
    }
}

async fn a_new_name_is_in_the_next_page_and_no_message_is_loaded_again(place: Place) {
    let chat = chat(&place).await;
    let page = "/api/messages?before=300";
    let before = chat.get(page).await;
    let sender = before.messages()[0]["sender_id"].clone();
    let renamed = chat
        .send(
            "PATCH",
            &format!("/api/users/{sender}"),
            json!({ "full_name": " Grace <b> " }),
        )
        .await;
    assert_eq!(renamed.flush(), "fresh");
    assert_eq!(renamed.expect(200)["full_name"], "Grace <b>");

    let (after, captured) = captured(chat.get(page)).await;
    assert_eq!(captured.accessor("display_name").misses, 1);
    assert_eq!(captured.accessor("message").misses, 0);
    let id = sender.to_string();
    for (old, new) in before.messages().iter().zip(after.messages()) {
        let mut expected = old.clone();
        if let Some(name) = expected["names"].get_mut(&id) {
            *name = json!("Grace <b>");
            expected["name_versions"][&id] = json!(2);
        }
        if new["sender_id"] == sender {
            expected["sender_full_name"] = json!("Grace <b>");
        }
        assert_eq!(*new, expected);
    }
}

#[tokio::test]
async fn a_request_that_renames_somebody_sees_the_new_name() {
    let place = Place::new();
    let chat = chat(&place).await;
    let id = UserId(7);
    let request = Request::begin(chat.app.cache());
    let name = async || display_names::one(&request, id).await.unwrap();
    let before = name().await.unwrap();
    // Kept: the same value, not an equal one.
    assert!(Arc::ptr_eq(&before, &name().await.unwrap()));

    let grace = || UserPatch {
        full_name: Some("Grace".to_owned()),
        ..UserPatch::default()
    };
    let cache = request.cache().clone();
    change_user(&cache, id, grace()).await.unwrap();
    assert_eq!(name().await.unwrap().full_name, "Grace");
    // Who has read the old one may keep it.
    assert_ne!(before.full_name, "Grace");
}

async fn a_new_address_leads_to_the_user_and_the_old_one_nowhere(place: Place) {
    let chat = chat(&place).await;
    let old = chat.get("/api/users/7").await.expect(200)["email"]
        .as_str()
        .unwrap()
        .to_owned();
    let by_old = format!("/api/users?email={old}");
    let by_new = "/api/users?email=grace@example.com";
    // Both answers are in the store: that the one leads here, and that the other leads nowhere.
    chat.get(&by_old).await.expect(200);
    chat.get(by_new).await.refused(404, "grace@example.com");

    let change = json!({ "email": "Grace@Example.com" });
    assert_eq!(
        chat.send("PATCH", "/api/users/7", change).await.expect(200)["email"],
        "grace@example.com"
    );
    chat.get(&by_old).await.refused(404, &old);
    assert_eq!(chat.get(by_new).await.expect(200)["id"], 7);

    // And somebody else may have the old one.
    chat.send("PATCH", "/api/users/8", json!({ "email": old }))
        .await
        .expect(200);
    assert_eq!(chat.get(&by_old).await.expect(200)["id"], 8);
}

async fn bad_changes_are_refused_and_change_nothing(place: Place) {
    let chat = chat(&place).await;
    let user = chat.get("/api/users/7").await.expect(200);
    let taken = chat.get("/api/users/8").await.expect(200)["email"].clone();
    for (change, status, words) in [
        (json!({}), 400, "nothing to change"),
        (json!({ "full_name": "" }), 400, "full_name takes 1 to 100"),
        (
            json!({ "full_name": "x".repeat(101) }),
            400,
            "full_name takes 1 to 100",
        ),
        (json!({ "email": "grace" }), 400, "not an e-mail address"),
        (json!({ "is_active": "yes" }), 400, "is_active"),
        (json!({ "id": 9 }), 400, "id"),
        (json!([]), 400, ""),
        (json!({ "email": taken }), 409, "another user has"),
    ] {
        chat.send("PATCH", "/api/users/7", change)
            .await
            .refused(status, words);
    }
    chat.send("PATCH", "/api/users/99", json!({ "is_active": true }))
        .await
        .refused(404, "no user 99");
    chat.send("PATCH", "/api/users/x", json!({ "is_active": true }))
        .await
        .refused(400, "x");
    assert_eq!(chat.get("/api/users/7").await.expect(200), user);
}

async fn subscribers_are_shown_as_they_are_today(place: Place) {
    let chat = chat(&place).await;
    let before = chat.get("/api/streams/1/subscribers").await.expect(200);
    let first = &before["subscribers"][0];
    assert!(first["full_name"].is_string(), "{first}");

    let id = &first["id"];
    let change = json!({ "full_name": "Grace", "is_active": false });
    chat.send("PATCH", &format!("/api/users/{id}"), change)
        .await
        .expect(200);
    let after = assert_loads!(1, chat.get("/api/streams/1/subscribers"));
    let after = &after.expect(200)["subscribers"][0];
    assert_eq!((&after["id"], &after["full_name"]), (id, &json!("Grace")));
    assert_eq!(
        (&after["is_active"], &after["version"]),
        (&json!(false), &json!(2))
    );
}

/// A write is done or not done, wherever its client hangs up; and what is read afterwards says which.
async fn a_client_that_hangs_up_leaves_nothing_old_behind(place: Place) {
    let chat = chat(&place).await;
    let mut answered = false;
    for patience in 0.. {
        let name = format!("Grace {patience}");
        let before = chat.get("/api/users/7").await.expect(200);
        let body = json!({ "full_name": name }).to_string();
        let asked = chat
            .router
            .clone()
            .oneshot(request("PATCH", "/api/users/7", body.into()));
        // Polled so many times, the request has come further each time; then it is dropped.
        let mut asked = Box::pin(asked);
        for _ in 0..patience {
            let polled = std::future::poll_fn(|cx| Poll::Ready(asked.as_mut().poll(cx))).await;
            answered = polled.is_ready();
            if answered {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if answered {
            break;
        }
        drop(asked);
        // What has begun to commit goes on, flush and all, and nobody is told when it is done.
        let agreed = async {
            loop {
                let shown = chat.get("/api/users/7").await.expect(200);
                let sql = Sql::same("SELECT full_name, version FROM users WHERE id = 7");
                let mut db = chat.app.db().read().await.unwrap();
                let stored: (String, i64) = db.query(sql).one().await.unwrap();
                if shown["version"] == stored.1 && shown["full_name"] == stored.0 {
                    break shown;
                }
            }
        };
        let agreed = tokio::time::timeout(Duration::from_secs(20), agreed).await;
        let after = agreed.expect("what is shown becomes what is stored");
        assert!(after == before || after["full_name"] == name, "{after}");
        // The row is free, and so is the connection.
        let change = json!({ "is_active": true });
        let next = chat.send("PATCH", "/api/users/7", change).await;
        assert_eq!(next.flush(), "fresh");
    }
    assert!(answered);
}
