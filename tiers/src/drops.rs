//! Which keys were dropped in a scope, and when, so that what was read before stays out.

use foldhash::fast::RandomState;
use indexmap::{IndexMap, IndexSet};
use larder_core::{Key, Mark};

use crate::store::{Name, NameOf};

/// Keys that are remembered one by one. Beyond, what was dropped counts for all keys, which is safe and only costs reads.
const REMEMBERED: usize = 4096;

/// Drops since the scope began. A mark is how many there had been.
#[derive(Default)]
pub(crate) struct Drops {
    count: u64,
    /// Nothing that was read before this is kept.
    floor: u64,
    /// The latest drop of each key, where it came after the floor.
    latest: IndexMap<Name, u64, RandomState>,
    distrusted: IndexSet<Name, RandomState>,
    all_distrusted: bool,
}

impl Drops {
    /// For a read that begins now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.count)
    }

    /// Begins another drop, of any number of keys.
    pub(crate) fn begin(&mut self) {
        self.count += 1;
    }

    /// This key is among those that are dropped now.
    pub(crate) fn add(&mut self, key: Key<'_>) {
        if let Some(latest) = self.latest.get_mut(&NameOf(key)) {
            *latest = self.count;
        } else if self.latest.len() < REMEMBERED {
            self.latest.insert(key.into(), self.count);
        } else {
            self.floor = self.count;
            self.latest.clear();
        }
    }

    /// Nor is the store to be trusted with it from now on.
    pub(crate) fn distrust(&mut self, key: Key<'_>) {
        if self.all_distrusted || self.distrusted.contains(&NameOf(key)) {
            return;
        }
        if self.distrusted.len() < REMEMBERED {
            self.distrusted.insert(key.into());
        } else {
            self.all_distrusted = true;
            self.distrusted.clear();
        }
    }

    pub(crate) fn is_distrusted(&self, key: Key<'_>) -> bool {
        self.all_distrusted || self.distrusted.contains(&NameOf(key))
    }

    /// Whether the key was dropped after this mark was taken.
    pub(crate) fn since(&self, mark: Mark, key: Key<'_>) -> bool {
        let latest = self.latest.get(&NameOf(key)).copied().unwrap_or(0);
        latest.max(self.floor) > mark.0
    }
}
