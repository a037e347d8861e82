//! What one scope keeps, drops and forgets.

use std::sync::Arc;
use std::time::Duration;

use larder_core::{Kept, KeyPart, KeyWriter, Keys, Prefix, Recall, Scope, Scopes, SharedValue};
use larder_tiers::{Tiers, TiersConfig};

use super::support::{Found, ScopeExt as _, keys, settle, value};

fn request() -> (Tiers, Arc<dyn Scope>) {
    let tiers = Tiers::default();
    let scope = tiers.request();
    (tiers, scope)
}

#[test]
fn values_and_absences_are_kept() {
    let (tiers, scope) = request();
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.keep_now("a", 1), Kept::Kept);
    let absent = keys(&["b"]);
    assert_eq!(
        scope.put(absent.get(0), scope.mark("b"), None, 0),
        Kept::Kept
    );
    assert_eq!(scope.find("a"), Found::Value(1));
    assert_eq!(scope.find("b"), Found::Absent);
    assert_eq!(tiers.stats().request.entries, 2);
}

#[test]
fn the_first_of_two_values_stays() {
    let (tiers, scope) = request();
    let mark = scope.mark("a");
    assert_eq!(scope.keep("a", mark, 1), Kept::Kept);
    assert!(matches!(scope.keep("a", mark, 2), Kept::Other(Some(_))));
    assert_eq!(scope.find("a"), Found::Value(1));
    assert_eq!(tiers.stats().request.entries, 1);
}

#[test]
fn scopes_know_nothing_of_each_other() {
    let (tiers, one) = request();
    let other = tiers.request();
    let deploy = tiers.deploy();
    one.keep_now("a", 1);
    deploy.keep_now("a", 3);
    assert_eq!(other.find("a"), Found::Nothing);
    other.keep_now("a", 2);
    one.forget(&keys(&["a"]));
    assert_eq!(
        [one.find("a"), other.find("a"), deploy.find("a")],
        [Found::Nothing, Found::Value(2), Found::Value(3)]
    );
}

/// A part whose text is hidden, and collides with that of all others.
struct Colliding(u64);

impl KeyPart for Colliding {
    fn write(&self, key: &mut KeyWriter<'_>) {
        key.digest(&self.0.to_le_bytes());
    }
}

#[test]
fn the_whole_key_counts() {
    let (_, scope) = request();
    let prefix = Prefix::new("p").unwrap();
    let mut digested = Keys::new();
    for text in [1, 2] {
        digested.push(prefix, "set", &Colliding(text)).unwrap();
    }
    for (position, key) in digested.iter().enumerate() {
        let Recall::Unknown(mark) = scope.get(key) else {
            panic!("{key:?} is known")
        };
        scope.put(key, mark, value(position as u64), 8);
    }
    // The same bytes, without what the digest hides.
    assert_eq!(scope.find(digested.get(0).as_str()), Found::Nothing);
    assert_eq!(scope.find(&digested.get(0).as_str()[1..]), Found::Nothing);
    for (position, key) in digested.iter().enumerate() {
        let Recall::Kept(Some(kept)) = scope.get(key) else {
            panic!("{key:?} is unknown")
        };
        assert_eq!(super::support::number(&kept), position as u64);
    }
}

#[test]
fn what_was_read_before_a_drop_stays_out() {
    let (_, scope) = request();
    let before = scope.mark("a");
    scope.forget(&keys(&["a"]));
    let after = scope.mark("a");
    assert_eq!(scope.keep("a", before, 1), Kept::TooLate);
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.keep("a", after, 2), Kept::Kept);
    assert_eq!(scope.find("a"), Found::Value(2));
}

#[test]
fn a_drop_is_of_its_keys_alone() {
    let (_, scope) = request();
    let mark = scope.mark("b");
    scope.keep_now("c", 3);
    scope.forget(&keys(&["a"]));
    assert_eq!(scope.keep("b", mark, 2), Kept::Kept);
    assert_eq!(scope.find("c"), Found::Value(3));
}

#[test]
fn distrusted_keys_stay_distrusted() {
    let (tiers, scope) = request();
    let before = scope.mark("a");
    scope.keep_now("a", 1);
    scope.distrust(&keys(&["a"]));
    assert_eq!(scope.find("a"), Found::Distrusted);
    assert_eq!(scope.keep("a", before, 1), Kept::TooLate);
    scope.forget(&keys(&["a"]));
    assert_eq!(scope.find("a"), Found::Distrusted);
    assert_eq!(scope.keep_now("b", 2), Kept::Kept);
    assert_eq!(tiers.stats().request.entries, 1);
}

/// A request that flushes more keys than are remembered one by one gets careful, never wrong.
#[test]
fn any_number_of_drops_is_remembered() {
    let (_, scope) = request();
    let (early, dropped) = (scope.mark("early"), scope.mark("k0"));
    let many: Vec<String> = (0..10_000).map(|number| format!("k{number}")).collect();
    for keys in many.chunks(1_000) {
        let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
        scope.forget(&super::support::keys(&texts));
    }
    for key in ["k0", "k5000", "k9999"] {
        assert_eq!(scope.keep(key, dropped, 1), Kept::TooLate, "{key}");
    }
    assert_eq!(scope.keep("early", early, 1), Kept::TooLate);
    assert_eq!(scope.keep_now("k0", 1), Kept::Kept);

    for keys in many.chunks(1_000) {
        let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
        scope.distrust(&super::support::keys(&texts));
    }
    for key in ["k0", "k5000", "k9999"] {
        assert_eq!(scope.find(key), Found::Distrusted, "{key}");
    }
}

#[tokio::test]
async fn an_ended_scope_answers_nothing_and_keeps_nothing() {
    let (tiers, scope) = request();
    let mark = scope.mark("b");
    scope.keep_now("a", 1);
    scope.end();
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.keep("b", mark, 2), Kept::TooLate);
    assert_eq!(scope.keep_now("a", 1), Kept::TooLate);
    scope.forget(&keys(&["a"]));
    scope.end();
    settle().await;
    let stats = tiers.stats().request;
    assert_eq!((stats.entries, stats.bytes, stats.evicted), (0, 0, 0));
}

#[tokio::test]
async fn values_are_freed_after_the_end() {
    let (_, scope) = request();
    let held = Arc::new(1_u64);
    let shared: SharedValue = Arc::<u64>::clone(&held);
    scope.put(keys(&["a"]).get(0), scope.mark("a"), Some(shared), 8);
    assert_eq!(Arc::strong_count(&held), 2);
    drop(scope);
    settle().await;
    assert_eq!(Arc::strong_count(&held), 1);
}

/// A value that uses its scope as it is freed.
struct Clinging(Arc<dyn Scope>);

impl Drop for Clinging {
    fn drop(&mut self) {
        self.0.keep_now("last-words", 1);
    }
}

#[test]
fn values_may_use_the_tiers_as_they_are_freed() {
    let (tiers, scope) = request();
    let clinging = || -> SharedValue { Arc::new(Clinging(Arc::clone(&scope))) };
    let key = keys(&["a"]);
    scope.put(key.get(0), scope.mark("a"), Some(clinging()), 8);
    scope.forget(&key);
    assert_eq!(scope.find("last-words"), Found::Value(1));
    // Also while others make room.
    scope.forget(&keys(&["last-words"]));
    scope.put(key.get(0), scope.mark("a"), Some(clinging()), 8);
    let deploy = tiers.deploy();
    for number in 0..3 {
        let huge = keys(&[&number.to_string()]);
        let mark = deploy.mark(&number.to_string());
        deploy.put(huge.get(0), mark, value(0), 32 << 20);
    }
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.find("last-words"), Found::Value(1));
}

/// A value that panics as it is freed.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("a value's own");
    }
}

#[test]
fn a_value_that_panics_as_it_is_freed_harms_nobody() {
    let (tiers, scope) = request();
    let key = keys(&["a"]);
    scope.put(key.get(0), scope.mark("a"), Some(Arc::new(Bomb)), 8);
    scope.keep_now("b", 2);
    scope.forget(&key);
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.find("b"), Found::Value(2));
    drop(scope);
    assert_eq!(tiers.stats().request.bytes, 0);
}

#[test]
fn without_a_runtime_the_end_removes_at_once() {
    let (tiers, scope) = request();
    for key in 0..200 {
        scope.keep_now(&key.to_string(), key);
    }
    assert_eq!(tiers.stats().request.entries, 200);
    drop(scope);
    assert_eq!(tiers.stats().request.entries, 0);
    assert_eq!(tiers.stats().request.bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn values_grow_too_old_for_a_request() {
    let tiers = Tiers::new(TiersConfig {
        max_age: Duration::from_secs(10),
        ..TiersConfig::default()
    })
    .unwrap();
    let (scope, deploy) = (tiers.request(), tiers.deploy());
    scope.keep_now("a", 1);
    deploy.keep_now("a", 1);
    tokio::time::advance(Duration::from_secs(6)).await;
    scope.keep_now("b", 2);
    tokio::time::advance(Duration::from_millis(3_999)).await;
    assert_eq!(scope.find("a"), Found::Value(1));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(scope.find("a"), Found::Nothing);
    assert_eq!(scope.find("b"), Found::Value(2));
    assert_eq!(deploy.find("a"), Found::Value(1));
    // Read anew, it is young again.
    assert_eq!(scope.keep_now("a", 3), Kept::Kept);
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(scope.find("a"), Found::Value(3));
    assert_eq!(scope.find("b"), Found::Nothing);
    assert_eq!(tiers.stats().request.entries, 2);
}

#[test]
fn what_is_distrusted_remains_so_after_the_end() {
    let (_tiers, scope) = request();
    scope.keep_now("a", 1);
    scope.distrust(&keys(&["a"]));
    scope.end();
    assert_eq!(scope.find("a"), Found::Distrusted);
    scope.distrust(&keys(&["b"]));
    assert_eq!(scope.find("b"), Found::Distrusted);
    assert_eq!(scope.find("c"), Found::Nothing);
}
