//! Versions of the code, and configurations of the pool, that run side by side: what one caches, the others flush.

use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    CacheBuilder, CommitError, Dataset, ErrorKind, FlushOn, Lifetime, Mechanism, NoTier, Plain,
    Rows, get,
};
use serde::{Deserialize, Serialize};
use tracing::Level;

use super::ledger::{Broken, Conn, Ledger};
use super::log::Log;
use super::office::{
    ON, Office, Process, User, UserById, UserField, Without, data_set, everything, fresh, pending,
    shows,
};
use super::servers::Servers;
use crate::read::shelf::HOUR;

/// Longer than a generation that isn't the first waits.
const ACTIVE: Duration = Duration::from_secs(3);

/// A registration has ended, and others have noticed.
const ENDED: Duration = Duration::from_secs(75);

/// The user of the next version, with a field more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Named {
    name: String,
    initials: String,
}

data_set!(
    /// The same data set as [`UserById`], of another type.
    UserWithInitials = "user": u64 => Named;
    |plan| plan.id::<User>([UserField::Email, UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| Named {
        initials: user.name.chars().take(1).collect(),
        name: user.name,
    })
);

data_set!(
    /// The same data set, with other keys: `u7`.
    UserByText = "user": String => User;
    |plan| plan.id::<User>([UserField::Email, UserField::Name], |id| format!("u{id}"));
    |conn, text| conn.find::<User>(text.strip_prefix('u')?.parse().ok()?)
);

data_set!(
    /// A card that shows the address alone.
    Card = "card": u64 => String;
    |plan| plan.id::<User>([UserField::Email], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| user.email)
);

data_set!(
    /// The card of the next version, which shows the name.
    CardWithName = "card": u64 => String;
    |plan| plan.id::<User>([UserField::Email, UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| user.name)
);

data_set!(
    /// One whose entries outlive a deploy.
    Lasting = "lasting": u64 => String, OUTLIVES_DEPLOYS: bool = true, REVISION: u32 = 1;
    |plan| plan.id::<User>([UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| user.name)
);

data_set!(
    /// The same with another meaning.
    LastingAnew = "lasting": u64 => String, OUTLIVES_DEPLOYS: bool = true, REVISION: u32 = 2;
    |plan| plan.id::<User>([UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id).map(|user| format!("{}!", user.name))
);

/// What user 7 has in a data set of texts.
pub(super) async fn text<D>(process: &Process) -> String
where
    D: Dataset<Source = Ledger, Key = u64, Value = String, Tier = NoTier, Error = Broken>,
{
    get::<D>(&process.cache, &7)
        .await
        .unwrap()
        .unwrap_or_default()
}

async fn version(
    office: &Office,
    version: &str,
    with: impl FnOnce(CacheBuilder<Ledger>) -> CacheBuilder<Ledger>,
) -> Process {
    let process = office.build(|builder| with(builder).version(version)).await;
    tokio::time::sleep(ACTIVE).await;
    process
}

/// Both versions cache it, each its own type, and each flushes both.
#[tokio::test(start_paused = true)]
async fn a_writer_flushes_a_type_that_it_does_not_have() {
    async fn schedule(without: Without) -> (String, usize) {
        let office = Office::new(without);
        let old = office
            .build(|b| b.register::<UserById>().version("1"))
            .await;
        let new = version(&office, "2", |b| b.register::<UserWithInitials>()).await;
        let named = async || {
            let named = get::<UserWithInitials>(&new.cache, &7)
                .await
                .unwrap()
                .unwrap();
            assert!(named.name.starts_with(&named.initials));
            named.name
        };
        named().await;
        named().await;
        let loaded = new.line.loaded();
        fresh(old.rename("Grace").await);
        (named().await, loaded)
    }
    shows(
        Mechanism::EveryGeneration,
        schedule,
        ("Grace".into(), 1),
        ("Ada".into(), 1),
    )
    .await;
}

/// The old version would flush `user:7`, and the new one has it as `user:u7`.
#[tokio::test(start_paused = true)]
async fn a_data_set_with_other_keys_is_not_cached_beside_its_former_self() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office
            .build(|b| b.register::<UserById>().version("1"))
            .await;
        let new = version(&office, "2", |b| b.register::<UserByText>()).await;
        let read = async || get::<UserByText>(&new.cache, &"u7".to_owned()).await;
        read().await.unwrap();
        fresh(old.rename("Grace").await);
        read().await.unwrap().unwrap().name
    }
    shows(
        Mechanism::ManifestRule,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_data_set_that_only_one_version_has_is_not_cached() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office
            .build(|b| b.register::<UserById>().version("1"))
            .await;
        let new = version(&office, "2", everything).await;
        new.name_of("ada@office").await;
        fresh(old.rename("Grace").await);
        new.name_of("ada@office").await
    }
    shows(
        Mechanism::ManifestRule,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// To the old version the write changes nothing that the card shows.
#[tokio::test(start_paused = true)]
async fn a_data_set_that_watches_more_is_not_cached_beside_its_former_self() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office
            .build(|b| b.register::<UserById>().register::<Card>().version("1"))
            .await;
        let new = version(&office, "2", |b| b.register::<CardWithName>()).await;
        text::<CardWithName>(&new).await;
        fresh(old.rename("Grace").await);
        text::<CardWithName>(&new).await
    }
    shows(
        Mechanism::ManifestRule,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// The other way round: the new version has dropped what the old one has cached, and still reads.
#[tokio::test(start_paused = true)]
async fn what_the_new_version_dropped_is_not_read_by_the_old_one() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office.process().await;
        old.name_of("ada@office").await;
        let new = office
            .build(|b| b.register::<UserById>().version("2"))
            .await;
        fresh(new.rename("Grace").await);
        old.name_of("ada@office").await
    }
    for mechanism in [Mechanism::ManifestRule, Mechanism::Activation] {
        shows(mechanism, schedule, "Grace".into(), "Ada".into()).await;
    }
}

/// Nor once the new version is gone again: what it wrote was flushed of nothing that it had dropped.
#[tokio::test(start_paused = true)]
async fn what_a_version_that_is_gone_could_not_flush_is_given_up() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office.process().await;
        old.name_of("ada@office").await;
        let new = office
            .build(|b| b.register::<UserById>().version("2"))
            .await;
        fresh(new.rename("Grace").await);
        new.line.cut(true);
        tokio::time::sleep(ENDED).await;
        old.name_of("ada@office").await
    }
    let new = "Grace".into();
    shows(Mechanism::PurgeAtEnd, schedule, new, "Ada".into()).await;
}

/// The same while the old version can't ask the register, or sleeps: it stops reading before the new one commits.
#[tokio::test(start_paused = true)]
async fn a_reader_who_knows_nothing_of_the_new_version_reads_past_the_store() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let old = office.process().await;
        old.name_of("ada@office").await;
        old.line.cut(true);
        let new = office
            .build(|b| b.register::<UserById>().version("2"))
            .await;
        fresh(new.rename("Grace").await);
        old.line.cut(false);
        old.name_of("ada@office").await
    }
    for mechanism in [Mechanism::Registration, Mechanism::Activation] {
        shows(mechanism, schedule, "Grace".into(), "Ada".into()).await;
    }
}

/// It needn't wait for that where it can flush all that others cache.
#[tokio::test(start_paused = true)]
async fn a_version_with_the_same_plans_commits_soon() {
    let office = Office::new(ON);
    let _old = office.process().await;
    let new = office.version("2").await;
    let began = tokio::time::Instant::now();
    fresh(new.rename("Grace").await);
    assert!(began.elapsed() < ACTIVE, "{:?}", began.elapsed());
}

/// The first one waits for nobody.
#[tokio::test(start_paused = true)]
async fn the_first_generation_fills_and_commits_at_once() {
    let office = Office::new(ON);
    let began = tokio::time::Instant::now();
    let process = office.process().await;
    process.name().await;
    process.name().await;
    fresh(process.rename("Grace").await);
    assert_eq!(process.line.loaded(), 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// Once the old version is gone, what only the new one has is cached, though no process starts.
#[tokio::test(start_paused = true)]
async fn what_only_the_new_version_has_is_cached_when_the_old_one_has_ended() {
    let office = Office::new(ON);
    let old = office
        .build(|b| b.register::<UserById>().version("1"))
        .await;
    let new = version(&office, "2", everything).await;
    let uncached = |process: &Process| process.stats().uncached.contains_key("user_by_email");
    assert!(uncached(&new));
    assert_eq!(new.stats().generations.len(), 2);
    old.line.cut(true);
    tokio::time::sleep(ENDED).await;
    assert!(!uncached(&new));
    assert_eq!(office.database.generations().len(), 1);
    new.name_of("ada@office").await;
    let loaded = new.line.loaded();
    assert_eq!(new.name_of("ada@office").await, "Ada");
    assert_eq!(new.line.loaded(), loaded);
}

/// A rollback: the old version comes back after its registration has ended, and finds nothing of what it had.
#[tokio::test(start_paused = true)]
async fn a_version_that_comes_back_starts_cold() {
    let office = Office::new(ON);
    let before = office.version("1").await;
    before.name().await;
    before.line.cut(true);
    tokio::time::sleep(ENDED).await;
    let new = office.version("2").await;
    fresh(new.rename("Grace").await);
    let again = office.version("1").await;
    assert_ne!(again.prefix(), before.prefix());
    tokio::time::sleep(ACTIVE).await;
    assert_eq!(again.name().await, "Grace");
}

/// And one that comes back in time joins its generation, which the other version has flushed meanwhile.
#[tokio::test(start_paused = true)]
async fn a_version_that_comes_back_in_time_was_flushed() {
    let office = Office::new(ON);
    let before = office.version("1").await;
    before.name().await;
    before.line.cut(true);
    let new = office.version("2").await;
    fresh(new.rename("Grace").await);
    let again = office.version("1").await;
    assert_eq!(again.prefix(), before.prefix());
    assert_eq!(again.name().await, "Grace");
}

/// A writer that couldn't ask for a while asks after its commit, before it says that all is flushed.
#[tokio::test(start_paused = true)]
async fn a_writer_asks_who_is_live_after_its_commit() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let writer = office.version("1").await;
        writer.line.cut(true);
        let new = office.version("2").await;
        tokio::time::sleep(ACTIVE).await;
        new.name().await;
        writer.line.cut(false);
        fresh(writer.rename("Grace").await);
        new.name().await
    }
    shows(
        Mechanism::RegisterAfterCommit,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// A writer's copy of the register may be 2 s old: so long nothing is filled that isn't in it.
#[tokio::test(start_paused = true)]
async fn a_new_generation_waits_before_its_first_fill() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let writer = office.version("1").await;
        let new = office.version("2").await;
        new.name().await;
        fresh(writer.rename("Grace").await);
        tokio::time::sleep(ACTIVE).await;
        new.name().await
    }
    shows(
        Mechanism::Activation,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// The age of a registration is that of the moment at which the database was asked: a slow way to it doesn't shorten the
/// wait.
#[tokio::test(start_paused = true)]
async fn a_slow_look_at_the_register_does_not_shorten_the_wait() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let writer = office.version("1").await;
        writer.line.cut(true);
        let line = office.database.line();
        line.looks().close();
        let entering = tokio::spawn({
            let (office, line) = (office.clone(), line.clone());
            async move { office.build_on(line, |b| everything(b).version("2")).await }
        });
        line.looks().arrived().await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        line.looks().open();
        let new = entering.await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        new.name().await;
        writer.line.cut(false);
        fresh(writer.rename("Grace").await);
        new.name().await
    }
    shows(
        Mechanism::Activation,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// A generation is as old as its row, which nobody sees before that is committed: the first who does waits all the same.
#[tokio::test(start_paused = true)]
async fn a_registration_that_is_slow_to_commit_does_not_shorten_the_wait() {
    for slow in [20, 50, 58].map(Duration::from_secs) {
        let office = Office::new(ON);
        let writer = office.version("1").await;
        let line = office.database.line();
        line.edits().close();
        let first = office.build_on(line.clone(), |b| everything(b).version("2"));
        assert!(first.await.is_err(), "it waits no longer");
        tokio::time::sleep(slow - Duration::from_secs(10)).await;
        writer.line.cut(true);
        line.edits().open();
        let new = office.version("2").await;
        new.name().await;
        writer.line.cut(false);
        fresh(writer.rename("Grace").await);
        tokio::time::sleep(ACTIVE).await;
        assert_eq!(new.name().await, "Grace", "{slow:?}");
    }
}

/// Each costs every write an exchange.
#[tokio::test(start_paused = true)]
async fn more_than_three_live_generations_are_warned_of() {
    let office = Office::new(ON);
    let (log, _guard) = Log::listen();
    let warned = async || {
        tokio::time::sleep(Duration::from_secs(5)).await;
        log.count(Level::WARN, "many generations are live")
    };
    let mut processes = Vec::new();
    for version in ["1", "2", "3"] {
        processes.push(office.version(version).await);
    }
    assert_eq!(warned().await, 0);
    processes.push(office.version("4").await);
    assert_eq!(warned().await, 4, "each process says it");
    assert_eq!(warned().await, 4, "once");
    processes.push(office.version("5").await);
    assert_eq!(warned().await, 9, "and again if there are more");
}

/// Two configurations of the pool are two generations, and a writer flushes both pools.
#[tokio::test(start_paused = true)]
async fn another_pool_is_flushed_too() {
    async fn schedule(without: Without) -> [String; 2] {
        let here = Office::new(without).on(&Servers::new("here", &[]));
        let there = here.on(&Servers::new("there", &[]));
        let reaching = async |office: &Office| {
            let pools = [Arc::clone(&here.store), Arc::clone(&there.store)];
            let open = move |description: &str, _| {
                let mut pools = pools.iter();
                let pool = pools.find(|pool| pool.pool().description == description);
                Ok(Arc::clone(pool.expect("there are two")))
            };
            let build = |b| everything(b).version("1").open_pools(open);
            office.build(build).await
        };
        let (reader, writer) = (reaching(&here).await, reaching(&there).await);
        tokio::time::sleep(ACTIVE).await;
        reader.name().await;
        writer.name().await;
        fresh(writer.rename("Grace").await);
        let seen = reader.name().await;
        writer.name().await;
        fresh(reader.rename("Hedy").await);
        [seen, writer.name().await]
    }
    shows(
        Mechanism::EveryGeneration,
        schedule,
        ["Grace".into(), "Hedy".into()],
        ["Ada".into(), "Grace".into()],
    )
    .await;
}

/// A writer who can't open the other pool can't say that everybody sees the write.
#[tokio::test(start_paused = true)]
async fn a_pool_that_cannot_be_opened_leaves_the_flush_pending() {
    let here = Office::new(ON).on(&Servers::new("here", &[]));
    let there = here.on(&Servers::new("there", &[]));
    let (reader, writer) = (here.process().await, there.process().await);
    tokio::time::sleep(ACTIVE).await;
    reader.name().await;
    let pending = pending(writer.rename("Grace").await);
    assert!(
        pending.cause().to_string().contains("here"),
        "{:?}",
        pending.cause()
    );
    assert_eq!(writer.name().await, "Grace");
    // The other process can't reach this pool either: what both need is `open_pools`.
    reader.line.cut(true);
    tokio::time::sleep(ENDED).await;
    assert!(
        pending.delivered().await,
        "the registration of the other has ended"
    );
}

/// A store in the process isn't shared: two of them on one database would never see each other's writes.
#[tokio::test(start_paused = true)]
async fn a_second_private_store_on_one_database_is_refused() {
    let office = Office::new(ON).privately();
    let first = office.process().await;
    let second = office.privately();
    let refused = second.try_build(|b| everything(b).version("1")).await;
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("bounded"), "{error}");
    let apart = second.build(|b| everything(b).version("1").bounded()).await;
    apart.close(Duration::from_secs(1)).await;
    first.close(Duration::from_secs(1)).await;
    second.process().await;
}

/// A build that is refused leaves no registration behind.
#[tokio::test(start_paused = true)]
async fn a_refused_build_registers_nothing() {
    let office = Office::new(ON);
    let circle = office
        .try_build(|b| b.register::<super::office::Greeting>())
        .await;
    assert!(circle.is_err(), "its base is missing");
    assert!(office.database.generations().is_empty());
}

/// Of two processes of one version, one was linked with less: the other's data sets aren't cached until it has learned of
/// them, and from then on it refuses to commit what it can't flush.
#[tokio::test(start_paused = true)]
async fn a_process_that_lacks_a_data_set_refuses_changes_of_its_entity() {
    let office = Office::new(ON);
    let less = office
        .build(|b| b.register::<UserById>().version("1"))
        .await;
    let more = office.version("1").await;
    assert_eq!(more.name_of("ada@office").await, "Ada");
    fresh(less.rename("Grace").await);
    assert_eq!(
        more.name_of("ada@office").await,
        "Grace",
        "it wasn't cached"
    );
    tokio::time::sleep(ACTIVE).await;
    let refused = less.rename("Hedy").await.map(drop).unwrap_err();
    assert!(matches!(refused, CommitError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("larder::link!"), "{refused}");
    assert_eq!(less.name().await, "Grace", "it may read");
    assert_eq!(less.prefix(), more.prefix());
    tokio::time::sleep(ENDED).await;
    more.name_of("ada@office").await;
    let loaded = more.line.loaded();
    more.name_of("ada@office").await;
    assert_eq!(more.line.loaded(), loaded, "it is cached now");
}

/// Even if it has no data set at all of that entity, as a worker whose crate was never named.
#[tokio::test(start_paused = true)]
async fn a_process_that_lacks_every_data_set_of_an_entity_refuses_its_changes() {
    let office = Office::new(ON);
    let worker = office
        .build(|b| b.register::<UserById>().version("1"))
        .await;
    let web = office.version("1").await;
    tokio::time::sleep(ENDED).await;
    assert_eq!(web.streams(7).await, "general");
    let renames = |stream: &mut super::office::Stream| stream.name = "lobby".to_owned();
    let refused = worker.update(renames, 5).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("`streams_of`"), "{refused}");
    assert_eq!(web.streams(7).await, "general", "which is true");
}

/// Two builds that say they are the same version, and aren't.
#[tokio::test(start_paused = true)]
async fn another_build_under_the_same_version_is_refused() {
    let office = Office::new(ON);
    let _one = office.build(|b| b.register::<Card>().version("1")).await;
    let other = office
        .try_build(|b| b.register::<CardWithName>().version("1"))
        .await;
    let error = other.map(drop).unwrap_err();
    assert!(
        error.to_string().contains("a version of its own"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_purge_gives_up_entries_everywhere() {
    let office = Office::new(ON);
    let (one, other) = (office.process().await, office.process().await);
    for process in [&one, &other] {
        process.name().await;
        process.name_of("ada@office").await;
    }
    office.database.write(&User {
        name: "Grace".to_owned(),
        ..super::office::ada()
    });
    assert_eq!(other.name().await, "Ada", "nobody was told");
    one.purge("user").await.unwrap();
    assert_eq!(one.name().await, "Grace");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(other.name().await, "Grace");
    assert_eq!(
        other.name_of("ada@office").await,
        "Ada",
        "only that data set"
    );
    tokio::time::sleep(ACTIVE).await;
    one.name().await;
    let loaded = one.line.loaded();
    one.name().await;
    assert_eq!(one.line.loaded(), loaded, "it is cached again");
    fresh(other.rename("Hedy").await);
    assert_eq!(one.name().await, "Hedy");
    assert!(one.purge("user").await.is_err(), "not so soon again");
    tokio::time::sleep(ENDED).await;
    one.purge("user").await.unwrap();
    assert!(one.purge("nothing").await.is_err());
}

/// A writer who doesn't know of the purge yet flushes the keys from before.
#[tokio::test(start_paused = true)]
async fn a_purged_data_set_waits_before_its_next_fill() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let (writer, reader) = (office.process().await, office.process().await);
        reader.name().await;
        reader.purge("user").await.unwrap();
        reader.name().await;
        fresh(writer.rename("Grace").await);
        tokio::time::sleep(ACTIVE).await;
        reader.name().await
    }
    shows(
        Mechanism::Activation,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// And a reader who doesn't know of it yet reads those, which are flushed as well.
#[tokio::test(start_paused = true)]
async fn entries_from_before_a_purge_are_flushed_while_they_may_be_read() {
    let office = Office::new(ON);
    let (writer, reader) = (office.process().await, office.process().await);
    reader.name().await;
    reader.line.cut(true);
    writer.purge("user").await.unwrap();
    tokio::time::sleep(ACTIVE).await;
    reader.line.cut(false);
    fresh(writer.rename("Grace").await);
    assert_eq!(reader.name().await, "Grace");
}

/// The database was restored to an earlier state: what is cached is newer than what is true.
#[tokio::test(start_paused = true)]
async fn after_a_rotation_every_process_begins_anew() {
    let office = Office::new(ON);
    let (one, other) = (office.process().await, office.process().await);
    one.name().await;
    let before = one.prefix();
    office.database.write(&User {
        name: "Restored".to_owned(),
        ..super::office::ada()
    });
    assert_eq!(other.name().await, "Ada");
    one.rotate().await.unwrap();
    assert_eq!(one.name().await, "Restored");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(other.name().await, "Restored");
    assert_ne!(one.prefix(), before);
    assert_eq!(one.prefix(), other.prefix());
    fresh(other.rename("Grace").await);
    assert_eq!(one.name().await, "Grace");
}

/// What was committed before is flushed where somebody may still read who doesn't know of the rotation.
#[tokio::test(start_paused = true)]
async fn what_a_rotation_has_ended_is_flushed_while_it_may_be_read() {
    async fn schedule(without: Without) -> String {
        let office = Office::new(without);
        let gate = office.gate();
        let writer = office.on(&gate).process().await;
        let reader = office.process().await;
        reader.name().await;
        reader.line.cut(true);
        gate.set_deaf_to_deletes(true);
        let pending = pending(writer.rename("Grace").await);
        writer.rotate().await.unwrap();
        gate.set_deaf_to_deletes(false);
        assert!(pending.delivered().await);
        reader.line.cut(false);
        reader.name().await
    }
    shows(
        Mechanism::Activation,
        schedule,
        "Grace".into(),
        "Ada".into(),
    )
    .await;
}

/// A commit under way holds its generation, which is ended nevertheless.
#[tokio::test(start_paused = true)]
async fn a_rotation_waits_for_no_commit_under_way() {
    let office = Office::new(ON);
    let (writer, operator) = (office.process().await, office.process().await);
    operator.name().await;
    let before = operator.prefix();
    office.database.arriving_commits().close();
    let rename = tokio::spawn({
        let writer = writer.clone();
        async move { writer.rename("Grace").await }
    });
    office.database.arriving_commits().arrived().await;
    operator.rotate().await.unwrap();
    assert_ne!(operator.prefix(), before);
    tokio::time::sleep(ACTIVE).await;
    assert_eq!(writer.prefix(), operator.prefix());
    assert_eq!(operator.name().await, "Ada");
    office.database.arriving_commits().open();
    fresh(rename.await.unwrap());
    assert_eq!(operator.name().await, "Grace");
}

#[tokio::test(start_paused = true)]
async fn lasting_entries_survive_a_second_version() {
    let office = Office::new(ON);
    let first = office.build(|b| b.register::<Lasting>().version("1")).await;
    text::<Lasting>(&first).await;
    let with = |b: CacheBuilder<Ledger>| b.register::<Lasting>().register::<UserById>();
    let second = version(&office, "2", with).await;
    assert_eq!(text::<Lasting>(&second).await, "Ada");
    assert_eq!(second.line.loaded(), 0, "the first version had filled it");
    fresh(second.rename("Grace").await);
    assert_eq!(text::<Lasting>(&first).await, "Grace");
}

/// A, then B with another meaning, then A again: what A had is from before B's writes.
#[tokio::test(start_paused = true)]
async fn lasting_entries_do_not_outlive_a_time_without_them() {
    let office = Office::new(ON);
    let first = office.build(|b| b.register::<Lasting>().version("1")).await;
    assert_eq!(text::<Lasting>(&first).await, "Ada");
    first.line.cut(true);
    tokio::time::sleep(ENDED).await;
    let second = version(&office, "2", |b| b.register::<LastingAnew>()).await;
    assert_eq!(text::<LastingAnew>(&second).await, "Ada!");
    fresh(second.rename("Grace").await);
    let again = version(&office, "3", |b| b.register::<Lasting>()).await;
    assert_eq!(text::<Lasting>(&again).await, "Grace");
    second.line.cut(true);
    tokio::time::sleep(ENDED).await;
    assert_eq!(text::<Lasting>(&again).await, "Grace");
}

/// A data set that never changes is nobody's to flush, so that no version keeps it from being cached.
enum Constant {}

impl Dataset for Constant {
    const NAME: &'static str = "constant";
    const LIFETIME: Lifetime = Lifetime::TtlOnly(HOUR);
    type Source = Ledger;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(_: &mut FlushOn<Self>) {}

    async fn load(conn: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        conn.loaded().await;
        Ok(ids.into_iter().map(|id| (id, id.to_string())).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_flushes_is_cached_beside_any_version() {
    let office = Office::new(ON);
    let _old = office.process().await;
    let new = version(&office, "2", |b| everything(b).register::<Constant>()).await;
    text::<Constant>(&new).await;
    assert_eq!(text::<Constant>(&new).await, "7");
    assert_eq!(new.line.loaded(), 1);
}

/// No manifest lists it, so that nobody would read it elsewhere.
#[tokio::test(start_paused = true)]
async fn what_was_not_registered_cannot_be_purged() {
    let office = Office::new(ON);
    let process = office.process().await;
    text::<Constant>(&process).await;
    let refused = process.purge("constant").await.unwrap_err();
    assert!(refused.to_string().contains("dataset!"), "{refused}");
    let process = version(&office, "2", |b| everything(b).register::<Constant>()).await;
    text::<Constant>(&process).await;
    process.purge("constant").await.unwrap();
    tokio::time::sleep(ACTIVE).await;
    let loaded = process.line.loaded();
    text::<Constant>(&process).await;
    assert_eq!(process.line.loaded(), loaded + 1);
}

data_set!(
    /// Flushed by the application.
    ByHand = "by_hand": u64 => String;
    |plan| plan.by_hand();
    |conn, id| conn.find::<User>(*id).map(|user| user.name)
);

/// Other versions can't know its keys, or that they have to.
#[tokio::test(start_paused = true)]
async fn what_is_flushed_by_hand_is_cached_beside_other_versions_if_all_list_it() {
    let office = Office::new(ON);
    let process = office.process().await;
    text::<ByHand>(&process).await;
    text::<ByHand>(&process).await;
    assert_eq!(process.line.loaded(), 2, "it isn't listed");
    let listed = version(&office, "2", |b| b.register::<ByHand>()).await;
    text::<ByHand>(&listed).await;
    text::<ByHand>(&listed).await;
    assert_eq!(listed.line.loaded(), 2, "by one version alone");
    process.line.cut(true);
    tokio::time::sleep(ENDED).await;
    text::<ByHand>(&listed).await;
    text::<ByHand>(&listed).await;
    assert_eq!(listed.line.loaded(), 3);
}
