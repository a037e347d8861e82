//! Counting: plain numbers per accessor, tallies per caller, latency histograms.
//!
//! Every counter is a plain number that [`Cache::stats`](crate::Cache::stats) answers; with the feature `metrics` it is
//! also a counter of the `metrics` facade, under the names of `docs/metrics.md`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;

use crate::contract::{BackendStats, CallStats, Error, ErrorKind, Lost, Trips};
use crate::entry::Rejection;
use crate::generation::{LiveGeneration, Uncached};
use crate::read::Verdict;
use crate::write::{Backlog, Undelivered};
use crate::{HitChecks, TiersStats};

/// A number that only grows.
#[derive(Debug)]
pub(crate) struct Counter {
    plain: AtomicU64,
    #[cfg(feature = "metrics")]
    facade: metrics::Counter,
}

impl Counter {
    /// The counter of this name in the facade, with these labels.
    #[cfg_attr(
        not(feature = "metrics"),
        expect(unused_variables, reason = "only the facade takes names")
    )]
    fn new(name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        Self {
            plain: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            facade: metrics::counter!(name, owned(labels)),
        }
    }

    pub(crate) fn add(&self, count: u64) {
        self.plain.fetch_add(count, Ordering::Relaxed);
        self.publish(count);
    }

    /// Adds to the counter of the facade alone.
    #[cfg_attr(
        not(feature = "metrics"),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without the facade there is nothing to do"
        )
    )]
    fn publish(&self, count: u64) {
        #[cfg(feature = "metrics")]
        self.facade.increment(count);
    }

    fn get(&self) -> u64 {
        self.plain.load(Ordering::Relaxed)
    }
}

/// Labels as the facade keeps them.
#[cfg(feature = "metrics")]
fn owned(labels: &[(&'static str, &str)]) -> Vec<metrics::Label> {
    let owned =
        |(name, value): &(&'static str, &str)| metrics::Label::new(*name, (*value).to_owned());
    labels.iter().map(owned).collect()
}

/// Buckets of a histogram: four to a power of two, from 1 ns to 18 minutes.
const BUCKETS: usize = 160;

/// How long something took, as counts in buckets that are a quarter of a power of two wide.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
    #[cfg(feature = "metrics")]
    facade: metrics::Histogram,
}

impl Histogram {
    #[cfg_attr(
        not(feature = "metrics"),
        expect(unused_variables, reason = "only the facade takes names")
    )]
    fn new(name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            nanos: AtomicU64::new(0),
            #[cfg(feature = "metrics")]
            facade: metrics::histogram!(name, owned(labels)),
        }
    }

    pub(crate) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        #[cfg(feature = "metrics")]
        self.facade.record(duration.as_secs_f64());
    }

    /// The upper end of the bucket in which this share of the durations lies; zero while nothing was recorded.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let total: u64 = counts.iter().sum();
        let rank = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Duration::from_nanos(upper_end(index));
            }
        }
        Duration::ZERO
    }

    fn snapshot(&self) -> Latency {
        let micros = |duration: Duration| duration.as_nanos() as f64 / 1_000.0;
        let count: u64 = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum();
        Latency {
            count,
            sum_us: self.nanos.load(Ordering::Relaxed) as f64 / 1_000.0,
            p50_us: micros(self.quantile(0.50)),
            p99_us: micros(self.quantile(0.99)),
        }
    }
}

/// Which bucket this many nanoseconds fall into: the power of two, then its quarter.
fn bucket(nanos: u64) -> usize {
    if nanos < 4 {
        return nanos as usize;
    }
    let power = nanos.ilog2() as usize;
    let quarter = (nanos >> (power - 2)) as usize & 3;
    (power * 4 + quarter - 4).min(BUCKETS - 1)
}

/// The first number of nanoseconds that falls into the next bucket.
fn upper_end(bucket: usize) -> u64 {
    if bucket < 4 {
        return bucket as u64 + 1;
    }
    let (power, quarter) = ((bucket + 4) / 4, (bucket + 4) % 4);
    (5 + quarter as u64) << (power - 2)
}

/// A latency histogram in plain numbers; quantiles are exact to a quarter of a power of two.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Their sum in microseconds.
    pub sum_us: f64,
    /// Half of them took at most this many microseconds.
    pub p50_us: f64,
    /// 99 in 100 of them took at most this many microseconds.
    pub p99_us: f64,
}

macro_rules! accessor_counters {
    ($($(#[doc = $doc:literal])+ $field:ident = $metric:literal $({$($label:literal: $value:literal),+})?;)*) => {
        /// What one accessor counts.
        #[derive(Debug)]
        pub(crate) struct AccessorCounters {
            name: &'static str,
            /// Trips to the backend; shared with the backend through [`Trips`].
            trips: Arc<AtomicU64>,
            pub(crate) read_latency: Histogram,
            pub(crate) load_latency: Histogram,
            $(pub(crate) $field: Counter,)*
        }

        impl AccessorCounters {
            pub(crate) fn new(name: &'static str) -> Self {
                Self {
                    name,
                    trips: Arc::default(),
                    read_latency: Histogram::new("larder_read_seconds", &[("accessor", name)]),
                    load_latency: Histogram::new("larder_load_seconds", &[("accessor", name)]),
                    $($field: Counter::new($metric, &[("accessor", name) $($(, ($label, $value))+)?]),)*
                }
            }

            pub(crate) fn snapshot(&self) -> AccessorStats {
                let mut stats = AccessorStats {
                    name: self.name,
                    trips: self.trips.load(Ordering::Relaxed),
                    read_latency: self.read_latency.snapshot(),
                    load_latency: self.load_latency.snapshot(),
                    $($field: self.$field.get(),)*
                };
                stats.keys += stats.tier_hits;
                stats
            }
        }

        /// Plain numbers about one accessor, since the cache was built.
        #[derive(Clone, Debug, Serialize)]
        #[non_exhaustive]
        pub struct AccessorStats {
            /// The data set's name.
            pub name: &'static str,
            /// Exchanges with the store.
            pub trips: u64,
            /// How long reads took that asked the store, whole calls.
            pub read_latency: Latency,
            /// How long loads took, from the connection to the last row.
            pub load_latency: Latency,
            $($(#[doc = $doc])+ pub $field: u64,)*
        }
    };
}

accessor_counters! {
    /// Keys asked for through the cache.
    keys = "larder_keys_total";
    /// Keys answered by the in-process tier of the data set, without asking the store.
    tier_hits = "larder_tier_lookups_total" {"outcome": "hit"};
    /// Keys that the tier hadn't.
    tier_misses = "larder_tier_lookups_total" {"outcome": "miss"};
    /// Keys that the tier sent past the store, since their flush wasn't confirmed.
    tier_distrusted = "larder_tier_lookups_total" {"outcome": "distrusted"};
    /// Keys read past the store, since a flush of theirs, or of their server, waits.
    held = "larder_keys_held_total";
    /// Values that aren't stored, since their own flush plan wouldn't flush the key they were asked under.
    refused_unflushable = "larder_fills_total" {"outcome": "refused", "reason": "unflushable"};
    /// Values that the tier didn't keep: no room for them.
    tier_refused = "larder_tier_refusals_total" {"reason": "no_room"};
    /// Values that the tier didn't keep: their key was dropped after their read began, or the request was over.
    tier_too_late = "larder_tier_refusals_total" {"reason": "too_late"};
    /// Keys answered with a stored value.
    hits = "larder_lookups_total" {"outcome": "hit"};
    /// Keys answered with a stored absence.
    absent = "larder_lookups_total" {"outcome": "absent"};
    /// Keys that had to be loaded.
    misses = "larder_lookups_total" {"outcome": "miss"};
    /// Look-ups that found somebody else's lease.
    busy = "larder_lookups_total" {"outcome": "busy"};
    /// Look-ups that failed: the store was in trouble.
    failed = "larder_lookups_total" {"outcome": "error"};
    /// Keys read with the cache bypassed, by order or because they can't be cached.
    bypassed = "larder_lookups_total" {"outcome": "bypassed"};
    /// Bytes of the entries that were read, with their envelopes, as the store has them.
    read_bytes = "larder_entry_bytes_total" {"direction": "read"};
    /// Bytes of the entries that were handed over to be stored.
    filled_bytes = "larder_entry_bytes_total" {"direction": "filled"};
    /// Keys answered from a load that another call had started.
    shared = "larder_shared_total";
    /// Calls of the loader.
    loads = "larder_loads_total";
    /// Values that loads answered.
    loaded = "larder_loaded_total" {"outcome": "found"};
    /// Keys without a row.
    loaded_absent = "larder_loaded_total" {"outcome": "absent"};
    /// Rows that nobody asked for.
    loaded_extra = "larder_loaded_total" {"outcome": "extra"};
    /// Loads that the loader, or its connection, failed.
    load_errors = "larder_load_failures_total" {"reason": "loader"};
    /// Loads that panicked.
    load_panics = "larder_load_failures_total" {"reason": "panic"};
    /// Loads that took longer than the accessor's `LOAD_TIMEOUT`.
    load_timeouts = "larder_load_failures_total" {"reason": "timeout"};
    /// Loads that found no place below the caps in time.
    load_overloads = "larder_load_failures_total" {"reason": "overloaded"};
    /// Fills that were stored.
    fills_stored = "larder_fills_total" {"outcome": "stored"};
    /// Fills lost to a delete, an eviction or another lease.
    fills_lost_voided = "larder_fills_total" {"outcome": "lost", "reason": "voided"};
    /// Fills lost because the load took longer than the lease.
    fills_lost_expired = "larder_fills_total" {"outcome": "lost", "reason": "expired"};
    /// Fills lost because the connection that won the lease was gone.
    fills_lost_connection_gone = "larder_fills_total" {"outcome": "lost", "reason": "connection_gone"};
    /// Fills that the store failed.
    fills_failed = "larder_fills_total" {"outcome": "failed"};
    /// Values not stored: larger than `MAX_VALUE`.
    refused_too_large = "larder_fills_total" {"outcome": "refused", "reason": "too_large"};
    /// Values not stored: the codec, or the stored form, refused them.
    refused_codec = "larder_fills_total" {"outcome": "refused", "reason": "codec"};
    /// Entries read as misses: their tag doesn't match their bytes, their key or their type.
    rejected_damaged = "larder_entries_rejected_total" {"reason": "damaged"};
    /// Entries read as misses: not an entry of this format.
    rejected_foreign = "larder_entries_rejected_total" {"reason": "foreign"};
    /// Entries read as misses: compressed with a dictionary this process hasn't.
    rejected_dictionary = "larder_entries_rejected_total" {"reason": "dictionary"};
    /// Entries read as misses: larger than `MAX_VALUE`.
    rejected_too_large = "larder_entries_rejected_total" {"reason": "too_large"};
    /// Entries read as misses: neither the codec nor the stored form could read them.
    rejected_undecodable = "larder_entries_rejected_total" {"reason": "undecodable"};
    /// Entries read as misses: older than their TTL.
    rejected_expired = "larder_entries_rejected_total" {"reason": "expired"};
    /// Entries read as misses: so far past their TTL that a clock must be wrong.
    clock_skew = "larder_entries_rejected_total" {"reason": "clock_skew"};
    /// Entries served though they were filled in the future: a clock is wrong.
    from_future = "larder_entries_from_future_total";
    /// Leases of others taken over because they grew old.
    taken_over = "larder_taken_over_total";
    /// Keys flushed.
    flushed = "larder_flushed_keys_total" {"outcome": "confirmed"};
    /// Keys whose flush some server didn't confirm.
    flush_failures = "larder_flushed_keys_total" {"outcome": "failed"};
    /// Hits that were checked, and are what the source has.
    checks_fresh = "larder_hit_checks_total" {"outcome": "fresh"};
    /// Hits that were checked, and aren't.
    checks_stale = "larder_hit_checks_total" {"outcome": "stale"};
    /// Hits whose key was flushed, or filled anew, while they were checked.
    checks_excluded = "larder_hit_checks_total" {"outcome": "excluded"};
    /// Hits that couldn't be checked: the source or the store failed.
    checks_failed = "larder_hit_checks_total" {"outcome": "failed"};
    /// Hits that were chosen and not checked, since others were being.
    checks_skipped = "larder_hit_checks_total" {"outcome": "skipped"};
}

impl AccessorCounters {
    /// Counts keys that the tier answered. They were asked for like all others, which is added up when somebody wants
    /// to know: a second counter would be felt by a hit.
    pub(crate) fn count_tier_hits(&self, hits: u64) {
        self.tier_hits.add(hits);
        self.keys.publish(hits);
    }

    pub(crate) fn rejected(&self, rejection: Rejection) {
        let counter = match rejection {
            Rejection::Damaged => &self.rejected_damaged,
            Rejection::Foreign => &self.rejected_foreign,
            Rejection::Dictionary => &self.rejected_dictionary,
            Rejection::TooLarge => &self.rejected_too_large,
            Rejection::Undecodable => &self.rejected_undecodable,
        };
        counter.add(1);
    }

    pub(crate) fn lost(&self, lost: Lost) {
        let counter = match lost {
            Lost::Voided => &self.fills_lost_voided,
            Lost::Expired => &self.fills_lost_expired,
            Lost::ConnectionGone => &self.fills_lost_connection_gone,
        };
        counter.add(1);
    }

    /// How many hits were stale, and how many were compared.
    pub(crate) fn checked(&self) -> (u64, u64) {
        let stale = self.checks_stale.get();
        (stale, stale + self.checks_fresh.get())
    }

    pub(crate) fn count_checked(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Fresh => &self.checks_fresh,
            Verdict::Stale => &self.checks_stale,
            Verdict::Excluded => &self.checks_excluded,
            Verdict::Failed => &self.checks_failed,
            Verdict::Skipped => &self.checks_skipped,
        };
        counter.add(1);
    }

    /// Where a call for this caller counts its trips: here, and in the caller's tally.
    pub(crate) fn trips(&self, tally: Option<&Tally>) -> Trips {
        Trips::into_both(
            Arc::clone(&self.trips),
            tally.map(|tally| Arc::clone(&tally.trips)),
        )
    }
}

/// What an observed backend counts of one kind of call.
#[derive(Debug)]
pub(crate) struct CallCounters {
    command: &'static str,
    latency: Histogram,
    timed_out: Counter,
    unavailable: Counter,
    refused: Counter,
    abandoned: Counter,
}

impl CallCounters {
    /// Those of this command of a store.
    pub(crate) fn new(store: &str, command: &'static str) -> Self {
        let labels = [("store", store), ("command", command)];
        let failures = |reason| {
            Counter::new(
                "larder_request_failures_total",
                &[labels[0], labels[1], ("reason", reason)],
            )
        };
        Self {
            command,
            latency: Histogram::new("larder_request_seconds", &labels),
            timed_out: failures("timeout"),
            unavailable: failures("unavailable"),
            refused: failures("refused"),
            abandoned: Counter::new("larder_requests_abandoned_total", &labels),
        }
    }

    pub(crate) fn command(&self) -> &'static str {
        self.command
    }

    pub(crate) fn took(&self, duration: Duration) {
        self.latency.record(duration);
    }

    pub(crate) fn failed(&self, error: &Error) {
        let counter = match error.kind() {
            ErrorKind::Timeout => &self.timed_out,
            ErrorKind::Unavailable => &self.unavailable,
            _ => &self.refused,
        };
        counter.add(1);
    }

    pub(crate) fn abandoned(&self) {
        self.abandoned.add(1);
    }

    pub(crate) fn snapshot(&self) -> CallStats {
        CallStats {
            command: self.command,
            latency: self.latency.snapshot(),
            timed_out: self.timed_out.get(),
            unavailable: self.unavailable.get(),
            refused: self.refused.get(),
            abandoned: self.abandoned.get(),
        }
    }
}

/// Plain numbers about a cache and its backend.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// One per data set that was registered or used, by name.
    pub accessors: Vec<AccessorStats>,
    /// How many hits are stale, as far as the checks of some tell; `None` if
    /// [none is checked](crate::CacheBuilder::check_hits).
    pub hit_checks: Option<HitChecks>,
    /// The in-process tiers, if the cache has any.
    pub tiers: Option<TiersStats>,
    /// The backend's own.
    pub backend: BackendStats,
    /// Commits, and what became of their flushes.
    pub writes: WriteStats,
    /// The generations that are live, for a source with an outbox.
    pub generations: Vec<LiveGeneration>,
    /// The data sets that are read past the store, since a live generation couldn't flush them.
    pub uncached: HashMap<String, Uncached>,
}

/// Counts writes.
#[derive(Debug)]
pub(crate) struct WriteCounters {
    trips: Arc<AtomicU64>,
    pub(crate) commits: Counter,
    pub(crate) failed: Counter,
    pub(crate) unknown: Counter,
    pub(crate) refused: Counter,
    pub(crate) dropped: Counter,
    pub(crate) fresh: Counter,
    pub(crate) pending: Counter,
    pub(crate) relayed: Counter,
    pub(crate) servers_held: Counter,
    backlog: Mutex<Option<Backlog>>,
}

impl Default for WriteCounters {
    fn default() -> Self {
        let commit = |outcome| Counter::new("larder_commits_total", &[("outcome", outcome)]);
        let flush = |outcome| Counter::new("larder_flushes_total", &[("outcome", outcome)]);
        Self {
            trips: Arc::default(),
            commits: commit("committed"),
            failed: commit("failed"),
            unknown: commit("unknown"),
            refused: commit("refused"),
            dropped: commit("dropped"),
            fresh: flush("fresh"),
            pending: flush("pending"),
            relayed: Counter::new("larder_outbox_rows_relayed_total", &[]),
            servers_held: Counter::new("larder_servers_held_total", &[]),
            backlog: Mutex::default(),
        }
    }
}

impl WriteCounters {
    pub(crate) fn trips(&self, tally: Option<&Arc<Tally>>) -> Trips {
        Trips::into_both(
            Arc::clone(&self.trips),
            tally.map(|tally| Arc::clone(&tally.trips)),
        )
    }

    pub(crate) fn set_backlog(&self, backlog: Backlog) {
        *self.backlog.lock().unwrap_or_else(PoisonError::into_inner) = Some(backlog);
    }

    /// The numbers, with what waits now.
    pub(crate) fn snapshot(&self, waiting: usize, undelivered: &Undelivered) -> WriteStats {
        WriteStats {
            trips: self.trips.load(Ordering::Relaxed),
            commits: self.commits.get(),
            failed: self.failed.get(),
            unknown: self.unknown.get(),
            refused: self.refused.get(),
            dropped: self.dropped.get(),
            fresh: self.fresh.get(),
            pending: self.pending.get(),
            relayed: self.relayed.get(),
            servers_held: self.servers_held.get(),
            waiting,
            held_keys: undelivered.keys(),
            held_accessors: undelivered.accessors(),
            held_servers: undelivered.servers(),
            outbox: *self.backlog.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// Plain numbers about commits and flushes, since the cache was built.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WriteStats {
    /// Exchanges with the store for flushes.
    pub trips: u64,
    /// Transactions that were committed.
    pub commits: u64,
    /// Commits that the database refused.
    pub failed: u64,
    /// Commits that aren't known to have succeeded or failed.
    pub unknown: u64,
    /// Commits that larder refused.
    pub refused: u64,
    /// Transactions that were dropped with changes.
    pub dropped: u64,
    /// Flushes that were confirmed at once.
    pub fresh: u64,
    /// Flushes that weren't.
    pub pending: u64,
    /// Rows of the outbox that this process delivered for whoever wrote them.
    pub relayed: u64,
    /// How often a server was away, so that it wasn't read until it was known what to flush there.
    pub servers_held: u64,
    /// Flushes of this process that wait now.
    pub waiting: usize,
    /// Keys that this process reads from the source now, since their flush waits.
    pub held_keys: usize,
    /// Data sets that it reads from the source now, since too many of their keys wait.
    pub held_accessors: Vec<String>,
    /// Servers, by their place in the backend's, that it doesn't read now.
    pub held_servers: Vec<usize>,
    /// What waits in the outbox, as of the last look, which is made every 10 s; see [`Cache::backlog`](crate::Cache::backlog).
    pub outbox: Option<Backlog>,
}

/// What the reads and writes through one clone of a cache have cost.
///
/// [`Cache::tallied`](crate::Cache::tallied) makes one: for a request's response headers, for a test that counts trips.
/// A load is charged to the call that started it; whoever joins it counts `shared`.
#[derive(Debug, Default)]
pub struct Tally {
    trips: Arc<AtomicU64>,
    /// Without those that a tier answered.
    keys: AtomicU64,
    tier_hits: AtomicU64,
    hits: AtomicU64,
    absent: AtomicU64,
    misses: AtomicU64,
    shared: AtomicU64,
    loads: AtomicU64,
    loaded: AtomicU64,
    load_nanos: AtomicU64,
    read_nanos: AtomicU64,
    unsettled: AtomicUsize,
    settled: Notify,
}

macro_rules! tally_reads {
    ($($(#[doc = $doc:literal])+ $name:ident;)*) => {$(
        $(#[doc = $doc])+
        pub fn $name(&self) -> u64 {
            self.$name.load(Ordering::Relaxed)
        }
    )*};
}

impl Tally {
    tally_reads! {
        /// Exchanges with the store.
        trips;
        /// Keys answered by an in-process tier.
        tier_hits;
        /// Keys answered with a stored value.
        hits;
        /// Keys answered with a stored absence.
        absent;
        /// Keys that had to be loaded.
        misses;
        /// Keys answered from a load that somebody else started.
        shared;
        /// Calls of loaders.
        loads;
        /// Values that loads answered.
        loaded;
    }

    /// How long its loads took together.
    pub fn load_time(&self) -> Duration {
        Duration::from_nanos(self.load_nanos.load(Ordering::Relaxed))
    }

    /// Keys asked for.
    pub fn keys(&self) -> u64 {
        self.keys.load(Ordering::Relaxed) + self.tier_hits()
    }

    /// How long its reads took together, loads included.
    pub fn read_time(&self) -> Duration {
        Duration::from_nanos(self.read_nanos.load(Ordering::Relaxed))
    }

    /// Waits until every fill, release and flush that was charged here has its answer.
    ///
    /// Callers get their values once the fill is handed to the connection; a test that asks the store itself waits here.
    pub async fn settled(&self) {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if self.unsettled.load(Ordering::Acquire) == 0 {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn count_reads(&self, keys: u64, hits: u64, absent: u64, misses: u64, shared: u64) {
        for (counter, count) in [
            (&self.keys, keys),
            (&self.hits, hits),
            (&self.absent, absent),
            (&self.misses, misses),
            (&self.shared, shared),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn count_tier_hits(&self, hits: u64) {
        self.tier_hits.fetch_add(hits, Ordering::Relaxed);
    }

    pub(crate) fn count_read_time(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.read_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn count_load(&self, loaded: u64, took: Duration) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.loaded.fetch_add(loaded, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.load_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Something is under way that [`Tally::settled`] waits for, until the guard is dropped.
    pub(crate) fn unsettled(self: &Arc<Self>) -> Unsettled {
        self.unsettled.fetch_add(1, Ordering::Relaxed);
        Unsettled(Arc::clone(self))
    }
}

/// Keeps a tally from being settled.
#[derive(Debug)]
pub(crate) struct Unsettled(Arc<Tally>);

impl Drop for Unsettled {
    fn drop(&mut self) {
        if self.0.unsettled.fetch_sub(1, Ordering::Release) == 1 {
            self.0.settled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_duration_without_gaps() {
        let mut last = 0;
        for nanos in (0..10_000).chain((14..40).map(|power| 1 << power)) {
            let bucket = bucket(nanos);
            assert!(
                bucket == last || bucket == last + 1 || nanos >= 10_000,
                "{nanos}"
            );
            assert!(
                nanos < upper_end(bucket),
                "{nanos} is beyond the end of its bucket {bucket}"
            );
            last = bucket;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_exact_to_a_quarter_of_a_power_of_two() {
        let histogram = Histogram::new("test", &[]);
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.5, 500.0), (0.99, 990.0)] {
            let answer = histogram.quantile(share).as_nanos() as f64 / 1_000.0;
            assert!((exact..exact * 1.25).contains(&answer), "{share}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_tally_settles_when_the_last_guard_is_dropped() {
        let tally = Arc::new(Tally::default());
        tally.settled().await;
        let guards = [tally.unsettled(), tally.unsettled()];
        let waiter = crate::Rt::new().spawn({
            let tally = Arc::clone(&tally);
            async move { tally.settled().await }
        });
        drop(guards);
        waiter.await.expect("the waiter is woken");
    }
}
