//! One connection: a socket, the very server process behind it, and the crate's multiplexing over it.
//!
//! The crate's `MultiplexedConnection` is one socket and never another, which is what everything here rests on: what is
//! known of the server (its incarnation) was read on this socket, and so holds for whatever is sent over it. It is made over
//! a stream of ours, and its driver runs in a task of ours, so dialling, TLS, counting bytes and noticing a server that has
//! fallen silent are the same as for memcached.
//!
//! While a connection is in use the server is asked every second whether it is still the primary it was, since one that is
//! made a replica by hand keeps its connections and answers on.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use larder_core::{Error, ErrorKind, Instant, Result, Rt};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisConnectionInfo, RedisResult, Value,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::unconstrained;

use super::gets::Gets;
use super::identity::{self, Access, Identity, Mode};
use super::tap::{Gots, Shelf, Tap};
use crate::tls;
use crate::transport::Io;

/// How often a server that is being used is asked what it is.
const BEAT: Duration = Duration::from_secs(1);

/// Requests that wait for the driver; beyond, they wait for each other.
const QUEUE: usize = 1 << 14;

/// Bytes that are gathered before they are written.
const GATHERED: usize = 64 << 10;

/// Numbers every connection of this process.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// What a server's connections count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) trips: AtomicU64,
    pub(crate) keys: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) reconnects: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) protocol_violations: AtomicU64,
    pub(crate) out_of_memory: AtomicU64,
}

/// What a connection is told by those who make it.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) rt: Rt,
    /// The server's name.
    pub(super) server: Arc<str>,
    pub(super) counters: Arc<Counters>,
    /// No byte for so long while something is under way ends it.
    pub(super) stall: Duration,
    /// No use for so long ends it.
    pub(super) idle: Option<Duration>,
}

/// An open connection, to be shared.
pub(crate) struct Connection {
    handle: MultiplexedConnection,
    /// Who the server is: whatever is sent over this connection, it goes to that one.
    pub(crate) identity: Identity,
    generation: u64,
    shared: Arc<Shared>,
    rt: Rt,
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was drained, or nobody used it.
    Done,
    Lost(Error),
}

/// What a connection and its task know together.
#[derive(Debug)]
struct Shared {
    rt: Rt,
    server: Arc<str>,
    counters: Arc<Counters>,
    start: Instant,
    /// Bytes that came over this connection.
    bytes_in: AtomicU64,
    /// When the first request went out of those sent since the last byte came, in microseconds since `start`; 0 if none.
    waiting_since: AtomicU64,
    /// The server's clock less ours, in milliseconds.
    clock: AtomicI64,
    under_way: AtomicU64,
    /// Takes nothing more.
    over: AtomicBool,
    /// Ends as soon as nothing is under way.
    draining: AtomicBool,
    /// Used since the last beat.
    used: AtomicBool,
    wanted: Notify,
    /// Something about it changed that its task should look at.
    changed: Notify,
    /// Why it has to end.
    verdict: Mutex<Option<Error>>,
    /// Where the values are that the crate doesn't see.
    shelf: Arc<Shelf>,
}

/// What is sent in one go.
pub(crate) enum Commands {
    One(Cmd),
    Several(Pipeline),
}

/// The connection has ended, and nothing was sent.
#[derive(Debug)]
pub(crate) struct NotSent;

/// An answer's whereabouts.
type Reply = Pin<Box<dyn Future<Output = RedisResult<Vec<Value>>> + Send>>;

/// Commands that were handed over, and what becomes of them.
pub(crate) struct Sent {
    reply: Option<Reply>,
    answered: Option<RedisResult<Vec<Value>>>,
    under_way: Option<UnderWay>,
    left: Left,
    rt: Rt,
}

/// What becomes of commands whose caller has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// They needn't be sent any more, and nobody misses their answers.
    Forgotten,
    /// They are sent, and change what they change.
    GoOn,
    /// Their answers are taken out, and are taken off the shelf.
    TakeOff,
}

/// One more that a close waits for.
struct UnderWay(Arc<Shared>);

/// Opens a connection over this stream, as far as it is of use; the task must be run for anything to happen on it.
pub(super) async fn open(
    io: Io,
    access: &Access,
    mode: Mode,
    setting: Setting,
) -> Result<(Connection, Task)> {
    let rt = setting.rt;
    let shared = Arc::new(Shared::new(&setting));
    let stream = Metered {
        tap: Tap::new(io.reader, Arc::clone(&shared.shelf)),
        writer: match mode {
            Mode::Cluster => Writer::Gets(Gets::new(io.writer)),
            Mode::Standalone | Mode::Seed => Writer::Plain(io.writer),
        },
        shared: Arc::clone(&shared),
    };
    // The first exchange is ours, so that it is one, and nothing of it is quoted in an error.
    let silent = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE)
        .set_write_backpressure_boundary(GATHERED);
    let (handle, driver) = MultiplexedConnection::new_with_config(&silent, stream, config)
        .await
        .map_err(|error| shared.lost(&error))?;
    let mut driver: Driver = Box::pin(driver);
    let asked = rt.now();
    // One exchange in two messages: a server that has no place for us says so to the first, and closes.
    let hello = Commands::One(access.hello()).send_over(handle.clone());
    let greeting = Commands::Several(access.greeting()).send_over(handle.clone());
    let mut greeted = pin!(async { tokio::join!(biased; hello, greeting) });
    let (hello, greeting) = tokio::select! {
        biased;
        greeted = &mut greeted => greeted,
        () = &mut driver => {
            // It may have brought an answer before it ended. What it didn't is known to be lost once it is dropped.
            driver = Box::pin(std::future::ready(()));
            greeted.await
        }
    };
    let hello = hello.map_err(|error| access.lost(&shared.lost(&error)))?;
    if let Some(Value::ServerError(error)) = hello.first() {
        return Err(access.refused(&setting.server, error));
    }
    let answers = greeting.map_err(|error| access.lost(&shared.lost(&error)))?;
    let strings = |answer: &Value| shared.strings(answer);
    let identity = access.identify(&setting.server, mode, answers, strings)?;
    shared.set_clock(asked, identity.time);
    let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
    let connection = Connection {
        handle: handle.clone(),
        identity: identity.clone(),
        generation,
        shared: Arc::clone(&shared),
        rt,
    };
    let task = Task {
        driver,
        closes: Closes(Arc::clone(&shared)),
        watch: Watch {
            handle,
            identity,
            shared,
            stall: setting.stall,
            idle: setting.idle,
        },
    };
    Ok((connection, task))
}

impl Connection {
    /// The number of this connection, which no other of the process has.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it takes nothing more.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// What is sent and not answered yet.
    pub(crate) fn under_way(&self) -> u64 {
        self.shared.under_way.load(Ordering::Relaxed)
    }

    /// The server's time, in milliseconds since 1970, as far as it can be known from here.
    pub(crate) fn server_time(&self) -> u64 {
        let ours = self.shared.elapsed(self.rt.now()).as_millis() as i64;
        let theirs = ours.saturating_add(self.shared.clock.load(Ordering::Relaxed));
        theirs.try_into().unwrap_or(0)
    }

    /// Hands these commands over, in one piece and behind what was handed over before: when this returns, they will be
    /// sent, unless the caller leaves and they are to be forgotten then.
    ///
    /// It doesn't wait, unless thousands do already.
    pub(crate) async fn send(
        &self,
        commands: Commands,
        left: Left,
    ) -> std::result::Result<Sent, NotSent> {
        if self.is_over() {
            return Err(NotSent);
        }
        let mut sent = Sent {
            reply: Some(commands.send_over(self.handle.clone())),
            answered: None,
            under_way: Some(UnderWay::one_more(&self.shared)),
            left,
            rt: self.rt,
        };
        self.shared.waits();
        self.shared.is_used();
        // The first poll puts it into the driver's queue; a task that has worked for long isn't spared it.
        unconstrained(poll_fn(|context| {
            sent.poll(context);
            Poll::Ready(())
        }))
        .await;
        Ok(sent)
    }

    /// The same for those who don't wait, outside a runtime not at all.
    pub(crate) fn send_apart(&self, commands: Commands) {
        if self.is_over() {
            return;
        }
        let reply = commands.send_over(self.handle.clone());
        let under_way = UnderWay::one_more(&self.shared);
        self.shared.waits();
        self.shared.is_used();
        self.rt.spawn_if_running(async move {
            // There is nobody who could be told.
            let _ = reply.await;
            drop(under_way);
        });
    }

    /// Whether no byte has come since so many had.
    pub(crate) fn is_silent_since(&self, heard: u64) -> bool {
        self.shared.bytes_in.load(Ordering::Relaxed) == heard
    }

    /// Bytes that have come so far.
    pub(crate) fn heard(&self) -> u64 {
        self.shared.bytes_in.load(Ordering::Relaxed)
    }

    /// Ends it for this reason; what is under way on it fails.
    pub(crate) fn condemn(&self, error: Error) {
        self.shared.condemn(error);
    }

    /// Takes nothing more, and ends when what is under way has its answers.
    pub(crate) fn drain(&self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.wanted.notify_one();
        self.shared.changed.notify_one();
    }

    /// An answer that was taken out, which the crate has a number for; once.
    pub(crate) fn strings(&self, answer: &Value) -> Option<Gots> {
        self.shared.strings(answer)
    }

    /// Why what was under way has no answer.
    pub(crate) fn lost(&self, error: &redis::RedisError) -> Error {
        self.shared.lost(error)
    }
}

impl Drop for Connection {
    /// Nobody will send anything more, so its task, which has a handle of its own, ends with what is under way.
    fn drop(&mut self) {
        self.drain();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.shared.server)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Commands {
    fn send_over(self, mut handle: MultiplexedConnection) -> Reply {
        match self {
            Self::One(command) => Box::pin(async move {
                let answer = handle.send_packed_command(&command).await?;
                Ok(vec![answer])
            }),
            Self::Several(pipeline) => Box::pin(async move {
                let count = pipeline.len();
                handle.send_packed_commands(&pipeline, 0, count).await
            }),
        }
    }
}

impl Sent {
    /// The answers, one for each command.
    pub(crate) async fn answers(&mut self) -> RedisResult<Vec<Value>> {
        poll_fn(|context| {
            self.poll(context);
            match self.answered.take() {
                Some(answered) => {
                    self.under_way = None;
                    Poll::Ready(answered)
                }
                None => Poll::Pending,
            }
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(reply) = &mut self.reply
            && let Poll::Ready(answered) = reply.as_mut().poll(context)
        {
            self.answered = Some(answered);
            self.reply = None;
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let Some(under_way) = self.under_way.take() else {
            return;
        };
        match (self.left, self.reply.take(), self.answered.take()) {
            (Left::Forgotten, _, _) => {}
            (Left::GoOn, Some(reply), _) => self.rt.spawn_if_running(async move {
                // Whoever wanted to know what it says has left.
                let _ = reply.await;
                drop(under_way);
            }),
            (Left::TakeOff, Some(reply), _) => self.rt.spawn_if_running(async move {
                under_way.take_off(reply.await);
            }),
            (Left::TakeOff, None, Some(answered)) => under_way.take_off(answered),
            (Left::GoOn | Left::TakeOff, None, _) => {}
        }
    }
}

impl UnderWay {
    fn one_more(shared: &Arc<Shared>) -> Self {
        shared.under_way.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }

    /// Takes arrays off the shelf that nobody will fetch.
    fn take_off(&self, answered: RedisResult<Vec<Value>>) {
        for answer in answered.into_iter().flatten() {
            drop(self.0.strings(&answer));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let shared = &*self.0;
        if shared.under_way.fetch_sub(1, Ordering::Relaxed) == 1
            && shared.draining.load(Ordering::Relaxed)
        {
            shared.changed.notify_one();
        }
    }
}

impl Shared {
    fn new(setting: &Setting) -> Self {
        Self {
            rt: setting.rt,
            server: Arc::clone(&setting.server),
            counters: Arc::clone(&setting.counters),
            start: setting.rt.now(),
            bytes_in: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            clock: AtomicI64::new(0),
            under_way: AtomicU64::new(0),
            over: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            used: AtomicBool::new(false),
            wanted: Notify::new(),
            changed: Notify::new(),
            verdict: Mutex::default(),
            shelf: Arc::default(),
        }
    }

    fn strings(&self, answer: &Value) -> Option<Gots> {
        match answer {
            Value::Int(number) => self.shelf.fetch(*number),
            _ => None,
        }
    }

    fn count_sent(&self, bytes: usize) {
        let counter = &self.counters.bytes_out;
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }

    /// Notes that something is being sent.
    fn waits(&self) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            let now = self.elapsed(self.rt.now()).as_micros() as u64;
            // Whoever comes second waits no longer than who was first.
            let _ = self.waiting_since.compare_exchange(
                0,
                now.max(1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    fn is_used(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
            self.wanted.notify_one();
        }
    }

    /// For how long no byte has come although one is waited for.
    fn silence(&self) -> Duration {
        match self.waiting_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self
                .elapsed(self.rt.now())
                .saturating_sub(Duration::from_micros(since)),
        }
    }

    /// Sets our idea of the server's clock by what it said to a question of then.
    fn set_clock(&self, asked: Instant, time: u64) {
        let now = self.rt.now();
        // It answered at some moment in between.
        let then = self.elapsed(asked) + now.saturating_duration_since(asked) / 2;
        let theirs = i64::try_from(time).unwrap_or(i64::MAX);
        self.clock.store(
            theirs.saturating_sub(then.as_millis() as i64),
            Ordering::Relaxed,
        );
    }

    fn condemn(&self, error: Error) {
        self.over.store(true, Ordering::Relaxed);
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.get_or_insert(error);
        drop(verdict);
        self.wanted.notify_one();
        self.changed.notify_one();
    }

    fn verdict(&self) -> Option<Error> {
        let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        verdict.clone()
    }

    /// What an error of the crate means, which is always the end of the connection.
    fn lost(&self, error: &redis::RedisError) -> Error {
        if let Some(verdict) = self.verdict() {
            return verdict;
        }
        // What can't be read may be anything, values included, so it isn't quoted.
        if error.kind() == redis::ErrorKind::Parse {
            let counter = &self.counters.protocol_violations;
            counter.fetch_add(1, Ordering::Relaxed);
            let error = Error::new(
                ErrorKind::Protocol,
                format!("redis {}: said something that can't be placed", self.server),
            );
            self.condemn(error.clone());
            return error;
        }
        self.closed("the server closed it, or can't be reached any more")
    }

    fn closed(&self, why: &str) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!("redis {}: the connection was lost ({why})", self.server),
        )
    }
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What keeps a connection going, to its end.
pub(super) struct Task {
    driver: Driver,
    watch: Watch,
    closes: Closes,
}

/// Closes the connection to callers when its task ends, also if that is because its runtime does.
struct Closes(Arc<Shared>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// Watches over a connection.
struct Watch {
    handle: MultiplexedConnection,
    identity: Identity,
    shared: Arc<Shared>,
    stall: Duration,
    idle: Option<Duration>,
}

impl Task {
    /// Runs until the connection is lost, drained, or long unused.
    pub(super) async fn run(self) -> End {
        let Self {
            driver,
            watch,
            closes,
        } = self;
        let shared = &closes.0;
        let end = tokio::select! {
            end = watch.run() => end,
            () = driver => match shared.verdict() {
                Some(error) => End::Lost(error),
                None if shared.draining.load(Ordering::Relaxed) => End::Done,
                None => End::Lost(shared.closed("the server closed it")),
            },
        };
        if let End::Lost(error) = &end {
            // For those whose answers are lost with it, as soon as the driver is dropped.
            shared.condemn(error.clone());
        }
        end
    }
}

impl Watch {
    async fn run(self) -> End {
        let tick = self.stall.min(BEAT) / 4;
        loop {
            // Nothing is asked of a server, and no timer runs, while nobody wants anything of it.
            let wanted = self.shared.wanted.notified();
            match self.idle {
                None => wanted.await,
                Some(limit) => {
                    if self.shared.rt.timeout(limit, wanted).await.is_none()
                        && self.shared.under_way.load(Ordering::Relaxed) == 0
                    {
                        return End::Done;
                    }
                }
            }
            if let Some(end) = self.while_used(tick).await {
                return end;
            }
        }
    }

    /// Until nobody has used it for a beat, or it has to end.
    async fn while_used(&self, tick: Duration) -> Option<End> {
        let shared = &*self.shared;
        loop {
            let beat = shared.rt.now() + BEAT;
            while shared.rt.now() < beat {
                if let Some(end) = self.wait(tick).await {
                    return Some(end);
                }
            }
            let mut asked = pin!(self.ask());
            loop {
                tokio::select! {
                    biased;
                    said = &mut asked => {
                        match said {
                            Ok(()) => break,
                            Err(error) => shared.condemn(error),
                        }
                    }
                    end = self.wait(tick) => if end.is_some() {
                        return end;
                    }
                }
                if let Some(error) = shared.verdict() {
                    return Some(End::Lost(error));
                }
            }
            let is_used = shared.used.swap(false, Ordering::Relaxed);
            if !is_used && shared.under_way.load(Ordering::Relaxed) == 0 {
                return None;
            }
        }
    }

    /// Waits a moment, and says whether it has to end.
    async fn wait(&self, tick: Duration) -> Option<End> {
        let shared = &*self.shared;
        // Looked at first: what was said before anybody listened isn't lost, and nor is it waited for.
        if let Some(end) = self.end() {
            return Some(end);
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = shared.rt.sleep(tick) => {}
        }
        self.end()
    }

    fn end(&self) -> Option<End> {
        let shared = &*self.shared;
        if let Some(error) = shared.verdict() {
            return Some(End::Lost(error));
        }
        if shared.draining.load(Ordering::Relaxed) && shared.under_way.load(Ordering::Relaxed) == 0
        {
            return Some(End::Done);
        }
        if shared.silence() >= self.stall {
            let (server, stall) = (&shared.server, self.stall);
            return Some(End::Lost(Error::new(
                ErrorKind::Timeout,
                format!("redis {server}: has said nothing for {stall:?}"),
            )));
        }
        None
    }

    /// Asks whether the server is still what it was, and what time it is there.
    async fn ask(&self) -> Result<()> {
        let shared = &*self.shared;
        let mut question = Pipeline::new();
        question.cmd("INFO").arg("replication").cmd("TIME");
        let asked = shared.rt.now();
        shared.waits();
        let mut handle = self.handle.clone();
        let answers = handle
            .send_packed_commands(&question, 0, 2)
            .await
            .map_err(|error| shared.lost(&error))?;
        match &answers[..] {
            [replication, time] if identity::text(replication).is_some() => {
                let replication = identity::text(replication).unwrap_or_default();
                identity::still(&shared.server, &self.identity, &replication)?;
                if let Some(time) = shared.strings(time).and_then(identity::milliseconds) {
                    shared.set_clock(asked, time);
                }
                Ok(())
            }
            // It is busy or loading, or forbids what it allowed before. A later beat will tell.
            _ => Ok(()),
        }
    }
}

/// A stream whose bytes are counted, and whose values are taken out.
struct Metered {
    tap: Tap,
    writer: Writer,
    shared: Arc<Shared>,
}

enum Writer {
    Plain(Box<dyn AsyncWrite + Send + Unpin>),
    /// To a node of a cluster.
    Gets(Gets),
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { tap, shared, .. } = &mut *self;
        let read = tap.poll_read(context, buffer, |count| {
            let count = count as u64;
            shared.waiting_since.store(0, Ordering::Relaxed);
            shared.bytes_in.fetch_add(count, Ordering::Relaxed);
            shared.counters.bytes_in.fetch_add(count, Ordering::Relaxed);
        });
        // What TLS says of us would be lost on the crate.
        let reason = match &read {
            Poll::Ready(Ok(())) if tap.is_tls() => {
                Some("speaks TLS on this port; write rediss:// or set `tls = true`".to_owned())
            }
            Poll::Ready(Err(error)) => tls::refused_us(error),
            _ => None,
        };
        if let Some(reason) = reason {
            let message = format!("redis {}: {reason}", shared.server);
            shared.condemn(Error::new(ErrorKind::Config, message));
        }
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            tap,
            writer,
            shared,
        } = &mut *self;
        match writer {
            Writer::Plain(writer) => {
                let written = Pin::new(writer).poll_write(context, bytes);
                if let Poll::Ready(Ok(count)) = &written {
                    shared.count_sent(*count);
                }
                written
            }
            Writer::Gets(gets) => {
                gets.poll_write(context, bytes, tap.due(), |count| shared.count_sent(count))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { writer, shared, .. } = &mut *self;
        match writer {
            Writer::Plain(writer) => Pin::new(writer).poll_flush(context),
            Writer::Gets(gets) => gets.poll_flush(context, |count| shared.count_sent(count)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { writer, shared, .. } = &mut *self;
        match writer {
            Writer::Plain(writer) => Pin::new(writer).poll_shutdown(context),
            Writer::Gets(gets) => gets.poll_shutdown(context, |count| shared.count_sent(count)),
        }
    }
}
