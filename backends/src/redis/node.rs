//! One server: its connections, and whether it is worth asking.
//!
//! A connection is dialled when it is first needed, by a task that then serves it to its end; callers wait for the dial
//! at most as long as it may take. After a failed dial there is a pause, and a server that hangs or fails is taken for down;
//! see `health`. A reconnect is a new [`Connection`], whose server has introduced itself anew: nothing is carried over from
//! one to the next.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use larder_core::{
    Error, ErrorKind, Instant, Result, Rt, ServerAnswer, ServerCheck, ServerStats, Trips,
};
use redis::Cmd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::config::RedisConfig;
use super::connection::{self, Commands, Connection, Counters, End, Left, Setting};
use super::identity::{Access, Mode};
use crate::health::{Health, SHORT_LIVED, Suspicion};
use crate::transport::{Address, Transport};

/// A bulk connection without a request is closed after this long.
const BULK_IDLE: Duration = Duration::from_secs(60);

/// One server.
pub(crate) struct Node {
    me: Weak<Self>,
    /// Its canonical address.
    pub(crate) name: Arc<str>,
    pub(crate) address: Address,
    pub(crate) config: Arc<RedisConfig>,
    mode: Mode,
    access: Arc<Access>,
    pub(crate) rt: Rt,
    transport: Arc<dyn Transport>,
    /// The connections for small calls, and at the end the one for bulk calls.
    slots: Box<[Slot]>,
    pub(crate) counters: Arc<Counters>,
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

/// Which of a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// One of those for small calls.
    Single(usize),
    Bulk,
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) patience: Duration,
    deadline: Instant,
}

impl Limit {
    pub(crate) fn new(rt: Rt, patience: Duration) -> Self {
        Self {
            patience,
            deadline: rt.now() + patience,
        }
    }

    /// What is left of it.
    pub(crate) fn left(&self, rt: Rt) -> Duration {
        self.deadline.saturating_duration_since(rt.now())
    }
}

impl Node {
    pub(crate) fn new(
        address: Address,
        config: Arc<RedisConfig>,
        mode: Mode,
        rt: Rt,
        transport: Arc<dyn Transport>,
        access: Arc<Access>,
    ) -> Arc<Self> {
        let slots = (0..=config.connections).map(|_| Slot {
            link: watch::Sender::new(Link::Idle),
            task: Mutex::new(None),
            is_lost: AtomicBool::new(false),
        });
        let name: Arc<str> = address.to_string().into();
        let backoff = (config.backoff, config.backoff_limit);
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name: Arc::clone(&name),
            address,
            access,
            mode,
            rt,
            transport,
            slots: slots.collect(),
            counters: Arc::default(),
            health: Health::new(rt, "redis", name, backoff),
            config,
        })
    }

    /// The lane for a small call about this key.
    pub(crate) fn lane_of(&self, key: &[u8]) -> Lane {
        Lane::Single(match self.config.connections {
            1 => 0,
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
    pub(crate) async fn connected(&self, lane: Lane) -> Result<Arc<Connection>> {
        if self.health.is_down() {
            return Err(self.down_error());
        }
        match self.live(lane) {
            Some(connection) => Ok(connection),
            None => Box::pin(self.dialed(lane)).await,
        }
    }

    /// The connection that is open.
    fn live(&self, lane: Lane) -> Option<Arc<Connection>> {
        let slot = self.slot(lane);
        let connection = slot.live()?;
        if !connection.is_over() {
            return Some(connection);
        }
        // Its task is about to say so itself; whoever comes first does. One that is drained has yet to end.
        if !self.health.is_closed() {
            slot.forget(connection.generation(), &self.health);
        }
        None
    }

    /// Counts one batch of commands.
    pub(crate) fn count_trip(&self, keys: usize, trips: &Trips) {
        self.counters.trips.fetch_add(1, Ordering::Relaxed);
        self.counters.keys.fetch_add(keys as u64, Ordering::Relaxed);
        trips.add(1);
    }

    /// The error of a call whose deadline came before its answer.
    pub(crate) fn late(&self, what: &str, patience: Duration) -> Error {
        late(&self.name, what, patience)
    }

    /// Notes that a call was answered.
    #[inline]
    pub(crate) fn heard(&self) {
        self.health.heard();
    }

    /// Notes that a call's deadline came before its answer, and whether any byte had come in between.
    pub(crate) fn missed(&self, error: &Error, silent: bool) {
        self.counters.timeouts.fetch_add(1, Ordering::Relaxed);
        let one_too_many = self.health.failed(error, false);
        if silent {
            self.take_for_down(Suspicion::HeldUp);
        } else if one_too_many {
            self.take_for_down(Suspicion::Gone);
        }
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
            Some(None) => Err(self.health.last_error()),
            None => Err(self.late("dial", patience)),
        }
    }

    /// Dials unless somebody does, or the last failure is too recent.
    fn start_dial(&self, lane: Lane) -> Result<()> {
        if self.health.is_closed() {
            return Err(closed(&self.name));
        }
        let pauses = self.health.pauses();
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
            return Err(self.health.last_error());
        }
        if starts {
            let dial = Dial {
                attempt: Attempt {
                    node: Weak::clone(&self.me),
                    lane,
                    is_over: false,
                },
                address: self.address.clone(),
                access: Arc::clone(&self.access),
                mode: self.mode,
                transport: Arc::clone(&self.transport),
                patience: self.config.connect_timeout,
                setting: Setting {
                    rt: self.rt,
                    server: Arc::clone(&self.name),
                    counters: Arc::clone(&self.counters),
                    // What a delete may wait for, silence included, no look-up's impatience may end.
                    stall: self.config.stall.max(self.config.flush_timeout),
                    idle: (lane == Lane::Bulk).then_some(BULK_IDLE),
                },
            };
            let task = self.rt.spawn_apart(dial.run()).abort_handle();
            *lock(&slot.task) = Some(task);
        }
        Ok(())
    }

    /// Says so if this process alone comes near the server's limit.
    fn mind_maxclients(&self, limit: Option<u64>) {
        let ours = self.slots.len() as u64;
        if let Some(limit) = limit
            && ours * 10 > limit.saturating_mul(8)
        {
            tracing::warn!(
                server = %self.name, ours, limit,
                "one process may take more than 80 % of the server's connections; raise maxclients or lower `connections`"
            );
        }
    }

    fn dial_failed(&self, lane: Lane, error: &Error) {
        let silent = error.kind() == ErrorKind::Timeout;
        let one_too_many = self.health.failed(error, true);
        self.slot(lane).vacate(&self.health);
        if silent || one_too_many {
            self.take_for_down(Suspicion::Gone);
        }
    }

    fn ended(&self, lane: Lane, generation: u64, since: Instant, end: End) {
        if let End::Lost(error) = end {
            let short_lived = self.rt.now().duration_since(since) < SHORT_LIVED;
            self.slot(lane).is_lost.store(true, Ordering::Relaxed);
            if self.health.failed(&error, short_lived) {
                self.take_for_down(Suspicion::Gone);
            }
        }
        self.slot(lane).forget(generation, &self.health);
    }

    // --- health

    fn take_for_down(&self, suspicion: Suspicion) {
        if let Some(first) = self.health.take_for_down(suspicion) {
            self.mind_probe(first);
        }
    }

    fn mind_probe(&self, first: Duration) {
        self.health.mind_probe(|| {
            let probe = probe(Weak::clone(&self.me), first);
            self.rt.spawn_apart(probe).abort_handle()
        });
    }

    fn down_error(&self) -> Error {
        self.mind_probe(Health::usual_pause());
        self.health.down_error()
    }

    /// Whether it answers now, whatever was thought of it before.
    pub(crate) async fn ping(&self) -> Result<ServerAnswer> {
        let start = self.rt.now();
        let lane = Lane::Single(0);
        let patience = self.config.connect_timeout;
        let connection = match self.live(lane) {
            Some(connection) => connection,
            None => {
                self.health.forget_pause();
                self.dialed(lane).await?
            }
        };
        // Not `PING`, which is one more thing that a user would have to be allowed.
        let mut ping = Cmd::new();
        ping.arg("TIME");
        let sent = connection.send(Commands::One(ping), Left::TakeOff).await;
        let mut sent = sent.map_err(|_| self.health.last_error())?;
        let answered = self.rt.timeout(patience, sent.answers()).await;
        let answers = answered
            .ok_or_else(|| self.late("probe", patience))?
            .map_err(|error| connection.lost(&error))?;
        let answer = answers.into_iter().next().unwrap_or_default();
        if let redis::Value::ServerError(error) = &answer {
            return Err(super::reply::error(&self.name, "probe", error));
        }
        drop(connection.strings(&answer));
        if self.health.is_down() {
            self.health.take_for_up();
        }
        Ok(ServerAnswer::new(
            connection.identity.version.clone(),
            self.rt.now().duration_since(start),
        ))
    }

    /// Asks it something about itself.
    pub(crate) async fn ask(&self, question: Cmd, what: &str) -> Result<redis::Value> {
        let patience = self.config.connect_timeout;
        let connection = self.connected(Lane::Single(0)).await?;
        let sent = connection
            .send(Commands::One(question), Left::Forgotten)
            .await;
        let mut sent = sent.map_err(|_| self.health.last_error())?;
        let answered = self.rt.timeout(patience, sent.answers()).await;
        let answers = answered
            .ok_or_else(|| self.late(what, patience))?
            .map_err(|error| connection.lost(&error))?;
        match answers.into_iter().next() {
            Some(redis::Value::ServerError(error)) => {
                Err(super::reply::error(&self.name, what, &error))
            }
            answer => Ok(answer.unwrap_or(redis::Value::Nil)),
        }
    }

    /// Whether a question would find a connection.
    pub(crate) fn is_up(&self) -> bool {
        !self.health.is_down() && self.live(Lane::Single(0)).is_some()
    }

    /// Asks it now.
    pub(crate) async fn check(&self) -> ServerCheck {
        ServerCheck::new(&*self.name, self.ping().await)
    }

    /// Takes nothing new, and waits for what is under way, at most until then.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.health.close();
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

    pub(crate) fn stats(&self) -> ServerStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &*self.counters;
        let mut dialing = false;
        let mut up = false;
        let mut in_flight = 0;
        for slot in &self.slots {
            match &*slot.link.borrow() {
                Link::Up(connection) => {
                    up = true;
                    in_flight += connection.under_way();
                }
                Link::Dialing => dialing = true,
                Link::Idle | Link::Closed => {}
            }
        }
        let mut stats = ServerStats::default();
        stats.server = self.name.to_string();
        stats.state = match (self.health.is_down(), up, dialing) {
            (true, _, _) => "down",
            (_, true, _) => "up",
            (_, _, true) => "connecting",
            _ => "idle",
        };
        stats.trips = read(&counters.trips);
        stats.keys = read(&counters.keys);
        stats.bytes_out = read(&counters.bytes_out);
        stats.bytes_in = read(&counters.bytes_in);
        stats.in_flight = in_flight;
        stats.connects = read(&counters.connects);
        stats.reconnects = read(&counters.reconnects);
        stats.timeouts = read(&counters.timeouts);
        stats.protocol_violations = read(&counters.protocol_violations);
        stats.out_of_memory = read(&counters.out_of_memory);
        self.health.report(&mut stats);
        stats
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
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
                *link = vacant(health);
                true
            }
            _ => false,
        });
    }

    /// Makes room for the next dial if this one led to nothing.
    fn vacate(&self, health: &Health) {
        self.link.send_if_modified(|link| match link {
            Link::Dialing => {
                *link = vacant(health);
                true
            }
            _ => false,
        });
    }
}

/// What a slot is without a connection. To be asked while the slot is changed, so that a close can't slip in between.
fn vacant(health: &Health) -> Link {
    match health.is_closed() {
        true => Link::Closed,
        false => Link::Idle,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn late(server: &str, what: &str, patience: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("redis {server}: no answer to a {what} within {patience:?}"),
    )
}

fn closed(server: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("redis {server}: this handle was closed"),
    )
}

/// Everything a dial needs, so that the node can be dropped meanwhile.
struct Dial {
    attempt: Attempt,
    address: Address,
    access: Arc<Access>,
    mode: Mode,
    transport: Arc<dyn Transport>,
    patience: Duration,
    setting: Setting,
}

impl Dial {
    /// Dials, and serves the connection to its end.
    async fn run(mut self) {
        let rt = self.setting.rt;
        let opened = self.open().await;
        let lane = self.attempt.lane;
        let Some(node) = self.attempt.node.upgrade() else {
            return;
        };
        let (connection, task) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.attempt.is_over = true;
                return node.dial_failed(lane, &error);
            }
        };
        node.counters.connects.fetch_add(1, Ordering::Relaxed);
        if node.slot(lane).is_lost.swap(false, Ordering::Relaxed) {
            node.counters.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        node.mind_maxclients(connection.identity.maxclients);
        let generation = connection.generation();
        let since = rt.now();
        let connection = Arc::new(connection);
        self.attempt.is_over = true;
        let up = Link::Up(Arc::clone(&connection));
        node.slot(lane).link.send_replace(up);
        // A close that came before found nothing to drain, one that comes now finds the connection.
        if node.health.is_closed() {
            connection.drain();
        }
        drop((connection, node));
        let end = task.run().await;
        if let Some(node) = self.attempt.node.upgrade() {
            node.ended(lane, generation, since, end);
        }
    }

    /// Opens a connection that is of use, as far as there is time for each step; the error is a timeout if there wasn't.
    async fn open(&self) -> Result<(Connection, connection::Task)> {
        let deadline = self.setting.rt.now() + self.patience;
        let dial = async {
            self.transport.dial(&self.address).await.map_err(|error| {
                let server = &self.setting.server;
                Error::with_source(
                    ErrorKind::Unavailable,
                    format!("redis {server}: can't be reached ({error})"),
                    error,
                )
            })
        };
        let io = self.within(deadline, "dial", dial).await?;
        let secure = self.access.secure(io, &self.address);
        // A Redis without TLS takes the handshake for the beginning of a command, and waits for the rest.
        let handshake =
            "TLS handshake (where there is no TLS, nothing is said; take `tls` away there)";
        let io = self.within(deadline, handshake, secure).await?;
        let greet = connection::open(io, &self.access, self.mode, self.setting.clone());
        self.within(deadline, "first exchange", greet).await
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        what: &str,
        step: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let rt = self.setting.rt;
        let left = deadline.saturating_duration_since(rt.now());
        let done = rt.timeout(left, step).await;
        done.unwrap_or_else(|| Err(late(&self.setting.server, what, self.patience)))
    }
}

/// A slot's dial. Dropped before it is over, by a runtime that shuts down or a transport that panics, it leaves the slot
/// to the next caller.
struct Attempt {
    node: Weak<Node>,
    lane: Lane,
    is_over: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(node) = self.node.upgrade()
        {
            node.slot(self.lane).vacate(&node.health);
        }
    }
}

/// Asks a server that is down until it answers, for the first time after so long.
async fn probe(node: Weak<Node>, first: Duration) {
    let mut pause = first;
    loop {
        let Some(alive) = node.upgrade() else {
            return;
        };
        let rt = alive.rt;
        drop(alive);
        pause = Health::pause_probe(rt, pause).await;
        let Some(node) = node.upgrade() else {
            return;
        };
        if node.health.is_closed() {
            return;
        }
        // A server that answers is taken for up, whoever asked.
        if node.ping().await.is_ok() || !node.health.is_down() {
            return;
        }
    }
}
