//! How calls are answered: once per input, in order, counted, and after the end not at all.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::time::Duration;

use super::scene::{
    LONG, Scene, Shown, counter, expect_hit, expect_kind, keys_of, look, own_texts, poll_once, set,
    set_own_texts, taken, win,
};
use crate::{
    BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup, Set,
    WriteOptions,
};

/// The sizes of batches that backends treat in different ways: none, one, a few, a bulk, several windows.
const SIZES: [usize; 5] = [0, 1, 2, 1_000, 20_000];

/// A batch of this size in which keys repeat and come in no order.
struct Batch {
    keys: Keys,
    /// Which of the distinct keys is at each position.
    picks: Vec<usize>,
    distinct: Vec<String>,
}

impl Batch {
    fn random(scene: &Scene, size: usize) -> Self {
        let mut random = scene.random();
        let distinct: Vec<_> = (0..size.div_ceil(2))
            .map(|number| scene.key(format_args!("{size}:{number}")))
            .collect();
        let mut picks: Vec<_> = (0..size).map(|position| position / 2).collect();
        random.shuffle(&mut picks);
        Self {
            keys: keys_of(picks.iter().map(|&pick| &distinct[pick])),
            picks,
            distinct,
        }
    }

    /// Whether the key at this position is the first of its kind.
    fn firsts(&self) -> Vec<bool> {
        let mut seen = HashSet::new();
        self.picks.iter().map(|pick| seen.insert(*pick)).collect()
    }
}

#[track_caller]
fn expect_own_text(answer: &crate::Result<Lookup>, key: &str) {
    match answer {
        Ok(Lookup::Hit { value, .. }) => assert_eq!(
            Shown(value),
            Shown(key.as_bytes()),
            "the answer for {key} is another's"
        ),
        other => panic!("{key} should be a hit, and is {other:?}"),
    }
}

/// Every look-up is answered once per input, in input order, duplicates included.
pub(super) async fn look_ups_answer_in_order_with_duplicates(scene: &Scene) {
    let backend = scene.backend().await;
    for size in SIZES {
        let batch = Batch::random(scene, size);
        // Every third key is absent, so that hits and misses alternate without a pattern in the shuffled batch.
        let stored = keys_of(
            batch
                .distinct
                .iter()
                .enumerate()
                .filter_map(|(pick, key)| (pick % 3 != 1).then_some(key)),
        );
        set_own_texts(&*backend, &stored).await;
        let answers = backend.get_many(&batch.keys, &GetOptions::look()).await;
        assert_eq!(answers.len(), size, "one answer per key of {size}");
        for ((key, pick), answer) in batch.keys.iter().zip(&batch.picks).zip(&answers) {
            if pick % 3 == 1 {
                assert!(
                    matches!(answer, Ok(Lookup::Miss { lease: None })),
                    "{key:?} should be a miss, and is {answer:?}"
                );
            } else {
                expect_own_text(answer, key.as_str());
            }
        }
    }
}

/// Of a repeated key the first position wins and the others learn of it; fills are answered like look-ups.
pub(super) async fn leases_and_fills_answer_in_order_with_duplicates(scene: &Scene) {
    let backend = scene.backend().await;
    for size in SIZES {
        let batch = Batch::random(scene, size);
        let answers = backend
            .get_many(&batch.keys, &GetOptions::lease(LONG))
            .await;
        assert_eq!(answers.len(), size, "one answer per key of {size}");
        let firsts = batch.firsts();
        let mut won = Vec::new();
        let mut tokens = HashMap::new();
        for (position, answer) in answers.into_iter().enumerate() {
            let key = batch.keys.get(position);
            match answer {
                Ok(Lookup::Miss { lease: Some(lease) }) if firsts[position] => {
                    tokens.insert(batch.picks[position], lease.token);
                    won.push((position, lease));
                }
                Ok(Lookup::Busy { token, .. }) if !firsts[position] => assert_eq!(
                    Some(&token),
                    tokens.get(&batch.picks[position]),
                    "{key:?} is busy with another lease than its own"
                ),
                other => panic!(
                    "{key:?} at {position} of {size} should be {}, and is {other:?}",
                    if firsts[position] { "won" } else { "busy" }
                ),
            }
        }
        scene.random().shuffle(&mut won);
        let keys = batch.keys.select(won.iter().map(|(position, _)| *position));
        let fills = own_texts(&keys)
            .zip(won)
            .map(|(value, (_, lease))| Fill::new(lease, value))
            .collect();
        let outcomes = backend
            .fill_many(&keys, fills, &WriteOptions::default())
            .await;
        assert_eq!(outcomes.len(), keys.len(), "one outcome per fill");
        for (key, outcome) in keys.iter().zip(outcomes) {
            assert_eq!(
                outcome.ok(),
                Some(FillOutcome::Stored),
                "the fill of {key:?}"
            );
        }
        let answers = backend.get_many(&batch.keys, &GetOptions::look()).await;
        assert_eq!(answers.len(), size, "one answer per key of {size}");
        for (key, answer) in batch.keys.iter().zip(&answers) {
            expect_own_text(answer, key.as_str());
        }
    }
}

/// Every delete is answered once per input, absent and repeated keys included, and removes exactly its keys.
pub(super) async fn deletes_answer_in_order_with_duplicates(scene: &Scene) {
    let backend = scene.backend().await;
    for size in SIZES {
        let batch = Batch::random(scene, size);
        let all = keys_of(&batch.distinct);
        set_own_texts(&*backend, &all).await;
        let spared = scene.key(format_args!("spared:{size}"));
        set(&*backend, &spared, Set::new("spared")).await;
        let answers = backend
            .delete_many(&batch.keys, &WriteOptions::default())
            .await;
        assert_eq!(answers.len(), size, "one answer per delete of {size}");
        for (key, answer) in batch.keys.iter().zip(&answers) {
            assert!(answer.is_ok(), "deleting {key:?}: {answer:?}");
        }
        let answers = backend.get_many(&all, &GetOptions::look()).await;
        for (key, answer) in all.iter().zip(&answers) {
            assert!(
                matches!(answer, Ok(Lookup::Miss { .. })),
                "{key:?} was deleted, and is {answer:?}"
            );
        }
        expect_hit(&*backend, &spared, b"spared").await;
    }
}

/// Every release is answered once per input, and frees exactly its keys.
pub(super) async fn releases_answer_in_order_with_duplicates(scene: &Scene) {
    let backend = scene.backend().await;
    for size in SIZES {
        let batch = Batch::random(scene, size);
        let all = keys_of(&batch.distinct);
        let mut leases = Vec::new();
        for (key, answer) in all
            .iter()
            .zip(backend.get_many(&all, &GetOptions::lease(LONG)).await)
        {
            match answer {
                Ok(Lookup::Miss { lease: Some(lease) }) => leases.push(lease),
                other => panic!("{key:?} should be won, and is {other:?}"),
            }
        }
        let kept = scene.key(format_args!("kept:{size}"));
        win(&*backend, &kept).await;
        let repeated = batch
            .picks
            .iter()
            .map(|&pick| Lease::new(leases[pick].token, leases[pick].won_at))
            .collect();
        let answers = backend
            .release_many(&batch.keys, repeated, &WriteOptions::default())
            .await;
        assert_eq!(answers.len(), size, "one answer per release of {size}");
        for (key, answer) in batch.keys.iter().zip(&answers) {
            assert!(answer.is_ok(), "releasing {key:?}: {answer:?}");
        }
        let answers = backend.get_many(&all, &GetOptions::look()).await;
        for (key, answer) in all.iter().zip(&answers) {
            assert!(
                matches!(answer, Ok(Lookup::Miss { .. })),
                "{key:?} was released, and is {answer:?}"
            );
        }
        assert!(matches!(look(&*backend, &kept).await, Lookup::Busy { .. }));
    }
}

/// Every store is answered once per input; of a repeated key one of its values stays.
pub(super) async fn stores_answer_in_order_with_duplicates(scene: &Scene) {
    let backend = scene.backend().await;
    for size in SIZES {
        let batch = Batch::random(scene, size);
        // One in a hundred is refused, so that the answers' order can be seen.
        let sets = batch.keys.iter().enumerate().map(|(position, key)| {
            Set::new(match position % 100 {
                99 => String::new(),
                _ => format!("{}={position}", key.as_str()),
            })
        });
        let answers = backend
            .set_immutable_many(&batch.keys, sets.collect(), &WriteOptions::default())
            .await;
        assert_eq!(answers.len(), size, "one answer per store of {size}");
        for (position, answer) in answers.iter().enumerate() {
            assert_eq!(
                answer.is_err(),
                position % 100 == 99,
                "the store at {position} of {size}: {answer:?}"
            );
        }
        let answers = backend.get_many(&batch.keys, &GetOptions::look()).await;
        for (key, answer) in batch.keys.iter().zip(&answers) {
            let own = format!("{}=", key.as_str());
            match answer {
                Ok(Lookup::Hit { value, .. }) if value.starts_with(own.as_bytes()) => {}
                // Both positions of a key may have been refused.
                Ok(Lookup::Miss { .. }) if size >= 100 => {}
                other => panic!("{key:?} should have its own value, and is {other:?}"),
            }
        }
    }
}

/// An empty batch is answered with nothing and asks no server.
pub(super) async fn empty_batch_does_no_io(scene: &Scene) {
    let backend = scene.backend().await;
    look(&*backend, &scene.key("connects")).await;
    let trips_of_servers = || -> u64 { backend.stats().servers.iter().map(|s| s.trips).sum() };
    let before = trips_of_servers();
    let none = Keys::new();
    let (count, trips) = counter();
    let write = WriteOptions::trips(trips.clone());
    let look = GetOptions::look().trips(trips.clone());
    let lease = GetOptions::lease(LONG).trips(trips);
    assert!(backend.get_many(&none, &look).await.is_empty());
    assert!(backend.get_many(&none, &lease).await.is_empty());
    assert!(backend.fill_many(&none, vec![], &write).await.is_empty());
    assert!(backend.release_many(&none, vec![], &write).await.is_empty());
    assert!(backend.delete_many(&none, &write).await.is_empty());
    assert!(
        backend
            .set_immutable_many(&none, vec![], &write)
            .await
            .is_empty()
    );
    assert_eq!(taken(&count), 0, "trips counted for the caller");
    assert_eq!(trips_of_servers(), before, "trips counted by the handle");
}

/// A trip is one command batch to one server: so many for a bulk as it has servers, and one for one key.
///
/// A cold look-up that asks for leases may take a second step.
pub(super) async fn trips_are_one_per_server_and_batch(scene: &Scene) {
    let backend = scene.backend().await;
    let (count, trips) = counter();
    let write = WriteOptions::trips(trips.clone());
    let look = GetOptions::look().trips(trips.clone());
    let lease = GetOptions::lease(LONG).trips(trips);
    // With 1,000 keys every server has some, but for a chance of two thirds to the power of a thousand.
    for (size, expected) in [(1, 1), (1_000, scene.can().servers as u64)] {
        let keys = scene.keys((0..size).map(|number| format!("{size}:{number}")));
        let answers = backend.get_many(&keys, &lease).await;
        let cold = taken(&count);
        assert!(
            (expected..=2 * expected).contains(&cold),
            "a cold look-up of {size} took {cold} trips to {expected} servers"
        );
        let leases: Vec<_> = answers
            .into_iter()
            .map(|answer| match answer {
                Ok(Lookup::Miss { lease: Some(lease) }) => lease,
                other => panic!("every key should be won, and one is {other:?}"),
            })
            .collect();
        let fills = leases
            .iter()
            .map(|lease| Fill::new(Lease::new(lease.token, lease.won_at), "value"))
            .collect();
        backend.fill_many(&keys, fills, &write).await;
        assert_eq!(taken(&count), expected, "trips of {size} fills");
        backend.get_many(&keys, &look).await;
        assert_eq!(taken(&count), expected, "trips of {size} hits");
        backend.get_many(&keys, &lease).await;
        assert_eq!(taken(&count), expected, "trips of {size} hits with leases");
        backend.release_many(&keys, leases, &write).await;
        assert_eq!(taken(&count), expected, "trips of {size} releases");
        backend.delete_many(&keys, &write).await;
        assert_eq!(taken(&count), expected, "trips of {size} deletes");
        let sets = (0..size).map(|_| Set::new("value")).collect();
        backend.set_immutable_many(&keys, sets, &write).await;
        assert_eq!(taken(&count), expected, "trips of {size} stores");
    }
}

/// The handle's own statistics name every server and count what its callers count.
pub(super) async fn statistics_count_trips_and_keys(scene: &Scene) {
    let backend = scene.backend().await;
    let (count, trips) = counter();
    let keys = scene.keys(0..100);
    set_own_texts(&*backend, &keys).await;
    let sums = || {
        let servers = backend.stats().servers;
        let of = |pick: fn(&crate::ServerStats) -> u64| servers.iter().map(pick).sum::<u64>();
        (of(|server| server.trips), of(|server| server.keys))
    };
    assert_eq!(backend.stats().servers.len(), scene.can().servers);
    let before = sums();
    let options = GetOptions::look().trips(trips);
    backend.get_many(&keys, &options).await;
    backend.get_many(&keys, &options).await;
    let after = sums();
    assert_eq!(after.0 - before.0, taken(&count), "trips");
    assert_eq!(after.1 - before.1, 200, "keys");
    for server in backend.stats().servers {
        assert!(!server.server.is_empty());
        assert_eq!(server.state, "up", "the state of {}", server.server);
        assert_eq!(server.protocol_violations, 0);
    }
}

/// The first poll hands the fills to the connection: a later look-up of the same handle comes behind them.
pub(super) async fn first_poll_hands_the_fills_over(scene: &Scene) {
    let backend = scene.backend().await;
    for round in 0..100 {
        let key = scene.key(round);
        let lease = win(&*backend, &key).await;
        let mut fill = pin!(backend.fill(&key, Fill::new(lease, "handed over")));
        let answered = poll_once(fill.as_mut()).await;
        expect_hit(&*backend, &key, b"handed over").await;
        let outcome = match answered {
            Some(outcome) => outcome,
            None => fill.await,
        };
        assert_eq!(outcome.ok(), Some(FillOutcome::Stored));
    }
}

/// After `close` every call fails, once per key; another handle isn't concerned.
pub(super) async fn closed_handle_refuses_calls(scene: &Scene) {
    let (closed, other) = (scene.backend().await, scene.backend().await);
    let keys = scene.keys(["a", "b", "c"]);
    set_own_texts(&*closed, &keys).await;
    let free = scene.key("free");
    let lease = win(&*closed, &free).await;
    closed.close(Duration::from_secs(1)).await;
    let write = WriteOptions::default();

    let answers = closed.get_many(&keys, &GetOptions::lease(LONG)).await;
    assert_eq!(answers.len(), 3, "one answer per key");
    for answer in answers {
        expect_kind(answer, ErrorKind::Unavailable);
    }
    let answers = closed.delete_many(&keys, &write).await;
    assert_eq!(answers.len(), 3, "one answer per key");
    for answer in answers {
        expect_kind(answer, ErrorKind::Unavailable);
    }
    let sets = (0..3).map(|_| Set::new("late")).collect();
    for answer in closed.set_immutable_many(&keys, sets, &write).await {
        expect_kind(answer, ErrorKind::Unavailable);
    }
    let again = Lease::new(lease.token, lease.won_at);
    let filled = closed.fill(&free, Fill::new(again, "late")).await;
    assert!(
        !matches!(filled, Ok(FillOutcome::Stored)),
        "a closed handle filled: {filled:?}"
    );
    let released = closed.release(&free, lease).await;
    assert!(
        released.is_ok() || released.is_err_and(|error| error.kind() == ErrorKind::Unavailable)
    );
    for check in closed.check().await {
        expect_kind(check.answer, ErrorKind::Unavailable);
    }
    // A second close has nothing to do.
    closed.close(Duration::from_secs(1)).await;

    let answers = other.get_many(&keys, &GetOptions::look()).await;
    for (key, answer) in keys.iter().zip(&answers) {
        expect_own_text(answer, key.as_str());
    }
    scene.expect_no_value(&*other, &free).await;
}

/// `close` waits for what is under way.
pub(super) async fn close_waits_for_what_is_under_way(scene: &Scene) {
    let (closed, other) = (scene.backend().await, scene.backend().await);
    let keys = scene.keys(0..1_000);
    // Its connection is open: what isn't begun may be refused.
    set_own_texts(
        &*closed,
        &scene.keys((0..1_000).map(|number| format!("earlier:{number}"))),
    )
    .await;
    let sets = own_texts(&keys).map(Set::new).collect();
    let options = WriteOptions::default();
    // Polled in this order, so that the stores are under way when the handle is closed.
    let (answers, ()) = tokio::join!(
        biased;
        closed.set_immutable_many(&keys, sets, &options),
        closed.close(Duration::from_secs(10)),
    );
    for (key, answer) in keys.iter().zip(&answers) {
        assert!(answer.is_ok(), "storing {key:?}: {answer:?}");
    }
    let answers = other.get_many(&keys, &GetOptions::look()).await;
    for (key, answer) in keys.iter().zip(&answers) {
        expect_own_text(answer, key.as_str());
    }
}

/// `check` asks every server, and says its version.
pub(super) async fn check_answers_for_every_server(scene: &Scene) {
    let backend = scene.backend().await;
    let checks = backend.check().await;
    assert_eq!(checks.len(), scene.can().servers);
    let names: HashSet<_> = checks.iter().map(|check| &check.server).collect();
    assert_eq!(names.len(), checks.len(), "servers have names of their own");
    for check in &checks {
        match &check.answer {
            Ok(answer) => assert!(!answer.version.is_empty(), "{check:?}"),
            Err(error) => panic!("{} should be up: {error:?}", check.server),
        }
    }
    let names_in_statistics = backend.stats().servers.into_iter().map(|s| s.server);
    assert!(
        names_in_statistics.eq(checks.iter().map(|check| check.server.clone())),
        "checks and statistics name the same servers"
    );
}

/// `Display` is one line that says what this is; neither it nor anything else shows a password.
pub(super) async fn display_shows_the_store_without_credentials(scene: &Scene) {
    let backend = scene.backend().await;
    let shown = backend.to_string();
    assert!(!shown.trim().is_empty(), "an empty name says nothing");
    assert!(
        !shown.chars().any(char::is_control),
        "a name is one line: {shown:?}"
    );
    look(&*backend, &scene.key("connects")).await;
    let checks = backend.check().await;
    backend.close(Duration::from_secs(1)).await;
    let refused = backend.get(&scene.key("a"), &GetOptions::look()).await;
    let everything = format!(
        "{shown} {backend:?} {:?} {:?} {checks:?} {refused:?}",
        backend.pool(),
        backend.stats(),
    );
    for secret in scene.subject.secrets() {
        assert!(
            !everything.contains(&secret),
            "a password is shown in {everything}"
        );
    }
}

/// Two handles that share their entries say so by one description.
pub(super) async fn handles_of_one_store_describe_one_pool(scene: &Scene) {
    let (one, other) = (scene.backend().await, scene.backend().await);
    assert!(!one.pool().description.is_empty());
    assert_eq!(one.pool(), other.pool());
}
