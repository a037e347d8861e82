//! Who may take how many bytes of the budget.
//!
//! In eighths of it: values that caches keep in their handles have at most one, entries the other seven. Values of
//! requests are let in as long as six are free, and never make a value of the deploy tier give way, unless requests
//! together have less than two: then the oldest entries go, whosesoever they are. A value of the deploy tier may always
//! come in, since it is expensive to build and stays useful, and the oldest entries give way to it.

use std::sync::atomic::{AtomicU64, Ordering};

use larder_core::{TierStats, TiersStats};

/// Which of the tiers an entry belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TierOf {
    Request,
    Deploy,
}

/// The budget, and what is taken of it.
#[derive(Debug)]
pub(crate) struct Room {
    budget: u64,
    /// Bytes of all entries, and of those that are about to go in.
    held: AtomicU64,
    /// Bytes of values that caches keep in their handles, and how many there are.
    reserved: AtomicU64,
    reservations: AtomicU64,
    request: Count,
    deploy: Count,
}

/// Numbers of one tier.
#[derive(Debug, Default)]
struct Count {
    entries: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    evicted: AtomicU64,
}

impl Room {
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget,
            held: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            reservations: AtomicU64::new(0),
            request: Count::default(),
            deploy: Count::default(),
        }
    }

    fn eighths(&self, count: u64) -> u64 {
        self.budget / 8 * count
    }

    /// Bytes that entries may have.
    pub(crate) fn for_entries(&self) -> u64 {
        self.eighths(7)
    }

    /// Whether entries have more than that, so that some must go.
    pub(crate) fn is_crowded(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.for_entries()
    }

    /// Room for one entry; `None` if there is none, which isn't counted yet.
    pub(crate) fn admit(&self, tier: TierOf, weight: u64) -> Option<Permit<'_>> {
        let weight = u32::try_from(weight).ok()?;
        let bytes = u64::from(weight);
        let count = self.count(tier);
        let own = count.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let most = match tier {
            TierOf::Request if own > self.eighths(2) => self.eighths(6),
            TierOf::Deploy if bytes > self.eighths(5) => 0,
            _ => u64::MAX,
        };
        let taken = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                let held = held + bytes;
                (held <= most).then_some(held)
            });
        if taken.is_err() {
            count.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        count.entries.fetch_add(1, Ordering::Relaxed);
        Some(Permit {
            room: self,
            tier,
            weight,
        })
    }

    /// Gives back what an entry had.
    pub(crate) fn release(&self, tier: TierOf, weight: u32) {
        let (bytes, count) = (u64::from(weight), self.count(tier));
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        count.bytes.fetch_sub(bytes, Ordering::Relaxed);
        count.entries.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self, tier: TierOf) {
        self.count(tier).refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_evicted(&self, tier: TierOf) {
        self.count(tier).evicted.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes so many bytes for a value that a cache keeps in its handle.
    pub(crate) fn reserve(&self, bytes: u64) -> bool {
        let taken = self
            .reserved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |reserved| {
                let reserved = reserved.checked_add(bytes)?;
                (reserved <= self.eighths(1)).then_some(reserved)
            })
            .is_ok();
        self.reservations.fetch_add(taken.into(), Ordering::Relaxed);
        taken
    }

    pub(crate) fn unreserve(&self, bytes: u64) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
        self.reservations.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> TiersStats {
        let mut stats = TiersStats::default();
        stats.budget = self.budget;
        stats.request = self.request.stats();
        stats.deploy = self.deploy.stats();
        stats.deploy.entries += self.reservations.load(Ordering::Relaxed);
        stats.deploy.bytes += self.reserved.load(Ordering::Relaxed);
        stats
    }

    fn count(&self, tier: TierOf) -> &Count {
        match tier {
            TierOf::Request => &self.request,
            TierOf::Deploy => &self.deploy,
        }
    }
}

impl Count {
    fn stats(&self) -> TierStats {
        let mut stats = TierStats::default();
        stats.entries = self.entries.load(Ordering::Relaxed);
        stats.bytes = self.bytes.load(Ordering::Relaxed);
        stats.refused = self.refused.load(Ordering::Relaxed);
        stats.evicted = self.evicted.load(Ordering::Relaxed);
        stats
    }
}

/// Room for one entry. Dropped before an entry took it, it is given back.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    room: &'a Room,
    pub(crate) tier: TierOf,
    pub(crate) weight: u32,
}

impl Permit<'_> {
    /// The entry has it from now on, and what removes the entry releases it.
    pub(crate) fn hand_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.room.release(self.tier, self.weight);
    }
}
