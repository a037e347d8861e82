//! One connection: a socket, the task that owns it, and what is under way on it.
//!
//! Callers append their commands to the connection's buffer and queue what they expect under one short lock; the task
//! writes the buffer, reads replies, and answers. It reads while it writes, always: a server that can't send stops
//! reading, so writing everything first would hang both. While several requests are under way it lets every task that
//! can run go first and add its own, so that requests of many tasks leave in one write.
//!
//! A connection never outlives its socket, and the buffer belongs to this very socket. So a lease that was won here can
//! be used up here and nowhere else: what the socket's end leaves in the buffer is never written to the next one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::BytesMut;
use larder_core::{Error, ErrorKind, Instant, Rt};
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exchange::{self, Exchange, Expects, Failure, Orphan, Progress, Writes};
use super::handshake::Greeted;
use super::protocol::{Quiet, Violation};
use super::wire::{Parser, Wire};
use crate::transport::Io;

/// Bytes of requests that bulk calls may have under way on one connection.
const WINDOW: usize = 1 << 20;

/// How much is read at once, at least.
const READ_SPACE: usize = 16 << 10;

/// How much room a read buffer is made with. Values are slices of it, and keep it alive.
const READ_BUFFER: usize = 64 << 10;

/// How much room is made for a value because its length was announced: that of an item of the usual limit. For a longer
/// one room is made as its bytes arrive, since nothing but them proves that it is as long as was said.
const TRUSTED: usize = 1 << 20;

/// So much output is written at once, without waiting for more.
const WORTH_A_WRITE: usize = 8 << 10;

/// An output buffer that grew beyond this is given back once nothing is under way for a while. Sooner would be dear:
/// the kernel hands out new memory page by page.
const KEEP_OUTPUT: usize = 64 << 10;

/// From the moment when a deadline is noticed to the moment when it is judged.
///
/// The runtime looks at sockets and then at the clock, in turns. Where processors are short a long time may pass between the
/// two, so that a deadline is noticed before bytes are that came long before it. An alarm that is set only then goes off in a
/// later turn: by then the sockets were looked at once more, after the deadline, and what came in time has been read.
const SECOND_LOOK: Duration = Duration::from_millis(1);

/// How long the reply of an abandoned lease's release is waited for.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

/// Numbers every connection that this process ever made.
static GENERATIONS: AtomicU64 = AtomicU64::new(0);

/// What one server's connections count.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) trips: AtomicU64,
    pub(super) keys: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) times_down: AtomicU64,
    pub(super) protocol_violations: AtomicU64,
    pub(super) out_of_memory: AtomicU64,
}

/// Who is told how the server does.
pub(super) trait Watch: Send + Sync + 'static {
    /// A caller got its answer in time.
    fn heard(&self);

    /// A deadline passed; `silent` if nothing at all had come while it ran.
    fn missed(&self, silent: bool);
}

/// A connection's handle. Dropping it lets what is under way end, and closes the socket.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    /// The room for bulk calls: permits are bytes.
    pub(super) window: Arc<Semaphore>,
    /// The server's version.
    pub(super) version: String,
}

#[derive(Debug)]
struct Shared {
    generation: u64,
    /// Exchanges that have no answer yet.
    outstanding: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    wire: Wire,
    /// Commands that the task hasn't taken yet, and what each expects.
    output: Vec<u8>,
    queue: Vec<Exchange>,
    phase: Phase,
    waker: Option<Waker>,
    /// The task waits for anything to do.
    parked: bool,
    /// When the task looks at deadlines next.
    alarm: Option<Instant>,
    /// The earliest deadline of the queue.
    earliest: Option<Instant>,
    opaque: u32,
    /// Until when a lease may stand that was won here.
    leased_until: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Phase {
    Open,
    /// Takes nothing new; ends once everything is answered.
    Draining,
    Ended(Error),
}

/// When a request's caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) deadline: Instant,
    pub(super) patience: Duration,
    /// How long a lease may stand that is won by it.
    pub(super) lease: Option<Duration>,
}

impl Limit {
    /// So long from now on.
    pub(super) fn new(rt: Rt, patience: Duration) -> Self {
        Self {
            deadline: later(rt.now(), patience),
            patience,
            lease: None,
        }
    }
}

/// The instant so long after this one. A caller's duration may be longer than clocks reach: that is far away.
pub(super) fn later(from: Instant, by: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    from.checked_add(by).unwrap_or_else(|| from + FAR)
}

/// The room that so many bytes of a bulk call take: what is larger than all of it goes alone.
pub(super) fn room_of(bytes: usize) -> u32 {
    u32::try_from(bytes.min(WINDOW)).expect("the window is below 4 GiB")
}

impl Connection {
    /// The number of this very connection, which no other ever has: the origin of the leases won on it.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// Exchanges that have no answer yet.
    pub(super) fn outstanding(&self) -> u64 {
        self.shared.outstanding.load(Ordering::Relaxed)
    }

    /// Hands a request to the socket: `build` appends its commands and says what they expect.
    ///
    /// It gets an opaque that differs from those of everything else under way. Fails if the connection has ended.
    pub(super) fn submit(
        &self,
        limit: Limit,
        room: Option<OwnedSemaphorePermit>,
        build: impl FnOnce(&mut Vec<u8>, u32) -> Expects,
    ) -> Result<(), Error> {
        let mut state = self.shared.lock();
        match &state.phase {
            Phase::Open => {}
            Phase::Draining => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the memcached client is closed",
                ));
            }
            Phase::Ended(error) => return Err(error.clone()),
        }
        let waker = state.push(limit, room, build);
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Gives back leases that came for callers who have left; does nothing on a connection that has ended.
    pub(super) fn release(&self, orphans: &[Orphan], rt: Rt) {
        let mut state = self.shared.lock();
        if matches!(state.phase, Phase::Ended(_)) {
            return;
        }
        let waker = state.release(orphans, rt);
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Room for a bulk call's bytes, if it is free.
    pub(super) fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let window = Arc::clone(&self.window);
        window.try_acquire_many_owned(room_of(bytes)).ok()
    }

    /// Takes nothing new, and ends once everything is answered.
    pub(super) fn drain(&self) {
        let mut state = self.shared.lock();
        if matches!(state.phase, Phase::Open) {
            state.phase = Phase::Draining;
        }
        let waker = state.unpark();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.drain();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock but a caller's `build`, and that only appends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues a request, and says whom to wake.
    fn push(
        &mut self,
        limit: Limit,
        room: Option<OwnedSemaphorePermit>,
        build: impl FnOnce(&mut Vec<u8>, u32) -> Expects,
    ) -> Option<Waker> {
        self.opaque = self.opaque.wrapping_add(1) & 0xffff;
        let expects = build(&mut self.output, self.opaque);
        self.queue.push(Exchange {
            expects,
            deadline: limit.deadline,
            patience: limit.patience,
            _room: room,
        });
        if self
            .earliest
            .is_none_or(|earliest| limit.deadline < earliest)
        {
            self.earliest = Some(limit.deadline);
        }
        if let Some(lease) = limit.lease {
            self.leased_until = self.leased_until.max(Some(later(limit.deadline, lease)));
        }
        let in_time = self.alarm.is_some_and(|alarm| alarm <= limit.deadline);
        match self.parked || !in_time {
            true => self.unpark(),
            false => None,
        }
    }

    /// Queues the release of leases that nobody will fill: their placeholders would keep all others waiting.
    fn release(&mut self, orphans: &[Orphan], rt: Rt) -> Option<Waker> {
        let limit = Limit::new(rt, RELEASE_PATIENCE);
        let wire = self.wire;
        self.push(limit, None, |output, _| {
            for (position, orphan) in orphans.iter().enumerate() {
                let opaque = u32::try_from(position).expect("a batch has fewer keys");
                wire.delete(output, &orphan.key, Some(orphan.cas), opaque, Quiet::Yes);
            }
            output.extend_from_slice(wire.noop());
            Expects::Writes(Writes::quiet(orphans.len(), None))
        })
    }

    /// Keeps the task's waker for those who add something.
    fn remember(&mut self, waker: &Waker) {
        if !self.waker.as_ref().is_some_and(|old| old.will_wake(waker)) {
            self.waker = Some(waker.clone());
        }
    }

    fn unpark(&mut self) -> Option<Waker> {
        self.parked = false;
        self.waker.clone()
    }
}

/// What a connection's task needs to know beside its socket.
pub(super) struct Setting<W> {
    pub(super) rt: Rt,
    pub(super) server: Arc<str>,
    pub(super) counters: Arc<Counters>,
    pub(super) watch: W,
    /// How long the server may be silent while something is under way.
    pub(super) stall: Duration,
    /// Ends after this long without a request.
    pub(super) idle: Option<Duration>,
}

/// Makes a connection of an open socket; the task is to be run, and ends with the socket.
pub(super) fn connection<W: Watch>(
    io: Io,
    greeted: Greeted,
    setting: Setting<W>,
) -> (Connection, Task<W>) {
    let shared = Arc::new(Shared {
        generation: GENERATIONS.fetch_add(1, Ordering::Relaxed) + 1,
        outstanding: AtomicU64::new(0),
        state: Mutex::new(State {
            wire: greeted.parser.wire(),
            output: Vec::new(),
            queue: Vec::new(),
            phase: Phase::Open,
            waker: None,
            parked: false,
            alarm: None,
            earliest: None,
            opaque: 0,
            leased_until: None,
        }),
    });
    let task = Task {
        shared: Arc::clone(&shared),
        last_use: setting.rt.now(),
        setting,
        io,
        parser: greeted.parser,
        input: greeted.input,
        output: Vec::new(),
        written: 0,
        unflushed: false,
        in_flight: VecDeque::new(),
        silent_since: None,
        alarm: None,
        is_due: false,
        is_first: false,
        gathered: false,
        answered: 0,
    };
    let connection = Connection {
        shared,
        window: Arc::new(Semaphore::new(WINDOW)),
        version: greeted.version,
    };
    (connection, task)
}

/// The owner of one socket.
pub(super) struct Task<W: Watch> {
    setting: Setting<W>,
    shared: Arc<Shared>,
    io: Io,
    parser: Parser,
    /// Bytes read and not parsed yet.
    input: BytesMut,
    /// Commands taken from the callers, of which so many bytes are written.
    output: Vec<u8>,
    written: usize,
    /// The transport, TLS for one, may keep some of what is written to itself.
    unflushed: bool,
    /// What the commands taken so far expect, in order.
    in_flight: VecDeque<Exchange>,
    /// Since when something is under way and nothing comes.
    silent_since: Option<Instant>,
    last_use: Instant,
    alarm: Option<Alarm>,
    /// The alarm went off, and the next one is that of the second look.
    is_due: bool,
    /// The output is the first after nothing was under way.
    is_first: bool,
    /// The other tasks had their turn since the last write.
    gathered: bool,
    /// Exchanges answered since the last write.
    answered: usize,
}

type Alarm = (Instant, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was told to, or nobody used it.
    Closed,
    /// It was lost, or is of no use any more.
    Lost(Error),
}

enum Step {
    Gather,
    End(End),
}

impl<W: Watch> Task<W> {
    /// Serves the connection until it ends.
    pub(super) async fn run(mut self) -> End {
        loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Step::Gather => self.setting.rt.yield_now().await,
                Step::End(end) => {
                    self.finish(match &end {
                        End::Closed => self.error("the connection was closed", None),
                        End::Lost(error) => error.clone(),
                    });
                    return end;
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            let has_read = match self.poll_read(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(end)) => return Poll::Ready(Step::End(end)),
                Poll::Pending => false,
            };
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) if has_read => {}
                Poll::Ready(Ok(())) => match self.take(cx) {
                    Taken::Some => {}
                    Taken::Nothing => break,
                    Taken::Later => return Poll::Ready(Step::Gather),
                    Taken::Drained => return Poll::Ready(Step::End(End::Closed)),
                },
                Poll::Ready(Err(end)) => return Poll::Ready(Step::End(end)),
                Poll::Pending if has_read => {}
                Poll::Pending => {
                    self.mind_queue(cx);
                    break;
                }
            }
        }
        while let Some((_, alarm)) = &mut self.alarm {
            ready!(alarm.as_mut().poll(cx));
            self.alarm = None;
            self.is_due = !self.is_due;
            if self.is_due {
                self.arm(self.setting.rt.now() + SECOND_LOOK);
            } else if let Some(end) = self.check_deadlines() {
                return Poll::Ready(Step::End(end));
            }
        }
        Poll::Pending
    }

    fn arm(&mut self, at: Instant) {
        let rt = self.setting.rt;
        self.alarm = Some((at, Box::pin(async move { rt.sleep_until(at).await })));
    }

    /// Reads once and answers what is whole.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if self.input.capacity() - self.input.len() < READ_SPACE {
            let wanted = self.parser.wants().saturating_sub(self.input.len());
            let trusted = wanted.min(self.input.len().max(TRUSTED));
            // Without the space behind it, a value would be moved once more when only its end is missing.
            self.input.reserve((trusted + READ_SPACE).max(READ_BUFFER));
        }
        let read = pin!(self.io.reader.read_buf(&mut self.input));
        let count = match ready!(read.poll(cx)) {
            Ok(0) => return Poll::Ready(Err(self.lost("the server closed the connection", None))),
            Ok(count) => count,
            // An end without TLS's own word for it: no reply is whole by its end alone, so none can be cut unnoticed.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Err(self.lost("the server closed the connection", None)));
            }
            Err(error) => {
                return Poll::Ready(Err(self.lost("the connection was lost", Some(error))));
            }
        };
        let counters = &self.setting.counters;
        counters.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        let (answered, in_time) = match self.answer() {
            Ok(counts) => counts,
            Err(violation) => {
                let counters = &self.setting.counters;
                counters.protocol_violations.fetch_add(1, Ordering::Relaxed);
                let error = Error::new(
                    ErrorKind::Protocol,
                    format!(
                        "memcached {}: {}; the connection was closed",
                        self.setting.server, violation.0
                    ),
                );
                return Poll::Ready(Err(End::Lost(error)));
            }
        };
        self.silent_since = match self.in_flight.is_empty() {
            true => None,
            false => Some(self.setting.rt.now()),
        };
        if answered > 0 {
            self.answered += answered;
            self.shared
                .outstanding
                .fetch_sub(answered as u64, Ordering::Relaxed);
        }
        if in_time {
            self.setting.watch.heard();
        }
        Poll::Ready(Ok(()))
    }

    /// Hands the replies that are whole to what expects them; says how many exchanges ended, and whether one of them
    /// did while its caller waited.
    fn answer(&mut self) -> Result<(usize, bool), Violation> {
        let mut answered = 0;
        let mut in_time = false;
        let mut out_of_memory = 0;
        let mut orphans = Vec::new();
        let mut context = exchange::Context {
            server: &self.setting.server,
            generation: self.shared.generation,
            out_of_memory: &mut out_of_memory,
            orphans: &mut orphans,
        };
        while let Some(reply) = self.parser.next(&mut self.input)? {
            let Some(exchange) = self.in_flight.front_mut() else {
                return Err(Violation("a reply that nobody asked for"));
            };
            let waits = exchange.is_waiting();
            if exchange.accept(reply, self.parser.key(), &mut context)? == Progress::Done {
                in_time |= waits;
                self.in_flight.pop_front();
                answered += 1;
            }
        }
        if out_of_memory > 0 {
            let counters = &self.setting.counters;
            counters
                .out_of_memory
                .fetch_add(out_of_memory, Ordering::Relaxed);
        }
        if !orphans.is_empty() {
            self.release(&orphans);
        }
        Ok((answered, in_time))
    }

    /// Gives back leases whose winners have left.
    fn release(&self, orphans: &[Orphan]) {
        // The task is awake, so there is nobody to wake.
        let _ = self.shared.lock().release(orphans, self.setting.rt);
        self.shared.outstanding.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes what was taken; ready when all of it is with the kernel.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while self.written < self.output.len() {
            let rest = &self.output[self.written..];
            match ready!(Pin::new(&mut self.io.writer).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(self.lost("the server takes no more", None))),
                Ok(count) => {
                    self.written += count;
                    self.unflushed = true;
                    let counters = &self.setting.counters;
                    counters
                        .bytes_out
                        .fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) => {
                    return Poll::Ready(Err(self.lost("the connection was lost", Some(error))));
                }
            }
        }
        if self.unflushed {
            if let Err(error) = ready!(Pin::new(&mut self.io.writer).poll_flush(cx)) {
                return Poll::Ready(Err(self.lost("the connection was lost", Some(error))));
            }
            self.unflushed = false;
        }
        if self.is_first {
            // Only now can the server be silent about it: this process may have been held up since it took the output.
            self.is_first = false;
            self.silent_since = Some(self.setting.rt.now());
        }
        Poll::Ready(Ok(()))
    }

    /// Minds the deadlines of what can't be taken yet, since the server takes no more of what was.
    fn mind_queue(&mut self, cx: &mut Context<'_>) {
        let mut state = self.shared.lock();
        state.remember(cx.waker());
        if let Some(earliest) = state.earliest
            && state.alarm.is_none_or(|alarm| earliest < alarm)
        {
            state.alarm = Some(earliest);
            drop(state);
            self.arm(earliest);
        }
    }

    /// Takes what the callers have added; the output is all written.
    fn take(&mut self, cx: &mut Context<'_>) -> Taken {
        let mut state = self.shared.lock();
        // Who was just answered, or runs beside who has asked, is about to ask.
        let under_way = match state.queue.is_empty() {
            true => self.answered,
            false => self.answered.max(self.in_flight.len() + state.queue.len()),
        };
        if under_way > 1 && !self.gathered && state.output.len() < WORTH_A_WRITE {
            self.gathered = true;
            return Taken::Later;
        }
        self.gathered = false;
        self.answered = 0;
        if state.queue.is_empty() {
            if matches!(state.phase, Phase::Draining) && self.in_flight.is_empty() {
                return Taken::Drained;
            }
            state.parked = true;
            state.remember(cx.waker());
            let idle = self.setting.idle.map(|idle| self.last_use + idle);
            if let (Some(idle), None) = (idle, state.alarm) {
                state.alarm = Some(idle);
                drop(state);
                self.arm(idle);
            }
            return Taken::Nothing;
        }
        self.output.clear();
        self.written = 0;
        std::mem::swap(&mut state.output, &mut self.output);
        let was_idle = self.in_flight.is_empty();
        self.in_flight.extend(state.queue.drain(..));
        let earliest = state.earliest.take();
        let now = self.setting.rt.now();
        self.last_use = now;
        if was_idle {
            self.silent_since = Some(now);
            self.is_first = true;
        }
        let check = now + self.setting.stall;
        let check = earliest.map_or(check, |earliest| earliest.min(check));
        if state.alarm.is_none_or(|alarm| check < alarm) {
            state.alarm = Some(check);
            drop(state);
            self.arm(check);
        }
        Taken::Some
    }

    /// Ends what has waited too long, and says if the connection has to go.
    fn check_deadlines(&mut self) -> Option<End> {
        let now = self.setting.rt.now();
        let silence = self
            .silent_since
            .map_or(Duration::ZERO, |since| now.duration_since(since));
        let mut missed = None;
        let mut timeouts = 0;
        let mut next = None;
        let mut state = self.shared.lock();
        for exchange in self.in_flight.iter_mut().chain(&mut state.queue) {
            if !exchange.is_waiting() {
                continue;
            }
            if exchange.deadline <= now {
                exchange.fail(Failure::TimedOut);
                timeouts += 1;
                // This process may have had no turn for a long time, and then its servers on this machine hadn't either:
                // that says nothing of them.
                let late = now.duration_since(exchange.deadline);
                if late < exchange.patience / 2 {
                    // A request written a moment before the deadline, because this process was held up, proves nothing.
                    let silent = silence.saturating_sub(late) >= exchange.patience * 3 / 4;
                    missed = Some(missed.unwrap_or(false) || silent);
                }
            } else if next.is_none_or(|next| exchange.deadline < next) {
                next = Some(exchange.deadline);
            }
        }
        let counters = &self.setting.counters;
        counters.timeouts.fetch_add(timeouts, Ordering::Relaxed);
        state.earliest = None;
        let under_way = !self.in_flight.is_empty() || !state.queue.is_empty();
        if under_way {
            if silence >= self.setting.stall {
                drop(state);
                self.setting.watch.missed(true);
                return Some(self.lost("the server was silent for too long", None));
            }
            let stalled = self.silent_since.unwrap_or(now) + self.setting.stall;
            next = Some(next.map_or(stalled, |next| next.min(stalled)));
        } else {
            // All of it is written, since all of it is answered.
            self.output.clear();
            self.written = 0;
            for output in [&mut state.output, &mut self.output] {
                output.shrink_to(KEEP_OUTPUT);
            }
        }
        if let (false, Some(idle)) = (under_way, self.setting.idle) {
            let until = (self.last_use + idle).max(state.leased_until.unwrap_or(self.last_use));
            if until <= now {
                state.phase = Phase::Ended(self.error("the connection was idle", None));
                return Some(End::Closed);
            }
            next = Some(until);
        }
        state.alarm = next;
        drop(state);
        if let Some(next) = next {
            self.arm(next);
        }
        if let Some(silent) = missed {
            self.setting.watch.missed(silent);
        }
        None
    }

    fn lost(&self, what: &str, source: Option<std::io::Error>) -> End {
        End::Lost(self.error(what, source))
    }

    fn error(&self, what: &str, source: Option<std::io::Error>) -> Error {
        let server = &self.setting.server;
        match source {
            Some(source) => Error::with_source(
                ErrorKind::Unavailable,
                format!("memcached {server}: {what} ({source})"),
                source,
            ),
            None => Error::new(
                ErrorKind::Unavailable,
                format!("memcached {server}: {what}"),
            ),
        }
    }

    /// Answers everything that has no answer. What was written may have been executed.
    fn finish(&mut self, error: Error) {
        let mut state = self.shared.lock();
        if !matches!(state.phase, Phase::Ended(_)) {
            state.phase = Phase::Ended(error.clone());
        }
        let queue = std::mem::take(&mut state.queue);
        state.output = Vec::new();
        state.waker = None;
        drop(state);
        for mut exchange in self.in_flight.drain(..).chain(queue) {
            exchange.fail(Failure::Gone(error.clone()));
        }
        self.shared.outstanding.store(0, Ordering::Relaxed);
    }
}

impl<W: Watch> Drop for Task<W> {
    fn drop(&mut self) {
        // Does nothing if `run` came to its end; a runtime that shuts down drops it before.
        let error = self.error("the connection's task ended early", None);
        self.finish(error);
    }
}

enum Taken {
    Some,
    Nothing,
    /// The other tasks go first.
    Later,
    /// Nothing is under way, and nothing may be added.
    Drained,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use larder_core::{Lookup, Result};
    use tokio::io::{
        AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream,
        ReadBuf,
    };
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::super::exchange::{Looks, Texts};
    use super::super::protocol::{self, LookFlags, NOOP};
    use super::*;

    const SOON: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_secs(600);

    /// What a connection said of its server: each missed deadline, and whether there was silence.
    #[derive(Clone, Debug, Default)]
    struct Notes(Arc<Mutex<Vec<bool>>>);

    impl Watch for Notes {
        fn heard(&self) {}

        fn missed(&self, silent: bool) {
            self.0.lock().unwrap().push(silent);
        }
    }

    /// A connection whose server is played by the test.
    struct Scene {
        connection: Connection,
        server: BufReader<DuplexStream>,
        task: JoinHandle<End>,
        counters: Arc<Counters>,
        notes: Notes,
        writes: Arc<AtomicUsize>,
        /// How often there is nothing to read, whatever there is.
        unseen: Arc<AtomicUsize>,
    }

    fn scene(buffer: usize, idle: Option<Duration>) -> Scene {
        let (ours, theirs) = tokio::io::duplex(buffer);
        let (reader, writer) = tokio::io::split(ours);
        let writes = Arc::new(AtomicUsize::new(0));
        let unseen = Arc::new(AtomicUsize::new(0));
        let io = Io {
            reader: Box::new(Unseen(reader, Arc::clone(&unseen))),
            writer: Box::new(Counted(writer, Arc::clone(&writes))),
        };
        let setting = setting(idle);
        let (counters, notes) = (Arc::clone(&setting.counters), setting.watch.clone());
        let (connection, task) = connection(io, greeted(1 << 20), setting);
        Scene {
            connection,
            server: BufReader::new(theirs),
            task: Rt::new().spawn(task.run()),
            counters,
            notes,
            writes,
            unseen,
        }
    }

    fn greeted(item_size_max: usize) -> Greeted {
        Greeted {
            version: "1.6.18".to_owned(),
            item_size_max,
            maxconns: None,
            parser: Parser::new(Wire::Text, item_size_max),
            input: BytesMut::new(),
        }
    }

    fn setting(idle: Option<Duration>) -> Setting<Notes> {
        Setting {
            rt: Rt::new(),
            server: "cache:11211".into(),
            counters: Arc::default(),
            watch: Notes::default(),
            stall: Duration::from_secs(1),
            idle,
        }
    }

    /// Counts how often something is written.
    struct Counted<W>(W, Arc<AtomicUsize>);

    impl<W: AsyncWrite + Unpin> AsyncWrite for Counted<W> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// Says so often that there is nothing to read.
    struct Unseen<R>(R, Arc<AtomicUsize>);

    impl<R: AsyncRead + Unpin> AsyncRead for Unseen<R> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let left = self.1.load(Ordering::Relaxed);
            if left > 0 {
                self.1.store(left - 1, Ordering::Relaxed);
                return Poll::Pending;
            }
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    type Looked = oneshot::Receiver<std::result::Result<Vec<Result<Lookup>>, Failure>>;

    impl Scene {
        /// Looks `key` up so many times in one exchange, without asking for a lease.
        fn look(&self, count: usize, patience: Duration) -> Looked {
            look(&self.connection, count, patience)
        }

        async fn line(&mut self) -> String {
            let mut line = String::new();
            self.server.read_line(&mut line).await.unwrap();
            line.trim_end().to_owned()
        }

        async fn say(&mut self, text: &str) {
            self.server
                .get_mut()
                .write_all(text.as_bytes())
                .await
                .unwrap();
        }

        fn violations(&self) -> u64 {
            self.counters.protocol_violations.load(Ordering::Relaxed)
        }
    }

    fn look(connection: &Connection, count: usize, patience: Duration) -> Looked {
        let (answer, answered) = oneshot::channel();
        connection
            .submit(Limit::new(Rt::new(), patience), None, |output, opaque| {
                let opaque = (count == 1).then_some(opaque);
                for _ in 0..count {
                    protocol::look(output, b"key", &LookFlags::new(None, false, opaque));
                }
                if opaque.is_none() {
                    output.extend_from_slice(NOOP);
                }
                Expects::Looks(Looks {
                    count,
                    answers: Vec::new(),
                    terms: None,
                    leased: Texts::default(),
                    opaque,
                    answer: Some(answer),
                })
            })
            .unwrap();
        answered
    }

    fn is_miss(lookup: &Result<Lookup>) -> bool {
        matches!(lookup, Ok(Lookup::Miss { lease: None }))
    }

    #[tokio::test]
    async fn reads_while_it_writes() {
        // A server that sends each answer before it reads the next request, through buffers that hold neither.
        let Scene {
            connection, server, ..
        } = scene(64, None);
        let answered = look(&connection, 2_000, LATE);
        let serving = Rt::new().spawn(async move {
            let mut lines = server;
            let mut line = String::new();
            while line != "mn\r\n" {
                line.clear();
                lines.read_line(&mut line).await.unwrap();
                let answer = match line.as_str() {
                    "mn\r\n" => "MN\r\n".to_owned(),
                    _ => format!("VA 300 c7\r\n{}\r\n", "x".repeat(300)),
                };
                lines.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let answers = answered.await.unwrap().unwrap();
        assert_eq!(answers.len(), 2_000);
        for answer in answers {
            assert!(matches!(answer, Ok(Lookup::Hit { value, .. }) if value.len() == 300));
        }
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn requests_of_many_tasks_leave_in_one_write() {
        let mut scene = scene(1 << 16, None);
        for round in 1..=3 {
            let callers: Vec<_> = (0..20).map(|_| scene.look(1, LATE)).collect();
            let mut answers = String::new();
            for _ in 0..20 {
                let line = scene.line().await;
                let (_, opaque) = line.split_once(" O").unwrap();
                answers += &format!("EN O{opaque}\r\n");
            }
            scene.say(&answers).await;
            for caller in callers {
                assert!(is_miss(&caller.await.unwrap().unwrap()[0]));
            }
            assert_eq!(scene.writes.load(Ordering::Relaxed), round);
        }
    }

    #[track_caller]
    fn check_ended(scene: Scene, end: &End) {
        assert!(
            matches!(end, End::Lost(error) if error.kind() == ErrorKind::Protocol),
            "{end:?}"
        );
        assert_eq!(scene.violations(), 1);
    }

    #[tokio::test]
    async fn a_reply_that_nobody_asked_for_ends_it() {
        let mut scene = scene(1 << 10, None);
        scene.say("EN\r\n").await;
        let end = (&mut scene.task).await.unwrap();
        check_ended(scene, &end);
    }

    #[tokio::test]
    async fn a_reply_with_the_opaque_of_another_ends_it() {
        let mut scene = scene(1 << 10, None);
        let answered = scene.look(1, LATE);
        scene.line().await;
        scene.say("VA 5 c1 O999\r\nwrong\r\n").await;
        assert!(matches!(answered.await.unwrap(), Err(Failure::Gone(_))));
        let end = (&mut scene.task).await.unwrap();
        check_ended(scene, &end);
    }

    #[tokio::test]
    async fn a_batch_that_is_short_of_an_answer_hands_out_none() {
        let mut scene = scene(1 << 10, None);
        let answered = scene.look(3, LATE);
        scene.say("VA 5 c1\r\nfirst\r\nEN\r\nMN\r\n").await;
        assert!(matches!(answered.await.unwrap(), Err(Failure::Gone(_))));
        let end = (&mut scene.task).await.unwrap();
        check_ended(scene, &end);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_not_the_connection() {
        let mut scene = scene(1 << 10, None);
        let start = Rt::new().now();
        let answered = scene.look(1, SOON);
        assert!(matches!(answered.await.unwrap(), Err(Failure::TimedOut)));
        assert_eq!(start.elapsed(), SOON + SECOND_LOOK);
        assert_eq!(*scene.notes.0.lock().unwrap(), [true]);
        let late = scene.line().await;
        let next = scene.look(1, SOON);
        let opaque = |line: String| line.split_once(" O").unwrap().1.to_owned();
        let answers = [opaque(late), opaque(scene.line().await)].map(|o| format!("EN O{o}\r\n"));
        scene.say(&answers.concat()).await;
        assert!(is_miss(&next.await.unwrap().unwrap()[0]));
        assert_eq!(scene.violations(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_holds_while_the_server_takes_nothing() {
        let scene = scene(64, None);
        let start = Rt::new().now();
        let first = scene.look(100, LATE);
        Rt::new().yield_now().await;
        // The pipe is full, and nobody reads its other end.
        let second = scene.look(1, SOON);
        assert!(matches!(second.await.unwrap(), Err(Failure::TimedOut)));
        assert_eq!(start.elapsed(), SOON + SECOND_LOOK);
        assert!(matches!(first.await.unwrap(), Err(Failure::Gone(_))));
    }

    #[tokio::test]
    async fn an_announced_length_takes_no_memory() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(ours);
        let io = Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        let (connection, mut task) = connection(io, greeted(1 << 30), setting(None));
        let _answered = look(&connection, 1, LATE);
        let read_all = async |task: &mut Task<Notes>| {
            let polled = poll_fn(|cx| Poll::Ready(task.poll(cx))).await;
            assert!(polled.is_pending());
            task.input.capacity()
        };
        theirs
            .write_all(b"VA 1073741824 c1 O1\r\nab")
            .await
            .unwrap();
        assert!(read_all(&mut task).await < 2 * TRUSTED);
        // It grows with what comes.
        for _ in 0..8 {
            theirs.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
            assert!(read_all(&mut task).await < 4 * task.input.len().max(TRUSTED));
        }
        assert!(task.input.len() > 8 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_of_silence_ends_it() {
        let mut scene = scene(1 << 10, None);
        let start = Rt::new().now();
        let answered = scene.look(1, LATE);
        assert!(matches!(answered.await.unwrap(), Err(Failure::Gone(_))));
        assert_eq!(start.elapsed(), Duration::from_secs(1) + SECOND_LOOK);
        assert_eq!(*scene.notes.0.lock().unwrap(), [true]);
        assert!(matches!((&mut scene.task).await.unwrap(), End::Lost(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_is_no_silence() {
        let mut scene = scene(1 << 10, None);
        let answered = scene.look(2, Duration::from_secs(3));
        scene.say("VA 10 c1\r\n").await;
        for _ in 0..5 {
            tokio::time::advance(Duration::from_millis(900)).await;
            scene.say("x").await;
            Rt::new().yield_now().await;
        }
        assert!(matches!(answered.await.unwrap(), Err(Failure::TimedOut)));
        assert_eq!(*scene.notes.0.lock().unwrap(), [false]);
        assert!(!scene.task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_in_time_is_not_late_though_the_runtime_sees_it_late() {
        let mut scene = scene(1 << 10, None);
        let answered = scene.look(1, SOON);
        let line = scene.line().await;
        tokio::time::advance(SOON - Duration::from_millis(1)).await;
        // Neither as it comes nor at the deadline does the runtime say that there is something to read.
        scene.unseen.store(2, Ordering::Relaxed);
        let (_, opaque) = line.split_once(" O").unwrap();
        scene.say(&format!("EN O{opaque}\r\n")).await;
        assert!(is_miss(&answered.await.unwrap().unwrap()[0]));
        assert!(scene.notes.0.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_this_process_had_no_turn_is_not_the_servers() {
        for (heard, turn, notes) in [
            // Half of the answer came late, and then this process slept over the deadline.
            (Some(90), 220, &[][..]),
            // It saw to the deadline in time, or about.
            (Some(90), 101, &[false]),
            (None, 101, &[true]),
            // It slept, and perhaps the server slept as well.
            (None, 220, &[]),
        ] {
            let mut scene = scene(1 << 10, None);
            let answered = scene.look(1, SOON);
            scene.line().await;
            if let Some(heard) = heard {
                tokio::time::advance(Duration::from_millis(heard)).await;
                scene.say("VA 10 c1 O1\r\n").await;
                Rt::new().yield_now().await;
            }
            tokio::time::advance(Duration::from_millis(turn - heard.unwrap_or(0))).await;
            assert!(matches!(answered.await.unwrap(), Err(Failure::TimedOut)));
            Rt::new().yield_now().await;
            assert_eq!(*scene.notes.0.lock().unwrap(), notes, "{heard:?} {turn}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_one_ends_once_no_lease_of_it_can_stand() {
        let minute = Duration::from_secs(60);
        for (lease, expected) in [(None, minute), (Some(minute * 3), minute * 3 + SOON)] {
            let mut scene = scene(1 << 10, Some(minute));
            let start = Rt::new().now();
            let limit = Limit {
                lease,
                ..Limit::new(Rt::new(), SOON)
            };
            let (answer, answered) = oneshot::channel();
            scene
                .connection
                .submit(limit, None, |output, _| {
                    output.extend_from_slice(NOOP);
                    Expects::Noop(Some(answer))
                })
                .unwrap();
            assert_eq!(scene.line().await, "mn");
            scene.say("MN\r\n").await;
            answered.await.unwrap().unwrap();
            assert!(matches!((&mut scene.task).await.unwrap(), End::Closed));
            assert_eq!(start.elapsed(), expected + SECOND_LOOK);
        }
    }

    #[tokio::test]
    async fn dropped_it_answers_what_is_under_way_and_ends() {
        let mut scene = scene(1 << 10, None);
        let answered = scene.look(1, LATE);
        let line = scene.line().await;
        scene.connection.drain();
        let (_, opaque) = line.split_once(" O").unwrap();
        scene.say(&format!("EN O{opaque}\r\n")).await;
        assert!(is_miss(&answered.await.unwrap().unwrap()[0]));
        assert!(matches!((&mut scene.task).await.unwrap(), End::Closed));
    }
}
