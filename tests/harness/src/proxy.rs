//! A loopback proxy between a client and a real server, which counts what passes and does what networks do.
//!
//! It is how a test says from outside what a call costs ("a warm page is one batch an accessor"), and how a real server's
//! replies are delayed, torn or lost. For interleavings that must be exact there is the [fake](crate::fake).
//!
//! It makes one connection to the server for each of a client's, and ends either when the other ends: a server that is
//! killed is gone for the client too.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::fake::Framer;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// How many chunks wait in one direction before the sender has to.
const CHUNKS: usize = 256;

/// What clients sent through a proxy since its start, or since the last [`Proxy::reset_counts`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were made.
    pub connections: u64,
    /// How often a client spoke after it had been spoken to, or for the first time, on one connection: the round trips
    /// it waited for. Requests of one batch that leave in several writes are one turn if no reply comes in between, so
    /// [delay the replies](Proxy::delay_replies) to be sure.
    pub turns: u64,
    /// Pieces the requests came in; what a client writes at once comes as one if it isn't large.
    pub writes: u64,
    /// Commands by their first word: `mg`, `ms`, `md`, `mn`, `gets`. A `gets` line counts once, whatever its keys.
    pub commands: BTreeMap<String, u64>,
    /// Keys on classic `get` and `gets` lines.
    pub get_keys: u64,
    /// Bytes from clients.
    pub request_bytes: u64,
    /// Bytes from the server.
    pub reply_bytes: u64,
}

impl Counts {
    /// Batches that a closing `mn` ended.
    pub fn batches(&self) -> u64 {
        self.of("mn")
    }

    /// Commands of this first word.
    pub fn of(&self, command: &str) -> u64 {
        self.commands.get(command).copied().unwrap_or_default()
    }
}

/// Which way bytes go, and whether the client has been answered since it spoke.
#[derive(Clone, Copy, Debug)]
enum Way<'a> {
    Requests(&'a AtomicBool),
    Replies(&'a AtomicBool),
}

/// A running proxy; dropping it ends all its connections.
///
/// ```no_run
/// # async fn run() -> std::io::Result<()> {
/// use larder_harness::proxy::Proxy;
/// use larder_harness::server::{Listen, MemcachedServer};
///
/// let server = MemcachedServer::start(Listen::Tcp, &[]);
/// let proxy = Proxy::start(&server.address()).await?;
/// // ... a client of `proxy.address()` reads a page ...
/// assert_eq!(proxy.counts().turns, 1);
///
/// // Executed, and its client never learns it:
/// proxy.hold_replies();
/// // ... the client stores something ...
/// proxy.held_reply().await;
/// proxy.cut();
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: String,
    counts: Mutex<Counts>,
    requests: Direction,
    replies: Direction,
    /// Ticks when all connections are to end; closed when the proxy does.
    cuts: watch::Sender<u64>,
}

/// What a test wants done to one direction, and what waits in it.
#[derive(Debug)]
struct Direction {
    held: watch::Sender<bool>,
    /// Bytes that came in and have not gone out.
    waiting: watch::Sender<u64>,
    delay: Mutex<Duration>,
    /// Bytes that may still go out before the connection they are on is cut.
    until_cut: Mutex<Option<u64>>,
}

impl Proxy {
    /// Listens on a free port of loopback for clients of this server: `host:port`, or a unix socket's path.
    ///
    /// # Errors
    ///
    /// If there is no free port.
    pub async fn start(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            counts: Mutex::default(),
            requests: Direction::new(),
            replies: Direction::new(),
            cuts: watch::Sender::new(0),
        });
        Ok(Self {
            address: listener.local_addr()?,
            listener: tokio::spawn(accept(listener, Arc::clone(&shared))),
            shared,
        })
    }

    /// Where clients connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What passed so far. What a client has the reply to is in it.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.counts).clone()
    }

    /// Counts from zero again.
    pub fn reset_counts(&self) {
        *lock(&self.shared.counts) = Counts::default();
    }

    /// Lets every request take this much longer from now on.
    pub fn delay_requests(&self, by: Duration) {
        *lock(&self.shared.requests.delay) = by;
    }

    /// Lets every reply take this much longer from now on.
    pub fn delay_replies(&self, by: Duration) {
        *lock(&self.shared.replies.delay) = by;
    }

    /// Keeps what clients send from now on.
    pub fn hold_requests(&self) {
        self.shared.requests.held.send_replace(true);
    }

    /// Lets requests go on, those that were held first.
    pub fn release_requests(&self) {
        self.shared.requests.held.send_replace(false);
    }

    /// Keeps what the server replies from now on: requests are executed, and nobody learns it.
    pub fn hold_replies(&self) {
        self.shared.replies.held.send_replace(true);
    }

    /// Lets replies go on, those that were held first.
    pub fn release_replies(&self) {
        self.shared.replies.held.send_replace(false);
    }

    /// Waits until a request is being held, or delayed.
    pub async fn held_request(&self) {
        self.shared.requests.any_waiting().await;
    }

    /// Waits until a reply is being held, or delayed: then its request has been executed.
    pub async fn held_reply(&self) {
        self.shared.replies.any_waiting().await;
    }

    /// Resets every connection. What is held is lost; new connections are served.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// Lets this many more bytes of requests through, and then resets the connection they are on.
    pub fn cut_after_request_bytes(&self, count: u64) {
        *lock(&self.shared.requests.until_cut) = Some(count);
    }

    /// Lets this many more bytes of replies through, and then resets the connection they are on. With none, the next
    /// request that is answered is executed, and its client never learns it.
    pub fn cut_after_reply_bytes(&self, count: u64) {
        *lock(&self.shared.replies.until_cut) = Some(count);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

impl Direction {
    fn new() -> Self {
        Self {
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            delay: Mutex::default(),
            until_cut: Mutex::default(),
        }
    }

    async fn any_waiting(&self) {
        let mut waiting = self.waiting.subscribe();
        // The sender is borrowed, so it is there.
        let _ = waiting.wait_for(|&count| count > 0).await;
    }

    async fn released(&self) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|&held| !held).await;
    }

    /// How many of so many bytes may go out, and whether the connection is cut then.
    fn allowance(&self, count: usize) -> (usize, bool) {
        let mut until_cut = lock(&self.until_cut);
        match &mut *until_cut {
            None => (count, false),
            Some(left) if *left > count as u64 => {
                *left -= count as u64;
                (count, false)
            }
            Some(left) => {
                let allowed = *left as usize;
                *until_cut = None;
                (allowed, true)
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // An error here is a client that left before it was accepted.
    loop {
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(serve(client, Arc::clone(&shared)));
        }
    }
}

/// One connection from its start to its end.
async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    lock(&shared.counts).connections += 1;
    let reset = if shared.server.starts_with('/') {
        match UnixStream::connect(&shared.server).await {
            Ok(server) => relay(&mut client, server, &shared, &mut cuts).await,
            Err(_) => true,
        }
    } else {
        match TcpStream::connect(&shared.server).await {
            Ok(server) if server.set_nodelay(true).is_ok() => {
                relay(&mut client, server, &shared, &mut cuts).await
            }
            _ => true,
        }
    };
    if reset {
        // The client is gone if this fails, which is as good.
        let _ = client.set_zero_linger();
    }
}

/// Carries bytes both ways until one side ends; true if the client is to be told by a reset.
async fn relay(
    client: &mut TcpStream,
    server: impl AsyncRead + AsyncWrite,
    shared: &Shared,
    cuts: &mut watch::Receiver<u64>,
) -> bool {
    if client.set_nodelay(true).is_err() {
        return true;
    }
    let (client_reader, client_writer) = client.split();
    let (server_reader, server_writer) = split(server);
    let answered = AtomicBool::new(true);
    let requests = async {
        let way = Way::Requests(&answered);
        let cut = carry(way, client_reader, server_writer, shared).await;
        if !cut {
            // The client has nothing more to say, and may still be answered.
            std::future::pending::<()>().await;
        }
        cut
    };
    let way = Way::Replies(&answered);
    let replies = carry(way, server_reader, client_writer, shared);
    tokio::select! {
        _ = cuts.changed() => true,
        cut = requests => cut,
        cut = replies => cut,
    }
}

/// Carries bytes one way until they end (false) or the connection is to be cut (true).
async fn carry(
    way: Way<'_>,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
) -> bool {
    let direction = match way {
        Way::Requests(_) => &shared.requests,
        Way::Replies(_) => &shared.replies,
    };
    let waiting = Waiting(&direction.waiting, Mutex::default());
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(CHUNKS);
    let read = async {
        let mut framer = Framer::default();
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            match from.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            shared.count(way, &chunk, &mut framer);
            waiting.add(chunk.len());
            let due = Instant::now() + *lock(&direction.delay);
            if sender.send((due, chunk.freeze())).await.is_err() {
                break;
            }
        }
        drop(sender);
        // What was read is still to be written; the writer decides how it ends.
        std::future::pending::<bool>().await
    };
    let write = async {
        while let Some((due, chunk)) = receiver.recv().await {
            sleep_until(due).await;
            direction.released().await;
            let (count, cut) = direction.allowance(chunk.len());
            if let Way::Replies(answered) = way {
                answered.store(true, Ordering::Relaxed);
            }
            let written = to.write_all(&chunk[..count]).await;
            waiting.remove(chunk.len());
            if cut {
                return true;
            }
            if written.is_err() {
                return false;
            }
        }
        // The other side may be gone.
        let _ = to.shutdown().await;
        false
    };
    tokio::select! {
        cut = read => cut,
        cut = write => cut,
    }
}

/// One connection's share of what waits in a direction; it no longer waits when the connection is gone.
struct Waiting<'a>(&'a watch::Sender<u64>, Mutex<u64>);

impl Waiting<'_> {
    fn add(&self, count: usize) {
        *lock(&self.1) += count as u64;
        self.0.send_modify(|waiting| *waiting += count as u64);
    }

    fn remove(&self, count: usize) {
        *lock(&self.1) -= count as u64;
        self.0.send_modify(|waiting| *waiting -= count as u64);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mine = *lock(&self.1);
        self.0.send_modify(|waiting| *waiting -= mine);
    }
}

impl Shared {
    fn count(&self, way: Way<'_>, chunk: &[u8], framer: &mut Framer) {
        let mut counts = lock(&self.counts);
        match way {
            Way::Replies(_) => counts.reply_bytes += chunk.len() as u64,
            Way::Requests(answered) => {
                counts.turns += u64::from(answered.swap(false, Ordering::Relaxed));
                counts.request_bytes += chunk.len() as u64;
                counts.writes += 1;
                framer.push(chunk);
                while let Some(line) = framer.next_line_sent() {
                    counts.line(&line);
                }
            }
        }
    }
}

impl Counts {
    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split(' ').filter(|word| !word.is_empty());
        let name = words.next().unwrap_or_default();
        if name == "get" || name == "gets" {
            self.get_keys += words.count() as u64;
        }
        *self.commands.entry(name.to_owned()).or_default() += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
