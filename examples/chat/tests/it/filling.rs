//! First starts, and later ones.

use larder_chat::db::{Db, Location};
use larder_chat::dictionary::Dictionaries;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use larder_harness::server::{Listen, MemcachedServer};

use crate::support::{Place, on_each_database};

const SMALL: [&str; 6] = ["--messages", "400", "--users", "30", "--streams", "4"];

on_each_database! {
    what_was_generated_stays;
    the_dictionary_outlives_the_process;
    an_empty_history_is_served;
    two_chats_with_the_memory_store_refuse_to_share_a_database;
    chats_that_start_together_fill_a_database_once;
}

async fn what_was_generated_stays(place: Place) {
    let chat = place.start(&SMALL).await.unwrap();
    let page = chat.get("/api/messages").await.json;
    chat.stop().await;
    // With the same command line, and with one that says nothing about messages.
    for args in [&SMALL[..], &[]] {
        let chat = place.start(args).await.unwrap();
        assert_eq!(chat.get("/api/messages").await.json, page);
        chat.stop().await;
    }
    let error = place
        .start(&["--messages", "500"])
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("already filled (generated, 400 messages, 30 users"),
        "{error}"
    );
}

#[tokio::test]
async fn equal_plans_give_equal_databases() {
    let (one, other) = (Place::new(), Place::new());
    let (one, other) = (
        one.start(&SMALL).await.unwrap(),
        other.start(&SMALL).await.unwrap(),
    );
    for path in [
        "/api/messages?before=400",
        "/api/streams",
        "/api/streams/2/subscribers",
    ] {
        assert_eq!(
            one.get(path).await.expect(200),
            other.get(path).await.expect(200)
        );
    }
}

async fn the_dictionary_outlives_the_process(place: Place) {
    let ids = async || {
        let db = Db::open(&place.options(&[]).db).await.unwrap();
        let dictionaries = Dictionaries::read(&db).await.unwrap();
        let older: Vec<u32> = dictionaries.older.iter().map(|older| older.id()).collect();
        db.close().await;
        (dictionaries.current.map(|current| current.id()), older)
    };
    place.start(&SMALL).await.unwrap().stop().await;
    let trained = ids().await;
    assert!(trained.0.is_some());
    place.start(&SMALL).await.unwrap().stop().await;
    assert_eq!(ids().await, trained);
}

/// A file that the chat's first version made: reactions were lists in their messages, and nothing had a version.
#[tokio::test]
async fn a_database_of_the_first_version_is_brought_up_to_date() {
    let place = Place::new();
    let file = SqliteConnectOptions::new()
        .filename(place.path().join("chat.db"))
        .create_if_missing(true);
    let mut former = file.connect().await.unwrap();
    let rows = r#"
        INSERT INTO users (id, full_name, email) VALUES (1, 'Ada', 'ada@example.com'), (2, 'Grace', 'grace@example.com');
        INSERT INTO streams VALUES (3, 'kitchen', 'tea');
        INSERT INTO subscriptions VALUES (3, 1);
        INSERT INTO messages (id, stream_id, sender_id, subject, content, rendered_content, client, timestamp, reactions)
        VALUES (10, 3, 1, 'tea', 'hot', '<p>hot</p>', 'api', 7, '[
            {"emoji_name": "tea", "emoji_code": "1f375", "reaction_type": "unicode_emoji", "user_id": 2},
            {"emoji_name": "plus", "emoji_code": "2795", "reaction_type": "unicode_emoji", "user_id": 9},
            {"emoji_name": "tea", "emoji_code": "1f375", "reaction_type": "unicode_emoji", "user_id": 2}]');
        INSERT INTO filling (origin, at) VALUES ('by hand', 7);
        PRAGMA user_version = 1;
    "#;
    for statements in [include_str!("../../src/db/sqlite/1.sql"), rows] {
        sqlx::raw_sql(statements)
            .execute(&mut former)
            .await
            .unwrap();
    }
    former.close().await.unwrap();

    let chat = place.start(&[]).await.unwrap();
    let message = chat.get("/api/messages").await.messages()[0].clone();
    assert_eq!(
        (&message["id"], &message["version"]),
        (&json!(10), &json!(1))
    );
    let reaction = |user: i64, name: &str, code: &str| {
        json!({
            "message_id": 10, "user_id": user, "emoji_name": name, "emoji_code": code,
            "reaction_type": "unicode_emoji", "version": 1,
        })
    };
    let expected = json!([reaction(2, "tea", "1f375"), reaction(9, "plus", "2795")]);
    assert_eq!(message["reactions"], expected);
    let page = chat.get("/api/users/1/subscriptions").await.expect(200);
    let expected =
        json!([{ "stream_id": 3, "name": "kitchen", "stream_version": 1, "version": 1 }]);
    assert_eq!(page["subscriptions"], expected);
}

fn line(id: i64, sender: i64, email: &str) -> Value {
    json!({
        "id": id, "sender_id": sender, "sender_full_name": format!("User {sender}"), "sender_email": email,
        "content": "a < b", "rendered_content": "<p>a &lt; b</p>", "recipient_type_id": 142, "timestamp": 1_690_000_041,
        "client": "website", "subject": "tea", "last_edit_timestamp": null, "edit_history": null, "is_me_message": false,
        "display_recipient": "kitchen", "type": "stream", "stream_id": 142, "flags": ["read"],
        "reactions": [{ "emoji_name": "plus", "emoji_code": "2795", "reaction_type": "unicode_emoji", "user_id": 9,
                        "user": { "full_name": "somebody" } }],
    })
}

fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn messages_are_imported_from_json_lines() {
    let mut edited = line(30, 2, "b@example.com");
    edited["last_edit_timestamp"] = json!(1_690_000_099);
    edited["edit_history"] = json!([{ "user_id": 2, "timestamp": 1_690_000_099, "prev_content": "a",
        "prev_rendered_content": "<p>a</p>", "prev_topic": null, "topic": null }]);
    let text = lines(&[
        line(10, 1, "a@example.com"),
        line(20, 3, "A@example.com"),
        edited,
    ]) + "\n";
    for (name, bytes) in [
        ("m.jsonl", text.clone().into_bytes()),
        ("m.jsonl.zst", zstd::encode_all(text.as_bytes(), 3).unwrap()),
    ] {
        // Each once, on a database each.
        let place = match name {
            "m.jsonl" => Place::new(),
            _ => Place::on_postgres(),
        };
        let file = place.file(name, bytes);
        let import = ["--import", file.to_str().unwrap()];
        let chat = place.start(&import).await.unwrap();
        let page = chat.get("/api/messages").await;
        assert_eq!(page.ids(), [10, 20, 30]);
        let first = &page.messages()[0];
        assert_eq!(
            (&first["stream"], &first["sender_full_name"]),
            (&json!("kitchen"), &json!("User 1"))
        );
        assert_eq!(first["reactions"][0]["user_id"], 9);
        assert!(
            !page.text.contains("somebody"),
            "names are hydrated, never stored with a message"
        );
        assert_eq!(page.messages()[2]["edit_history"][0]["prev_content"], "a");
        // Two users with one address: the second one's mailbox gets the user's id.
        let third = chat.get("/api/users/3").await.expect(200);
        assert_eq!(third["email"], "a+3@example.com");
        let readers = chat.get("/api/streams/142/subscribers").await.expect(200);
        assert_eq!(readers["subscribers"].as_array().unwrap().len(), 3);
        // The same command line again finds it done.
        chat.stop().await;
        place.start(&import).await.unwrap().stop().await;
    }
}

#[tokio::test]
async fn a_bad_line_is_named_and_nothing_is_imported() {
    let good = line(10, 1, "a@example.com").to_string();
    for (second, words) in [
        ("{".to_owned(), "line 2: EOF"),
        ("[]".to_owned(), "line 2: "),
        ("{\"id\": 7}".to_owned(), "line 2: missing field"),
        (
            line(10, 1, "a@example.com").to_string(),
            "line 2: a second message with the id 10",
        ),
        (
            line(11, 2, "nobody").to_string(),
            "line 2: sender_email: not an e-mail address",
        ),
    ] {
        let place = Place::new();
        let file = place.file("m.jsonl", format!("{good}\n{second}\n"));
        let import = ["--import", file.to_str().unwrap()];
        let error = place.start(&import).await.err().unwrap().to_string();
        assert!(error.contains(words), "`{error}` doesn't say `{words}`");
        // The database is as empty as before: the next start fills it.
        place.file("m.jsonl", format!("{good}\n"));
        let chat = place.start(&import).await.unwrap();
        assert_eq!(chat.get("/api/messages").await.ids(), [10]);
    }
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named() {
    let place = Place::new();
    let error = place
        .start(&["--import", "/nowhere/m.jsonl"])
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("/nowhere/m.jsonl: can't import: No such file"),
        "{error}"
    );
    let file = place.file("m.jsonl.zst", "not compressed");
    let error = place
        .start(&["--import", file.to_str().unwrap()])
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("m.jsonl.zst line 1: Unknown frame descriptor"),
        "{error}"
    );
    let directory = Location::Sqlite(place.path().to_owned());
    let error = Db::open(&directory).await.unwrap_err().to_string();
    assert!(error.contains("can't open the database"), "{error}");
}

async fn an_empty_history_is_served(place: Place) {
    let chat = place.start(&["--messages", "0"]).await.unwrap();
    assert!(chat.get("/api/messages").await.messages().is_empty());
}

async fn two_chats_with_the_memory_store_refuse_to_share_a_database(place: Place) {
    let first = place.start(&SMALL).await.unwrap();
    let error = place.start(&SMALL).await.err().unwrap().to_string();
    assert!(
        error.contains("a store in a process isn't shared"),
        "{error}"
    );
    first.stop().await;
    place.start(&SMALL).await.unwrap();
}

async fn chats_that_start_together_fill_a_database_once(place: Place) {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let url = format!("memcached://{}", server.address());
    let args: Vec<&str> = SMALL.into_iter().chain(["--cache", &url]).collect();
    let (one, other) = tokio::join!(place.start(&args), place.start(&args));
    let (one, other) = (one.unwrap(), other.unwrap());
    let page = "/api/messages?before=5000";
    let ids = one.get(page).await.ids();
    assert_eq!(ids, (1..=400).collect::<Vec<_>>());
    assert_eq!(other.get(page).await.ids(), ids);
}
