//! The caps that all data sets share, and the end of a cache with flushes under way.

use std::sync::Arc;
use std::time::Duration;

use larder_core::{Cache, Dataset, Lifetime, Prefix, get};

use super::gate::Gate;
use super::shelf::{HOUR, Row, Shelf, cache_on, clock, dataset, memory, text};

dataset!(Other = "other", Lifetime::Ttl(HOUR));

/// Lets everything that can run do so, without moving the clock.
async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_cap_of_the_process_holds_over_all_data_sets() {
    const CAP: usize = 3;
    const {
        assert!(Row::MAX_LOADS > CAP && Other::MAX_LOADS > CAP);
    }
    let shelf = Shelf::of(0..8);
    let cache = Cache::builder(shelf.clone())
        .backend(memory())
        .rt(clock())
        .max_loads(CAP)
        .build()
        .await
        .unwrap();
    for round in 1..=2 {
        shelf.hold();
        let readers: Vec<_> = (0..8)
            .map(|id| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    match id % 2 {
                        0 => get::<Row>(&cache, &id).await,
                        _ => get::<Other>(&cache, &id).await,
                    }
                })
            })
            .collect();
        for _ in 0..CAP {
            shelf.held().await;
        }
        quiet().await;
        assert_eq!(shelf.loads(), (round - 1) * 8 + CAP, "the others wait");
        shelf.let_go();
        for (id, reader) in (0..).zip(readers) {
            assert_eq!(reader.await.unwrap().unwrap(), text(id));
        }
        assert_eq!(shelf.loads(), round * 8, "every place was given back");
        cache.flush::<Row>(0..8).await.unwrap();
        cache.flush::<Other>(0..8).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_flushes_even_those_whose_caller_left() {
    for stays in [true, false] {
        let gate = Gate::new(memory());
        let cache = cache_on(&Shelf::of([7]), Arc::clone(&gate) as _).await;
        get::<Row>(&cache, &7).await.unwrap();
        gate.answered_deletes().close();
        let flushing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.flush::<Row>([7]).await }
        });
        gate.answered_deletes().arrived().await;
        if !stays {
            flushing.abort();
        }
        let closing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.close(Duration::from_secs(10)).await }
        });
        quiet().await;
        assert!(!closing.is_finished());
        gate.answered_deletes().open();
        closing.await.unwrap();
        assert_eq!(cache.stats().accessors[0].flushed, 1);
        if stays {
            flushing.await.unwrap().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_a_flush_no_longer_than_its_deadline() {
    let gate = Gate::new(memory());
    let cache = Cache::builder(Shelf::of([7]))
        .backend(Arc::clone(&gate) as _)
        .prefix(Prefix::new("test").unwrap())
        .rt(clock())
        .build()
        .await
        .unwrap();
    gate.answered_deletes().close();
    let flushing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.flush::<Row>([7]).await }
    });
    gate.answered_deletes().arrived().await;
    let started = tokio::time::Instant::now();
    cache.close(Duration::from_secs(1)).await;
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    gate.answered_deletes().open();
    flushing.await.unwrap().unwrap();
}
