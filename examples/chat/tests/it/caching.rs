//! What the chat asks of its store and its database, and what it shows when the store is in trouble: the tests that
//! `docs/testing.md` tells, under "On the chat service".

use std::time::Duration;

use larder::testing::{
    Fault, Op, assert_flushes_complete, assert_loads, assert_queries, assert_trips, captured,
    empty_cache,
};
use larder::{ErrorKind, Transactional as _};
use larder_chat::data::{
    Message, MessageField, MessageId, Reaction, ReactionField, Stream, StreamField, Subscription,
    SubscriptionField, User, UserField, UserId, messages, users,
};
use larder_chat::db::{Db, Sql};
use serde_json::json;

use crate::support::{Place, TestChat, on_each_database};

on_each_database! {
    a_page_of_messages_is_a_trip_per_accessor_and_a_query;
    subscribers_and_a_user_by_email_are_two_trips;
    a_write_is_its_statements_and_a_trip;
    a_renamed_stream_asks_who_reads_it;
    on_an_empty_cache_a_page_costs_what_it_did_cold;
    a_user_is_kept_for_an_hour;
    every_write_of_a_user_is_flushed;
    every_write_of_a_stream_is_flushed;
    every_write_of_a_subscription_is_flushed;
    every_write_of_a_message_is_flushed;
    every_write_of_a_reaction_is_flushed;
}

async fn chat(place: &Place) -> TestChat {
    place
        .chat(&["--messages", "120", "--users", "20", "--streams", "4"])
        .await
}

async fn a_page_of_messages_is_a_trip_per_accessor_and_a_query(place: Place) {
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=100").await;

    let (_, cold) = captured(page()).await;
    cold.assert_trips(6); // messages, names and streams: a look-up and a fill each
    cold.assert_loads(3);
    cold.assert_queries(4); // the loads, and which messages are on the page

    let (answer, warm) = captured(page()).await;
    warm.assert_trips(3);
    warm.assert_loads(0);
    warm.assert_queries(1);
    assert_eq!(answer.trips(), 3); // and the answer's header says so
}

async fn subscribers_and_a_user_by_email_are_two_trips(place: Place) {
    let chat = chat(&place).await;
    let by_email = chat.by_email(7).await;
    for page in ["/api/streams/1/subscribers", &by_email] {
        let (_, cold) = captured(empty_cache(chat.get(page))).await;
        cold.assert_trips(4); // whom it is about, and then the users
        cold.assert_queries(2);
        assert_trips!(2, chat.get(page));
        assert_queries!(0, chat.get(page));
    }
}

async fn a_write_is_its_statements_and_a_trip(place: Place) {
    let chat = chat(&place).await;
    let change = json!({ "full_name": "Grace" });
    let (_, captured) = captured(chat.write("PATCH", "/api/users/7", change)).await;
    captured.assert_queries(2); // the row under its lock, and its update
    captured.assert_trips(1);
    let flushed = |accessor| captured.accessor(accessor).flushed;
    assert_eq!(
        ["user", "display_name", "user_by_email"].map(flushed),
        [1, 1, 0]
    );
}

async fn a_renamed_stream_asks_who_reads_it(place: Place) {
    let chat = chat(&place).await;
    let page = assert_queries!(2, chat.get("/api/streams/1/subscribers"));
    let readers = page.json["subscribers"].as_array().map_or(0, Vec::len);
    let change = json!({ "name": "kitchen" });
    let (_, captured) = captured(chat.write("PATCH", "/api/streams/1", change)).await;
    captured.assert_queries(3); // after the commit, whose lists show the name
    captured.assert_trips(2);
    assert_eq!(captured.accessor("subscriptions").flushed, readers as u64);
}

#[tokio::test]
async fn a_loop_is_told_what_reads_all_at_once() {
    let place = Place::new();
    let chat = chat(&place).await;
    let ids = (1..=17).map(UserId);
    assert_queries!(1, users(&chat.app, ids.clone())).unwrap();
    let ((), captured) = captured(async {
        for id in ids {
            users::one(&chat.app, id).await.unwrap();
        }
    })
    .await;
    let told: Vec<String> = captured.loops().iter().map(ToString::to_string).collect();
    assert_eq!(told, ["17 single gets of `user`: use `users`"]);
}

#[tokio::test]
async fn tests_that_share_a_store_find_nothing_of_each_other() {
    let places = [Place::new(), Place::new()];
    let (one, other) = (chat(&places[0]).await, chat(&places[1]).await);
    for chat in [&one, &other] {
        assert_loads!(1, chat.get("/api/users/7"));
        assert_loads!(0, chat.get("/api/users/7"));
    }
    one.write("PATCH", "/api/users/7", json!({ "full_name": "Grace" }))
        .await;
    assert_loads!(0, other.get("/api/users/7"));
}

async fn on_an_empty_cache_a_page_costs_what_it_did_cold(place: Place) {
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=100").await;
    let (first, cold) = captured(page()).await;
    let (again, empty) = captured(empty_cache(page())).await;
    assert_eq!(again.json, first.json);
    assert_eq!(
        (empty.trips(), empty.queries()),
        (cold.trips(), cold.queries())
    );
    assert_loads!(0, page()); // what was loaded was stored
}

#[tokio::test]
async fn a_store_that_fails_costs_loads_and_no_answer() {
    let place = Place::new();
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=100").await;
    let before = page().await;
    chat.cache
        .faults()
        .all(Op::Get, Fault::Fail(ErrorKind::Unavailable));
    let after = assert_loads!(3, page());
    assert_eq!(after.expect(200), before.json);
}

#[tokio::test]
async fn a_fill_without_its_lease_stores_nothing() {
    let place = Place::new();
    let chat = chat(&place).await;
    let user = async || chat.get("/api/users/7").await.expect(200);
    // As if a write had flushed it while it was loaded.
    chat.cache.faults().next(Op::Fill, Fault::LoseLease);
    let loaded = assert_loads!(1, user());
    assert_eq!(assert_loads!(1, user()), loaded);
    assert_loads!(0, user());
}

#[tokio::test]
async fn a_damaged_entry_is_a_miss_and_is_replaced() {
    let place = Place::new();
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=100").await.expect(200);
    let before = page().await;
    chat.cache.faults().next(Op::Get, Fault::Damage); // of all 100 messages
    assert_eq!(assert_loads!(1, page()), before);
    assert_loads!(0, page());
}

#[tokio::test]
async fn a_delete_whose_reply_is_lost_is_pending_and_is_repeated() {
    let place = Place::new();
    let chat = chat(&place).await;
    let user = "/api/users/7";
    chat.get(user).await.expect(200);
    chat.cache.faults().all(Op::Delete, Fault::Unanswered);
    let change = json!({ "full_name": "Grace" });
    let written = chat.send("PATCH", user, change).await;
    assert_eq!(written.flush(), "pending");
    assert_eq!(chat.get(user).await.expect(200)["full_name"], "Grace");

    chat.cache.faults().clear();
    chat.settled(|stats| stats["writes"]["waiting"] == 0).await;
    assert_eq!(chat.get(user).await.expect(200)["full_name"], "Grace");
}

async fn a_user_is_kept_for_an_hour(place: Place) {
    let chat = chat(&place).await;
    let user = async || chat.get("/api/users/7").await.expect(200);
    assert_loads!(1, user());
    chat.leap(Duration::from_secs(3_200)).await;
    assert_loads!(0, user());
    chat.leap(Duration::from_secs(400)).await;
    assert_loads!(1, user());
}

#[tokio::test]
async fn a_write_past_the_guard_is_seen_by_who_reads_it() {
    let place = Place::new();
    let chat = chat(&place).await;
    let before = chat.get("/api/users/7").await.expect(200);
    let mut tx = chat.app.db().begin().await.unwrap();
    let update = Sql::same("UPDATE users SET full_name = 'Grace' WHERE id = 7");
    tx.query(update).execute().await.unwrap();
    Db::commit(tx).await.unwrap();

    assert_eq!(chat.get("/api/users/7").await.expect(200), before);
    let stale = chat.cache.stale_hits().await;
    assert_eq!(stale[0].key, "user:7");
    let difference = format!("full_name: cached {}, true \"Grace\"", before["full_name"]);
    assert_eq!(stale[0].differences[0].to_string(), difference);
}

async fn every_write_of_a_user_is_flushed(place: Place) {
    let chat = chat(&place).await;
    let page = "/api/messages?before=1";
    let newest = chat.get(page).await.messages()[0].clone();
    let id = newest["sender_id"].as_i64().unwrap();
    let (user, other) = (&*format!("/api/users/{id}"), id % 20 + 1);
    let (by_email, by_others) = (chat.by_email(id).await, chat.by_email(other).await);
    let write = |change| chat.writing("PATCH", user, change);
    let swap = json!({ "users": [id, other] });
    assert_flushes_complete::<User>(&chat.cache)
        .reads(async || {
            let subscriptions = format!("{user}/subscriptions");
            chat.read([page, user, &subscriptions, "/api/streams/1/subscribers"])
                .await;
            // Where each address leads, before and after.
            chat.read([&*by_email, &by_others, "/api/users?email=grace@example.com"])
                .await;
        })
        .field(UserField::FullName, write(json!({ "full_name": "Grace" })))
        .field(
            UserField::Email,
            write(json!({ "email": "grace@example.com" })),
        )
        .field(
            UserField::Email,
            chat.writing("POST", "/api/users/swap-emails", swap),
        )
        .field(UserField::IsActive, write(json!({ "is_active": false })))
        .field(UserField::Version, write(json!({ "is_active": false }))) // and nothing else
        .never_created()
        .never_deleted()
        .run()
        .await;
}

async fn every_write_of_a_stream_is_flushed(place: Place) {
    let chat = chat(&place).await;
    let stream = "/api/streams/2";
    let write = |change| chat.writing("PATCH", stream, change);
    assert_flushes_complete::<Stream>(&chat.cache)
        .reads(async || {
            chat.read([stream, "/api/streams/2/subscribers", "/api/streams"])
                .await;
            for user in 1..=20 {
                chat.read([&*format!("/api/users/{user}/subscriptions")])
                    .await;
            }
        })
        .field(StreamField::Name, write(json!({ "name": "kitchen" })))
        .field(
            StreamField::Description,
            write(json!({ "description": "tea" })),
        )
        .field(StreamField::Version, write(json!({ "name": "kitchen" }))) // and nothing else
        .never_created()
        .never_deleted()
        .run()
        .await;
}

async fn every_write_of_a_subscription_is_flushed(place: Place) {
    let chat = chat(&place).await;
    let subscribers = "/api/streams/4/subscribers";
    let readers = chat.get(subscribers).await.expect(200);
    let readers = readers["subscribers"].as_array().unwrap();
    let reads = |user: &i64| readers.iter().any(|reader| reader["id"] == *user);
    let stranger = (1..=20).find(|user| !reads(user)).unwrap();
    let subscriptions = format!("/api/users/{stranger}/subscriptions");
    let subscription = format!("{subscribers}/{stranger}");
    let write = |method| chat.writing(method, &subscription, json!({}));
    assert_flushes_complete::<Subscription>(&chat.cache)
        .reads(async || chat.read([subscribers, &subscriptions]).await)
        .create(write("PUT"))
        .field(SubscriptionField::IsActive, write("DELETE"))
        .field(SubscriptionField::IsActive, write("PUT"))
        .field(SubscriptionField::Version, write("PUT")) // and nothing else
        .never_deleted() // who leaves keeps the row
        .run()
        .await;
}

async fn every_write_of_a_message_is_flushed(place: Place) {
    let chat = chat(&place).await;
    let user = chat.active().await;
    let page = "/api/messages?before=20";
    let first = chat.get(page).await.messages()[0].clone();
    let reactions = format!("/api/messages/{}/reactions", first["id"]);
    let stream = first["stream_id"].as_i64().unwrap();
    let topics = [
        json!({ "stream_id": stream, "subject": first["subject"] }),
        json!({ "stream_id": stream, "subject": "elsewhere" }),
        json!({ "stream_id": stream % 4 + 1, "subject": "elsewhere" }),
    ];
    let moving = |from: usize| {
        let topics = json!({ "from": topics[from], "to": topics[from + 1] });
        chat.writing("POST", "/api/messages/move", topics)
    };
    let tea = json!({ "user_id": user, "emoji_name": "tea", "emoji_code": "1f375" });
    let new = json!({ "stream_id": 1, "sender_id": user, "subject": "tea", "content": "hot" });
    assert_flushes_complete::<Message>(&chat.cache)
        .reads(async || {
            chat.read([page]).await;
            // Who looks for the next message before it is sent is told that there is none.
            messages::one(&chat.app, MessageId(121)).await.unwrap();
        })
        .field(MessageField::Subject, moving(0))
        .field(MessageField::StreamId, moving(1))
        .field(MessageField::Version, chat.writing("POST", &reactions, tea))
        .never_changes(MessageField::SenderId)
        .never_changes(MessageField::Content)
        .never_changes(MessageField::RenderedContent)
        .never_changes(MessageField::Client)
        .never_changes(MessageField::Timestamp)
        .never_changes(MessageField::LastEditTimestamp)
        .never_changes(MessageField::EditHistory)
        .create(chat.writing("POST", "/api/messages", new))
        .never_deleted()
        .run()
        .await;
}

async fn every_write_of_a_reaction_is_flushed(place: Place) {
    let chat = chat(&place).await;
    let user = chat.active().await;
    let reactions = "/api/messages/120/reactions";
    let this = format!("{reactions}?user_id={user}&emoji_code=1f375");
    let tea = json!({ "user_id": user, "emoji_name": "tea", "emoji_code": "1f375" });
    assert_flushes_complete::<Reaction>(&chat.cache)
        .reads(async || chat.read(["/api/messages?before=2"]).await)
        .create(chat.writing("POST", reactions, tea))
        .delete(chat.writing("DELETE", &this, json!({})))
        .never_changes(ReactionField::EmojiName)
        .never_changes(ReactionField::Version)
        .run()
        .await;
}
