//! Flushes that aren't confirmed at once: what this process reads meanwhile, who delivers them, and how one learns of it.

use std::time::Duration;

use larder_core::{CacheBuilder, Change, CommitError, Committed, Mechanism, Prefix};

use super::ledger::{Broken, Ledger};
use super::office::{
    ON, Office, Process, User, Without, ada, everything, fresh, pending, quiet, shows,
};
use crate::read::gate::Gate;
use crate::read::shelf::HOUR;
use std::sync::Arc;

/// Longer than a row of the outbox waits for its writer, and then for a relay.
const RELAYED: Duration = Duration::from_secs(4);

fn gated(without: Without) -> (Office, Arc<Gate>) {
    let office = Office::new(without);
    let gate = office.gate();
    (office.on(&gate), gate)
}

/// The server answers look-ups, and its deletes time out.
#[tokio::test(start_paused = true)]
async fn a_process_does_not_read_what_it_could_not_flush() {
    async fn schedule(without: Without) -> String {
        let (office, gate) = gated(without);
        let process = office.process().await;
        process.name().await;
        gate.set_deaf_to_deletes(true);
        pending(process.rename("Grace").await);
        process.name().await
    }
    shows(
        Mechanism::PendingBypass,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// Nor does it fill it: what it loads now may be older than what the flush is for, once that is delivered.
#[tokio::test(start_paused = true)]
async fn what_is_pending_is_read_from_the_store_again_once_it_is_delivered() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    process.name().await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(process.rename("Grace").await);
    assert_eq!(
        process.stats().writes.held_keys,
        3,
        "by id, by address, and the greeting"
    );
    let loaded = process.line.loaded();
    process.name().await;
    process.name().await;
    assert_eq!(process.line.loaded(), loaded + 2);
    gate.set_deaf_to_deletes(false);
    assert!(pending.delivered().await);
    assert_eq!(process.stats().writes.held_keys, 0);
    process.name().await;
    process.name().await;
    assert_eq!(process.line.loaded(), loaded + 3);
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_another_process_delivers_is_delivered() {
    let office = Office::new(ON);
    let gate = office.gate();
    let writer = office.on(&gate).process().await;
    let other = office.process().await;
    other.name().await;
    gate.set_down(true); // for the writer alone, and for good
    let pending = pending(writer.rename("Grace").await);
    assert!(pending.delivered().await);
    assert_eq!(other.name().await, "Grace");
}

/// The server was away for this process, which can't know what others had to flush there meanwhile: one of them couldn't
/// reach it either.
#[tokio::test(start_paused = true)]
async fn a_server_that_was_away_is_not_read_before_the_outbox_was_asked() {
    async fn schedule(without: Without) -> String {
        let (office, gate) = gated(without);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.name().await;
        gate.set_down(true);
        reader.name_of("somebody@office").await;
        pending(writer.rename("Grace").await);
        gate.set_down(false);
        reader.name().await
    }
    shows(
        Mechanism::AskAfterOutage,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// Once it was asked, the server is read but for what waits there.
#[tokio::test(start_paused = true)]
async fn after_an_outage_only_what_waits_in_the_outbox_is_not_read() {
    let office = Office::new(ON);
    let (gate, other) = (office.gate(), office.gate());
    let reader = office.on(&gate).process().await;
    let writer = office.on(&other).process().await;
    reader.name().await;
    reader.streams(7).await;
    other.set_deaf_to_deletes(true);
    gate.set_down(true);
    reader.name().await;
    assert_eq!(reader.stats().writes.held_servers, [0]);
    pending(writer.rename("Grace").await);
    gate.set_down(false);
    gate.set_deaf_to_deletes(true); // so that nobody delivers it
    tokio::time::sleep(Duration::from_millis(700)).await;
    let held = reader.stats().writes;
    assert_eq!((held.held_servers.len(), held.held_keys), (0, 3));
    let loaded = reader.line.loaded();
    assert_eq!(reader.streams(7).await, "general");
    assert_eq!(reader.line.loaded(), loaded, "from the store");
    assert_eq!(reader.name().await, "Grace");
    gate.set_deaf_to_deletes(false);
    other.set_deaf_to_deletes(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(reader.stats().writes.held_keys, 0);
    assert_eq!(reader.name().await, "Grace");
}

/// To ask a server that is away takes a connection's time, of all servers together.
#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_for_long_is_not_asked_over_and_over() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    gate.set_down(true);
    process.name().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(gate.checked() < 30, "{}", gate.checked());
    gate.set_down(false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(process.stats().writes.held_servers.is_empty());
}

/// Reads degrade, and writes don't wait for a server that is known to be away.
#[tokio::test(start_paused = true)]
async fn while_a_server_is_away_reads_load_and_flushes_are_pending() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    gate.set_down(true);
    assert_eq!(process.name().await, "Ada");
    let one = pending(process.rename("Grace").await);
    let two = pending(process.rename("Hedy").await);
    assert_eq!(process.name().await, "Hedy");
    gate.set_down(false);
    assert!(one.delivered().await && two.delivered().await);
    assert_eq!(process.name().await, "Hedy");
}

async fn commit_fresh(
    process: &Process,
    limit: Duration,
) -> Result<Committed, CommitError<Broken>> {
    let mut tx = process.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    tx.commit_fresh(limit).await
}

#[tokio::test(start_paused = true)]
async fn commit_fresh_waits_for_whoever_delivers() {
    let office = Office::new(ON);
    let gate = office.gate();
    let writer = office.on(&gate).process().await;
    let reader = office.process().await;
    reader.name().await;
    gate.set_down(true);
    let committed = commit_fresh(&writer, Duration::from_secs(60)).await;
    fresh(committed);
    assert_eq!(reader.name().await, "Grace");
}

#[tokio::test(start_paused = true)]
async fn commit_fresh_gives_up_in_time() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    gate.set_down(true);
    let began = tokio::time::Instant::now();
    let pending = pending(commit_fresh(&process, Duration::from_secs(3)).await);
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    gate.set_down(false);
    assert!(pending.delivered().await, "it went on");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_flush_of_a_closed_cache() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    gate.set_down(true);
    let pending = pending(process.rename("Grace").await);
    process.close(Duration::from_secs(1)).await;
    assert!(!pending.delivered().await);
    assert_eq!(office.database.outbox().len(), 1, "others deliver it");
    gate.set_down(false);
    let _other = office.process().await;
    tokio::time::sleep(RELAYED).await;
    assert!(office.database.outbox().is_empty());
}

/// Users of whom each has a key in three data sets.
fn many(count: u64) -> Vec<(User, User)> {
    let image = |id: u64, name: &str| User {
        id,
        email: format!("{id}@office"),
        name: name.to_owned(),
    };
    (100..100 + count)
        .map(|id| (image(id, "before"), image(id, "after")))
        .collect()
}

async fn change_all(process: &Process, images: &[(User, User)]) -> larder_core::Pending {
    let mut tx = process.begin().await.unwrap();
    let changes = images.iter();
    tx.changed_many(changes.map(|(before, after)| Change::update_unlocked(before, after)));
    pending(tx.commit().await)
}

/// More keys than are remembered one by one: their whole data sets aren't read.
#[tokio::test(start_paused = true)]
async fn of_very_many_keys_whole_data_sets_are_not_read() {
    let (office, gate) = gated(ON);
    let process = office.process().await;
    let images = many(40_000);
    gate.set_deaf_to_deletes(true);
    let pending = change_all(&process, &images).await;
    let held = process.stats().writes;
    assert_eq!(held.held_keys, 100_000);
    assert_eq!(held.held_accessors, ["greeting"]);
    assert_eq!(process.greeting().await, "hello Ada");
    let loaded = process.line.loaded();
    process.greeting().await;
    assert!(
        process.line.loaded() > loaded,
        "another key of that data set"
    );
    gate.set_deaf_to_deletes(false);
    assert!(pending.delivered().await);
    let held = process.stats().writes;
    assert_eq!((held.held_keys, held.held_accessors.len()), (0, 0));
}

fn alone(builder: CacheBuilder<Ledger>) -> CacheBuilder<Ledger> {
    everything(builder).prefix(Prefix::new("test").unwrap())
}

/// A process without an outbox.
async fn bounded(office: &Office) -> Process {
    let line = office.database.line().forgetful();
    office.build_on(line, alone).await.unwrap()
}

/// Without an outbox this process remembers alone.
#[tokio::test(start_paused = true)]
async fn without_an_outbox_a_flush_is_tried_again_from_memory() {
    async fn schedule(without: Without) -> [String; 3] {
        let (office, gate) = gated(without);
        let (writer, reader) = (bounded(&office).await, bounded(&office).await);
        reader.name().await;
        gate.set_deaf_to_deletes(true);
        let pending = pending(writer.rename("Grace").await);
        let meanwhile = [writer.name().await, reader.name().await];
        gate.set_deaf_to_deletes(false);
        assert!(pending.delivered().await);
        let [own, other] = meanwhile;
        [own, other, reader.name().await]
    }
    let [old, new] = ["Ada", "Grace"].map(str::to_owned);
    shows(
        Mechanism::PendingBypass,
        schedule,
        [new.clone(), old.clone(), new.clone()],
        [old.clone(), old, new],
    )
    .await;
}

/// More than it remembers: the rest is right again after the TTL, and this process doesn't read it until then.
#[tokio::test(start_paused = true)]
async fn without_an_outbox_what_is_too_much_is_held_for_its_ttl() {
    let (office, gate) = gated(ON);
    let process = bounded(&office).await;
    let images = many(40_000);
    gate.set_deaf_to_deletes(true);
    let pending = change_all(&process, &images).await;
    gate.set_deaf_to_deletes(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(process.stats().writes.held_accessors, ["greeting"]);
    assert!(!pending.delivered().await, "nobody knows all of it");
    assert_eq!(
        process.stats().writes.held_keys,
        0,
        "what it knows is delivered"
    );
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(process.stats().writes.held_accessors.len(), 0);
}

/// What is tried again isn't lost when the cache is closed meanwhile.
#[tokio::test(start_paused = true)]
async fn closing_tries_once_more_what_only_this_process_remembers() {
    let (office, gate) = gated(ON);
    let (process, other) = (bounded(&office).await, bounded(&office).await);
    other.name().await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(process.rename("Grace").await);
    quiet().await;
    gate.set_deaf_to_deletes(false);
    gate.arriving_deletes().close();
    gate.arriving_deletes().arrived().await; // it is being tried again
    let closing = tokio::spawn(async move { process.close(Duration::from_secs(5)).await });
    quiet().await;
    gate.arriving_deletes().open();
    closing.await.unwrap();
    assert_eq!(other.name().await, "Grace");
    assert!(pending.delivered().await);
}

/// A store that panics is a mistake of its author; what it didn't delete is held, and tried again.
#[tokio::test(start_paused = true)]
async fn a_retry_that_panics_lets_nothing_go() {
    let (office, gate) = gated(ON);
    let process = bounded(&office).await;
    process.name().await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(process.rename("Grace").await);
    gate.set_panicking_at_deletes(true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(process.name().await, "Grace");
    gate.set_panicking_at_deletes(false);
    gate.set_deaf_to_deletes(false);
    assert!(pending.delivered().await);
    assert_eq!(process.name().await, "Grace");
}

/// The first attempt isn't another thing.
#[tokio::test(start_paused = true)]
async fn a_flush_that_panics_is_held_and_tried_again() {
    let (office, gate) = gated(ON);
    let process = bounded(&office).await;
    process.name().await;
    gate.set_panicking_at_deletes(true);
    let pending = pending(process.rename("Grace").await);
    assert_eq!(process.name().await, "Grace");
    gate.set_panicking_at_deletes(false);
    assert!(pending.delivered().await);
    assert_eq!(process.name().await, "Grace");
}

/// A retry that goes on when the cache is closed, and fails.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_retry_that_ends_after_its_cache_was_closed() {
    let (office, gate) = gated(ON);
    let process = bounded(&office).await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(process.rename("Grace").await);
    gate.arriving_deletes().close();
    gate.arriving_deletes().arrived().await;
    process.close(Duration::from_secs(1)).await;
    gate.arriving_deletes().open();
    let delivered = tokio::time::timeout(Duration::from_secs(60), pending.delivered()).await;
    assert_eq!(delivered, Ok(false));
}
