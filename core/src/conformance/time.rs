//! How long entries and leases last: at least what was asked, and at most 3 s more.

use std::time::Duration;

use super::scene::{
    LONG, Scene, ask, expect_hit, expect_lost, expect_stored, fill, look, set, win, win_for,
};
use crate::{BackendExt as _, Fill, FillOutcome, Lookup, Lost, Set};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How late an entry may end, so that servers may count in whole seconds.
fn slack(scene: &Scene) -> Duration {
    if scene.can().exact_time {
        Duration::ZERO
    } else {
        3 * SECOND
    }
}

#[track_caller]
fn expect_gone(found: &Lookup, what: &str) {
    assert!(
        matches!(found, Lookup::Miss { .. }),
        "{what} should be gone, and is {found:?}"
    );
}

/// A short TTL, also below a second, is kept and ends: there at 0.8 of it, gone 3 s after it at the latest.
pub(super) async fn short_ttl_is_kept_and_ends(scene: &Scene) {
    let backend = scene.backend().await;
    let (none, short, long) = (scene.key("0s"), scene.key("0.4s"), scene.key("1s"));
    let (tenth, forever) = (SECOND / 10, scene.key("forever"));
    set(&*backend, &none, Set::new("0s").ttl(Duration::ZERO)).await;
    set(&*backend, &short, Set::new("0.4s").ttl(4 * tenth)).await;
    set(&*backend, &long, Set::new("1s").ttl(SECOND)).await;
    set(&*backend, &forever, Set::new("forever")).await;
    scene.subject.advance(4 * tenth * 8 / 10).await;
    expect_hit(&*backend, &short, b"0.4s").await;
    scene
        .subject
        .advance(SECOND * 8 / 10 - 4 * tenth * 8 / 10)
        .await;
    expect_hit(&*backend, &long, b"1s").await;
    scene.subject.advance(SECOND * 2 / 10 + slack(scene)).await;
    // A TTL of nothing isn't one without end.
    expect_gone(&look(&*backend, &none).await, "an entry of no time");
    expect_gone(&look(&*backend, &short).await, "an entry of 0.4 s");
    expect_gone(&look(&*backend, &long).await, "an entry of 1 s");
    scene.expect_free(&*backend, &long).await;
    expect_hit(&*backend, &forever, b"forever").await;
    // What has ended is absent for everything: it can be leased and filled.
    let lease = win(&*backend, &short).await;
    expect_stored(&*backend, &short, lease, "again").await;
}

/// A fill's TTL is the entry's, whatever the lease's was, and a longer or shorter one replaces it.
pub(super) async fn ttl_of_a_fill_is_its_own(scene: &Scene) {
    let backend = scene.backend().await;
    let (short, long, longer) = (scene.key("short"), scene.key("long"), scene.key("longer"));
    let lease = win_for(&*backend, &short, LONG).await;
    let filled = backend
        .fill(&short, Fill::new(lease, "short").ttl(SECOND))
        .await;
    assert_eq!(filled.ok(), Some(FillOutcome::Stored));
    let lease = win_for(&*backend, &long, 2 * SECOND).await;
    expect_stored(&*backend, &long, lease, "long").await;
    set(&*backend, &longer, Set::new("short").ttl(SECOND)).await;
    set(&*backend, &longer, Set::new("longer").ttl(LONG)).await;
    scene.subject.advance(2 * SECOND + slack(scene)).await;
    expect_gone(
        &look(&*backend, &short).await,
        "an entry of 1 s filled under a longer lease",
    );
    expect_hit(&*backend, &long, b"long").await;
    expect_hit(&*backend, &longer, b"longer").await;
}

/// A TTL around and above the 30 days at which memcached changes its unit, up to a year and far beyond, is kept.
pub(super) async fn long_ttl_is_kept(scene: &Scene) {
    let backend = scene.backend().await;
    let ttls = [30 * DAY, 30 * DAY + SECOND, 60 * DAY, 365 * DAY];
    for (number, ttl) in ttls.into_iter().enumerate() {
        let (stored, filled) = (
            scene.key(format_args!("set:{number}")),
            scene.key(format_args!("fill:{number}")),
        );
        set(&*backend, &stored, Set::new("long").ttl(ttl)).await;
        let lease = win(&*backend, &filled).await;
        let outcome = backend
            .fill(&filled, Fill::new(lease, "long").ttl(ttl))
            .await;
        assert_eq!(outcome.ok(), Some(FillOutcome::Stored));
        for key in [&stored, &filled] {
            scene.expect_value(&*backend, key, b"long").await;
            if scene.can().peeks {
                let kept = scene.peek(key).await.and_then(|peeked| peeked.ttl);
                // The store may have counted a second or two of it already.
                let expected = ttl - 3 * SECOND..=ttl + 3 * SECOND;
                assert!(
                    kept.is_some_and(|kept| expected.contains(&kept)),
                    "the store keeps an entry of {ttl:?} for {kept:?}"
                );
            }
        }
        if scene.can().skips_time {
            scene.subject.advance(ttl * 8 / 10).await;
            expect_hit(&*backend, &stored, b"long").await;
            expect_hit(&*backend, &filled, b"long").await;
            scene.subject.advance(ttl * 2 / 10 + slack(scene)).await;
            expect_gone(&look(&*backend, &stored).await, "an entry past its TTL");
            expect_gone(&look(&*backend, &filled).await, "an entry past its TTL");
        }
    }
    // Longer than a store can say, it is kept for as long as the store can.
    for (number, ttl) in [100 * 365 * DAY, Duration::MAX].into_iter().enumerate() {
        let (stored, filled) = (
            scene.key(format_args!("set:ages:{number}")),
            scene.key(format_args!("fill:ages:{number}")),
        );
        set(&*backend, &stored, Set::new("ages").ttl(ttl)).await;
        let lease = win(&*backend, &filled).await;
        let outcome = backend
            .fill(&filled, Fill::new(lease, "ages").ttl(ttl))
            .await;
        assert_eq!(outcome.ok(), Some(FillOutcome::Stored));
        for key in [&stored, &filled] {
            expect_hit(&*backend, key, b"ages").await;
            if scene.can().skips_time {
                scene.subject.advance(60 * DAY).await;
                expect_hit(&*backend, key, b"ages").await;
            }
        }
    }
}

/// An entry without a TTL has none in the store either.
pub(super) async fn entry_without_ttl_stays(scene: &Scene) {
    let backend = scene.backend().await;
    let (stored, filled) = (scene.key("set"), scene.key("fill"));
    set(&*backend, &stored, Set::new("kept")).await;
    let lease = win_for(&*backend, &filled, 2 * SECOND).await;
    expect_stored(&*backend, &filled, lease, "kept").await;
    if scene.can().skips_time {
        scene.subject.advance(400 * DAY).await;
    }
    for key in [&stored, &filled] {
        expect_hit(&*backend, key, b"kept").await;
        if scene.can().peeks {
            let ttl = scene.peek(key).await.map(|peeked| peeked.ttl);
            assert_eq!(ttl, Some(None), "the TTL of an entry that was given none");
        }
    }
}

/// A lease keeps others out, and fills, for the time that was asked.
pub(super) async fn lease_stands_for_its_time(scene: &Scene) {
    let backend = scene.backend().await;
    let (key, second_key) = (scene.key("a"), scene.key("b"));
    let lease = win_for(&*backend, &key, 2 * SECOND).await;
    let short = win_for(&*backend, &second_key, SECOND).await;
    scene.subject.advance(SECOND * 8 / 10).await;
    expect_stored(&*backend, &second_key, short, "within its time").await;
    scene.subject.advance(SECOND * 8 / 10).await;
    match ask(&*backend, &key, 2 * SECOND).await {
        Lookup::Busy { token, .. } => assert_eq!(token, lease.token),
        other => panic!("a lease of 2 s should stand after 1.6 s, and is {other:?}"),
    }
    expect_stored(&*backend, &key, lease, "within its time").await;
}

/// A lease whose time is over is free for the next, fills nothing, and its holder is told why.
pub(super) async fn expired_lease_is_free_and_cannot_fill(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = ["untouched", "looked-at", "won-again", "filled-again"].map(|name| scene.key(name));
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(win_for(&*backend, key, SECOND).await);
    }
    scene.subject.advance(SECOND + slack(scene)).await;
    let mut leases = leases.into_iter();
    let mut next = || leases.next().expect("each key has its lease");

    expect_lost(&*backend, &keys[0], next(), Lost::Expired).await;
    scene.expect_free(&*backend, &keys[0]).await;

    expect_gone(&look(&*backend, &keys[1]).await, "a lease past its time");
    expect_lost(&*backend, &keys[1], next(), Lost::Expired).await;

    // When it is both over and somebody else's, either reason is true.
    let expect_either = async |key, lease| {
        let outcome = fill(&*backend, key, lease, "must not be stored").await;
        assert!(
            matches!(outcome, FillOutcome::Lost(Lost::Expired | Lost::Voided)),
            "{key} was filled under an expired lease: {outcome:?}"
        );
    };
    let others = win(&*backend, &keys[2]).await;
    expect_either(&keys[2], next()).await;
    expect_stored(&*backend, &keys[2], others, "of the next").await;

    let others = win(&*backend, &keys[3]).await;
    expect_stored(&*backend, &keys[3], others, "of the next").await;
    expect_either(&keys[3], next()).await;
    scene
        .expect_value(&*backend, &keys[3], b"of the next")
        .await;
    assert!(matches!(
        ask(&*backend, &keys[0], LONG).await,
        Lookup::Miss { lease: Some(_) }
    ));
}
