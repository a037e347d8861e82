//! The stores that the kit is tested on: the one in the process, and real servers.

use larder_core::{Source, get, warm};
use larder_harness::redis::RedisServer;
use larder_harness::server::{Listen, MemcachedServer};
use larder_testing::{TestCache, captured, empty_cache};

use crate::users::{Name, Names};

/// Plays it on each store.
pub(crate) async fn on_each<S: Source>(
    source: impl Fn() -> S,
    play: impl AsyncFn(larder_testing::TestCacheBuilder<S>),
) {
    let memcached = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
    let redis = RedisServer::start(Listen::Tcp, &[]);
    for url in [
        "memory://".to_owned(),
        format!(
            "memcached://{}?timeout=3s&flush_timeout=3s",
            memcached.address()
        ),
        format!("redis://{}?timeout=3s&flush_timeout=3s", redis.address()),
    ] {
        play(TestCache::builder(source()).url(url)).await;
    }
}

#[tokio::test]
async fn numbers_are_exact_on_each() {
    let source = || Names::of([1, 2]);
    on_each(source, async |builder| {
        let cache = builder.build().await;
        // Redis is sent its scripts once.
        warm::<Name>(&cache, [9]).await.unwrap();
        let names = async || {
            larder_core::get_many::<Name>(&cache, [1, 2, 3])
                .await
                .unwrap()
        };
        let (_, cold) = captured(names()).await;
        let counts = cold.accessor("name_by_id");
        assert_eq!((counts.misses, counts.loads, counts.fills), (3, 1, 3));
        // Redis is asked for leases in a second step.
        let is_redis = cache.backend().to_string().starts_with("redis");
        assert_eq!(cold.trips(), if is_redis { 3 } else { 2 });
        let (_, warm) = captured(names()).await;
        let counts = warm.accessor("name_by_id");
        assert_eq!((counts.hits, counts.absent, warm.trips()), (2, 1, 1));
        assert!(cache.stale_hits().await.is_empty());
        cache.finish().await;
    })
    .await;
}

#[tokio::test]
async fn an_empty_cache_is_filled_again_on_each() {
    let names = Names::of([1]);
    let source = || names.clone();
    on_each(source, async |builder| {
        names.write(1, "user 1");
        let cache = builder.unchecked_hits().build().await;
        warm::<Name>(&cache, [1]).await.unwrap();
        names.write(1, "another");
        let name = async || get::<Name>(&cache, &1).await.unwrap().unwrap();
        assert_eq!(name().await, "user 1");
        let (read, captured) = captured(empty_cache(name())).await;
        assert_eq!(
            (&*read, captured.accessor("name_by_id").fills),
            ("another", 1)
        );
        assert_eq!(name().await, "another");
    })
    .await;
}
