//! Connections without sockets, and the three steps of every request.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::Fake;
use super::framer::{Frame, Framer};
use super::machine::Reply;

/// Names a connection: they count from 1 in the order they were dialled, over restarts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}", self.0)
    }
}

/// Names a request: they count from 1 in the order they were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}", self.0)
    }
}

/// How far a request has come that isn't answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The client wrote it; the network has it.
    Sent,
    /// The server has it, and nothing has come of it.
    Arrived,
    /// It has had its effect; the network has the reply, if there is one.
    Executed,
}

/// What moves a request from one [`Stage`] to the next, and from the last to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// From the client to the server.
    Arrival,
    /// The effect.
    Execution,
    /// From the server to the client.
    Reply,
}

/// One command that isn't answered yet.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// Where it was sent.
    pub connection: ConnectionId,
    /// How far it has come.
    pub stage: Stage,
    /// The command line, without its end.
    pub line: String,
    /// The value it carries, without its line end.
    pub value: Option<Bytes>,
}

impl Request {
    pub(super) fn new(connection: ConnectionId, stage: Stage, pending: &Pending) -> Self {
        let data = pending.frame.data.as_ref();
        Self {
            id: pending.id,
            connection,
            stage,
            line: String::from_utf8_lossy(&pending.frame.line).into_owned(),
            value: data.map(|data| data.slice(..data.len().saturating_sub(2))),
        }
    }

    /// The first word of the line: `mg`, `ms`, `md`, `mn`, `get`.
    pub fn command(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// The second word of the line; empty if there is none.
    pub fn key(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// Whether it is this command for this key.
    pub fn is(&self, command: &str, key: &str) -> bool {
        self.command() == command && self.key() == key
    }
}

/// A request on its way through the stages.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: RequestId,
    pub(super) frame: Frame,
    reply: Reply,
}

/// How a connection stands, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// The server closed it: what was replied can still be read, what is written vanishes.
    Closed,
    /// Reset: both directions fail at once.
    Cut,
    /// The client let go of it; what it sent before is still on its way.
    Dropped,
}

/// One connection: a queue for each stage, oldest first.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) link: Link,
    framer: Framer,
    sent: VecDeque<Pending>,
    arrived: VecDeque<Pending>,
    executed: VecDeque<Pending>,
    /// Bytes of requests that wait to be executed.
    backlog: usize,
    /// Bytes of replies that wait to be given.
    held_back: usize,
    /// Replies on the client's side, not read yet.
    replies: BytesMut,
    /// The client will write no more.
    finished: bool,
    /// Every step waits for the test.
    pub(super) frozen: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            link: Link::Up,
            framer: Framer::default(),
            sent: VecDeque::new(),
            arrived: VecDeque::new(),
            executed: VecDeque::new(),
            backlog: 0,
            held_back: 0,
            replies: BytesMut::new(),
            finished: false,
            frozen: false,
            reader: None,
            writer: None,
        }
    }

    /// The connection of a client that came when all were taken.
    pub(super) fn one_too_many() -> Self {
        let mut connection = Self::new();
        connection.link = Link::Closed;
        let words = b"ERROR Too many open connections\r\n";
        connection.replies.extend_from_slice(words);
        connection
    }

    /// What isn't answered yet, oldest first.
    pub(super) fn requests(&self) -> impl Iterator<Item = (Stage, &Pending)> {
        let stage = |stage: Stage| move |request| (stage, request);
        let executed = self.executed.iter().map(stage(Stage::Executed));
        let arrived = self.arrived.iter().map(stage(Stage::Arrived));
        executed
            .chain(arrived)
            .chain(self.sent.iter().map(stage(Stage::Sent)))
    }

    /// Moves requests up to this one to the server.
    pub(super) fn arrive(&mut self, last: RequestId) {
        while let Some(request) = self.sent.pop_front_if(|request| request.id <= last) {
            self.arrived.push_back(request);
        }
    }

    /// Lets requests up to this one have their effect, of those that arrived.
    pub(super) fn execute(&mut self, last: RequestId, execute: &mut dyn FnMut(&Frame) -> Reply) {
        while self.execute_one(last, execute) {}
    }

    fn execute_one(&mut self, last: RequestId, execute: &mut dyn FnMut(&Frame) -> Reply) -> bool {
        let Some(mut request) = self.arrived.pop_front_if(|request| request.id <= last) else {
            return false;
        };
        request.reply = execute(&request.frame);
        self.backlog -= request.frame.len();
        if request.reply.hang_up {
            // Nothing behind it is ever looked at.
            self.arrived.clear();
            self.sent.clear();
            self.backlog = 0;
        }
        self.held_back += request.reply.bytes.len();
        self.executed.push_back(request);
        true
    }

    /// Gives the client the replies up to this request's, of those that were executed.
    pub(super) fn reply(&mut self, last: RequestId) {
        while let Some(request) = self.executed.pop_front_if(|request| request.id <= last) {
            self.held_back -= request.reply.bytes.len();
            if self.link == Link::Up {
                self.replies.extend_from_slice(&request.reply.bytes);
            }
            if request.reply.hang_up {
                self.close();
            }
        }
        if self.finished && self.requests().next().is_none() {
            self.close();
        }
    }

    /// As [`Self::reply`], but the connection ends after so many bytes of this request's reply.
    pub(super) fn reply_torn(&mut self, last: RequestId, bytes: usize) {
        if let Some(before) = last.0.checked_sub(1) {
            self.reply(RequestId(before));
        }
        if let Some(request) = self.executed.front_mut() {
            self.held_back -= request.reply.bytes.len();
            request.reply.bytes.truncate(bytes);
            self.held_back += request.reply.bytes.len();
        }
        self.reply(last);
        self.close();
    }

    /// The server's end goes, in an orderly way: what was replied can still be read.
    pub(super) fn close(&mut self) {
        self.sent.clear();
        self.executed.clear();
        self.discard();
        self.held_back = 0;
        if self.link == Link::Up {
            self.link = Link::Closed;
        }
    }

    /// The network goes: what has arrived may still be executed.
    pub(super) fn cut(&mut self) {
        self.sent.clear();
        self.executed.clear();
        self.replies.clear();
        self.held_back = 0;
        self.backlog = self.arrived.iter().map(|request| request.frame.len()).sum();
        if self.link != Link::Dropped {
            self.link = Link::Cut;
        }
    }

    /// The server forgets what has arrived.
    pub(super) fn discard(&mut self) {
        self.arrived.clear();
        self.backlog = self.sent.iter().map(|request| request.frame.len()).sum();
    }

    fn is_over(&self) -> bool {
        self.link == Link::Dropped && self.requests().next().is_none()
    }

    fn wake(&mut self) {
        let wakers = [self.reader.take(), self.writer.take()];
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// All connections of one server, and which steps wait for the test.
#[derive(Debug, Default)]
pub(super) struct Wires {
    pub(super) connections: BTreeMap<ConnectionId, Connection>,
    pub(super) held: Held,
    pub(super) stopped: bool,
    last_connection: u64,
    last_request: u64,
}

/// The steps that wait for the test.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) arrival: bool,
    pub(super) execution: bool,
    pub(super) reply: bool,
}

impl Held {
    fn all() -> Self {
        Self {
            arrival: true,
            execution: true,
            reply: true,
        }
    }

    pub(super) fn set(&mut self, step: Step, held: bool) {
        match step {
            Step::Arrival => self.arrival = held,
            Step::Execution => self.execution = held,
            Step::Reply => self.reply = held,
        }
    }
}

impl Wires {
    /// How many connections there ever were.
    pub(super) fn dialled(&self) -> u64 {
        self.last_connection
    }

    pub(super) fn add(&mut self, connection: Connection) -> ConnectionId {
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        self.connections.insert(id, connection);
        id
    }

    /// Takes what fits of the client's bytes; `None` if it has to wait.
    fn write(&mut self, id: ConnectionId, bytes: &[u8], window: usize) -> Option<usize> {
        let connection = self.connections.get_mut(&id)?;
        if connection.backlog >= window {
            return None;
        }
        let taken = bytes.len().min(window);
        connection.framer.push(&bytes[..taken]);
        while let Some(frame) = connection.framer.next() {
            self.last_request += 1;
            connection.backlog += frame.len();
            connection.sent.push_back(Pending {
                id: RequestId(self.last_request),
                frame,
                reply: Reply::default(),
            });
        }
        Some(taken)
    }

    /// Takes every step of this connection that isn't held.
    pub(super) fn flow(
        &mut self,
        id: ConnectionId,
        window: usize,
        execute: &mut dyn FnMut(&Frame) -> Reply,
    ) {
        const ALL: RequestId = RequestId(u64::MAX);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let held = match connection.frozen {
            true => Held::all(),
            false => self.held,
        };
        if !held.arrival {
            connection.arrive(ALL);
        }
        loop {
            if !held.reply {
                connection.reply(ALL);
            }
            // A client that doesn't read its replies isn't served.
            let unread = connection.replies.len() + connection.held_back;
            let may_execute = !held.execution && !self.stopped && unread < window;
            if !may_execute || !connection.execute_one(ALL, execute) {
                break;
            }
        }
        connection.wake();
        if connection.is_over() {
            self.connections.remove(&id);
        }
    }
}

/// The client's end of a connection to a [`Fake`].
///
/// It reads and writes like a socket: what was replied before an orderly end can still be read, a cut fails both
/// directions at once, a server that executes nothing makes the writer wait in the end.
#[derive(Debug)]
pub struct Pipe {
    client: Arc<Client>,
    writes: bool,
}

/// Both halves are gone when this is.
#[derive(Debug)]
struct Client {
    fake: Fake,
    id: ConnectionId,
}

impl Pipe {
    pub(super) fn new(fake: Fake, id: ConnectionId) -> Self {
        Self {
            client: Arc::new(Client { fake, id }),
            writes: true,
        }
    }

    /// The connection's name at the server.
    pub fn id(&self) -> ConnectionId {
        self.client.id
    }

    /// A half to read from and one to write to. Dropping the latter tells the server that nothing more comes.
    pub fn split(self) -> (Self, Self) {
        let reader = Self {
            client: Arc::clone(&self.client),
            writes: false,
        };
        (reader, self)
    }

    /// Sends this.
    ///
    /// # Errors
    ///
    /// If the connection was cut.
    pub async fn say(&mut self, text: &str) -> io::Result<()> {
        self.write_all(text.as_bytes()).await
    }

    /// What was replied and not read yet, as soon as there is something; empty at the connection's end.
    ///
    /// # Errors
    ///
    /// If the connection was cut.
    pub async fn hear(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        while self.read_buf(&mut bytes).await? > 0 && self.has_replies() {}
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// [Says](Self::say) this and [hears](Self::hear) what comes of it.
    ///
    /// # Errors
    ///
    /// If the connection was cut.
    pub async fn ask(&mut self, text: &str) -> io::Result<String> {
        self.say(text).await?;
        self.hear().await
    }

    fn has_replies(&self) -> bool {
        let Client { fake, id } = &*self.client;
        fake.look(|state| {
            let connection = state.wires.connections.get(id);
            connection.is_some_and(|connection| !connection.replies.is_empty())
        })
    }

    fn finish(&self) {
        let Client { fake, id } = &*self.client;
        fake.change(|state| {
            if let Some(connection) = state.wires.connections.get_mut(id) {
                connection.finished = true;
            }
            state.flow(*id);
        });
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.writes {
            self.finish();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.fake.change(|state| {
            if let Some(connection) = state.wires.connections.get_mut(&self.id) {
                connection.link = Link::Dropped;
                connection.replies.clear();
            }
            state.flow(self.id);
        });
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Client { fake, id } = &*self.client;
        fake.change(|state| {
            let Some(connection) = state.wires.connections.get_mut(id) else {
                return Poll::Ready(Ok(()));
            };
            if !connection.replies.is_empty() {
                let count = connection.replies.len().min(buf.remaining());
                buf.put_slice(&connection.replies[..count]);
                connection.replies.advance(count);
                // There is room again for more of them.
                state.flow(*id);
                return Poll::Ready(Ok(()));
            }
            match connection.link {
                Link::Up => {
                    connection.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
                Link::Closed | Link::Dropped => Poll::Ready(Ok(())),
                Link::Cut => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        })
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Client { fake, id } = &*self.client;
        fake.change(|state| {
            let Some(connection) = state.wires.connections.get_mut(id) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            match connection.link {
                Link::Closed => return Poll::Ready(Ok(buf.len())),
                Link::Cut | Link::Dropped => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Link::Up => {}
            }
            let window = state.settings.window;
            match state.wires.write(*id, buf, window) {
                Some(taken) => {
                    state.flow(*id);
                    Poll::Ready(Ok(taken))
                }
                None => {
                    if let Some(connection) = state.wires.connections.get_mut(id) {
                        connection.writer = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}
