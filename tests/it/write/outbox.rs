//! What is left of a write whose flush wasn't confirmed, and who delivers it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_core::{
    Change, CommitError, Edit, FlushQuery, Mechanism, Register as _, Registered, get,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::ledger::{Broken, Conn};
use super::office::{
    Member, ON, Office, Process, Stream, User, UserField, Without, data_set, fresh, pending, quiet,
    shows,
};
use super::servers::Servers;
use crate::read::gate::Gate;
use crate::read::shelf::HOUR;

/// Longer than a row of the outbox waits for its writer, and then for a relay.
const RELAYED: Duration = Duration::from_secs(4);

/// A process that was killed between its commit and its flush: what it holds is never let go.
async fn killed_before_its_flush(office: &Office, name: &'static str) -> Process {
    let gate = office.gate();
    let process = office.on(&gate).process().await;
    gate.arriving_deletes().close();
    drop(tokio::spawn({
        let process = process.clone();
        async move { process.rename(name).await }
    }));
    gate.arriving_deletes().arrived().await;
    process.line.cut(true);
    process
}

#[tokio::test(start_paused = true)]
async fn another_process_flushes_for_one_that_was_killed() {
    async fn schedule(without: Without) -> [String; 2] {
        let office = Office::new(without);
        let reader = office.process().await;
        reader.name().await;
        let _killed = killed_before_its_flush(&office, "Grace").await;
        let before = reader.name().await;
        tokio::time::sleep(RELAYED).await;
        [before, reader.name().await]
    }
    shows(
        Mechanism::Outbox,
        schedule,
        ["Ada".into(), "Grace".into()],
        ["Ada".into(), "Ada".into()],
    )
    .await;
}

/// A process that is started again doesn't read what its former run left, not even before somebody relays it.
#[tokio::test(start_paused = true)]
async fn a_process_that_starts_does_not_read_what_waits_in_the_outbox() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let reader = office.process().await;
        reader.name().await;
        let _killed = killed_before_its_flush(&office, "Grace").await;
        reader.line.cut(true); // relays nothing
        let again = office.process().await;
        again.name().await
    }
    shows(
        Mechanism::AskAfterOutage,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// The answer to a commit is lost, readers fill what was there before, and then it is executed.
#[tokio::test(start_paused = true)]
async fn an_unknown_commit_is_flushed_when_it_lands() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.name().await;
        office.database.lose_next_commit();
        let unknown = writer.rename("Grace").await;
        assert!(
            matches!(unknown, Err(CommitError::Unknown(_))),
            "{unknown:?}"
        );
        assert_eq!(reader.name().await, "Ada", "and fills it again");
        tokio::time::sleep(RELAYED).await;
        assert!(office.database.outbox().is_empty(), "it isn't committed");
        office.database.land();
        tokio::time::sleep(RELAYED).await;
        assert!(office.database.outbox().is_empty(), "it was delivered");
        reader.name().await
    }
    shows(Mechanism::Outbox, schedule, "Grace".into(), "Ada".into()).await;
}

/// A row was written before a generation was registered that has filled what it makes stale.
/// The connection is cut without a word: neither the writer nor `close` waits until TCP has noticed.
#[tokio::test(start_paused = true)]
async fn a_commit_that_is_never_answered_is_unknown_in_time() {
    let office = Office::new(ON);
    let (writer, reader) = (office.process().await, office.process().await);
    reader.name().await;
    office.database.silence_next_commit();
    let unknown = timeout(Duration::from_secs(300), writer.rename("Grace")).await;
    let unknown = unknown.expect("in time");
    assert!(
        matches!(unknown, Err(CommitError::Unknown(_))),
        "{unknown:?}"
    );
    assert_eq!(reader.name().await, "Ada");
    office.database.land();
    tokio::time::sleep(RELAYED).await;
    assert_eq!(reader.name().await, "Grace");
}

#[tokio::test(start_paused = true)]
async fn a_row_is_delivered_to_the_generations_of_its_delivery() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let first = office.process().await;
        office.database.lose_next_commit();
        assert!(first.rename("Grace").await.is_err());
        let second = office
            .build(|builder| super::office::everything(builder).version("2"))
            .await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(second.name().await, "Ada");
        second.line.cut(true); // relays nothing
        office.database.land();
        tokio::time::sleep(RELAYED).await;
        second.line.cut(false);
        second.name().await
    }
    shows(
        Mechanism::EveryGeneration,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// A user joins a stream, and has its old name cached, while the stream's new one is being committed.
#[tokio::test(start_paused = true)]
async fn a_query_for_keys_is_asked_after_the_commit() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let (writer, reader) = (office.process().await, office.process().await);
        office.database.arriving_commits().close();
        let rename = tokio::spawn(async move {
            let renames = |stream: &mut Stream| stream.name = "lobby".to_owned();
            writer.update(renames, 5).await
        });
        office.database.arriving_commits().arrived().await;
        office.database.write(&Member {
            id: 90,
            user: 9,
            stream: 5,
        });
        assert_eq!(reader.streams(9).await, "general");
        office.database.arriving_commits().open();
        fresh(rename.await.unwrap());
        reader.streams(9).await
    }
    shows(
        Mechanism::QueryAfterCommit,
        schedule,
        "lobby".into(),
        "general".into(),
    )
    .await;
}

/// A query waits in the outbox like a key, and is asked by whoever delivers it.
#[tokio::test(start_paused = true)]
async fn a_query_in_the_outbox_is_asked_by_the_relay() {
    let office = Office::new(ON);
    let reader = office.process().await;
    assert_eq!(reader.streams(7).await, "general");
    let gate = office.gate();
    let writer = office.on(&gate).process().await;
    gate.set_down(true);
    let pending = pending(
        writer
            .update(|stream: &mut Stream| stream.name = "lobby".into(), 5)
            .await,
    );
    assert_eq!(
        writer.streams(7).await,
        "lobby",
        "its whole data set isn't read"
    );
    assert!(pending.delivered().await);
    assert_eq!(reader.streams(7).await, "lobby");
}

/// Made from the base while that is deleted, the derived value would be old for good.
#[tokio::test(start_paused = true)]
async fn a_base_is_flushed_before_what_is_derived_from_it() {
    async fn schedule(without: Without) -> [String; 2] {
        let servers = Servers::new("two", &["greeting"]);
        let office = Office::new(without).on(&servers);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.greeting().await;
        servers.first().arriving_deletes().close();
        let rename = tokio::spawn(async move { writer.rename("Grace").await });
        servers.first().arriving_deletes().arrived().await;
        let meanwhile = reader.greeting().await;
        servers.first().arriving_deletes().open();
        fresh(rename.await.unwrap());
        [meanwhile, reader.greeting().await]
    }
    let old = || "hello Ada".to_owned();
    shows(
        Mechanism::BaseFirst,
        schedule,
        [old(), "hello Grace".into()],
        [old(), old()],
    )
    .await;
}

/// The same in a row of the outbox: what is derived isn't delivered while the server of its base is away.
#[tokio::test(start_paused = true)]
async fn a_row_keeps_what_is_derived_until_its_base_is_confirmed() {
    async fn schedule(without: Without) -> (bool, bool) {
        let servers = Servers::new("two", &["greeting"]);
        let office = Office::new(without).on(&servers);
        let writer = office.process().await;
        servers.first().set_down(true);
        let pending = pending(writer.rename("Grace").await);
        tokio::time::sleep(RELAYED).await;
        let row = office.database.outbox().concat();
        servers.first().set_down(false);
        assert!(pending.delivered().await);
        (row.contains("user:7"), row.contains("greeting:7"))
    }
    shows(Mechanism::BaseFirst, schedule, (true, true), (true, false)).await;
}

fn row(levels: &str) -> String {
    format!(r#"{{"v":1,"levels":[{levels}]}}"#)
}

/// What one row is derived from is on a server that is away; another row's bases are gone already.
#[tokio::test(start_paused = true)]
async fn a_row_is_not_held_up_by_the_bases_of_another() {
    let servers = Servers::new("two", &["greeting", "streams_of"]);
    let office = Office::new(ON).on(&servers);
    let _process = office.process().await;
    servers.first().set_down(true);
    let stuck = row(r#"{"keys":["user:8"]},{"keys":["greeting:8"]}"#);
    office.database.insert_into_outbox(&stuck);
    let free = row(r#"{"keys":["streams_of:8"]},{"keys":["greeting:9"]}"#);
    office.database.insert_into_outbox(&free);
    tokio::time::sleep(RELAYED).await;
    assert_eq!(office.database.outbox(), [stuck]);
}

/// A commit of very many keys has several rows, and what is derived may be in another one than its base.
#[tokio::test(start_paused = true)]
async fn what_is_derived_waits_for_the_earlier_rows_of_its_commit() {
    let servers = Servers::new("two", &["greeting"]);
    let office = Office::new(ON).on(&servers);
    let process = office.process().await;
    servers.first().set_down(true);
    let users = 100..6_100;
    let image = |id, name: &str| User {
        id,
        email: format!("{id}@office"),
        name: name.to_owned(),
    };
    let mut tx = process.begin().await.unwrap();
    let mut images = Vec::new();
    for id in users {
        let (before, after) = (image(id, "before"), image(id, "after"));
        tx.put(&after).await.unwrap();
        images.push((before, after));
    }
    let change = |(before, after)| Change::update_unlocked(before, after);
    tx.changed_many(images.iter().map(|(before, after)| change((before, after))));
    let pending = pending(tx.commit().await);
    let rows = office.database.outbox();
    let derived = |rows: &[String]| -> Vec<usize> {
        let counts = rows.iter().map(|row| row.matches("\"greeting:").count());
        counts.collect()
    };
    let counts = derived(&rows);
    assert_eq!(counts.iter().sum::<usize>(), 6_000);
    assert_eq!(counts[0], 0, "its bases come first");
    tokio::time::sleep(RELAYED).await;
    let rows = office.database.outbox();
    assert_eq!(derived(&rows).iter().sum::<usize>(), 6_000);

    // The first row was put off for a while; one like the second comes alone.
    let part = r#"{"v":1,"levels":[{"keys":[]},{"keys":["greeting:7"]}],"part":"#;
    let of = rows[0].split_once("\"part\":").expect("it is a part").1;
    let last = format!("{part}{}", of.replace("\"nth\":0", "\"nth\":99"));
    office.database.insert_into_outbox(&last);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(office.database.outbox().contains(&last));

    servers.first().set_down(false);
    assert!(pending.delivered().await);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(office.database.outbox().is_empty());
}

/// Hundreds of rows for a server that is away are older than the one that could be delivered. Those are claimed first that
/// have been due for the longest time, which is enough; that rows are put off longer every time helps where they are claimed
/// in another order.
#[tokio::test(start_paused = true)]
async fn rows_of_a_dead_server_hold_up_no_others() {
    async fn schedule(without: Without, by_due: bool) -> String {
        let servers = Servers::new("two", &["streams_of"]);
        let office = Office::new(without).on(&servers);
        if !by_due {
            office.database.claim_by_insertion();
        }
        let process = office.process().await;
        assert_eq!(process.streams(7).await, "general");
        servers.first().set_down(true);
        for id in 100..700 {
            let stuck = row(&format!(r#"{{"keys":["user:{id}"]}}"#));
            office.database.insert_into_outbox(&stuck);
        }
        office.database.write(&Stream {
            id: 5,
            name: "lobby".to_owned(),
        });
        let free = row(r#"{"keys":["streams_of:7"]}"#);
        office.database.insert_into_outbox(&free);
        tokio::time::sleep(Duration::from_secs(20)).await;
        process.streams(7).await
    }
    let at_once = Without(Some(Mechanism::RowBackoff));
    assert_eq!(schedule(ON, true).await, "lobby");
    assert_eq!(schedule(at_once, true).await, "lobby");
    assert_eq!(
        schedule(at_once, false).await,
        "general",
        "what the order is for"
    );
}

/// The relay of a process that can't reach the pool of another generation leaves the row to one that can.
#[tokio::test(start_paused = true)]
async fn a_relay_leaves_rows_for_pools_that_it_does_not_reach() {
    async fn schedule(without: Without) -> String {
        let here = Office::new(without).on(&Servers::new("here", &[]));
        let there = here.on(&Servers::new("there", &[]));
        let reader = here.process().await;
        reader.name().await;
        let _elsewhere = there.process().await;
        let _killed = killed_before_its_flush(&here, "Grace").await;
        reader.line.cut(true); // relays nothing
        tokio::time::sleep(RELAYED).await;
        reader.line.cut(false);
        let before = reader.name().await;
        assert_eq!(before, "Ada", "the one that relays can't reach it");
        tokio::time::sleep(Duration::from_secs(60)).await;
        reader.name().await
    }
    shows(
        Mechanism::EveryGeneration,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn rows_of_another_form_are_left_to_those_who_know_it() {
    let office = Office::new(ON);
    let _process = office.process().await;
    let newer = r#"{"v":2,"everything":true}"#;
    let unknown = r#"{"v":1,"levels":[{"keys":[],"queries":[{"accessor":"user","query":"none","arguments":"{}"}]}]}"#;
    office.database.insert_into_outbox(newer);
    office.database.insert_into_outbox(unknown);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(office.database.outbox(), [newer, unknown]);
}

/// Nothing that was filled before such a row is served any more.
#[tokio::test(start_paused = true)]
async fn rows_older_than_every_ttl_are_dropped() {
    let gate = Gate::new(crate::read::shelf::memory());
    let office = Office::new(ON).on(&gate);
    let process = office.process().await;
    gate.set_down(true);
    let pending = pending(process.rename("Grace").await);
    tokio::time::sleep(2 * HOUR).await;
    assert_eq!(office.database.outbox().len(), 1);
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert!(office.database.outbox().is_empty());
    assert!(pending.delivered().await);
}

/// What the register says isn't believed to be what this code wrote.
#[tokio::test(start_paused = true)]
async fn a_ttl_beyond_all_times_stops_no_relay() {
    let office = Office::new(ON);
    let _relay = office.process().await;
    let manifest = format!(
        r#"{{"accessors":{{"x":{{"shape":"","rule":"","flushed":true,"ttl_s":{}}}}}}}"#,
        u64::MAX
    );
    let mut decide = |registered: &Registered| {
        Ok(vec![Edit::Mint {
            id: "strange".to_owned(),
            version: "strange".to_owned(),
            pool: registered.generations[0].pool.clone(),
            holder: "nobody".to_owned(),
            manifest: manifest.clone(),
            ttl: Duration::from_hours(1),
        }])
    };
    let register = office.database.line();
    register.edit(&mut decide).await.unwrap();
    // Old rows are looked for every minute or so.
    tokio::time::sleep(Duration::from_secs(130)).await;
    let _killed = killed_before_its_flush(&office, "Grace").await;
    assert_eq!(office.database.outbox().len(), 1);
    tokio::time::sleep(RELAYED).await;
    assert!(office.database.outbox().is_empty());
}

/// What is derived may be built from its base just before that expires, and is served for a TTL of its own.
#[tokio::test(start_paused = true)]
async fn rows_are_kept_while_what_is_built_from_an_old_base_is_served() {
    let office = Office::new(ON);
    let gate = office.gate();
    let office = office.on(&gate);
    let (writer, reader) = (office.process().await, office.process().await);
    reader.name().await;
    gate.set_deaf_to_deletes(true);
    let pending = pending(writer.rename("Grace").await);
    tokio::time::sleep(HOUR * 8 / 10).await;
    assert_eq!(
        reader.greeting().await,
        "hello Ada",
        "of a base that is old"
    );
    tokio::time::sleep(HOUR * 3 / 10).await;
    gate.set_deaf_to_deletes(false);
    assert!(pending.delivered().await);
    assert_eq!(reader.greeting().await, "hello Grace");
}

/// Rows that were delivered at once are deleted lazily, and together.
#[tokio::test(start_paused = true)]
async fn rows_that_were_delivered_are_deleted_soon() {
    let office = Office::new(ON);
    let process = office.process().await;
    fresh(process.rename("Grace").await);
    fresh(process.rename("Ada").await);
    quiet().await;
    assert_eq!(office.database.outbox().len(), 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(office.database.outbox().is_empty());
    assert_eq!(process.stats().writes.relayed, 0);
}

/// Finds the user's own key, by code that panics the first time.
#[derive(Serialize, Deserialize)]
struct Stumbling(u64);

static STUMBLES: AtomicBool = AtomicBool::new(true);

impl FlushQuery<Stumbled> for Stumbling {
    const NAME: &'static str = "stumbling";

    async fn keys(&self, _: &mut Conn, _: Option<&u64>, _: usize) -> Result<Vec<u64>, Broken> {
        assert!(!STUMBLES.swap(false, Ordering::Relaxed), "it stumbles");
        Ok(vec![self.0])
    }
}

data_set!(
    /// A name whose flush is found by such a query.
    Stumbled = "stumbled": u64 => String;
    |plan| plan.query([UserField::Name], |user: &User| Stumbling(user.id));
    |conn, id| conn.find::<User>(*id).map(|user| user.name)
);

/// What the user wrote costs its own flush some time, and larder's tasks nothing.
#[tokio::test(start_paused = true)]
async fn a_query_that_panics_is_asked_again() {
    let office = Office::new(ON);
    let process = office
        .build(|builder| builder.register::<Stumbled>().version("1"))
        .await;
    let read = async || get::<Stumbled>(&process.cache, &7).await.unwrap();
    assert_eq!(read().await.as_deref(), Some("Ada"));
    let pending = pending(process.rename("Grace").await);
    assert_eq!(read().await.as_deref(), Some("Grace"), "past the store");
    assert!(pending.delivered().await);
    assert_eq!(read().await.as_deref(), Some("Grace"));
    assert!(office.database.outbox().is_empty());
}
