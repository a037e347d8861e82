//! Flush plans: what is refused when a cache is built, what a guard refuses, and how a plan prints.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use larder_core::{
    CacheBuilder, Change, CommitError, Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime,
    LockRow, NoTier, Plain, Rows, Source, dataset, plan,
};
use serde::{Deserialize, Serialize};

use super::ledger::{Broken, Conn, Ledger};
use super::office::{
    Greeting, ON, Office, Process, Stream, User, UserById, UserField, ada, data_set, fresh,
};
use crate::read::shelf::HOUR;

/// Why no cache is built with this.
async fn refusal(with: impl FnOnce(CacheBuilder<Ledger>) -> CacheBuilder<Ledger>) -> String {
    let office = Office::new(ON);
    let refused = office.try_build(|builder| with(builder).version("1")).await;
    assert!(office.database.generations().is_empty());
    refused.map(drop).unwrap_err().to_string()
}

macro_rules! refuses {
    ($test:ident: $($dataset:ty),+ => $($said:literal),+) => {
        #[tokio::test(start_paused = true)]
        async fn $test() {
            let refusal = refusal(|builder| builder$(.register::<$dataset>())+).await;
            $(assert!(refusal.contains($said), "{refusal}");)+
        }
    };
}

data_set!(
    /// Has the name of another one.
    AnotherUser = "user": u64 => User;
    |plan| plan.id::<User>([UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id)
);

refuses!(two_data_sets_of_one_name_are_refused: UserById, AnotherUser => "two data sets", "`user`");

/// Another type for the same rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Visitor {
    id: u64,
    name: String,
}

impl Entity for Visitor {
    const NAME: &'static str = "user";
    type Id = u64;
    type Field = UserField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(UserField::Name, self.name != other.name)])
    }
}

data_set!(
    /// Watches the other type.
    VisitorName = "visitor_name": u64 => String;
    |plan| plan.id::<Visitor>([UserField::Name], |id| *id);
    |conn, id| conn.find::<Visitor>(*id).map(|visitor| visitor.name)
);

refuses!(two_types_that_are_one_entity_are_refused: UserById, VisitorName => "two types", "`user`");

/// Nothing that watches the one type would be flushed.
#[tokio::test(start_paused = true)]
async fn a_change_of_another_type_of_a_watched_entity_is_refused() {
    let office = Office::new(ON);
    let process = office.process().await;
    assert_eq!(process.name().await, "Ada");
    let mut tx = process.begin().await.unwrap();
    let visitor = Visitor {
        id: 7,
        name: "Grace".to_owned(),
    };
    tx.changed(Change::create(&visitor));
    let refused = tx.commit().await.unwrap_err();
    assert!(refused.to_string().contains("two types"), "{refused}");
}

data_set!(
    /// Says nothing of what makes it stale.
    Silent = "silent": u64 => User;
    |plan| _ = plan;
    |conn, id| conn.find::<User>(*id)
);

refuses!(data_that_may_change_without_a_plan_is_refused: Silent => "`silent`", "flush_on", "TtlOnly");

data_set!(
    /// Remembers that a user is absent, and isn't flushed when it is created.
    Late = "late": u64 => User;
    |plan| plan.existing([UserField::Name], |user: &User| [user.id]);
    |conn, id| conn.find::<User>(*id)
);

refuses!(absence_that_no_creation_flushes_is_refused: Late => "`late`", "absent", "ABSENT_TTL");

data_set!(
    /// The same, and remembers no absence.
    Existing = "existing": u64 => User, ABSENT_TTL: Option<Duration> = Some(Duration::ZERO);
    |plan| plan.existing([UserField::Name], |user: &User| [user.id]);
    |conn, id| conn.find::<User>(*id)
);

#[tokio::test(start_paused = true)]
async fn what_remembers_no_absence_needs_no_creation() {
    let office = Office::new(ON);
    let process = office
        .build(|builder| builder.register::<Existing>().version("1"))
        .await;
    let read = async |id| {
        let user = larder_core::get::<Existing>(&process.cache, &id).await;
        user.unwrap().map(|user| user.name)
    };
    assert_eq!(read(8).await, None);
    let new = User { id: 8, ..ada() };
    fresh(process.create(&new).await);
    let rows = office.database.outbox().concat();
    assert!(!rows.contains("existing"), "nothing was stale: {rows}");
    assert_eq!(read(8).await.as_deref(), Some("Ada"));
}

data_set!(
    /// Whether there is such a user; what it is called isn't shown.
    Known = "known": u64 => bool;
    |plan| plan.id::<User>(FieldBits::NONE, |id| *id);
    |conn, id| conn.find::<User>(*id).map(|_| true)
);

#[tokio::test(start_paused = true)]
async fn what_watches_no_field_is_flushed_by_creation_alone() {
    let office = Office::new(ON);
    let process = office
        .build(|builder| builder.register::<Known>().version("1"))
        .await;
    let read = async |id| {
        larder_core::get::<Known>(&process.cache, &id)
            .await
            .unwrap()
    };
    assert_eq!((read(7).await, read(8).await), (Some(true), None));
    fresh(process.rename("Augusta").await);
    let rows = office.database.outbox().concat();
    assert!(!rows.contains("known"), "nothing was stale: {rows}");
    fresh(process.create(&User { id: 8, ..ada() }).await);
    assert_eq!(read(8).await, Some(true));
}

/// An entity some of whose fields are changed by statements that touch many rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Message {
    id: u64,
    text: String,
    read: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageField {
    Text,
    Read,
}

impl FieldSet for MessageField {
    const ALL: &'static [Self] = &[Self::Text, Self::Read];

    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Read => "read",
        }
    }
}

impl Entity for Message {
    const NAME: &'static str = "message";
    const SET_BASED: FieldBits = FieldBits::at([1]);
    type Id = u64;
    type Field = MessageField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([
            (MessageField::Text, self.text != other.text),
            (MessageField::Read, self.read != other.read),
        ])
    }
}

impl LockRow<Ledger> for Message {
    async fn lock(conn: &mut Conn, id: &u64) -> Result<Option<Self>, Broken> {
        conn.lock(*id).await
    }
}

data_set!(
    /// Whether a message is read, by its id.
    IsRead = "is_read": u64 => bool;
    |plan| plan.id::<Message>([MessageField::Read], |id| *id);
    |conn, id| conn.find::<Message>(*id).map(|message| message.read)
);

data_set!(
    /// Messages by their text: needs images.
    ByText = "by_text": String => u64;
    |plan| plan.entity(FieldBits::ALL, |message: &Message| [message.text.clone()]);
    |conn, text| conn.all::<Message>().into_iter().find(|message| message.text == *text).map(|message| message.id)
);

refuses!(what_needs_images_of_set_based_fields_is_refused: IsRead, ByText => "`by_text`", "`message`", "SET_BASED");

#[tokio::test(start_paused = true)]
async fn rows_are_changed_without_images_where_their_ids_are_the_keys() {
    let office = Office::new(ON);
    for id in 1..=3 {
        office.database.write(&Message {
            id,
            text: format!("{id}"),
            read: false,
        });
    }
    let process = office
        .build(|builder| builder.register::<IsRead>().version("1"))
        .await;
    let all = async || {
        let read = larder_core::get_many::<IsRead>(&process.cache, [1, 2, 3]).await;
        read.unwrap().into_found()
    };
    assert_eq!(all().await, [false; 3]);
    let mut tx = process.begin().await.unwrap();
    for id in [1, 3] {
        let mut message = tx.find::<Message>(id).unwrap();
        message.read = true;
        tx.put(&message).await.unwrap();
    }
    tx.changed(Change::<Message>::rows([1, 3], [MessageField::Read]));
    fresh(tx.commit().await);
    assert_eq!(all().await, [true, false, true]);

    let mut tx = process.begin().await.unwrap();
    tx.changed(Change::<Message>::rows([1], [MessageField::Text]));
    let refused = tx.commit().await.map(drop).unwrap_err();
    assert!(matches!(refused, CommitError::Refused(_)), "{refused:?}");
    assert!(refused.to_string().contains("SET_BASED"), "{refused}");
}

refuses!(a_base_that_is_missing_is_refused: Greeting => "`greeting`", "`user`", "larder::dataset!");

macro_rules! circle {
    ($name:ident = $text:literal on $base:ty) => {
        data_set!(
            /// Part of a circle.
            $name = $text: u64 => User;
            |plan| plan.id::<User>([UserField::Name], |id| *id).base::<$base>();
            |conn, id| conn.find::<User>(*id)
        );
    };
}

circle!(Egg = "egg" on Hen);
circle!(Hen = "hen" on Chick);
circle!(Chick = "chick" on Egg);

refuses!(bases_in_a_circle_are_refused: Egg, Hen, Chick => "lead back to itself");

/// A write that the guard was told nothing of.
async fn silent_write(process: &Process, says: bool) -> Result<(), CommitError<Broken>> {
    let mut tx = process.begin().await.unwrap();
    tx.put(&ada()).await.unwrap();
    if says {
        tx.unchanged();
    }
    tx.commit().await.map(drop)
}

async fn strict(office: &Office) -> Process {
    office
        .build(|builder| builder.register::<UserById>().version("1").strict_writes())
        .await
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_wrote_and_said_nothing_is_refused_where_that_is_strict() {
    let office = Office::new(ON);
    let (strict, lax) = (
        strict(&office).await,
        office
            .build(|builder| builder.register::<UserById>().version("1"))
            .await,
    );
    let refused = silent_write(&strict, false).await.unwrap_err();
    let place = file!();
    assert!(
        refused.to_string().contains(place),
        "where it was begun: {refused}"
    );
    assert!(silent_write(&strict, true).await.is_ok());
    assert!(silent_write(&lax, false).await.is_ok());
    let nothing = strict.begin().await.unwrap().commit().await;
    assert!(nothing.is_ok(), "it wrote nothing");
}

/// A guard that is dropped with changes: the line after this function's name is where it was begun.
async fn forgotten(process: &Process) {
    let mut tx = process.begin().await.unwrap();
    let before = tx.lock::<User>(&7).await.unwrap().unwrap();
    tx.changed(Change::delete(&before));
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_with_changes_panics_where_that_is_strict() {
    let office = Office::new(ON);
    let process = strict(&office).await;
    let dropped = futures_catch(forgotten(&process)).await;
    let message = *dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains(file!()), "{message}");
    assert!(
        message.contains("neither committed nor rolled back"),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_guard_that_is_dropped_with_changes_is_counted() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.name().await;
    let loaded = process.line.loaded();
    forgotten(&process).await;
    drop(process.begin().await.unwrap());
    assert_eq!(process.stats().writes.dropped, 1);
    assert_eq!(process.name().await, "Ada");
    assert_eq!(process.line.loaded(), loaded, "and rolled back");
}

/// The panic of a future.
async fn futures_catch<F: Future>(future: F) -> std::thread::Result<F::Output> {
    let mut future = Box::pin(future);
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(context));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_transaction_commits_on_ok_and_rolls_back_on_an_error() {
    let office = Office::new(ON);
    let process = office.process().await;
    let renamed = |name: &str| User {
        name: name.to_owned(),
        ..ada()
    };
    let rename = async |name: &str, answer: Result<u8, Broken>| {
        let after = renamed(name);
        let done = process.transaction(async |tx| {
            let before = tx.lock::<User>(&7).await?.ok_or(Broken("nobody"))?;
            tx.put(&after).await?;
            tx.changed(Change::update(&before, &after));
            answer
        });
        done.await
            .map(|(answer, committed)| (answer, committed.flush.is_fresh()))
    };
    assert_eq!(rename("Grace", Ok(3)).await.unwrap(), (3, true));
    assert_eq!(process.name().await, "Grace");
    let undone = rename("Hedy", Err(Broken("no"))).await.unwrap_err();
    assert_eq!(undone.to_string(), "no");
    assert_eq!(process.name().await, "Grace");
}

#[tokio::test(start_paused = true)]
async fn a_creation_and_a_deletion_are_seen() {
    let office = Office::new(ON);
    let process = office.process().await;
    assert_eq!(process.name_of("grace@office").await, "");
    let grace = User {
        id: 8,
        email: "grace@office".to_owned(),
        name: "Grace".to_owned(),
    };
    fresh(process.create(&grace).await);
    assert_eq!(process.name_of("grace@office").await, "Grace");
    let mut tx = process.begin().await.unwrap();
    let before = tx.lock::<User>(&8).await.unwrap().unwrap();
    tx.remove::<User>(8).await.unwrap();
    tx.changed(Change::delete(&before));
    fresh(tx.commit().await);
    assert_eq!(process.name_of("grace@office").await, "");
}

/// What doesn't change what a data set watches, leaves it.
#[tokio::test(start_paused = true)]
async fn fields_that_nobody_watches_flush_nothing() {
    let office = Office::new(ON);
    let process = office.process().await;
    process.greeting().await;
    let loaded = process.line.loaded();
    fresh(
        process
            .update(|user: &mut User| user.email = "x@office".into(), 7)
            .await,
    );
    assert_eq!(process.greeting().await, "hello Ada");
    assert_eq!(
        process.line.loaded(),
        loaded,
        "a greeting shows the name alone"
    );
}

/// A source of its own, since what a program is linked with is part of every cache of its source.
#[derive(Clone)]
struct Library;

impl Source for Library {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

struct Book;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BookField {
    Title,
    Shelf,
}

impl FieldSet for BookField {
    const ALL: &'static [Self] = &[Self::Title, Self::Shelf];

    fn name(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Shelf => "shelf",
        }
    }
}

impl Entity for Book {
    const NAME: &'static str = "book";
    type Id = u64;
    type Field = BookField;

    fn id(&self) -> u64 {
        0
    }

    fn diff(&self, _: &Self) -> FieldBits {
        FieldBits::ALL
    }
}

macro_rules! linked {
    ($name:ident = $text:literal |$plan:ident| $declare:expr) => {
        enum $name {}

        impl Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
            const ABSENT_TTL: Option<Duration> = Some(Duration::ZERO);
            type Source = Library;
            type Key = u64;
            type Value = String;
            type Form = Plain;
            type Tier = NoTier;
            type Error = Infallible;

            fn flush_on($plan: &mut FlushOn<Self>) {
                $declare;
            }

            async fn load(_: &mut (), _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
                Ok(Vec::new())
            }
        }
    };
}

linked!(Title = "title" | plan | plan.id::<Book>([BookField::Title], |id| *id));
linked!(
    OnShelf = "on_shelf"
        | plan
        | plan
            .entity([BookField::Shelf, BookField::Title], |_: &Book| [1])
            .existing(FieldBits::ALL, |_: &Book| [2])
);

dataset!(Title, OnShelf);

#[test]
fn a_plan_prints_a_line_per_declaration() {
    let plan = plan::<Book>();
    assert_eq!(
        plan.to_string(),
        "on_shelf on book: any field; deleted; keys of both images\n\
         on_shelf on book: title, shelf; created, deleted; keys of both images\n\
         title on book: title; created, deleted; the key of its id\n"
    );
    let accessors: Vec<&str> = plan.accessors().collect();
    assert_eq!(accessors, ["on_shelf", "on_shelf", "title"]);
}

#[test]
fn what_nobody_watches_prints_that() {
    assert_eq!(
        plan::<Stream>().to_string(),
        "stream: nothing cached watches it\n"
    );
}
