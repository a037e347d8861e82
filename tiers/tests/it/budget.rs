//! Who may keep how much, and who gives way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder_core::{Kept, Scope, Scopes as _, SharedValue};
use larder_tiers::{Tiers, TiersConfig};

use super::support::{Found, ScopeExt as _, keys, settle};

const KIB: usize = 1 << 10;
/// An eighth of the budget of these tests.
const EIGHTH: usize = 128 * KIB;

fn tiers() -> Tiers {
    Tiers::new(TiersConfig {
        budget: 8 * EIGHTH as u64,
        per_request: 8 * EIGHTH as u64,
        ..TiersConfig::default()
    })
    .unwrap()
}

fn put(scope: &dyn Scope, key: &str, bytes: usize) -> Kept {
    let value: SharedValue = Arc::new(7_u64);
    scope.put(keys(&[key]).get(0), scope.mark(key), Some(value), bytes)
}

/// Puts values of 8 KiB until one is refused or so many are kept; answers how many.
fn fill(scope: &dyn Scope, most: usize) -> usize {
    (0..most)
        .take_while(|number| put(scope, &format!("fill{number}"), 8 * KIB) == Kept::Kept)
        .count()
}

#[test]
fn one_request_has_its_limit() {
    let tiers = Tiers::new(TiersConfig {
        per_request: 64 << 10,
        ..TiersConfig::default()
    })
    .unwrap();
    let (greedy, modest) = (tiers.request(), tiers.request());
    let kept = fill(&*greedy, 100);
    assert!((6..=7).contains(&kept), "{kept}");
    assert_eq!(tiers.stats().request.refused, 1);
    assert_eq!(put(&*modest, "a", 8 * KIB), Kept::Kept);
    // What is dropped makes room again.
    greedy.forget(&keys(&["fill0"]));
    assert_eq!(put(&*greedy, "again", 8 * KIB), Kept::Kept);
    assert_eq!(put(&*greedy, "too-many", 8 * KIB), Kept::NoRoom);
}

#[test]
fn requests_leave_room_and_refuse_the_newest() {
    let tiers = tiers();
    let scopes: Vec<_> = (0..10).map(|_| tiers.request()).collect();
    for scope in &scopes {
        fill(&**scope, 30);
    }
    let stats = tiers.stats();
    assert!(stats.request.bytes as usize <= 6 * EIGHTH, "{stats:?}");
    assert!(stats.request.bytes as usize > 5 * EIGHTH, "{stats:?}");
    assert_eq!(stats.request.evicted, 0);
    assert!(stats.request.refused > 0);
    // The oldest are served as before.
    assert!(matches!(scopes[0].find("fill0"), Found::Value(_)));
    drop(scopes);
    assert_eq!(tiers.stats().request.bytes, 0);
    assert_eq!(put(&*tiers.request(), "a", 8 * KIB), Kept::Kept);
}

#[test]
fn requests_push_no_deploy_value_out() {
    let tiers = tiers();
    let deploy = tiers.deploy();
    assert_eq!(fill(&*deploy, 64), 64);
    let scopes: Vec<_> = (0..10).map(|_| tiers.request()).collect();
    for scope in &scopes {
        fill(&**scope, 30);
    }
    let stats = tiers.stats();
    assert_eq!((stats.deploy.evicted, stats.deploy.entries), (0, 64));
    assert!(stats.request.bytes as usize > EIGHTH, "{stats:?}");
}

#[test]
fn deploy_values_leave_requests_their_share() {
    let tiers = tiers();
    let deploy = tiers.deploy();
    fill(&*deploy, 200);
    let full = tiers.stats().deploy;
    assert!(full.bytes as usize > 6 * EIGHTH, "{full:?}");
    let request = tiers.request();
    assert!(fill(&*request, 100) > 25);
    let stats = tiers.stats();
    assert!(stats.request.bytes as usize > EIGHTH, "{stats:?}");
    assert!(stats.deploy.evicted > full.evicted);
    assert!(stats.request.bytes + stats.deploy.bytes <= stats.budget);
}

#[test]
fn a_deploy_value_comes_in_and_the_oldest_give_way() {
    let tiers = tiers();
    let (old, young) = (tiers.request(), tiers.request());
    fill(&*old, 30);
    fill(&*young, 100);
    let deploy = tiers.deploy();
    assert_eq!(put(&*deploy, "source-map", 3 * EIGHTH), Kept::Kept);
    assert_eq!(deploy.find("source-map"), Found::Value(7));
    assert_eq!(old.find("fill0"), Found::Nothing);
    let stats = tiers.stats();
    assert!(stats.request.evicted > 0, "{stats:?}");
    assert!(stats.request.bytes + stats.deploy.bytes <= stats.budget);
    // A value that gave way is read again, and kept where there is room.
    drop(young);
    assert_eq!(put(&*old, "fill0", 8 * KIB), Kept::Kept);
}

#[test]
fn what_is_in_use_gives_way_last() {
    let tiers = tiers();
    let deploy = tiers.deploy();
    for number in 0..300 {
        assert_eq!(put(&*deploy, &number.to_string(), 8 * KIB), Kept::Kept);
        assert_eq!(deploy.find("0"), Found::Value(7), "after {number}");
    }
    assert_eq!(deploy.find("1"), Found::Nothing);
    assert!(tiers.stats().deploy.evicted > 100);
}

#[test]
fn what_is_larger_than_its_share_is_refused_at_once() {
    let tiers = tiers();
    let (deploy, request) = (tiers.deploy(), tiers.request());
    assert_eq!(put(&*deploy, "a", 8 * KIB), Kept::Kept);
    assert_eq!(put(&*deploy, "huge", 6 * EIGHTH), Kept::NoRoom);
    assert_eq!(put(&*deploy, "absurd", usize::MAX), Kept::NoRoom);
    assert_eq!(put(&*request, "huge", 7 * EIGHTH), Kept::NoRoom);
    let stats = tiers.stats();
    assert_eq!((stats.deploy.refused, stats.request.refused), (2, 1));
    assert_eq!((stats.deploy.evicted, stats.deploy.entries), (0, 1));
    assert_eq!(stats.request.bytes, 0);
}

#[test]
fn handles_may_have_an_eighth() {
    let tiers = tiers();
    let most = tiers.reserve(EIGHTH).unwrap();
    assert!(tiers.reserve(1).is_none());
    assert_eq!(tiers.stats().deploy.bytes, EIGHTH as u64);
    drop(most);
    assert_eq!(tiers.stats().deploy.bytes, 0);
    assert!(tiers.reserve(EIGHTH + 1).is_none());
    assert!(tiers.reserve(usize::MAX).is_none());
    assert!(tiers.reserve(1).is_some());
}

/// Long polls that sit on a full store: once their values are too old to be served, others get their room.
#[test]
fn idle_requests_give_their_room_up() {
    let tiers = Tiers::new(TiersConfig {
        budget: 8 * EIGHTH as u64,
        per_request: 8 * EIGHTH as u64,
        max_age: Duration::from_millis(20),
    })
    .unwrap();
    let idle = tiers.request();
    fill(&*idle, 200);
    let busy = tiers.request();
    let waited = Instant::now();
    // Two eighths are anybody's. The next value needs room that the idle one has.
    while fill(&*busy, 40) < 40 {
        assert!(waited.elapsed() < Duration::from_secs(30), "{tiers:?}");
        busy.forget(&keys(&["fill0"]));
        thread::yield_now();
    }
    assert_eq!(tiers.stats().request.evicted, 0);
}

/// As many as there are, they never hold more than the budget and what they are putting at this moment.
#[test]
fn the_budget_holds_while_many_put() {
    const THREADS: usize = 8;
    const LARGEST: usize = 64 * KIB;
    let tiers = tiers();
    let deploy = tiers.deploy();
    let most = AtomicU64::new(0);
    thread::scope(|threads| {
        for thread in 0..THREADS {
            let (tiers, deploy, most) = (&tiers, &deploy, &most);
            threads.spawn(move || {
                for round in 0..60 {
                    let request = tiers.request();
                    for number in 0..20 {
                        let bytes = (thread * 7 + round * 13 + number * 31) % 64 * KIB;
                        put(&*request, &number.to_string(), bytes);
                        if number % 5 == 0 {
                            let key = format!("{thread} {round} {number}");
                            put(&**deploy, &key.replace(' ', "-"), bytes);
                        }
                        let stats = tiers.stats();
                        let held = stats.request.bytes + stats.deploy.bytes;
                        most.fetch_max(held, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (most, budget) = (most.into_inner() as usize, 8 * EIGHTH);
    assert!(most > budget / 2, "{most}");
    assert!(most <= budget + THREADS * LARGEST, "{most}");
    let stats = tiers.stats();
    assert_eq!(stats.request.bytes, 0);
    assert!(stats.deploy.bytes as usize <= 7 * EIGHTH);
    assert!(stats.deploy.evicted > 0);
}

/// A value that says how many bytes of its kind are alive.
struct Counted {
    bytes: u64,
    alive: Arc<AtomicU64>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// What is counted is what is there: the values themselves are in memory no longer than the count says.
#[tokio::test]
async fn ten_thousand_requests_in_flight_stay_within_the_budget() {
    let tiers = Tiers::new(TiersConfig {
        budget: 16 << 20,
        ..TiersConfig::default()
    })
    .unwrap();
    let alive = Arc::new(AtomicU64::new(0));
    let mut in_flight = Vec::new();
    for number in 0..10_000_u64 {
        let request = tiers.request();
        for name in 0..8 {
            let bytes = 100 + number % 900;
            alive.fetch_add(bytes, Ordering::SeqCst);
            let value: SharedValue = Arc::new(Counted {
                bytes,
                alive: Arc::clone(&alive),
            });
            let key = keys(&[&format!("display_name:{name}")]);
            let mark = request.mark(&format!("display_name:{name}"));
            request.put(key.get(0), mark, Some(value), bytes as usize);
        }
        in_flight.push(request);
        assert!(alive.load(Ordering::SeqCst) <= 16 << 20);
    }
    let stats = tiers.stats();
    assert!(stats.request.bytes <= stats.budget);
    assert!(alive.load(Ordering::SeqCst) <= stats.request.bytes);
    assert!(stats.request.refused > 0);
    drop(in_flight);
    settle().await;
    while tiers.stats().request.entries > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tiers.stats().request.bytes, 0);
}
