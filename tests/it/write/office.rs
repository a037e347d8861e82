//! What these tests write and read: users, the streams they are members of, and what is cached of them.

use std::ops::Deref;
use std::sync::Arc;

use larder_core::{
    Backend, Cache, CacheBuilder, Change, CommitError, Committed, Dataset, Entity, FieldBits,
    FieldSet, Flush, FlushOn, FlushQuery, Lifetime, LockRow, Mechanism, NoTier, Plain, Rows, get,
};
use serde::{Deserialize, Serialize};

use super::ledger::{Broken, Conn, Database, Ledger};
use super::servers::Servers;
use crate::read::gate::Gate;
use crate::read::shelf::{HOUR, clock, memory};

/// A user of the office.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct User {
    pub(super) id: u64,
    pub(super) email: String,
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UserField {
    Email,
    Name,
}

impl FieldSet for UserField {
    const ALL: &'static [Self] = &[Self::Email, Self::Name];

    fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Name => "name",
        }
    }
}

impl Entity for User {
    const NAME: &'static str = "user";
    type Id = u64;
    type Field = UserField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([
            (UserField::Email, self.email != other.email),
            (UserField::Name, self.name != other.name),
        ])
    }
}

/// What users talk in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stream {
    pub(super) id: u64,
    pub(super) name: String,
}

/// That a user is in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) id: u64,
    pub(super) user: u64,
    pub(super) stream: u64,
}

/// The one field of entities whose every change counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Row,
}

impl FieldSet for Whole {
    const ALL: &'static [Self] = &[Self::Row];

    fn name(self) -> &'static str {
        "row"
    }
}

impl Entity for Stream {
    const NAME: &'static str = "stream";
    type Id = u64;
    type Field = Whole;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(Whole::Row, self != other)])
    }
}

impl Entity for Member {
    const NAME: &'static str = "member";
    type Id = u64;
    type Field = Whole;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(Whole::Row, self != other)])
    }
}

macro_rules! locked {
    ($($entity:ty),+) => {$(
        impl LockRow<Ledger> for $entity {
            async fn lock(conn: &mut Conn, id: &u64) -> Result<Option<Self>, Broken> {
                conn.lock(*id).await
            }
        }
    )+};
}

locked!(User, Stream, Member);

/// A data set of the ledger.
macro_rules! data_set {
    (
        $(#[$doc:meta])*
        $name:ident = $text:literal: $key:ty => $value:ty
        $(, $const:ident: $type:ty = $constant:expr)*;
        $($tier:ident)?
        |$plan:ident| $declare:expr;
        |$conn:ident, $one:ident| $find:expr
    ) => {
        $(#[$doc])*
        pub(super) enum $name {}

        impl larder_core::Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: larder_core::Lifetime =
                larder_core::Lifetime::Ttl($crate::read::shelf::HOUR);
            $(const $const: $type = $constant;)*
            type Source = $crate::write::ledger::Ledger;
            type Key = $key;
            type Value = $value;
            type Form = larder_core::Plain;
            type Tier = data_set!(@tier $($tier)?);
            type Error = $crate::write::ledger::Broken;

            fn flush_on($plan: &mut larder_core::FlushOn<Self>) {
                $declare;
            }

            async fn load(
                $conn: &mut $crate::write::ledger::Conn,
                keys: Vec<$key>,
            ) -> Result<larder_core::Rows<Self>, $crate::write::ledger::Broken> {
                let find = |$one: &$key| $find;
                let rows = keys.into_iter().filter_map(|key| Some((key.clone(), find(&key)?)));
                let rows = rows.collect();
                $conn.loaded().await;
                Ok(rows)
            }
        }
    };
    (@tier) => { larder_core::NoTier };
    (@tier $tier:ident) => { larder_core::$tier };
}
pub(super) use data_set;

data_set!(
    /// A user.
    UserById = "user": u64 => User;
    |plan| plan.id::<User>([UserField::Email, UserField::Name], |id| *id);
    |conn, id| conn.find::<User>(*id)
);

data_set!(
    /// The user who has an address, which is found whatever its case.
    UserByEmail = "user_by_email": String => User;
    |plan| plan.entity([UserField::Email, UserField::Name], |user: &User| [user.email.clone()]);
    |conn, email| conn.all::<User>().into_iter().find(|user| user.email.eq_ignore_ascii_case(email))
);

data_set!(
    /// The names of the streams that a user is in.
    StreamsOf = "streams_of": u64 => Vec<String>;
    |plan| plan
        .entity(FieldBits::ALL, |member: &Member| [member.user])
        .query::<Stream, MembersOf>(FieldBits::ALL, |stream| MembersOf(stream.id));
    |conn, user| Some(streams_of(conn, *user))
);

pub(super) fn streams_of(conn: &Conn, user: u64) -> Vec<String> {
    let members = conn.all::<Member>().into_iter();
    let streams = members.filter(|member| member.user == user);
    let streams = streams.filter_map(|member| conn.find::<Stream>(member.stream));
    streams.map(|stream| stream.name).collect()
}

/// The users of a stream.
#[derive(Serialize, Deserialize)]
pub(super) struct MembersOf(pub(super) u64);

impl<D: Dataset<Source = Ledger, Key = u64, Error = Broken>> FlushQuery<D> for MembersOf {
    const NAME: &'static str = "members";

    async fn keys(
        &self,
        conn: &mut Conn,
        after: Option<&u64>,
        limit: usize,
    ) -> Result<Vec<u64>, Broken> {
        let members = conn.all::<Member>().into_iter();
        let users = members.filter(|member| member.stream == self.0);
        let mut users: Vec<u64> = users.map(|member| member.user).collect();
        users.sort_unstable();
        users.retain(|user| after.is_none_or(|after| user > after));
        users.truncate(limit);
        Ok(users)
    }
}

/// What a user is greeted with: made of the cached user, so that it is derived from [`UserById`].
pub(super) enum Greeting {}

impl Dataset for Greeting {
    const NAME: &'static str = "greeting";
    const LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    type Source = Ledger;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Broken;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<User>([UserField::Name], |id| *id)
            .base::<UserById>();
    }

    async fn load(conn: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
        let cache = conn.cache();
        let mut rows = Vec::new();
        for id in ids {
            if let Ok(Some(user)) = get::<UserById>(&cache, &id).await {
                rows.push((id, format!("hello {}", user.name)));
            }
        }
        conn.loaded().await;
        Ok(rows)
    }
}

/// One process of the office.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) cache: Cache<Ledger>,
    /// Its way to the database.
    pub(super) line: Ledger,
}

impl Deref for Process {
    type Target = Cache<Ledger>;

    fn deref(&self) -> &Cache<Ledger> {
        &self.cache
    }
}

/// A mechanism that is off, if any.
#[derive(Clone, Copy)]
pub(super) struct Without(pub(super) Option<Mechanism>);

/// What a test's processes are built of.
#[derive(Clone)]
pub(super) struct Office {
    pub(super) database: Database,
    pub(super) store: Arc<dyn Backend>,
    without: Option<Mechanism>,
}

impl Office {
    /// A database with Ada, who is user 7 and in stream 5, and a store that its processes share.
    pub(super) fn new(Without(without): Without) -> Self {
        let database = Database::new();
        database.write(&ada());
        database.write(&Stream {
            id: 5,
            name: "general".to_owned(),
        });
        database.write(&Member {
            id: 70,
            user: 7,
            stream: 5,
        });
        Self {
            database,
            store: Servers::new("store", &[]),
            without,
        }
    }

    /// The same with this store.
    pub(super) fn on<B: Backend>(&self, store: &Arc<B>) -> Self {
        Self {
            store: Arc::clone(store) as _,
            ..self.clone()
        }
    }

    /// The same with a store of its own, which is no other process's.
    pub(super) fn privately(&self) -> Self {
        Self {
            store: memory(),
            ..self.clone()
        }
    }

    /// A way to the store that can be closed.
    pub(super) fn gate(&self) -> Arc<Gate> {
        Gate::new(Arc::clone(&self.store))
    }

    /// One more process, with all data sets.
    pub(super) async fn process(&self) -> Process {
        self.version("1").await
    }

    /// One more process, as the test wants it.
    pub(super) async fn build(
        &self,
        with: impl FnOnce(CacheBuilder<Ledger>) -> CacheBuilder<Ledger>,
    ) -> Process {
        let process = self.try_build(with).await;
        process.expect("nothing is wrong with it")
    }

    /// One more process of this version, with all data sets.
    pub(super) async fn version(&self, version: &str) -> Process {
        self.build(|builder| everything(builder).version(version))
            .await
    }

    /// One more process, or why there is none.
    pub(super) async fn try_build(
        &self,
        with: impl FnOnce(CacheBuilder<Ledger>) -> CacheBuilder<Ledger>,
    ) -> larder_core::Result<Process> {
        self.build_on(self.database.line(), with).await
    }

    /// One more process, with this way to the database.
    pub(super) async fn build_on(
        &self,
        line: Ledger,
        with: impl FnOnce(CacheBuilder<Ledger>) -> CacheBuilder<Ledger>,
    ) -> larder_core::Result<Process> {
        let builder = Cache::builder(line.clone())
            .backend(Arc::clone(&self.store))
            .rt(clock());
        let builder = match self.without {
            Some(mechanism) => builder.without(mechanism),
            None => builder,
        };
        let cache = with(builder).build().await?;
        line.know(&cache);
        Ok(Process { cache, line })
    }
}

/// All data sets that every version has.
pub(super) fn everything(builder: CacheBuilder<Ledger>) -> CacheBuilder<Ledger> {
    builder
        .register::<UserById>()
        .register::<UserByEmail>()
        .register::<StreamsOf>()
        .register::<Greeting>()
}

pub(super) fn ada() -> User {
    User {
        id: 7,
        email: "ada@office".to_owned(),
        name: "Ada".to_owned(),
    }
}

impl Process {
    /// The name of user 7, through the cache.
    pub(super) async fn name(&self) -> String {
        let user = get::<UserById>(&self.cache, &7).await.unwrap();
        user.map_or_else(String::new, |user| user.name)
    }

    /// The name of the user with this address, through the cache.
    pub(super) async fn name_of(&self, email: &str) -> String {
        let user = get::<UserByEmail>(&self.cache, &email.to_owned()).await;
        user.unwrap().map_or_else(String::new, |user| user.name)
    }

    /// The streams of this user, through the cache.
    pub(super) async fn streams(&self, user: u64) -> String {
        let streams = get::<StreamsOf>(&self.cache, &user).await.unwrap();
        streams.unwrap_or_default().join(", ")
    }

    /// What user 7 is greeted with, through the cache.
    pub(super) async fn greeting(&self) -> String {
        let greeting = get::<Greeting>(&self.cache, &7).await;
        greeting.unwrap().unwrap_or_default()
    }

    /// Names user 7.
    pub(super) async fn rename(&self, name: &str) -> Result<Committed, CommitError<Broken>> {
        self.update(|user: &mut User| user.name = name.to_owned(), 7)
            .await
    }

    /// Changes a row under its lock.
    pub(super) async fn update<T>(
        &self,
        change: impl FnOnce(&mut T),
        id: u64,
    ) -> Result<Committed, CommitError<Broken>>
    where
        T: LockRow<Ledger> + super::ledger::Record,
    {
        let mut tx = self.begin().await.map_err(CommitError::Failed)?;
        let before = tx.lock::<T>(&id).await.map_err(CommitError::Failed)?;
        let before = before.expect("the row is there");
        let mut after = before.clone();
        change(&mut after);
        tx.put(&after).await.map_err(CommitError::Failed)?;
        tx.changed(Change::update(&before, &after));
        tx.commit().await
    }

    /// Creates a row.
    pub(super) async fn create<T: super::ledger::Record>(
        &self,
        row: &T,
    ) -> Result<Committed, CommitError<Broken>> {
        let mut tx = self.begin().await.map_err(CommitError::Failed)?;
        tx.put(row).await.map_err(CommitError::Failed)?;
        tx.changed(Change::create(row));
        tx.commit().await
    }
}

/// That a commit was acknowledged as seen by everybody.
#[track_caller]
pub(super) fn fresh(committed: Result<Committed, CommitError<Broken>>) {
    let flush = committed.expect("it was committed").flush;
    assert!(flush.is_fresh(), "{flush:?}");
}

/// The flush that goes on after a commit.
#[track_caller]
pub(super) fn pending(committed: Result<Committed, CommitError<Broken>>) -> larder_core::Pending {
    match committed.expect("it was committed").flush {
        Flush::Pending(pending) => pending,
        Flush::Fresh => panic!("everybody sees it"),
    }
}

/// Plays a schedule twice: with the mechanism it must end as it should; without, it must show what the mechanism is for.
pub(super) async fn shows<T: PartialEq + std::fmt::Debug>(
    mechanism: Mechanism,
    schedule: impl AsyncFn(Without) -> T,
    with: T,
    without: T,
) {
    assert_eq!(schedule(Without(None)).await, with);
    let played = schedule(Without(Some(mechanism))).await;
    assert_eq!(played, without, "without {mechanism:?}");
}

/// Lets everything that can run do so, without moving the clock.
pub(super) async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

pub(super) const ON: Without = Without(None);
