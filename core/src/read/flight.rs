//! Single flight: many callers wait for one load.
//!
//! What is shared is a load, never a look-up: a look-up that was answered before a write was acknowledged must not be
//! given to a reader that began after it. A reader may take the value of somebody else's load in three cases:
//!
//! 1. It joined before the load started: the source is asked after the reader began.
//! 2. Its own look-up was answered `Busy` by the very lease of the load: a write acknowledged before the reader began
//!    would have voided that lease.
//! 3. It joined before the load's fill was handed to the connection, and that fill was then stored: a write
//!    acknowledged before would have voided the lease, and the fill would have been lost. (That the fill was answered
//!    `Stored` isn't enough: the answer may be under way while a write is acknowledged.)
//!
//! Values of the deploy tier never change, so that any load of theirs may be joined until it is over.
//!
//! A load without a lease can be joined only in the first case. The next one for its key waits until it is done, so
//! that a key has at most one load running and one waiting when the store is away.
//!
//! A loader that reads through the cache shares nothing: the load it would wait for may wait for the place that its own
//! load holds, or for its own load's value.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Answer, Dataset, LoadError, Tier, TierKind};
use crate::contract::{Prefix, Token};

/// The loads of one data set that can be found by key.
pub(crate) struct Flights<D: Dataset> {
    slots: Mutex<HashMap<D::Key, Slot<D>, foldhash::fast::RandomState>>,
    /// How many slots there are, so that readers pass without the lock while there is none.
    count: AtomicUsize,
}

/// On which terms a load is joined by key.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// The reader's prefix. A fill under another one proves nothing to it: nobody may have flushed that any more.
    pub(crate) prefix: Prefix,
    /// Until its fill was answered, as only a test joins.
    pub(crate) late: bool,
}

struct Slot<D: Dataset> {
    load: Arc<Load<D>>,
    index: usize,
}

impl<D: Dataset> Default for Flights<D> {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            count: AtomicUsize::new(0),
        }
    }
}

impl<D: Dataset> Flights<D> {
    /// Joins the load of this key, in the first or the third case.
    pub(crate) fn join(&self, key: &D::Key, terms: Terms) -> Option<Ticket<D>> {
        self.find(key, |load, index| load.join(index, terms))
    }

    /// Joins the load of this key in the first case only: its value needs no fill to be right.
    pub(crate) fn join_waiting(&self, key: &D::Key) -> Option<Ticket<D>> {
        self.find(key, Load::join_waiting)
    }

    /// Joins the load of this key if it holds the lease that the caller's own look-up met: the second case.
    pub(crate) fn join_by_token(&self, key: &D::Key, token: Token) -> Option<Ticket<D>> {
        self.find(key, |load, index| load.join_by_token(index, token))
    }

    fn find(
        &self,
        key: &D::Key,
        join: impl FnOnce(&Arc<Load<D>>, usize) -> Option<Ticket<D>>,
    ) -> Option<Ticket<D>> {
        // A load that is registered right now is missed: the look-up that follows finds its lease.
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let slots = self.lock();
        let Slot { load, index } = slots.get(key)?;
        join(load, *index)
    }

    /// Makes a load known, and answers the loads it must wait for.
    pub(crate) fn register(&self, load: &Arc<Load<D>>) -> Vec<Arc<Load<D>>> {
        let mut before: Vec<Arc<Load<D>>> = Vec::new();
        let mut slots = self.lock();
        for (index, key) in load.keys.iter().enumerate() {
            let slot = Slot {
                load: Arc::clone(load),
                index,
            };
            let replaced = slots.insert(key.clone(), slot).map(|slot| slot.load);
            // With a lease of its own it needn't wait; but what the deploy tier keeps is built once, so that the next
            // load looks at what the one before it built.
            let waits = load.tokens[index].is_none() || D::Tier::KIND == TierKind::Deploy;
            if let Some(running) = replaced
                && waits
                && !before.iter().any(|known| Arc::ptr_eq(known, &running))
            {
                before.push(running);
            }
        }
        self.count.store(slots.len(), Ordering::Relaxed);
        before
    }

    /// Forgets a load that is over.
    pub(crate) fn remove(&self, load: &Arc<Load<D>>) {
        let mut slots = self.lock();
        for key in &load.keys {
            if slots
                .get(key)
                .is_some_and(|slot| Arc::ptr_eq(&slot.load, load))
            {
                slots.remove(key);
            }
        }
        self.count.store(slots.len(), Ordering::Relaxed);
    }

    /// Hides the loads of these keys from readers that come later, since a local write made them doubtful.
    pub(crate) fn detach<'k>(&self, keys: impl IntoIterator<Item = &'k D::Key>) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut slots = self.lock();
        for key in keys {
            slots.remove(key);
        }
        self.count.store(slots.len(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<D::Key, Slot<D>, foldhash::fast::RandomState>> {
        // Hashing and comparing keys is the user's code.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Waiting for a place below the caps.
    Queued,
    /// The source is being asked.
    Loading,
    /// The fill is being handed to the connection.
    Filling,
    /// The values, or the error, can be taken.
    Loaded,
    /// The fill was answered.
    Settled,
}

/// What a load answers per key, in the order of its keys; `None` where a key has no row.
pub(crate) type Outcome<D> = Result<Vec<Option<Answer<D>>>, LoadError<<D as Dataset>::Error>>;

/// One call of a loader, for one or many keys.
pub(crate) struct Load<D: Dataset> {
    /// Distinct.
    pub(crate) keys: Vec<D::Key>,
    /// The lease of each key, if it has one.
    tokens: Vec<Option<Token>>,
    /// Under which it fills.
    prefix: Prefix,
    state: Mutex<State<D>>,
    changed: Notify,
}

struct State<D: Dataset> {
    phase: Phase,
    /// Which keys somebody else waits for; empty while nobody does.
    joined: Vec<bool>,
    /// The values that haven't been taken, once they are there; an outer `None` was taken.
    values: Vec<Option<Option<Answer<D>>>>,
    error: Option<LoadError<D::Error>>,
    /// Which fills were stored; empty if none was.
    stored: Vec<bool>,
}

impl<D: Dataset> Load<D> {
    pub(crate) fn new(keys: Vec<D::Key>, tokens: Vec<Option<Token>>, prefix: Prefix) -> Arc<Self> {
        debug_assert_eq!(keys.len(), tokens.len());
        Arc::new(Self {
            keys,
            tokens,
            prefix,
            state: Mutex::new(State {
                phase: Phase::Queued,
                joined: Vec::new(),
                values: Vec::new(),
                error: None,
                stored: Vec::new(),
            }),
            changed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, index: usize, terms: Terms) -> Option<Ticket<D>> {
        let fills_there = self.tokens[index].is_some() && self.prefix == terms.prefix;
        let mut state = self.lock();
        let until = match state.phase {
            Phase::Queued => Phase::Loaded,
            // What can't change while this code runs is right whenever it was read.
            Phase::Loading | Phase::Filling if D::Tier::KIND == TierKind::Deploy => Phase::Loaded,
            Phase::Loading if fills_there => Phase::Settled,
            Phase::Filling | Phase::Loaded if fills_there && terms.late => Phase::Settled,
            _ => return None,
        };
        Some(self.ticket(&mut state, index, until))
    }

    fn join_waiting(self: &Arc<Self>, index: usize) -> Option<Ticket<D>> {
        let mut state = self.lock();
        let waiting = state.phase == Phase::Queued;
        waiting.then(|| self.ticket(&mut state, index, Phase::Loaded))
    }

    fn join_by_token(self: &Arc<Self>, index: usize, token: Token) -> Option<Ticket<D>> {
        if self.tokens[index] != Some(token) {
            return None;
        }
        let mut state = self.lock();
        let taken =
            state.phase >= Phase::Loaded && state.values.get(index).is_none_or(Option::is_none);
        if taken && state.error.is_none() {
            return None;
        }
        Some(self.ticket(&mut state, index, Phase::Loaded))
    }

    fn ticket(self: &Arc<Self>, state: &mut State<D>, index: usize, until: Phase) -> Ticket<D> {
        if state.joined.is_empty() {
            state.joined = vec![false; self.keys.len()];
        }
        state.joined[index] = true;
        Ticket {
            load: Arc::clone(self),
            index,
            until,
        }
    }

    /// How many of its keys have a lease.
    pub(crate) fn leased(&self) -> usize {
        self.tokens.iter().flatten().count()
    }

    /// Spreads what is known per lease over all keys; keys without a lease get the default.
    pub(crate) fn by_key<T: Copy + Default>(&self, by_lease: &[T]) -> Vec<T> {
        let mut by_lease = by_lease.iter();
        let spread = self.tokens.iter().map(|token| match token {
            Some(_) => by_lease.next().copied().unwrap_or_default(),
            None => T::default(),
        });
        spread.collect()
    }

    /// Goes on to this phase, without an answer yet.
    pub(crate) fn advance(&self, phase: Phase) {
        debug_assert!(phase < Phase::Loaded);
        self.lock().phase = phase;
    }

    /// The answer can be taken.
    pub(crate) fn publish(&self, rows: Outcome<D>) {
        let mut state = self.lock();
        match rows {
            Ok(values) => state.values = values.into_iter().map(Some).collect(),
            Err(error) => state.error = Some(error),
        }
        state.phase = Phase::Loaded;
        drop(state);
        self.changed.notify_waiters();
    }

    /// The fills were answered; `stored` may be empty if none was stored.
    pub(crate) fn settle(&self, stored: Vec<bool>) {
        let mut state = self.lock();
        state.stored = stored;
        state.phase = Phase::Settled;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until the load is at least this far.
    pub(crate) async fn reached(&self, phase: Phase) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.lock().phase >= phase {
                return;
            }
            changed.await;
        }
    }

    /// The answer for the call that started the load: it takes the values, and leaves copies for those who joined.
    pub(crate) async fn lead(&self) -> Outcome<D> {
        self.reached(Phase::Loaded).await;
        let mut state = self.lock();
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        let State { values, joined, .. } = &mut *state;
        let rows = values.iter_mut().enumerate().map(|(index, value)| {
            let awaited = joined.get(index).copied().unwrap_or(false);
            let left = value.as_ref().filter(|_| awaited).and_then(copy);
            let taken = std::mem::replace(value, left);
            taken.expect("only the leader takes values")
        });
        Ok(rows.collect())
    }
}

/// A place in somebody else's load.
pub(crate) struct Ticket<D: Dataset> {
    load: Arc<Load<D>>,
    index: usize,
    until: Phase,
}

impl<D: Dataset> Ticket<D> {
    /// The key's value; `None` if it can't be shared after all, so that the reader must look for itself.
    pub(crate) async fn value(self) -> Option<Result<Option<Answer<D>>, LoadError<D::Error>>> {
        self.load.reached(self.until).await;
        let state = self.load.lock();
        if let Some(error) = &state.error {
            return Some(Err(error.clone()));
        }
        let lost = !state.stored.get(self.index).copied().unwrap_or(false);
        if self.until == Phase::Settled && lost {
            return None;
        }
        state.values[self.index].as_ref().and_then(copy).map(Ok)
    }
}

/// A copy, or nothing if copying panics: cloning is the user's code, and who gets no copy looks for itself.
fn copy<V: Clone>(value: &V) -> Option<V> {
    catch_unwind(AssertUnwindSafe(|| value.clone())).ok()
}
