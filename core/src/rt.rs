//! Time and tasks: the only way core and backends reach either.
//!
//! Everything else in larder calls these, so that a test that pauses tokio's clock pauses all of larder. Clippy refuses
//! the originals elsewhere (`clippy.toml`).
#![expect(
    clippy::disallowed_methods,
    reason = "this is the one place that calls the originals"
)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

pub use tokio::time::Instant;

/// Time and tasks, as a cheap value that the builder and the backends are given.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::time::{Duration, SystemTime};
/// use larder_core::Rt;
///
/// // In a test with tokio's clock paused, the wall clock follows it.
/// let rt = Rt::following_tokio(SystemTime::UNIX_EPOCH);
/// tokio::time::advance(Duration::from_secs(60)).await;
/// assert_eq!(rt.wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(60));
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Rt {
    wall: Wall,
}

#[derive(Clone, Copy, Debug, Default)]
enum Wall {
    #[default]
    System,
    /// Started at `start` when tokio's clock stood at `zero`.
    Tokio { start: SystemTime, zero: Instant },
    /// The system's, and as far ahead of it as it was moved.
    Movable(&'static Moved),
}

/// How far a clock was moved, and who waits for it.
#[derive(Debug, Default)]
struct Moved {
    nanos: AtomicU64,
    again: Notify,
}

/// Moves the clocks of one [`Rt`], which a test has from [`Rt::movable`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use larder_core::Rt;
///
/// let (rt, clock) = Rt::movable();
/// let before = rt.wall();
/// clock.advance(Duration::from_secs(7 * 24 * 3600)); // nothing sleeps, and no other cache sees it
/// assert!(rt.wall() >= before + Duration::from_secs(7 * 24 * 3600));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Clock(&'static Moved);

impl Clock {
    /// Moves the clocks ahead by this much; who sleeps until a moment that is over then, wakes.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.0.again.notify_waiters();
    }

    /// How far they were moved.
    pub fn ahead(&self) -> Duration {
        self.0.ahead()
    }
}

impl Moved {
    fn ahead(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

impl Rt {
    /// The system's clocks and tokio's tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// A wall clock that reads `start` now and moves with tokio's clock, paused or not.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime whose clock is paused, as [`Instant::now`] does there.
    pub fn following_tokio(start: SystemTime) -> Self {
        Self {
            wall: Wall::Tokio {
                start,
                zero: Instant::now(),
            },
        }
    }

    /// The system's clocks, which the [`Clock`] beside it moves ahead: for tests whose database waits in real time, which
    /// tokio's paused clock would cut short.
    ///
    /// What waits for an answer ([`Rt::timeout`]) isn't cut short by moving them. Each call leaks a few bytes.
    pub fn movable() -> (Self, Clock) {
        let moved: &'static Moved = Box::leak(Box::default());
        let wall = Wall::Movable(moved);
        (Self { wall }, Clock(moved))
    }

    /// The monotonic clock.
    pub fn now(&self) -> Instant {
        match self.wall {
            Wall::System | Wall::Tokio { .. } => Instant::now(),
            Wall::Movable(moved) => Instant::now() + moved.ahead(),
        }
    }

    /// The wall clock.
    pub fn wall(&self) -> SystemTime {
        match self.wall {
            Wall::System => SystemTime::now(),
            Wall::Tokio { start, zero } => start + Instant::now().duration_since(zero),
            Wall::Movable(moved) => SystemTime::now() + moved.ahead(),
        }
    }

    /// A monotonic clock that also counts while the machine is suspended, from some moment on.
    ///
    /// Where the system has none, it is the monotonic clock.
    pub fn awake(&self) -> Duration {
        match self.wall {
            Wall::System => boot_time(),
            Wall::Tokio { zero, .. } => Instant::now().duration_since(zero),
            Wall::Movable(moved) => boot_time() + moved.ahead(),
        }
    }

    /// Waits this long.
    pub async fn sleep(&self, duration: Duration) {
        match self.wall {
            Wall::System | Wall::Tokio { .. } => tokio::time::sleep(duration).await,
            Wall::Movable(_) => self.sleep_until(self.now() + duration).await,
        }
    }

    /// Waits until then.
    pub async fn sleep_until(&self, deadline: Instant) {
        let Wall::Movable(moved) = self.wall else {
            return tokio::time::sleep_until(deadline).await;
        };
        loop {
            let mut again = pin!(moved.again.notified());
            // From here on a move is noticed, so that what is left is not out of date.
            again.as_mut().enable();
            let left = deadline.saturating_duration_since(self.now());
            if tokio::time::timeout(left, again).await.is_err() {
                return;
            }
        }
    }

    /// The future's answer, or `None` if it takes longer than this.
    pub async fn timeout<F: Future + Send>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }

    /// Runs the future as a task of its own, in the caller's span.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(future.in_current_span())
    }

    /// Runs the future as a task of its own, in no span, if there is a runtime: for what is tidied up when something is
    /// dropped.
    pub fn spawn_if_running<F>(&self, future: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        if tokio::runtime::Handle::try_current().is_ok() {
            drop(self.spawn_apart(future));
        }
    }

    /// Starts a stretch of work that gives other tasks a turn from time to time.
    pub fn turn(&self) -> Turn {
        Turn {
            rt: *self,
            since: self.now(),
        }
    }

    /// Runs the future as a task of its own, in no span: for what outlives the caller who happened to need it first.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn_apart<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(future)
    }

    /// Does what blocks (files, a library that waits) on a thread where it keeps no task waiting, in the caller's span.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn_blocking<F, T>(&self, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let span = tracing::Span::current();
        tokio::task::spawn_blocking(move || span.in_scope(work))
    }

    /// Lets every task that can run have a turn.
    pub async fn yield_now(&self) {
        tokio::task::yield_now().await;
    }
}

#[cfg(target_os = "linux")]
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn boot_time() -> Duration {
    static ZERO: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    ZERO.elapsed()
}

/// The future's output, or `None` if it panics: for what the user wrote.
pub(crate) async fn unwinding<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// How long a task works before others get a turn. A turn is a pass through the runtime's driver: shorter stretches
/// would cost more than the work between them.
const STRETCH: Duration = Duration::from_micros(500);

/// A stretch of work in one task.
///
/// ```
/// # use larder_core::Rt;
/// # async fn open_all(entries: Vec<Vec<u8>>) {
/// let mut turn = Rt::new().turn();
/// for chunk in entries.chunks(32) {
///     // … decode them
///     turn.over().await;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Turn {
    rt: Rt,
    since: Instant,
}

impl Turn {
    /// Lets other tasks run if this one has worked for half a millisecond.
    pub async fn over(&mut self) {
        if self.rt.now().duration_since(self.since) > STRETCH {
            self.rt.yield_now().await;
            self.since = self.rt.now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[tokio::test]
    async fn who_sleeps_wakes_when_its_clock_is_moved() {
        let (rt, clock) = Rt::movable();
        let (other, _) = Rt::movable();
        let before = (rt.now(), rt.wall(), rt.awake());
        let deadline = rt.now() + DAY;
        let sleeper = tokio::spawn(async move { rt.sleep_until(deadline).await });
        rt.yield_now().await;
        clock.advance(DAY / 2);
        rt.yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(DAY / 2);
        sleeper.await.unwrap();
        assert_eq!(clock.ahead(), DAY);
        assert!(rt.now() >= before.0 + DAY);
        assert!(rt.wall() >= before.1 + DAY);
        assert!(rt.awake() >= before.2 + DAY);
        assert!(other.now() < before.0 + DAY);
    }
}
