//! Who may fill a key: one at a time, until a delete, a release or a take-over says otherwise.

use std::sync::Arc;
use std::time::Duration;

use super::scene::{
    LONG, Scene, again, ask, delete, expect_busy, expect_hit, expect_lost, expect_stored, fill,
    lease_from, look, release, set, win,
};
use crate::{BackendExt as _, FillOutcome, GetOptions, Lookup, Lost, Set};

/// A look without a lease wins nothing, and leaves nothing behind.
pub(super) async fn plain_look_wins_nothing(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    for _ in 0..3 {
        scene.expect_free(&*backend, &key).await;
    }
    let lease = win(&*backend, &key).await;
    // Nor does it while somebody has the lease.
    assert!(matches!(look(&*backend, &key).await, Lookup::Busy { .. }));
    expect_stored(&*backend, &key, lease, "value").await;
}

/// Of many that ask at once, through one handle and through several, one wins, and the others are told who.
pub(super) async fn one_of_many_contenders_wins(scene: &Scene) {
    let handles = [
        scene.backend().await,
        scene.backend().await,
        scene.backend().await,
        scene.backend().await,
    ];
    for round in 0..10 {
        let key: Arc<str> = scene.key(round).into();
        let contenders: Vec<_> = (0..64)
            .map(|number| {
                // In the first rounds all come through one handle.
                let handle = if round < 5 { 0 } else { number % handles.len() };
                let (backend, key) = (Arc::clone(&handles[handle]), Arc::clone(&key));
                let contender = async move { ask(&*backend, &key, LONG).await };
                (handle, scene.rt.spawn(contender))
            })
            .collect();
        let mut won = Vec::new();
        let mut busy = Vec::new();
        for (handle, contender) in contenders {
            match contender.await.expect("a contender's look-up failed") {
                Lookup::Miss { lease: Some(lease) } => won.push((handle, lease)),
                Lookup::Busy { token, .. } => busy.push(token),
                other => panic!("{key} should be won or busy, and is {other:?}"),
            }
        }
        assert_eq!((won.len(), busy.len()), (1, 63), "winners and losers");
        let (handle, lease) = won.remove(0);
        for token in busy
            .iter()
            .filter(|token| token.origin == lease.token.origin)
        {
            assert_eq!(*token, lease.token, "a loser was told of another lease");
        }
        expect_stored(&*handles[handle], &key, lease, "won").await;
        for handle in &handles {
            expect_hit(&**handle, &key, b"won").await;
        }
    }
}

/// A loser is told whose lease stands, and for how long.
pub(super) async fn loser_learns_the_lease_and_its_age(scene: &Scene) {
    let backend = scene.backend().await;
    let (key, later_key) = (scene.key("a"), scene.key("b"));
    let lease = win(&*backend, &key).await;
    let (age, token) = expect_busy(&*backend, &key).await;
    assert_eq!(token, lease.token);
    assert!(age <= Duration::from_secs(2), "a new lease is {age:?} old");
    let passed = Duration::from_millis(2_500);
    scene.subject.advance(passed).await;
    let (age, token) = expect_busy(&*backend, &key).await;
    assert_eq!(token, lease.token, "asking again changes nothing");
    let slack = Duration::from_millis(if scene.can().exact_time { 1 } else { 2_000 });
    assert!(
        (passed - slack..=passed + slack).contains(&age),
        "a lease of {passed:?} ago is {age:?} old"
    );
    let later = win(&*backend, &later_key).await;
    let between = later
        .won_at
        .duration_since(lease.won_at)
        .unwrap_or_default();
    assert!(
        between >= passed && between < passed + Duration::from_secs(10),
        "two leases {passed:?} apart say they are {between:?} apart"
    );
}

/// Only this many of the batch's first keys ask for a lease, whatever those are.
pub(super) async fn lease_at_most_covers_the_first_keys_only(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = scene.keys(0..10);
    set(&*backend, keys.get(1).as_str(), Set::new("hit")).await;
    set(&*backend, keys.get(8).as_str(), Set::new("hit")).await;
    let options = GetOptions::lease(LONG).lease_at_most(4);
    for (position, answer) in backend.get_many(&keys, &options).await.iter().enumerate() {
        let as_expected = match answer {
            Ok(Lookup::Hit { .. }) => position == 1 || position == 8,
            Ok(Lookup::Miss { lease }) => lease.is_some() == (position < 4),
            _ => false,
        };
        assert!(as_expected, "at {position}: {answer:?}");
    }
    for position in [4, 5, 6, 7, 9] {
        let key = keys.get(position).as_str();
        scene.expect_free(&*backend, key).await;
        let lease = win(&*backend, key).await;
        expect_stored(&*backend, key, lease, "won later").await;
    }
    let none = GetOptions::lease(LONG).lease_at_most(0);
    let keys = scene.keys(["x", "y"]);
    for answer in backend.get_many(&keys, &none).await {
        assert!(
            matches!(answer, Ok(Lookup::Miss { lease: None })),
            "{answer:?}"
        );
    }
}

/// A fill consumes its lease: the same lease can't fill again, nor fill over what came after.
pub(super) async fn lease_fills_once(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    let lease = win(&*backend, &key).await;
    expect_stored(&*backend, &key, again(&lease), "first").await;
    expect_lost(&*backend, &key, again(&lease), Lost::Voided).await;
    scene.expect_value(&*backend, &key, b"first").await;
    delete(&*backend, &key).await;
    expect_lost(&*backend, &key, again(&lease), Lost::Voided).await;
    scene.expect_free(&*backend, &key).await;
}

/// A lease is the right to fill the key it was won on, and no other.
pub(super) async fn lease_fills_only_its_own_key(scene: &Scene) {
    let backend = scene.backend().await;
    let own = scene.key("own");
    let (leased, stored) = (scene.key("leased"), scene.key("stored"));
    // So many that some share their server with the lease, whatever the servers.
    let absent: Vec<String> = (0..48)
        .map(|number| scene.key(format!("absent-{number}")))
        .collect();
    let lease = win(&*backend, &own).await;
    let others = win(&*backend, &leased).await;
    set(&*backend, &stored, Set::new("stored")).await;
    for key in absent.iter().chain([&leased, &stored]) {
        let outcome = fill(&*backend, key, again(&lease), "must not be stored").await;
        assert!(
            matches!(outcome, FillOutcome::Lost(_)),
            "{key} was filled under the lease of {own}"
        );
    }
    for key in &absent {
        scene.expect_free(&*backend, key).await;
    }
    scene.expect_value(&*backend, &stored, b"stored").await;
    expect_stored(&*backend, &leased, others, "leased").await;
    expect_stored(&*backend, &own, lease, "own").await;
}

/// Once a delete has answered, no fill whose lease was won before can succeed.
pub(super) async fn delete_voids_lease(scene: &Scene) {
    let (reader, writer) = (scene.backend().await, scene.backend().await);
    for (name, deleter) in [("same-handle", &reader), ("other-handle", &writer)] {
        let key = scene.key(name);
        let lease = win(&*reader, &key).await;
        delete(&**deleter, &key).await;
        scene.expect_free(&*reader, &key).await;
        expect_lost(&*reader, &key, lease, Lost::Voided).await;
        scene.expect_free(&*reader, &key).await;
    }
}

/// When a key was deleted and leased again, the second filler's value is kept, whoever comes first.
pub(super) async fn second_lease_beats_the_first_filler(scene: &Scene) {
    let (first, second) = (scene.backend().await, scene.backend().await);
    for early in [true, false] {
        let key = scene.key(format_args!("first-filler-early={early}"));
        let old = win(&*first, &key).await;
        delete(&*second, &key).await;
        let new = win(&*second, &key).await;
        assert_ne!(old.token, new.token, "a lease after a delete is another");
        if early {
            expect_lost(&*first, &key, old, Lost::Voided).await;
            scene.expect_no_value(&*first, &key).await;
            expect_stored(&*second, &key, new, "of the second").await;
        } else {
            expect_stored(&*second, &key, new, "of the second").await;
            expect_lost(&*first, &key, old, Lost::Voided).await;
        }
        scene.expect_value(&*first, &key, b"of the second").await;
    }
}

/// An unfenced store ends the leases that stood, as every change of the key does.
pub(super) async fn set_immutable_voids_lease(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    let lease = win(&*backend, &key).await;
    set(&*backend, &key, Set::new("stored meanwhile")).await;
    expect_lost(&*backend, &key, lease, Lost::Voided).await;
    scene
        .expect_value(&*backend, &key, b"stored meanwhile")
        .await;
}

/// After a release the next reader wins at once.
pub(super) async fn release_frees_at_once(scene: &Scene) {
    let (one, other) = (scene.backend().await, scene.backend().await);
    let key = scene.key("a");
    let lease = win(&*one, &key).await;
    release(&*one, &key, lease).await;
    scene.expect_free(&*one, &key).await;
    let lease = win(&*other, &key).await;
    expect_stored(&*other, &key, lease, "of the next").await;
}

/// A lease that was given back fills nothing, neither at once nor after somebody else won.
pub(super) async fn released_lease_cannot_fill(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    let lease = win(&*backend, &key).await;
    release(&*backend, &key, again(&lease)).await;
    expect_lost(&*backend, &key, again(&lease), Lost::Voided).await;
    scene.expect_free(&*backend, &key).await;
    let next = win(&*backend, &key).await;
    expect_lost(&*backend, &key, lease, Lost::Voided).await;
    expect_stored(&*backend, &key, next, "of the next").await;
}

/// Releasing a lease that no longer stands is success, and touches nobody's value or lease.
pub(super) async fn release_of_a_lost_lease_harms_nobody(scene: &Scene) {
    let backend = scene.backend().await;

    let key = scene.key("filled");
    let lease = win(&*backend, &key).await;
    expect_stored(&*backend, &key, again(&lease), "filled").await;
    release(&*backend, &key, lease).await;
    scene.expect_value(&*backend, &key, b"filled").await;

    let key = scene.key("leased-again");
    let lease = win(&*backend, &key).await;
    delete(&*backend, &key).await;
    let others = win(&*backend, &key).await;
    release(&*backend, &key, lease).await;
    let (_, token) = expect_busy(&*backend, &key).await;
    assert_eq!(token, others.token);
    expect_stored(&*backend, &key, others, "of the other").await;

    let key = scene.key("released-before");
    let lease = win(&*backend, &key).await;
    release(&*backend, &key, again(&lease)).await;
    release(&*backend, &key, lease).await;
    scene.expect_free(&*backend, &key).await;
}

/// A lease made from a hit's token replaces exactly the value that was read.
pub(super) async fn take_over_replaces_exactly_what_was_read(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    set(&*backend, &key, Set::new("old")).await;
    let token = expect_hit(&*backend, &key, b"old").await;
    assert_eq!(
        token,
        expect_hit(&*backend, &key, b"old").await,
        "reading doesn't change what a token names"
    );
    expect_stored(&*backend, &key, lease_from(scene, token), "new").await;
    scene.expect_value(&*backend, &key, b"new").await;
    let next = expect_hit(&*backend, &key, b"new").await;
    assert_ne!(token, next, "another value has another token");

    // A value that was deleted and stored again, byte for byte the same, is another.
    delete(&*backend, &key).await;
    set(&*backend, &key, Set::new("new")).await;
    expect_lost(&*backend, &key, lease_from(scene, next), Lost::Voided).await;
    scene.expect_value(&*backend, &key, b"new").await;
}

/// A delete between the read and the take-over voids it.
pub(super) async fn take_over_is_voided_by_a_delete(scene: &Scene) {
    let (reader, writer) = (scene.backend().await, scene.backend().await);
    let key = scene.key("a");
    set(&*reader, &key, Set::new("old")).await;
    let token = expect_hit(&*reader, &key, b"old").await;
    delete(&*writer, &key).await;
    expect_lost(&*reader, &key, lease_from(scene, token), Lost::Voided).await;
    scene.expect_free(&*reader, &key).await;

    // Also when the key was leased again in between.
    set(&*reader, &key, Set::new("old")).await;
    let token = expect_hit(&*reader, &key, b"old").await;
    delete(&*writer, &key).await;
    let lease = win(&*writer, &key).await;
    expect_lost(&*reader, &key, lease_from(scene, token), Lost::Voided).await;
    expect_stored(&*writer, &key, lease, "new").await;
}

/// Of two that replace the same value one does, and the other learns it.
pub(super) async fn take_over_is_won_by_one(scene: &Scene) {
    let (one, other) = (scene.backend().await, scene.backend().await);
    let key = scene.key("a");
    for round in 0..20 {
        let old = format!("old {round}");
        set(&*one, &key, Set::new(old.clone())).await;
        let mut outcomes = Vec::new();
        for backend in [&one, &one, &other, &other] {
            let token = expect_hit(&**backend, &key, old.as_bytes()).await;
            let lease = lease_from(scene, token);
            let (backend, key) = (Arc::clone(backend), key.clone());
            // All have read before any replaces: the tasks begin at the first `await` on them.
            outcomes.push(async move { fill(&*backend, &key, lease, "new").await });
        }
        let tasks: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| scene.rt.spawn(outcome))
            .collect();
        let mut stored = 0;
        for task in tasks {
            match task.await.expect("a take-over failed") {
                FillOutcome::Stored => stored += 1,
                outcome => assert_eq!(outcome, FillOutcome::Lost(Lost::Voided)),
            }
        }
        assert_eq!(stored, 1, "take-overs of one value");
        scene.expect_value(&*one, &key, b"new").await;
    }
}

/// A lease made from a busy key's token takes the place of the one that stands.
pub(super) async fn take_over_of_a_busy_lease_beats_its_holder(scene: &Scene) {
    let (holder, taker) = (scene.backend().await, scene.backend().await);
    let key = scene.key("a");
    let held = win(&*holder, &key).await;
    let (_, token) = expect_busy(&*taker, &key).await;
    expect_stored(&*taker, &key, lease_from(scene, token), "of the taker").await;
    expect_lost(&*holder, &key, held, Lost::Voided).await;
    scene.expect_value(&*holder, &key, b"of the taker").await;

    // Fenced like any other: the holder was faster, or a delete was.
    let key = scene.key("holder-first");
    let held = win(&*holder, &key).await;
    let (_, token) = expect_busy(&*taker, &key).await;
    expect_stored(&*holder, &key, held, "of the holder").await;
    expect_lost(&*taker, &key, lease_from(scene, token), Lost::Voided).await;
    let key = scene.key("delete-first");
    win(&*holder, &key).await;
    let (_, token) = expect_busy(&*taker, &key).await;
    delete(&*holder, &key).await;
    expect_lost(&*taker, &key, lease_from(scene, token), Lost::Voided).await;
    scene.expect_free(&*taker, &key).await;
}

/// Giving a take-over back frees the key, unless it changed since it was read.
pub(super) async fn release_of_a_take_over_frees_the_key(scene: &Scene) {
    let backend = scene.backend().await;
    let key = scene.key("a");
    set(&*backend, &key, Set::new("damaged")).await;
    let token = expect_hit(&*backend, &key, b"damaged").await;
    release(&*backend, &key, lease_from(scene, token)).await;
    scene.expect_free(&*backend, &key).await;
    let lease = win(&*backend, &key).await;
    expect_stored(&*backend, &key, lease, "sound").await;
    release(&*backend, &key, lease_from(scene, token)).await;
    scene.expect_value(&*backend, &key, b"sound").await;
}

/// A fill that is lost leaves nothing in the store, asked on another way than by a backend.
pub(super) async fn lost_fill_leaves_nothing_in_the_store(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = ["deleted", "released", "leased-again"].map(|name| scene.key(name));
    let mut leases = Vec::new();
    for key in &keys {
        leases.push(win(&*backend, key).await);
    }
    delete(&*backend, &keys[0]).await;
    release(&*backend, &keys[1], again(&leases[1])).await;
    delete(&*backend, &keys[2]).await;
    win(&*backend, &keys[2]).await;
    for (key, lease) in keys.iter().zip(leases) {
        expect_lost(&*backend, key, lease, Lost::Voided).await;
    }
    assert_eq!(scene.peek(&keys[0]).await, None, "deleted, then filled");
    assert_eq!(scene.peek(&keys[1]).await, None, "released, then filled");
    let peeked = scene.peek(&keys[2]).await.map(|peeked| peeked.value);
    assert_eq!(
        peeked.as_deref(),
        Some(&b""[..]),
        "leased again, then filled"
    );
}
