//! What was asked within one capture, in order, and what of it is still under way.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Something that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Asked {
    /// A read through a cache.
    Read {
        /// The data set.
        accessor: &'static str,
        /// Whether it was for one key, and not a bulk read.
        is_single: bool,
        /// What reads many of them at once.
        bulk: &'static str,
        /// Distinct keys.
        keys: u64,
        /// Of these, those that an in-process tier had.
        tier_hits: u64,
        /// Those whose value the store had.
        hits: u64,
        /// Those whose absence the store had.
        absent: u64,
        /// Those that were loaded.
        misses: u64,
        /// Those that were taken from somebody else's load.
        shared: u64,
    },
    /// A call of a loader.
    Load {
        /// The data set.
        accessor: &'static str,
        /// Its keys.
        keys: usize,
        /// Those with a row; `None` if it failed.
        found: Option<usize>,
    },
    /// What the store took of a load, once it is over.
    Filled {
        /// The data set.
        accessor: &'static str,
        /// How many values and absences.
        entries: usize,
    },
    /// A call of a store.
    Call {
        /// The store, without credentials.
        backend: Arc<str>,
        /// Which call.
        op: super::Op,
        /// The data sets of its keys, each once, in order.
        accessors: Vec<String>,
        /// Its keys.
        keys: usize,
        /// Exchanges that it took; one that wasn't answered in time may have taken some.
        trips: u64,
        /// Look-ups that found something, and writes that were done.
        done: usize,
        /// Keys that it failed for.
        failed: usize,
    },
    /// A statement of the database.
    Query {
        /// Its text, in one line.
        text: String,
        /// Rows that it answered, or changed.
        rows: u64,
        /// Whether it isn't the service's, but larder's own or one that sets a connection up, and so isn't counted.
        is_aside: bool,
    },
    /// Keys that were flushed, since their data changed.
    Flushed {
        /// They, without prefix.
        keys: Vec<String>,
        /// Whether all of them are gone everywhere.
        is_confirmed: bool,
    },
}

/// What was asked within one capture.
#[derive(Debug, Default)]
pub(crate) struct Record {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    asked: Vec<Asked>,
    /// Loads and calls under way.
    open: usize,
}

impl Record {
    pub(crate) fn add(&self, asked: Asked) {
        self.lock().asked.push(asked);
    }

    /// Something began whose end is waited for.
    pub(crate) fn begin(&self) {
        self.lock().open += 1;
    }

    /// It is over.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        // What began before the capture may end within it.
        state.open = state.open.saturating_sub(1);
        if state.open == 0 {
            self.settled.notify_waiters();
        }
    }

    /// Waits until nothing is under way.
    pub(crate) async fn settled(&self) {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.lock().open == 0 {
                return;
            }
            settled.await;
        }
    }

    /// All of it; what comes later isn't counted.
    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.lock().asked)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
