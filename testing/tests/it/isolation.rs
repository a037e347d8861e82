//! Caches of tests that use one store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_backends::{Memcached, MemcachedConfig};
use larder_core::{Backend, Rt, get, get_many};
use larder_harness::server::{Listen, MemcachedServer};
use larder_testing::{Fault, Op, TestCache, captured};

use crate::users::{Name, Names};

/// One test: what it reads is its own, and every number is exact.
async fn test(store: Arc<dyn Backend>, number: u64) {
    let names = Names::of([]);
    for id in 0..4 {
        names.write(id, &format!("user {id} of test {number}"));
    }
    let cache = TestCache::builder(names.clone())
        .backend(store)
        // A thousand tests keep a write waiting for its flush.
        .settle(Duration::from_secs(5))
        .build()
        .await;
    let name = async |id| get::<Name>(&cache, &id).await.unwrap().unwrap();

    let (_, cold) = captured(get_many::<Name>(&cache, [0, 1, 2, 3, 4])).await;
    let counts = cold.accessor("name_by_id");
    assert_eq!((counts.misses, counts.fills), (5, 5), "test {number}");
    assert_eq!((cold.trips(), cold.loads()), (2, 1), "test {number}");

    let id = fastrand::u64(0..4);
    let (found, warm) = captured(name(id)).await;
    assert_eq!(found, format!("user {id} of test {number}"));
    assert_eq!((warm.trips(), warm.loads()), (1, 0), "test {number}");

    names.write(id, &format!("renamed in test {number}"));
    let (_, flushed) = captured(cache.flush::<Name>([id])).await;
    flushed.assert_trips(1);
    assert_eq!(name(id).await, format!("renamed in test {number}"));
    assert!(cache.stale_hits().await.is_empty(), "test {number}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_tests_share_one_memcached() {
    let server = MemcachedServer::start(Listen::Tcp, &["-m", "128"]);
    let mut config = MemcachedConfig::new([server.address()]);
    // A thousand tests on two cores keep each other waiting; none of it is what is tested.
    config.connect_timeout = Duration::from_secs(10);
    config.timeout = Duration::from_secs(10);
    config.flush_timeout = Duration::from_secs(10);
    let store: Arc<dyn Backend> = Arc::new(Memcached::new(config, Rt::new()).unwrap());
    let began = Instant::now();
    for _ in 0..2 {
        let mut numbers: Vec<u64> = (0..1_000).collect();
        fastrand::shuffle(&mut numbers);
        let tests = numbers
            .into_iter()
            .map(|number| tokio::spawn(test(Arc::clone(&store), number)));
        for test in tests.collect::<Vec<_>>() {
            test.await.unwrap();
        }
    }
    println!("2,000 tests in {:?}", began.elapsed());
}

#[tokio::test]
async fn a_cache_of_its_own_sees_nothing_of_others() {
    let server = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
    let url = format!("memcached://{}?timeout=3s", server.address());
    let build = || TestCache::builder(Names::of([1])).url(&url).build();
    let (first, second) = (build().await, build().await);
    assert_ne!(first.prefix(), second.prefix());
    get::<Name>(&first, &1).await.unwrap();
    let (_, captured) = captured(get::<Name>(&second, &1)).await;
    assert_eq!(captured.accessor("name_by_id").misses, 1);
}

#[tokio::test]
async fn a_moved_clock_ends_entries_on_any_store() {
    let server = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
    let memcached = format!("memcached://{}?timeout=3s", server.address());
    for url in ["memory://", &memcached] {
        let cache = TestCache::builder(Names::of([1])).url(url).build().await;
        let loads = async || {
            let (_, captured) = captured(get::<Name>(&cache, &1)).await;
            captured.loads()
        };
        assert_eq!(loads().await, 1);
        cache.clock().advance(Duration::from_secs(3_000));
        assert_eq!(loads().await, 0);
        cache.clock().advance(Duration::from_secs(600));
        assert_eq!(loads().await, 1, "{url}");
    }
}

#[tokio::test]
async fn a_moved_clock_ends_leases() {
    let cache = TestCache::builder(Names::of([1])).url("memory://");
    let cache = cache.build().await;
    let long = Duration::from_secs(11); // a lease has ten
    cache.faults().next(Op::Fill, Fault::Delay(long));
    let read = async || captured(get::<Name>(&cache, &1)).await.1;
    let move_on = async {
        while cache.faults().happened().is_empty() {
            tokio::task::yield_now().await;
        }
        cache.clock().advance(long);
    };
    let (late, ()) = tokio::join!(read(), move_on);
    let counts = late.accessor("name_by_id");
    assert_eq!((counts.loads, counts.fills), (1, 0));
    assert_eq!(read().await.loads(), 1);
    assert_eq!(read().await.loads(), 0);
}

#[tokio::test]
async fn absences_end_with_their_own_time() {
    let cache = TestCache::new(Names::of([])).await;
    let loads = async || captured(get::<Name>(&cache, &1)).await.1.loads();
    assert_eq!((loads().await, loads().await), (1, 0));
    cache.clock().advance(Duration::from_secs(61));
    assert_eq!(loads().await, 1);
}

/// Run by the test below, with a variable that only its child has.
#[tokio::test]
async fn the_store_of_the_environment() {
    let cache = TestCache::new(Names::of([1])).await;
    let named = std::env::var("LARDER_TEST_CACHE").unwrap_or_else(|_| "memory://".to_owned());
    assert_eq!(
        named.starts_with("memcached://"),
        cache.backend().to_string().starts_with("memcached"),
        "{named}: {}",
        cache.backend()
    );
    let (_, captured) = captured(get::<Name>(&cache, &1)).await;
    assert_eq!(captured.accessor("name_by_id").fills, 1);
}

#[tokio::test]
async fn the_environment_names_the_store() {
    let server = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "isolation::the_store_of_the_environment"])
        .env(
            "LARDER_TEST_CACHE",
            format!("memcached://{}?timeout=3s", server.address()),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_dropped_cache_is_closed() {
    let cache = TestCache::new(Names::of([1])).await;
    let handle = cache.handle();
    drop(cache);
    tokio::task::yield_now().await;
    let told = get::<Name>(&handle, &1).await.unwrap_err().to_string();
    assert!(told.contains("the cache was closed"), "{told}");
}

#[tokio::test]
async fn what_names_no_store_is_told() {
    let built = TestCache::builder(Names::of([]))
        .url("memcashed://x")
        .try_build();
    let told = built.await.unwrap_err().to_string();
    assert!(told.starts_with("unknown scheme `memcashed`"), "{told}");
}
