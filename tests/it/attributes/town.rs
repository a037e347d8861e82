//! What these tests write and read: a town's people and its clubs, in a database in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use larder::{
    BuilderExt as _, Cache, Change, CommitFailure, Config, Entity, LockRow, Savepoint, Source,
    Tiers, Transactional, Tx,
};
use serde::{Deserialize, Serialize};

pub(super) type DbResult<T> = Result<T, Infallible>;

/// Somebody who lives there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
pub(super) struct User {
    #[entity(id)]
    pub(super) id: u64,
    pub(super) realm: u32,
    pub(super) email: String,
    pub(super) is_active: bool,
}

/// What people meet in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entity)]
#[entity(name = "club", set_based(topic))]
pub(super) struct Club {
    #[entity(id)]
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) topic: String,
    pub(super) members: Vec<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Tables {
    pub(super) users: BTreeMap<u64, User>,
    pub(super) clubs: BTreeMap<u64, Club>,
}

/// The database.
#[derive(Clone, Default)]
pub(super) struct Town(Arc<Inner>);

#[derive(Default)]
struct Inner {
    tables: Mutex<Tables>,
    loads: Mutex<Vec<String>>,
}

/// A connection, and the transaction that may be open on it.
pub(super) struct Conn {
    town: Town,
    /// What the transaction sees and writes.
    own: Option<Tables>,
}

impl Town {
    /// Ada and Grace live in realm 1, Linus in realm 2; the first two chess.
    pub(super) fn new() -> Self {
        let town = Self::default();
        let mut tables = town.0.tables.lock().unwrap();
        for (id, realm, name) in [(7, 1, "ada"), (8, 1, "grace"), (9, 2, "linus")] {
            tables.users.insert(id, user(id, realm, name));
        }
        let club = Club {
            id: 5,
            name: "chess".to_owned(),
            topic: "openings".to_owned(),
            members: vec![7, 8],
        };
        tables.clubs.insert(5, club);
        drop(tables);
        town
    }

    /// A cache of it, in the process.
    pub(super) async fn cache(&self) -> Cache<Self> {
        Cache::builder(self.clone())
            .config(Config::new("memory://").unwrap())
            .tiers(Tiers::default())
            .build()
            .await
            .expect("all data sets can be cached")
    }

    /// What loaders were called with since they were last asked.
    pub(super) fn loads(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.loads.lock().unwrap())
    }

    /// Writes past everything.
    pub(super) fn write(&self, write: impl FnOnce(&mut Tables)) {
        write(&mut self.0.tables.lock().unwrap());
    }
}

pub(super) fn user(id: u64, realm: u32, name: &str) -> User {
    User {
        id,
        realm,
        email: format!("{name}@town"),
        is_active: true,
    }
}

impl Conn {
    /// Notes what a loader was called with.
    pub(super) fn note(&self, call: impl ToString) {
        self.town.0.loads.lock().unwrap().push(call.to_string());
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Tables) -> T) -> T {
        match &self.own {
            Some(own) => read(own),
            None => read(&self.town.0.tables.lock().unwrap()),
        }
    }

    pub(super) fn write(&mut self, write: impl FnOnce(&mut Tables)) {
        write(self.own.as_mut().expect("rows are written in transactions"));
    }
}

impl Source for Town {
    type Conn = Conn;
    type Guard = Box<Conn>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Conn>, Infallible> {
        Ok(Box::new(Conn {
            town: self.clone(),
            own: None,
        }))
    }
}

impl Transactional for Town {
    type Tx = Box<Conn>;

    async fn begin(&self) -> Result<Box<Conn>, Infallible> {
        let mut conn = self.acquire().await?;
        conn.own = Some(self.0.tables.lock().unwrap().clone());
        Ok(conn)
    }

    async fn commit(conn: Box<Conn>) -> Result<(), CommitFailure<Infallible>> {
        let tables = conn.own.expect("it is a transaction");
        *conn.town.0.tables.lock().unwrap() = tables;
        Ok(())
    }

    async fn rollback(_: Box<Conn>) -> Result<(), Infallible> {
        Ok(())
    }

    async fn savepoint(_: &mut Box<Conn>, _: Savepoint, _: u32) -> Result<(), Infallible> {
        Ok(())
    }

    async fn has_written(_: &mut Box<Conn>) -> Result<Option<bool>, Infallible> {
        Ok(None)
    }
}

impl LockRow<Town> for User {
    async fn lock(conn: &mut Conn, id: &u64) -> DbResult<Option<Self>> {
        Ok(conn.read(|tables| tables.users.get(id).cloned()))
    }
}

impl LockRow<Town> for Club {
    async fn lock(conn: &mut Conn, id: &u64) -> DbResult<Option<Self>> {
        Ok(conn.read(|tables| tables.clubs.get(id).cloned()))
    }
}

/// Does this in a transaction, which everybody sees at its end.
pub(super) async fn commit(cache: &Cache<Town>, writes: impl AsyncFnOnce(&mut Tx<Town>)) {
    let mut tx = cache.begin().await.unwrap();
    writes(&mut tx).await;
    assert!(tx.commit().await.unwrap().flush.is_fresh());
}

/// Changes a user.
pub(super) async fn change(cache: &Cache<Town>, id: u64, change: impl FnOnce(&mut User)) {
    commit(cache, async |tx| {
        let before = tx.lock::<User>(&id).await.unwrap().unwrap();
        let mut after = before.clone();
        change(&mut after);
        tx.write(|tables| _ = tables.users.insert(id, after.clone()));
        tx.changed(Change::update(&before, &after));
    })
    .await;
}
