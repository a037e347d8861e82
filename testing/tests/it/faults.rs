//! What goes wrong on demand, on the store in the process and on a real memcached.

use std::time::{Duration, Instant};

use larder_core::{ErrorKind, get};
use larder_harness::server::{Listen, MemcachedServer};
use larder_testing::{Fault, Op, TestCache, captured};

use crate::users::{Name, Names};

/// Plays it on both stores.
async fn on_both(play: impl AsyncFn(TestCache<Names>)) {
    play(
        TestCache::builder(Names::of([1]))
            .url("memory://")
            .build()
            .await,
    )
    .await;
    let server = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
    let url = format!(
        "memcached://{}?timeout=3s&flush_timeout=3s",
        server.address()
    );
    play(TestCache::builder(Names::of([1])).url(url).build().await).await;
}

/// Reads user 1: what the look-up said, and what was stored.
async fn read(cache: &TestCache<Names>) -> (u64, u64) {
    let (name, captured) = captured(get::<Name>(cache, &1)).await;
    assert_eq!(name.unwrap().as_deref(), Some("user 1"));
    let counts = captured.accessor("name_by_id");
    (counts.hits, counts.fills)
}

#[tokio::test]
async fn a_call_that_fails_costs_a_load() {
    on_both(async |cache| {
        assert_eq!(read(&cache).await, (0, 1));
        cache
            .faults()
            .next(Op::Get, Fault::Fail(ErrorKind::Timeout));
        assert_eq!(read(&cache).await, (0, 0));
        assert_eq!(read(&cache).await, (1, 0));
        let happened = [(Op::Get, Fault::Fail(ErrorKind::Timeout))];
        assert_eq!(cache.faults().happened(), happened);
    })
    .await;
}

#[tokio::test]
async fn the_nth_call_is_counted_from_now() {
    on_both(async |cache| {
        assert_eq!(read(&cache).await, (0, 1));
        cache.faults().nth(Op::Get, 2, Fault::Unsent);
        assert_eq!(read(&cache).await, (1, 0));
        assert_eq!(read(&cache).await, (0, 0));
        assert_eq!(read(&cache).await, (1, 0));
        assert_eq!(cache.faults().calls(Op::Get), 4);
    })
    .await;
}

#[tokio::test]
async fn a_delete_that_is_unsent_leaves_the_entry_and_one_unanswered_doesnt() {
    on_both(async |cache| {
        for (fault, is_there) in [(Fault::Unsent, true), (Fault::Unanswered, false)] {
            read(&cache).await;
            // The process that flushed reads past the store until its flush is confirmed, so another one looks.
            let other = TestCache::builder(Names::of([1]))
                .backend(std::sync::Arc::clone(cache.backend()))
                .with(|builder| builder.prefix(cache.prefix()))
                .build()
                .await;
            cache.faults().all(Op::Delete, fault);
            cache.flush::<Name>([1]).await.unwrap_err();
            assert_eq!(read(&other).await.0 == 1, is_there, "{fault:?}");
            cache.faults().clear();
            cache.flush::<Name>([1]).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_lost_lease_stores_nothing() {
    on_both(async |cache| {
        cache.faults().next(Op::Fill, Fault::LoseLease);
        assert_eq!(read(&cache).await, (0, 0));
        cache.faults().next(Op::Get, Fault::LoseLease);
        assert_eq!(read(&cache).await, (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_damaged_entry_is_a_miss_that_is_replaced() {
    on_both(async |cache| {
        cache.faults().next(Op::Fill, Fault::Damage);
        assert_eq!(read(&cache).await, (0, 1));
        assert_eq!(read(&cache).await, (0, 1));
        assert_eq!(read(&cache).await, (1, 0));
        cache.faults().next(Op::Get, Fault::Damage);
        assert_eq!(read(&cache).await, (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_call_is_put_off() {
    on_both(async |cache| {
        read(&cache).await;
        cache
            .faults()
            .next(Op::Get, Fault::Delay(Duration::from_millis(80)));
        let began = Instant::now();
        assert_eq!(read(&cache).await, (1, 0));
        assert!(began.elapsed() >= Duration::from_millis(80));
    })
    .await;
}

#[test]
#[should_panic(expected = "Damage can't happen to a delete")]
fn what_cant_happen_is_refused() {
    larder_testing::Faults::new().next(Op::Delete, Fault::Damage);
}
