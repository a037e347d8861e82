//! What several tests need: scopes asked by texts, and a cache whose loads are counted.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Cache, Dataset, FlushOn, Kept, Keys, Lifetime, Mark, NoTier, Plain, Recall, RequestTier, Rows,
    Rt, Scope, SharedValue, Source,
};
use larder_tiers::Tiers;

pub(crate) fn keys(texts: &[&str]) -> Keys {
    let mut keys = Keys::new();
    for text in texts {
        keys.push_raw(text).unwrap();
    }
    keys
}

pub(crate) fn value(number: u64) -> Option<SharedValue> {
    let value: SharedValue = Arc::new(number);
    Some(value)
}

pub(crate) fn number(value: &SharedValue) -> u64 {
    *value.downcast_ref().expect("values of these tests are u64")
}

/// What a scope answers, with numbers for values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Value(u64),
    Absent,
    Nothing,
    Distrusted,
}

/// A scope as a reader of one key uses it.
pub(crate) trait ScopeExt {
    fn find(&self, key: &str) -> Found;
    /// A mark, taken now.
    fn mark(&self, key: &str) -> Mark;
    fn keep(&self, key: &str, mark: Mark, number: u64) -> Kept;
    /// Keeps it with a mark of now.
    fn keep_now(&self, key: &str, number: u64) -> Kept;
}

impl<T: Scope + ?Sized> ScopeExt for T {
    fn find(&self, key: &str) -> Found {
        match self.get(keys(&[key]).get(0)) {
            Recall::Kept(Some(value)) => Found::Value(number(&value)),
            Recall::Kept(None) => Found::Absent,
            Recall::Unknown(_) => Found::Nothing,
            Recall::Distrusted => Found::Distrusted,
        }
    }

    fn mark(&self, key: &str) -> Mark {
        match self.get(keys(&[key]).get(0)) {
            Recall::Unknown(mark) => mark,
            other => panic!("`{key}` is known: {other:?}"),
        }
    }

    fn keep(&self, key: &str, mark: Mark, number: u64) -> Kept {
        self.put(keys(&[key]).get(0), mark, value(number), 8)
    }

    fn keep_now(&self, key: &str, number: u64) -> Kept {
        self.keep(key, self.mark(key), number)
    }
}

/// Lets tasks that were spawned have their turns, on a runtime of one thread.
pub(crate) async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// A source that counts the rows it was asked for, and gives each a new value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rowid(Arc<AtomicU64>);

impl Source for Rowid {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

macro_rules! dataset {
    ($name:ident, $text:literal, $tier:ty) => {
        pub(crate) enum $name {}

        impl Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
            type Source = Rowid;
            type Key = u64;
            type Value = u64;
            type Form = Plain;
            type Tier = $tier;
            type Error = Infallible;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load(conn: &mut Rowid, keys: Vec<u64>) -> Result<Rows<Self>, Infallible> {
                let row = |key| (key, conn.0.fetch_add(1, Ordering::SeqCst));
                Ok(keys.into_iter().map(row).collect())
            }
        }
    };
}

dataset!(PerRequest, "per_request", RequestTier);
dataset!(Stored, "stored", NoTier);

/// A cache on a store of its own.
pub(crate) async fn cache(tiers: Option<&Tiers>) -> Cache<Rowid> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let builder = Cache::builder(Rowid::default()).backend(Arc::new(memory));
    let builder = match tiers {
        Some(tiers) => builder.tiers(tiers.clone()).register::<PerRequest>(),
        None => builder,
    };
    builder.register::<Stored>().build().await.unwrap()
}
