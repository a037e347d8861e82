//! One server's part of a call: cut into exchanges, submitted, and put together again.
//!
//! A small part is one exchange on a connection for small calls. A larger one goes over the bulk connection in chunks of
//! a few hundred keys, as many at once as the connection's window has room for, so that two bulk calls take turns and
//! neither needs more memory than its answers.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_core::{
    Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Keys, Lease, Lookup, Lost, Result, Set,
    Trips,
};
use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::binary;
use super::config::BulkForm;
use super::connection::{self, Connection, Limit};
use super::exchange::{
    Answer, Classic, Expects, Failure, Looks, Orphan, Sparse, Terms, Texts, Writes, Written,
    whole_seconds,
};
use super::protocol::{self, CLASSIC, LookFlags, NOOP, Quiet, Store};
use super::server::{Lane, Server};
use super::wire::Wire;

/// A part of at most so many keys is small: the server answers it without a pause.
const SMALL: usize = 16;

/// Keys of one exchange of a bulk look-up.
const LOOK_CHUNK: usize = 256;

/// Room that a looked up key takes in the window: its answer is longer than its command.
const LOOK_ROOM: usize = 128;

/// Keys, and about so many bytes, of one exchange of a bulk write.
const WRITE_CHUNK: usize = 512;
const WRITE_CHUNK_BYTES: usize = 256 << 10;

/// Keys, and about so many bytes, of one classic `gets` line: longer ones make neighbours wait.
const CLASSIC_LINE: usize = 100;
const CLASSIC_LINE_BYTES: usize = 4096;

/// What a command has beside key and value, generously.
const COMMAND: usize = 64;

/// What the server adds to key and value when it compares an item with its limit, generously.
const ITEM_HEADER: usize = 128;

/// Above 30 days the server reads seconds as a date.
const LONGEST_RELATIVE: u64 = 30 * 24 * 60 * 60;

/// The server's dates end in January 2038: it reads them into 32 bits with a sign, and takes a later one for the past.
const LAST_DATE: u64 = i32::MAX as u64;

/// Some keys of a batch, all of one server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    keys: &'a Keys,
    /// Where in the batch they stand, in order; `None` for all of it.
    positions: Option<&'a [u32]>,
}

impl<'a> Part<'a> {
    pub(super) fn all(keys: &'a Keys) -> Self {
        Self {
            keys,
            positions: None,
        }
    }

    pub(super) fn some(keys: &'a Keys, positions: &'a [u32]) -> Self {
        Self {
            keys,
            positions: Some(positions),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.positions.map_or(self.keys.len(), <[u32]>::len)
    }

    /// Where in the batch a key of this part stands.
    fn position(&self, index: usize) -> usize {
        self.positions
            .map_or(index, |positions| positions[index] as usize)
    }

    fn key(&self, index: usize) -> &'a [u8] {
        self.keys.get(self.position(index)).as_bytes()
    }
}

/// The way a call takes.
enum Through {
    /// The connection of this lane, whichever it is now.
    Lane(Lane),
    /// This very connection.
    Only(Arc<Connection>),
}

/// A range of a part that becomes one exchange.
struct Chunk {
    range: Range<usize>,
    /// Bytes it takes of the connection's window; none for small calls, which wait for nobody.
    room: Option<usize>,
}

/// What an exchange was answered.
type Answers<T> = std::result::Result<Vec<T>, Failure>;

/// What a look-up was answered.
type Looked = Answers<Result<Lookup>>;

/// The exchanges of a part, in order, with where their answers will be.
type Submitted<'a, A> = SmallVec<[(Range<usize>, Receiving<'a, A>); 1]>;

/// Where an exchange's answer will be, or why there is none.
type Receiving<'a, A> = std::result::Result<Awaited<'a, A>, Failure>;

/// What exchanges are made of.
trait Ask: Sync {
    /// What each of its keys is answered.
    type Answer: Send;

    /// Appends the commands for these keys of the part, and says what they expect.
    fn append(
        &self,
        output: &mut Vec<u8>,
        opaque: u32,
        range: Range<usize>,
        answer: Answer<Self::Answer>,
    ) -> Expects;

    /// What has to be given back if this answer finds nobody.
    fn orphans(&self, range: Range<usize>, answers: Vec<Self::Answer>) -> Orphans;
}

/// Leases of one connection, and its number.
type Orphans = Option<(u64, Vec<Orphan>)>;

/// The answer of an exchange, which may have come before its caller looks. Whoever leaves it behind gives back what was
/// won with it; if it comes later still, the connection does.
struct Awaited<'a, A: Ask> {
    server: &'a Server,
    ask: &'a A,
    range: Range<usize>,
    answered: oneshot::Receiver<Answers<A::Answer>>,
}

impl<A: Ask> Awaited<'_, A> {
    /// Waits for the answer, which always comes: the connection minds the deadline.
    async fn answer(&mut self) -> Answers<A::Answer> {
        match (&mut self.answered).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Gone(self.server.last_error())),
        }
    }
}

impl<A: Ask> Drop for Awaited<'_, A> {
    fn drop(&mut self) {
        // Once closed, either the answer is here or the connection notices that nobody takes it.
        self.answered.close();
        let Ok(Ok(answers)) = self.answered.try_recv() else {
            return;
        };
        if let Some((origin, orphans)) = self.ask.orphans(self.range.clone(), answers)
            && let Some(connection) = self.server.connection_of(origin)
        {
            connection.release(&orphans, self.server.rt);
        }
    }
}

impl Server {
    /// Submits chunk after chunk, waiting for room in between.
    async fn submit_all<'a, A: Ask>(
        &'a self,
        through: Through,
        limit: Limit,
        (keys, trips): (usize, &Trips),
        chunks: impl Iterator<Item = Chunk> + Send,
        ask: &'a A,
    ) -> Submitted<'a, A> {
        let mut connection = match &through {
            Through::Only(connection) => Ok(Arc::clone(connection)),
            Through::Lane(lane) => self.connected(*lane).await.map_err(Failure::Gone),
        };
        let mut submitted = Submitted::new();
        for Chunk { range, room } in chunks {
            let mut answered = Err(Failure::TimedOut);
            // A connection that ended before it took the first chunk has done nothing, so another may.
            for attempt in 0..3 {
                let open = match &connection {
                    Ok(open) => open,
                    Err(failure) => {
                        answered = Err(failure.clone());
                        break;
                    }
                };
                let room = match room {
                    None => None,
                    Some(bytes) => match self.room(open, bytes, limit).await {
                        Some(room) => Some(room),
                        None => {
                            connection = Err(Failure::TimedOut);
                            continue;
                        }
                    },
                };
                let result = self.ask(open, limit, room, range.clone(), ask);
                connection = match (result, &through) {
                    (Ok(awaited), _) => {
                        answered = Ok(awaited);
                        break;
                    }
                    (Err(_), Through::Lane(lane)) if submitted.is_empty() && attempt < 2 => {
                        let again = self.reconnected(*lane, open).await;
                        again.map_err(Failure::Gone)
                    }
                    (Err(error), _) => Err(Failure::Gone(error)),
                };
            }
            if submitted.is_empty() && answered.is_ok() {
                self.count_trip(keys, trips);
            }
            submitted.push((range, answered));
        }
        submitted
    }

    /// Submits a part that is one exchange at once, if its connection is there to take it.
    fn submit<'a, A: Ask>(
        &'a self,
        connection: Option<Arc<Connection>>,
        limit: Limit,
        (keys, trips): (usize, &Trips),
        ask: &'a A,
    ) -> Option<Awaited<'a, A>> {
        let awaited = self.ask(&*connection?, limit, None, 0..keys, ask).ok()?;
        self.count_trip(keys, trips);
        Some(awaited)
    }

    /// Submits one exchange; fails if the connection has ended.
    fn ask<'a, A: Ask>(
        &'a self,
        connection: &Connection,
        limit: Limit,
        room: Option<OwnedSemaphorePermit>,
        range: Range<usize>,
        ask: &'a A,
    ) -> Result<Awaited<'a, A>> {
        let (answer, answered) = oneshot::channel();
        connection.submit(limit, room, |output, opaque| {
            ask.append(output, opaque, range.clone(), answer)
        })?;
        Ok(Awaited {
            server: self,
            ask,
            range,
            answered,
        })
    }

    /// Waits for room for so many bytes, until the deadline.
    async fn room(
        &self,
        connection: &Connection,
        bytes: usize,
        limit: Limit,
    ) -> Option<OwnedSemaphorePermit> {
        if let Some(room) = connection.room(bytes) {
            return Some(room);
        }
        let bytes = connection::room_of(bytes);
        let left = limit.deadline.saturating_duration_since(self.rt.now());
        let room = Arc::clone(&connection.window).acquire_many_owned(bytes);
        // The semaphore is never closed: who waits when the connection ends gets the room its exchanges give back.
        self.rt.timeout(left, room).await?.ok()
    }

    /// How long a call of so many keys and bytes may take, if a small one may take so long.
    fn patience(&self, small: Duration, keys: usize, bytes: usize) -> Duration {
        let for_keys = if keys > SMALL { keys / 20 } else { 0 };
        let more = for_keys + bytes / (64 << 10);
        small + Duration::from_millis(more as u64)
    }

    /// The error of an exchange that has no answer.
    fn failure(&self, failure: Failure, what: &str, limit: Limit) -> Error {
        match failure {
            Failure::Gone(error) => error,
            Failure::TimedOut => self.late(what, limit.patience),
        }
    }
}

/// Ranges of a look-up of so many keys.
fn look_chunks(count: usize) -> impl Iterator<Item = Chunk> + Send {
    (0..count).step_by(LOOK_CHUNK).map(move |start| {
        let range = start..count.min(start + LOOK_CHUNK);
        Chunk {
            room: (count > SMALL).then_some(range.len() * LOOK_ROOM),
            range,
        }
    })
}

// --- looking up

/// A look-up of a part.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    part: Part<'a>,
    options: &'a GetOptions,
    terms: Option<Terms>,
    /// So many of the first keys ask for a lease.
    leased: usize,
}

/// What keys are looked up by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `mg`, which asks for the leases as well.
    Meta,
    /// Classic lines first.
    Classic,
    /// The binary protocol's gets first.
    Binary,
}

/// A look-up that is under way as one exchange.
pub(super) struct Started<'a> {
    limit: Limit,
    awaited: Awaited<'a, Look<'a>>,
}

impl Started<'_> {
    /// Hands over what it is answered.
    pub(super) async fn look_on(mut self, found: Found<'_>) {
        let answer = self.awaited.answer().await;
        let Awaited { server, ask, .. } = self.awaited;
        let range = 0..ask.part.len();
        server.looked(range, answer, self.limit, |index, answer| {
            found(ask.part.position(index), answer);
        });
    }
}

impl Server {
    /// The look-up of a part.
    pub(super) fn look_of<'a>(&self, part: Part<'a>, options: &'a GetOptions) -> Look<'a> {
        let terms = options
            .lease
            .map(|length| Terms::new(length, self.rt.wall()));
        // Positions grow, so those that may ask for a lease come first.
        let may_ask = |&index: &usize| part.position(index) < options.lease_at_most;
        let leased = match terms {
            Some(_) => (0..part.len()).take_while(may_ask).count(),
            None => 0,
        };
        Look {
            part,
            options,
            terms,
            leased,
        }
    }

    /// Submits a look-up at once if it is one exchange, and its connection is there to take it.
    pub(super) fn start_look<'a>(&'a self, look: &'a Look<'a>) -> Option<Started<'a>> {
        let count = look.part.len();
        let is_one = self.way(look) == Way::Meta && count <= LOOK_CHUNK;
        let connection = self.live(self.look_lane(look)).filter(|_| is_one)?;
        let room = match count > SMALL {
            false => None,
            true => Some(connection.room(count * LOOK_ROOM)?),
        };
        let limit = self.look_limit(look);
        let awaited = self.ask(&connection, limit, room, 0..count, look).ok()?;
        self.count_trip(count, &look.options.trips);
        Some(Started { limit, awaited })
    }

    /// Looks up what couldn't be started at once.
    pub(super) async fn look(&self, look: &Look<'_>, found: Found<'_>) {
        match self.way(look) {
            Way::Meta => self.look_meta(look, found).await,
            Way::Classic => self.look_classic(look, found).await,
            Way::Binary => self.look_binary(look, found).await,
        }
    }

    fn way(&self, look: &Look<'_>) -> Way {
        match (self.wire, self.config.bulk) {
            (Wire::Binary, _) => Way::Binary,
            (Wire::Text, BulkForm::Get) if look.part.len() > SMALL => Way::Classic,
            (Wire::Text, _) => Way::Meta,
        }
    }

    /// The connection for a look-up of this size.
    fn look_lane(&self, look: &Look<'_>) -> Lane {
        match look.part.len() > SMALL {
            true => Lane::Bulk,
            false => self.lane_of(look.part.key(0)),
        }
    }

    async fn look_meta(&self, look: &Look<'_>, found: Found<'_>) {
        self.look_by(look, look, |_, _| false, found).await;
    }

    /// Classic lines, and then `mg` for the leases of what is absent, or else somebody's already.
    async fn look_classic(&self, look: &Look<'_>, found: Found<'_>) {
        let again = |index: usize, lookup: &Lookup| {
            index < look.leased && matches!(lookup, Lookup::Miss { .. } | Lookup::Busy { .. })
        };
        let absent = self.look_by(look, &Lines(look), again, found).await;
        if let Some(second) = look.second(&absent) {
            self.look_meta(&second, found).await;
        }
    }

    /// Quiet gets, and then placeholders for what is absent.
    async fn look_binary(&self, look: &Look<'_>, found: Found<'_>) {
        // Also those that may not ask for a lease: the same key may, further in front.
        let again =
            |_: usize, lookup: &Lookup| look.leased > 0 && matches!(lookup, Lookup::Miss { .. });
        let gets = Gets { look, claim: None };
        let absent = self.look_by(look, &gets, again, found).await;
        if let Some(second) = &look.second(&absent) {
            let claims = Gets {
                look: second,
                claim: second.terms,
            };
            self.look_by(second, &claims, |_, _| false, found).await;
        }
    }

    /// Looks a part up by one kind of exchange, and hands over all but what is to be looked up `again`: it answers where
    /// that stands.
    async fn look_by<A: Ask<Answer = Result<Lookup>>>(
        &self,
        look: &Look<'_>,
        ask: &A,
        again: impl Fn(usize, &Lookup) -> bool + Send + Sync,
        found: Found<'_>,
    ) -> Vec<u32> {
        let count = look.part.len();
        let limit = self.look_limit(look);
        let through = Through::Lane(self.look_lane(look));
        let trip = (count, &look.options.trips);
        let submitted = self
            .submit_all(through, limit, trip, look_chunks(count), ask)
            .await;
        let mut open: Vec<u32> = Vec::new();
        self.look_on(submitted, limit, |index, answer| {
            let position = look.part.position(index);
            match answer {
                Ok(lookup) if again(index, &lookup) => {
                    open.push(u32::try_from(position).expect("keys fit into 4 GiB"));
                }
                answer => found(position, answer),
            }
        })
        .await;
        open
    }

    /// Hands over what the exchanges of a part are answered, one after the other as they come.
    async fn look_on<A: Ask<Answer = Result<Lookup>>>(
        &self,
        submitted: Submitted<'_, A>,
        limit: Limit,
        mut found: impl FnMut(usize, Result<Lookup>) + Send,
    ) {
        let mut turn = self.rt.turn();
        for (range, receiving) in submitted {
            let answer = match receiving {
                Ok(mut awaited) => awaited.answer().await,
                Err(failure) => Err(failure),
            };
            self.looked(range, answer, limit, &mut found);
            turn.over().await;
        }
    }

    fn look_limit(&self, look: &Look<'_>) -> Limit {
        let patience = self.patience(self.config.timeout, look.part.len(), 0);
        Limit {
            lease: look.options.lease,
            ..Limit::new(self.rt, patience)
        }
    }

    /// Hands over what one exchange was answered: one answer a key.
    fn looked(
        &self,
        range: Range<usize>,
        answer: Looked,
        limit: Limit,
        mut found: impl FnMut(usize, Result<Lookup>),
    ) {
        match answer {
            Ok(answers) => {
                for (index, answer) in range.zip(answers) {
                    found(index, answer);
                }
            }
            Err(failure) => {
                let error = self.failure(failure, "look-up", limit);
                for index in range {
                    found(index, Err(error.clone()));
                }
            }
        }
    }
}

impl<'a> Look<'a> {
    /// A look-up of what this one left open, for leases; none if that is nothing.
    fn second<'b>(&self, open: &'b [u32]) -> Option<Look<'b>>
    where
        'a: 'b,
    {
        let may_ask = |&&position: &&u32| match self.leased < self.part.len() {
            true => (position as usize) < self.part.position(self.leased),
            false => true,
        };
        (!open.is_empty()).then(|| Look {
            part: Part::some(self.part.keys, open),
            leased: open.iter().take_while(may_ask).count(),
            ..*self
        })
    }

    /// The leases among these answers, which nobody took.
    fn untaken(&self, range: Range<usize>, answers: Vec<Result<Lookup>>) -> Orphans {
        let mut origin = None;
        let mut orphans = Vec::new();
        for (index, answer) in range.zip(answers) {
            if let Ok(Lookup::Miss { lease: Some(lease) }) = answer {
                origin = Some(lease.token.origin);
                orphans.push(Orphan {
                    key: self.part.key(index).to_owned(),
                    cas: lease.token.token[0],
                });
            }
        }
        Some((origin?, orphans))
    }
}

impl Ask for Look<'_> {
    type Answer = Result<Lookup>;

    fn append(
        &self,
        output: &mut Vec<u8>,
        opaque: u32,
        range: Range<usize>,
        answer: Answer<Result<Lookup>>,
    ) -> Expects {
        let count = range.len();
        // Few are marked each, many are closed by an `mn`: it costs the server less and proves as much.
        let opaque = (count <= SMALL).then_some(opaque);
        let lease = self.terms.map(|terms| terms.seconds);
        let asked = self.leased.clamp(range.start, range.end);
        let asking = LookFlags::new(lease, self.terms.is_some(), opaque);
        // Keys of a batch are about as long as each other.
        let key_length = self.part.key(range.start).len() + 4;
        output.reserve(count * asking.command_len(key_length) + NOOP.len());
        let mut leased = Texts::default();
        if asked > range.start {
            leased = Texts::with_capacity(asked - range.start, key_length);
            for index in range.start..asked {
                let key = self.part.key(index);
                protocol::look(output, key, &asking);
                leased.push(key);
            }
        }
        if asked < range.end {
            let looking = LookFlags::new(None, self.terms.is_some(), opaque);
            for index in asked..range.end {
                protocol::look(output, self.part.key(index), &looking);
            }
        }
        if opaque.is_none() {
            output.extend_from_slice(NOOP);
        }
        Expects::Looks(Looks {
            count,
            answers: Vec::with_capacity(count),
            terms: self.terms,
            leased,
            opaque,
            answer: Some(answer),
        })
    }

    fn orphans(&self, range: Range<usize>, answers: Vec<Self::Answer>) -> Orphans {
        self.untaken(range, answers)
    }
}

/// A look-up by the binary protocol, which asks for no lease unless there are terms to claim one on.
struct Gets<'a> {
    look: &'a Look<'a>,
    /// An attempt to put a placeholder there goes before each get that may ask for a lease.
    claim: Option<Terms>,
}

impl Ask for Gets<'_> {
    type Answer = Result<Lookup>;

    fn append(
        &self,
        output: &mut Vec<u8>,
        number: u32,
        range: Range<usize>,
        answer: Answer<Result<Lookup>>,
    ) -> Expects {
        let Look {
            part,
            terms,
            leased: may_claim,
            ..
        } = *self.look;
        let count = range.len();
        let key_length = part.key(range.start).len() + 4;
        let size = binary::look_len(key_length, self.claim.is_some());
        output.reserve(count * size + binary::NOOP.len());
        let mut leased = Texts::default();
        for (place, index) in range.enumerate() {
            let key = part.key(index);
            let opaque = Sparse::opaque(number, place);
            if let Some(terms) = self.claim
                && index < may_claim
            {
                binary::claim(output, key, terms.mark(), terms.seconds, opaque);
                leased.push(key);
            }
            binary::look(output, key, opaque);
        }
        output.extend_from_slice(binary::NOOP);
        let sparse = Sparse::new(count, terms, leased, number, answer);
        Expects::Sparse(Box::new(sparse))
    }

    fn orphans(&self, range: Range<usize>, answers: Vec<Self::Answer>) -> Orphans {
        self.look.untaken(range, answers)
    }
}

/// A look-up as classic lines, which ask for no lease.
struct Lines<'a>(&'a Look<'a>);

impl Ask for Lines<'_> {
    type Answer = Result<Lookup>;

    fn append(
        &self,
        output: &mut Vec<u8>,
        _opaque: u32,
        range: Range<usize>,
        answer: Answer<Result<Lookup>>,
    ) -> Expects {
        let Look { part, terms, .. } = self.0;
        let mut keys = Texts::with_capacity(range.len(), part.key(range.start).len() + 4);
        let mut lines = Vec::new();
        let mut start = output.len();
        let mut in_line = 0;
        for index in range {
            if in_line == CLASSIC_LINE || output.len() - start > CLASSIC_LINE_BYTES {
                output.extend_from_slice(b"\r\n");
                lines.push(in_line);
                in_line = 0;
            }
            if in_line == 0 {
                start = output.len();
                output.extend_from_slice(CLASSIC);
            }
            let key = part.key(index);
            protocol::classic_key(output, key);
            keys.push(key);
            in_line += 1;
        }
        output.extend_from_slice(b"\r\n");
        lines.push(in_line);
        let length = terms.map_or(0, |terms| terms.length);
        Expects::Classic(Box::new(Classic::new(keys, lines, length, answer)))
    }

    fn orphans(&self, _: Range<usize>, _: Vec<Self::Answer>) -> Orphans {
        None
    }
}

// --- writing

/// What is written, by position in the batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job<'a> {
    Fill(&'a [Fill]),
    Set(&'a [Set]),
    Release(&'a [Lease]),
    Delete,
}

/// What became of a write, before it is said in the words of its call.
pub(super) enum Outcome {
    Written(Written),
    /// The connection that the lease was won on is gone, or went before it answered.
    ConnectionGone(Error),
}

impl Server {
    /// Writes a part.
    pub(super) async fn write(&self, part: Part<'_>, job: Job<'_>, trips: &Trips) -> Vec<Outcome> {
        if let Some(error) = self.down() {
            let down = |_| Outcome::Written(Written::Failed(error.clone()));
            return (0..part.len()).map(down).collect();
        }
        let write = Write::new(part, job, self.rt.wall(), self.item_size_max(), self.wire);
        let origin = match write.origins()[..] {
            [] => None,
            [origin] => Some(origin),
            _ => return Box::pin(self.write_to_all(&write, trips)).await,
        };
        if !write.is_small() {
            return Box::pin(self.write_chunks(&write, origin, trips)).await;
        }
        let connection = match origin {
            Some(origin) => self.connection_of(origin),
            None => self.live(self.lane_of(part.key(0))),
        };
        let limit = self.write_limit(&write);
        match self.submit(connection, limit, (part.len(), trips), &write) {
            Some(mut awaited) => {
                let answer = awaited.answer().await;
                let mut outcomes = Vec::with_capacity(part.len());
                self.written(&write, 0..part.len(), answer, limit, &mut outcomes);
                outcomes
            }
            None => Box::pin(self.write_chunks(&write, origin, trips)).await,
        }
    }

    /// Writes a part with leases of several connections: each goes back to its own.
    async fn write_to_all(&self, write: &Write<'_>, trips: &Trips) -> Vec<Outcome> {
        let part = write.part;
        let group = |origin| {
            let indices: Vec<usize> = (0..part.len())
                .filter(|&index| write.job.origin(part.position(index)) == Some(origin))
                .collect();
            let position =
                |&index: &usize| u32::try_from(part.position(index)).expect("keys fit into 4 GiB");
            let positions: Vec<u32> = indices.iter().map(position).collect();
            (origin, indices, positions)
        };
        let groups: Vec<_> = write.origins().into_iter().map(group).collect();
        let groups_written = super::join_all(groups.iter().map(|(origin, _, positions)| {
            let part = Part::some(part.keys, positions);
            let write = Write::new(part, write.job, write.wall, write.largest, write.wire);
            async move { self.write_chunks(&write, Some(*origin), trips).await }
        }));
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        outcomes.resize_with(part.len(), || None);
        for ((_, indices, _), written) in groups.iter().zip(groups_written.await) {
            for (&index, outcome) in indices.iter().zip(written) {
                outcomes[index] = Some(outcome);
            }
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.expect("every key belongs to one group"))
            .collect()
    }

    /// Writes a part whose leases, if it has any, are all of one connection.
    async fn write_chunks(
        &self,
        write: &Write<'_>,
        origin: Option<u64>,
        trips: &Trips,
    ) -> Vec<Outcome> {
        let count = write.part.len();
        let mut outcomes = Vec::with_capacity(count);
        let through = match origin.map(|origin| self.connection_of(origin)) {
            Some(Some(connection)) => Through::Only(connection),
            Some(None) => {
                let error = Error::new(
                    ErrorKind::Unavailable,
                    format!("memcached {}: the lease's connection is gone", self.name),
                );
                // A release's number may be somebody else's by now. A placeholder that stands ends by itself.
                outcomes.resize_with(count, || match write.job {
                    Job::Release(_) => Outcome::Written(Written::NotFound),
                    _ => Outcome::ConnectionGone(error.clone()),
                });
                return outcomes;
            }
            None if write.is_small() => Through::Lane(self.lane_of(write.part.key(0))),
            None => Through::Lane(Lane::Bulk),
        };
        let limit = self.write_limit(write);
        let submitted = self
            .submit_all(through, limit, (count, trips), write.chunks(), write)
            .await;
        // The last is answered last: waiting for it first, the caller is woken once.
        let mut answered: SmallVec<[_; 1]> = SmallVec::with_capacity(submitted.len());
        for (range, receiving) in submitted.into_iter().rev() {
            let answer = match receiving {
                Ok(mut awaited) => awaited.answer().await,
                Err(failure) => Err(failure),
            };
            answered.push((range, answer));
        }
        for (range, answer) in answered.into_iter().rev() {
            self.written(write, range, answer, limit, &mut outcomes);
        }
        outcomes
    }

    fn write_limit(&self, write: &Write<'_>) -> Limit {
        let small = match write.job {
            Job::Delete => self.config.flush_timeout,
            _ => self.config.timeout,
        };
        let patience = self.patience(small, write.part.len(), write.bytes);
        Limit::new(self.rt, patience)
    }

    /// Says what became of the writes of one exchange.
    fn written(
        &self,
        write: &Write<'_>,
        range: Range<usize>,
        answer: Answers<Written>,
        limit: Limit,
        outcomes: &mut Vec<Outcome>,
    ) {
        match answer {
            Ok(written) => outcomes.extend(range.zip(written).map(|(index, written)| {
                let refused = write.refusal(index, &self.name);
                Outcome::Written(refused.map_or(written, Written::Failed))
            })),
            Err(Failure::Gone(error)) => {
                outcomes.extend(range.map(|_| Outcome::ConnectionGone(error.clone())));
            }
            Err(failure @ Failure::TimedOut) => {
                let error = self.failure(failure, write.job.name(), limit);
                let late = |_| Outcome::Written(Written::Failed(error.clone()));
                outcomes.extend(range.map(late));
            }
        }
    }
}

impl Job<'_> {
    /// The connection that issued the lease at this position of the batch.
    fn origin(&self, position: usize) -> Option<u64> {
        match self {
            Self::Fill(fills) => Some(fills[position].lease.token.origin),
            Self::Release(leases) => Some(leases[position].token.origin),
            Self::Set(_) | Self::Delete => None,
        }
    }

    /// What it is called in messages.
    fn name(&self) -> &'static str {
        match self {
            Self::Fill(_) => "fill",
            Self::Set(_) => "store",
            Self::Release(_) => "release",
            Self::Delete => "delete",
        }
    }
}

/// A write of a part.
#[derive(Clone, Copy)]
struct Write<'a> {
    part: Part<'a>,
    job: Job<'a>,
    wall: SystemTime,
    /// The longest item the server takes.
    largest: usize,
    wire: Wire,
    /// About how many bytes are sent.
    bytes: usize,
    /// Whether some value may not be sent.
    refuses: bool,
}

impl<'a> Write<'a> {
    fn new(part: Part<'a>, job: Job<'a>, wall: SystemTime, largest: usize, wire: Wire) -> Self {
        let mut write = Self {
            part,
            job,
            wall,
            largest,
            wire,
            bytes: 0,
            refuses: true,
        };
        write.refuses = (0..part.len()).any(|index| write.is_refused(index));
        write.bytes = (0..part.len()).map(|index| write.size(index)).sum();
        write
    }

    /// The connections that issued its leases; none if it has none.
    fn origins(&self) -> SmallVec<[u64; 2]> {
        let mut origins = SmallVec::new();
        for index in 0..self.part.len() {
            let Some(origin) = self.job.origin(self.part.position(index)) else {
                break;
            };
            if !origins.contains(&origin) {
                origins.push(origin);
            }
        }
        origins
    }

    fn value(&self, index: usize) -> Option<&[u8]> {
        match self.job {
            Job::Fill(fills) => Some(&fills[self.part.position(index)].value),
            Job::Set(sets) => Some(&sets[self.part.position(index)].value),
            Job::Release(_) | Job::Delete => None,
        }
    }

    /// About how many bytes are sent for it.
    fn size(&self, index: usize) -> usize {
        COMMAND + self.part.key(index).len() + self.value(index).map_or(0, <[u8]>::len)
    }

    /// Whether it is one exchange among those of small calls.
    fn is_small(&self) -> bool {
        match self.part.len() {
            1 => true,
            count => count <= SMALL && self.bytes <= WRITE_CHUNK_BYTES,
        }
    }

    /// Ranges of about equal size.
    fn chunks(&self) -> impl Iterator<Item = Chunk> + Send {
        let small = self.is_small();
        let mut start = 0;
        std::iter::from_fn(move || {
            let mut end = start;
            let mut bytes = 0;
            while end < self.part.len()
                && (small || end - start < WRITE_CHUNK && bytes < WRITE_CHUNK_BYTES)
            {
                bytes += self.size(end);
                end += 1;
            }
            let range = start..end;
            start = end;
            (!range.is_empty()).then_some(Chunk {
                range,
                room: (!small).then_some(bytes),
            })
        })
    }

    /// Whether the value may be sent.
    fn is_refused(&self, index: usize) -> bool {
        self.refuses
            && self.value(index).is_some_and(|value| {
                value.is_empty()
                    || value.len() + self.part.key(index).len() + ITEM_HEADER > self.largest
            })
    }

    /// Why the value wasn't sent.
    fn refusal(&self, index: usize, server: &str) -> Option<Error> {
        if !self.is_refused(index) {
            return None;
        }
        Some(match self.value(index).map_or(0, <[u8]>::len) {
            0 => Error::new(
                ErrorKind::Config,
                format!(
                    "memcached {server}: an empty value can't be stored, since it means a placeholder"
                ),
            ),
            length => Error::new(
                ErrorKind::TooLarge,
                format!(
                    "memcached {server}: a value of {length} bytes wasn't sent, because an item may have {} with \
                     key and header; raise the server's limit (-I) and `max_item`",
                    self.largest
                ),
            ),
        })
    }

    /// Appends the command for one key, if there is one.
    fn append_one(&self, output: &mut Vec<u8>, index: usize, opaque: u32, quiet: Quiet) -> bool {
        let position = self.part.position(index);
        let key = self.part.key(index);
        match self.job {
            // A lease that can't be used is given back: its placeholder would keep all others waiting.
            Job::Fill(fills) if self.is_refused(index) => {
                let cas = fills[position].lease.token.token[0];
                self.wire.delete(output, key, Some(cas), opaque, quiet);
            }
            Job::Fill(fills) => {
                let fill = &fills[position];
                let store = Store {
                    key,
                    value: &fill.value,
                    cas: Some(fill.lease.token.token[0]),
                    ttl: self.ttl(fill.ttl),
                };
                self.wire.store(output, store, opaque, quiet);
            }
            Job::Set(_) if self.is_refused(index) => return false,
            Job::Set(sets) => {
                let set = &sets[position];
                let store = Store {
                    key,
                    value: &set.value,
                    cas: None,
                    ttl: self.ttl(set.ttl),
                };
                self.wire.store(output, store, opaque, quiet);
            }
            Job::Release(leases) => {
                let cas = leases[position].token.token[0];
                self.wire.delete(output, key, Some(cas), opaque, quiet);
            }
            Job::Delete => self.wire.delete(output, key, None, opaque, quiet),
        }
        true
    }

    /// The time to live as the server reads it; 0 is for ever.
    fn ttl(&self, ttl: Option<Duration>) -> u64 {
        let Some(seconds) = ttl.map(whole_seconds) else {
            return 0;
        };
        if seconds <= LONGEST_RELATIVE {
            return seconds;
        }
        let now = self.wall.duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        match LAST_DATE.saturating_sub(now) {
            // So close to the last date, 30 days from now are the longest that can be said.
            ..=LONGEST_RELATIVE => LONGEST_RELATIVE,
            left => now + seconds.min(left),
        }
    }
}

impl Ask for Write<'_> {
    type Answer = Written;

    fn append(
        &self,
        output: &mut Vec<u8>,
        opaque: u32,
        range: Range<usize>,
        answer: Answer<Written>,
    ) -> Expects {
        let count = range.len();
        if count == 1 && self.append_one(output, range.start, opaque, Quiet::No) {
            return Expects::Writes(Writes::single(opaque, Some(answer)));
        }
        if count > 1 {
            for (mark, index) in range.enumerate() {
                let mark = u32::try_from(mark).expect("a chunk has a few hundred keys");
                self.append_one(output, index, mark, Quiet::Yes);
            }
        }
        output.extend_from_slice(self.wire.noop());
        Expects::Writes(Writes::quiet(count, Some(answer)))
    }

    fn orphans(&self, _: Range<usize>, _: Vec<Written>) -> Orphans {
        None
    }
}

/// Why a fill that found another state than its lease's was lost.
pub(super) fn fill_outcome(
    outcome: Outcome,
    lease: &Lease,
    now: SystemTime,
) -> Result<FillOutcome> {
    match outcome {
        Outcome::ConnectionGone(_) => Ok(FillOutcome::Lost(Lost::ConnectionGone)),
        Outcome::Written(Written::Done) => Ok(FillOutcome::Stored),
        Outcome::Written(Written::NotFound) if Terms::has_expired(lease, now) => {
            Ok(FillOutcome::Lost(Lost::Expired))
        }
        Outcome::Written(Written::Exists | Written::NotFound | Written::NotStored) => {
            Ok(FillOutcome::Lost(Lost::Voided))
        }
        Outcome::Written(Written::Failed(error)) => Err(error),
    }
}

/// A delete or release: what is gone, or no longer the same, needs no deleting.
pub(super) fn deleted(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Written(Written::Failed(error)) | Outcome::ConnectionGone(error) => Err(error),
        Outcome::Written(_) => Ok(()),
    }
}

/// An unconditional store.
pub(super) fn stored(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Written(Written::Done) => Ok(()),
        Outcome::Written(Written::Failed(error)) | Outcome::ConnectionGone(error) => Err(error),
        Outcome::Written(Written::Exists | Written::NotFound | Written::NotStored) => {
            Err(Error::new(
                ErrorKind::Protocol,
                "memcached: an unconditional store wasn't stored",
            ))
        }
    }
}
