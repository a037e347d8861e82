//! Two chats on one database and one store: what one of them has written and calls fresh, the other shows from then on,
//! on every page that shows the object, with its version.

use larder_harness::server::{Listen, MemcachedServer};
use serde_json::{Value, json};

use crate::support::{Chat, Place, on_each_database};

on_each_database! {
    a_changed_user_is_on_every_page;
    swapped_addresses_lead_to_the_other_user;
    a_renamed_stream_is_in_every_readers_list;
    a_moved_topic_is_where_it_was_moved;
    a_sent_message_is_there;
    who_subscribes_is_on_both_pages;
    reactions_are_on_the_message;
    writes_of_both_are_seen_by_both;
    what_a_stopped_store_cannot_confirm_is_pending_and_delivered_when_it_is_back;
}

const SMALL: [&str; 6] = ["--messages", "300", "--users", "40", "--streams", "4"];

/// Two chats, and the store that they share.
struct Pair {
    one: Chat,
    other: Chat,
    server: MemcachedServer,
}

impl Pair {
    async fn start(place: &Place) -> Self {
        Self::start_with(
            place,
            "?timeout=10s&connect_timeout=10s&stall=10s&flush_timeout=10s",
        )
        .await
    }

    async fn start_with(place: &Place, settings: &str) -> Self {
        let server = MemcachedServer::start(Listen::Tcp, &[]);
        let url = format!("memcached://{}{settings}", server.address());
        let args: Vec<&str> = SMALL.into_iter().chain(["--cache", &url]).collect();
        let one = place.start(&args).await.expect("a chat");
        let other = place.start(&args).await.expect("another chat");
        Self { one, other, server }
    }

    /// Has the other chat fill the store with these pages: what a write must make it forget.
    async fn filled(&self, pages: &[&str]) {
        for page in pages {
            self.other.get(page).await;
            assert_eq!(self.one.get(page).await.loads(), 0, "{page} isn't shared");
        }
    }

    /// Writes with the one, which is fresh.
    async fn write(&self, method: &str, path: &str, body: Value) -> Value {
        self.one.write(method, path, body).await
    }

    async fn page(&self, page: &str) -> Value {
        self.other.get(page).await.expect(200)
    }
}

/// The object of a list that has this value there.
#[track_caller]
fn find<'a>(list: &'a Value, field: &str, value: &Value) -> &'a Value {
    let all = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let found = all.iter().find(|object| object[field] == *value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {list}"))
}

async fn a_changed_user_is_on_every_page(place: Place) {
    let pair = Pair::start(&place).await;
    let page = pair.one.get("/api/messages?before=300").await;
    let id = page.messages()[0]["sender_id"].clone();
    let user = pair.one.get(&format!("/api/users/{id}")).await.expect(200);
    let stream = pair
        .one
        .get(&format!("/api/users/{id}/subscriptions"))
        .await;
    let stream = stream.expect(200)["subscriptions"][0]["stream_id"].clone();
    let by_id = format!("/api/users/{id}");
    let by_email = format!("/api/users?email={}", user["email"].as_str().unwrap());
    let subscribers = format!("/api/streams/{stream}/subscribers");
    let messages = "/api/messages?before=300";
    for turn in 2..5 {
        let pages = [&by_id, &by_email, &subscribers, messages];
        pair.filled(&pages).await;
        // The last turn changes what few pages show, and its version is on all of them.
        let change = match turn {
            4 => json!({ "is_active": false }),
            _ => json!({ "full_name": format!("Grace {turn}") }),
        };
        let mut written = pair.write("PATCH", &by_id, change).await;
        written.as_object_mut().unwrap().remove("flush");
        assert_eq!(written["version"], turn);

        assert_eq!(pair.page(&by_id).await, written);
        assert_eq!(pair.page(&by_email).await, written);
        let shown = pair.page(&subscribers).await;
        let shown = find(&shown["subscribers"], "id", &id);
        assert_eq!(shown["version"], turn);
        assert_eq!(shown["full_name"], written["full_name"]);
        let shown = pair.page(messages).await;
        let shown = find(&shown["messages"], "sender_id", &id);
        assert_eq!(shown["names"][id.to_string()], written["full_name"]);
        assert_eq!(shown["name_versions"][id.to_string()], turn);
    }
}

async fn swapped_addresses_lead_to_the_other_user(place: Place) {
    let pair = Pair::start(&place).await;
    let one = pair.page("/api/users/7").await;
    let other = pair.page("/api/users/8").await;
    let by = |user: &Value| format!("/api/users?email={}", user["email"].as_str().unwrap());
    let (by_one, by_other) = (by(&one), by(&other));
    for turn in 2..5 {
        pair.filled(&["/api/users/7", "/api/users/8", &by_one, &by_other])
            .await;
        let swapped = pair
            .write("POST", "/api/users/swap-emails", json!({ "users": [7, 8] }))
            .await;
        let users = &swapped["users"];
        assert_eq!((&users[0]["id"], &users[1]["id"]), (&json!(7), &json!(8)));
        assert_eq!(
            (&users[0]["version"], &users[1]["version"]),
            (&json!(turn), &json!(turn))
        );

        assert_eq!(pair.page("/api/users/7").await, users[0]);
        assert_eq!(pair.page("/api/users/8").await, users[1]);
        let (led_to_one, led_to_other) = (pair.page(&by_one).await, pair.page(&by_other).await);
        let (first, second) = if turn % 2 == 0 { (1, 0) } else { (0, 1) };
        assert_eq!(
            (&led_to_one, &led_to_other),
            (&users[first], &users[second])
        );
    }
    for (users, status, words) in [
        (json!([7, 7]), 400, "two users"),
        (json!([7]), 400, "users"),
        (json!([7, 99]), 404, "no user 99"),
    ] {
        let refused = pair
            .one
            .send("POST", "/api/users/swap-emails", json!({ "users": users }));
        refused.await.refused(status, words);
    }
}

async fn a_renamed_stream_is_in_every_readers_list(place: Place) {
    let pair = Pair::start(&place).await;
    let readers = pair.page("/api/streams/1/subscribers").await;
    let readers: Vec<Value> = readers["subscribers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reader| reader["id"].clone())
        .collect();
    assert!(readers.len() > 20, "{}", readers.len());
    let lists: Vec<String> = readers
        .iter()
        .map(|id| format!("/api/users/{id}/subscriptions"))
        .collect();
    let page = "/api/messages?stream=1&before=20";
    let mut pages = vec!["/api/streams", "/api/streams/1", page];
    pages.extend(lists.iter().map(String::as_str));
    for turn in 2..4 {
        pair.filled(&pages).await;
        let name = format!("kitchen {turn}");
        let mut written = pair
            .write("PATCH", "/api/streams/1", json!({ "name": name }))
            .await;
        written.as_object_mut().unwrap().remove("flush");
        assert_eq!(
            (&written["name"], &written["version"]),
            (&json!(name), &json!(turn))
        );

        assert_eq!(pair.page("/api/streams/1").await, written);
        let streams = pair.page("/api/streams").await;
        assert_eq!(*find(&streams["streams"], "id", &json!(1)), written);
        let shown = pair.page(page).await["messages"][0].clone();
        assert_eq!(
            (&shown["stream"], &shown["stream_version"]),
            (&json!(name), &json!(turn))
        );
        for list in &lists {
            let list = pair.page(list).await;
            let shown = find(&list["subscriptions"], "stream_id", &json!(1));
            assert_eq!(
                (&shown["name"], &shown["stream_version"]),
                (&json!(name), &json!(turn))
            );
        }
    }
}

async fn a_moved_topic_is_where_it_was_moved(place: Place) {
    let pair = Pair::start(&place).await;
    let page = "/api/messages?before=300";
    let first = pair.page(page).await["messages"][100].clone();
    let topic = |of: &Value| json!({ "stream_id": of["stream_id"], "subject": of["subject"] });
    let from = topic(&first);
    let all = pair.page(page).await;
    let in_topic = |all: &Value, wanted: &Value| -> Vec<Value> {
        let messages = all["messages"].as_array().unwrap().iter();
        messages
            .filter(|message| topic(message) == *wanted)
            .cloned()
            .collect()
    };
    let before = in_topic(&all, &from);
    assert!(before.len() > 1, "{}", before.len());
    let stream = first["stream_id"].as_i64().unwrap() % 4 + 1;
    let to = json!({ "stream_id": stream, "subject": "elsewhere" });
    let of_stream = format!("/api/messages?stream={stream}&before=300");
    pair.filled(&[page, &of_stream]).await;

    let moved = pair
        .write(
            "POST",
            "/api/messages/move",
            json!({ "from": from, "to": to }),
        )
        .await;
    let moved = moved["messages"].as_array().unwrap();
    let ids = |messages: &[Value]| {
        messages
            .iter()
            .map(|each| each["id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(moved), ids(&before));
    for shown in [pair.page(page).await, pair.page(&of_stream).await] {
        assert_eq!(in_topic(&shown, &from), [] as [Value; 0]);
        let there = in_topic(&shown, &to);
        assert_eq!(ids(&there), ids(moved));
        for (shown, written) in there.iter().zip(moved) {
            assert_eq!(
                (&shown["version"], &json!(2)),
                (&written["version"], &shown["version"])
            );
            let content = find(&json!(before), "id", &shown["id"])["content"].clone();
            assert_eq!(shown["content"], content);
        }
    }

    for (from, to, status, words) in [
        (&from, &to, 404, "no message about"),
        (&to, &to, 400, "the same topic"),
        (
            &to,
            &json!({ "stream_id": 99, "subject": "x" }),
            404,
            "no stream 99",
        ),
        (
            &to,
            &json!({ "stream_id": 1, "subject": "" }),
            400,
            "subject takes",
        ),
        (&to, &json!({ "stream_id": 1 }), 400, "subject"),
    ] {
        let body = json!({ "from": from, "to": to });
        pair.one
            .send("POST", "/api/messages/move", body)
            .await
            .refused(status, words);
    }
}

async fn a_sent_message_is_there(place: Place) {
    let pair = Pair::start(&place).await;
    // Somebody looks for it before it is there: its absence is in the store.
    let next = larder_chat::data::MessageId(301);
    let look = async |chat: &Chat| {
        let found = larder_chat::data::messages::one(&chat.app, next);
        found.await.unwrap().map(|message| message.version)
    };
    assert_eq!(
        (look(&pair.other).await, look(&pair.one).await),
        (None, None)
    );
    let body = json!({ "stream_id": 1, "sender_id": pair.one.active().await, "subject": "tea", "content": "hot" });
    let mut sent = pair.write("POST", "/api/messages", body).await;
    sent.as_object_mut().unwrap().remove("flush");
    assert_eq!(sent["version"], 1);
    assert_eq!(look(&pair.other).await, Some(1));
    assert_eq!(
        pair.page("/api/messages?before=1").await["messages"],
        json!([sent])
    );
}

async fn who_subscribes_is_on_both_pages(place: Place) {
    let pair = Pair::start(&place).await;
    let user = 7;
    let page = format!("/api/users/{user}/subscriptions");
    let subscribed = pair.page(&page).await;
    let streams: Vec<i64> = subscribed["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|each| each["stream_id"].as_i64().unwrap())
        .collect();
    let (new, old) = (
        (1..=4).find(|id| !streams.contains(id)),
        streams.first().copied(),
    );
    // Who has never read a stream, and who has.
    for (stream, first) in [(new, 1), (old, 2)]
        .into_iter()
        .filter_map(|(id, first)| Some((id?, first)))
    {
        let subscribers = format!("/api/streams/{stream}/subscribers");
        let subscription = format!("{subscribers}/{user}");
        for turn in first..first + 4 {
            pair.filled(&[&page, &subscribers]).await;
            let reads = turn % 2 == 1;
            let method = if reads { "PUT" } else { "DELETE" };
            let written = pair.write(method, &subscription, json!({})).await;
            let expected = json!({
                "stream_id": stream, "user_id": user, "is_active": reads, "version": turn, "flush": "fresh",
            });
            assert_eq!(written, expected);
            let lists = (pair.page(&page).await, pair.page(&subscribers).await);
            let of_user = lists.0["subscriptions"]
                .as_array()
                .unwrap()
                .iter()
                .find(|each| each["stream_id"] == stream);
            let of_stream = lists.1["subscribers"]
                .as_array()
                .unwrap()
                .iter()
                .find(|each| each["id"] == user);
            let version = reads.then(|| json!(turn));
            assert_eq!(of_user.map(|each| each["version"].clone()), version);
            assert_eq!(
                of_stream.map(|each| each["subscription_version"].clone()),
                version
            );
        }
    }
    for (path, words) in [
        ("/api/streams/99/subscribers/7", "no stream 99"),
        ("/api/streams/1/subscribers/99", "no user 99"),
    ] {
        pair.one.send("PUT", path, "").await.refused(404, words);
    }
}

async fn reactions_are_on_the_message(place: Place) {
    let pair = Pair::start(&place).await;
    let page = "/api/messages?before=1";
    let before = pair.page(page).await["messages"][0].clone();
    let known = before["reactions"].as_array().unwrap().len();
    let path = format!("/api/messages/{}/reactions", before["id"]);
    let user = pair.one.active().await;
    let reaction = json!({ "user_id": user, "emoji_name": "tea", "emoji_code": "1F375" });
    for turn in 0..2 {
        pair.filled(&[page]).await;
        let added = pair.write("POST", &path, reaction.clone()).await;
        assert_eq!(added["version"], 2 + 2 * turn);
        assert_eq!(added["reactions"][known]["emoji_code"], "1f375");
        let shown = pair.page(page).await["messages"][0].clone();
        assert_eq!(
            (&shown["reactions"], &shown["version"]),
            (&added["reactions"], &added["version"])
        );
        assert!(shown["names"][user.to_string()].is_string(), "{shown}");
        pair.one
            .send("POST", &path, &reaction)
            .await
            .refused(409, "has reacted like that");

        pair.filled(&[page]).await;
        let this = format!("{path}?user_id={user}&emoji_code=1f375");
        let removed = pair.write("DELETE", &this, json!({})).await;
        assert_eq!(removed["version"], 3 + 2 * turn);
        let shown = pair.page(page).await["messages"][0].clone();
        assert_eq!(
            (&shown["reactions"], &shown["version"]),
            (&before["reactions"], &removed["version"])
        );
        pair.one
            .send("DELETE", &this, "")
            .await
            .refused(404, "hasn't reacted like that");
    }
    for (path, body, status, words) in [
        (
            "/api/messages/9999/reactions",
            reaction.clone(),
            404,
            "no message 9999",
        ),
        (
            &path,
            json!({ "user_id": 99, "emoji_name": "tea", "emoji_code": "1f375" }),
            404,
            "no user 99",
        ),
        (
            &path,
            json!({ "user_id": user, "emoji_name": "", "emoji_code": "1f375" }),
            400,
            "emoji_name",
        ),
        (
            &path,
            json!({ "user_id": user, "emoji_name": "tea", "emoji_code": "tea" }),
            400,
            "emoji_code",
        ),
    ] {
        pair.one
            .send("POST", path, body)
            .await
            .refused(status, words);
    }
}

/// Both write the same objects at the same time, and read what they wrote in the other one.
async fn writes_of_both_are_seen_by_both(place: Place) {
    let pair = Pair::start(&place).await;
    let work = async |mine: &Chat, theirs: &Chat| {
        for turn in 0..25 {
            let id = turn % 3 + 1;
            let (name, path) = (format!("Grace {turn}"), format!("/api/users/{id}"));
            let change = json!({ "full_name": name });
            let written = mine.write("PATCH", &path, change).await;
            let read = theirs.get(&path).await.expect(200);
            let version = |of: &Value| of["version"].as_i64().unwrap();
            // Somebody else may have written since.
            assert!(
                version(&read) >= version(&written),
                "{read} after {written}"
            );
            if version(&read) == version(&written) {
                assert_eq!(read["full_name"], name);
            }
        }
    };
    tokio::join!(
        work(&pair.one, &pair.other),
        work(&pair.other, &pair.one),
        work(&pair.one, &pair.one)
    );
    let versions: i64 = {
        let mut sum = 0;
        for id in 1..=3 {
            sum += pair.page(&format!("/api/users/{id}")).await["version"]
                .as_i64()
                .unwrap();
        }
        sum
    };
    assert_eq!(versions, 3 + 3 * 25, "each write counted");
}

async fn what_a_stopped_store_cannot_confirm_is_pending_and_delivered_when_it_is_back(
    place: Place,
) {
    let mut pair = Pair::start_with(&place, "").await;
    let by_id = "/api/users/7";
    let email = pair.page(by_id).await["email"].clone();
    let by_email = format!("/api/users?email={}", email.as_str().unwrap());
    for (turn, kill) in [(2, false), (3, true)] {
        pair.filled(&[by_id, &by_email]).await;
        // A stopped server keeps what it has; a killed one is empty when it comes back.
        match kill {
            true => pair.server.kill(),
            false => pair.server.stop(),
        }
        let name = format!("Grace {turn}");
        let written = pair
            .one
            .send("PATCH", by_id, json!({ "full_name": name }))
            .await;
        assert_eq!(written.flush(), "pending");
        assert_eq!(written.expect(200)["version"], turn);
        for page in [by_id, &by_email] {
            let own = pair.one.get(page).await.expect(200);
            assert_eq!(
                (&own["full_name"], &own["version"]),
                (&json!(name), &json!(turn))
            );
        }
        let waiting = pair.one.get("/stats").await.expect(200);
        assert_eq!(waiting["writes"]["waiting"], 1, "{}", waiting["writes"]);
        assert_eq!(waiting["outbox"]["rows"], 1, "{}", waiting["outbox"]);
        assert!(
            waiting["outbox"]["oldest_s"].as_f64() > Some(0.0),
            "{}",
            waiting["outbox"]
        );

        match kill {
            true => pair.server.restart(),
            false => pair.server.resume(),
        }
        let is_over =
            |stats: &Value| stats["writes"]["waiting"] == 0 && stats["outbox"]["rows"] == 0;
        pair.one.settled(is_over).await;
        for chat in [&pair.other, &pair.one] {
            let read = chat.get(by_id).await.expect(200);
            assert_eq!(
                (&read["full_name"], &read["version"]),
                (&json!(name), &json!(turn))
            );
        }
        // And the store is read again.
        for chat in [&pair.one, &pair.other] {
            chat.settled(|stats| stats["writes"]["held_servers"] == json!([]))
                .await;
            chat.stored(by_id).await;
        }
    }
}
