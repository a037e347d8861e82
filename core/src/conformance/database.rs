//! The suite that every database passes: what each sentence of [`Transactional`], [`Outbox`] and [`Register`] means in
//! practice, as a test.
//!
//! It is given a [`Database`], and joined like the suite of backends:
//!
//! ```text
//! larder_core::database_conformance! {
//!     #[tokio::test]
//!     mine => MyDatabase::start().await;
//! }
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join, join_all};

use crate::write::CommitFailure;
use crate::{
    Edit, Error, ErrorKind, Generation, Outbox, PutOff, Registered, RowId, Savepoint, Source,
    Transactional,
};

/// What the suite is run on: a database of its own for every case, with what it needs in it and nothing registered.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    /// The source over it.
    type Source: Transactional;

    /// A new handle onto this database, as another process would have it; it has an outbox.
    async fn source(&self) -> Self::Source;

    /// Inserts a row into a table that is there for this.
    async fn write(&self, conn: &mut <Self::Source as Source>::Conn);

    /// How many such rows are committed.
    async fn written(&self) -> u64;

    /// Lets this much time pass for the database: by moving a paused clock, or by waiting.
    async fn advance(&self, duration: Duration);
}

type Conn<D> = <<D as Database>::Source as Source>::Conn;

/// Long beside what a busy machine does between two statements.
const LONG: Duration = Duration::from_secs(60);

/// What a case does again and again.
struct Scene<D: Database> {
    database: D,
    source: D::Source,
    outbox: Arc<dyn Outbox<Conn<D>>>,
}

impl<D: Database> Scene<D> {
    /// With the generation `live`.
    async fn new(database: D) -> Self {
        let source = database.source().await;
        let outbox = source.outbox().expect("the source has an outbox");
        let scene = Self {
            database,
            source,
            outbox,
        };
        scene.edit([mint("live", LONG)]).await;
        scene
    }

    async fn begin(&self) -> <D::Source as Transactional>::Tx {
        let begun = self.source.begin().await;
        begun.unwrap_or_else(|error| panic!("beginning: {error}"))
    }

    async fn commit(&self, tx: <D::Source as Transactional>::Tx) {
        if let Err(CommitFailure::Failed(error) | CommitFailure::Unknown(error)) =
            D::Source::commit(tx).await
        {
            panic!("committing: {error}");
        }
    }

    /// Commits rows of these texts, due after this.
    async fn push(&self, texts: &[&str], grace: Duration) -> Vec<RowId> {
        let mut tx = self.begin().await;
        let ids = self.push_in(&mut tx, "live", texts, grace).await;
        self.commit(tx).await;
        ids.unwrap()
    }

    async fn push_in(
        &self,
        conn: &mut Conn<D>,
        generation: &str,
        texts: &[&str],
        grace: Duration,
    ) -> crate::Result<Vec<RowId>> {
        let rows: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        self.outbox.push(conn, generation, &rows, grace).await
    }

    async fn edit(&self, edits: impl IntoIterator<Item = Edit>) {
        let edits: Vec<Edit> = edits.into_iter().collect();
        let edited = self.outbox.edit(&mut |_| Ok(edits.clone())).await;
        edited.unwrap();
    }

    async fn generation(&self, id: &str) -> Option<Generation> {
        let registered = self.outbox.read().await.unwrap();
        let mut generations = registered.generations.into_iter();
        generations.find(|generation| generation.id == id)
    }

    /// The texts of all rows, as listed.
    async fn texts(&self) -> Vec<String> {
        let rows = self.outbox.rows(usize::MAX).await.unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }

    /// The texts of rows claimed whenever anybody else did, and held for long.
    async fn claim(&self, limit: usize) -> Vec<String> {
        let rows = self.outbox.claim(limit, LONG, Duration::ZERO).await;
        rows.unwrap().into_iter().map(|row| row.text).collect()
    }

    async fn put_off(&self, rows: &[(RowId, &str, Duration)]) {
        let rows = rows.iter().map(|&(id, text, pause)| PutOff {
            id,
            text: text.to_owned(),
            pause,
        });
        let rows: Vec<PutOff> = rows.collect();
        self.outbox.put_off(&rows).await.unwrap();
    }

    async fn has_written(&self, tx: &mut <D::Source as Transactional>::Tx) -> Option<bool> {
        let written = D::Source::has_written(tx).await;
        written.unwrap_or_else(|error| panic!("asking whether it has written: {error}"))
    }

    async fn savepoint(
        &self,
        tx: &mut <D::Source as Transactional>::Tx,
        step: Savepoint,
        depth: u32,
    ) {
        let done = D::Source::savepoint(tx, step, depth).await;
        done.unwrap_or_else(|error| panic!("{step:?} at depth {depth}: {error}"));
    }
}

fn mint(id: &str, ttl: Duration) -> Edit {
    Edit::Mint {
        id: id.to_owned(),
        version: "1.2.3".to_owned(),
        pool: "memcached:a,b".to_owned(),
        holder: "host, process 7".to_owned(),
        manifest: "{\"text\": \"with \\\"all\\\" sorts of 'quotes'\"}".to_owned(),
        ttl,
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

// What a transaction is.

async fn committed_write_is_there<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let mut tx = scene.begin().await;
    scene.database.write(&mut tx).await;
    scene.commit(tx).await;
    assert_eq!(scene.database.written().await, 1);
}

async fn dropped_transaction_is_rolled_back<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let mut tx = scene.begin().await;
    scene.database.write(&mut tx).await;
    drop(tx);
    let mut tx = scene.begin().await;
    scene.database.write(&mut tx).await;
    let rolled_back = D::Source::rollback(tx).await;
    rolled_back.unwrap_or_else(|error| panic!("rolling back: {error}"));
    assert_eq!(scene.database.written().await, 0);
}

async fn savepoint_undoes_what_came_after_it<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let mut tx = scene.begin().await;
    scene.database.write(&mut tx).await;
    scene.savepoint(&mut tx, Savepoint::Set, 1).await;
    scene.database.write(&mut tx).await;
    scene.savepoint(&mut tx, Savepoint::Set, 2).await;
    scene.database.write(&mut tx).await;
    scene.savepoint(&mut tx, Savepoint::RollBack, 2).await;
    scene.savepoint(&mut tx, Savepoint::Release, 2).await;
    scene.database.write(&mut tx).await;
    scene.savepoint(&mut tx, Savepoint::Release, 1).await;
    scene.savepoint(&mut tx, Savepoint::Set, 1).await;
    scene.database.write(&mut tx).await;
    scene.savepoint(&mut tx, Savepoint::RollBack, 1).await;
    scene.savepoint(&mut tx, Savepoint::Release, 1).await;
    scene.commit(tx).await;
    assert_eq!(scene.database.written().await, 3);
}

async fn transaction_tells_whether_it_has_written<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    // The second one may get the connection of the first.
    for _ in 0..2 {
        let mut tx = scene.begin().await;
        assert_ne!(scene.has_written(&mut tx).await, Some(true));
        scene.database.write(&mut tx).await;
        assert_ne!(scene.has_written(&mut tx).await, Some(false));
        scene.commit(tx).await;
    }
}

// What the outbox is.

async fn row_is_there_exactly_if_the_write_is<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    for is_dropped in [true, false] {
        let mut tx = scene.begin().await;
        let pushed = scene.push_in(&mut tx, "live", &["lost"], Duration::ZERO);
        pushed.await.unwrap();
        match is_dropped {
            true => drop(tx),
            false => D::Source::rollback(tx)
                .await
                .unwrap_or_else(|error| panic!("{error}")),
        }
    }
    assert!(scene.texts().await.is_empty());
    scene.push(&["kept"], Duration::ZERO).await;
    assert_eq!(scene.texts().await, ["kept"]);
}

async fn rows_are_listed_by_age_and_left_alone<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let text = "{\"keys\": [\"a:1'--\", \"\u{fc}\"]}";
    let mut ids = scene.push(&[text], LONG).await;
    ids.extend(scene.push(&["b"], Duration::ZERO).await);
    ids.extend(scene.push(&["c"], Duration::ZERO).await);
    for _ in 0..2 {
        let rows = scene.outbox.rows(2).await.unwrap();
        let listed: Vec<_> = rows.iter().map(|row| (row.id, &*row.text)).collect();
        assert_eq!(listed, [(ids[0], text), (ids[1], "b")]);
        assert!(rows.iter().all(|row| row.attempts == 0 && row.age < LONG));
    }
}

async fn every_row_of_a_push_has_an_id<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let ids = scene.push(&["a", "b", "c"], Duration::ZERO).await;
    let rows = scene.outbox.rows(10).await.unwrap();
    let listed: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(ids.into_iter().collect::<BTreeSet<_>>(), listed);
    assert!(scene.push(&[], Duration::ZERO).await.is_empty());
}

async fn push_under_a_generation_that_is_gone_fails<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene
        .edit([
            mint("gone", LONG),
            Edit::Delete {
                id: "gone".to_owned(),
            },
        ])
        .await;
    for unregistered in ["never", "gone"] {
        let mut tx = scene.begin().await;
        let pushed = scene.push_in(&mut tx, unregistered, &["a"], Duration::ZERO);
        let error = pushed.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains(unregistered), "{error}");
        let rolled_back = D::Source::rollback(tx).await;
        rolled_back.unwrap_or_else(|error| panic!("rolling back: {error}"));
    }
    assert!(scene.texts().await.is_empty());
}

async fn row_is_due_after_its_grace<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene.push(&["a"], millis(500)).await;
    assert!(scene.claim(10).await.is_empty());
    scene.database.advance(millis(550)).await;
    assert_eq!(scene.claim(10).await, ["a"]);
}

async fn longest_due_are_claimed_first<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let later = scene.push(&["late"], Duration::ZERO).await[0];
    for text in ["a", "b", "c"] {
        scene.push(&[text], Duration::ZERO).await;
        scene.database.advance(millis(5)).await;
    }
    scene.put_off(&[(later, "late", millis(20))]).await;
    scene.database.advance(millis(50)).await;
    assert_eq!(scene.claim(2).await, ["a", "b"]);
    assert_eq!(scene.claim(10).await, ["c", "late"]);
}

async fn claimed_row_is_held_and_comes_back<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene.push(&["a"], Duration::ZERO).await;
    let claim = || scene.outbox.claim(10, millis(500), Duration::ZERO);
    let first = claim().await.unwrap();
    assert_eq!(first[0].attempts, 0);
    assert!(claim().await.unwrap().is_empty());
    scene.database.advance(millis(550)).await;
    let second = claim().await.unwrap();
    assert_eq!((second[0].id, second[0].attempts), (first[0].id, 1));
    assert!(second[0].age >= millis(500) && second[0].age < LONG);
}

async fn one_claims_per_interval<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene.push(&["a", "b"], Duration::ZERO).await;
    let claims = (0..8).map(|_| scene.outbox.claim(1, LONG, millis(400)));
    let claimed = join_all(claims).await;
    let rows = claimed.into_iter().map(|rows| rows.unwrap().len());
    assert_eq!(rows.sum::<usize>(), 1);
    scene.database.advance(millis(450)).await;
    let rows = scene.outbox.claim(10, LONG, millis(400)).await.unwrap();
    assert_eq!(rows.len(), 1);
}

async fn idle_relay_keeps_nobody_from_the_next_row<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    assert!(scene.outbox.claim(1, LONG, LONG).await.unwrap().is_empty());
    scene.push(&["a"], Duration::ZERO).await;
    assert_eq!(scene.outbox.claim(1, LONG, LONG).await.unwrap().len(), 1);
}

async fn every_row_is_claimed_by_one<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let texts: Vec<String> = (0..60).map(|nth| nth.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
    scene.push(&texts, Duration::ZERO).await;
    let mut claimed = Vec::new();
    while claimed.len() < texts.len() {
        let claims = (0..4).map(|_| scene.claim(10));
        claimed.extend(join_all(claims).await.concat());
    }
    let distinct: BTreeSet<_> = claimed.iter().collect();
    assert_eq!((claimed.len(), distinct.len()), (60, 60));
}

async fn row_that_is_put_off_comes_back_with_what_is_left<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let id = scene.push(&["both"], Duration::ZERO).await[0];
    assert_eq!(scene.claim(1).await, ["both"]);
    scene.put_off(&[(id, "one", millis(400))]).await;
    assert!(scene.claim(1).await.is_empty());
    scene.database.advance(millis(450)).await;
    let rows = scene.outbox.claim(1, LONG, Duration::ZERO).await.unwrap();
    assert_eq!((&*rows[0].text, rows[0].attempts), ("one", 1));
}

async fn rows_are_put_off_together<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let ids = scene.push(&["a", "b", "c"], Duration::ZERO).await;
    assert_eq!(scene.claim(10).await.len(), 3);
    let [a, b, c] = ids[..] else { unreachable!() };
    scene.outbox.done(&[b]).await.unwrap();
    // Out of order, beside one that was delivered meanwhile, and by two at once.
    let soon = [(c, "C", millis(100)), (b, "B", millis(100)), (a, "A", LONG)];
    let same = [(a, "A", LONG), (c, "C", millis(100))];
    join(scene.put_off(&soon), scene.put_off(&same)).await;
    scene.put_off(&[]).await;
    assert_eq!(scene.texts().await, ["A", "C"]);
    scene.database.advance(millis(150)).await;
    assert_eq!(scene.claim(10).await, ["C"]);
}

async fn done_rows_are_gone<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let ids = scene.push(&["a", "b", "c"], Duration::ZERO).await;
    let gone = [ids[0], ids[2]];
    // Again, by two at once, and beside one that never was.
    for _ in 0..2 {
        let more = [ids[2], ids[0], RowId::MAX];
        let (one, two) = join(scene.outbox.done(&gone), scene.outbox.done(&more)).await;
        one.and(two).unwrap();
    }
    assert_eq!(scene.outbox.left(&ids).await.unwrap(), [ids[1]]);
    assert!(scene.outbox.left(&gone).await.unwrap().is_empty());
    scene.outbox.done(&[]).await.unwrap();
    scene.put_off(&[(ids[0], "a", Duration::ZERO)]).await;
    assert_eq!(scene.texts().await.len(), 1);
}

async fn old_rows_are_dropped<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene.push(&["old", "older"], Duration::ZERO).await;
    assert_eq!(scene.outbox.drop_older(LONG).await.unwrap(), 0);
    scene.database.advance(millis(600)).await;
    scene.push(&["new"], Duration::ZERO).await;
    assert_eq!(scene.outbox.drop_older(millis(500)).await.unwrap(), 2);
    assert_eq!(scene.texts().await, ["new"]);
}

async fn backlog_is_counted<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let backlog = scene.outbox.backlog().await.unwrap();
    assert_eq!((backlog.rows, backlog.oldest), (0, None));
    scene.push(&["a"], LONG).await;
    scene.database.advance(millis(300)).await;
    scene.push(&["b"], LONG).await;
    let backlog = scene.outbox.backlog().await.unwrap();
    assert_eq!(backlog.rows, 2);
    assert!(
        backlog
            .oldest
            .is_some_and(|age| age >= millis(300) && age < LONG)
    );
}

// What the register is.

async fn minted_generation_is_listed_as_it_is<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let live = scene.generation("live").await.unwrap();
    let Edit::Mint {
        version,
        pool,
        holder,
        manifest,
        ..
    } = mint("live", LONG)
    else {
        unreachable!()
    };
    assert_eq!(
        (live.version, live.pool, live.holder, live.manifest),
        (version, pool, holder, manifest)
    );
    assert!(live.age < LONG / 2);
    assert!(live.left <= LONG && live.left > LONG / 2);
}

async fn generation_ends_unless_it_is_renewed<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    scene.edit([mint("short", millis(200))]).await;
    scene.database.advance(millis(250)).await;
    // It is listed until somebody deletes it, since writers still flush it; and so it can be renewed.
    let left = || async { scene.generation("short").await.unwrap().left };
    assert_eq!(left().await, Duration::ZERO);
    let renew = |ttl, unless| scene.outbox.renew("short", ttl, unless);
    assert!(renew(LONG, Duration::ZERO).await.unwrap());
    assert!(left().await > LONG / 2);
    assert!(renew(LONG * 10, LONG).await.unwrap());
    assert!(left().await <= LONG);
    let other = scene.outbox.renew("never", LONG, Duration::ZERO);
    assert!(!other.await.unwrap());
}

async fn ended_generation_is_listed_and_not_renewed<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let end = |id: &str| Edit::End { id: id.to_owned() };
    scene.edit([end("live"), end("never")]).await;
    let live = scene.generation("live").await;
    assert!(live.is_some_and(|live| live.left.is_zero()));
    let renewed = scene.outbox.renew("live", LONG, Duration::ZERO);
    assert!(!renewed.await.unwrap());
    let fresh = scene.outbox.renew("live", LONG, LONG);
    assert!(!fresh.await.unwrap());
}

async fn deleted_generation_leaves_its_rows<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let ids = scene.push(&["a"], Duration::ZERO).await;
    let delete = || Edit::Delete {
        id: "live".to_owned(),
    };
    scene.edit([delete()]).await;
    scene.edit([delete()]).await;
    assert_eq!(scene.generation("live").await, None);
    let renewed = scene.outbox.renew("live", LONG, Duration::ZERO);
    assert!(!renewed.await.unwrap());
    assert_eq!(scene.claim(1).await, ["a"]);
    scene.put_off(&[(ids[0], "b", LONG)]).await;
    scene.outbox.done(&ids).await.unwrap();
}

async fn open_transaction_holds_its_generation<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let mut tx = scene.begin().await;
    scene.push_in(&mut tx, "live", &["a"], LONG).await.unwrap();
    // Whoever deletes it ends it, or waits: deleted first, the commit would have to fail.
    let delete = scene.edit([Edit::Delete {
        id: "live".to_owned(),
    }]);
    let commit = async {
        scene.database.advance(millis(100)).await;
        scene.commit(tx).await;
    };
    join(delete, commit).await;
    assert_eq!(scene.texts().await, ["a"]);
    // Either way it is over, and stays so.
    let renewed = scene.outbox.renew("live", LONG, Duration::ZERO);
    assert!(!renewed.await.unwrap());
    let live = scene.generation("live").await;
    assert!(live.is_none_or(|live| live.left.is_zero()));
}

async fn refused_edit_changes_nothing<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let before = scene.outbox.read().await.unwrap().generations.len();
    let mut decide = |_: &Registered| Err(Error::new(ErrorKind::Config, "no"));
    let refused = scene.outbox.edit(&mut decide).await;
    assert_eq!(refused.unwrap_err().to_string(), "no");
    let registered = scene.outbox.read().await.unwrap();
    assert_eq!(registered.generations.len(), before);
    // And whoever comes next isn't kept waiting.
    scene.edit([mint("next", LONG)]).await;
}

async fn editors_are_alone<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    let other = scene.database.source().await;
    let other = other.outbox().expect("every handle has an outbox");
    let edits = (0..8).map(|nth| {
        let outbox = if nth % 2 == 0 { &scene.outbox } else { &other };
        async move {
            let mut decide = |known: &Registered| {
                let id = known.generations.len().to_string();
                Ok(vec![mint(&id, LONG)])
            };
            outbox.edit(&mut decide).await.unwrap();
        }
    });
    join_all(edits).await;
    for id in 1..=8 {
        assert!(scene.generation(&id.to_string()).await.is_some(), "{id}");
    }
}

async fn purged_accessor_keeps_its_former_epoch<D: Database>(database: D) {
    let scene = Scene::new(database).await;
    for (epoch, former) in [("1", None), ("2", Some("1")), ("3", Some("2"))] {
        scene
            .edit([Edit::Purge {
                accessor: "user".to_owned(),
                epoch: epoch.to_owned(),
            }])
            .await;
        let purges = scene.outbox.read().await.unwrap().purges;
        assert_eq!(purges.len(), 1);
        assert_eq!((&*purges[0].accessor, &*purges[0].epoch), ("user", epoch));
        assert_eq!(purges[0].former.as_deref(), former);
        assert!(purges[0].age < LONG);
    }
}

/// Runs the case of this name for [`database_conformance!`](crate::database_conformance!).
///
/// # Panics
///
/// If there is no such case, or the database breaks its contract.
pub async fn run_on_database<D: Database>(name: &str, database: D) {
    crate::__database_cases! { __database_dispatch { name database } }
}

/// Joins databases to the suite: for each line a module of that name with one test per case.
///
/// The attributes make each case a test; the expression makes its database, and may await. See
/// [`Database`](crate::conformance::Database).
#[macro_export]
macro_rules! database_conformance {
    ($(
        $(#[$attribute:meta])+
        $name:ident => $database:expr;
    )+) => {$(
        mod $name {
            use super::*;

            $crate::__database_cases! {
                __database_tests { [$(#[$attribute])+] [$database] }
            }
        }
    )+};
}

/// The list of cases, once, for whatever is made of it: the table and the tests.
#[doc(hidden)]
#[macro_export]
macro_rules! __database_cases {
    ($then:ident $context:tt) => {
        $crate::$then! {
            $context
            committed_write_is_there,
            dropped_transaction_is_rolled_back,
            savepoint_undoes_what_came_after_it,
            transaction_tells_whether_it_has_written,
            row_is_there_exactly_if_the_write_is,
            rows_are_listed_by_age_and_left_alone,
            every_row_of_a_push_has_an_id,
            push_under_a_generation_that_is_gone_fails,
            row_is_due_after_its_grace,
            longest_due_are_claimed_first,
            claimed_row_is_held_and_comes_back,
            one_claims_per_interval,
            idle_relay_keeps_nobody_from_the_next_row,
            every_row_is_claimed_by_one,
            row_that_is_put_off_comes_back_with_what_is_left,
            rows_are_put_off_together,
            done_rows_are_gone,
            old_rows_are_dropped,
            backlog_is_counted,
            minted_generation_is_listed_as_it_is,
            generation_ends_unless_it_is_renewed,
            ended_generation_is_listed_and_not_renewed,
            deleted_generation_leaves_its_rows,
            open_transaction_holds_its_generation,
            refused_edit_changes_nothing,
            editors_are_alone,
            purged_accessor_keeps_its_former_epoch,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __database_dispatch {
    ({ $name:ident $database:ident } $($case:ident,)+) => {
        match $name {
            $(stringify!($case) => $case($database).await,)+
            _ => panic!("there is no case `{}`", $name),
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __database_tests {
    ({ $attributes:tt $database:tt } $($case:ident,)+) => {
        $($crate::__database_test! { $attributes $database $case })+
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __database_test {
    ([$($attribute:tt)+] [$database:expr] $case:ident) => {
        $($attribute)+
        async fn $case() {
            $crate::conformance::run_on_database(stringify!($case), $database).await;
        }
    };
}
