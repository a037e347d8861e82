//! One scope: the values of one request, or those that one cache keeps as long as it lives.
//!
//! Its entries are in the common store, under its number, which no other scope ever has. What comes in and goes out is
//! decided under the scope's lock, one after the other; a look-up takes no lock.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use larder_core::{Kept, Key, Keys, Mark, Recall, Rt, Scope, SharedValue};

use crate::drops::Drops;
use crate::room::TierOf;
use crate::store::{Name, NameOf, Store};

/// Numbers of scopes; 0 is that of one that has kept nothing yet.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What distinguishes one kind of scope from another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) tier: TierOf,
    /// Bytes that it may keep.
    pub(crate) limit: u64,
    /// How long it serves what it keeps.
    pub(crate) max_age: Option<Duration>,
}

pub(crate) struct Scoped {
    store: Arc<Store>,
    rt: Rt,
    terms: Terms,
    number: AtomicU64,
    ended: AtomicBool,
    /// As many drops as there were, for those who take a mark.
    drops: AtomicU64,
    book: Mutex<Book>,
}

/// What is known of a scope beside its entries.
#[derive(Default)]
struct Book {
    /// What it put, and how much each of it weighs. Some of it may have given way since.
    kept: IndexMap<Name, u64, RandomState>,
    bytes: u64,
    /// `None` until the first drop, which most requests never see.
    drops: Option<Box<Drops>>,
}

impl Scoped {
    pub(crate) fn new(store: Arc<Store>, rt: Rt, terms: Terms) -> Self {
        Self {
            store,
            rt,
            terms,
            number: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            drops: AtomicU64::new(0),
            book: Mutex::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scope's number; taken when it first keeps something.
    fn number(&self) -> u64 {
        match self.number.load(Ordering::Relaxed) {
            0 => {
                let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
                self.number.store(number, Ordering::Release);
                number
            }
            number => number,
        }
    }

    fn has(&self, key: Key<'_>) -> Option<Option<SharedValue>> {
        if self.ended.load(Ordering::Acquire) {
            return None;
        }
        let number = self.number.load(Ordering::Acquire);
        if number == 0 {
            return None;
        }
        let entry = self.store.get(number, key)?;
        if let Some(max_age) = self.terms.max_age
            && self.rt.now().duration_since(entry.kept_at) >= max_age
        {
            return None;
        }
        Some(entry.value)
    }

    fn refuse(&self) -> Kept {
        self.store.room().count_refused(self.terms.tier);
        Kept::NoRoom
    }

    /// Drops these keys, all at once.
    fn drop_keys(&self, keys: &Keys, distrust: bool) {
        let mut book = self.book();
        let Book { kept, bytes, drops } = &mut *book;
        let drops = drops.get_or_insert_default();
        drops.begin();
        for key in keys.iter() {
            drops.add(key);
            if distrust {
                drops.distrust(key);
            }
        }
        // Before the entries go: who finds them gone takes a mark that is newer than the drop, or else is refused.
        self.drops.store(drops.count(), Ordering::Release);
        let number = self.number.load(Ordering::Relaxed);
        for key in keys.iter() {
            if let Some((name, weight)) = kept.swap_remove_entry(&NameOf(key)) {
                *bytes -= weight;
                self.store.remove(number, name);
            }
        }
    }
}

impl Scope for Scoped {
    fn get(&self, key: Key<'_>) -> Recall {
        if let Some(value) = self.has(key) {
            return Recall::Kept(value);
        }
        let mark = self.drops.load(Ordering::Acquire);
        let distrusted = mark > 0
            && (self.book().drops)
                .as_ref()
                .is_some_and(|drops| drops.is_distrusted(key));
        match distrusted {
            true => Recall::Distrusted,
            false => Recall::Unknown(Mark(mark)),
        }
    }

    fn put(&self, key: Key<'_>, mark: Mark, value: Option<SharedValue>, bytes: usize) -> Kept {
        let weight = Store::weigh(key, bytes);
        let Some(permit) = self.store.room().admit(self.terms.tier, weight) else {
            return self.refuse();
        };
        let name = Name::from(key);
        {
            let mut book = self.book();
            if self.ended.load(Ordering::Relaxed) || book.is_too_late(mark, key) {
                return Kept::TooLate;
            }
            let before = book.kept.get(&name).copied().unwrap_or(0);
            let after = book.bytes - before + weight;
            if after > self.terms.limit {
                drop(book);
                return self.refuse();
            }
            book.bytes = after;
            book.kept.insert(name.clone(), weight);
            self.store
                .insert(self.number(), name.clone(), value, self.rt.now(), permit);
        }
        if self.store.make_room() {
            return Kept::Kept;
        }
        let mut book = self.book();
        if let Some((name, weight)) = book.kept.swap_remove_entry(&name) {
            book.bytes -= weight;
            self.store.remove(self.number(), name);
        }
        drop(book);
        self.refuse()
    }

    fn forget(&self, keys: &Keys) {
        self.drop_keys(keys, false);
    }

    fn distrust(&self, keys: &Keys) {
        self.drop_keys(keys, true);
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let kept = std::mem::take(&mut self.book().kept);
        if kept.is_empty() {
            return;
        }
        let left = Left {
            store: Arc::clone(&self.store),
            number: self.number(),
            kept,
        };
        // Without a runtime the task is dropped at once, and what is left with it.
        let rt = self.rt;
        rt.spawn_if_running(left.remove(rt));
    }
}

impl Book {
    fn is_too_late(&self, mark: Mark, key: Key<'_>) -> bool {
        (self.drops)
            .as_ref()
            .is_some_and(|drops| drops.since(mark, key) || drops.is_distrusted(key))
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("terms", &self.terms)
            .field("number", &self.number)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Entries of a scope that has ended.
struct Left {
    store: Arc<Store>,
    number: u64,
    kept: IndexMap<Name, u64, RandomState>,
}

impl Left {
    /// Removes them, and lets others work in between.
    async fn remove(mut self, rt: Rt) {
        let mut turn = rt.turn();
        while self.remove_some() {
            turn.over().await;
        }
    }

    /// Removes some of them; false when none is left.
    fn remove_some(&mut self) -> bool {
        for _ in 0..64 {
            let Some((name, _)) = self.kept.pop() else {
                self.store.tidy();
                return false;
            };
            self.store.remove(self.number, name);
        }
        true
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        while !self.kept.is_empty() && self.remove_some() {}
    }
}
