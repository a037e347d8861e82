//! One server: its connections, and whether it is worth asking.
//!
//! A connection is dialled when it is first needed, by a task that then serves it to its end; callers wait for the dial
//! at most as long as it may take. After a failed dial there is a pause. A server that leaves a caller without a byte
//! for the caller's whole deadline is taken for down at once, one that still answers after five failures; from then on
//! calls fail at once, and a probe of its own asks it: no call is ever the one to find out. So a server that hangs delays
//! only what was already under way.
//!
//! A server that falls silent is asked as soon as it is taken for down, so that one that was merely held up for a moment is
//! used again when it answers. One that was down shortly before, or can't be reached, is asked after a second, and so are
//! all from then on: a server that answers too late each time costs a deadline a second, not one after the other.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use larder_core::{
    Error, ErrorKind, Instant, Result, Rt, ServerAnswer, ServerCheck, ServerStats, Trips,
};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use super::config::MemcachedConfig;
use super::connection::{self, Connection, Counters, End, Limit, Setting, Watch};
use super::exchange::{Expects, Failure};
use super::handshake::{Access, Greeted};
use super::wire::Wire;
use crate::transport::{Address, Io, Transport};

/// Failures in a row after which a server that still answers is taken for down.
const FAILURES: u32 = 5;

/// How often a server that is down is asked.
const PROBE: Duration = Duration::from_secs(1);

/// A server that wasn't taken for down for this long is asked at once.
const TRUSTED_AFTER: Duration = Duration::from_secs(10);

/// A bulk connection without a request is closed after this long.
const BULK_IDLE: Duration = Duration::from_secs(60);

/// A connection that ends sooner after its dial than this is no reason to dial again at once.
const SHORT_LIVED: Duration = Duration::from_secs(1);

/// One server of the pool.
pub(super) struct Server {
    me: Weak<Self>,
    /// Its canonical address.
    pub(super) name: Arc<str>,
    address: Address,
    pub(super) config: Arc<MemcachedConfig>,
    pub(super) wire: Wire,
    pub(super) rt: Rt,
    transport: Arc<dyn Transport>,
    access: Arc<Access>,
    /// The connections for small calls, and at the end the one for bulk calls.
    slots: Box<[Slot]>,
    pub(super) counters: Arc<Counters>,
    /// The longest item, as far as it is known.
    item_size_max: AtomicUsize,
    health: Health,
}

/// A connection, or what becomes one.
struct Slot {
    link: watch::Sender<Link>,
    task: Mutex<Option<AbortHandle>>,
    /// Its last connection was lost, and no other has come in its place.
    is_lost: AtomicBool,
}

enum Link {
    Idle,
    Dialing,
    Up(Arc<Connection>),
    Closed,
}

#[derive(Default)]
struct Health {
    /// The breaker: calls fail at once.
    is_down: AtomicBool,
    /// Whether there is anything to forget when replies come.
    has_failed: AtomicBool,
    closed: AtomicBool,
    /// Who asks the server while it is down.
    probe: Mutex<Option<AbortHandle>>,
    record: Mutex<Record>,
}

#[derive(Default)]
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
enum Suspicion {
    /// An open connection is silent, perhaps for a moment only.
    HeldUp,
    /// It can't be reached, or fails time after time.
    Gone,
}

/// Which of a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// One of those for small calls.
    Single(usize),
    Bulk,
}

impl Server {
    pub(super) fn new(
        address: Address,
        config: Arc<MemcachedConfig>,
        rt: Rt,
        transport: Arc<dyn Transport>,
        access: Arc<Access>,
    ) -> Arc<Self> {
        let slots = (0..=config.connections).map(|_| Slot {
            link: watch::Sender::new(Link::Idle),
            task: Mutex::new(None),
            is_lost: AtomicBool::new(false),
        });
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name: address.to_string().into(),
            address,
            wire: Wire::of(&config),
            rt,
            transport,
            access,
            slots: slots.collect(),
            counters: Arc::default(),
            item_size_max: AtomicUsize::new(config.max_item),
            health: Health::default(),
            config,
        })
    }

    /// The longest item it takes, as far as that is known.
    pub(super) fn item_size_max(&self) -> usize {
        self.item_size_max.load(Ordering::Relaxed)
    }

    /// The lane for a small call about this key.
    pub(super) fn lane_of(&self, key: &[u8]) -> Lane {
        Lane::Single(match self.config.connections {
            1 => 0,
            // Not the hash that chose the server: there the winners' hashes are not evenly spread.
            count => xxhash_rust::xxh3::xxh3_64_with_seed(key, 1) as usize % count,
        })
    }

    fn slot(&self, lane: Lane) -> &Slot {
        &self.slots[match lane {
            Lane::Single(position) => position,
            Lane::Bulk => self.slots.len() - 1,
        }]
    }

    /// An open connection, dialled if need be; fails at once while the server is down.
    pub(super) async fn connected(&self, lane: Lane) -> Result<Arc<Connection>> {
        match self.live(lane) {
            Some(connection) => Ok(connection),
            None if self.health.is_down.load(Ordering::Relaxed) => Err(self.down_error()),
            None => self.dialed(lane).await,
        }
    }

    /// The connection that is open, unless the server is down.
    pub(super) fn live(&self, lane: Lane) -> Option<Arc<Connection>> {
        match self.health.is_down.load(Ordering::Relaxed) {
            true => None,
            false => self.slot(lane).live(),
        }
    }

    /// Another connection than this, which has ended.
    pub(super) async fn reconnected(
        &self,
        lane: Lane,
        ended: &Connection,
    ) -> Result<Arc<Connection>> {
        self.give_up(lane, ended);
        self.connected(lane).await
    }

    /// Makes room for the next connection, since this one takes nothing more.
    fn give_up(&self, lane: Lane, ended: &Connection) {
        // Its task is about to say so itself; whoever comes first does. One that is drained has yet to end.
        if !self.is_closed() {
            self.slot(lane).forget(ended.generation(), &self.health);
        }
    }

    /// The connection with this number, if it is still open.
    pub(super) fn connection_of(&self, generation: u64) -> Option<Arc<Connection>> {
        self.slots
            .iter()
            .filter_map(Slot::live)
            .find(|connection| connection.generation() == generation)
    }

    /// Counts one batch of commands.
    pub(super) fn count_trip(&self, keys: usize, trips: &Trips) {
        self.counters.trips.fetch_add(1, Ordering::Relaxed);
        self.counters.keys.fetch_add(keys as u64, Ordering::Relaxed);
        trips.add(1);
    }

    /// The error of a call whose deadline came before its answer.
    pub(super) fn late(&self, what: &str, patience: Duration) -> Error {
        late(&self.name, what, patience)
    }

    // --- dialling

    async fn dialed(&self, lane: Lane) -> Result<Arc<Connection>> {
        let slot = self.slot(lane);
        let mut link = slot.link.subscribe();
        self.start_dial(lane)?;
        let patience = self.config.connect_timeout + Duration::from_millis(50);
        let dialed = self.rt.timeout(patience, async {
            match link.wait_for(|link| !matches!(link, Link::Dialing)).await {
                Ok(link) => match &*link {
                    Link::Up(connection) => Some(Arc::clone(connection)),
                    _ => None,
                },
                Err(_) => None,
            }
        });
        match dialed.await {
            Some(Some(connection)) => Ok(connection),
            Some(None) => Err(self.last_error()),
            None => Err(self.late("dial", patience)),
        }
    }

    /// Dials unless somebody does, or the last failure is too recent.
    fn start_dial(&self, lane: Lane) -> Result<()> {
        if self.health.closed.load(Ordering::Relaxed) {
            return Err(closed());
        }
        let pause = self.health.record().pause;
        let pauses = pause.is_some_and(|pause| self.rt.now() < pause);
        let slot = self.slot(lane);
        let mut refused = false;
        let starts = slot.link.send_if_modified(|link| {
            let idle = matches!(link, Link::Idle);
            refused = idle && pauses;
            if idle && !pauses {
                *link = Link::Dialing;
            }
            idle && !pauses
        });
        if refused {
            return Err(self.last_error());
        }
        if starts {
            let dial = Dial {
                attempt: Attempt {
                    server: Weak::clone(&self.me),
                    lane,
                    is_over: false,
                },
                name: Arc::clone(&self.name),
                address: self.address.clone(),
                rt: self.rt,
                transport: Arc::clone(&self.transport),
                access: Arc::clone(&self.access),
                patience: self.config.connect_timeout,
            };
            let task = self.rt.spawn_apart(dial.run()).abort_handle();
            *lock(&slot.task) = Some(task);
        }
        Ok(())
    }

    fn setting(&self, lane: Lane) -> Setting<Weak<Self>> {
        Setting {
            rt: self.rt,
            server: Arc::clone(&self.name),
            counters: Arc::clone(&self.counters),
            watch: Weak::clone(&self.me),
            // What a delete may wait for, silence included, no look-up's impatience may end.
            stall: self.config.stall.max(self.config.flush_timeout),
            idle: (lane == Lane::Bulk).then_some(BULK_IDLE),
        }
    }

    /// Says so if this process alone comes near the server's limit.
    fn mind_maxconns(&self, limit: Option<u64>) {
        let ours = self.slots.len() as u64;
        if let Some(limit) = limit
            && ours * 10 > limit.saturating_mul(8)
        {
            tracing::warn!(
                server = %self.name, ours, limit,
                "one process may take more than 80 % of the server's connections; raise -c or lower `connections`"
            );
        }
    }

    fn dial_failed(&self, lane: Lane, error: Error, silent: bool) {
        self.failed(&error, true);
        self.slot(lane).vacate(&self.health);
        if silent {
            self.take_for_down(Suspicion::Gone);
        }
    }

    fn ended(&self, lane: Lane, generation: u64, since: Instant, end: End) {
        if let End::Lost(error) = end {
            let short_lived = self.rt.now().duration_since(since) < SHORT_LIVED;
            self.slot(lane).is_lost.store(true, Ordering::Relaxed);
            self.failed(&error, short_lived);
        }
        self.slot(lane).forget(generation, &self.health);
    }

    // --- health

    fn is_closed(&self) -> bool {
        self.health.closed.load(Ordering::Relaxed)
    }

    fn failed(&self, error: &Error, pause: bool) {
        let mut record = self.health.record();
        record.failures += 1;
        if pause {
            let doubled = self.config.backoff * 2_u32.saturating_pow(record.dials.min(16));
            let longest = doubled.min(self.config.backoff_limit);
            // Jitter keeps the processes of a fleet from dialling in step.
            record.pause = Some(self.rt.now() + longest.mul_f64(0.5 + fastrand::f64() / 2.0));
            record.dials += 1;
        }
        record.last_error = Some(error.clone());
        record.last_trouble = Some((error.clone(), self.rt.now()));
        let failures = record.failures;
        drop(record);
        self.health.has_failed.store(true, Ordering::Relaxed);
        if failures >= FAILURES {
            self.take_for_down(Suspicion::Gone);
        }
    }

    fn take_for_down(&self, suspicion: Suspicion) {
        if self.is_closed() || self.health.is_down.swap(true, Ordering::Relaxed) {
            return;
        }
        self.counters.times_down.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(server = %self.name, error = %self.last_error(), "memcached server is down");
        let now = self.rt.now();
        let before = self.health.record().down_since.replace(now);
        let is_trusted = before.is_none_or(|before| now.duration_since(before) >= TRUSTED_AFTER);
        self.mind_probe(match suspicion {
            Suspicion::HeldUp if is_trusted => Duration::ZERO,
            _ => PROBE,
        });
    }

    /// Sees to it that somebody asks the server while it is down, from then on: a probe ends with the runtime that it was
    /// started on.
    fn mind_probe(&self, first: Duration) {
        let mut probing = lock(&self.health.probe);
        if probing.as_ref().is_none_or(AbortHandle::is_finished) {
            let probe = probe(Weak::clone(&self.me), self.rt, first);
            *probing = Some(self.rt.spawn_apart(probe).abort_handle());
        }
    }

    fn take_for_up(&self) {
        let mut record = self.health.record();
        record.failures = 0;
        record.dials = 0;
        record.pause = None;
        record.last_error = None;
        drop(record);
        if !self.health.is_down.swap(false, Ordering::Relaxed) {
            return;
        }
        tracing::info!(server = %self.name, "memcached server is up again");
    }

    /// What went wrong last, as an error for the next caller.
    pub(super) fn last_error(&self) -> Error {
        let last = self.health.record().last_error.clone();
        last.unwrap_or_else(|| match self.is_closed() {
            true => closed(),
            false => Error::new(
                ErrorKind::Unavailable,
                format!("memcached {}: has no connection", self.name),
            ),
        })
    }

    /// The error of every call while the server is taken for down.
    pub(super) fn down(&self) -> Option<Error> {
        let is_down = self.health.is_down.load(Ordering::Relaxed);
        is_down.then(|| self.down_error())
    }

    fn down_error(&self) -> Error {
        self.mind_probe(PROBE);
        let last = self.last_error();
        Error::with_source(
            ErrorKind::Unavailable,
            format!(
                "memcached {}: taken for down, and asked again every second; last: {last}",
                self.name
            ),
            last,
        )
    }

    /// Whether it answers now, whatever was thought of it before.
    pub(super) async fn ping(&self) -> Result<ServerAnswer> {
        let start = self.rt.now();
        let lane = Lane::Single(0);
        let patience = self.config.connect_timeout;
        let submit = |connection: &Connection| {
            let (answer, answered) = oneshot::channel();
            let limit = Limit::new(self.rt, patience);
            let submitted = connection.submit(limit, None, |output, _| {
                output.extend_from_slice(self.wire.noop());
                Expects::Noop(Some(answer))
            });
            submitted.map(|()| answered)
        };
        let live = self.slot(lane).live();
        let submitted = live.and_then(|connection| match submit(&connection) {
            Ok(answered) => Some((connection, answered)),
            Err(_) => {
                self.give_up(lane, &connection);
                None
            }
        });
        let (connection, answered) = match submitted {
            Some(submitted) => submitted,
            None => {
                self.health.record().pause = None;
                let connection = self.dialed(lane).await?;
                let answered = submit(&connection)?;
                (connection, answered)
            }
        };
        match answered.await {
            Ok(Ok(_)) => {
                if self.health.is_down.load(Ordering::Relaxed) {
                    self.take_for_up();
                }
                Ok(ServerAnswer::new(
                    connection.version.clone(),
                    self.rt.now().duration_since(start),
                ))
            }
            Ok(Err(Failure::Gone(error))) => Err(error),
            Ok(Err(Failure::TimedOut)) => Err(self.late("probe", patience)),
            Err(_) => Err(self.last_error()),
        }
    }

    /// Asks it now.
    pub(super) async fn check(&self) -> ServerCheck {
        ServerCheck::new(&*self.name, self.ping().await)
    }

    /// Takes nothing new, and waits for what is under way, at most until then.
    pub(super) async fn close(&self, deadline: Instant) {
        self.health.closed.store(true, Ordering::Relaxed);
        for slot in &self.slots {
            slot.link.send_if_modified(|link| match link {
                Link::Idle => {
                    *link = Link::Closed;
                    true
                }
                Link::Up(connection) => {
                    connection.drain();
                    false
                }
                Link::Dialing | Link::Closed => false,
            });
        }
        for slot in &self.slots {
            let mut link = slot.link.subscribe();
            let left = deadline.saturating_duration_since(self.rt.now());
            let drained = self.rt.timeout(left, async move {
                // The sender is borrowed from `self`, so it is there.
                let _ = link.wait_for(|link| matches!(link, Link::Closed)).await;
            });
            if drained.await.is_none() {
                if let Some(task) = lock(&slot.task).take() {
                    task.abort();
                }
                slot.link.send_replace(Link::Closed);
            }
        }
    }

    pub(super) fn stats(&self) -> ServerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.counters;
        let mut dialing = false;
        let mut up = false;
        let mut in_flight = 0;
        for slot in &self.slots {
            match &*slot.link.borrow() {
                Link::Up(connection) => {
                    up = true;
                    in_flight += connection.outstanding();
                }
                Link::Dialing => dialing = true,
                Link::Idle | Link::Closed => {}
            }
        }
        let state = match (self.health.is_down.load(Ordering::Relaxed), up, dialing) {
            (true, _, _) => "down",
            (_, true, _) => "up",
            (_, _, true) => "connecting",
            _ => "idle",
        };
        let mut stats = ServerStats::default();
        stats.server = self.name.to_string();
        stats.state = state;
        if let Some((error, at)) = &self.health.record().last_trouble {
            stats.last_error = Some(error.to_string());
            stats.last_error_age_s = Some(self.rt.now().duration_since(*at).as_secs());
        }
        stats.trips = read(&counters.trips);
        stats.keys = read(&counters.keys);
        stats.bytes_out = read(&counters.bytes_out);
        stats.bytes_in = read(&counters.bytes_in);
        stats.in_flight = in_flight;
        stats.connects = read(&counters.connects);
        stats.reconnects = read(&counters.reconnects);
        stats.timeouts = read(&counters.timeouts);
        stats.times_down = read(&counters.times_down);
        stats.protocol_violations = read(&counters.protocol_violations);
        stats.out_of_memory = read(&counters.out_of_memory);
        stats
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Slot {
    #[inline]
    fn live(&self) -> Option<Arc<Connection>> {
        match &*self.link.borrow() {
            Link::Up(connection) => Some(Arc::clone(connection)),
            _ => None,
        }
    }

    /// Makes room for the next connection if this one is still there.
    fn forget(&self, generation: u64, health: &Health) {
        self.link.send_if_modified(|link| match link {
            Link::Up(connection) if connection.generation() == generation => {
                *link = health.vacant();
                true
            }
            _ => false,
        });
    }

    /// Makes room for the next dial if this one led to nothing.
    fn vacate(&self, health: &Health) {
        self.link.send_if_modified(|link| match link {
            Link::Dialing => {
                *link = health.vacant();
                true
            }
            _ => false,
        });
    }
}

impl Health {
    /// What a slot is without a connection. To be asked while the slot is changed, so that a close can't slip in between.
    fn vacant(&self) -> Link {
        match self.closed.load(Ordering::Relaxed) {
            true => Link::Closed,
            false => Link::Idle,
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn late(server: &str, what: &str, patience: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("memcached {server}: no answer to a {what} within {patience:?}"),
    )
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the memcached client is closed")
}

impl Watch for Weak<Server> {
    fn heard(&self) {
        let Some(server) = self.upgrade() else {
            return;
        };
        let health = &server.health;
        if health.has_failed.load(Ordering::Relaxed) {
            health.has_failed.store(false, Ordering::Relaxed);
            let mut record = health.record();
            record.failures = 0;
            record.dials = 0;
        }
    }

    fn missed(&self, silent: bool) {
        let Some(server) = self.upgrade() else {
            return;
        };
        let error = Error::new(
            ErrorKind::Timeout,
            format!(
                "memcached {}: a deadline passed without an answer",
                server.name
            ),
        );
        server.failed(&error, false);
        if silent {
            server.take_for_down(Suspicion::HeldUp);
        }
    }
}

/// Everything a dial needs, so that the pool can be dropped meanwhile.
struct Dial {
    attempt: Attempt,
    name: Arc<str>,
    address: Address,
    rt: Rt,
    transport: Arc<dyn Transport>,
    access: Arc<Access>,
    patience: Duration,
}

impl Dial {
    /// Dials, and serves the connection to its end.
    async fn run(mut self) {
        let opened = self.open().await;
        let lane = self.attempt.lane;
        let Some(server) = self.attempt.server.upgrade() else {
            return;
        };
        let (io, greeted) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.attempt.is_over = true;
                let silent = error.kind() == ErrorKind::Timeout;
                return server.dial_failed(lane, error, silent);
            }
        };
        server.item_size_max.store(
            greeted.item_size_max.min(server.config.max_item),
            Ordering::Relaxed,
        );
        server.counters.connects.fetch_add(1, Ordering::Relaxed);
        if server.slot(lane).is_lost.swap(false, Ordering::Relaxed) {
            server.counters.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        server.mind_maxconns(greeted.maxconns);
        let setting = server.setting(lane);
        let (connection, task) = connection::connection(io, greeted, setting);
        let generation = connection.generation();
        let since = self.rt.now();
        let connection = Arc::new(connection);
        self.attempt.is_over = true;
        let up = Link::Up(Arc::clone(&connection));
        server.slot(lane).link.send_replace(up);
        // A close that came before found nothing to drain, one that comes now finds the connection.
        if server.is_closed() {
            connection.drain();
        }
        drop((connection, server));
        let end = task.run().await;
        if let Some(server) = self.attempt.server.upgrade() {
            server.ended(lane, generation, since, end);
        }
    }

    /// Opens a connection that is of use, as far as there is time for each step; the error is a timeout if there wasn't.
    async fn open(&self) -> Result<(Io, Greeted)> {
        let deadline = self.rt.now() + self.patience;
        let dial = async {
            self.transport.dial(&self.address).await.map_err(|error| {
                Error::with_source(
                    ErrorKind::Unavailable,
                    format!("memcached {}: can't be reached ({error})", self.name),
                    error,
                )
            })
        };
        let io = self.within(deadline, "dial", dial).await?;
        let secure = self.access.secure(io, &self.address);
        let mut io = self.within(deadline, "TLS handshake", secure).await?;
        let greet = self.access.greet(&mut io, &self.name);
        let greeted = self.within(deadline, "first exchange", greet).await?;
        Ok((io, greeted))
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        what: &str,
        step: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let left = deadline.saturating_duration_since(self.rt.now());
        let done = self.rt.timeout(left, step).await;
        done.unwrap_or_else(|| Err(late(&self.name, what, self.patience)))
    }
}

/// A slot's dial. Dropped before it is over, by a runtime that shuts down or a transport that panics, it leaves the slot
/// to the next caller.
struct Attempt {
    server: Weak<Server>,
    lane: Lane,
    is_over: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(server) = self.server.upgrade()
        {
            server.slot(self.lane).vacate(&server.health);
        }
    }
}

/// Asks a server that is down until it answers, for the first time after so long.
async fn probe(server: Weak<Server>, rt: Rt, first: Duration) {
    let mut pause = first;
    loop {
        rt.sleep(pause.mul_f64(0.8 + fastrand::f64() * 0.4)).await;
        pause = PROBE;
        let Some(server) = server.upgrade() else {
            return;
        };
        if server.is_closed() {
            return;
        }
        // A server that answers is taken for up, whoever asked.
        if server.ping().await.is_ok() || !server.health.is_down.load(Ordering::Relaxed) {
            return;
        }
    }
}
