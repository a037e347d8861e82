//! Items, CAS numbers and time, as memcached 1.6.18 keeps them.
//!
//! What only memory pressure shows is not here: no slabs, no LRU. Nothing is evicted but what a test evicts.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Above this many seconds a TTL is a point in time.
const LONGEST_RELATIVE: i64 = 60 * 60 * 24 * 30;

/// How far behind the wall clock a server thinks it was started, so that no moment of its own is zero.
const HEAD_START: i64 = 62;

/// What `uptime` says at the start.
const FIRST_UPTIME: Moment = 2;

/// Bytes of an item that are neither key nor value: its header, the key's terminating zero, the CAS number.
const ITEM_OVERHEAD: usize = 48 + 1 + 8;

/// What a server does and doesn't do; `..Settings::default()` is a server started with no arguments.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it answers to `version`. The protocol is that of 1.6.18 whatever this says.
    pub version: String,
    /// How many connections it serves; the others are told so and closed.
    pub maxconns: usize,
    /// The largest item, header and key included.
    pub item_size_max: usize,
    /// Whether items have CAS numbers; a server started with `-C` says `c0` to everybody.
    pub cas_enabled: bool,
    /// Bytes of requests, and of replies, that fit into a connection before its writer has to wait.
    pub window: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: "1.6.18".to_owned(),
            maxconns: 1024,
            item_size_max: 1024 * 1024,
            cas_enabled: true,
            window: 256 * 1024,
        }
    }
}

/// Seconds since a little before the server's start, as items hold them; zero is never.
pub(super) type Moment = u32;

#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) value: Bytes,
    pub(super) client_flags: u32,
    pub(super) cas: u64,
    pub(super) expires: Moment,
    /// When it was stored, or fetched for the second time.
    pub(super) used: Moment,
    pub(super) fetched: bool,
    pub(super) active: bool,
    /// Somebody was told to fill or refresh it.
    pub(super) token_sent: bool,
    pub(super) stale: bool,
    /// Its key came in base64 and is echoed so.
    pub(super) binary_key: bool,
}

impl Item {
    pub(super) fn new(value: Bytes, expires: Moment) -> Self {
        Self {
            value,
            client_flags: 0,
            cas: 0,
            expires,
            used: 0,
            fetched: false,
            active: false,
            token_sent: false,
            stale: false,
            binary_key: false,
        }
    }
}

/// How a store treats what is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Cas,
}

/// What came of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// Under this CAS number.
    Yes(u64),
    No,
    Exists,
    NotFound,
}

/// One server's items. A map in key order, so that nothing depends on a hash seed.
#[derive(Debug)]
pub(super) struct Store {
    items: BTreeMap<Vec<u8>, Item>,
    last_cas: u64,
    cas_enabled: bool,
    item_size_max: usize,
    /// Whether the memory is used up and nothing can be evicted.
    pub(super) full: bool,
    /// Unix time of the start, less the head start.
    started: i64,
    now: Moment,
    flushed_until: Moment,
    flushed_below_cas: u64,
}

impl Store {
    pub(super) fn new(settings: &Settings, unix_now: i64) -> Self {
        Self {
            items: BTreeMap::new(),
            last_cas: 0,
            cas_enabled: settings.cas_enabled,
            item_size_max: settings.item_size_max,
            full: false,
            started: unix_now - HEAD_START,
            now: HEAD_START as Moment,
            flushed_until: 0,
            flushed_below_cas: 0,
        }
    }

    /// Starts again with the CAS numbers from 1 and the same items, whose own CAS numbers stay what they were.
    pub(super) fn restart_warm(&mut self) {
        self.last_cas = 0;
    }

    /// Moves the clock; it never goes back.
    pub(super) fn set_time(&mut self, unix_now: i64) {
        let moment = Moment::try_from(unix_now - self.started).unwrap_or(self.now);
        self.now = self.now.max(moment);
    }

    pub(super) fn now(&self) -> Moment {
        self.now
    }

    pub(super) fn uptime(&self) -> Moment {
        self.now - (HEAD_START as Moment - FIRST_UPTIME)
    }

    pub(super) fn unix_now(&self) -> i64 {
        self.started + i64::from(self.now)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let size = |(key, item): (&Vec<u8>, &Item)| {
            item_size(key.len(), item.client_flags, item.value.len())
        };
        self.items.iter().map(size).sum()
    }

    /// When an item with this TTL goes: seconds from now, a point in time if there are many, at once if negative.
    pub(super) fn expiry(&self, ttl: i32) -> Moment {
        let ttl = if ttl < 0 {
            LONGEST_RELATIVE + 1
        } else {
            i64::from(ttl)
        };
        if ttl == 0 {
            0
        } else if ttl > LONGEST_RELATIVE {
            // A point before the start is the start, since zero would be never.
            (ttl - self.started).max(1) as Moment
        } else {
            self.now.wrapping_add(ttl as Moment)
        }
    }

    pub(super) fn fits(&self, key: &[u8], client_flags: u32, value_len: usize) -> bool {
        item_size(key.len(), client_flags, value_len) <= self.item_size_max
    }

    /// The item, unless it has expired or was flushed: then it is gone from now on.
    pub(super) fn get(&mut self, key: &[u8]) -> Option<&mut Item> {
        let item = self.items.get(key)?;
        let expired = item.expires != 0 && item.expires <= self.now;
        if expired || self.is_flushed(item) {
            self.items.remove(key);
        }
        self.items.get_mut(key)
    }

    /// Notes that the item was fetched.
    pub(super) fn bump(item: &mut Item, now: Moment) {
        if item.active {
            return;
        }
        if item.fetched {
            item.active = true;
            item.used = now;
        }
        item.fetched = true;
    }

    /// Puts the item there whatever was there before, under a new CAS number.
    pub(super) fn link(&mut self, key: &[u8], mut item: Item) -> &mut Item {
        item.used = self.now;
        item.cas = self.next_cas();
        let slot = self.items.entry(key.to_vec()).insert_entry(item);
        slot.into_mut()
    }

    pub(super) fn next_cas(&mut self) -> u64 {
        if !self.cas_enabled {
            return 0;
        }
        self.last_cas += 1;
        self.last_cas
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> bool {
        self.items.remove(key).is_some()
    }

    /// Stores the item as `mode` says. `expected` is the CAS number asked for, zero for none; `may_be_stale` lets a
    /// lower one through and marks the result.
    pub(super) fn store(
        &mut self,
        key: &[u8],
        mut item: Item,
        mode: Mode,
        expected: u64,
        may_be_stale: bool,
    ) -> Stored {
        // A server without CAS numbers keeps none of what was asked for either.
        let expected = if self.cas_enabled { expected } else { 0 };
        let now = self.now;
        let Some(old) = self.get(key) else {
            return match mode {
                Mode::Set | Mode::Add => Stored::Yes(self.link(key, item).cas),
                Mode::Cas => Stored::NotFound,
                Mode::Replace | Mode::Append | Mode::Prepend => Stored::No,
            };
        };
        match mode {
            Mode::Set | Mode::Replace => {}
            Mode::Add => {
                old.used = now;
                return Stored::No;
            }
            Mode::Cas if expected == 0 => return Stored::Exists,
            Mode::Cas if expected == old.cas => {}
            Mode::Cas if may_be_stale && expected < old.cas => {
                item.expires = old.expires;
                item.token_sent = old.token_sent;
                item.stale = true;
            }
            Mode::Cas => return Stored::Exists,
            Mode::Append | Mode::Prepend if expected != 0 && expected != old.cas => {
                return Stored::Exists;
            }
            Mode::Append | Mode::Prepend => {
                let parts = match mode {
                    Mode::Append => [&old.value[..], &item.value[..]],
                    _ => [&item.value[..], &old.value[..]],
                };
                let mut joined = Item::new(parts.concat().into(), old.expires);
                joined.client_flags = old.client_flags;
                item = joined;
                if !self.fits(key, item.client_flags, item.value.len()) {
                    return Stored::No;
                }
            }
        }
        Stored::Yes(self.link(key, item).cas)
    }

    /// Drops everything stored before this moment, or at this TTL from now.
    pub(super) fn flush(&mut self, ttl: i32) {
        let until = if ttl > 0 { self.expiry(ttl) } else { self.now };
        if self.cas_enabled {
            self.flushed_until = until - 1;
            if self.flushed_until <= self.now {
                self.flushed_below_cas = self.next_cas();
            }
        } else {
            self.flushed_until = until;
        }
    }

    fn is_flushed(&self, item: &Item) -> bool {
        if self.flushed_until == 0 || self.flushed_until > self.now {
            return false;
        }
        item.used <= self.flushed_until
            || (self.flushed_below_cas != 0 && item.cas != 0 && item.cas < self.flushed_below_cas)
    }
}

fn item_size(key_len: usize, client_flags: u32, value_len: usize) -> usize {
    let flags_len = if client_flags == 0 { 0 } else { 4 };
    // The value is kept with its line end.
    ITEM_OVERHEAD + key_len + flags_len + value_len + 2
}
