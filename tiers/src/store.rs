//! The one store of both tiers.
//!
//! moka evicts when it gets round to it, so that its own weight is no bound. The bytes are counted here instead: up
//! before an entry goes in, down when it is out, whatever took it out; and who finds more than there may be makes moka
//! get round to it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;
use indexmap::Equivalent;
use larder_core::{Instant, Key, SharedValue};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use crate::room::{Permit, Room, TierOf};

/// What an entry takes beside its key and its value: moka's bookkeeping, and its scope's.
const OVERHEAD: usize = 512;

/// How often room is made before an entry that finds none is taken out again.
const ATTEMPTS: usize = 8;

/// A key without its scope. Its text is shared by all who have it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Name {
    text: Arc<[u8]>,
    hidden: u64,
}

impl From<Key<'_>> for Name {
    fn from(key: Key<'_>) -> Self {
        Self {
            text: key.as_bytes().into(),
            hidden: key.hidden(),
        }
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(&self.text, self.hidden, state);
    }
}

/// The same, as a look-up has it.
#[derive(Clone, Copy)]
pub(crate) struct NameOf<'a>(pub(crate) Key<'a>);

impl Hash for NameOf<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash_name(self.0.as_bytes(), self.0.hidden(), state);
    }
}

impl Equivalent<Name> for NameOf<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self.0.as_bytes() == *name.text && self.0.hidden() == name.hidden
    }
}

fn hash_name<H: Hasher>(text: &[u8], hidden: u64, state: &mut H) {
    state.write(text);
    state.write_u64(hidden);
}

/// A key with its scope.
#[derive(PartialEq, Eq, Hash)]
struct Place<N> {
    scope: u64,
    name: N,
}

impl Equivalent<Place<Name>> for Place<NameOf<'_>> {
    fn equivalent(&self, place: &Place<Name>) -> bool {
        self.scope == place.scope && self.name.equivalent(&place.name)
    }
}

/// A value, or the absence of one.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) value: Option<SharedValue>,
    pub(crate) kept_at: Instant,
    tier: TierOf,
    weight: u32,
}

/// The entries of all scopes.
pub(crate) struct Store {
    entries: moka::sync::Cache<Place<Name>, Entry, RandomState>,
    room: Arc<Room>,
}

impl Store {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        let leaves = Arc::clone(&room);
        let entries = moka::sync::Cache::builder()
            .max_capacity(room.for_entries())
            .weigher(|_: &Place<Name>, entry: &Entry| entry.weight)
            // Not TinyLFU: it would refuse what is large for what is small, after it was told that it is kept.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, entry: Entry, cause| {
                leaves.release(entry.tier, entry.weight);
                if cause == RemovalCause::Size {
                    leaves.count_evicted(entry.tier);
                }
            })
            .build_with_hasher(RandomState::default());
        Self { entries, room }
    }

    /// What an entry with this key takes, with a value of so many bytes.
    pub(crate) fn weigh(key: Key<'_>, bytes: usize) -> u64 {
        let weight = OVERHEAD + key.as_bytes().len();
        weight.saturating_add(bytes) as u64
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    pub(crate) fn get(&self, scope: u64, key: Key<'_>) -> Option<Entry> {
        let name = NameOf(key);
        self.entries.get(&Place { scope, name })
    }

    pub(crate) fn insert(
        &self,
        scope: u64,
        name: Name,
        value: Option<SharedValue>,
        kept_at: Instant,
        permit: Permit<'_>,
    ) {
        let (tier, weight) = permit.hand_over();
        let entry = Entry {
            value,
            kept_at,
            tier,
            weight,
        };
        self.entries.insert(Place { scope, name }, entry);
    }

    pub(crate) fn remove(&self, scope: u64, name: Name) {
        self.entries.invalidate(&Place { scope, name });
    }

    /// Has the oldest entries give way until there is room for all; false if that can't be done.
    pub(crate) fn make_room(&self) -> bool {
        for _ in 0..ATTEMPTS {
            if !self.room.is_crowded() {
                return true;
            }
            self.tidy();
        }
        !self.room.is_crowded()
    }

    /// Frees what was removed, which moka would do some time later.
    pub(crate) fn tidy(&self) {
        self.entries.run_pending_tasks();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}
