//! What the writes of one cache share: their plans, the outbox, and the flushes that wait.

use std::collections::{HashMap, HashSet};
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::committed::{Deliver, Flush, Pending};
use super::deliver::{Delivered, deliver};
use super::keeper::Outage;
use super::plan::Plans;
use super::stale::Stale;
use super::undelivered::{Hold, Undelivered};
use super::{Outbox, RowId};
use crate::Instant;
use crate::contract::{Error, ErrorKind, Keys, Prefix};
use crate::generation::Generations;
use crate::read::{Scope, Shared, Source};
use crate::stats::{Tally, WriteCounters, WriteStats};

/// What the writes of one cache share.
pub(crate) struct Writes<S: Source> {
    pub(crate) plans: Plans<S>,
    pub(crate) outbox: Option<Arc<dyn Outbox<S::Conn>>>,
    pub(crate) undelivered: Arc<Undelivered>,
    pub(crate) counters: WriteCounters,
    /// Whether a guard that says nothing, or is dropped, is an error.
    pub(crate) strict: bool,
    /// How long a commit waits for the database.
    pub(super) commit_timeout: Duration,
    pub(super) outage: Outage,
    /// Told when a flush begins to wait.
    pub(super) added: Arc<Notify>,
    /// Where the transactions that are open were begun, if that matters.
    open: Mutex<Vec<&'static Location<'static>>>,
    waiting: Mutex<Vec<Waiting>>,
    /// Whether nobody ends the waiting any more.
    given_up: AtomicBool,
    forgotten: Mutex<Option<Forgotten>>,
    /// Rows of the outbox that were delivered, to be deleted together.
    done: Mutex<Vec<RowId>>,
}

/// So many flushes are waited for one by one.
const MANY: usize = 100_000;

/// Data sets of which so much was to be flushed that it isn't remembered.
struct Forgotten {
    until: Instant,
    holds: HashMap<String, Hold>,
}

/// A flush of this process that isn't confirmed.
pub(super) struct Waiting {
    /// What is to be retried from memory; with an outbox the relay does.
    pub(super) stale: Stale,
    pub(super) rows: Vec<RowId>,
    pub(super) deliver: Deliver,
    pub(super) attempts: u32,
    pub(super) next: Instant,
    #[expect(dead_code, reason = "it is held")]
    pub(super) hold: Hold,
}

impl<S: Source> Writes<S> {
    pub(crate) fn new(
        plans: Plans<S>,
        outbox: Option<Arc<dyn Outbox<S::Conn>>>,
        strict: bool,
        commit_timeout: Duration,
    ) -> Self {
        Self {
            plans,
            outbox,
            undelivered: Arc::default(),
            counters: WriteCounters::default(),
            strict,
            commit_timeout,
            outage: Outage::default(),
            added: Arc::default(),
            open: Mutex::default(),
            waiting: Mutex::default(),
            given_up: AtomicBool::new(false),
            forgotten: Mutex::default(),
            done: Mutex::default(),
        }
    }

    /// Does the same without rows in the outbox, and tells which keys weren't confirmed.
    pub(crate) async fn flush_and_tell(
        shared: &Arc<Shared<S>>,
        stale: Stale,
        tally: Option<&Arc<Tally>>,
    ) -> (Flush, Vec<String>) {
        let trips = shared.writes.counters.trips(tally);
        let delivered = deliver(shared, stale, &trips).await;
        let rest = delivered.rest.keys().map(str::to_owned).collect();
        (
            shared.writes.settle(delivered, Vec::new(), shared.rt.now()),
            rest,
        )
    }

    /// Deletes what is stale, and remembers what wasn't confirmed: it isn't read by this process until it is.
    pub(crate) async fn flush(
        shared: &Arc<Shared<S>>,
        stale: Stale,
        rows: Vec<RowId>,
        tally: Option<&Arc<Tally>>,
    ) -> Flush {
        if stale.is_empty() {
            shared.writes.lock_done().extend(rows);
            return Flush::Fresh;
        }
        let trips = shared.writes.counters.trips(tally);
        let delivered = deliver(shared, stale, &trips).await;
        shared.writes.settle(delivered, rows, shared.rt.now())
    }

    fn settle(&self, delivered: Delivered, rows: Vec<RowId>, now: Instant) -> Flush {
        let Some(cause) = delivered.cause else {
            self.counters.fresh.add(1);
            self.lock_done().extend(rows);
            return Flush::Fresh;
        };
        self.counters.pending.add(1);
        tracing::warn!(
            keys = delivered.rest.len(),
            %cause,
            "a flush isn't confirmed; it goes on, and this process reads these keys from the source meanwhile"
        );
        Flush::Pending(self.wait_for(delivered.rest, rows, cause, now))
    }

    fn wait_for(&self, mut stale: Stale, rows: Vec<RowId>, cause: Error, now: Instant) -> Pending {
        let (deliver, pending) = Pending::new(cause);
        let is_full = self.waiting() >= MANY;
        let room = match (is_full, rows.is_empty()) {
            (true, _) => 0,
            (false, true) => self.undelivered.room(),
            // The outbox remembers them; of what is too much, this process holds whole data sets until it is delivered.
            (false, false) => usize::MAX,
        };
        if is_full || stale.len() > room {
            // Of what there is no room for, the data sets are read from the source until it has expired.
            let queries = stale.levels().iter().flat_map(|level| &level.queries);
            let of_queries = queries.map(|query| &*query.accessor).filter(|_| is_full);
            self.forget(stale.accessors_beyond(room).chain(of_queries), now);
            deliver.give_up();
        }
        if is_full {
            return pending;
        }
        stale.truncate(room);
        let hold = self.undelivered.hold(&stale);
        if !rows.is_empty() {
            stale = Stale::default();
        }
        self.wait(Waiting {
            stale,
            rows,
            deliver,
            attempts: 0,
            next: now + pause(0),
            hold,
        });
        self.added.notify_one();
        pending
    }

    /// Holds these data sets until nothing is served any more that was filled by now.
    fn forget<'a>(&self, accessors: impl Iterator<Item = &'a str>, now: Instant) {
        let mut forgotten = self.lock_forgotten();
        let Forgotten { until, holds } = forgotten.get_or_insert_with(|| Forgotten {
            until: now,
            holds: HashMap::new(),
        });
        *until = now + self.plans.longest_life();
        for accessor in accessors {
            if !holds.contains_key(accessor) {
                let hold = self.undelivered.hold_accessor(accessor);
                holds.insert(accessor.to_owned(), hold);
            }
        }
        self.added.notify_one();
    }

    /// Whether every flush that waits is remembered key by key; what was forgotten long enough ago is read again.
    pub(super) fn remembers_all(&self, now: Instant) -> bool {
        let mut forgotten = self.lock_forgotten();
        if forgotten.as_ref().is_some_and(|known| known.until <= now) {
            *forgotten = None;
        }
        forgotten.is_none()
    }

    /// Ends all waiting, now and from now on: the cache is closed.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
        for waiting in self.take_waiting(|_| true) {
            waiting.deliver.give_up();
        }
    }

    fn lock_forgotten(&self) -> MutexGuard<'_, Option<Forgotten>> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many flushes of this process wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock_waiting().len()
    }

    pub(super) fn take_waiting(&self, which: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        self.lock_waiting()
            .extract_if(.., |waiting| which(waiting))
            .collect()
    }

    /// Takes those whose rows are all gone from the outbox, or are now.
    pub(super) fn take_delivered(&self, gone: &HashSet<RowId>) -> Vec<Waiting> {
        let is_delivered = |waiting: &mut Waiting| {
            let had_rows = !waiting.rows.is_empty();
            waiting.rows.retain(|id| !gone.contains(id));
            had_rows && waiting.rows.is_empty()
        };
        self.lock_waiting().extract_if(.., is_delivered).collect()
    }

    /// Has a flush wait; where the cache is closed, nobody waits for it.
    pub(super) fn wait(&self, waiting: Waiting) {
        let mut all = self.lock_waiting();
        if self.given_up.load(Ordering::Relaxed) {
            waiting.deliver.give_up();
        }
        all.push(waiting);
    }

    /// The rows of the outbox that flushes of this process wait for.
    pub(super) fn awaited_rows(&self) -> Vec<RowId> {
        let waiting = self.lock_waiting();
        waiting
            .iter()
            .flat_map(|waiting| &waiting.rows)
            .copied()
            .collect()
    }

    pub(super) fn take_done(&self) -> Vec<RowId> {
        std::mem::take(&mut self.lock_done())
    }

    pub(super) fn not_done(&self, ids: Vec<RowId>) {
        self.lock_done().extend(ids);
    }

    /// Remembers that a server was away, if there is an outbox that knows what was to be flushed there meanwhile.
    pub(crate) fn was_away(&self, error: &Error, server: usize) {
        if self.outbox.is_some()
            && error.kind() == ErrorKind::Unavailable
            && self.undelivered.hold_server(server)
        {
            self.counters.servers_held.add(1);
        }
    }

    pub(super) fn opened(&self, place: &'static Location<'static>) {
        if self.strict {
            self.lock_open().push(place);
        }
    }

    pub(super) fn closed(&self, place: &'static Location<'static>) {
        if self.strict {
            let mut open = self.lock_open();
            if let Some(position) = open.iter().position(|known| *known == place) {
                open.swap_remove(position);
            }
        }
    }

    /// Where a transaction was begun that is open now, if mistakes of writers are errors.
    pub(crate) fn open_transaction(&self) -> Option<&'static Location<'static>> {
        match self.strict {
            true => self.lock_open().first().copied(),
            false => None,
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, Vec<&'static Location<'static>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> WriteStats {
        self.counters.snapshot(self.waiting(), &self.undelivered)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_done(&self) -> MutexGuard<'_, Vec<RowId>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What retries ends with the cache.
impl<S: Source> Drop for Writes<S> {
    fn drop(&mut self) {
        self.added.notify_one();
    }
}

/// How long after so many attempts the next one is made: 50 ms, doubling up to 5 s.
pub(super) fn pause(attempts: u32) -> Duration {
    let pause = Duration::from_millis(50) * 2_u32.pow(attempts.min(7));
    pause
        .min(Duration::from_secs(5))
        .mul_f64(0.75 + fastrand::f64() / 4.0)
}

/// What the request that writes keeps of the written keys.
///
/// It is dropped when the change is said, since the request has written, and again after the flush: in between, the
/// request may have read and kept what the store still had. A flush that outlives its request doesn't keep it; one that
/// is cut off has confirmed nothing.
#[derive(Debug)]
pub(crate) struct Own {
    scope: Weak<dyn Scope>,
    accessor: &'static str,
    /// Without their prefix.
    keys: Keys,
    /// Under which they were dropped; until the flush is over the accessor may get another one.
    prefix: Prefix,
    /// Not known by its keys, so that the whole scope ends with the flush.
    all: bool,
}

impl Own {
    /// Drops these keys of an accessor from what the request keeps.
    pub(crate) fn drop_from(
        scope: &Arc<dyn Scope>,
        generations: &Generations,
        accessor: &'static str,
        keys: Keys,
    ) -> Self {
        let prefix = generations.prefix_of(accessor);
        scope.forget(&keys.under(prefix));
        Self {
            scope: Arc::downgrade(scope),
            accessor,
            keys,
            prefix,
            all: false,
        }
    }

    /// Ends what the request keeps once the flush is over: what a query will find of it, nobody knows yet.
    pub(crate) fn end(
        scope: &Arc<dyn Scope>,
        generations: &Generations,
        accessor: &'static str,
    ) -> Self {
        Self {
            scope: Arc::downgrade(scope),
            accessor,
            keys: Keys::new(),
            prefix: generations.prefix_of(accessor),
            all: true,
        }
    }

    /// Drops them again; those whose flush isn't confirmed the request reads from the source from now on.
    pub(crate) fn settle<S: Source>(own: Vec<Self>, shared: &Shared<S>) {
        for mut own in own {
            let keys = std::mem::take(&mut own.keys);
            let Some(scope) = own.scope.upgrade() else {
                continue;
            };
            if std::mem::take(&mut own.all) {
                scope.end();
                continue;
            }
            let undelivered = &shared.writes.undelivered;
            let (old, dropped): (Vec<usize>, Vec<usize>) =
                (0..keys.len()).partition(|&index| undelivered.holds(keys.get(index).as_str()));
            let (old, dropped) = (keys.select(old), keys.select(dropped));
            let now = shared.generations.prefix_of(own.accessor);
            let other = Some(now).filter(|now| *now != own.prefix);
            for prefix in [Some(own.prefix), other].into_iter().flatten() {
                scope.forget(&dropped.under(prefix));
                scope.distrust(&old.under(prefix));
            }
        }
    }

    /// Nothing was written after all.
    pub(crate) fn leave(mut self) {
        self.keys = Keys::new();
        self.all = false;
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(scope) = self.scope.upgrade() else {
            return;
        };
        if self.all {
            scope.end();
        } else if !self.keys.is_empty() {
            scope.distrust(&self.keys.under(self.prefix));
        }
    }
}
