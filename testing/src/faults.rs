//! A store in which things go wrong when a test wants it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Key, Keys,
    Lease, Lookup, Pool, Result, Rt, ServerCheck, Set, WriteOptions,
};

/// A call of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A look-up.
    Get,
    /// A store under leases.
    Fill,
    /// Giving leases back.
    Release,
    /// A delete, such as a flush makes.
    Delete,
    /// A store without leases, of data that never changes.
    Set,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "get",
            Self::Fill => "fill",
            Self::Release => "release",
            Self::Delete => "delete",
            Self::Set => "set",
        })
    }
}

/// What goes wrong with a call, for all of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It isn't executed, and fails at once.
    Fail(ErrorKind),
    /// It is executed later; of several faults of one call this is the first.
    Delay(Duration),
    /// It is lost on its way: it isn't executed, and its caller is told that there was no answer.
    Unsent,
    /// Its answer is lost: it is executed, and its caller is told that there was none.
    Unanswered,
    /// Of a look-up, the leases it wins are lost on their way, so that others wait for nobody; of a fill, its leases are
    /// voided before, as by a flush.
    LoseLease,
    /// A byte of each entry is another one: of what a look-up finds, or of what is stored.
    Damage,
}

/// The faults of one store: what is to go wrong, and what did.
///
/// It is a handle: every clone is the same. Calls are counted by kind, from when it was made.
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_core::ErrorKind;
/// use larder_testing::{Fault, Op, TestCache};
///
/// let cache = TestCache::new(Db::of(["Ada"])).await;
/// cache.faults().next(Op::Get, Fault::Fail(ErrorKind::Unavailable));
///
/// // A store in trouble costs a load, never an error.
/// assert!(larder_core::get::<UserById>(&cache, &0).await.unwrap().is_some());
/// assert_eq!(cache.faults().happened().len(), 1);
///
/// // A flush that isn't confirmed is one.
/// cache.faults().all(Op::Delete, Fault::Unanswered);
/// assert!(cache.flush::<UserById>([0]).await.is_err());
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Calls so far.
    calls: HashMap<Op, u64>,
    /// What goes wrong with which call; `None` for every one.
    planned: Vec<(Op, Option<u64>, Fault)>,
    happened: Vec<(Op, Fault)>,
}

impl Faults {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has this happen to the next call of this kind.
    ///
    /// # Panics
    ///
    /// If it can't happen to such a call: only look-ups and fills have leases to lose, and releases and deletes no entries
    /// to damage.
    #[track_caller]
    pub fn next(&self, op: Op, fault: Fault) {
        self.nth(op, 1, fault);
    }

    /// Has this happen to the nth call of this kind from now on; 1 is the next one.
    ///
    /// # Panics
    ///
    /// As [`Faults::next`], and for 0.
    #[track_caller]
    pub fn nth(&self, op: Op, nth: u64, fault: Fault) {
        assert!(nth > 0, "calls are counted from 1, which is the next one");
        let mut state = self.lock();
        let call = state.calls.get(&op).copied().unwrap_or(0) + nth;
        state.plan(op, Some(call), fault);
    }

    /// Has this happen to every call of this kind, until [`Faults::clear`].
    ///
    /// # Panics
    ///
    /// As [`Faults::next`].
    #[track_caller]
    pub fn all(&self, op: Op, fault: Fault) {
        self.lock().plan(op, None, fault);
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        self.lock().planned.clear();
    }

    /// How many calls of this kind there were.
    pub fn calls(&self, op: Op) -> u64 {
        self.lock().calls.get(&op).copied().unwrap_or(0)
    }

    /// What went wrong so far, in order.
    pub fn happened(&self) -> Vec<(Op, Fault)> {
        self.lock().happened.clone()
    }

    /// What puts these faults around a store, for [`CacheBuilder::wrap`](larder_core::CacheBuilder::wrap).
    pub fn around(&self) -> impl FnOnce(Arc<dyn Backend>, Rt) -> Faulty + Send + use<> {
        let faults = self.clone();
        move |inner, rt| Faulty { inner, rt, faults }
    }

    /// What happens to this call, which it counts: how long it is put off, and then what.
    fn of(&self, op: Op, keys: &Keys) -> (Option<Duration>, Option<Fault>) {
        if keys.is_empty() {
            return (None, None);
        }
        let mut state = self.lock();
        let state = &mut *state;
        let call = state.calls.entry(op).or_default();
        *call += 1;
        let (mut delay, mut then) = (None, None);
        state.planned.retain(|(of, nth, fault)| {
            let is_its = *of == op && nth.is_none_or(|nth| nth == *call);
            if is_its {
                match fault {
                    Fault::Delay(by) => delay = Some(*by),
                    fault => then = Some(*fault),
                }
                state.happened.push((op, *fault));
            }
            !is_its || nth.is_none()
        });
        (delay, then)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    #[track_caller]
    fn plan(&mut self, op: Op, call: Option<u64>, fault: Fault) {
        let can_happen = match fault {
            Fault::LoseLease => matches!(op, Op::Get | Op::Fill),
            Fault::Damage => matches!(op, Op::Get | Op::Fill | Op::Set),
            Fault::Fail(_) | Fault::Delay(_) | Fault::Unsent | Fault::Unanswered => true,
        };
        assert!(can_happen, "{fault:?} can't happen to a {op}");
        self.planned.push((op, call, fault));
    }
}

/// A backend around a backend, in which things go wrong as its [`Faults`] say; until they do, it changes nothing.
///
/// ```
/// # use std::sync::Arc;
/// # use larder_core::{Backend, Cache, Source};
/// # async fn build<S: Source>(pool: S, memcached: Arc<dyn Backend>) -> larder_core::Result<()> {
/// use larder_testing::Faults;
///
/// let faults = Faults::new();
/// let cache = Cache::builder(pool).backend(memcached).wrap(faults.around()).build().await?;
/// # Ok(()) }
/// ```
pub struct Faulty {
    inner: Arc<dyn Backend>,
    rt: Rt,
    faults: Faults,
}

impl Faulty {
    /// Puts off a call that is to be late, and tells what else happens to it.
    async fn begin(&self, op: Op, keys: &Keys) -> Option<Fault> {
        let (delay, fault) = self.faults.of(op, keys);
        if let Some(delay) = delay {
            self.rt.sleep(delay).await;
        }
        fault
    }
}

/// Why a call that isn't executed failed; `None` if it is.
fn refusal(fault: Option<Fault>) -> Option<Error> {
    match fault? {
        Fault::Fail(kind) => Some(Error::new(kind, "a fault that the test injected")),
        Fault::Unsent => Some(no_answer()),
        _ => None,
    }
}

fn no_answer() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "no answer, by a fault that the test injected",
    )
}

fn fail_all<T>(keys: &Keys, error: &Error) -> Vec<Result<T>> {
    keys.iter().map(|_| Err(error.clone())).collect()
}

/// The answers, or that there were none.
fn answered<T>(fault: Option<Fault>, answers: Vec<Result<T>>) -> Vec<Result<T>> {
    match fault {
        Some(Fault::Unanswered) => answers.into_iter().map(|_| Err(no_answer())).collect(),
        _ => answers,
    }
}

/// An entry with another last byte.
fn damaged(entry: &Bytes) -> Bytes {
    let mut bytes = entry.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 0x40;
    }
    bytes.into()
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Faulty").field(&self.inner).finish()
    }
}

// A method that the trait gains with a default would otherwise not be passed on.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Faulty {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        let fault = self.begin(Op::Get, keys).await;
        if let Some(error) = refusal(fault) {
            (0..keys.len()).for_each(|position| found(position, Err(error.clone())));
            return;
        }
        let found = &mut |position: usize, answer: Result<Lookup>| {
            let answer = match (fault, answer) {
                (Some(Fault::Unanswered), _) => Err(no_answer()),
                (Some(Fault::LoseLease), Ok(Lookup::Miss { .. })) => {
                    Ok(Lookup::Miss { lease: None })
                }
                (Some(Fault::Damage), Ok(Lookup::Hit { value, token })) => Ok(Lookup::Hit {
                    value: damaged(&value),
                    token,
                }),
                (_, answer) => answer,
            };
            found(position, answer);
        };
        self.inner.get_each(keys, options, found).await;
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        mut fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let fault = self.begin(Op::Fill, keys).await;
        if let Some(error) = refusal(fault) {
            return fail_all(keys, &error);
        }
        match fault {
            Some(Fault::LoseLease) => {
                drop(self.inner.delete_many(keys, &WriteOptions::default()).await)
            }
            Some(Fault::Damage) => {
                for fill in &mut fills {
                    fill.value = damaged(&fill.value);
                }
            }
            _ => {}
        }
        answered(fault, self.inner.fill_many(keys, fills, options).await)
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let fault = self.begin(Op::Release, keys).await;
        match refusal(fault) {
            Some(error) => fail_all(keys, &error),
            None => answered(fault, self.inner.release_many(keys, leases, options).await),
        }
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let fault = self.begin(Op::Delete, keys).await;
        match refusal(fault) {
            Some(error) => fail_all(keys, &error),
            None => answered(fault, self.inner.delete_many(keys, options).await),
        }
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        mut sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let fault = self.begin(Op::Set, keys).await;
        if let Some(error) = refusal(fault) {
            return fail_all(keys, &error);
        }
        if fault == Some(Fault::Damage) {
            for set in &mut sets {
                set.value = damaged(&set.value);
            }
        }
        answered(
            fault,
            self.inner.set_immutable_many(keys, sets, options).await,
        )
    }

    async fn start(&self) -> Result<()> {
        self.inner.start().await
    }

    async fn check(&self) -> Vec<ServerCheck> {
        self.inner.check().await
    }

    async fn close(&self, deadline: Duration) {
        self.inner.close(deadline).await;
    }

    fn server_of(&self, key: Key<'_>) -> usize {
        self.inner.server_of(key)
    }

    fn pool(&self) -> Pool {
        self.inner.pool()
    }

    fn stats(&self) -> BackendStats {
        self.inner.stats()
    }
}
