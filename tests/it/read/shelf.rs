//! A source that tests look into: rows by id, counted loads, loads that wait, fail or panic on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use larder_backends::{Memory, MemoryConfig};
use larder_core::{Backend, Cache, Lifetime, Rt, Source};
use tokio::sync::Semaphore;

/// Rows, and what was asked for.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Inner>);

#[derive(Default)]
struct Inner {
    rows: Mutex<BTreeMap<u64, String>>,
    asked: Mutex<Vec<Vec<u64>>>,
    mood: Mutex<Mood>,
    /// Loads that have read their rows and wait to be let go.
    waiting: Mutex<Option<Arc<Semaphore>>>,
    arrived: Semaphore0,
}

/// A semaphore that starts without permits.
struct Semaphore0(Semaphore);

impl Default for Semaphore0 {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

#[derive(Clone, Copy, Default)]
enum Mood {
    #[default]
    Fine,
    Failing,
    Panicking,
}

/// The connection: the shelf itself.
pub(crate) struct Conn(pub(crate) Shelf);

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shelf is broken")
    }
}

impl std::error::Error for Broken {}

impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Source for Shelf {
    type Conn = Conn;
    type Guard = Box<Conn>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Conn>, Infallible> {
        Ok(Box::new(Conn(self.clone())))
    }
}

impl Shelf {
    pub(crate) fn of(ids: impl IntoIterator<Item = u64>) -> Self {
        let shelf = Self::default();
        for id in ids {
            shelf.write(id, &format!("row {id}"));
        }
        shelf
    }

    pub(crate) fn write(&self, id: u64, text: &str) {
        self.0.rows.lock().unwrap().insert(id, text.to_owned());
    }

    /// How many have the shelf: who made it, and every cache and connection.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The keys of every call of a loader, sorted within the call.
    pub(crate) fn asked(&self) -> Vec<Vec<u64>> {
        self.0.asked.lock().unwrap().clone()
    }

    pub(crate) fn loads(&self) -> usize {
        self.0.asked.lock().unwrap().len()
    }

    pub(crate) fn fail(&self) {
        *self.0.mood.lock().unwrap() = Mood::Failing;
    }

    pub(crate) fn panic(&self) {
        *self.0.mood.lock().unwrap() = Mood::Panicking;
    }

    pub(crate) fn recover(&self) {
        *self.0.mood.lock().unwrap() = Mood::Fine;
    }

    /// Loads from now on read their rows and then wait for [`Shelf::let_go`].
    pub(crate) fn hold(&self) {
        *self.0.waiting.lock().unwrap() = Some(Arc::new(Semaphore::new(0)));
    }

    /// Waits until one more held load has read its rows.
    pub(crate) async fn held(&self) {
        self.0.arrived.0.acquire().await.unwrap().forget();
    }

    /// Lets held loads go, and holds no more.
    pub(crate) fn let_go(&self) {
        if let Some(waiting) = self.0.waiting.lock().unwrap().take() {
            waiting.close();
        }
    }

    pub(crate) async fn load(&self, ids: &[u64]) -> Result<Vec<(u64, String)>, Broken> {
        let mut asked = ids.to_vec();
        asked.sort_unstable();
        self.0.asked.lock().unwrap().push(asked);
        let rows: Vec<(u64, String)> = {
            let rows = self.0.rows.lock().unwrap();
            // Backwards: no order is promised.
            let found = ids
                .iter()
                .rev()
                .filter_map(|id| Some((*id, rows.get(id)?.clone())));
            found.collect()
        };
        let waiting = self.0.waiting.lock().unwrap().clone();
        if let Some(waiting) = waiting {
            self.0.arrived.0.add_permits(1);
            let _closed = waiting.acquire().await;
        }
        let mood = *self.0.mood.lock().unwrap();
        match mood {
            Mood::Fine => Ok(rows),
            Mood::Failing => Err(Broken),
            Mood::Panicking => panic!("the shelf fell over"),
        }
    }
}

macro_rules! dataset {
    ($name:ident = $text:literal, $lifetime:expr $(, $const:ident: $type:ty = $value:expr)*) => {
        pub(crate) enum $name {}

        impl larder_core::Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: larder_core::Lifetime = $lifetime;
            $(const $const: $type = $value;)*
            type Source = $crate::read::shelf::Shelf;
            type Key = u64;
            type Value = String;
            type Form = larder_core::Plain;
            type Tier = larder_core::NoTier;
            type Error = $crate::read::shelf::Broken;

            fn flush_on(plan: &mut larder_core::FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load(
                conn: &mut $crate::read::shelf::Conn,
                ids: Vec<u64>,
            ) -> Result<larder_core::Rows<Self>, Self::Error> {
                conn.0.load(&ids).await
            }
        }
    };
}
pub(crate) use dataset;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

dataset!(Row = "row", Lifetime::Ttl(HOUR));
dataset!(Fact = "fact", Lifetime::Immutable);

impl larder_core::Immutable for Fact {}

/// A clock whose wall time follows tokio's, so that a paused test moves both.
pub(crate) fn clock() -> Rt {
    Rt::following_tokio(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

pub(crate) fn memory() -> Arc<dyn Backend> {
    Arc::new(Memory::new(MemoryConfig::default(), clock()).expect("the default is legal"))
}

/// A cache of its own for one test.
pub(crate) async fn cache(shelf: &Shelf) -> Cache<Shelf> {
    cache_on(shelf, memory()).await
}

/// One process among several on this store.
pub(crate) async fn cache_on(shelf: &Shelf, backend: Arc<dyn Backend>) -> Cache<Shelf> {
    Cache::builder(shelf.clone())
        .backend(backend)
        .prefix(larder_core::Prefix::new("test").unwrap())
        .rt(clock())
        .build()
        .await
        .expect("the configuration is legal")
}

pub(crate) fn text(id: u64) -> Option<String> {
    Some(format!("row {id}"))
}
