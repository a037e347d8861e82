//! A database in memory with transactions, and a service on it whose reads and writes have one bug, if any.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use larder_core::{
    Cache, Change, CommitError, CommitFailure, Committed, Dataset, Entity, FieldBits, FieldSet,
    FlushOn, FlushQuery, Lifetime, LockRow, NoTier, Plain, Rows, Savepoint, Source, Transactional,
    get,
};
use serde::{Deserialize, Serialize};

/// What is wrong with the service.
pub(crate) type Bug = u8;

pub(crate) const NONE: Bug = 0;
pub(crate) const FIELD_NOT_WATCHED: Bug = 1;
pub(crate) const OLD_KEY_NOT_FLUSHED: Bug = 2;
pub(crate) const NEW_KEY_NOT_FLUSHED: Bug = 3;
pub(crate) const CREATION_NOT_WATCHED: Bug = 4;
pub(crate) const DELETION_NOT_FLUSHED: Bug = 5;
pub(crate) const WRONG_ID: Bug = 6;
pub(crate) const WRONG_ENTITY: Bug = 7;
pub(crate) const FLUSH_BEFORE_COMMIT: Bug = 8;
pub(crate) const FLUSH_WITHOUT_COMMIT: Bug = 9;
pub(crate) const CHANGED_MISSING: Bug = 10;
pub(crate) const SAME_IMAGE_TWICE: Bug = 11;
pub(crate) const QUERY_MISSING: Bug = 12;
pub(crate) const DERIVED_NOT_FLUSHED: Bug = 13;
pub(crate) const KEY_NORMALISED_ELSEWHERE: Bug = 14;
pub(crate) const BY_HAND_AND_NOBODY_DOES: Bug = 15;
pub(crate) const PAST_THE_GUARD: Bug = 16;
pub(crate) const SAVEPOINT_UNDONE: Bug = 17;
pub(crate) const ROWS_WITHOUT_IMAGES: Bug = 18;
pub(crate) const TTL_ONLY_WHERE_IT_MATTERS: Bug = 19;
pub(crate) const WRONG_KEY: Bug = 20;
pub(crate) const NOTHING_SAID: Bug = 21;
pub(crate) const QUERY_FINDS_TOO_FEW: Bug = 22;
pub(crate) const FIELD_WITHOUT_WRITER: Bug = 23;
pub(crate) const NEVER_READ: Bug = 24;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) id: u64,
    pub(crate) email: String,
    pub(crate) name: String,
    pub(crate) team: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserField {
    Email,
    Name,
    Team,
}

impl FieldSet for UserField {
    const ALL: &'static [Self] = &[Self::Email, Self::Name, Self::Team];

    fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Name => "name",
            Self::Team => "team",
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
            (UserField::Team, self.team != other.team),
        ])
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Team {
    pub(crate) id: u64,
    pub(crate) title: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TeamField {
    Title,
}

impl FieldSet for TeamField {
    const ALL: &'static [Self] = &[Self::Title];

    fn name(self) -> &'static str {
        "title"
    }
}

impl Entity for Team {
    const NAME: &'static str = "team";
    type Id = u64;
    type Field = TeamField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(TeamField::Title, self.title != other.title)])
    }
}

#[derive(Clone, Default)]
pub(crate) struct Tables {
    pub(crate) users: BTreeMap<u64, User>,
    pub(crate) teams: BTreeMap<u64, Team>,
}

/// The database; a clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Desk {
    tables: Arc<Mutex<Tables>>,
    /// Loaders read through it what they are derived from.
    cache: Arc<OnceLock<Cache<Self>>>,
}

/// A connection: what is committed, or what its own transaction sees.
pub(crate) struct Conn {
    desk: Desk,
    own: Option<Own>,
}

#[derive(Clone)]
struct Own {
    tables: Tables,
    savepoints: Vec<Tables>,
    has_written: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the desk is broken")
    }
}

impl std::error::Error for Broken {}

impl Desk {
    /// Ada in team 1, which there is with team 2.
    pub(crate) fn new() -> Self {
        let desk = Self::default();
        desk.write(|tables| {
            let ada = User {
                id: 7,
                email: "ada@desk".to_owned(),
                name: "Ada".to_owned(),
                team: 1,
            };
            tables.users.insert(7, ada);
            for (id, title) in [(1, "engines"), (2, "looms")] {
                let title = title.to_owned();
                tables.teams.insert(id, Team { id, title });
            }
        });
        desk
    }

    pub(crate) fn know(&self, cache: Cache<Self>) {
        let _known = self.cache.set(cache);
    }

    /// Writes past everybody.
    pub(crate) fn write(&self, write: impl FnOnce(&mut Tables)) {
        write(&mut self.tables.lock().unwrap());
    }
}

impl Conn {
    fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        match &self.own {
            Some(own) => read(&own.tables),
            None => read(&self.desk.tables.lock().unwrap()),
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Tables)) {
        let own = self.own.as_mut().expect("rows are written in transactions");
        own.has_written = true;
        write(&mut own.tables);
    }
}

impl Source for Desk {
    type Conn = Conn;
    type Guard = Box<Conn>;
    type Error = Broken;

    async fn acquire(&self) -> Result<Box<Conn>, Broken> {
        Ok(Box::new(Conn {
            desk: self.clone(),
            own: None,
        }))
    }
}

impl Transactional for Desk {
    type Tx = Box<Conn>;

    async fn begin(&self) -> Result<Box<Conn>, Broken> {
        let mut conn = self.acquire().await?;
        conn.own = Some(Own {
            tables: self.tables.lock().unwrap().clone(),
            savepoints: Vec::new(),
            has_written: false,
        });
        Ok(conn)
    }

    async fn commit(conn: Box<Conn>) -> Result<(), CommitFailure<Broken>> {
        let own = conn.own.ok_or(CommitFailure::Failed(Broken))?;
        *conn.desk.tables.lock().unwrap() = own.tables;
        Ok(())
    }

    async fn rollback(_: Box<Conn>) -> Result<(), Broken> {
        Ok(())
    }

    async fn savepoint(conn: &mut Box<Conn>, step: Savepoint, _: u32) -> Result<(), Broken> {
        let own = conn.own.as_mut().ok_or(Broken)?;
        match step {
            Savepoint::Set => own.savepoints.push(own.tables.clone()),
            Savepoint::RollBack => {
                own.tables = own.savepoints.last().ok_or(Broken)?.clone();
            }
            Savepoint::Release => drop(own.savepoints.pop()),
        }
        Ok(())
    }

    async fn has_written(conn: &mut Box<Conn>) -> Result<Option<bool>, Broken> {
        Ok(conn.own.as_ref().map(|own| own.has_written))
    }
}

impl LockRow<Desk> for User {
    async fn lock(conn: &mut Conn, id: &u64) -> Result<Option<Self>, Broken> {
        Ok(conn.read(|tables| tables.users.get(id).cloned()))
    }
}

impl LockRow<Desk> for Team {
    async fn lock(conn: &mut Conn, id: &u64) -> Result<Option<Self>, Broken> {
        Ok(conn.read(|tables| tables.teams.get(id).cloned()))
    }
}

macro_rules! data_set {
    (
        $(#[$doc:meta])*
        $name:ident = $text:literal: $key:ty => $value:ty $(, $const:ident: $type:ty = $constant:expr)*;
        |$plan:ident| $declare:expr;
        |$conn:ident, $one:ident| $find:expr
    ) => {
        $(#[$doc])*
        pub(crate) enum $name<const B: Bug> {}

        impl<const B: Bug> Dataset for $name<B> {
            const NAME: &'static str = $text;
            $(const $const: $type = $constant;)*
            type Source = Desk;
            type Key = $key;
            type Value = $value;
            type Form = Plain;
            type Tier = NoTier;
            type Error = Broken;

            fn flush_on($plan: &mut FlushOn<Self>) {
                $declare;
            }

            async fn load($conn: &mut Conn, keys: Vec<$key>) -> Result<Rows<Self>, Broken> {
                let mut rows = Vec::new();
                for $one in keys {
                    let found: Option<$value> = $find;
                    rows.extend(found.map(|found| ($one.clone(), found)));
                }
                Ok(rows)
            }
        }
    };
}

const ALL: [UserField; 3] = [UserField::Email, UserField::Name, UserField::Team];

data_set!(
    /// A user by id.
    UserById = "user_by_id": u64 => User, LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    |plan| match B {
        WRONG_ENTITY => plan.id::<Team>(TeamField::Title, |id| *id),
        _ => plan.id::<User>(ALL, |id| *id),
    };
    |conn, id| conn.read(|tables| tables.users.get(&id).cloned())
);

data_set!(
    /// A user by address, which is found whatever its case.
    UserByEmail = "user_by_email": String => User, LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    |plan| match B {
        FIELD_NOT_WATCHED => plan.entity([UserField::Email, UserField::Team], |user: &User| {
            [user.email.clone()]
        }),
        KEY_NORMALISED_ELSEWHERE => plan.entity(ALL, |user: &User| [user.email.to_uppercase()]),
        _ => plan.entity(ALL, |user: &User| [user.email.clone()]),
    };
    |conn, email| conn.read(|tables| {
        let mut users = tables.users.values();
        users.find(|user| user.email.eq_ignore_ascii_case(&email)).cloned()
    })
);

data_set!(
    /// The names in a team.
    NamesIn = "names_in": u64 => Vec<String>,
        LIFETIME: Lifetime = Lifetime::Ttl(HOUR),
        ABSENT_TTL: Option<Duration> = Some(Duration::ZERO);
    |plan| match B {
        CREATION_NOT_WATCHED => plan.existing([UserField::Name, UserField::Team], |user: &User| [user.team]),
        BY_HAND_AND_NOBODY_DOES => plan.by_hand(),
        WRONG_KEY => plan.entity([UserField::Name, UserField::Team], |user: &User| [user.id]),
        _ => plan.entity([UserField::Name, UserField::Team], |user: &User| [user.team]),
    };
    |conn, team| Some(conn.read(|tables| {
        let members = tables.users.values().filter(|user| user.team == team);
        members.map(|user| user.name.clone()).collect()
    }))
);

data_set!(
    /// The title of a user's team: more than the user's own row knows.
    TitleOf = "title_of": u64 => String, LIFETIME: Lifetime = Lifetime::Ttl(HOUR);
    |plan| {
        plan.id::<User>([UserField::Team], |id| *id);
        if B != QUERY_MISSING {
            plan.query::<Team, Members>(TeamField::Title, |team| Members {
                team: team.id,
                finds: if B == QUERY_FINDS_TOO_FEW { 0 } else { usize::MAX },
            });
        }
    };
    |conn, id| conn.read(|tables| {
        let user = tables.users.get(&id)?;
        Some(tables.teams.get(&user.team)?.title.clone())
    })
);

#[derive(Serialize, Deserialize)]
struct Members {
    team: u64,
    finds: usize,
}

impl<const B: Bug> FlushQuery<TitleOf<B>> for Members {
    const NAME: &'static str = "members";

    async fn keys(
        &self,
        conn: &mut Conn,
        after: Option<&u64>,
        limit: usize,
    ) -> Result<Vec<u64>, Broken> {
        Ok(conn.read(|tables| {
            let users = tables.users.values();
            let members = users
                .filter(|user| user.team == self.team)
                .map(|user| user.id);
            let next = members.filter(|id| after.is_none_or(|after| id > after));
            next.take(limit.min(self.finds)).collect()
        }))
    }
}

data_set!(
    /// What a user is greeted with: made of the cached user.
    Greeting = "greeting": u64 => String, LIFETIME: Lifetime = match B {
        TTL_ONLY_WHERE_IT_MATTERS => Lifetime::TtlOnly(HOUR),
        _ => Lifetime::Ttl(HOUR),
    };
    |plan| {
        match B {
            TTL_ONLY_WHERE_IT_MATTERS => &mut *plan,
            DERIVED_NOT_FLUSHED => plan.id::<User>([UserField::Team], |id| *id),
            _ => plan.id::<User>([UserField::Name], |id| *id),
        };
        plan.base::<UserById<B>>();
    };
    |conn, id| {
        let cache = conn.desk.cache.get().expect("it is known before anybody reads").clone();
        let user = get::<UserById<B>>(&cache, &id).await.map_err(|_| Broken)?;
        user.map(|user| format!("hello {}", user.name))
    }
);

fn committed(commit: Result<Committed, CommitError<Broken>>) {
    if let Err(error) = commit {
        panic!("{error}");
    }
}

/// The service.
pub(crate) struct App<const B: Bug> {
    pub(crate) desk: Desk,
    pub(crate) cache: Cache<Desk>,
}

impl<const B: Bug> App<B> {
    /// Changes user 7.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut User)) {
        let mut tx = self.cache.begin().await.unwrap();
        let before = tx.lock::<User>(&7).await.unwrap().unwrap();
        let mut after = before.clone();
        change(&mut after);
        if B == PAST_THE_GUARD {
            tx.rollback().await.unwrap();
            let write = |tables: &mut Tables| drop(tables.users.insert(7, after));
            return self.desk.write(write);
        }
        if B == SAVEPOINT_UNDONE {
            let undone = tx.savepoint(async |tx| {
                tx.write(|tables| drop(tables.users.insert(7, after.clone())));
                Err::<(), Broken>(Broken)
            });
            let _swallowed = undone.await;
            tx.changed(Change::update(&before, &after));
            committed(tx.commit().await);
            return;
        }
        tx.write(|tables| drop(tables.users.insert(7, after.clone())));
        match B {
            OLD_KEY_NOT_FLUSHED => tx.changed(Change::create(&after)),
            NEW_KEY_NOT_FLUSHED => tx.changed(Change::delete(&before)),
            SAME_IMAGE_TWICE => tx.changed(Change::update_unlocked(&after, &after)),
            WRONG_ID => {
                let other = |user: &User| User {
                    id: 8,
                    ..user.clone()
                };
                tx.changed(Change::update_unlocked(&other(&before), &other(&after)));
            }
            ROWS_WITHOUT_IMAGES => tx.changed(Change::<User>::rows([7], ALL)),
            CHANGED_MISSING => tx.unchanged(),
            FLUSH_BEFORE_COMMIT | FLUSH_WITHOUT_COMMIT => {
                self.flush_by_hand(&before, &after).await;
                tx.unchanged();
                if B == FLUSH_WITHOUT_COMMIT {
                    return tx.rollback().await.unwrap();
                }
            }
            NOTHING_SAID => {}
            _ => tx.changed(Change::update(&before, &after)),
        }
        committed(tx.commit().await);
    }

    async fn flush_by_hand(&self, before: &User, after: &User) {
        let cache = &self.cache;
        cache.flush::<UserById<B>>([7]).await.unwrap();
        let emails = [before.email.clone(), after.email.clone()];
        cache.flush::<UserByEmail<B>>(emails).await.unwrap();
        cache
            .flush::<NamesIn<B>>([before.team, after.team])
            .await
            .unwrap();
        cache.flush::<TitleOf<B>>([7]).await.unwrap();
        cache.flush::<Greeting<B>>([7]).await.unwrap();
    }

    pub(crate) async fn create(&self, user: User) {
        let mut tx = self.cache.begin().await.unwrap();
        tx.write(|tables| drop(tables.users.insert(user.id, user.clone())));
        tx.changed(Change::create(&user));
        committed(tx.commit().await);
    }

    pub(crate) async fn delete(&self, id: u64) {
        let mut tx = self.cache.begin().await.unwrap();
        let before = tx.lock::<User>(&id).await.unwrap().unwrap();
        tx.write(|tables| drop(tables.users.remove(&id)));
        match B {
            DELETION_NOT_FLUSHED => tx.unchanged(),
            _ => tx.changed(Change::delete(&before)),
        }
        committed(tx.commit().await);
    }

    pub(crate) async fn retitle(&self, id: u64, title: &str) {
        let mut tx = self.cache.begin().await.unwrap();
        let before = tx.lock::<Team>(&id).await.unwrap().unwrap();
        let after = Team {
            title: title.to_owned(),
            ..before.clone()
        };
        tx.write(|tables| drop(tables.teams.insert(id, after.clone())));
        tx.changed(Change::update(&before, &after));
        committed(tx.commit().await);
    }

    /// Reads all that shows users and teams.
    pub(crate) async fn read(&self) {
        let cache = &self.cache;
        for id in [7, 8] {
            get::<UserById<B>>(cache, &id).await.unwrap();
            get::<TitleOf<B>>(cache, &id).await.unwrap();
            if B != NEVER_READ {
                get::<Greeting<B>>(cache, &id).await.unwrap();
            }
        }
        for email in ["ada@desk", "countess@desk", "grace@desk"] {
            get::<UserByEmail<B>>(cache, &email.to_owned())
                .await
                .unwrap();
        }
        for team in [1, 2] {
            get::<NamesIn<B>>(cache, &team).await.unwrap();
        }
    }
}
