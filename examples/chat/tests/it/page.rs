//! The page, and how the chat says it is.

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
    for file in ["style.css", "app.js"] {
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
    let stats = chat.get("/stats").await.expect(200);
    let messages = stats["accessors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|accessor| accessor["name"] == "message")
        .expect("messages are counted");
    assert_eq!(
        (&messages["hits"], &messages["misses"], &messages["loads"]),
        (&40.into(), &40.into(), &1.into())
    );
    assert_eq!(stats["servers"][0]["up"], true);
    assert!(
        stats["store"].as_str().unwrap().starts_with("memory"),
        "{stats}"
    );
}

#[tokio::test]
async fn health_is_the_databases() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    assert_eq!(chat.get("/healthz").await.expect(200)["status"], "ok");
}
