//! What cancelled callers, dead servers and hung servers may do: cost time and entries, never give a wrong answer.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::scene::{
    LONG, Scene, Shown, abandoned_after, expect_hit, expect_stored, is_trouble, lease_from, look,
    poll_once, set, set_own_texts, win,
};
use crate::{
    Backend, BackendExt as _, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup, Lost, Set,
    WriteOptions,
};

/// A value that shows which key it belongs to.
fn value_of(key: &str, round: usize) -> String {
    // Lengths differ, so that a reply out of place is out of step as well.
    format!("{key}={}", "x".repeat(round * 37 % 500))
}

#[track_caller]
fn expect_of(key: &str, value: &[u8]) {
    assert!(
        value.starts_with(key.as_bytes()) && value.get(key.len()) == Some(&b'='),
        "the answer for {key} is another's: {:?}",
        Shown(value)
    );
}

/// Does something to one of its own keys, and checks that the answer is that key's.
async fn single(backend: &dyn Backend, random: &mut fastrand::Rng, keys: &[String], round: usize) {
    let key = &keys[random.usize(..keys.len())];
    match random.u8(..4) {
        0 => {
            let _ = backend
                .set_immutable(key, Set::new(value_of(key, round)))
                .await;
        }
        1 => {
            let _ = backend.delete(key).await;
        }
        2 => {
            let found = backend.get(key, &GetOptions::look()).await;
            if let Ok(Lookup::Hit { value, .. }) = found {
                expect_of(key, &value);
            }
        }
        _ => {
            let found = backend.get(key, &GetOptions::lease(LONG)).await;
            match found {
                Ok(Lookup::Hit { value, .. }) => expect_of(key, &value),
                Ok(Lookup::Miss { lease: Some(lease) }) => {
                    let fill = Fill::new(lease, value_of(key, round));
                    let _ = backend.fill(key, fill).await;
                }
                _ => {}
            }
        }
    }
}

/// Does something to several of its own keys at once, and checks that each answer is its key's.
async fn batch(backend: &dyn Backend, random: &mut fastrand::Rng, keys: &[String], round: usize) {
    let mut picked = Keys::new();
    for _ in 0..random.usize(2..40) {
        let key = &keys[random.usize(..keys.len())];
        picked.push_raw(key).expect("the suite's keys are legal");
    }
    let options = WriteOptions::default();
    match random.u8(..4) {
        0 => {
            let sets = picked
                .iter()
                .map(|key| Set::new(value_of(key.as_str(), round)));
            let answers = backend
                .set_immutable_many(&picked, sets.collect(), &options)
                .await;
            assert_eq!(answers.len(), picked.len(), "one answer per key");
        }
        1 => {
            let answers = backend.delete_many(&picked, &options).await;
            assert_eq!(answers.len(), picked.len(), "one answer per key");
        }
        _ => {
            let answers = backend.get_many(&picked, &GetOptions::lease(LONG)).await;
            assert_eq!(answers.len(), picked.len(), "one answer per key");
            let mut won = Vec::new();
            let mut fills = Vec::new();
            for (position, answer) in answers.into_iter().enumerate() {
                let key = picked.get(position).as_str();
                match answer {
                    Ok(Lookup::Hit { value, .. }) => expect_of(key, &value),
                    Ok(Lookup::Miss { lease: Some(lease) }) => {
                        won.push(position);
                        fills.push(Fill::new(lease, value_of(key, round)));
                    }
                    _ => {}
                }
            }
            let answers = backend
                .fill_many(&picked.select(won.iter().copied()), fills, &options)
                .await;
            assert_eq!(answers.len(), won.len(), "one answer per fill");
        }
    }
}

/// Hundreds of callers of one handle that give up at random points, each of which checks that it gets its own.
async fn storm(scene: &Scene, backend: &Arc<dyn Backend>, callers: usize, bulk: bool) {
    let mut seeds = scene.random();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let keys: Vec<_> = (0..8)
                .map(|number| scene.key(format_args!("{bulk}:{caller}:{number}")))
                .collect();
            let (backend, rt) = (Arc::clone(backend), scene.rt);
            let mut random = seeds.fork();
            scene.rt.spawn(async move {
                for round in 0..20 {
                    // Drawn before the call takes the generator.
                    let (way, polls) = (random.u8(..4), random.usize(0..4));
                    let limit = Duration::from_micros(random.u64(0..2_000));
                    let call = async {
                        if bulk {
                            batch(&*backend, &mut random, &keys, round).await;
                        } else {
                            single(&*backend, &mut random, &keys, round).await;
                        }
                    };
                    match way {
                        // Whoever isn't cancelled is who would get another's reply.
                        0 | 1 => call.await,
                        2 => {
                            let _ = abandoned_after(polls, call).await;
                        }
                        _ => {
                            let _ = rt.timeout(limit, call).await;
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        if let Err(error) = task.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    for server in backend.stats().servers {
        assert_eq!(server.protocol_violations, 0, "at {}", server.server);
    }
}

/// Whether the handle does everything it should, on keys it has never seen.
async fn expect_usable(scene: &Scene, backend: &dyn Backend, name: &str) {
    let keys = scene.keys((0..50).map(|number| format!("{name}:{number}")));
    set_own_texts(backend, &keys).await;
    for (key, answer) in keys
        .iter()
        .zip(backend.get_many(&keys, &GetOptions::look()).await)
    {
        match answer {
            Ok(Lookup::Hit { value, .. }) => assert_eq!(Shown(&value), Shown(key.as_bytes())),
            other => panic!("{key:?} should be a hit, and is {other:?}"),
        }
    }
    for key in keys.iter() {
        expect_hit(backend, key.as_str(), key.as_bytes()).await;
    }
    let key = scene.key(format_args!("{name}:leased"));
    let lease = win(backend, &key).await;
    expect_stored(backend, &key, lease, "filled").await;
}

/// Callers of single keys that are cancelled at random points never make another get their reply.
pub(super) async fn dropped_calls_cross_no_replies(scene: &Scene) {
    let backend = scene.backend().await;
    storm(scene, &backend, 300, false).await;
    expect_usable(scene, &*backend, "after-singles").await;
}

/// Nor do callers of batches, and the handle serves on.
pub(super) async fn dropped_batches_leave_the_handle_usable(scene: &Scene) {
    let backend = scene.backend().await;
    storm(scene, &backend, 100, true).await;
    expect_usable(scene, &*backend, "after-batches").await;
}

async fn kill_all(scene: &Scene) {
    for server in 0..scene.can().servers {
        scene.subject.kill(server).await;
    }
}

async fn restart_all(scene: &Scene) {
    for server in 0..scene.can().servers {
        scene.subject.restart(server).await;
    }
}

/// A killed and restarted server counts its tokens from the start again: a lease of before fills nothing, though its
/// number is somebody else's now.
pub(super) async fn lease_from_before_a_kill_is_lost(scene: &Scene) {
    let (old, new) = (scene.backend().await, scene.backend().await);
    // Through a batch and one by one, since those may be different connections.
    let keys = scene.keys(0..40);
    let (batch, singles) = (keys.select(0..20), keys.select(20..40));
    let mut leases = Vec::new();
    for answer in old.get_many(&batch, &GetOptions::lease(LONG)).await {
        match answer {
            Ok(Lookup::Miss { lease: Some(lease) }) => leases.push(lease),
            other => panic!("every key should be won, and one is {other:?}"),
        }
    }
    for key in singles.iter() {
        leases.push(win(&*old, key.as_str()).await);
    }
    let stored = scene.key("stored");
    set(&*old, &stored, Set::new("before")).await;
    let token = expect_hit(&*old, &stored, b"before").await;

    kill_all(scene).await;
    restart_all(scene).await;
    scene.until_up(&*old, &keys).await;
    scene.until_up(&*new, &keys).await;
    scene.expect_free(&*new, &stored).await;

    // The same keys in the same order, so that the restarted server issues the same numbers.
    let mut others = Vec::new();
    for key in keys.iter() {
        others.push(win(&*new, key.as_str()).await);
    }
    set(&*new, &stored, Set::new("after")).await;
    let fills = leases
        .iter()
        .map(|lease| Fill::new(Lease::new(lease.token, lease.won_at), "of before"));
    let outcomes = old
        .fill_many(&keys, fills.collect(), &WriteOptions::default())
        .await;
    assert_eq!(outcomes.len(), keys.len());
    for (key, outcome) in keys.iter().zip(outcomes) {
        assert_eq!(
            outcome.ok(),
            Some(FillOutcome::Lost(Lost::ConnectionGone)),
            "the fill of {key:?} under a lease of before the kill"
        );
    }
    let taken_over = old
        .fill(&stored, Fill::new(lease_from(scene, token), "of before"))
        .await;
    assert_eq!(
        taken_over.ok(),
        Some(FillOutcome::Lost(Lost::ConnectionGone))
    );
    scene.expect_value(&*new, &stored, b"after").await;
    for (key, lease) in keys.iter().zip(others) {
        scene.expect_no_value(&*new, key.as_str()).await;
        expect_stored(&*new, key.as_str(), lease, "of after").await;
    }
}

/// A fill that waits for a connection when its server dies isn't sent to the next one.
pub(super) async fn fill_queued_before_the_reconnect_is_lost(scene: &Scene) {
    for round in 0..4 {
        let backend = scene.backend().await;
        let keys = scene.keys((0..10).map(|number| format!("{round}:{number}")));
        let mut fills = Vec::new();
        for answer in backend.get_many(&keys, &GetOptions::lease(LONG)).await {
            match answer {
                Ok(Lookup::Miss { lease: Some(lease) }) => {
                    fills.push(Fill::new(lease, "of before"));
                }
                other => panic!("every key should be won, and one is {other:?}"),
            }
        }
        let options = WriteOptions::default();
        // Dead for different times when the fill is handed over: not noticed yet, noticed, being redialled. In the
        // last round the server hangs first, so that the fill is surely on its way when it dies.
        let hangs = round == 3 && scene.can().stops;
        if hangs {
            for server in 0..scene.can().servers {
                scene.subject.stop(server).await;
            }
        } else {
            kill_all(scene).await;
            scene
                .rt
                .sleep(Duration::from_millis([0, 2, 60, 0][round]))
                .await;
        }
        let mut filling = pin!(backend.fill_many(&keys, fills, &options));
        let answered = poll_once(filling.as_mut()).await;
        if hangs {
            kill_all(scene).await;
        }
        restart_all(scene).await;
        let other = scene.backend().await;
        scene.until_up(&*other, &keys).await;
        let mut others = Vec::new();
        for key in keys.iter() {
            others.push(win(&*other, key.as_str()).await);
        }
        let answers = match answered {
            Some(answers) => answers,
            None => filling.await,
        };
        assert_eq!(answers.len(), keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            let honest = match &answer {
                Ok(outcome) => *outcome == FillOutcome::Lost(Lost::ConnectionGone),
                // It was sent, and nobody knows what became of it.
                Err(error) => is_trouble(error),
            };
            assert!(honest, "the fill of {key:?} in round {round}: {answer:?}");
        }
        scene.until_up(&*backend, &keys).await;
        for (key, lease) in keys.iter().zip(others) {
            scene.expect_no_value(&*other, key.as_str()).await;
            expect_stored(&*other, key.as_str(), lease, "of after").await;
        }
    }
}

/// While its server is dead every call fails, and says so; afterwards the same handle works.
pub(super) async fn killed_server_is_reported_and_used_again(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = scene.keys(0..10);
    set_own_texts(&*backend, &keys).await;
    kill_all(scene).await;
    let write = WriteOptions::default();
    let answers = backend.get_many(&keys, &GetOptions::lease(LONG)).await;
    assert_eq!(answers.len(), keys.len());
    for answer in answers {
        assert!(answer.as_ref().is_err_and(is_trouble), "{answer:?}");
    }
    for answer in backend.delete_many(&keys, &write).await {
        assert!(answer.as_ref().is_err_and(is_trouble), "{answer:?}");
    }
    let sets = (0..keys.len()).map(|_| Set::new("value")).collect();
    for answer in backend.set_immutable_many(&keys, sets, &write).await {
        assert!(answer.as_ref().is_err_and(is_trouble), "{answer:?}");
    }
    let checks = backend.check().await;
    assert_eq!(checks.len(), scene.can().servers);
    for check in checks {
        assert!(check.answer.as_ref().is_err_and(is_trouble), "{check:?}");
    }
    restart_all(scene).await;
    scene.until_up(&*backend, &keys).await;
    for key in keys.iter() {
        scene.expect_free(&*backend, key.as_str()).await;
    }
    expect_usable(scene, &*backend, "after-the-restart").await;
    for check in backend.check().await {
        assert!(check.answer.is_ok(), "{check:?}");
    }
}

/// One dead server fails only its keys, in every call and always the same ones.
pub(super) async fn dead_server_fails_only_its_keys(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = scene.keys(0..300);
    set_own_texts(&*backend, &keys).await;
    scene.subject.kill(0).await;
    let write = WriteOptions::default();
    let mut failed = Vec::new();
    let answers = backend.get_many(&keys, &GetOptions::look()).await;
    assert_eq!(answers.len(), keys.len());
    for (key, answer) in keys.iter().zip(answers) {
        match answer {
            Ok(Lookup::Hit { value, .. }) => {
                assert_eq!(Shown(&value), Shown(key.as_bytes()));
                failed.push(false);
            }
            Err(error) if is_trouble(&error) => failed.push(true),
            other => panic!("{key:?} should be a hit or fail, and is {other:?}"),
        }
    }
    let count = failed.iter().filter(|failed| **failed).count();
    let servers = scene.can().servers;
    // Half of a fair share, for the dead server and for the others.
    let (own, others) = (300 / servers / 2, (300 - 300 / servers) / 2);
    assert!(
        (own..=300 - others).contains(&count),
        "{count} of 300 keys failed with one of {servers} servers"
    );
    let sets = (0..300).map(|_| Set::new("value")).collect();
    let stored = backend.set_immutable_many(&keys, sets, &write).await;
    let deleted = backend.delete_many(&keys, &write).await;
    for (what, answers) in [("stores", stored), ("deletes", deleted)] {
        let errors: Vec<_> = answers.iter().map(Result::is_err).collect();
        assert_eq!(errors, failed, "the same keys fail for {what}");
    }
    let unreachable = backend.check().await;
    let unreachable = unreachable.iter().filter(|check| check.answer.is_err());
    assert_eq!(unreachable.count(), 1, "servers that don't answer a check");
    scene.subject.restart(0).await;
    scene.until_up(&*backend, &keys).await;
    expect_usable(scene, &*backend, "after-the-restart").await;
}

/// A server that hangs costs each call at most its deadline; what it answers later goes to nobody else.
pub(super) async fn hung_server_costs_a_call_its_deadline(scene: &Scene) {
    let backend = scene.backend().await;
    let keys = scene.keys(0..20);
    set_own_texts(&*backend, &keys).await;
    for server in 0..scene.can().servers {
        scene.subject.stop(server).await;
    }
    let calls: Vec<_> = keys
        .iter()
        .map(|key| {
            let (backend, key) = (Arc::clone(&backend), key.as_str().to_owned());
            scene.rt.spawn(async move {
                let found = backend.get(&key, &GetOptions::look()).await;
                let deleted = backend.delete(&key).await;
                (found.map(drop), deleted)
            })
        })
        .collect();
    let ended = scene.rt.timeout(2 * scene.can().patience, async {
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.expect("a call on a hung server panicked"));
        }
        let options = GetOptions::look();
        let bulk = backend.get_many(&keys, &options).await;
        (answers, bulk)
    });
    let (answers, bulk) = ended
        .await
        .expect("calls on a hung server end within the subject's patience");
    for (found, deleted) in answers {
        assert!(found.as_ref().is_err_and(is_trouble), "{found:?}");
        assert!(deleted.as_ref().is_err_and(is_trouble), "{deleted:?}");
    }
    assert_eq!(bulk.len(), keys.len());
    for answer in bulk {
        assert!(answer.as_ref().is_err_and(is_trouble), "{answer:?}");
    }
    for server in 0..scene.can().servers {
        scene.subject.resume(server).await;
    }
    scene.until_up(&*backend, &keys).await;
    expect_usable(scene, &*backend, "after-the-hang").await;
    // A late delete may have removed these, and nothing may have replaced them.
    for key in keys.iter() {
        if let Lookup::Hit { value, .. } = look(&*backend, key.as_str()).await {
            assert_eq!(Shown(&value), Shown(key.as_bytes()));
        }
    }
}
