//! Errors of the page, and where in its sources they were.

use larder_chat::release::{SCRIPT, SCRIPT_NAME};
use serde_json::{Value, json};

use crate::support::{Answer, Chat, Place};

const SMALL: [&str; 4] = ["--messages", "50", "--users", "9"];

const SOURCE: &str = include_str!("../../src/page/app.js");

/// A line and column, both from 1 on, of the first such text.
#[track_caller]
fn find(text: &str, wanted: &str) -> (usize, usize) {
    let (before, _) = text.split_once(wanted).expect("it is there");
    let line = before.rsplit('\n').next().unwrap();
    (
        before.matches('\n').count() + 1,
        line.encode_utf16().count() + 1,
    )
}

/// The short name of the function whose parameters these are.
fn short(parameters: &str) -> &'static str {
    let (before, _) = SCRIPT.split_once(parameters).expect("it is there");
    before.rsplit(' ').next().unwrap()
}

async fn report(chat: &Chat, stack: &str) -> Answer {
    chat.send("POST", "/api/client-errors", json!({ "stack": stack }))
        .await
}

/// What the map cost the answer, in milliseconds.
#[track_caller]
fn map_cost(answer: &Answer) -> f64 {
    let timing = answer.headers["server-timing"].to_str().unwrap();
    let (_, map) = timing.split_once("map;dur=").expect("the map's cost");
    map.parse().expect("a number")
}

#[tokio::test]
async fn frames_of_all_browsers_lead_to_the_sources() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let ask = short("(path,options)");
    assert!(ask.len() < 3, "{ask} isn't short");
    let (line, column) = find(SCRIPT, "throw new Error(body");
    let (source_line, source_column) = find(SOURCE, "throw new Error(body");
    let at = format!("http://127.0.0.1:8080/{SCRIPT_NAME}:{line}:{column}");
    for (frame, function) in [
        (format!("at {ask} ({at})"), "ask"),
        (format!("at async {ask} ({at})"), "async ask"),
        (format!("at {at}"), ""),
        (
            format!("at HTMLButtonElement.<anonymous> ({at})"),
            "HTMLButtonElement.<anonymous>",
        ),
        (format!("{ask}@{at}"), "ask"),
        (format!("async*{ask}@{at}"), "async*ask"),
        (format!("{ask}/<@{at}"), "ask/<"),
        (format!("@{at}"), ""),
    ] {
        let answer = report(&chat, &format!("\n    {frame}\n")).await.expect(200);
        let expected = json!({
            "raw": frame,
            "function": function,
            "source": "page/app.js",
            "line": source_line,
            "column": source_column,
            "code": "if (!response.ok) throw new Error(body.error ?? response.statusText);",
        });
        assert_eq!(answer["frames"], json!([expected]));
    }
}

#[tokio::test]
async fn frames_of_others_are_passed_through() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let ours = format!("at go (https://chat.example/{SCRIPT_NAME}:1:1)");
    let others = [
        "at Array.map (<anonymous>)".to_owned(),
        "at eval (eval at go (http://h/app.js:1:2), <anonymous>:1:1)".to_owned(),
        "at other (https://cdn.example/other.js:1:1)".to_owned(),
        // The page of another release.
        "at go (http://127.0.0.1:8080/app-0000000000000000.js:1:1)".to_owned(),
        format!("at outside (http://127.0.0.1:8080/{SCRIPT_NAME}:99999:1)"),
        format!("at outside (http://127.0.0.1:8080/{SCRIPT_NAME}:0:0)"),
        format!("at go (http://127.0.0.1:8080/{SCRIPT_NAME}/:1:1)"),
        "Caused by: <script>alert(1)</script>".to_owned(),
    ];
    let stack = format!(
        "TypeError: <b>no</b>\nfor {{}}\n{ours}\n{}",
        others.join("\n")
    );
    let answer = report(&chat, &stack).await;
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    let answer = answer.expect(200);
    assert_eq!(answer["message"], "TypeError: <b>no</b>\nfor {}");
    let frames = answer["frames"].as_array().unwrap();
    assert_eq!(frames[0]["source"], "page/app.js");
    let passed: Vec<Value> = others.iter().map(|raw| json!({ "raw": raw })).collect();
    assert_eq!(frames[1..], passed);
}

#[tokio::test]
async fn the_map_is_parsed_for_the_first_report_and_never_again() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let stack = format!("at go (http://127.0.0.1:8080/{SCRIPT_NAME}:1:1)");
    let first = report(&chat, &stack).await;
    let second = report(&chat, &stack).await;
    assert_eq!(first.json, second.json);
    // Parsing takes some hundred times as long as looking it up; no clock is that far off.
    let (first, second) = (map_cost(&first), map_cost(&second));
    assert!(first > second, "{first} ms, and then {second} ms");
    let map = chat.get("/stats").await.accessor("script_map");
    assert_eq!(
        (&map["loads"], &map["tier_misses"], &map["tier_hits"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(map["trips"], 0, "it is never stored");
}

#[tokio::test]
async fn reports_that_come_together_parse_the_map_once() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let stack = format!("at go (http://127.0.0.1:8080/{SCRIPT_NAME}:1:1)");
    let report = || async { report(&chat, &stack).await.expect(200) };
    let (a, b, c, d) = tokio::join!(report(), report(), report(), report());
    assert!(a == b && b == c && c == d);
    assert_eq!(chat.get("/stats").await.accessor("script_map")["loads"], 1);
}

#[tokio::test]
async fn a_warm_chat_has_parsed_the_map_before_anybody_reports() {
    let place = Place::new();
    let options: Vec<&str> = SMALL.into_iter().chain(["--warm"]).collect();
    let chat = place.start(&options).await.unwrap();
    chat.settled(|stats| stats["tiers"]["deploy"]["entries"] == 1)
        .await;
    let stack = format!("at go (http://127.0.0.1:8080/{SCRIPT_NAME}:1:1)");
    report(&chat, &stack).await.expect(200);
    let map = chat.get("/stats").await.accessor("script_map");
    assert_eq!((&map["loads"], &map["tier_hits"]), (&json!(1), &json!(1)));
}

#[tokio::test]
async fn bad_reports_are_refused_with_a_reason() {
    let place = Place::new();
    let chat = place.start(&SMALL).await.unwrap();
    let frame = "at go (http://h/a.js:1:1)\n";
    for (stack, words) in [
        (String::new(), "no frame"),
        ("TypeError: write to ada@example.com".to_owned(), "no frame"),
        (frame.repeat(201), "it has 201"),
        (
            format!("{}\n{frame}", "x".repeat(1001)),
            "at most 1000 bytes",
        ),
        ("x".repeat(100 << 10), "length limit"),
    ] {
        report(&chat, &stack).await.refused(400, words);
    }
    report(&chat, &frame.repeat(200)).await.expect(200);
    for (body, words) in [
        ("{", "JSON"),
        ("[]", "JSON"),
        ("{}", "stack"),
        (r#"{"stack":7}"#, "stack"),
        (r#"{"stack":"","user":7}"#, "user"),
    ] {
        let answer = chat.send("POST", "/api/client-errors", body).await;
        answer.refused(400, words);
    }
    chat.get("/api/client-errors").await.refused(405, "GET");
}
