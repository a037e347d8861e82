//! The one store of both tiers: it owns what is kept, and bounds it.
//!
//! Scopes find their entries by maps of their own, which are quicker to ask and hold nothing alive; see
//! [`scope`](crate::scope). moka decides what gives way, but only when it gets round to it, so that its own weight is no
//! bound. The bytes are counted by [`Room`] instead: up before an entry goes in, down when it is out, whatever took it
//! out; and who finds more than there may be makes moka get round to it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use indexmap::Equivalent;
use larder_core::{Instant, Key, Rt, SharedValue};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;

use crate::TiersConfig;
use crate::room::{Permit, Room, TierOf};

/// What an entry takes beside its key and its value: moka's bookkeeping, the slot, and its scope's.
const OVERHEAD: usize = 640;

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

/// A value that is kept, or the absence of one.
pub(crate) struct Slot {
    pub(crate) value: Option<SharedValue>,
    pub(crate) kept_at: Instant,
    tier: TierOf,
    weight: u32,
    /// The store's tick at which moka was last told that this is in use.
    told_at: AtomicU64,
}

impl Slot {
    pub(crate) fn weight(&self) -> u64 {
        u64::from(self.weight)
    }
}

/// What holds a slot until it is removed. moka itself may hold on to what was removed for as long as no thread happens to
/// collect its garbage.
struct Holder {
    slot: Mutex<Option<Arc<Slot>>>,
    tier: TierOf,
    weight: u32,
}

/// The entries of all scopes.
pub(crate) struct Store {
    entries: moka::sync::Cache<Place<Name>, Arc<Holder>, RandomState>,
    room: Arc<Room>,
    pub(crate) config: TiersConfig,
    /// What was removed and isn't freed yet: freeing a value runs code of its own, which moka mustn't be in the middle of.
    removed: Arc<Mutex<Vec<Arc<Slot>>>>,
    /// Goes on where entries may have to give way to others.
    tick: AtomicU64,
    pub(crate) rt: Rt,
}

impl Store {
    pub(crate) fn new(config: TiersConfig, rt: Rt) -> Self {
        let room = Arc::new(Room::new(config.budget));
        let removed = Arc::<Mutex<Vec<_>>>::default();
        let entries = moka::sync::Cache::builder()
            .max_capacity(room.for_entries())
            .weigher(|_: &Place<Name>, holder: &Arc<Holder>| holder.weight)
            // Not TinyLFU: it would refuse what is large for what is small, after it was told that it is kept.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Aging(config.max_age))
            .eviction_listener({
                let (room, removed) = (Arc::clone(&room), Arc::clone(&removed));
                move |_, holder: Arc<Holder>, cause| {
                    room.release(holder.tier, holder.weight);
                    if cause == RemovalCause::Size {
                        room.count_evicted(holder.tier);
                    }
                    lock(&removed).extend(lock(&holder.slot).take());
                }
            })
            .build_with_hasher(RandomState::default());
        Self {
            entries,
            room,
            config,
            removed,
            tick: AtomicU64::new(0),
            rt,
        }
    }

    /// What an entry with this key takes, with a value of so many bytes.
    pub(crate) fn weigh(key: Key<'_>, bytes: usize) -> u64 {
        let weight = OVERHEAD + key.as_bytes().len();
        weight.saturating_add(bytes) as u64
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub(crate) fn age(&self, slot: &Slot) -> Duration {
        self.rt.now().duration_since(slot.kept_at)
    }

    /// Where a value will be kept, once it is [inserted](Self::insert).
    pub(crate) fn slot(&self, value: Option<SharedValue>, permit: &Permit<'_>) -> Arc<Slot> {
        Arc::new(Slot {
            value,
            kept_at: self.rt.now(),
            tier: permit.tier,
            weight: permit.weight,
            told_at: AtomicU64::new(self.tick.load(Ordering::Relaxed)),
        })
    }

    pub(crate) fn insert(&self, scope: u64, name: Name, slot: Arc<Slot>, permit: Permit<'_>) {
        if slot.tier == TierOf::Deploy {
            self.tick.fetch_add(1, Ordering::Relaxed);
        }
        let holder = Holder {
            tier: slot.tier,
            weight: slot.weight,
            slot: Mutex::new(Some(slot)),
        };
        permit.hand_over();
        self.entries.insert(Place { scope, name }, Arc::new(holder));
        self.free();
    }

    pub(crate) fn remove(&self, scope: u64, name: Name) {
        self.entries.invalidate(&Place { scope, name });
        self.free();
    }

    /// Says that the slot of this key was used, for moka to know what may give way.
    ///
    /// It is told once between two ticks, and the rest is free. A tick is a value of the deploy tier that comes in, which
    /// is rare, or one of a request that has others give way.
    pub(crate) fn touch(&self, scope: u64, key: Key<'_>, slot: &Slot) {
        let tick = self.tick.load(Ordering::Relaxed);
        if slot.told_at.load(Ordering::Relaxed) != tick {
            slot.told_at.store(tick, Ordering::Relaxed);
            self.look(scope, key);
        }
    }

    /// Has moka remove what has grown too old, if it hasn't for a while.
    pub(crate) fn nudge(&self, key: Key<'_>) {
        self.look(0, key);
    }

    fn look(&self, scope: u64, key: Key<'_>) {
        let name = NameOf(key);
        let _ = self.entries.get(&Place { scope, name });
        self.free();
    }

    /// Has the oldest entries give way until there is room for all; false if that can't be done.
    pub(crate) fn make_room(&self) -> bool {
        if !self.room.is_crowded() {
            return true;
        }
        self.tick.fetch_add(1, Ordering::Relaxed);
        (0..ATTEMPTS).any(|_| {
            self.tidy();
            !self.room.is_crowded()
        })
    }

    /// Has moka do what it would do some time later.
    pub(crate) fn tidy(&self) {
        self.entries.run_pending_tasks();
        self.free();
    }

    /// Frees what moka has removed meanwhile.
    fn free(&self) {
        let removed = std::mem::take(&mut *lock(&self.removed));
        for slot in removed {
            // A value that panics as it is freed is no concern of whoever had it removed.
            let freed = catch_unwind(AssertUnwindSafe(|| drop(slot)));
            if freed.is_err() {
                tracing::error!("a value kept in a tier panicked when it was freed");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

/// How long entries take up room. Whether they are still served is for their scope to say, by larder's clock.
struct Aging(Duration);

impl moka::Expiry<Place<Name>, Arc<Holder>> for Aging {
    fn expire_after_create(
        &self,
        _: &Place<Name>,
        holder: &Arc<Holder>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        match holder.tier {
            TierOf::Request => Some(self.0),
            TierOf::Deploy => None,
        }
    }

    fn expire_after_update(
        &self,
        place: &Place<Name>,
        holder: &Arc<Holder>,
        now: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(place, holder, now)
    }
}
