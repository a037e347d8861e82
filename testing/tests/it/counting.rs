//! What is counted, and what isn't.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use larder_core::{Cache, get, get_many, uncached, warm};
use larder_testing::{
    AccessorCounts, Asked, Captured, TestCache, assert_loads, assert_trips, captured, empty_cache,
};
use larder_tiers::{Request, Tiers};
use tracing::Instrument as _;

use crate::users::{Name, Names, Shown};

async fn name(cache: &Cache<Names>, id: u64) -> Option<String> {
    get::<Name>(cache, &id).await.unwrap()
}

fn counts(captured: &Captured) -> AccessorCounts {
    captured.accessor("name_by_id")
}

/// What a failed assertion says.
fn message(failing: impl FnOnce()) -> String {
    let failed = catch_unwind(AssertUnwindSafe(failing)).expect_err("it is asserted otherwise");
    *failed
        .downcast::<String>()
        .expect("assertions say something")
}

#[tokio::test]
async fn reads_loads_and_fills_are_counted_exactly() {
    let cache = TestCache::new(Names::of([1, 2])).await;
    let (_, captured) = captured(get_many::<Name>(&cache, [1, 2, 3, 1])).await;
    let counts = counts(&captured);
    assert_eq!((counts.reads, counts.singles, counts.keys), (1, 0, 3));
    assert_eq!((counts.hits, counts.absent, counts.misses), (0, 0, 3));
    assert_eq!((counts.loads, counts.fills), (1, 3));
    assert_eq!((captured.trips(), captured.loads()), (2, 1));
    let [backend] = &captured.backends()[..] else {
        panic!("there is one store");
    };
    assert_eq!((backend.trips, backend.keys), (2, 6));
    assert_eq!(*backend.backend, *cache.backend().to_string());
}

#[tokio::test]
async fn hits_and_absences_are_told_apart() {
    let cache = TestCache::new(Names::of([1])).await;
    warm::<Name>(&cache, [1, 2]).await.unwrap();
    let (_, captured) = captured(get_many::<Name>(&cache, [1, 2])).await;
    let counts = counts(&captured);
    assert_eq!((counts.hits, counts.absent, counts.misses), (1, 1, 0));
    assert_eq!((captured.trips(), captured.loads()), (1, 0));
}

#[tokio::test]
async fn a_flush_is_counted_with_its_trip() {
    let cache = TestCache::new(Names::of([1])).await;
    let (_, captured) = captured(cache.flush::<Name>([1, 2])).await;
    assert_eq!(counts(&captured).flushed, 2);
    assert_eq!(captured.trips(), 1);
}

#[tokio::test]
async fn nested_captures_both_count() {
    let cache = TestCache::new(Names::of([1])).await;
    let ((), outer) = captured(async {
        name(&cache, 1).await;
        let (_, inner) = captured(name(&cache, 1)).await;
        assert_eq!((inner.trips(), counts(&inner).hits), (1, 1));
    })
    .await;
    assert_eq!((outer.trips(), outer.loads()), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_at_the_same_time_dont_mix() {
    let cache = TestCache::new(Names::of(0..100)).await;
    let tasks = (0..100_u64).map(|id| {
        let handle = cache.handle();
        tokio::spawn(async move {
            let ((), captured) = captured(async {
                for _ in 0..id {
                    name(&handle, id).await;
                }
            })
            .await;
            (id, captured)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    for task in tasks {
        let (id, captured) = task.await.unwrap();
        assert_eq!(counts(&captured).reads, id);
        assert_eq!(captured.loads(), id.min(1));
        assert_eq!(captured.trips(), id + id.min(1));
    }
}

#[tokio::test]
async fn what_runs_outside_isnt_counted_unless_it_takes_the_span_along() {
    let cache = TestCache::new(Names::of([1, 2])).await;
    let read = |id| {
        let handle = cache.handle();
        async move { name(&handle, id).await }
    };
    let ((), captured) = captured(async {
        tokio::spawn(read(1)).await.unwrap();
        tokio::spawn(read(2).in_current_span()).await.unwrap();
    })
    .await;
    assert_eq!((counts(&captured).reads, captured.loads()), (1, 1));
}

#[tokio::test]
async fn a_load_whose_caller_left_is_waited_for() {
    let cache = TestCache::new(Names::of([1])).await;
    let polled_once = async {
        let mut read = pin!(name(&cache, 1));
        poll_fn(|context| Poll::Ready(read.as_mut().poll(context).is_pending())).await
    };
    let (is_pending, captured) = captured(polled_once).await;
    assert!(is_pending, "the load is in a task of its own");
    assert_eq!((captured.loads(), counts(&captured).fills), (1, 1));
    assert_eq!(counts(&captured).reads, 0);
}

#[tokio::test]
async fn work_between_two_caches_is_told_by_store() {
    let users = TestCache::new(Names::of([1])).await;
    let others = TestCache::builder(Names::of([1]))
        .url("memory://?capacity=1MiB")
        .build()
        .await;
    let ((), captured) = captured(async {
        name(&users, 1).await;
        name(&others, 1).await;
        name(&others, 1).await;
    })
    .await;
    let backends = captured.backends();
    let trips: Vec<u64> = backends.iter().map(|counts| counts.trips).collect();
    assert_eq!(trips, [2, 3]);
}

#[tokio::test]
async fn tiers_and_reads_past_the_cache_are_counted() {
    let cache = TestCache::builder(Names::of([1]))
        .tiers(Tiers::default())
        .build()
        .await;
    let request = Request::begin(&cache);
    let ((), captured) = captured(async {
        get::<Shown>(&request, &1).await.unwrap();
        get::<Shown>(&request, &1).await.unwrap();
        uncached::<Name>(&cache, &1).await.unwrap();
    })
    .await;
    let shown = captured.accessor("shown_name");
    assert_eq!((shown.reads, shown.tier_hits, shown.misses), (2, 1, 1));
    assert_eq!((counts(&captured).misses, counts(&captured).fills), (1, 0));
}

#[tokio::test]
async fn an_empty_cache_misses_and_is_filled_again() {
    let names = Names::of([1]);
    let cache = TestCache::builder(names.clone())
        .tiers(Tiers::default())
        .build()
        .await;
    warm::<Name>(&cache, [1]).await.unwrap();
    names.write(1, "another");
    let (read, captured) = captured(empty_cache(async {
        let request = Request::begin(&cache);
        get::<Shown>(&request, &1).await.unwrap();
        name(&cache, 1).await
    }))
    .await;
    assert_eq!(read.as_deref(), Some("another"));
    assert_eq!((counts(&captured).hits, counts(&captured).fills), (0, 1));
    assert_eq!(captured.accessor("shown_name").fills, 1);
    // In place of what was there.
    assert_eq!(
        assert_loads!(0, name(&cache, 1)).as_deref(),
        Some("another")
    );
}

#[tokio::test]
async fn assertions_answer_what_their_work_answers() {
    let cache = TestCache::new(Names::of([1])).await;
    assert_eq!(assert_loads!(1, name(&cache, 1)).as_deref(), Some("user 1"));
    let both = assert_trips!(2, {
        let first = name(&cache, 1).await;
        (first, name(&cache, 1).await)
    });
    assert_eq!(both.0, both.1);
}

#[tokio::test]
async fn a_failure_shows_what_was_asked_and_names_the_loop() {
    let cache = TestCache::new(Names::of([1, 2])).await;
    warm::<Name>(&cache, [1, 2]).await.unwrap();
    let ((), captured) = captured(async {
        for id in [1, 2, 3] {
            name(&cache, id).await;
        }
    })
    .await;
    assert_eq!(
        message(|| captured.assert_trips(1)),
        "\
expected 1 trip, and there were 4

  #  asked          of                                  keys  answer
  1  trip: get      name_by_id                             1  1 found
     get            name_by_id                             1  1 hit
  2  trip: get      name_by_id                             1  1 found
     get            name_by_id                             1  1 hit
  3  trip: get      name_by_id                             1  0 found
     load           name_by_id                             1  0 found
  4  trip: fill     name_by_id                             1  1 stored
     get            name_by_id                             1  1 miss

3 single gets of `name_by_id`: use `names_by_id`
"
    );
    let loads = message(|| captured.assert_loads(0));
    assert!(
        loads.starts_with("expected 0 loads, and there were 1\n"),
        "{loads}"
    );
    assert!(
        loads.contains("\n  1  load           name_by_id "),
        "{loads}"
    );
}

#[tokio::test]
async fn a_table_fits_a_screen() {
    let cache = TestCache::new(Names::of([])).await;
    let ((), captured) = captured(async {
        for id in 0..100 {
            name(&cache, id).await;
        }
    })
    .await;
    let table = captured.to_string();
    assert!(
        table.lines().all(|line| line.chars().count() <= 80),
        "{table}"
    );
    assert!(table.lines().count() < 70);
    assert!(table.ends_with("… and 340 more\n"), "{table}");
}

#[tokio::test]
async fn nothing_asked_says_why_that_may_be() {
    let ((), captured) = captured(async {}).await;
    let told = message(|| captured.assert_trips(1));
    assert!(told.contains("is the cache a TestCache"), "{told}");
}

#[tokio::test]
async fn the_order_is_that_of_asking() {
    let cache = TestCache::new(Names::of([1])).await;
    let ((), captured) = captured(async {
        name(&cache, 1).await;
        cache.flush::<Name>([1]).await.unwrap();
    })
    .await;
    let kinds: Vec<&str> = captured
        .asked()
        .iter()
        .map(|asked| match asked {
            Asked::Read { .. } => "read",
            Asked::Load { .. } => "load",
            Asked::Filled { .. } => "filled",
            Asked::Call { .. } => "trip",
            Asked::Flushed { .. } => "flushed",
            _ => "another",
        })
        .collect();
    assert_eq!(
        kinds,
        ["trip", "load", "trip", "filled", "read", "trip", "flushed"]
    );
}
