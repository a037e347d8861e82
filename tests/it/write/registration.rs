//! Processes that sleep, or lose the database, past the end of their registration.

use std::time::Duration;

use larder_core::{CacheBuilder, Change, CommitError, LoadError, Mechanism, get};
use tracing::Level;

use super::log::Log;
use super::office::{ON, Office, User, UserById, Without, ada, fresh, pending, quiet, shows};
use super::versions::{Card, CardWithName, text};
use crate::read::gate::Gate;
use crate::read::shelf::{HOUR, memory};

/// Longer than a registration.
const OVER: Duration = Duration::from_secs(70);

/// A process that was stopped, or cut off from the database but not from the store, while others went on.
#[tokio::test(start_paused = true)]
async fn a_reader_past_its_registration_reads_past_the_store() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let reader = office.version("1").await;
        reader.name().await;
        reader.line.cut(true);
        tokio::time::sleep(OVER).await;
        let writer = office.version("2").await;
        fresh(writer.rename("Grace").await);
        reader.line.cut(false);
        reader.name().await
    }
    shows(
        Mechanism::Registration,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// It was asleep between its question and the answer.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_registration_is_not_used() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let gate = office.gate();
        let reader = office.on(&gate).version("1").await;
        reader.name().await;
        gate.answered_gets().close();
        let reading = tokio::spawn({
            let reader = reader.clone();
            async move { reader.name().await }
        });
        gate.answered_gets().arrived().await;
        reader.line.cut(true);
        tokio::time::sleep(OVER).await;
        let writer = office.version("2").await;
        fresh(writer.rename("Grace").await);
        reader.line.cut(false);
        gate.answered_gets().open();
        // It began before the write, so that either answer were right; but nobody can tell how long it slept.
        reading.await.unwrap()
    }
    shows(
        Mechanism::Registration,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// After its sleep it registers anew, and goes on with an empty cache.
#[tokio::test(start_paused = true)]
async fn a_process_whose_registration_has_ended_begins_anew() {
    let office = Office::new(ON);
    let process = office.version("1").await;
    process.name().await;
    let before = process.prefix();
    process.line.cut(true);
    tokio::time::sleep(OVER).await;
    let other = office.version("2").await;
    process.line.cut(false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_ne!(process.prefix(), before);
    process.name().await;
    let loaded = process.line.loaded();
    process.name().await;
    assert_eq!(process.line.loaded(), loaded, "it fills and reads");
    fresh(other.rename("Grace").await);
    assert_eq!(process.name().await, "Grace");
}

/// A short absence of the database costs no hits.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_for_some_seconds_costs_no_hits() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.name().await;
    process.line.cut(true);
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(process.name().await, "Ada");
}

/// A writer slept from before its commit until its generation was gone: another version has cached what it can't flush.
async fn asleep_before_the_commit(foreign_key: bool) -> (bool, String) {
    let office = Office::new(ON);
    if !foreign_key {
        office.database.drop_foreign_key();
    }
    let writer = office
        .build(|b| b.register::<UserById>().version("1"))
        .await;
    let mut tx = writer.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    writer.line.cut(true);
    tokio::time::sleep(OVER).await;
    let reader = office.version("2").await;
    reader.name_of("ada@office").await;
    writer.line.cut(false);
    let committed = tx.commit().await;
    let refused = matches!(committed, Err(CommitError::Refused(_)));
    (refused, reader.name_of("ada@office").await)
}

#[tokio::test(start_paused = true)]
async fn a_writer_whose_generation_is_gone_cannot_commit() {
    let (refused, seen) = asleep_before_the_commit(true).await;
    assert!(refused);
    assert_eq!(seen, "Ada", "which is true");
}

/// What the foreign key is for.
#[tokio::test(start_paused = true)]
async fn without_the_foreign_key_a_late_commit_is_seen_by_nobody() {
    let (refused, seen) = asleep_before_the_commit(false).await;
    assert!(!refused);
    assert_eq!(seen, "Ada", "which was before the commit");
}

/// The same where the write makes nothing stale that the writer's own version caches.
async fn asleep_with_nothing_to_flush(foreign_key: bool) -> (bool, String) {
    let office = Office::new(ON);
    if !foreign_key {
        office.database.drop_foreign_key();
    }
    let writer = office.build(|b| b.register::<Card>().version("1")).await;
    let mut tx = writer.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    writer.line.cut(true);
    tokio::time::sleep(OVER).await;
    let reader = office
        .build(|b| b.register::<CardWithName>().version("2"))
        .await;
    text::<CardWithName>(&reader).await;
    writer.line.cut(false);
    let refused = matches!(tx.commit().await, Err(CommitError::Refused(_)));
    (refused, text::<CardWithName>(&reader).await)
}

#[tokio::test(start_paused = true)]
async fn a_writer_with_nothing_to_flush_cannot_commit_too_late_either() {
    assert_eq!(
        asleep_with_nothing_to_flush(true).await,
        (true, "Ada".into())
    );
    assert_eq!(
        asleep_with_nothing_to_flush(false).await,
        (false, "Ada".into())
    );
}

/// It slept in its commit, with its row in the outbox: its generation is held, so that the other version goes on as if it
/// were live.
async fn asleep_in_the_commit(foreign_key: bool) -> String {
    let office = Office::new(ON);
    if !foreign_key {
        office.database.drop_foreign_key();
    }
    let build = |b: CacheBuilder<_>| b.register::<UserById>().version("1").commit_timeout(HOUR);
    let writer = office.build(build).await;
    office.database.arriving_commits().close();
    let rename = tokio::spawn({
        let writer = writer.clone();
        async move { writer.rename("Grace").await }
    });
    office.database.arriving_commits().arrived().await;
    writer.line.cut(true);
    tokio::time::sleep(OVER).await;
    let reader = office.version("2").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    reader.name_of("ada@office").await;
    writer.line.cut(false);
    office.database.arriving_commits().open();
    fresh(rename.await.unwrap());
    reader.name_of("ada@office").await
}

#[tokio::test(start_paused = true)]
async fn a_commit_under_way_holds_its_generation() {
    assert_eq!(asleep_in_the_commit(true).await, "Grace");
}

#[tokio::test(start_paused = true)]
async fn without_the_foreign_key_a_commit_under_way_holds_nothing() {
    assert_eq!(asleep_in_the_commit(false).await, "Ada");
}

/// A reader that waits for a load of its former generation would take what nobody flushed.
#[tokio::test(start_paused = true)]
async fn a_load_of_a_former_generation_is_not_joined() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.line.loads().close();
    let read = || {
        let process = process.clone();
        tokio::spawn(async move { process.name().await })
    };
    let early = read();
    process.line.loads().arrived().await;
    process.rotate().await.unwrap();
    office.database.write(&User {
        name: "Grace".to_owned(),
        ..ada()
    });
    let late = read();
    quiet().await;
    process.line.loads().open();
    assert_eq!(early.await.unwrap(), "Ada", "it began before");
    assert_eq!(late.await.unwrap(), "Grace");
}

/// Under its new registration it would have to wait, and holds locks; so it is refused, and told to try again.
#[tokio::test(start_paused = true)]
async fn a_transaction_under_which_its_process_registers_anew_is_refused() {
    let office = Office::new(ON);
    let (one, operator) = (office.process().await, office.process().await);
    let mut tx = one.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    let prefix = one.prefix();
    operator.rotate().await.unwrap();
    while one.prefix() == prefix {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = tx.commit().await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert_eq!(one.name().await, "Ada");
    fresh(one.rename("Grace").await);
    assert_eq!(operator.name().await, "Grace");
}

/// Flushes that need to know who is live wait for a database that hangs together, and not one after the other.
#[tokio::test(start_paused = true)]
async fn a_register_that_hangs_keeps_no_flush_waiting_for_another() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.line.looks().close();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = tokio::time::Instant::now();
    let renames = (0..5).map(|nth| {
        let process = process.clone();
        tokio::spawn(async move { pending(process.rename(&nth.to_string()).await) })
    });
    for rename in renames.collect::<Vec<_>>() {
        rename.await.unwrap();
    }
    assert!(
        began.elapsed() < Duration::from_secs(21),
        "{:?}",
        began.elapsed()
    );
}

/// As it is when a cache server was away for long.
#[tokio::test(start_paused = true)]
async fn an_outbox_that_is_slow_to_count_costs_no_hits() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.name().await;
    process.line.counts().close();
    let loaded = process.line.loaded();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        process.name().await;
    }
    assert_eq!(process.line.loaded(), loaded);
}

/// The registration is over, and whoever waited for that writes, before the store is gone.
#[tokio::test(start_paused = true)]
async fn a_private_store_is_not_read_once_its_registration_is_over() {
    let office = Office::new(ON);
    let gate = Gate::new(memory());
    let leaving = office.on(&gate).process().await;
    leaving.name().await;
    gate.closes().close();
    let closing = tokio::spawn({
        let leaving = leaving.clone();
        async move { leaving.close(Duration::from_secs(5)).await }
    });
    gate.closes().arrived().await;
    let next = office.privately().process().await;
    fresh(next.rename("Grace").await);
    let read = get::<UserById>(&leaving.cache, &7).await;
    assert!(matches!(read, Err(LoadError::Closed { .. })), "{read:?}");
    gate.closes().open();
    closing.await.unwrap();
}

/// Without the database all reads load, and the log says so: once, and once when it is over.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_away_is_warned_of_once() {
    let office = Office::new(ON);
    let process = office.process().await;
    let (log, _guard) = Log::listen();
    let said = || {
        [
            log.count(Level::WARN, "the database can't be asked"),
            log.count(Level::INFO, "the database can be asked again"),
        ]
    };
    for outage in 1..=2 {
        process.line.cut(true);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(said(), [outage, outage - 1]);
        process.line.cut(false);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(said(), [outage, outage]);
    }
}
