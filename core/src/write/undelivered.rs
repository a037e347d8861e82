//! Keys that this process doesn't read from the store, since a flush of theirs isn't confirmed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::fast::RandomState;

use super::stale::Stale;

/// So many keys are remembered one by one; then their whole accessors aren't read.
const MANY: usize = 100_000;

/// What isn't read from the store by this process.
#[derive(Debug, Default)]
pub(crate) struct Undelivered {
    /// How many keys and data sets are held, and how many servers, so that readers pass without the lock while there is none.
    flushes: AtomicUsize,
    servers: AtomicUsize,
    held: RwLock<Held>,
}

type Counted<K> = HashMap<K, usize, RandomState>;

#[derive(Debug, Default)]
struct Held {
    keys: Counted<Box<str>>,
    accessors: Counted<Box<str>>,
    /// Servers that were away, by their number, until it is known what was to be flushed there meanwhile.
    servers: Counted<usize>,
}

impl Undelivered {
    /// Whether no key is held, by itself or with its data set: what every read asks first.
    pub(crate) fn is_empty(&self) -> bool {
        self.flushes.load(Ordering::Acquire) == 0
    }

    /// Whether a server is held: what every hit asks first.
    pub(crate) fn holds_servers(&self) -> bool {
        self.servers.load(Ordering::Acquire) > 0
    }

    /// Whether this key, without its prefix, isn't read.
    pub(crate) fn holds(&self, logical: &str) -> bool {
        if self.is_empty() {
            return false;
        }
        let held = self.read();
        let accessor = logical
            .split_once(':')
            .map_or(logical, |(accessor, _)| accessor);
        held.keys.contains_key(logical) || held.accessors.contains_key(accessor)
    }

    /// Whether keys of this server aren't read.
    pub(crate) fn holds_server(&self, server: usize) -> bool {
        self.holds_servers() && self.read().servers.contains_key(&server)
    }

    /// How many more keys can be held one by one.
    pub(crate) fn room(&self) -> usize {
        MANY.saturating_sub(self.keys())
    }

    /// How many keys are held one by one.
    pub(crate) fn keys(&self) -> usize {
        self.read().keys.len()
    }

    /// Accessors that are held as a whole, in order.
    pub(crate) fn accessors(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .read()
            .accessors
            .keys()
            .map(|name| name.to_string())
            .collect();
        names.sort();
        names
    }

    /// Servers that are held.
    pub(crate) fn servers(&self) -> Vec<usize> {
        self.read().servers.keys().copied().collect()
    }

    /// Holds a server; `false` if it is held already.
    pub(crate) fn hold_server(&self, server: usize) -> bool {
        let mut held = self.write();
        let is_new = held.servers.insert(server, 1).is_none();
        self.recount(&held);
        is_new
    }

    pub(crate) fn release_server(&self, server: usize) {
        let mut held = self.write();
        held.servers.remove(&server);
        self.recount(&held);
    }

    /// Holds what is stale, until the answer is dropped. Where keys are too many, or found by queries alone, their whole
    /// accessors are held.
    pub(crate) fn hold(self: &Arc<Self>, stale: &Stale) -> Hold {
        let mut hold = Hold {
            undelivered: Arc::clone(self),
            keys: Vec::new(),
            accessors: Vec::new(),
        };
        let mut held = self.write();
        for level in stale.levels() {
            for key in level.keys.iter() {
                if held.keys.len() < MANY {
                    let key: Box<str> = key.as_str().into();
                    *held.keys.entry(key.clone()).or_default() += 1;
                    hold.keys.push(key);
                } else {
                    hold.accessor(&mut held, key.accessor());
                }
            }
            for deferred in &level.queries {
                hold.accessor(&mut held, &deferred.accessor);
            }
        }
        self.recount(&held);
        drop(held);
        hold
    }

    /// Holds a whole data set, until the answer is dropped.
    pub(crate) fn hold_accessor(self: &Arc<Self>, accessor: &str) -> Hold {
        let mut hold = Hold {
            undelivered: Arc::clone(self),
            keys: Vec::new(),
            accessors: Vec::new(),
        };
        let mut held = self.write();
        hold.accessor(&mut held, accessor);
        self.recount(&held);
        drop(held);
        hold
    }

    fn recount(&self, held: &Held) {
        let flushes = held.keys.len() + held.accessors.len();
        self.flushes.store(flushes, Ordering::Release);
        self.servers.store(held.servers.len(), Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is held for one flush; dropped, it is read again.
#[derive(Debug)]
pub(crate) struct Hold {
    undelivered: Arc<Undelivered>,
    keys: Vec<Box<str>>,
    accessors: Vec<Box<str>>,
}

impl Hold {
    fn accessor(&mut self, held: &mut Held, accessor: &str) {
        if !self.accessors.iter().any(|known| **known == *accessor) {
            *held.accessors.entry(accessor.into()).or_default() += 1;
            self.accessors.push(accessor.into());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.undelivered.write();
        release(&mut held.keys, &self.keys);
        release(&mut held.accessors, &self.accessors);
        self.undelivered.recount(&held);
    }
}

fn release(held: &mut Counted<Box<str>>, names: &[Box<str>]) {
    for name in names {
        if let Some(count) = held.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                held.remove(name);
            }
        }
    }
}
