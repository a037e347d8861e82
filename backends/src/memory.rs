//! The store in the process itself: bounded, with the full semantics of a server (TTL, leases), and no server to run.
//!
//! It is what larder runs on when nothing is configured, and a pool private to its process: a second process has a
//! second store, and neither sees the other's deletes. It keeps encoded entries, never the application's values.
//!
//! Entries live in shards, each a hash table under a lock of its own, so that winning a lease, comparing a token and
//! deleting are one step each. A call does its work when it is first polled, but for long look-ups, which give other
//! tasks a turn; a lock is held for one key at a time, and neither copying a value in nor freeing it happens under a
//! lock.

use std::fmt;
use std::hash::BuildHasher as _;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use foldhash::quality::RandomState;
use indexmap::IndexMap;
use indexmap::map::raw_entry_v1::{RawEntryApiV1 as _, RawEntryMut};
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Instant, Key,
    Keys, Lease, Lookup, Lost, Pool, Reach, Result, Rt, ServerAnswer, ServerCheck, ServerStats,
    Set, Token, Trips, WriteOptions,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Keys of one look-up between two looks at the clock.
const TURN: usize = 64;

/// How large the store may grow.
///
/// ```
/// use larder_backends::{Memory, MemoryConfig};
/// use larder_core::Rt;
///
/// let memory = Memory::new(MemoryConfig::default().capacity(16 << 20), Rt::new())?;
/// assert_eq!(memory.to_string(), "memory (16 MiB)");
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Bytes to keep at most: keys, values and what it takes to find them. 64 MiB by default.
    #[serde(with = "larder_core::config::bytes")]
    pub capacity: usize,
    /// The largest value in bytes, 1 MiB by default as on memcached; larger ones are refused.
    #[serde(with = "larder_core::config::bytes")]
    pub max_item: usize,
}

impl MemoryConfig {
    /// Keeps at most this many bytes.
    #[must_use]
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Refuses values larger than this many bytes.
    #[must_use]
    pub fn max_item(mut self, bytes: usize) -> Self {
        self.max_item = bytes;
        self
    }
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            capacity: 64 << 20,
            max_item: 1 << 20,
        }
    }
}

/// A store in this process.
///
/// Full, it drops entries that weren't looked up lately, placeholders of leases like any other (CLOCK with a count);
/// expired entries go as they are met. An operation on a key is one hash, one short lock and
/// O(1); a hit copies no value and allocates nothing but the call's answer.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::time::Duration;
/// use larder_backends::{Memory, MemoryConfig};
/// use larder_core::{BackendExt, Fill, FillOutcome, GetOptions, Lookup, Lost, Rt};
///
/// let memory = Memory::new(MemoryConfig::default(), Rt::new())?;
/// let options = GetOptions::lease(Duration::from_secs(10));
/// let Lookup::Miss { lease: Some(lease) } = memory.get("user:7", &options).await? else { panic!() };
///
/// memory.delete("user:7").await?; // somebody wrote while we asked the database
/// let outcome = memory.fill("user:7", Fill::new(lease, "as it was before")).await?;
/// assert_eq!(outcome, FillOutcome::Lost(Lost::Voided));
/// # Ok(()) }
/// ```
pub struct Memory {
    store: Arc<Store>,
    closed: AtomicBool,
}

impl Memory {
    /// An empty store.
    ///
    /// Fails if the configuration leaves no room for anything, as when a capacity was given in mebibytes.
    pub fn new(config: MemoryConfig, rt: Rt) -> Result<Self> {
        Ok(Self {
            store: Arc::new(Store::new(&config, rt)?),
            closed: AtomicBool::new(false),
        })
    }

    /// Another handle onto the same store, closed on its own.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            closed: AtomicBool::new(false),
        }
    }

    /// Begins a call for this many keys and counts its trip; `Err` has the answers if there is nothing to do.
    fn begin<T>(&self, keys: usize, trips: &Trips) -> Result<Call<'_>, Vec<Result<T>>> {
        if keys == 0 {
            return Err(Vec::new());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err((0..keys).map(|_| Err(self.closed_error())).collect());
        }
        trips.add(1);
        Ok(Call {
            store: &self.store,
            now: self.store.now(),
            counted: false,
        })
    }

    fn closed_error(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("{self}: this handle was closed; make a new one to go on"),
        )
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory ({})", Size(self.store.capacity))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("capacity", &self.store.capacity)
            .field("max_item", &self.store.max_item)
            .field("shards", &self.store.shards.len())
            .field("origin", &self.store.origin)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Memory {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        let mut call = match self.begin(keys.len(), &options.trips) {
            Ok(call) => call,
            Err(answers) => {
                for (position, answer) in answers.into_iter().enumerate() {
                    found(position, answer);
                }
                return;
            }
        };
        let (store, now) = (call.store, call.now);
        let mut won_at = None;
        let mut turn = None;
        for (position, key) in keys.iter().enumerate() {
            if position % TURN == TURN - 1 {
                // What takes the time is what the caller does with the answers.
                turn.get_or_insert_with(|| store.rt.turn()).over().await;
            }
            let until = options.lease_of(position).map(|length| now.after(length));
            let answer = match call.on(key, |mut spot| spot.look(until)) {
                Seen::Value(value, stamp) => Lookup::Hit {
                    value,
                    token: store.token(stamp),
                },
                Seen::Nothing => Lookup::Miss { lease: None },
                Seen::Won(stamp) => {
                    let won_at = *won_at.get_or_insert_with(|| store.rt.wall());
                    Lookup::Miss {
                        lease: Some(Lease::new(store.token(stamp), won_at)),
                    }
                }
                Seen::Placeholder(since, stamp) => Lookup::Busy {
                    age: now.since(since),
                    token: store.token(stamp),
                },
            };
            found(position, Ok(answer));
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        assert_eq!(keys.len(), fills.len(), "each key has its fill");
        let mut call = match self.begin(keys.len(), &options.trips) {
            Ok(call) => call,
            Err(answers) => return answers,
        };
        let (store, now) = (call.store, call.now);
        let mut answers = Vec::with_capacity(keys.len());
        for (key, fill) in keys.iter().zip(fills) {
            let leased = store.stamp(fill.lease.token);
            answers.push(match (store.accepts(key, &fill.value), leased) {
                (Err(error), leased) => {
                    if let Some(leased) = leased {
                        call.on(key, |mut spot| spot.release(leased));
                    }
                    Err(error)
                }
                (Ok(()), None) => Ok(FillOutcome::Lost(Lost::ConnectionGone)),
                (Ok(()), Some(leased)) => {
                    let value = owned(&fill.value);
                    let expires = now.expiry(fill.ttl);
                    let stored = call.on(key, |mut spot| spot.fill(leased, value, expires));
                    Ok(match stored {
                        true => FillOutcome::Stored,
                        false if leased.expires <= now => FillOutcome::Lost(Lost::Expired),
                        false => FillOutcome::Lost(Lost::Voided),
                    })
                }
            });
        }
        answers
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        assert_eq!(keys.len(), leases.len(), "each key has its lease");
        let mut call = match self.begin(keys.len(), &options.trips) {
            Ok(call) => call,
            Err(answers) => return answers,
        };
        let mut answers = Vec::with_capacity(keys.len());
        for (key, lease) in keys.iter().zip(leases) {
            if let Some(leased) = call.store.stamp(lease.token) {
                call.on(key, |mut spot| spot.release(leased));
            }
            answers.push(Ok(()));
        }
        answers
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let mut call = match self.begin(keys.len(), &options.trips) {
            Ok(call) => call,
            Err(answers) => return answers,
        };
        let mut answers = Vec::with_capacity(keys.len());
        for key in keys.iter() {
            call.on(key, |mut spot| spot.delete());
            answers.push(Ok(()));
        }
        answers
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        assert_eq!(keys.len(), sets.len(), "each key has its value");
        let mut call = match self.begin(keys.len(), &options.trips) {
            Ok(call) => call,
            Err(answers) => return answers,
        };
        let (store, now) = (call.store, call.now);
        let mut answers = Vec::with_capacity(keys.len());
        for (key, set) in keys.iter().zip(sets) {
            answers.push(store.accepts(key, &set.value).map(|()| {
                let value = owned(&set.value);
                call.on(key, |mut spot| spot.set(value, now.expiry(set.ttl)));
            }));
        }
        answers
    }

    async fn start(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Vec<ServerCheck> {
        let answer = if self.closed.load(Ordering::Acquire) {
            Err(self.closed_error())
        } else {
            let version = concat!("larder ", env!("CARGO_PKG_VERSION"));
            Ok(ServerAnswer::new(version, Duration::ZERO))
        };
        vec![ServerCheck::new("memory", answer)]
    }

    /// Closes this handle at once, since nothing is ever under way; the store lives as long as another handle does.
    async fn close(&self, _: Duration) {
        self.closed.store(true, Ordering::Release);
    }

    fn server_of(&self, _: Key<'_>) -> usize {
        0
    }

    fn pool(&self) -> Pool {
        Pool::new(self.store.description.as_str(), Reach::Process)
    }

    fn stats(&self) -> BackendStats {
        let mut server = ServerStats::default();
        server.server = "memory".to_owned();
        server.state = "up";
        let (mut entries, mut bytes, mut evictions) = (0, 0, 0);
        for shard in &self.store.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            server.trips += shard.trips;
            server.keys += shard.keys;
            entries += shard.entries.len() as u64;
            bytes += shard.used as u64;
            evictions += shard.evictions;
        }
        server.entries = Some(entries);
        server.stored_bytes = Some(bytes);
        server.evictions = Some(evictions);
        let mut stats = BackendStats::default();
        stats.servers.push(server);
        stats
    }
}

/// What every handle of one store shares.
struct Store {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    rt: Rt,
    /// The zero of every [`Nanos`].
    started: Instant,
    /// Which store of this process issued a token.
    origin: u64,
    capacity: usize,
    max_item: usize,
    description: String,
}

/// At most this many shards.
const MAX_SHARDS: usize = 64;

/// A shard takes at least this many of the largest items, so that one of them doesn't empty it.
const LARGEST_PER_SHARD: usize = 4;

/// The smallest capacity that isn't a mistake.
const MIN_CAPACITY: usize = 16 << 10;

impl Store {
    fn new(config: &MemoryConfig, rt: Rt) -> Result<Self> {
        static ORIGINS: AtomicU64 = AtomicU64::new(1);
        if config.capacity < MIN_CAPACITY {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "memory: a capacity of {} bytes holds nothing; it is given in bytes, at least {MIN_CAPACITY}",
                    config.capacity
                ),
            ));
        }
        if config.max_item == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "memory: a max_item of 0 refuses every value; it is given in bytes, 1048576 by default",
            ));
        }
        let largest = config.max_item.min(config.capacity);
        let shards = (config.capacity / largest / LARGEST_PER_SHARD).clamp(1, MAX_SHARDS);
        let shards = 1 << shards.ilog2();
        let origin = ORIGINS.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            shards: (0..shards)
                .map(|number| {
                    Mutex::new(Shard::new(
                        config.capacity / shards,
                        number as u64,
                        shards as u64,
                    ))
                })
                .collect(),
            hasher: RandomState::default(),
            rt,
            started: rt.now(),
            origin,
            capacity: config.capacity,
            max_item: config.max_item,
            // A container's processes all have the same number, hence the random part.
            description: format!(
                "memory://{}-{origin}-{:016x}",
                std::process::id(),
                fastrand::u64(..)
            ),
        })
    }

    fn now(&self) -> Nanos {
        Nanos::of(self.rt.now().saturating_duration_since(self.started))
    }

    /// Refuses what this store can't keep.
    fn accepts(&self, key: Key<'_>, value: &Bytes) -> Result<()> {
        let limit = self.max_item;
        if value.is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                "memory: an empty value can't be stored; on the wire it means a placeholder",
            ));
        }
        if value.len() > limit
            || weight(key.as_bytes(), value.len()) > self.capacity / self.shards.len()
        {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "memory: a value of {} bytes is over the limit (max_item {limit}, capacity {}); raise it or store less",
                    value.len(),
                    self.capacity
                ),
            ));
        }
        Ok(())
    }

    fn token(&self, stamp: Stamp) -> Token {
        Token {
            token: [stamp.number, stamp.expires.0],
            origin: self.origin,
        }
    }

    /// What a token of this store names; `None` for another's.
    fn stamp(&self, token: Token) -> Option<Stamp> {
        (token.origin == self.origin).then_some(Stamp {
            number: token.token[0],
            expires: Nanos(token.token[1]),
        })
    }
}

/// One call of one handle.
struct Call<'a> {
    store: &'a Store,
    now: Nanos,
    /// Whether a shard has counted it as a trip.
    counted: bool,
}

impl Call<'_> {
    /// Does this with one key as one step, under the lock of the key's shard.
    fn on<T>(&mut self, key: Key<'_>, step: impl FnOnce(Spot<'_>) -> T) -> T {
        let key = key.as_bytes();
        let hash = self.store.hasher.hash_one(key);
        // The table inside takes its bits from both ends of the hash.
        let shard = (hash >> 32) as usize & (self.store.shards.len() - 1);
        // Declared before the guard, so that freeing comes after unlocking.
        let mut dropped = Dropped::new();
        let mut shard = self.store.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shard.keys += 1;
        shard.trips += u64::from(!mem::replace(&mut self.counted, true));
        step(Spot {
            shard: &mut shard,
            hash,
            key,
            now: self.now,
            dropped: &mut dropped,
        })
    }
}

/// One part of the store, always under its lock.
struct Shard {
    /// In no particular order, which is the order of the clock's hand.
    entries: IndexMap<Box<[u8]>, Entry, RandomState>,
    budget: usize,
    /// The entries' weights.
    used: usize,
    /// The next entry to consider for eviction.
    hand: usize,
    /// The next entry to look at for expiry.
    sweep: usize,
    /// The last number issued; shards count in steps, so that no two issue the same.
    number: u64,
    step: u64,
    trips: u64,
    keys: u64,
    evictions: u64,
}

struct Entry {
    state: State,
    stamp: Stamp,
    /// How often it was looked up since the hand passed, up to [`MAX_LOOKS`].
    looks: u8,
}

enum State {
    Value(Bytes),
    /// A lease stands since then.
    Placeholder(Nanos),
}

/// Names one state of one key, and says when it ends.
///
/// The end goes out with the token, so that the fill of an entry that is gone can say whether its time was over.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    number: u64,
    expires: Nanos,
}

/// What a look-up found.
enum Seen {
    Value(Bytes, Stamp),
    Nothing,
    Won(Stamp),
    Placeholder(Nanos, Stamp),
}

/// Entries taken out under a lock, to be freed after it.
type Dropped = SmallVec<[(Box<[u8]>, Entry); 2]>;

impl Shard {
    fn new(budget: usize, number: u64, step: u64) -> Self {
        Self {
            entries: IndexMap::with_hasher(RandomState::default()),
            budget,
            used: 0,
            hand: 0,
            sweep: 0,
            number,
            step,
            trips: 0,
            keys: 0,
            evictions: 0,
        }
    }

    fn remove(&mut self, index: usize, dropped: &mut Dropped) {
        let (key, entry) = self
            .entries
            .swap_remove_index(index)
            .expect("the index was found under the same lock");
        self.used -= weight(&key, entry.state.length());
        dropped.push((key, entry));
        // The room that many small entries took is given back once few are left.
        let capacity = self.entries.capacity();
        if capacity > 64 && self.entries.len() < capacity / 4 {
            self.entries.shrink_to(capacity / 2);
        }
    }

    /// Looks at two entries for each that is written, so that the expired leave even a store that never fills up.
    fn drop_expired(&mut self, now: Nanos, dropped: &mut Dropped) {
        for _ in 0..2 {
            match self.entries.get_index(self.sweep) {
                None => self.sweep = 0,
                Some((_, entry)) if entry.stamp.expires <= now => self.remove(self.sweep, dropped),
                Some(_) => self.sweep += 1,
            }
        }
    }

    /// Evicts until the shard is within its budget, sparing the entry of this stamp.
    fn make_room(&mut self, spared: Stamp, now: Nanos, dropped: &mut Dropped) {
        while self.used > self.budget {
            let victim = self.victim(spared, now);
            self.evictions += u64::from(self.entries[victim].stamp.expires > now);
            self.remove(victim, dropped);
        }
    }

    /// The next entry to go: the first from the hand on that wasn't looked up lately, or the least of a few.
    ///
    /// The hand takes one look off each entry it passes. The last entry takes the place of an evicted one, behind the
    /// hand, so that the newest have a whole round to prove useful.
    fn victim(&mut self, spared: Stamp, now: Nanos) -> usize {
        let mut least = None;
        let mut considered = 0;
        while considered < MAX_CONSIDERED || least.is_none() {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let index = self.hand;
            self.hand += 1;
            considered += 1;
            let entry = &mut self.entries[index];
            if entry.stamp == spared {
                continue;
            }
            if entry.looks == 0 || entry.stamp.expires <= now {
                return index;
            }
            if least.is_none_or(|(looks, _)| entry.looks < looks) {
                least = Some((entry.looks, index));
            }
            entry.looks -= 1;
        }
        least.map_or(0, |(_, index)| index)
    }
}

/// How often an entry's look-ups count at most.
const MAX_LOOKS: u8 = 3;

/// How many entries the hand passes at most to find one to evict.
const MAX_CONSIDERED: usize = 32;

/// One key in its shard, under the shard's lock.
struct Spot<'a> {
    shard: &'a mut Shard,
    hash: u64,
    key: &'a [u8],
    now: Nanos,
    dropped: &'a mut Dropped,
}

impl Spot<'_> {
    fn look(&mut self, lease_until: Option<Nanos>) -> Seen {
        if let Some(index) = self.find() {
            let entry = &mut self.shard.entries[index];
            entry.looks = MAX_LOOKS.min(entry.looks + 1);
            return match &entry.state {
                State::Value(value) => Seen::Value(value.clone(), entry.stamp),
                State::Placeholder(since) => Seen::Placeholder(*since, entry.stamp),
            };
        }
        match lease_until {
            Some(expires) if weight(self.key, 0) <= self.shard.budget => {
                Seen::Won(self.put(None, State::Placeholder(self.now), expires))
            }
            _ => Seen::Nothing,
        }
    }

    fn fill(&mut self, leased: Stamp, value: Bytes, expires: Nanos) -> bool {
        let place = self.find_stamped(leased);
        if place.is_some() {
            self.put(place, State::Value(value), expires);
        }
        place.is_some()
    }

    fn set(&mut self, value: Bytes, expires: Nanos) {
        let place = self.find();
        self.put(place, State::Value(value), expires);
    }

    fn release(&mut self, leased: Stamp) {
        if let Some(index) = self.find_stamped(leased) {
            self.shard.remove(index, self.dropped);
        }
    }

    fn delete(&mut self) {
        if let Some(index) = self.find() {
            self.shard.remove(index, self.dropped);
        }
    }

    /// Where the key's entry is; an expired one is taken out and is none.
    fn find(&mut self) -> Option<usize> {
        let index = self
            .shard
            .entries
            .raw_entry_v1()
            .index_from_hash(self.hash, |stored| **stored == *self.key)?;
        if self.shard.entries[index].stamp.expires > self.now {
            return Some(index);
        }
        self.shard.remove(index, self.dropped);
        None
    }

    fn find_stamped(&mut self, stamp: Stamp) -> Option<usize> {
        self.find()
            .filter(|&index| self.shard.entries[index].stamp == stamp)
    }

    /// Puts this state where the key's entry is, or as a new one, under a stamp nobody has had before, and makes room.
    fn put(&mut self, place: Option<usize>, state: State, expires: Nanos) -> Stamp {
        let shard = &mut *self.shard;
        shard.number += shard.step;
        shard.used += weight(self.key, state.length());
        let stamp = Stamp {
            number: shard.number,
            expires,
        };
        let mut entry = Entry {
            state,
            stamp,
            looks: 0,
        };
        match place {
            Some(index) => {
                entry.looks = shard.entries[index].looks;
                let before = mem::replace(&mut shard.entries[index], entry);
                shard.used -= weight(self.key, before.state.length());
                self.dropped.push((Box::default(), before));
            }
            None => {
                let place = shard
                    .entries
                    .raw_entry_mut_v1()
                    .from_hash(self.hash, |_| false);
                if let RawEntryMut::Vacant(place) = place {
                    place.insert_hashed_nocheck(self.hash, self.key.into(), entry);
                }
            }
        }
        shard.drop_expired(self.now, self.dropped);
        shard.make_room(stamp, self.now, self.dropped);
        stamp
    }
}

impl State {
    fn length(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Placeholder(_) => 0,
        }
    }
}

/// What an entry takes beside its key and value: its place in the table, which is three quarters full on average, the
/// value's counter, and the allocator's headers of the three.
const OVERHEAD: usize = {
    let place = size_of::<(u64, Box<[u8]>, Entry)>() + size_of::<usize>() + 1;
    place * 4 / 3 + 24 + 3 * 16
};

/// The bytes an entry counts for.
fn weight(key: &[u8], value: usize) -> usize {
    OVERHEAD + key.len() + value
}

/// A copy of its own: a slice of a batch's buffer would keep all of it.
fn owned(value: &[u8]) -> Bytes {
    let value = Bytes::copy_from_slice(value);
    // The first clone makes the counter that the clones share; made here, no hit allocates, and none under the lock.
    drop(value.clone());
    value
}

/// Nanoseconds since the store was made; 584 years of them fit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Nanos(u64);

impl Nanos {
    const NEVER: Self = Self(u64::MAX);

    fn of(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(Self::of(duration).0))
    }

    fn expiry(self, ttl: Option<Duration>) -> Self {
        ttl.map_or(Self::NEVER, |ttl| self.after(ttl))
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Bytes as people write them: the largest unit that divides them.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut size, mut unit) = (self.0, "B");
        for larger in ["KiB", "MiB", "GiB"] {
            if size % 1024 != 0 {
                break;
            }
            (size, unit) = (size / 1024, larger);
        }
        write!(f, "{size} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use larder_core::BackendExt as _;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn memory(config: MemoryConfig) -> Memory {
        Memory::new(config, Rt::new()).expect("the configuration holds something")
    }

    async fn is_hit(memory: &Memory, key: &str) -> bool {
        let found = memory.get(key, &GetOptions::look()).await;
        matches!(found, Ok(Lookup::Hit { .. }))
    }

    async fn won(memory: &Memory, key: &str) -> Lease {
        match memory.get(key, &GetOptions::lease(LEASE)).await {
            Ok(Lookup::Miss { lease: Some(lease) }) => lease,
            other => panic!("{key} should be won, and is {other:?}"),
        }
    }

    async fn set(memory: &Memory, key: &str, value: Vec<u8>) {
        let stored = memory.set_immutable(key, Set::new(value)).await;
        assert!(stored.is_ok(), "{stored:?}");
    }

    fn server(memory: &Memory) -> ServerStats {
        memory.stats().servers.remove(0)
    }

    #[tokio::test]
    async fn full_store_stays_within_its_capacity_and_keeps_what_is_looked_up() {
        let memory = memory(MemoryConfig::default().capacity(256 << 10).max_item(4096));
        set(&memory, "hot", vec![1; 100]).await;
        for number in 0..5_000 {
            set(&memory, &format!("cold:{number}"), vec![1; 1000]).await;
            assert!(is_hit(&memory, "hot").await, "evicted at {number}");
            assert!(is_hit(&memory, &format!("cold:{number}")).await);
        }
        let server = server(&memory);
        assert!(server.stored_bytes <= Some(256 << 10), "{server:?}");
        assert!(
            server.stored_bytes >= Some(192 << 10),
            "room is left: {server:?}"
        );
        assert_eq!(
            server.entries.zip(server.evictions).map(|(e, v)| e + v),
            Some(5_001)
        );
    }

    #[tokio::test]
    async fn placeholders_count_and_are_evicted() {
        let memory = memory(MemoryConfig::default().capacity(64 << 10).max_item(4096));
        let first = won(&memory, "key:0").await;
        for number in 1..5_000 {
            won(&memory, &format!("key:{number}")).await;
        }
        assert!(server(&memory).stored_bytes <= Some(64 << 10));
        let late = memory.fill("key:0", Fill::new(first, "late")).await;
        assert_eq!(late.ok(), Some(FillOutcome::Lost(Lost::Voided)));
    }

    #[tokio::test(start_paused = true)]
    async fn expired_entries_leave_without_being_asked_for() {
        let memory = memory(MemoryConfig::default());
        let second = Duration::from_secs(1);
        for number in 0..1_000 {
            let set = Set::new("short").ttl(second);
            assert!(
                memory
                    .set_immutable(&format!("short:{number}"), set)
                    .await
                    .is_ok()
            );
        }
        tokio::time::advance(second).await;
        for number in (0..1_000).cycle().take(4_000) {
            set(&memory, &format!("long:{number}"), vec![1]).await;
        }
        let server = server(&memory);
        assert_eq!((server.entries, server.evictions), (Some(1_000), Some(0)));
    }

    #[tokio::test]
    async fn item_may_take_the_whole_of_a_small_store_and_not_more() {
        let memory = memory(MemoryConfig::default().capacity(16 << 10));
        set(&memory, "key", vec![1; 15 << 10]).await;
        set(&memory, "other", vec![1; 15 << 10]).await;
        assert!(!is_hit(&memory, "key").await);
        let refused = memory
            .set_immutable("key", Set::new(vec![1; 16 << 10]))
            .await;
        assert_eq!(
            refused.map_err(|error| error.kind()),
            Err(ErrorKind::TooLarge)
        );
        assert!(is_hit(&memory, "other").await);
    }

    #[tokio::test]
    async fn stored_value_is_a_copy() {
        let memory = memory(MemoryConfig::default());
        let batch = Bytes::from(vec![7; 1 << 20]);
        let slice = batch.slice(100..200);
        assert!(memory.set_immutable("key", Set::new(slice)).await.is_ok());
        assert!(batch.is_unique(), "the store holds the batch's buffer");
    }

    #[tokio::test]
    async fn lease_of_another_store_is_gone() {
        let (old, new) = (
            memory(MemoryConfig::default()),
            memory(MemoryConfig::default()),
        );
        let lease = won(&old, "key").await;
        won(&new, "key").await;
        let outcome = new.fill("key", Fill::new(lease, "old")).await;
        assert_eq!(outcome.ok(), Some(FillOutcome::Lost(Lost::ConnectionGone)));
    }

    #[tokio::test]
    async fn handles_share_entries_and_close_apart() {
        let memory = memory(MemoryConfig::default());
        let other = memory.handle();
        set(&memory, "key", vec![1]).await;
        memory.close(Duration::ZERO).await;
        assert!(is_hit(&other, "key").await);
        assert!(!is_hit(&memory, "key").await);
        assert_eq!(memory.pool(), other.pool());
    }

    #[test]
    fn two_stores_are_two_pools() {
        let (one, other) = (
            memory(MemoryConfig::default()),
            memory(MemoryConfig::default()),
        );
        assert_ne!(one.pool(), other.pool());
    }

    #[test]
    fn capacity_that_holds_nothing_is_refused() {
        #[track_caller]
        fn check(config: MemoryConfig, message: &str) {
            let error = Memory::new(config, Rt::new()).expect_err("it holds nothing");
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(message), "{error}");
        }
        check(MemoryConfig::default().capacity(64), "capacity of 64 bytes");
        check(MemoryConfig::default().max_item(0), "max_item of 0");
    }

    #[test]
    fn display_gives_the_capacity() {
        #[track_caller]
        fn check(capacity: usize, expected: &str) {
            let memory = memory(MemoryConfig::default().capacity(capacity));
            assert_eq!(memory.to_string(), expected);
        }
        check(64 << 20, "memory (64 MiB)");
        check(2 << 30, "memory (2 GiB)");
        check(100_000, "memory (100000 B)");
    }
}
