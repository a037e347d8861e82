//! A memcached without process or socket, in which a request's arrival, its execution and its reply are separate steps.
//!
//! It stands behind the client's [`Transport`], speaks what memcached 1.6.18 speaks, byte for byte (the same random
//! scripts are put to both, `tests/fake_matches_memcached.rs`), and does nothing of its own accord: the same calls in
//! the same order give the same bytes. A test on tokio's paused clock needs nothing else.
//!
//! Left alone it answers at once. [`Fake::hold`] keeps requests before one of the three steps, and [`Fake::freeze`] those
//! of one connection before all of them, until the test says [`arrive`](Fake::arrive), [`execute`](Fake::execute) or
//! [`reply`](Fake::reply) for one request, or [`open`](Fake::open) or [`thaw`](Fake::thaw) for all. So every interleaving
//! of clients and every place where a connection can be lost can be written down:
//!
//! * the request never arrives: [`cut`](Fake::cut) while it is [`Stage::Sent`];
//! * it arrives and is not executed: `arrive`, `cut`, [`discard`](Fake::discard);
//! * it is executed long after its client gave up: `arrive`, `cut`, ..., `execute`;
//! * it is executed and its reply is lost: `execute`, `cut`; or all but a piece of it: [`reply_torn`](Fake::reply_torn);
//! * the server is gone in between: [`restart`](Fake::restart), which counts its CAS numbers from 1 again.
//!
//! What it doesn't have is what only memory pressure shows (slabs, LRU), counters (`incr`, `ma`), and the operator's
//! commands. A line of that kind is answered with a `SERVER_ERROR` that says so and ends the connection, and is listed
//! by [`Fake::unmodelled`]; the real server's answer would have been another.
//!
//! # The value that is older than its reply
//!
//! A fill is stored, and its reply takes its time. Meanwhile a write deletes the key and is acknowledged. Whoever comes
//! now and is given the filler's value because "its fill was stored" reads what was deleted before they came:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> std::io::Result<()> {
//! use larder_harness::fake::{Fake, Step};
//!
//! let fake = Fake::new();
//! let mut filler = fake.connect().await?;
//! let mut writer = fake.connect().await?;
//! assert_eq!(filler.ask("mg user:7 N10 v c\r\n").await?, "VA 0 c1 W\r\n\r\n");
//!
//! fake.hold(Step::Reply);
//! filler.say("ms user:7 3 C1 T60\r\nold\r\n").await?;
//! let fill = fake.wait_for(|request| request.is("ms", "user:7")).await;
//! fake.execute(fill.id);
//! assert_eq!(fake.peek("user:7").as_deref(), Some(&b"old"[..]));
//!
//! writer.say("md user:7\r\n").await?;
//! let delete = fake.wait_for(|request| request.is("md", "user:7")).await;
//! fake.reply(delete.id);
//! assert_eq!(writer.hear().await?, "HD\r\n"); // acknowledged: nobody may see "old" from here on
//!
//! fake.reply(fill.id);
//! assert_eq!(filler.hear().await?, "HD\r\n"); // "stored" is true, and long over
//! assert_eq!(fake.peek("user:7"), None);
//! # Ok(())
//! # }
//! ```

mod command;
mod framer;
mod machine;
mod network;
mod pipe;
mod store;
mod text;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use larder_backends::memcached::{Address, Io, Transport};
use larder_core::Rt;
use tokio::sync::watch;

pub(crate) use self::framer::Framer;
use self::machine::Machine;
pub use self::network::Network;
use self::pipe::{Connection, Link, Wires};
pub use self::pipe::{ConnectionId, Pipe, Request, RequestId, Stage, Step};
pub use self::store::Settings;

/// When the clock of a [`Fake::new`] starts: 2026-01-01, 00:00 UTC.
const START: Duration = Duration::from_secs(1_767_225_600);

/// What becomes of a dial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dials {
    /// It becomes a connection.
    #[default]
    Accepted,
    /// Nobody listens.
    Refused,
    /// Nobody answers: a dial waits until this changes.
    Ignored,
}

/// A handle on one fake memcached; its clones are the same server. See the [module](self).
#[derive(Clone)]
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Ticks with every change.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    settings: Settings,
    machine: Machine,
    wires: Wires,
    dials: Dials,
    rt: Rt,
    /// How far this server's clock is ahead of `rt`.
    ahead: Duration,
}

impl Fake {
    /// A server with default settings, whose clock starts at a fixed date and moves with tokio's.
    ///
    /// Give its [`rt`](Self::rt) to the client, so that both have the same date.
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    /// As [`Self::new`], with these settings.
    pub fn with(settings: Settings) -> Self {
        Self::with_rt(settings, Rt::following_tokio(UNIX_EPOCH + START))
    }

    /// A server with these settings that goes by the wall clock of `rt`.
    ///
    /// As the real one it knows whole seconds only: an item of one second lives until the next full second of that clock.
    pub fn with_rt(settings: Settings, rt: Rt) -> Self {
        let state = State {
            machine: Machine::new(settings.clone(), rt.wall()),
            settings,
            wires: Wires::default(),
            dials: Dials::Accepted,
            rt,
            ahead: Duration::ZERO,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changes: watch::Sender::new(0),
            }),
        }
    }

    /// A transport on which every address is this server. For several servers, see [`Network`].
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(self.clone())
    }

    /// The time this server goes by, less what it was [advanced](Self::advance).
    pub fn rt(&self) -> Rt {
        self.look(|state| state.rt)
    }

    /// A connection to speak over by hand.
    ///
    /// # Errors
    ///
    /// If dials are refused.
    pub async fn connect(&self) -> io::Result<Pipe> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            // A look changes nothing while dials are ignored, and must not wake itself.
            let id = self.look(|state| match state.dials {
                Dials::Ignored => Ok(None),
                Dials::Refused => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                Dials::Accepted => Ok(Some(state.accept())),
            })?;
            if let Some(id) = id {
                self.change(|_| ());
                return Ok(Pipe::new(self.clone(), id));
            }
            // The sender lives as long as this handle.
            let _ = changes.changed().await;
        }
    }

    // Steps.

    /// Keeps requests before this step from now on.
    pub fn hold(&self, step: Step) {
        self.change(|state| state.wires.held.set(step, true));
    }

    /// Keeps requests before all three steps.
    pub fn hold_all(&self) {
        self.set_all(true);
    }

    /// Lets requests take this step at once again, those that wait for it first, the oldest connection's ahead.
    pub fn open(&self, step: Step) {
        self.change(|state| {
            state.wires.held.set(step, false);
            state.flow_all();
        });
    }

    /// Lets requests take all three steps at once again.
    pub fn open_all(&self) {
        self.set_all(false);
    }

    /// Keeps every request of this connection before all three steps, whatever others may do.
    pub fn freeze(&self, connection: ConnectionId) {
        self.set_frozen(connection, true);
    }

    /// Lets a frozen connection's requests go as the others'.
    pub fn thaw(&self, connection: ConnectionId) {
        self.set_frozen(connection, false);
    }

    fn set_frozen(&self, id: ConnectionId, frozen: bool) {
        self.change(|state| {
            state.connection(id, |connection| connection.frozen = frozen);
            state.flow(id);
        });
    }

    fn set_all(&self, held: bool) {
        self.change(|state| {
            for step in [Step::Arrival, Step::Execution, Step::Reply] {
                state.wires.held.set(step, held);
            }
            state.flow_all();
        });
    }

    /// What isn't answered yet: by connection, and there in the order it was sent.
    pub fn requests(&self) -> Vec<Request> {
        self.look(|state| {
            let connections = state.wires.connections.iter();
            connections
                .flat_map(|(&id, connection)| {
                    let requests = connection.requests();
                    requests.map(move |(stage, pending)| Request::new(id, stage, pending))
                })
                .collect()
        })
    }

    /// The first of [`Self::requests`] that is wanted, as soon as there is one.
    pub async fn wait_for(&self, mut wanted: impl FnMut(&Request) -> bool) -> Request {
        let mut changes = self.shared.changes.subscribe();
        loop {
            if let Some(request) = self.requests().into_iter().find(&mut wanted) {
                return request;
            }
            // The sender lives as long as this handle.
            let _ = changes.changed().await;
        }
    }

    /// Brings this request to the server, and those sent before it on the same connection.
    ///
    /// # Panics
    ///
    /// If it isn't under way: it was answered, or lost with its connection.
    #[track_caller]
    pub fn arrive(&self, request: RequestId) {
        self.step(request, |state, id| state.arrive(id, request));
    }

    /// Lets this request have its effect, and those sent before it on the same connection; they arrive if they haven't.
    ///
    /// # Panics
    ///
    /// If it isn't under way: it was answered, or lost with its connection. If the server is [stopped](Self::stop).
    #[track_caller]
    pub fn execute(&self, request: RequestId) {
        self.step(request, |state, id| {
            state.arrive(id, request);
            state.execute(id, request);
        });
    }

    /// Gives this request's reply to its client, and the replies before it; they are executed if they weren't.
    ///
    /// # Panics
    ///
    /// If it isn't under way: it was answered, or lost with its connection. If the server is [stopped](Self::stop).
    #[track_caller]
    pub fn reply(&self, request: RequestId) {
        self.step(request, |state, id| {
            state.arrive(id, request);
            state.execute(id, request);
            state.connection(id, |connection| connection.reply(request));
        });
    }

    /// As [`Self::reply`], but the connection ends in an orderly way after so many bytes of this request's reply.
    ///
    /// # Panics
    ///
    /// If it isn't under way: it was answered, or lost with its connection. If the server is [stopped](Self::stop).
    #[track_caller]
    pub fn reply_torn(&self, request: RequestId, bytes: usize) {
        self.step(request, |state, id| {
            state.arrive(id, request);
            state.execute(id, request);
            state.connection(id, |connection| connection.reply_torn(request, bytes));
        });
    }

    #[track_caller]
    fn step(&self, request: RequestId, take: impl FnOnce(&mut State, ConnectionId)) {
        let found = self.change(|state| {
            let id = state.find(request)?;
            take(state, id);
            state.flow(id);
            Some(())
        });
        assert!(
            found.is_some(),
            "{request} isn't under way: it was answered, or lost with its connection"
        );
    }

    // Faults.

    /// The connections that are up, oldest first.
    pub fn connections(&self) -> Vec<ConnectionId> {
        self.look(|state| state.up().collect())
    }

    /// How many dials ever became connections.
    pub fn dialled(&self) -> u64 {
        self.look(|state| state.wires.dialled())
    }

    /// Decides what becomes of dials from now on. Connections that are up stay so.
    pub fn set_dials(&self, dials: Dials) {
        self.change(|state| state.dials = dials);
    }

    /// Resets the connection: its client is told at once, and what is sent, or replied and not read, is lost.
    ///
    /// What has arrived at the server stays there: it is executed yet, by [`Self::execute`] or because nothing holds it.
    pub fn cut(&self, connection: ConnectionId) {
        self.change(|state| {
            state.connection(connection, Connection::cut);
            state.flow(connection);
        });
    }

    /// [Cuts](Self::cut) every connection.
    pub fn cut_all(&self) {
        for connection in self.connections() {
            self.cut(connection);
        }
    }

    /// The server forgets what has arrived on this connection and isn't executed.
    pub fn discard(&self, connection: ConnectionId) {
        self.change(|state| {
            state.connection(connection, Connection::discard);
            state.flow(connection);
        });
    }

    /// Kills the server: connections end, what isn't executed is gone, dials are refused. What was replied before can
    /// still be read.
    pub fn kill(&self) {
        self.change(|state| {
            state.dials = Dials::Refused;
            state.close_all();
        });
    }

    /// [Kills](Self::kill) the server and starts it again, empty; CAS numbers count from 1, dials are accepted.
    pub fn restart(&self) {
        self.change(|state| {
            let wall = state.wall();
            state.dials = Dials::Accepted;
            state.machine.restart(wall);
            state.close_all();
        });
    }

    /// As [`Self::restart`], but the items are still there, with the CAS numbers they had.
    ///
    /// A proxy that redials for its clients, and some servers with persistence, look like this.
    pub fn restart_warm(&self) {
        self.change(|state| {
            state.dials = Dials::Accepted;
            state.machine.restart_warm();
            state.close_all();
        });
    }

    /// Stops the server as SIGSTOP does: dials succeed, requests arrive, nothing is executed.
    pub fn stop(&self) {
        self.change(|state| state.wires.stopped = true);
    }

    /// Lets a stopped server go on with what has arrived.
    pub fn resume(&self) {
        self.change(|state| {
            state.wires.stopped = false;
            state.flow_all();
        });
    }

    /// Drops the entry, or the placeholder, of this key; says whether there was one.
    pub fn evict(&self, key: &str) -> bool {
        self.change(|state| state.machine.evict(key.as_bytes()))
    }

    /// From now on there is no memory for a new item, and nothing to evict; or there is again.
    pub fn set_full(&self, full: bool) {
        self.change(|state| state.machine.set_full(full));
    }

    /// Moves this server's clock ahead, and nobody else's.
    pub fn advance(&self, by: Duration) {
        self.change(|state| state.ahead += by);
    }

    // What the test knows.

    /// The stored bytes, empty for a placeholder, without counting as a fetch.
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        self.look(|state| {
            let wall = state.wall();
            state.machine.set_time(wall);
            state.machine.peek(key.as_bytes())
        })
    }

    /// How long the item of this key has to live; `None` if it isn't there, or stays for good.
    pub fn ttl(&self, key: &str) -> Option<Duration> {
        self.look(|state| {
            let wall = state.wall();
            state.machine.set_time(wall);
            state.machine.ttl(key.as_bytes())
        })
    }

    /// The lines that a real server understands and this one doesn't; a test that has any proves nothing.
    pub fn unmodelled(&self) -> Vec<String> {
        self.look(|state| state.machine.unmodelled.clone())
    }

    /// Does this to the state, and tells those who wait for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = self.look(change);
        self.shared.changes.send_modify(|count| *count += 1);
        result
    }

    /// Does this to the state, which nobody could wait for.
    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // A test that panicked in between has failed already.
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        look(&mut state)
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").finish_non_exhaustive()
    }
}

#[async_trait]
impl Transport for Fake {
    async fn dial(&self, _: &Address) -> io::Result<Io> {
        let (reader, writer) = self.connect().await?.split();
        Ok(Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        })
    }
}

impl State {
    fn wall(&self) -> SystemTime {
        self.rt.wall() + self.ahead
    }

    fn up(&self) -> impl Iterator<Item = ConnectionId> {
        let connections = self.wires.connections.iter();
        connections
            .filter(|(_, connection)| connection.link == Link::Up)
            .map(|(&id, _)| id)
    }

    fn accept(&mut self) -> ConnectionId {
        let connection = if self.up().count() < self.settings.maxconns {
            Connection::new()
        } else {
            Connection::one_too_many()
        };
        self.wires.add(connection)
    }

    fn find(&self, request: RequestId) -> Option<ConnectionId> {
        let mut connections = self.wires.connections.iter();
        connections
            .find(|(_, connection)| {
                let mut requests = connection.requests();
                requests.any(|(_, pending)| pending.id == request)
            })
            .map(|(&id, _)| id)
    }

    fn connection(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.wires.connections.get_mut(&id) {
            change(connection);
        }
    }

    fn arrive(&mut self, id: ConnectionId, last: RequestId) {
        self.connection(id, |connection| connection.arrive(last));
    }

    #[track_caller]
    fn execute(&mut self, id: ConnectionId, last: RequestId) {
        assert!(
            !self.wires.stopped,
            "a stopped server executes nothing; resume it first"
        );
        let (wall, up) = (self.wall(), self.up().count());
        self.machine.set_time(wall);
        if let Some(connection) = self.wires.connections.get_mut(&id) {
            connection.execute(last, &mut |frame| self.machine.execute(frame, up));
        }
    }

    /// Everything of this connection that isn't held goes on.
    fn flow(&mut self, id: ConnectionId) {
        let (wall, up) = (self.wall(), self.up().count());
        self.machine.set_time(wall);
        let machine = &mut self.machine;
        self.wires.flow(id, self.settings.window, &mut |frame| {
            machine.execute(frame, up)
        });
    }

    fn flow_all(&mut self) {
        let ids: Vec<_> = self.wires.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.flow(id));
    }

    /// The process that had the connections is gone.
    fn close_all(&mut self) {
        self.wires.stopped = false;
        for connection in self.wires.connections.values_mut() {
            connection.close();
        }
        self.flow_all();
    }
}
