//! Two reads at once, values without room, keys that fail, and limits without end.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Cache, Dataset, DeployImmutable, DeployTier, FlushOn, Kept, Lifetime, Plain, RequestTier, Rows,
    Rt, Scopes as _, Source, Unstored, Weigh, get, refresh,
};
use larder_tiers::{Request, Tiers, TiersConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::support::{ScopeExt as _, settle};

/// Rows are the number of writes; loads wait at the gate while there is one.
#[derive(Clone, Default)]
struct Db(Arc<Inner>);

#[derive(Default)]
struct Inner {
    version: Mutex<String>,
    gate: Mutex<Option<Arc<Semaphore>>>,
    asked: Mutex<Vec<(&'static str, Vec<u64>)>>,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Db")
    }
}

#[derive(Debug)]
struct Broken;
impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken")
    }
}
impl std::error::Error for Broken {}
impl From<Infallible> for Broken {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Source for Db {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;
    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

impl Db {
    async fn read(&self, of: &'static str, ids: &[u64]) -> String {
        self.0.asked.lock().unwrap().push((of, ids.to_vec()));
        let version = self.0.version.lock().unwrap().clone();
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            let _ = gate.acquire().await;
        }
        version
    }
    fn write(&self, version: &str) {
        *self.0.version.lock().unwrap() = version.to_owned();
    }
    fn hold(&self) {
        *self.0.gate.lock().unwrap() = Some(Arc::new(Semaphore::new(0)));
    }
    fn let_go(&self) {
        self.0.gate.lock().unwrap().take().unwrap().close();
    }
    fn times(&self, of: &str) -> usize {
        let asked = self.0.asked.lock().unwrap();
        asked.iter().filter(|(name, _)| *name == of).count()
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Text(String);
impl DeployImmutable for Text {}
impl Weigh for Text {
    fn bytes(&self) -> usize {
        self.0.len()
    }
}

macro_rules! dataset {
    ($name:ident: $tier:ty, $form:ty, $lifetime:expr, |$db:ident, $ids:ident| $load:expr) => {
        enum $name {}
        impl Dataset for $name {
            const NAME: &'static str = stringify!($name);
            const LIFETIME: Lifetime = $lifetime;
            type Source = Db;
            type Key = u64;
            type Value = Text;
            type Form = $form;
            type Tier = $tier;
            type Error = Broken;
            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load($db: &mut Db, $ids: Vec<u64>) -> Result<Rows<Self>, Broken> {
                $load
            }
        }
    };
}

const HOUR: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));

dataset!(Name: RequestTier, Plain, HOUR, |db, ids| {
    let text = db.read("Name", &ids).await;
    Ok(ids.into_iter().map(|id| (id, Text(text.clone()))).collect())
});
dataset!(Huge: DeployTier, Plain, Lifetime::Immutable, |db, ids| {
    let _ = db.read("Huge", &ids).await;
    Ok(ids.into_iter().map(|id| (id, Text("x".repeat(100_000)))).collect())
});
dataset!(Part: DeployTier, Unstored, Lifetime::Immutable, |db, ids| {
    let text = db.read("Part", &ids).await;
    match ids.contains(&9) {
        true => Err(Broken),
        false => Ok(ids.into_iter().map(|id| (id, Text(text.clone()))).collect()),
    }
});

fn builder(db: &Db, tiers: Tiers) -> larder_core::CacheBuilder<Db> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    Cache::builder(db.clone())
        .backend(Arc::new(memory))
        .tiers(tiers)
}

#[tokio::test]
async fn a_refresh_replaces_what_was_kept_while_it_loaded() {
    let db = Db::default();
    let cache = builder(&db, Tiers::default()).build().await.unwrap();
    db.write("old");
    get::<Name>(&Request::begin(&cache), &7).await.unwrap();
    settle().await;
    db.write("new");
    let request = Request::begin(&cache);
    db.hold();
    let refreshing = tokio::spawn({
        let request = request.clone();
        async move { refresh::<Name>(&request, &7).await.unwrap().unwrap() }
    });
    settle().await;
    // Another read of the request, whose look-up went out with that of the refresh, was answered with what the store
    // had, and puts it.
    let scope = request.cache().scope().unwrap();
    let mut wire = larder_core::Keys::new();
    wire.push(cache.prefix(), Name::NAME, &7_u64).unwrap();
    let larder_core::Recall::Unknown(mark) = scope.get(wire.get(0)) else {
        panic!("it was dropped");
    };
    let old: larder_core::SharedValue = Arc::new(Text("old".to_owned()));
    assert_eq!(scope.put(wire.get(0), mark, Some(old), 3), Kept::Kept);
    db.let_go();
    assert_eq!(refreshing.await.unwrap().0, "new");
    settle().await;
    let later = get::<Name>(&request, &7).await.unwrap().unwrap();
    assert_eq!(later.0, "new");
}

#[tokio::test]
async fn warming_fills_the_store_with_what_the_request_has_kept() {
    let db = Db::default();
    let cache = builder(&db, Tiers::default()).build().await.unwrap();
    let request = Request::begin(&cache);
    get::<Name>(&request, &7).await.unwrap();
    settle().await;
    cache.flush::<Name>([7]).await.unwrap();
    larder_core::warm::<Name>(request.cache(), [7])
        .await
        .unwrap();
    settle().await;
    let loads = db.times("Name");
    get::<Name>(&Request::begin(&cache), &7).await.unwrap();
    assert_eq!(db.times("Name"), loads, "it wasn't in the store");
}

#[tokio::test]
async fn a_refusal_is_counted_once() {
    let db = Db::default();
    let tiers = Tiers::new(TiersConfig {
        budget: 64 << 10,
        ..TiersConfig::default()
    });
    let cache = builder(&db, tiers.unwrap()).build().await.unwrap();
    get::<Huge>(&cache, &1).await.unwrap();
    assert_eq!(cache.stats().accessors[0].tier_refused, 1);
    assert_eq!(cache.stats().tiers.unwrap().deploy.refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_fails_does_not_keep_others_from_being_warmed() {
    let db = Db::default();
    let cache = builder(&db, Tiers::default()).warm::<Part>([1, 9]);
    let cache = cache.build().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let attempts = db.times("Part");
    let (tallied, tally) = cache.tallied();
    get::<Part>(&tallied, &1).await.unwrap();
    assert_eq!(
        tally.tier_hits(),
        1,
        "1 isn't there after {attempts} attempts"
    );
}

#[test]
fn any_age_is_legal() {
    let tiers = Tiers::new(TiersConfig {
        max_age: Duration::MAX,
        budget: u64::MAX,
        per_request: u64::MAX,
    })
    .unwrap();
    let request = tiers.request();
    for number in 0..1_000 {
        assert_eq!(request.keep_now(&number.to_string(), number), Kept::Kept);
    }
}
