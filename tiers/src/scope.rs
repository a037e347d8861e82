//! One scope: the values of one request, or those that one cache keeps as long as it lives.
//!
//! A scope knows by name what it keeps, and everything about it is decided under its one lock: what is found, what may
//! come in, what was dropped, whether it has ended. The values themselves belong to the common [`Store`], which may take
//! them away at any time: a name whose value is gone is as good as none. No value is freed, and moka not called, while
//! the lock is held.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use foldhash::fast::RandomState;
use indexmap::IndexMap;
use larder_core::{Kept, Key, Keys, Mark, Recall, Scope, SharedValue};

use crate::drops::Drops;
use crate::room::TierOf;
use crate::store::{Name, NameOf, Slot, Store};

pub(crate) struct Scoped {
    store: Arc<Store>,
    tier: TierOf,
    state: RwLock<State>,
}

enum State {
    /// It has kept and dropped nothing yet. Most requests leave it at that.
    Unused,
    Open(Box<Book>),
    /// What was distrusted remains so, for those who read on.
    Ended(Option<Box<Drops>>),
}

/// What a scope knows.
struct Book {
    number: u64,
    names: IndexMap<Name, Named, RandomState>,
    /// What `names` weigh together.
    bytes: u64,
    /// How many names there are when those without a value are thrown out.
    prune_at: usize,
    /// How many more values find it full before they are thrown out as well.
    refusals_left: usize,
    /// `None` until the first drop.
    drops: Option<Box<Drops>>,
}

struct Named {
    slot: Weak<Slot>,
    weight: u64,
}

impl Scoped {
    pub(crate) fn new(store: Arc<Store>, tier: TierOf) -> Self {
        Self {
            store,
            tier,
            state: RwLock::new(State::Unused),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fresh(&self, slot: &Slot) -> bool {
        match self.tier {
            TierOf::Request => self.store.age(slot) < self.store.config.max_age,
            TierOf::Deploy => true,
        }
    }

    /// Bytes that it may keep.
    fn limit(&self) -> u64 {
        match self.tier {
            TierOf::Request => self.store.config.per_request,
            TierOf::Deploy => u64::MAX,
        }
    }

    fn refuse(&self) -> Kept {
        self.store.room().count_refused(self.tier);
        Kept::NoRoom
    }

    /// Writes into the book that this slot has the key's value, if it may.
    fn enter(&self, key: Key<'_>, mark: Mark, slot: &Arc<Slot>) -> Result<(u64, Name), Kept> {
        // Declared first, so that it is freed after the lock.
        let earlier: Option<Arc<Slot>>;
        let mut state = self.write();
        let book = state.book(&self.store).ok_or(Kept::TooLate)?;
        if book.is_too_late(mark, key) {
            return Err(Kept::TooLate);
        }
        book.prune_for(slot.weight(), self.limit());
        let before = book.names.get_full(&NameOf(key));
        earlier = before.and_then(|(_, _, named)| named.slot.upgrade());
        if let Some(slot) = &earlier
            && self.is_fresh(slot)
        {
            // Of two that were read at once either is right, and the first is what others may have seen.
            return Err(Kept::Other(slot.value.clone()));
        }
        let bytes = book.bytes - before.map_or(0, |(_, _, named)| named.weight) + slot.weight();
        if bytes > self.limit() {
            return Err(Kept::NoRoom);
        }
        let name = before.map_or_else(|| key.into(), |(_, name, _)| name.clone());
        book.bytes = bytes;
        book.names.insert(
            name.clone(),
            Named {
                slot: Arc::downgrade(slot),
                weight: slot.weight(),
            },
        );
        Ok((book.number, name))
    }

    /// Whether this slot still has the key's value.
    fn stands(&self, key: Key<'_>, slot: &Arc<Slot>) -> bool {
        match &*self.read() {
            State::Open(book) => book
                .names
                .get(&NameOf(key))
                .is_some_and(|named| std::ptr::eq(named.slot.as_ptr(), Arc::as_ptr(slot))),
            State::Unused | State::Ended(_) => false,
        }
    }

    /// Has removed what was kept until the end.
    fn clear_out(&self, book: Book) {
        let mut left = Left::of(&self.store, book.number);
        left.names.extend(book.names.into_keys());
        if !left.names.is_empty() {
            // Without a runtime the task is dropped at once, and removes what is left as it goes.
            self.store.rt.spawn_if_running(left.remove());
        }
    }

    /// Drops these keys, all at once.
    fn drop_keys(&self, keys: &Keys, distrust: bool) {
        let mut left = {
            let mut state = self.write();
            let drops = state.drops(&self.store);
            drops.begin();
            for key in keys.iter() {
                drops.add(key);
                if distrust {
                    drops.distrust(key);
                }
            }
            let Some(book) = state.book(&self.store) else {
                return;
            };
            let mut left = Left::of(&self.store, book.number);
            for key in keys.iter() {
                if let Some((name, named)) = book.names.swap_remove_entry(&NameOf(key)) {
                    book.bytes -= named.weight;
                    left.names.push(name);
                }
            }
            left
        };
        while left.remove_some() {}
    }
}

impl Scope for Scoped {
    fn get(&self, key: Key<'_>) -> Recall {
        // Declared first, so that it is freed after the lock.
        let slot: Option<Arc<Slot>>;
        let state = self.read();
        let book = match &*state {
            State::Unused => return Recall::Unknown(Mark(0)),
            State::Ended(drops) => return nothing(drops.as_deref(), key),
            State::Open(book) => book,
        };
        let named = book.names.get(&NameOf(key));
        slot = named.and_then(|named| named.slot.upgrade());
        if let Some(slot) = &slot
            && self.is_fresh(slot)
        {
            let number = book.number;
            drop(state);
            self.store.touch(number, key, slot);
            return Recall::Kept(slot.value.clone());
        }
        nothing(book.drops.as_deref(), key)
    }

    fn put(&self, key: Key<'_>, mark: Mark, value: Option<SharedValue>, bytes: usize) -> Kept {
        let weight = Store::weigh(key, bytes);
        let Some(permit) = self.store.room().admit(self.tier, weight) else {
            self.store.nudge(key);
            return self.refuse();
        };
        let slot = self.store.slot(value, &permit);
        let (number, name) = match self.enter(key, mark, &slot) {
            Ok(entered) => entered,
            Err(Kept::NoRoom) => return self.refuse(),
            Err(kept) => return kept,
        };
        self.store
            .insert(number, name.clone(), Arc::clone(&slot), permit);
        let fits = self.store.make_room();
        if fits && self.stands(key, &slot) {
            return Kept::Kept;
        }
        // It was dropped before it was in, or there is no room however much gives way.
        self.store.remove(number, name);
        match fits {
            true => Kept::TooLate,
            false => self.refuse(),
        }
    }

    fn forget(&self, keys: &Keys) {
        self.drop_keys(keys, false);
    }

    fn distrust(&self, keys: &Keys) {
        self.drop_keys(keys, true);
    }

    fn end(&self) {
        let book = self.write().end();
        if let Some(book) = book {
            self.clear_out(*book);
        }
    }
}

impl Drop for Scoped {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some(book) = state.end() {
            self.clear_out(*book);
        }
    }
}

/// What a scope says of a key that it has no value of.
fn nothing(drops: Option<&Drops>, key: Key<'_>) -> Recall {
    match drops {
        None => Recall::Unknown(Mark(0)),
        Some(drops) if drops.is_distrusted(key) => Recall::Distrusted,
        Some(drops) => Recall::Unknown(drops.mark()),
    }
}

impl State {
    /// Ends the scope; answers what it knew, unless it had ended before.
    fn end(&mut self) -> Option<Box<Book>> {
        match std::mem::replace(self, Self::Ended(None)) {
            Self::Unused => None,
            Self::Open(mut book) => {
                *self = Self::Ended(book.drops.take());
                Some(book)
            }
            ended @ Self::Ended(_) => {
                *self = ended;
                None
            }
        }
    }

    /// The drops, which are also counted when the scope has ended.
    fn drops(&mut self, store: &Store) -> &mut Drops {
        let drops = match self {
            Self::Ended(drops) => drops,
            Self::Unused | Self::Open(_) => {
                let book = self.book(store);
                &mut book.expect("the scope hasn't ended").drops
            }
        };
        drops.get_or_insert_default()
    }

    /// The book, begun if it must be; `None` if the scope has ended.
    fn book(&mut self, store: &Store) -> Option<&mut Book> {
        if let Self::Unused = self {
            *self = Self::Open(Box::new(Book {
                number: store.number(),
                names: IndexMap::default(),
                bytes: 0,
                prune_at: PRUNE,
                refusals_left: 0,
                drops: None,
            }));
        }
        match self {
            Self::Open(book) => Some(book),
            Self::Unused | Self::Ended(_) => None,
        }
    }
}

/// How many names there are at least when those without a value are thrown out.
const PRUNE: usize = 256;

impl Book {
    fn is_too_late(&self, mark: Mark, key: Key<'_>) -> bool {
        (self.drops)
            .as_ref()
            .is_some_and(|drops| drops.since(mark, key) || drops.is_distrusted(key))
    }

    /// Throws out the names whose values were taken away, if there may be many of them, or if this weight would be too
    /// much; not each time, since it looks at every name.
    fn prune_for(&mut self, weight: u64, limit: u64) {
        let full = self.bytes + weight > limit;
        if full && self.refusals_left > 0 {
            self.refusals_left -= 1;
        } else if full || self.names.len() >= self.prune_at {
            self.names.retain(|_, named| {
                let stays = named.slot.strong_count() > 0;
                if !stays {
                    self.bytes -= named.weight;
                }
                stays
            });
            self.prune_at = PRUNE.max(self.names.len() * 2);
            self.refusals_left = self.names.len() / 16;
        }
    }
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Scope");
        debug.field("tier", &self.tier);
        match &*self.read() {
            State::Unused => debug.field("state", &"unused"),
            State::Open(book) => debug.field("entries", &book.names.len()),
            State::Ended(_) => debug.field("state", &"ended"),
        };
        debug.finish_non_exhaustive()
    }
}

/// Names that a scope has given up, and whose values are still in the store.
struct Left {
    store: Arc<Store>,
    number: u64,
    names: Vec<Name>,
}

impl Left {
    fn of(store: &Arc<Store>, number: u64) -> Self {
        Self {
            store: Arc::clone(store),
            number,
            names: Vec::new(),
        }
    }

    /// Removes the values, and lets others work in between.
    async fn remove(mut self) {
        let mut turn = self.store.rt.turn();
        while self.remove_some() {
            turn.over().await;
        }
    }

    /// Removes some; false when none is left.
    fn remove_some(&mut self) -> bool {
        if self.names.is_empty() {
            return false;
        }
        let kept = self.names.len().saturating_sub(64);
        for name in self.names.drain(kept..) {
            self.store.remove(self.number, name);
        }
        if self.names.is_empty() {
            self.store.tidy();
        }
        true
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        while self.remove_some() {}
    }
}

#[cfg(test)]
mod tests {
    use larder_core::{Keys, Rt};

    use super::*;
    use crate::TiersConfig;

    /// Keys of the deploy tier may come from outside, without end.
    #[test]
    fn names_without_values_are_thrown_out() {
        let config = TiersConfig {
            budget: 64 << 10,
            ..TiersConfig::default()
        };
        let scope = Scoped::new(Arc::new(Store::new(config, Rt::new())), TierOf::Deploy);
        for number in 0..10_000 {
            let key = Keys::one(&format!("source_map:{number}")).unwrap();
            let kept = scope.put(key.get(0), Mark(0), Some(Arc::new(number)), 100);
            assert_eq!(kept, Kept::Kept);
        }
        let state = scope.read();
        let State::Open(book) = &*state else {
            panic!("it keeps something")
        };
        assert!(book.names.len() <= PRUNE, "{}", book.names.len());
        let weights: u64 = book.names.values().map(|named| named.weight).sum();
        assert_eq!(book.bytes, weights);
    }
}
