//! The tutorial of the test kit and these tests are one: what the page quotes stands here, and what it says that failures
//! print is what they print.

use std::panic::{AssertUnwindSafe, catch_unwind};

use larder::Transactional as _;
use larder::testing::{assert_flushes_complete, captured};
use larder_chat::data::{Stream, StreamField, UserId, users};
use larder_chat::db::{Db, Sql};

use crate::support::Place;

const PAGE: &str = include_str!("../../../../docs/testing.md");
const TESTS: [&str; 2] = [include_str!("support.rs"), include_str!("caching.rs")];

const SMALL: [&str; 6] = ["--messages", "20", "--users", "20", "--streams", "4"];

/// The tutorial's blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let (_, tutorial) = PAGE
        .split_once("\n## On the chat service\n")
        .expect("a tutorial");
    let begin = format!("\n```{language}\n");
    let blocks = tutorial.split(&*begin).skip(1);
    let ended = |block: &'static str| block.split_once("\n```\n").expect("a block ends").0;
    blocks.map(ended).collect()
}

#[test]
fn what_the_tutorial_quotes_stands_in_these_tests() {
    let quoted = blocks("rust,ignore");
    assert!(quoted.len() > 9, "{}", quoted.len());
    for block in quoted {
        let lines = format!("\n{block}\n");
        let is_here = TESTS.iter().any(|file| file.contains(&lines));
        assert!(
            is_here,
            "docs/testing.md quotes what isn't in these tests:\n{lines}"
        );
    }
}

#[tokio::test]
async fn a_count_that_is_wrong_prints_what_the_tutorial_shows() {
    let place = Place::new();
    let chat = place.chat(&SMALL).await;
    let ids = (1..=3).map(UserId);
    users(&chat.app, ids.clone()).await.unwrap();
    let ((), captured) = captured(async {
        for id in ids {
            users::one(&chat.app, id).await.unwrap();
        }
    })
    .await;
    let failing = AssertUnwindSafe(|| captured.assert_trips(1));
    let failed = catch_unwind(failing).expect_err("there are three");
    let printed = failed.downcast::<String>().unwrap();
    assert_eq!(printed.trim_end(), blocks("text")[0]);
    assert!(printed.lines().all(|line| line.chars().count() <= 80));
}

#[tokio::test]
async fn a_flush_that_is_missing_prints_what_the_tutorial_shows() {
    let place = Place::new();
    let chat = place.chat(&SMALL).await;
    let findings = assert_flushes_complete::<Stream>(&chat.cache)
        .reads(async || chat.read(["/api/streams/2"]).await)
        .field(StreamField::Name, async || {
            let mut tx = chat.app.db().begin().await.unwrap();
            let past_the_guard = Sql::same("UPDATE streams SET name = 'kitchen' WHERE id = 2");
            tx.query(past_the_guard).execute().await.unwrap();
            Db::commit(tx).await.unwrap();
        })
        .findings()
        .await;
    let printed = findings.iter().map(ToString::to_string);
    let stale = printed.filter(|finding| finding.contains("stale"));
    assert_eq!(stale.collect::<String>().trim_end(), blocks("text")[1]);
}
