//! A real memcached behind the chat: shared, killed, stopped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder::Request;
use larder::Transactional as _;
use larder::testing::{assert_trips, captured};
use larder_chat::data::{UserId, display_names};
use larder_chat::db::{Db, Sql};
use larder_chat::dictionary::Dictionaries;
use larder_harness::server::{Listen, MemcachedServer};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Chat, Place};

const SMALL: [&str; 6] = ["--messages", "1200", "--users", "60", "--streams", "6"];

/// A store that is given all the time it wants: counts don't depend on how busy the machine is.
fn patient(server: &MemcachedServer) -> String {
    format!(
        "memcached://{}?timeout=10s&connect_timeout=10s&stall=10s",
        server.address()
    )
}

/// A chat here with this server as its store.
async fn start(place: &Place, server: &MemcachedServer) -> Chat {
    let url = patient(server);
    let args: Vec<&str> = SMALL.into_iter().chain(["--cache", &url]).collect();
    place.start(&args).await.expect("a chat")
}

#[tokio::test]
async fn a_page_costs_a_read_and_a_fill_per_accessor_on_any_socket() {
    for listen in [Listen::Tcp, Listen::Unix] {
        let (place, server) = (Place::new(), MemcachedServer::start(listen, &[]));
        let chat = start(&place, &server).await;
        let page = "/api/messages?before=1000";
        let cold = assert_trips!(6, chat.get(page));
        let (warm, captured) = captured(chat.get(page)).await;
        captured.assert_trips(3);
        captured.assert_loads(0);
        assert_eq!(warm.json, cold.json);
    }
}

#[tokio::test]
async fn chats_that_share_a_store_see_each_others_writes() {
    let (place, server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let (one, other) = (start(&place, &server).await, start(&place, &server).await);
    let page = "/api/messages?before=100";
    let seen = other.get(page).await;
    // What one chat filled, the other reads.
    assert_eq!(one.get(page).await.loads(), 0);

    // A request of the other that is under way keeps the name that it has read; its next one has the new name.
    let sender = UserId(seen.messages()[0]["sender_id"].as_i64().unwrap());
    let request = Request::begin(other.app.cache());
    let name = async || display_names::one(&request, sender).await.unwrap();
    let before = name().await;
    let change = json!({ "full_name": "Grace" });
    let user = format!("/api/users/{sender}");
    one.send("PATCH", &user, change).await.expect(200);
    assert_eq!(name().await, before);
    let after = other.get(page).await.messages()[0].clone();
    assert_eq!(after["sender_full_name"], "Grace");
    assert_eq!(after["names"][sender.to_string()], "Grace");

    let error = place
        .start(&SMALL)
        .await
        .err()
        .expect("the memory store can't join")
        .to_string();
    assert!(
        error.contains("a store in a process isn't shared"),
        "{error}"
    );
}

#[tokio::test]
async fn stats_show_a_generation_for_each_store_and_whose_it_is() {
    let place = Place::new();
    let servers = [(); 2].map(|()| MemcachedServer::start(Listen::Tcp, &[]));
    let (one, other) = (
        start(&place, &servers[0]).await,
        start(&place, &servers[0]).await,
    );
    let apart = start(&place, &servers[1]).await;
    let generations = async |chat: &Chat| {
        // The register is read anew every second or two.
        let is_both = |stats: &Value| stats["generations"].as_array().map_or(0, Vec::len) == 2;
        chat.settled(is_both).await;
        let stats = chat.get("/stats").await.expect(200);
        let generations = stats["generations"].as_array().unwrap();
        let mut ids: Vec<Value> = generations.iter().map(|each| each["id"].clone()).collect();
        ids.sort_by_key(Value::to_string);
        let own = generations.iter().filter(|each| each["is_own"] == true);
        let own: Vec<Value> = own.map(|each| json!([each["id"], each["pool"]])).collect();
        assert_eq!(own.len(), 1, "{generations:?}");
        (ids, own)
    };
    let (shared, own) = generations(&one).await;
    assert_eq!(generations(&other).await, (shared.clone(), own.clone()));
    let (all, theirs) = generations(&apart).await;
    assert_eq!(all, shared);
    assert_ne!(theirs, own);

    // A write flushes both stores.
    let user = "/api/users/7";
    one.stored(user).await;
    apart.stored(user).await;
    let changed = one
        .send("PATCH", user, json!({ "full_name": "Grace" }))
        .await;
    assert_eq!(changed.flush(), "fresh");
    assert_eq!(apart.get(user).await.expect(200)["full_name"], "Grace");
}

#[tokio::test]
async fn a_chat_with_the_memory_store_is_joined_by_nobody() {
    let (place, server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let _first = place.start(&SMALL).await.unwrap();
    let url = patient(&server);
    let error = place
        .start(&["--cache", &url])
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("a store in a process isn't shared"),
        "{error}"
    );
}

#[tokio::test]
async fn entries_of_an_older_dictionary_stay_readable() {
    let (place, server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let page = "/api/messages?before=300";
    let chat = start(&place, &server).await;
    let before = chat.get(page).await;
    chat.stop().await;

    let db = Db::open(&place.options(&[]).db).await.unwrap();
    let mut tx = db.begin().await.unwrap();
    for short in [
        Sql::same("DELETE FROM reactions WHERE message_id <= 600"),
        Sql::same("DELETE FROM messages WHERE id <= 600"),
    ] {
        tx.query(short).execute().await.unwrap();
    }
    larder_chat::dictionary::train(&mut tx).await.unwrap();
    Db::commit(tx).await.unwrap();
    let dictionaries = Dictionaries::read(&db).await.unwrap();
    assert_eq!(
        (dictionaries.current.is_some(), dictionaries.older.len()),
        (true, 1)
    );
    db.close().await;

    let chat = start(&place, &server).await;
    let after = chat.get(page).await;
    assert_eq!(after.loads(), 0);
    assert_eq!(after.json, before.json);
}

#[tokio::test]
async fn a_deleted_database_leaves_nothing_in_the_store() {
    let (place, server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let chat = start(&place, &server).await;
    let text = |chat: Chat| async move {
        let message = chat.get("/api/messages?before=1").await.messages()[0].clone();
        chat.stop().await;
        message["content"].clone()
    };
    let before = text(chat).await;
    for file in ["chat.db", "chat.db-wal", "chat.db-shm"] {
        let _ = std::fs::remove_file(place.path().join(file));
    }
    let url = patient(&server);
    let other = ["--messages", "1200", "--seed", "2", "--cache", &url];
    assert_ne!(text(place.start(&other).await.unwrap()).await, before);
}

/// Requests of every kind, by several clients at once; the count tells who waits how many were answered.
async fn traffic(chat: &Chat, requests: usize, answered: &AtomicUsize, progress: &Notify) {
    const CLIENTS: usize = 8;
    let client = async |first: usize| {
        for turn in (first..requests).step_by(CLIENTS) {
            let user = turn % 60 + 1;
            let answer = match turn % 7 {
                0 => chat.get("/api/messages?before=200").await,
                1 => {
                    chat.get(&format!("/api/messages?anchor={turn}&before=50&stream=1"))
                        .await
                }
                2 => chat.get(&format!("/api/users/{user}")).await,
                3 => chat.get("/api/users?email=nobody@example.com").await,
                4 => chat.get("/api/streams/2/subscribers").await,
                5 => {
                    let change = json!({ "full_name": format!("User {turn}"), "is_active": true });
                    let changed = chat
                        .send("PATCH", &format!("/api/users/{user}"), change)
                        .await;
                    assert!(
                        ["fresh", "pending"].contains(&changed.flush()),
                        "{changed:?}"
                    );
                    changed
                }
                _ => {
                    let body = json!({ "stream_id": 1, "sender_id": 1, "subject": "tea", "content": "hot" });
                    chat.send("POST", "/api/messages", body).await
                }
            };
            // 404 is the answer for nobody, and 400 for a user who may not send.
            assert!(answer.status.as_u16() < 500, "{answer:?}");
            answered.fetch_add(1, Ordering::Relaxed);
            progress.notify_one();
        }
    };
    let clients = [0, 1, 2, 3, 4, 5, 6, 7].map(client);
    let [a, b, c, d, e, f, g, h] = clients;
    tokio::join!(a, b, c, d, e, f, g, h);
}

/// Does something to the server while requests are under way.
async fn amid_traffic(chat: &Chat, trouble: impl FnOnce()) {
    let (answered, progress) = (AtomicUsize::new(0), Notify::new());
    let meddle = async {
        while answered.load(Ordering::Relaxed) < 60 {
            progress.notified().await;
        }
        trouble();
    };
    tokio::join!(traffic(chat, 240, &answered, &progress), meddle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_and_hanging_the_store_fails_no_request() {
    let (place, mut server) = (Place::new(), MemcachedServer::start(Listen::Tcp, &[]));
    let url = format!("memcached://{}", server.address());
    let chat = place
        .start(&["--messages", "1200", "--users", "60", "--cache", &url])
        .await
        .unwrap();
    amid_traffic(&chat, || server.kill()).await;
    amid_traffic(&chat, || server.restart()).await;
    amid_traffic(&chat, || server.stop()).await;

    // Only requests that were under way waited for the server: those that come now go past it.
    let begin = Instant::now();
    for _ in 0..100 {
        chat.get("/api/users/7").await.expect(200);
    }
    let took = begin.elapsed();
    assert!(
        took < Duration::from_secs(3),
        "100 requests past a hanging store took {took:?}"
    );

    let change = json!({ "full_name": "Grace" });
    let changed = chat.send("PATCH", "/api/users/7", change).await;
    assert_eq!(changed.flush(), "pending");
    changed.expect(200);
    let stats = chat.get("/stats").await.expect(200);
    assert_eq!(stats["servers"][0]["up"], false);
    let health = &stats["backend"]["servers"][0];
    assert_eq!(health["state"], "down");
    for counted in ["times_down", "bytes_in", "bytes_out"] {
        assert!(health[counted].as_u64() > Some(0), "{counted}: {health}");
    }
    let error = health["last_error"].as_str().unwrap();
    assert!(error.contains(&server.address()), "{error}");
    chat.get("/healthz").await.expect(200);

    server.resume();
    amid_traffic(&chat, || server.restart()).await;
    // Once the server is there again, pages come from it.
    chat.stored("/api/messages?before=200").await;
    let stats = chat.get("/stats").await.expect(200);
    let health = &stats["backend"]["servers"][0];
    assert_eq!(health["state"], "up");
    assert!(health["reconnects"].as_u64() > Some(0), "{health}");
}
