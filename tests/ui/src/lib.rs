//! The application of the cases in `tests/`: a database, and one data set of every tier.
//!
//! The cases are what this package is for: `tests/fail` doesn't compile, and the message beside each says what to write
//! instead; `tests/pass` is that.

pub mod forms;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use larder::{
    BoxError, Cache, Dataset, DeployImmutable, DeployTier, FlushOn, Form, Lifetime, Memory,
    MemoryConfig, NoTier, Plain, RequestTier, Rows, Rt, Source, Tiers, Unstored, Weigh,
};
use serde::{Deserialize, Serialize};

/// Where loads come from.
#[derive(Clone, Debug)]
pub struct Db;

/// A connection to it.
#[derive(Debug)]
pub struct Conn;

impl Source for Db {
    type Conn = Conn;
    type Guard = Box<Conn>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Conn>, Infallible> {
        Ok(Box::new(Conn))
    }
}

/// What an administrator may rename or lock out at any moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name that others see.
    pub name: String,
    /// Whether they may still log in.
    pub active: bool,
}

/// Stored, and decoded anew by every read.
#[derive(Debug)]
pub enum UserById {}

impl Dataset for UserById {
    const NAME: &'static str = "user_by_id";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Db;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(_: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(ids.into_iter().map(|id| (id, user())).collect())
    }
}

/// Stored, and kept for the rest of the request that read it.
#[derive(Debug)]
pub enum UserOfRequest {}

impl Dataset for UserOfRequest {
    const NAME: &'static str = "user_of_request";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Db;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = RequestTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(conn: &mut Conn, ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        UserById::load(conn, ids).await
    }
}

/// A map from the lines of a script to those of its sources, made when the program was.
#[derive(Debug)]
pub struct SourceMap {
    /// The lines.
    pub lines: Vec<u32>,
}

/// The file is part of the release.
impl DeployImmutable for SourceMap {}

impl Weigh for SourceMap {
    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.lines)
    }
}

/// Stores nothing that is worth it, so that a case is about its tier alone.
#[derive(Debug)]
pub enum Hollow {}

impl<V: 'static> Form<V> for Hollow {
    type Out<'a> = ();
    type In = ();

    fn to_stored(_: &V) -> Result<(), BoxError> {
        Ok(())
    }

    fn from_stored((): ()) -> Result<V, BoxError> {
        Err("there is nothing in it".into())
    }
}

/// Built once, and kept as long as the process runs.
#[derive(Debug)]
pub enum SourceMaps {}

impl Dataset for SourceMaps {
    const NAME: &'static str = "source_maps";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Db;
    type Key = u64;
    type Value = SourceMap;
    type Form = Unstored;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, keys: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        let map = || SourceMap {
            lines: vec![1, 2, 3],
        };
        Ok(keys.into_iter().map(|key| (key, map())).collect())
    }
}

/// The one user there is.
pub fn user() -> User {
    User {
        name: "Ada".into(),
        active: true,
    }
}

/// A cache with tiers.
pub async fn cache() -> Cache<Db> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).expect("the default is legal");
    Cache::builder(Db)
        .backend(Arc::new(memory))
        .tiers(Tiers::default())
        .register::<UserById>()
        .register::<UserOfRequest>()
        .warm::<SourceMaps>([1])
        .build()
        .await
        .expect("these data sets can be cached")
}

/// Runs a case.
pub fn run<F: Future>(case: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime needs no more")
        .block_on(case)
}
