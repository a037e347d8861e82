//! Pages of history, and new messages.

use std::collections::HashSet;

use larder::testing::{Captured, captured};
use larder_chat::data::{MessageId, messages};
use serde_json::{Value, json};

use crate::support::{Place, TestChat, on_each_database};

on_each_database! {
    pages_are_ranges_around_an_anchor_oldest_first;
    messages_carry_todays_names;
    a_streams_page_has_only_its_messages;
    a_page_asks_for_each_name_once_however_many_messages_mention_it;
    an_answer_says_what_it_cost;
    pages_that_overlap_load_what_is_new;
    bad_pages_are_refused_with_a_reason;
    sent_messages_are_in_the_next_page;
    bad_messages_are_refused_with_a_reason;
}

async fn chat(place: &Place) -> TestChat {
    place
        .chat(&["--messages", "1500", "--users", "60", "--streams", "9"])
        .await
}

async fn pages_are_ranges_around_an_anchor_oldest_first(place: Place) {
    let chat = chat(&place).await;
    for (query, first, count) in [
        ("", 1451, 50),
        ("anchor=newest&before=3", 1498, 3),
        ("anchor=newest&after=3", 0, 0),
        ("anchor=10&before=3", 7, 3),
        ("anchor=10&after=3", 10, 3),
        ("anchor=10&before=2&after=2", 8, 4),
        ("anchor=2&before=50&after=1", 1, 2),
        ("anchor=9999&before=1&after=9", 1500, 1),
        ("anchor=-7&after=2", 1, 2),
        ("before=0", 0, 0),
        ("before=5000", 1, 1500),
    ] {
        let ids = chat.get(&format!("/api/messages?{query}")).await.ids();
        assert_eq!(ids, (first..first + count).collect::<Vec<_>>(), "{query}");
    }
}

async fn messages_carry_todays_names(place: Place) {
    let chat = chat(&place).await;
    let page = chat.get("/api/messages?before=200").await;
    for message in page.messages() {
        let sender = chat
            .get(&format!("/api/users/{}", message["sender_id"]))
            .await
            .expect(200);
        assert_eq!(message["sender_full_name"], sender["full_name"]);
        let names = message["names"].as_object().unwrap();
        let named: HashSet<i64> = names.keys().map(|id| id.parse().unwrap()).collect();
        assert_eq!(named, mentioned(message));
        assert!(message["stream"].is_string(), "{message}");
        assert!(message["rendered_content"].is_string(), "{message}");
    }
}

async fn a_streams_page_has_only_its_messages(place: Place) {
    let chat = chat(&place).await;
    let all = chat.get("/api/messages?before=1500").await;
    let expected: Vec<i64> = all
        .messages()
        .iter()
        .filter(|message| message["stream_id"] == 2)
        .map(|message| message["id"].as_i64().unwrap())
        .collect();
    assert!(expected.len() > 20, "{}", expected.len());
    assert_eq!(
        chat.get("/api/messages?stream=2&before=5000").await.ids(),
        expected
    );
    let (older, newer) = expected.split_at(11);
    let around = format!(
        "/api/messages?stream=2&anchor={}&before=3&after=3",
        newer[0]
    );
    assert_eq!(
        chat.get(&around).await.ids(),
        [&older[8..], &newer[..3]].concat()
    );
}

async fn a_page_asks_for_each_name_once_however_many_messages_mention_it(place: Place) {
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=1000").await;
    let cold = page().await;
    let (warm, captured) = captured(page()).await;
    assert_eq!(warm.json, cold.json);

    let mentioned: Vec<HashSet<i64>> = warm.messages().iter().map(mentioned).collect();
    let people: HashSet<i64> = mentioned.iter().flatten().copied().collect();
    let mentions: usize = mentioned.iter().map(HashSet::len).sum();
    assert!(
        mentions > 10 * people.len(),
        "{mentions} of {}",
        people.len()
    );
    let names = captured.accessor("display_name");
    assert_eq!(names.hits, people.len() as u64);
    assert_eq!(names.tier_hits, mentions as u64);

    // What requests kept goes with them.
    chat.settled(|stats| stats["tiers"]["request"]["entries"] == 0)
        .await;
}

async fn an_answer_says_what_it_cost(place: Place) {
    let chat = chat(&place).await;
    let page = async || chat.get("/api/messages?before=1000").await;
    let (cold, loading) = captured(page()).await;
    let misses = |captured: &Captured| -> u64 {
        let accessors = captured.accessors();
        accessors.values().map(|counts| counts.misses).sum()
    };
    assert_eq!(cold.loads(), misses(&loading));
    // Once fills are over: an answer isn't kept waiting for them.
    let (warm, captured) = captured(page()).await;
    assert_eq!((warm.loads(), warm.trips()), (0, captured.trips()));
    let kept = captured.accessor("display_name").tier_hits;
    assert_eq!(warm.tier_hits(), kept);
    let timing = warm.headers["server-timing"].to_str().unwrap();
    assert!(
        timing.starts_with("cache;dur=") && timing.contains(", db;dur="),
        "{timing}"
    );
}

/// Whose names a message shows.
fn mentioned(message: &Value) -> HashSet<i64> {
    let lists = [&message["reactions"], &message["edit_history"]];
    lists
        .into_iter()
        .flat_map(|list| list.as_array().unwrap())
        .map(|each| &each["user_id"])
        .chain([&message["sender_id"]])
        .filter_map(Value::as_i64)
        .collect()
}

async fn pages_that_overlap_load_what_is_new(place: Place) {
    let chat = chat(&place).await;
    chat.get("/api/messages?before=1000").await;
    let (_, captured) = captured(chat.get("/api/messages?before=1500")).await;
    let messages = captured.accessor("message");
    assert_eq!((messages.hits, messages.misses), (1000, 500));
}

async fn bad_pages_are_refused_with_a_reason(place: Place) {
    let chat = chat(&place).await;
    for (query, words) in [
        ("before=5001", "at most 5000"),
        ("before=2500&after=2501", "at most 5000"),
        ("before=4294967295&after=1", "at most 5000"),
        ("before=-1", "before"),
        ("before=4294967296", "before"),
        ("after=x", "after"),
        ("anchor=oldest", "`newest`"),
        ("anchor=99999999999999999999", "`newest`"),
        ("stream=general", "stream"),
        ("befor=3", "befor"),
        ("before=1&before=2", "before"),
    ] {
        chat.get(&format!("/api/messages?{query}"))
            .await
            .refused(400, words);
    }
    chat.get("/api/messages?stream=99")
        .await
        .refused(404, "no stream 99");
    chat.get("/api/messages?stream=99")
        .await
        .refused(404, "no stream 99");
    chat.get("/api/massages")
        .await
        .refused(404, "/api/massages");
    chat.send("DELETE", "/api/messages", "")
        .await
        .refused(405, "DELETE");
    let most = chat
        .get("/api/messages?anchor=700&before=2500&after=2500")
        .await;
    assert_eq!(most.messages().len(), 1500);
}

async fn sent_messages_are_in_the_next_page(place: Place) {
    let chat = chat(&place).await;
    // Somebody asked for it before it was there: its absence is remembered.
    let next = MessageId(1501);
    let absent = messages::one(&chat.app, next).await.unwrap();
    assert_eq!(absent, None);

    let body = json!({ "stream_id": 3, "sender_id": chat.active().await, "subject": " tea ", "content": "**hot** <b>" });
    let sent = chat.send("POST", "/api/messages", &body).await;
    assert_eq!(sent.flush(), "fresh");
    assert_eq!(sent.trips(), 1);
    let mut sent = sent.expect(201);
    sent.as_object_mut().unwrap().remove("flush");
    assert_eq!(
        (&sent["id"], &sent["subject"]),
        (&json!(1501), &json!("tea"))
    );
    assert_eq!(
        sent["rendered_content"],
        "<p><strong>hot</strong> &lt;b&gt;</p>"
    );

    let page = chat.get("/api/messages?stream=3&before=1").await;
    assert_eq!(page.messages(), [sent]);
    assert!(messages::one(&chat.app, next).await.unwrap().is_some());
}

async fn bad_messages_are_refused_with_a_reason(place: Place) {
    let chat = chat(&place).await;
    let good = json!({ "stream_id": 3, "sender_id": chat.active().await, "subject": "tea", "content": "hot" });
    for (field, value, status, words) in [
        ("content", json!(""), 400, "content takes 1 to 10000"),
        ("content", json!(" \n"), 400, "content takes 1 to 10000"),
        (
            "content",
            json!("x".repeat(10_001)),
            400,
            "content takes 1 to 10000",
        ),
        ("content", json!("a\u{0}b"), 400, "control"),
        (
            "subject",
            json!("x".repeat(61)),
            400,
            "subject takes 1 to 60",
        ),
        ("subject", json!(7), 400, "subject"),
        ("stream_id", json!(99), 404, "no stream 99"),
        ("sender_id", json!(999), 404, "no user 999"),
        ("colour", json!("red"), 400, "colour"),
    ] {
        let mut body = good.clone();
        body[field] = value;
        chat.send("POST", "/api/messages", body)
            .await
            .refused(status, words);
    }
    chat.send("POST", "/api/messages", "{")
        .await
        .refused(400, "JSON");
    chat.send("POST", "/api/messages", "x".repeat(300 << 10))
        .await
        .refused(400, "length limit");
    assert_eq!(chat.get("/api/messages?before=1").await.ids(), [1500]);

    let sender = good["sender_id"].as_i64().unwrap();
    let idle = chat
        .send(
            "PATCH",
            &format!("/api/users/{sender}"),
            json!({ "is_active": false }),
        )
        .await;
    idle.expect(200);
    chat.send("POST", "/api/messages", good)
        .await
        .refused(400, "not active");
}
