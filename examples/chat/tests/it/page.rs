//! The page, and how the chat says it is.

use larder::Request;
use larder_chat::data::{UserId, display_names, script_map};
use larder_chat::release::{SCRIPT_MAP, SCRIPT_NAME};

use crate::support::Place;

const SMALL: [&str; 4] = ["--messages", "50", "--users", "9"];

#[tokio::test]
async fn the_page_brings_everything_it_needs() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let page = chat.get("/").await;
    assert_eq!(page.status, 200);
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("default-src 'none'")
    );
    for file in ["style.css", SCRIPT_NAME] {
        assert!(
            page.text.contains(&format!("\"{file}\"")),
            "the page doesn't name {file}"
        );
        let file = chat.get(&format!("/{file}")).await;
        assert_eq!(file.status, 200);
        assert!(
            !file.text.contains("https://"),
            "nothing comes from elsewhere"
        );
        // People's texts never become markup.
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!file.text.contains(sink), "{sink}");
        }
    }
}

#[tokio::test]
async fn stats_count_what_requests_did() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    chat.get("/api/messages?before=40").await.expect(200);
    chat.get("/api/messages?before=40").await.expect(200);
    let stats = chat.get("/stats").await;
    let messages = stats.accessor("message");
    assert_eq!(
        (&messages["hits"], &messages["misses"], &messages["loads"]),
        (&40.into(), &40.into(), &1.into())
    );
    let stats = stats.expect(200);
    assert_eq!(stats["servers"][0]["up"], true);
    assert!(
        stats["store"].as_str().unwrap().starts_with("memory"),
        "{stats}"
    );
}

#[tokio::test]
async fn stats_show_both_tiers_of_the_process_and_their_budget() {
    let place = Place::new();
    let chat = place
        .start_in(&[("LARDER_TIERS_BUDGET", "32MiB")], &SMALL)
        .await
        .unwrap();
    let tiers = chat.get("/stats").await.expect(200)["tiers"].clone();
    assert_eq!(tiers["budget"], 32 << 20);
    for tier in ["request", "deploy"] {
        for number in ["entries", "bytes", "hits", "misses"] {
            assert_eq!(tiers[tier][number], 0, "{number} of {tier} in {tiers}");
        }
    }
    // A request under way keeps what it has read.
    let request = Request::begin(chat.app.cache());
    let some = [1, 2, 3].map(UserId);
    display_names(&request, some).await.unwrap();
    display_names::one(&request, some[1]).await.unwrap();
    script_map(&chat.app).await.unwrap();
    let tiers = chat.get("/stats").await.expect(200)["tiers"].clone();
    let numbers =
        |tier: &str| ["entries", "hits", "misses"].map(|name| tiers[tier][name].as_u64().unwrap());
    assert_eq!(numbers("request"), [3, 1, 3]);
    assert_eq!(numbers("deploy"), [1, 0, 1]);
    assert!(tiers["request"]["bytes"].as_u64() > Some(100), "{tiers}");
    assert!(
        tiers["deploy"]["bytes"].as_u64() > Some(SCRIPT_MAP.len() as u64),
        "{tiers}"
    );
}

#[tokio::test]
async fn stats_show_generations_and_what_waits_to_be_flushed() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    for turn in 0..3 {
        let change = serde_json::json!({ "full_name": format!("Grace {turn}") });
        chat.send("PATCH", "/api/users/7", change).await.expect(200);
    }
    // Delivered rows of the outbox are deleted together, a moment later.
    chat.settled(|stats| stats["outbox"]["rows"] == 0).await;
    let stats = chat.get("/stats").await.expect(200);
    assert_eq!(stats["outbox"]["oldest_s"], serde_json::Value::Null);
    let generations = stats["generations"].as_array().unwrap();
    assert_eq!(generations.len(), 1, "{generations:?}");
    assert_eq!(generations[0]["is_own"], true);
    assert!(
        generations[0]["left_s"].as_u64() > Some(0),
        "{generations:?}"
    );
    assert_eq!(stats["uncached"], serde_json::json!({}));
    let writes = &stats["writes"];
    for (number, expected) in [
        ("commits", 3),
        ("fresh", 3),
        ("pending", 0),
        ("waiting", 0),
        ("held_keys", 0),
        ("refused", 0),
        ("dropped", 0),
    ] {
        assert_eq!(writes[number], expected, "{number} of {writes}");
    }
}

#[tokio::test]
async fn health_is_the_databases() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    assert_eq!(chat.get("/healthz").await.expect(200)["status"], "ok");
}
