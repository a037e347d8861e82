//! What a case stands on: its subject, keys that nobody else has, a seed, and the short forms it is told in.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;

use super::{Abilities, Peeked, Subject};
use crate::{
    Backend, BackendExt as _, Error, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup,
    Lost, Result, Rt, Set, Token, Trips, WriteOptions,
};

/// A lease that outlives every case.
pub(super) const LONG: Duration = Duration::from_secs(60);

/// One run of one case.
pub(super) struct Scene {
    pub(super) subject: Arc<dyn Subject>,
    pub(super) rt: Rt,
    case: &'static str,
    prefix: String,
    seed: u64,
}

impl Scene {
    pub(super) fn new(case: &'static str, subject: Arc<dyn Subject>) -> Self {
        let seed = std::env::var("LARDER_TEST_SEED");
        let seed = seed.ok().and_then(|seed| seed.parse().ok());
        Self {
            subject,
            rt: Rt::new(),
            case,
            // Never from the seed: cases of other runs may share the server.
            prefix: format!("conformance-{:016x}", fastrand::u64(..)),
            seed: seed.unwrap_or_else(|| fastrand::u64(..)),
        }
    }

    pub(super) fn can(&self) -> Abilities {
        self.subject.can()
    }

    pub(super) async fn backend(&self) -> Arc<dyn Backend> {
        self.subject.backend().await
    }

    /// This case's generator; every call begins the same sequence again.
    pub(super) fn random(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    /// A key that no other case has.
    pub(super) fn key(&self, name: impl std::fmt::Display) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// The keys of these names.
    pub(super) fn keys<N: std::fmt::Display>(&self, names: impl IntoIterator<Item = N>) -> Keys {
        keys_of(names.into_iter().map(|name| self.key(name)))
    }

    /// Asserts that a key is neither a value nor a placeholder, by a look and by the store's own word.
    pub(super) async fn expect_free(&self, backend: &dyn Backend, key: &str) {
        let found = look(backend, key).await;
        assert!(
            matches!(found, Lookup::Miss { lease: None }),
            "{key} should be absent, and a look says {found:?}"
        );
        if self.can().peeks {
            let peeked = self.subject.peek(key).await;
            assert_eq!(peeked, None, "{key} should be absent, and is in the store");
        }
    }

    /// Asserts that a key has this value, by a look and by the store's own word.
    pub(super) async fn expect_value(&self, backend: &dyn Backend, key: &str, value: &[u8]) {
        expect_hit(backend, key, value).await;
        if self.can().peeks {
            let peeked = self.subject.peek(key).await.map(|peeked| peeked.value);
            assert_eq!(
                peeked.as_deref().map(Shown),
                Some(Shown(value)),
                "{key} has another value in the store"
            );
        }
    }

    /// Asserts that a key has no value, by a look and by the store's own word.
    pub(super) async fn expect_no_value(&self, backend: &dyn Backend, key: &str) {
        let found = look(backend, key).await;
        assert!(
            !matches!(found, Lookup::Hit { .. }),
            "{key} should have no value, and a look says {found:?}"
        );
        if self.can().peeks {
            let peeked = self.subject.peek(key).await;
            assert!(
                peeked.as_ref().is_none_or(|peeked| peeked.value.is_empty()),
                "{key} should have no value, and the store has {peeked:?}"
            );
        }
    }

    pub(super) async fn peek(&self, key: &str) -> Option<Peeked> {
        self.subject.peek(key).await
    }

    /// Waits until this handle answers for all of these keys again.
    pub(super) async fn until_up(&self, backend: &dyn Backend, keys: &Keys) {
        for _ in 0..1_000 {
            let answers = backend.get_many(keys, &GetOptions::look()).await;
            let singles_answer = backend.get(keys.get(0).as_str(), &GetOptions::look()).await;
            if answers.iter().all(Result::is_ok) && singles_answer.is_ok() {
                return;
            }
            self.rt.sleep(Duration::from_millis(20)).await;
        }
        panic!("the handle didn't recover within 20 s of its server's return");
    }
}

/// Says how to repeat a case that failed.
impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "conformance case {} failed; LARDER_TEST_SEED={} repeats its random numbers",
                self.case, self.seed
            );
        }
    }
}

/// A counter, and the trips that count into it.
pub(super) fn counter() -> (Arc<AtomicU64>, Trips) {
    let counter = Arc::new(AtomicU64::new(0));
    let trips = Trips::from(Arc::clone(&counter));
    (counter, trips)
}

/// What was counted since the last time.
pub(super) fn taken(counter: &AtomicU64) -> u64 {
    counter.swap(0, Ordering::Relaxed)
}

pub(super) fn keys_of(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Keys {
    let mut keys = Keys::new();
    for text in texts {
        keys.push_raw(text.as_ref())
            .expect("the suite's keys are legal");
    }
    keys
}

pub(super) async fn look(backend: &dyn Backend, key: &str) -> Lookup {
    backend
        .get(key, &GetOptions::look())
        .await
        .unwrap_or_else(|error| panic!("looking {key} up failed: {error:?}"))
}

pub(super) async fn ask(backend: &dyn Backend, key: &str, lease: Duration) -> Lookup {
    backend
        .get(key, &GetOptions::lease(lease))
        .await
        .unwrap_or_else(|error| panic!("asking for {key} failed: {error:?}"))
}

/// Wins a long lease on a key that is free.
pub(super) async fn win(backend: &dyn Backend, key: &str) -> Lease {
    win_for(backend, key, LONG).await
}

pub(super) async fn win_for(backend: &dyn Backend, key: &str, lease: Duration) -> Lease {
    match ask(backend, key, lease).await {
        Lookup::Miss { lease: Some(lease) } => lease,
        other => panic!("{key} should be free to lease, and is {other:?}"),
    }
}

/// Asserts a hit of this value, and gives its token.
pub(super) async fn expect_hit(backend: &dyn Backend, key: &str, expected: &[u8]) -> Token {
    match look(backend, key).await {
        Lookup::Hit { value, token } => {
            assert_eq!(Shown(&value), Shown(expected), "{key} has another value");
            token
        }
        other => panic!("{key} should be a hit, and is {other:?}"),
    }
}

/// Asserts that somebody's lease stands, and gives its age and token.
pub(super) async fn expect_busy(backend: &dyn Backend, key: &str) -> (Duration, Token) {
    match ask(backend, key, LONG).await {
        Lookup::Busy { age, token } => (age, token),
        other => panic!("{key} should be leased, and is {other:?}"),
    }
}

pub(super) async fn fill(
    backend: &dyn Backend,
    key: &str,
    lease: Lease,
    value: &str,
) -> FillOutcome {
    backend
        .fill(key, Fill::new(lease, value.to_owned()))
        .await
        .unwrap_or_else(|error| panic!("filling {key} failed: {error:?}"))
}

pub(super) async fn expect_stored(backend: &dyn Backend, key: &str, lease: Lease, value: &str) {
    let outcome = fill(backend, key, lease, value).await;
    assert_eq!(outcome, FillOutcome::Stored, "the fill of {key}");
}

pub(super) async fn expect_lost(backend: &dyn Backend, key: &str, lease: Lease, expected: Lost) {
    let outcome = fill(backend, key, lease, "must not be stored").await;
    assert_eq!(outcome, FillOutcome::Lost(expected), "the fill of {key}");
}

pub(super) async fn set(backend: &dyn Backend, key: &str, set: Set) {
    let stored = backend.set_immutable(key, set).await;
    assert!(stored.is_ok(), "storing {key}: {stored:?}");
}

pub(super) async fn delete(backend: &dyn Backend, key: &str) {
    let deleted = backend.delete(key).await;
    assert!(deleted.is_ok(), "deleting {key}: {deleted:?}");
}

pub(super) async fn release(backend: &dyn Backend, key: &str, lease: Lease) {
    let released = backend.release(key, lease).await;
    assert!(released.is_ok(), "releasing {key}: {released:?}");
}

/// Stores for each key its own text.
pub(super) async fn set_own_texts(backend: &dyn Backend, keys: &Keys) {
    let sets = own_texts(keys).map(Set::new).collect();
    let answers = backend
        .set_immutable_many(keys, sets, &WriteOptions::default())
        .await;
    assert_eq!(answers.len(), keys.len(), "one answer per store");
    for (key, answer) in keys.iter().zip(answers) {
        assert!(answer.is_ok(), "storing {key:?}: {answer:?}");
    }
}

/// For each key its own text, as the value that shows which key it belongs to.
pub(super) fn own_texts(keys: &Keys) -> impl Iterator<Item = Bytes> {
    keys.iter()
        .map(|key| Bytes::copy_from_slice(key.as_bytes()))
}

/// The same lease again, as a caller has it that kept a token.
pub(super) fn again(lease: &Lease) -> Lease {
    Lease::new(lease.token, lease.won_at)
}

/// The right to replace the state that this token names.
pub(super) fn lease_from(scene: &Scene, token: Token) -> Lease {
    Lease::new(token, scene.rt.wall())
}

#[track_caller]
pub(super) fn expect_kind<T: std::fmt::Debug>(answer: Result<T>, expected: ErrorKind) {
    let kind = answer.map_err(|error| error.kind());
    assert_eq!(kind.as_ref().err(), Some(&expected), "{kind:?}");
}

/// Whether this is an error that a dead or hung server makes.
pub(super) fn is_trouble(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

/// Polls a future once; its output if it was ready.
pub(super) async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Polls a future at most this often and then drops it, as a caller that is cancelled does.
pub(super) async fn abandoned_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Bytes in a message about a failure: their length and how they begin.
#[derive(PartialEq, Eq)]
pub(super) struct Shown<'a>(pub(super) &'a [u8]);

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let start = &self.0[..self.0.len().min(64)];
        write!(f, "{} bytes: \"{}\"", self.0.len(), start.escape_ascii())
    }
}
