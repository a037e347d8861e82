//! What a commit does, by itself and beside others: what is flushed, when, and under which keys.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use larder_core::{Change, CommitError, Direct, FieldBits, Mechanism, get};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::ledger::Broken;
use super::office::{
    ON, Office, Process, Stream, User, UserByEmail, UserById, Without, ada, data_set, fresh,
    pending, quiet, shows,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A reader comes between the flush and the commit if the flush doesn't follow.
#[tokio::test(start_paused = true)]
async fn the_flush_follows_the_commit() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.name().await;
        office.database.arriving_commits().close();
        let commit = tokio::spawn(async move { writer.rename("Grace").await });
        office.database.arriving_commits().arrived().await;
        reader.name().await; // fills again what was flushed too early
        office.database.arriving_commits().open();
        fresh(commit.await.unwrap());
        reader.name().await
    }
    shows(
        Mechanism::FlushAfterCommit,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// The user who moved isn't found under the address that was left.
#[tokio::test(start_paused = true)]
async fn both_images_are_flushed() {
    async fn schedule(without: Without) -> [String; 2] {
        let office = Office::new(without);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.name_of("ada@office").await;
        reader.name_of("grace@office").await; // remembered as absent
        let moves = |user: &mut User| user.email = "grace@office".to_owned();
        fresh(writer.update(moves, 7).await);
        [
            reader.name_of("ada@office").await,
            reader.name_of("grace@office").await,
        ]
    }
    let nobody = String::new;
    shows(
        Mechanism::BothImages,
        schedule,
        [nobody(), "Ada".into()],
        ["Ada".into(), "Ada".into()],
    )
    .await;
}

/// Two writers read the same row, and move it one after the other: a, b, c. The second one's image is from before the
/// first, unless it was read under the lock: then nobody flushes what was filled in between.
async fn two_moves(locked: bool) -> String {
    let office = Office::new(ON);
    let (first, second) = (office.process().await, office.process().await);
    let reader = office.process().await;
    let mut other = second.begin().await.unwrap();
    let early = other.find::<User>(7).unwrap();
    fresh(
        first
            .update(|user: &mut User| user.email = "b@office".into(), 7)
            .await,
    );
    assert_eq!(reader.name_of("b@office").await, "Ada");
    let after = User {
        email: "c@office".to_owned(),
        ..ada()
    };
    match locked {
        true => {
            let before = other.lock::<User>(&7).await.unwrap().unwrap();
            other.put(&after).await.unwrap();
            other.changed(Change::update(&before, &after));
        }
        false => {
            other.put(&after).await.unwrap();
            other.changed(Change::update_unlocked(&early, &after));
        }
    }
    fresh(other.commit().await);
    reader.name_of("b@office").await
}

#[tokio::test(start_paused = true)]
async fn an_image_read_under_the_lock_flushes_the_address_in_between() {
    assert_eq!(two_moves(true).await, "");
}

/// What `update_unlocked` is warned of: the test above without the lock.
#[tokio::test(start_paused = true)]
async fn an_image_read_without_the_lock_leaves_the_address_in_between() {
    assert_eq!(two_moves(false).await, "Ada");
}

/// And the lock is one: the second writer waits for the first.
#[tokio::test(start_paused = true)]
async fn two_writers_of_one_row_follow_each_other() {
    let office = Office::new(ON);
    let process = office.process().await;
    let mut first = process.begin().await.unwrap();
    let before = first.lock::<User>(&7).await.unwrap().unwrap();
    let second = tokio::spawn({
        let process = process.clone();
        async move { process.rename("second").await }
    });
    quiet().await;
    assert!(!second.is_finished());
    let after = User {
        name: "first".to_owned(),
        ..ada()
    };
    first.put(&after).await.unwrap();
    first.changed(Change::update(&before, &after));
    fresh(first.commit().await);
    fresh(second.await.unwrap());
    assert_eq!(process.name().await, "second");
}

/// The lock ended with its transaction, and the user moved meanwhile: nobody would flush the address in between.
#[tokio::test(start_paused = true)]
async fn an_image_that_another_transaction_locked_is_refused() {
    let office = Office::new(ON);
    let process = office.process().await;
    let mut first = process.begin().await.unwrap();
    let before = first.lock::<User>(&7).await.unwrap().unwrap();
    first.rollback().await.unwrap();
    let moves = |user: &mut User| user.email = "b@office".into();
    fresh(process.update(moves, 7).await);
    assert_eq!(process.name_of("b@office").await, "Ada");
    let mut again = process.begin().await.unwrap();
    let after = User {
        email: "c@office".to_owned(),
        ..ada()
    };
    again.put(&after).await.unwrap();
    again.changed(Change::update(&before, &after));
    let refused = again.commit().await.unwrap_err();
    assert!(
        refused.to_string().contains("lock the row again"),
        "{refused}"
    );
    assert_eq!(process.name_of("b@office").await, "Ada", "who lives there");
}

/// Two caches of one process may have locked as many rows.
#[tokio::test(start_paused = true)]
async fn an_image_that_another_cache_locked_is_refused() {
    let office = Office::new(ON);
    let (one, other) = (office.process().await, office.process().await);
    let mut first = other.begin().await.unwrap();
    let before = first.lock::<User>(&7).await.unwrap().unwrap();
    first.rollback().await.unwrap();
    let mut tx = one.begin().await.unwrap();
    tx.lock::<Stream>(&5).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.changed(Change::update(&before, &after));
    let refused = tx.commit().await.unwrap_err();
    assert!(
        refused.to_string().contains("lock the row again"),
        "{refused}"
    );
}

data_set!(
    /// One whose plan panics.
    Fragile = "fragile": u64 => String;
    |plan| plan.entity(FieldBits::ALL, |stream: &Stream| {
        assert_ne!(stream.name, "broken");
        [stream.id]
    });
    |conn, id| conn.find::<Stream>(*id).map(|stream| stream.name)
);

/// Some of the keys of the change aren't known.
#[tokio::test(start_paused = true)]
async fn a_plan_that_panics_refuses_the_commit() {
    let office = Office::new(ON);
    let process = office.build(|builder| builder.register::<Fragile>()).await;
    let mut tx = process.begin().await.unwrap();
    let broken = Stream {
        id: 9,
        name: "broken".to_owned(),
    };
    tx.put(&broken).await.unwrap();
    let changed = AssertUnwindSafe(|| tx.changed(Change::create(&broken)));
    catch_unwind(changed).unwrap_err();
    tx.changed(Change::create(&Stream {
        id: 10,
        name: "whole".to_owned(),
    }));
    let refused = tx.commit().await.unwrap_err();
    assert!(matches!(refused, CommitError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("`stream`"), "{refused}");
}

/// PostgreSQL gives up the locks of what is undone; and what was read there may have been undone too.
#[tokio::test(start_paused = true)]
async fn an_image_that_was_locked_in_an_undone_savepoint_is_refused() {
    let office = Office::new(ON);
    let process = office.process().await;
    let mut tx = process.begin().await.unwrap();
    let outer = tx.lock::<User>(&7).await.unwrap().unwrap();
    let mut inner = None;
    let undone = tx
        .savepoint(async |tx| {
            inner = tx.lock::<Stream>(&5).await?;
            Err::<(), _>(Broken("no"))
        })
        .await;
    undone.unwrap_err();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.changed(Change::update(&outer, &after));
    tx.changed(Change::delete(&inner.unwrap()));
    let refused = tx.commit().await.unwrap_err();
    assert!(refused.to_string().contains("`stream`"), "{refused}");
}

/// An address in capitals finds the user, and is no key that anybody flushes.
#[tokio::test(start_paused = true)]
async fn a_value_is_filled_only_under_keys_of_its_own_plan() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let process = office.process().await;
        assert_eq!(process.name_of("ADA@office").await, "Ada");
        fresh(process.rename("Grace").await);
        process.name_of("ADA@office").await
    }
    shows(Mechanism::OwnKeys, schedule, "Grace".into(), "Ada".into()).await;
    let office = Office::new(ON);
    let process = office.process().await;
    process.name_of("ADA@office").await;
    let stats = process.stats();
    let stats = stats
        .accessors
        .iter()
        .find(|stats| stats.name == "user_by_email");
    assert_eq!(stats.unwrap().refused_unflushable, 1);
}

/// A read that began before the write, in the process of the writer, isn't joined by one that begins after.
#[tokio::test(start_paused = true)]
async fn a_change_detaches_the_loads_of_its_keys() {
    let office = Office::new(ON);
    let gate = office.gate();
    let office = office.on(&gate);
    let process = office.process().await;
    gate.set_down(true); // no lease tells what is old
    process.line.loads().close();
    let early = tokio::spawn({
        let process = process.clone();
        async move { process.name().await }
    });
    process.line.loads().arrived().await;
    let pending = pending(process.rename("Grace").await);
    let late = tokio::spawn({
        let process = process.clone();
        async move { process.name().await }
    });
    quiet().await;
    process.line.loads().open();
    assert_eq!(late.await.unwrap(), "Grace");
    assert_eq!(early.await.unwrap(), "Ada", "it began before the write");
    drop(pending);
}

/// A flight whose fill was executed, and whose answer is under way while a write is acknowledged.
#[tokio::test(start_paused = true)]
async fn a_load_is_joined_until_its_fill_is_handed_over() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let gate = office.gate();
        let reader = office.on(&gate).process().await;
        let writer = office.process().await;
        let reads = || {
            let reader = reader.clone();
            tokio::spawn(async move { reader.name().await })
        };
        gate.answered_fills().close();
        reader.line.loads().close();
        let first = reads();
        reader.line.loads().arrived().await;
        let follower = reads(); // keeps the value in the load
        quiet().await;
        reader.line.loads().open();
        gate.answered_fills().arrived().await;
        fresh(writer.rename("Grace").await);
        let late = reads();
        quiet().await;
        gate.answered_fills().open();
        assert_eq!(first.await.unwrap(), "Ada", "it began before the write");
        assert_eq!(follower.await.unwrap(), "Ada", "so did this");
        late.await.unwrap()
    }
    shows(
        Mechanism::JoinCutoff,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

async fn seen(process: &Process) -> [String; 2] {
    [process.name().await, process.name_of("ada@office").await]
}

#[tokio::test(start_paused = true)]
async fn a_rollback_flushes_nothing() {
    let office = Office::new(ON);
    let process = office.process().await;
    let before = seen(&process).await;
    let loads = process.line.loaded();
    let mut tx = process.begin().await.unwrap();
    let image = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&image, &after));
    tx.rollback().await.unwrap();
    assert_eq!(seen(&process).await, before);
    assert_eq!(process.line.loaded(), loads, "all of it is still cached");
    assert!(office.database.outbox().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_commit_flushes_nothing() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.name().await;
    let loads = process.line.loaded();
    office.database.fail_next_commit();
    let failed = process.rename("Grace").await;
    assert!(matches!(failed, Err(CommitError::Failed(_))), "{failed:?}");
    assert_eq!(process.name().await, "Ada");
    assert_eq!(process.line.loaded(), loads);
    assert!(office.database.outbox().is_empty());
}

/// What came before the savepoint is committed; what came after it is flushed as well, which harms nobody.
#[tokio::test(start_paused = true)]
async fn a_savepoint_rolled_back_keeps_what_was_said() {
    let office = Office::new(ON);
    let process = office.process().await;
    seen(&process).await;
    let mut tx = process.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    let undone = tx
        .savepoint(async |tx| {
            tx.put(&after).await?;
            tx.changed(Change::update(&before, &after));
            Err::<(), _>(Broken("no"))
        })
        .await;
    assert!(undone.is_err());
    assert_eq!(
        get::<UserById>(&mut tx, &7).await.unwrap().unwrap().name,
        "Ada"
    );
    let after = User {
        email: "grace@office".to_owned(),
        ..ada()
    };
    tx.savepoint(async |tx| tx.put(&after).await).await.unwrap();
    let loads = process.line.loaded();
    fresh(tx.commit().await);
    // By its id it was changed before the savepoint was rolled back alone.
    assert_eq!(process.name().await, "Ada");
    assert_eq!(process.line.loaded(), loads + 1);
    assert_eq!(
        process.name_of("grace@office").await,
        "Ada",
        "the second savepoint stayed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_savepoint_left_open_refuses_the_commit() {
    let office = Office::new(ON);
    let process = office.process().await;
    let mut tx = process.begin().await.unwrap();
    let waits = tx.savepoint(async |_| {
        std::future::pending::<()>().await;
        Ok::<(), Broken>(())
    });
    assert!(
        tokio::time::timeout(Duration::from_secs(1), waits)
            .await
            .is_err()
    );
    let refused = tx.commit().await;
    assert!(
        matches!(refused, Err(CommitError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_guard_reads_past_the_cache_and_fills_nothing() {
    let office = Office::new(ON);
    let process = office.process().await;
    let mut tx = process.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    let after = User {
        name: "Grace".to_owned(),
        ..ada()
    };
    tx.put(&after).await.unwrap();
    tx.changed(Change::update(&before, &after));
    let own = get::<UserById>(&mut tx, &7).await.unwrap().unwrap();
    let by_connection = get::<UserByEmail>(Direct(&mut *tx), &"ada@office".to_owned()).await;
    assert_eq!(
        [own.name, by_connection.unwrap().unwrap().name],
        ["Grace", "Grace"]
    );
    assert_eq!(
        seen(&process).await,
        ["Ada", "Ada"],
        "nobody else sees it yet"
    );
    tx.rollback().await.unwrap();
    assert_eq!(seen(&process).await, ["Ada", "Ada"]);
}

/// The way to the database takes what is sent, and answers nothing: nothing was committed yet.
#[tokio::test(start_paused = true)]
async fn a_database_that_hangs_before_the_commit_refuses_it_in_time() {
    let office = Office::new(ON);
    let (process, other) = (office.process().await, office.process().await);
    process.line.pushes().close();
    let refused = timeout(5 * MINUTE, process.rename("Grace")).await;
    let refused = refused.expect("in time").unwrap_err();
    assert!(matches!(refused, CommitError::Refused(_)), "{refused}");
    let next = timeout(MINUTE, other.rename("Hedy")).await;
    fresh(next.expect("its locks are free"));
    assert_eq!(other.name().await, "Hedy");
}

/// The commit goes on when its caller has left, and so does its flush.
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_loses_no_flush() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.name().await;
    office.database.arriving_commits().close();
    let commit = tokio::spawn({
        let process = process.clone();
        async move { process.rename("Grace").await }
    });
    office.database.arriving_commits().arrived().await;
    commit.abort();
    assert!(commit.await.unwrap_err().is_cancelled());
    office.database.arriving_commits().open();
    quiet().await;
    assert_eq!(process.name().await, "Grace");
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A service that shuts down: the runtime ends right after `close`, with a commit under way.
#[test]
fn close_waits_for_commits_and_their_flushes() {
    let (service, other) = (runtime(), runtime());
    let office = Office::new(ON);
    let gate = office.gate();
    let reader = other.block_on(office.process());
    assert_eq!(other.block_on(reader.name()), "Ada");
    service.block_on(async {
        let process = office.on(&gate).process().await;
        gate.arriving_deletes().close();
        drop(tokio::spawn({
            let process = process.clone();
            async move { process.rename("Grace").await }
        }));
        gate.arriving_deletes().arrived().await;
        let closing = tokio::spawn(async move { process.close(Duration::from_secs(10)).await });
        quiet().await;
        assert!(!closing.is_finished(), "it waits for the flush");
        gate.arriving_deletes().open();
        closing.await.unwrap();
    });
    service.shutdown_background();
    assert!(
        office.database.outbox().is_empty(),
        "nothing is left to others"
    );
    assert_eq!(other.block_on(reader.name()), "Grace");
}

/// And without `close` the flush is cut off: the row of the outbox is what is left of it.
#[test]
fn a_runtime_that_stops_between_commit_and_flush_leaves_a_row() {
    let (service, other) = (runtime(), runtime());
    let office = Office::new(ON);
    let gate = office.gate();
    let reader = other.block_on(office.process());
    assert_eq!(other.block_on(reader.name()), "Ada");
    service.block_on(async {
        let process = office.on(&gate).process().await;
        gate.arriving_deletes().close();
        drop(tokio::spawn(async move { process.rename("Grace").await }));
        gate.arriving_deletes().arrived().await;
    });
    service.shutdown_background();
    assert_eq!(office.database.outbox().len(), 1);
    other.block_on(async {
        assert_eq!(reader.name().await, "Ada", "nothing was acknowledged");
        let relayed = async {
            while reader.name().await == "Ada" {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let relayed = tokio::time::timeout(Duration::from_secs(20), relayed).await;
        relayed.expect("another process relays");
    });
}
