//! What hits, unused requests and entries allocate: a binary of its own, because it counts by the global allocator.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Cache, Dataset, DeployImmutable, DeployTier, FlushOn, Immutable, Kept, Keys, Lifetime, Mark,
    Plain, Prefix, RequestTier, Rows, Rt, Scopes as _, Source,
};
use larder_tiers::{Request, Tiers, TiersConfig};
use serde::{Deserialize, Serialize};

#[derive(Clone)]
struct Rows7;

impl Source for Rows7 {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Seven(u64);

impl DeployImmutable for Seven {}

macro_rules! dataset {
    ($name:ident, $text:literal, $tier:ty, $key:ty, $lifetime:expr) => {
        enum $name {}

        impl Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: Lifetime = $lifetime;
            type Source = Rows7;
            type Key = $key;
            type Value = Seven;
            type Form = Plain;
            type Tier = $tier;
            type Error = Infallible;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load((): &mut (), keys: Vec<$key>) -> Result<Rows<Self>, Infallible> {
                Ok(keys.into_iter().map(|key| (key, Seven(7))).collect())
            }
        }
    };
}

const HOUR: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
dataset!(PerRequest, "per_request", RequestTier, u64, HOUR);
dataset!(
    PerDeploy,
    "per_deploy",
    DeployTier,
    u64,
    Lifetime::Immutable
);
dataset!(Only, "only", DeployTier, (), Lifetime::Immutable);
impl Immutable for PerDeploy {}
impl Immutable for Only {}

#[tokio::test]
async fn hits_allocate_nothing() {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let cache = Cache::builder(Rows7)
        .backend(Arc::new(memory))
        .tiers(Tiers::default())
        .register::<PerRequest>()
        .register::<PerDeploy>()
        .register::<Only>()
        .build()
        .await
        .unwrap();
    let request = Request::begin(&cache);
    let read = async || {
        for key in 0..100 {
            let values = (
                larder_core::get::<PerRequest>(&request, &key).await,
                larder_core::get::<PerDeploy>(&cache, &key).await,
                larder_core::get::<Only>(&cache, &()).await,
            );
            assert!(matches!(values, (Ok(Some(_)), Ok(Some(_)), Ok(Some(_)))));
        }
    };
    read().await;
    // Once more, so that what is allocated once per thread is there.
    read().await;
    let mut counted = std::pin::pin!(read());
    let info = allocation_counter::measure(|| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(counted.as_mut().poll(&mut context).is_ready());
    });
    assert_eq!(info.count_total, 0);
}

#[test]
fn an_unused_request_is_one_allocation() {
    let tiers = Tiers::default();
    let info = allocation_counter::measure(|| drop(tiers.request()));
    assert_eq!((info.count_total, info.bytes_current), (1, 0));
}

/// The bytes that are counted are no fewer than those that are there, and not many more.
#[test]
fn entries_take_what_is_counted() {
    let tiers = Tiers::new(TiersConfig {
        budget: 1 << 30,
        ..TiersConfig::default()
    })
    .unwrap();
    let prefix = Prefix::new("git-3f2a91c").unwrap();
    let mut scopes = Vec::with_capacity(10_000);
    let info = allocation_counter::measure(|| {
        for request in 0..10_000_u64 {
            let scope = tiers.request();
            let mut keys = Keys::new();
            for id in 0..5_u64 {
                keys.push(prefix, "display_name", &(request * 5 + id))
                    .unwrap();
            }
            for key in keys.iter() {
                assert_eq!(scope.put(key, Mark(0), None, 0), Kept::Kept);
            }
            scopes.push(scope);
        }
    });
    let (taken, counted) = (info.bytes_current as u64, tiers.stats().request.bytes);
    assert!(taken <= counted, "{taken} > {counted}");
    assert!(counted <= taken * 3 / 2, "{counted} > 1.5 * {taken}");
}
