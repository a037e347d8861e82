//! Whether a server is worth asking: its failures, the pauses between dials, and the breaker.
//!
//! A server that leaves a caller without a byte for the caller's whole deadline is taken for down at once, one that still
//! answers after five failures in a row; from then on calls fail at once, and a probe asks it: no call is ever the one to
//! find out. A server that falls silent is asked as soon as it is taken for down, so that one that was merely held up for a
//! moment is used again when it answers; one that was down shortly before, or can't be reached, is asked after a second, and
//! so are all from then on.
//!
//! This decides and remembers; who dials and who asks is the server's own business.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use larder_core::{Error, ErrorKind, Instant, Rt, ServerStats};
use tokio::task::AbortHandle;

/// Failures in a row after which a server that still answers is taken for down.
const FAILURES: u32 = 5;

/// How often a server that is down is asked.
const PROBE: Duration = Duration::from_secs(1);

/// A server that wasn't taken for down for this long is asked at once.
const TRUSTED_AFTER: Duration = Duration::from_secs(10);

/// A connection that ends sooner after its dial than this is no reason to dial again at once.
pub(crate) const SHORT_LIVED: Duration = Duration::from_secs(1);

/// What is known of one server.
#[derive(Debug)]
pub(crate) struct Health {
    rt: Rt,
    /// What kind of server it is, for messages.
    kind: &'static str,
    name: Arc<str>,
    /// The pause after a failed dial, and the longest it becomes.
    backoff: (Duration, Duration),
    is_down: AtomicBool,
    /// Whether there is anything to forget when replies come.
    has_failed: AtomicBool,
    closed: AtomicBool,
    times_down: AtomicU64,
    record: Mutex<Record>,
    /// Who asks the server while it is down.
    probe: Mutex<Option<AbortHandle>>,
}

#[derive(Debug, Default)]
struct Record {
    failures: u32,
    /// Dials in a row that led to nothing.
    dials: u32,
    /// Not dialled before.
    pause: Option<Instant>,
    /// Why it isn't well, as long as it isn't.
    last_error: Option<Error>,
    /// What went wrong last, and when: also when all is well again.
    last_trouble: Option<(Error, Instant)>,
    /// When it was last taken for down.
    down_since: Option<Instant>,
}

/// Why a server is taken for down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// An open connection is silent, perhaps for a moment only.
    HeldUp,
    /// It can't be reached, or fails time after time.
    Gone,
}

impl Health {
    pub(crate) fn new(
        rt: Rt,
        kind: &'static str,
        name: Arc<str>,
        backoff: (Duration, Duration),
    ) -> Self {
        Self {
            rt,
            kind,
            name,
            backoff,
            is_down: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            times_down: AtomicU64::new(0),
            record: Mutex::default(),
            probe: Mutex::default(),
        }
    }

    /// Whether calls should fail at once.
    #[inline]
    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Nothing is dialled or asked any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the last failed dial is too recent for another.
    pub(crate) fn pauses(&self) -> bool {
        let pause = self.record().pause;
        pause.is_some_and(|pause| self.rt.now() < pause)
    }

    /// Somebody insists on a dial now.
    pub(crate) fn forget_pause(&self) {
        self.record().pause = None;
    }

    /// Notes a failure, and whether the next dial had better wait; says whether it was one too many.
    #[must_use]
    pub(crate) fn failed(&self, error: &Error, pause: bool) -> bool {
        let now = self.rt.now();
        let mut record = self.record();
        record.failures += 1;
        if pause {
            let (first, limit) = self.backoff;
            let doubled = first.saturating_mul(2_u32.saturating_pow(record.dials.min(16)));
            // Jitter keeps the processes of a fleet from dialling in step.
            let pause = doubled.min(limit).mul_f64(0.5 + fastrand::f64() / 2.0);
            record.pause = Some(now + pause);
            record.dials += 1;
        }
        record.last_error = Some(error.clone());
        record.last_trouble = Some((error.clone(), now));
        let failures = record.failures;
        drop(record);
        self.has_failed.store(true, Ordering::Relaxed);
        failures >= FAILURES
    }

    /// Takes it for down; if it wasn't, says when a probe should ask it for the first time.
    #[must_use]
    pub(crate) fn take_for_down(&self, suspicion: Suspicion) -> Option<Duration> {
        if self.is_closed() || self.is_down.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.times_down.fetch_add(1, Ordering::Relaxed);
        let error = self.last_error();
        tracing::warn!(server = %self.name, %error, "{} server is down", self.kind);
        let now = self.rt.now();
        let before = self.record().down_since.replace(now);
        let is_trusted = before.is_none_or(|before| now.duration_since(before) >= TRUSTED_AFTER);
        Some(match suspicion {
            Suspicion::HeldUp if is_trusted => Duration::ZERO,
            _ => PROBE,
        })
    }

    /// It answered a probe, so it is asked again.
    pub(crate) fn take_for_up(&self) {
        let mut record = self.record();
        record.failures = 0;
        record.dials = 0;
        record.pause = None;
        record.last_error = None;
        drop(record);
        if self.is_down.swap(false, Ordering::Relaxed) {
            tracing::info!(server = %self.name, "{} server is up again", self.kind);
        }
    }

    /// It answered a call, so what failed before no longer counts.
    #[inline]
    pub(crate) fn heard(&self) {
        if self.has_failed.load(Ordering::Relaxed) {
            self.has_failed.store(false, Ordering::Relaxed);
            let mut record = self.record();
            record.failures = 0;
            record.dials = 0;
        }
    }

    /// What went wrong last, as an error for the next caller.
    pub(crate) fn last_error(&self) -> Error {
        let last = self.record().last_error.clone();
        last.unwrap_or_else(|| {
            let what = match self.is_closed() {
                true => "this handle was closed",
                false => "has no connection",
            };
            Error::new(
                ErrorKind::Unavailable,
                format!("{} {}: {what}", self.kind, self.name),
            )
        })
    }

    /// The error of every call while it is taken for down.
    pub(crate) fn down_error(&self) -> Error {
        let last = self.last_error();
        Error::with_source(
            ErrorKind::Unavailable,
            format!(
                "{} {}: taken for down, and asked again every second; last: {last}",
                self.kind, self.name
            ),
            last,
        )
    }

    /// Sees to it that there is a probe: one ends with the runtime that it was started on.
    pub(crate) fn mind_probe(&self, start: impl FnOnce() -> AbortHandle) {
        let mut probing = lock(&self.probe);
        if probing.as_ref().is_none_or(AbortHandle::is_finished) {
            *probing = Some(start());
        }
    }

    /// Waits before a probe, with jitter, and says for how long before the next.
    pub(crate) async fn pause_probe(rt: Rt, pause: Duration) -> Duration {
        rt.sleep(pause.mul_f64(0.8 + fastrand::f64() * 0.4)).await;
        PROBE
    }

    /// The pause before the first probe of a server that nobody asks any more.
    pub(crate) fn usual_pause() -> Duration {
        PROBE
    }

    /// Its part of the server's statistics.
    pub(crate) fn report(&self, stats: &mut ServerStats) {
        if let Some((error, at)) = &self.record().last_trouble {
            stats.last_error = Some(error.to_string());
            stats.last_error_age_s = Some(self.rt.now().duration_since(*at).as_secs());
        }
        stats.times_down = self.times_down.load(Ordering::Relaxed);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
