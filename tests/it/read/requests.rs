//! What an `Observed` says of the calls that it passes on, and that it only passes them on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder_core::{
    Backend, BackendExt as _, Cache, CallStats, Fill, GetOptions, Keys, Lookup, Observed, Prefix,
    Set, WriteOptions, get,
};

use super::gate::Gate;
use super::shelf::{Row, Shelf, clock, memory};

const LEASE: Duration = Duration::from_secs(10);

fn observed(gate: &Arc<Gate>) -> Arc<dyn Backend> {
    Arc::new(Observed::new(Arc::clone(gate) as _, clock()))
}

fn calls(backend: &dyn Backend, command: &str) -> CallStats {
    let calls = backend.stats().calls;
    let mut calls = calls.into_iter().filter(|call| call.command == command);
    let only = calls.next().expect("every command has its numbers");
    assert!(calls.next().is_none());
    only
}

/// Within the quarter of a power of two that the histogram tells apart.
#[track_caller]
fn expect_about(found_us: f64, expected: Duration) {
    let expected = expected.as_nanos() as f64 / 1_000.0;
    assert!(
        (expected..expected * 1.25).contains(&found_us),
        "{found_us} us, and not about {expected}"
    );
}

#[tokio::test(start_paused = true)]
async fn each_command_has_its_own_time() {
    let gate = Gate::new(memory());
    let backend = observed(&gate);
    gate.answered_gets().close();
    let slow = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move { backend.get("k", &GetOptions::lease(LEASE)).await }
    });
    gate.answered_gets().arrived().await;
    tokio::time::advance(Duration::from_millis(40)).await;
    gate.answered_gets().open();
    let Ok(Lookup::Miss { lease: Some(lease) }) = slow.await.unwrap() else {
        panic!("a first look-up wins");
    };
    backend.fill("k", Fill::new(lease, "value")).await.unwrap();
    backend.delete("k").await.unwrap();

    let gets = calls(&*backend, "get");
    assert_eq!(gets.latency.count, 1);
    expect_about(gets.latency.p99_us, Duration::from_millis(40));
    for command in ["fill", "delete"] {
        let quick = calls(&*backend, command);
        assert_eq!(quick.latency.count, 1, "{command}");
        assert!(quick.latency.p99_us < 1_000.0, "{quick:?}");
    }
    for command in ["release", "set"] {
        assert_eq!(calls(&*backend, command).latency.count, 0, "{command}");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_that_fail_are_counted_by_reason() {
    let gate = Gate::new(memory());
    let backend = observed(&gate);
    backend.set_immutable("k", Set::new("")).await.unwrap_err();
    gate.set_down(true);
    let mut keys = Keys::one("a").unwrap();
    keys.push_raw("b").unwrap();
    let answers = backend.delete_many(&keys, &WriteOptions::default()).await;
    assert!(answers.iter().all(Result::is_err));
    let answers = backend.get_many(&keys, &GetOptions::look()).await;
    assert!(answers.iter().all(Result::is_err));

    for command in ["get", "delete"] {
        let failed = calls(&*backend, command);
        let reasons = (failed.timed_out, failed.unavailable, failed.refused);
        assert_eq!(reasons, (0, 2, 0), "{command}");
    }
    assert_eq!(calls(&*backend, "set").refused, 1);
}

#[tokio::test(start_paused = true)]
async fn call_whose_caller_left_is_measured() {
    let gate = Gate::new(memory());
    let backend = observed(&gate);
    gate.answered_gets().close();
    let left = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move { backend.get("k", &GetOptions::look()).await }
    });
    gate.answered_gets().arrived().await;
    tokio::time::advance(Duration::from_secs(3)).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());

    let gets = calls(&*backend, "get");
    assert_eq!((gets.latency.count, gets.abandoned), (1, 1));
    expect_about(gets.latency.p50_us, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn empty_batch_is_no_call() {
    let backend = observed(&Gate::new(memory()));
    let none = Keys::new();
    backend.get_many(&none, &GetOptions::look()).await;
    backend.delete_many(&none, &WriteOptions::default()).await;
    for call in backend.stats().calls {
        assert_eq!((call.latency.count, call.abandoned), (0, 0), "{call:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_are_handed_over_before_the_call_ends() {
    let gate = Gate::new(memory());
    let backend = observed(&gate);
    gate.delivered_gets().close();
    let seen = Arc::new(AtomicUsize::new(0));
    let call = tokio::spawn({
        let (backend, seen) = (Arc::clone(&backend), Arc::clone(&seen));
        async move {
            let keys = Keys::one("k").unwrap();
            let found = &mut |_, _| {
                seen.fetch_add(1, Ordering::Relaxed);
            };
            backend.get_each(&keys, &GetOptions::look(), found).await;
        }
    });
    gate.delivered_gets().arrived().await;
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert!(!call.is_finished());
    gate.delivered_gets().open();
    call.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn cache_wraps_what_it_is_given() {
    let shelf = Shelf::of([1]);
    let cache = Cache::builder(shelf.clone())
        .backend(memory())
        .prefix(Prefix::new("test").unwrap())
        .rt(clock())
        .wrap(Observed::new)
        .wrap(|inner, _| Arc::into_inner(Gate::new(inner)).expect("nobody else has it"))
        .build()
        .await
        .unwrap();
    assert_eq!(
        cache.backend().to_string(),
        "gate (observed memory (64 MiB))"
    );
    let (cache, tally) = cache.tallied();
    get::<Row>(&cache, &1).await.unwrap();
    tally.settled().await;
    let counts = cache.stats().backend.calls;
    let counts: Vec<_> = counts
        .iter()
        .map(|call| (call.command, call.latency.count))
        .collect();
    let expected = [
        ("get", 1),
        ("fill", 1),
        ("release", 0),
        ("delete", 0),
        ("set", 0),
    ];
    assert_eq!(counts, expected);
    assert_eq!(tally.trips(), 2, "measuring is no trip");
}
