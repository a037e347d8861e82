//! One server's part of a call: cut into exchanges, sent, and put together again.
//!
//! A look-up is one exchange if everything hits: `MGET`. What is absent, or of another incarnation, is leased in a second
//! one, `SET … NX GET` or a script for each. Writes are one exchange: a script for each fill and release, since they compare,
//! and one `UNLINK` for many keys. All of a call's commands are handed to the connection at once, in chunks, so that the
//! first answers are decoded while the server works on the others.
//!
//! A node of a cluster is asked key by key, since it answers key by key (see `gets`): what it sends elsewhere is said to the
//! caller, who knows the other nodes.

use std::collections::HashSet;
use std::io::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use foldhash::fast::RandomState;
use larder_core::{
    Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Keys, Lease, Lookup, Lost, Result, Set,
    Token, Trips,
};
use redis::{Cmd, Pipeline, RedisWrite as _, ServerError, Value};
use smallvec::SmallVec;

use super::connection::{Commands, Connection, Left, Sent};
use super::frame::{self, HEAD, Head, Kind, PLACEHOLDER, Placeholder, Taken};
use super::node::{Lane, Limit, Node};
use super::reply::{self, Redirect};
use super::script::{Script, Scripts};
use super::tap::Got;

/// A part of at most so many keys is small: it goes over a connection for small calls.
const SMALL: usize = 16;

/// Keys of one `MGET`.
const LOOK_CHUNK: usize = 256;

/// Keys of one exchange that leases, and of one `UNLINK`.
const WRITE_CHUNK: usize = 512;

/// About so many bytes are sent in one exchange that stores.
const WRITE_CHUNK_BYTES: usize = 256 << 10;

/// What a command has beside key and value, generously.
const COMMAND: usize = 128;

/// Some keys of a batch, all of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    keys: &'a Keys,
    /// Where in the batch they stand, in order; `None` for all of it.
    positions: Option<&'a [u32]>,
    route: Route,
}

/// What brings a part to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// It has all keys.
    Alone,
    /// The map of the cluster says that it has these.
    Owner,
    /// The node that has their slots said so, which are on their way to this one.
    Asking,
}

impl<'a> Part<'a> {
    pub(crate) fn all(keys: &'a Keys) -> Self {
        Self {
            keys,
            positions: None,
            route: Route::Alone,
        }
    }

    /// Those at these positions, of a node of a cluster.
    pub(crate) fn routed(keys: &'a Keys, positions: &'a [u32], route: Route) -> Self {
        Self {
            keys,
            positions: Some(positions),
            route,
        }
    }

    /// A pipeline of one command for each of so many keys.
    fn pipeline(&self, commands: impl ExactSizeIterator<Item = Cmd>) -> Commands {
        let mut pipeline;
        match self.route {
            Route::Alone | Route::Owner => {
                pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command);
                }
            }
            Route::Asking => {
                pipeline = Pipeline::with_capacity(2 * commands.len());
                for command in commands {
                    // It holds for the next command alone.
                    pipeline.cmd("ASKING");
                    pipeline.add_command(command);
                }
            }
        }
        Commands::Several(pipeline)
    }

    /// The answers to the commands of a pipeline of so many keys; `None` if there are others.
    fn unpacked(&self, answers: Vec<Value>, count: usize) -> Option<Vec<Value>> {
        let answers = match self.route {
            Route::Alone | Route::Owner => answers,
            Route::Asking => {
                let mut rest = answers.into_iter();
                let pairs = std::iter::from_fn(|| Some((rest.next()?, rest.next()?)));
                // Who may not ask like this is sent away by the next answer, and told why by this one.
                let answer = |(asking, answer)| match asking {
                    Value::ServerError(_) => asking,
                    _ => answer,
                };
                pairs.map(answer).collect()
            }
        };
        (answers.len() == count).then_some(answers)
    }

    pub(crate) fn len(&self) -> usize {
        self.positions.map_or(self.keys.len(), <[u32]>::len)
    }

    /// Whether what is absent here may be leased, and so stored. See `cluster` for why not while its slot is on its way.
    fn leases(&self) -> bool {
        self.route != Route::Asking
    }

    /// Where in the batch a key of this part stands.
    pub(crate) fn position(&self, index: usize) -> usize {
        self.positions
            .map_or(index, |positions| positions[index] as usize)
    }

    pub(crate) fn key(&self, index: usize) -> &'a [u8] {
        self.keys.get(self.position(index)).as_bytes()
    }
}

impl Node {
    fn lane(&self, part: Part<'_>) -> Lane {
        match part.len() {
            ..=SMALL => self.lane_of(part.key(0)),
            _ => Lane::Bulk,
        }
    }

    /// How long a call of so many keys and bytes may take, if a small one may take so long.
    fn patience(&self, small: Duration, keys: usize, bytes: usize) -> Limit {
        let for_keys = if keys > SMALL { keys / 20 } else { 0 };
        let more = Duration::from_millis((for_keys + bytes / (64 << 10)) as u64);
        Limit::new(self.rt, small + more)
    }

    /// The error of a command that the server refused; counts it, and closes the connection if it is of no more use.
    fn refused(&self, connection: &Connection, what: &str, error: &ServerError) -> Error {
        if reply::is_out_of_memory(error) {
            self.counters.out_of_memory.fetch_add(1, Ordering::Relaxed);
        }
        let ends = reply::ends_connection(error);
        let error = reply::error(&self.name, what, error);
        if ends {
            connection.condemn(error.clone());
        }
        error
    }

    fn key_left(&self) -> Error {
        let server = &self.name;
        Error::new(
            ErrorKind::Unavailable,
            format!("redis {server}: has given the key to another node since it issued the lease"),
        )
    }

    /// The error of an answer that no command of ours has.
    fn odd(&self, connection: &Connection, what: &str) -> Error {
        let counter = &self.counters.protocol_violations;
        counter.fetch_add(1, Ordering::Relaxed);
        let error = Error::new(
            ErrorKind::Protocol,
            format!("redis {}: answered a {what} with something else", self.name),
        );
        connection.condemn(error.clone());
        error
    }

    /// Waits for the answers of one exchange.
    async fn answers(&self, connection: &Connection, sent: &mut Sent) -> Result<Vec<Value>> {
        let answers = sent.answers().await;
        let answers = answers.map_err(|error| connection.lost(&error))?;
        self.heard();
        Ok(answers)
    }

    /// Does this until it is done or the time is over.
    async fn within(
        &self,
        limit: Limit,
        what: &str,
        connection: &Connection,
        work: impl Future<Output = Result<()>> + Send,
    ) -> Result<()> {
        let heard = connection.heard();
        match self.rt.timeout(limit.left(self.rt), work).await {
            Some(done) => done,
            None => {
                let error = self.late(what, limit.patience);
                self.missed(&error, connection.is_silent_since(heard));
                Err(error)
            }
        }
    }
}

fn not_sent(node: &Node) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("redis {}: the connection has ended", node.name),
    )
}

// --- looking up

/// How far a look-up has come.
#[derive(Default)]
struct Progress<'a> {
    /// So many of the part's keys were answered, or are wanted.
    looked: usize,
    /// Those that need a second step.
    wanted: Vec<Wanted>,
    /// So many of them were answered.
    settled: usize,
    /// The keys that ask for leases, once some don't.
    leased: Option<HashSet<&'a [u8], RandomState>>,
    /// Those of the answered that another node has.
    elsewhere: Vec<(usize, Redirect)>,
}

/// A key that is absent, or as good as that.
#[derive(Clone, Copy)]
struct Wanted {
    index: u32,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Nothing is there.
    Lease,
    /// Something of another incarnation is there, or of somebody else.
    Replace,
    /// Nobody asks for a lease here, but somebody does for the same key before.
    Look,
}

impl From<Value> for Got {
    fn from(answer: Value) -> Self {
        match answer {
            Value::Nil => Self::Nothing,
            Value::BulkString(value) => Self::Bytes(value.into()),
            Value::ServerError(error) => Self::Refused(error),
            _ => Self::Odd,
        }
    }
}

/// What stands under a key.
enum Seen {
    Ours(Lookup),
    /// Of another incarnation, or somebody else's.
    Foreign,
}

impl Node {
    /// Looks a part up. What it gives are positions in the batch of keys that aren't answered, since another node has them.
    pub(crate) async fn look(
        &self,
        part: Part<'_>,
        nonces: Taken,
        options: &GetOptions,
        found: Found<'_>,
    ) -> Vec<(usize, Redirect)> {
        let mut progress = Progress::default();
        let outcome = self
            .look_on(part, nonces, options, &mut progress, found)
            .await;
        if let Err(error) = outcome {
            let wanted = progress.wanted[progress.settled..].iter();
            let wanted = wanted.map(|wanted| wanted.index as usize);
            for index in (progress.looked..part.len()).chain(wanted) {
                found(part.position(index), Err(error.clone()));
            }
        }
        progress.elsewhere
    }

    /// Where this answer sends its key.
    fn redirect(&self, route: Route, answer: &Value) -> Option<Redirect> {
        match answer {
            Value::ServerError(error) => self.redirect_of(route, error),
            _ => None,
        }
    }

    /// The same for one that is a refusal.
    fn redirect_of(&self, route: Route, error: &ServerError) -> Option<Redirect> {
        match route {
            Route::Alone => None,
            Route::Owner | Route::Asking => Redirect::of(error, &self.address),
        }
    }

    async fn look_on<'a>(
        &self,
        part: Part<'a>,
        nonces: Taken,
        options: &GetOptions,
        progress: &mut Progress<'a>,
        found: Found<'_>,
    ) -> Result<()> {
        let lane = self.lane(part);
        let mut connection = self.connected(lane).await?;
        let limit = self.patience(self.config.timeout, part.len(), 0);
        let mut sent = self.send_looks(&connection, part).await;
        if sent.is_empty() {
            // It ended a moment ago, before anything was sent: another may do it.
            connection = self.connected(lane).await?;
            sent = self.send_looks(&connection, part).await;
        }
        if sent.is_empty() {
            return Err(not_sent(self));
        }
        self.count_trip(part.len(), &options.trips);
        let connection = &*connection;
        let looked = self.looked(connection, part, options, sent, progress, found);
        self.within(limit, "look-up", connection, looked).await?;
        if progress.wanted.is_empty() {
            return Ok(());
        }
        let limit = self.patience(self.config.timeout, progress.wanted.len(), 0);
        let leased = self.leased(connection, part, nonces, options, progress, found);
        self.within(limit, "lease", connection, leased).await
    }

    /// Hands all of a part's look-ups over; none if the connection has ended.
    async fn send_looks(
        &self,
        connection: &Connection,
        part: Part<'_>,
    ) -> SmallVec<[(Range<usize>, Sent); 1]> {
        let mut exchanges = SmallVec::new();
        for start in (0..part.len()).step_by(LOOK_CHUNK) {
            let range = start..part.len().min(start + LOOK_CHUNK);
            let (commands, left) = match part.route {
                // Over a connection to a node of a cluster it becomes a `GET` for each.
                Route::Alone | Route::Owner => {
                    let length: usize = range.clone().map(|index| part.key(index).len()).sum();
                    let mut command = Cmd::with_capacity(range.len() + 1, length + 4);
                    command.arg("MGET");
                    for index in range.clone() {
                        command.arg(part.key(index));
                    }
                    (Commands::One(command), Left::TakeOff)
                }
                Route::Asking => (
                    part.pipeline(range.clone().map(|index| get(part.key(index)))),
                    Left::Forgotten,
                ),
            };
            match connection.send(commands, left).await {
                Ok(sent) => exchanges.push((range, sent)),
                // What is missing is noticed by whoever waits for it.
                Err(_) => break,
            }
        }
        exchanges
    }

    /// Hands over what was found, chunk by chunk as it comes, and notes what has to be asked for again.
    async fn looked<'a>(
        &self,
        connection: &Connection,
        part: Part<'a>,
        options: &GetOptions,
        exchanges: SmallVec<[(Range<usize>, Sent); 1]>,
        progress: &mut Progress<'a>,
        found: Found<'_>,
    ) -> Result<()> {
        let mut turn = self.rt.turn();
        for (range, mut sent) in exchanges {
            let mut answers = self.answers(connection, &mut sent).await?;
            let values: Option<Vec<Got>> = match part.route {
                Route::Alone | Route::Owner => {
                    let answer = answers.pop().unwrap_or_default();
                    if let Value::ServerError(error) = &answer {
                        return Err(self.refused(connection, "look-up", error));
                    }
                    connection.strings(&answer)
                }
                Route::Asking => part
                    .unpacked(answers, range.len())
                    .map(|answers| answers.into_iter().map(Got::from).collect()),
            };
            let values = values
                .filter(|values| values.len() == range.len())
                .ok_or_else(|| self.odd(connection, "look-up"))?;
            for (index, value) in range.zip(values) {
                let position = part.position(index);
                let how = match value {
                    Got::Nothing => How::Lease,
                    Got::Bytes(value) => match seen(connection, value) {
                        Seen::Ours(lookup) => {
                            found(position, Ok(lookup));
                            progress.looked += 1;
                            continue;
                        }
                        Seen::Foreign => How::Replace,
                    },
                    Got::Refused(error) => {
                        match self.redirect_of(part.route, &error) {
                            Some(redirect) => progress.elsewhere.push((position, redirect)),
                            None => {
                                found(position, Err(self.refused(connection, "look-up", &error)));
                            }
                        }
                        progress.looked += 1;
                        continue;
                    }
                    Got::Odd => return Err(self.odd(connection, "look-up")),
                };
                match options.lease_of(position).filter(|_| part.leases()) {
                    Some(_) => progress.wanted.push(Wanted {
                        index: u32::try_from(index).expect("keys fit into 4 GiB"),
                        how,
                    }),
                    None if options.lease.is_some() && progress.leases(part, index) => {
                        progress.wanted.push(Wanted {
                            index: u32::try_from(index).expect("keys fit into 4 GiB"),
                            how: How::Look,
                        });
                    }
                    None => found(position, Ok(Lookup::Miss { lease: None })),
                }
                progress.looked += 1;
            }
            turn.over().await;
        }
        match progress.looked == part.len() {
            true => Ok(()),
            false => Err(not_sent(self)),
        }
    }

    /// The second step: leases.
    async fn leased(
        &self,
        connection: &Connection,
        part: Part<'_>,
        nonces: Taken,
        options: &GetOptions,
        progress: &mut Progress<'_>,
        found: Found<'_>,
    ) -> Result<()> {
        let asked = Asked {
            node: self,
            connection,
            part,
            nonces,
            length: options.lease.unwrap_or_default(),
            // Before the source is asked, and so before the lease is.
            wall: self.rt.wall(),
            placed: connection.server_time(),
        };
        let wanted = &progress.wanted;
        let mut orphans = Orphans {
            asked: &asked,
            wanted,
        };
        let mut exchanges: SmallVec<[(&[Wanted], Sent); 1]> = SmallVec::new();
        for chunk in wanted.chunks(WRITE_CHUNK) {
            let commands = part.pipeline(chunk.iter().map(|&wanted| asked.command(wanted)));
            let sent = connection.send(commands, Left::Forgotten).await;
            exchanges.push((chunk, sent.map_err(|_| not_sent(self))?));
        }
        self.count_trip(wanted.len(), &options.trips);
        let mut turn = self.rt.turn();
        for (chunk, mut sent) in exchanges {
            let mut answers = self.answers(connection, &mut sent).await?;
            if answers.len() != chunk.len() {
                return Err(self.odd(connection, "lease"));
            }
            let unknown = |answer: &Value| matches!(answer, Value::ServerError(error) if reply::is_unknown_script(error));
            if answers.iter().any(unknown) {
                let again: Vec<usize> = (0..chunk.len())
                    .filter(|&index| unknown(&answers[index]))
                    .collect();
                let commands = again.iter().map(|&index| asked.command(chunk[index]));
                let second = self.with_script(connection, Script::Lease, commands);
                for (index, answer) in again.iter().zip(second.await?) {
                    answers[*index] = answer;
                }
                self.count_trip(again.len(), &options.trips);
            }
            for (&wanted, answer) in chunk.iter().zip(answers) {
                let position = part.position(wanted.index as usize);
                match self.redirect(part.route, &answer) {
                    Some(redirect) => progress.elsewhere.push((position, redirect)),
                    None => found(position, asked.answer(wanted, answer)),
                }
                progress.settled += 1;
                orphans.wanted = &orphans.wanted[1..];
            }
            turn.over().await;
        }
        Ok(())
    }

    /// Loads a script that the server has forgotten, and runs these commands; the answers are theirs.
    async fn with_script(
        &self,
        connection: &Connection,
        script: Script,
        commands: impl Iterator<Item = Cmd>,
    ) -> Result<Vec<Value>> {
        let mut pipeline = Pipeline::new();
        Scripts::load_one(&mut pipeline, script);
        for command in commands {
            pipeline.add_command(command);
        }
        let count = pipeline.len();
        let sent = connection
            .send(Commands::Several(pipeline), Left::GoOn)
            .await;
        let mut sent = sent.map_err(|_| not_sent(self))?;
        let mut answers = self.answers(connection, &mut sent).await?;
        if answers.len() != count {
            return Err(self.odd(connection, "script"));
        }
        answers.remove(0);
        Ok(answers)
    }
}

impl<'a> Progress<'a> {
    /// Whether the key at this index, which is absent and asks for no lease, is leased at an earlier one.
    ///
    /// Those that ask come first in a batch, so all of them are known by now.
    fn leases(&mut self, part: Part<'a>, index: usize) -> bool {
        let wanted = &self.wanted;
        let leased = self.leased.get_or_insert_with(|| {
            let keys = wanted.iter().map(|wanted| part.key(wanted.index as usize));
            keys.collect()
        });
        leased.contains(part.key(index))
    }
}

fn get(key: &[u8]) -> Cmd {
    let mut command = Cmd::with_capacity(2, key.len() + 3);
    command.arg("GET").arg(key);
    command
}

/// What this value is to this connection.
fn seen(connection: &Connection, mut value: Bytes) -> Seen {
    let incarnation = connection.identity.incarnation;
    let Some(head) = Head::of(&value).filter(|head| head.incarnation == incarnation) else {
        return Seen::Foreign;
    };
    Seen::Ours(match head.kind {
        Kind::Entry => {
            value.advance(HEAD);
            Lookup::Hit {
                value,
                token: token(head.incarnation, head.nonce, Duration::ZERO),
            }
        }
        Kind::Placeholder => {
            let placeholder = Placeholder::of(head, &value);
            let age = connection.server_time().saturating_sub(placeholder.placed);
            Lookup::Busy {
                age: Duration::from_millis(age),
                token: token(head.incarnation, head.nonce, placeholder.length),
            }
        }
    })
}

/// Names a state: by its nonce, and for a placeholder with the length of its lease.
fn token(incarnation: u64, nonce: u64, length: Duration) -> Token {
    let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    Token {
        token: [nonce, length],
        origin: incarnation,
    }
}

/// The head of the state that a token names.
fn head(token: &Token) -> Head {
    Head {
        kind: match token.token[1] {
            0 => Kind::Entry,
            _ => Kind::Placeholder,
        },
        incarnation: token.origin,
        nonce: token.token[0],
    }
}

/// Leases that are asked for.
struct Asked<'a> {
    node: &'a Node,
    connection: &'a Connection,
    part: Part<'a>,
    nonces: Taken,
    length: Duration,
    wall: SystemTime,
    /// The server's time.
    placed: u64,
}

impl Asked<'_> {
    fn placeholder(&self, wanted: Wanted) -> Placeholder {
        Placeholder {
            incarnation: self.connection.identity.incarnation,
            nonce: self.nonces.at(wanted.index as usize),
            placed: self.placed,
            length: Duration::from_millis(frame::milliseconds(self.length)),
        }
    }

    fn command(&self, wanted: Wanted) -> Cmd {
        let key = self.part.key(wanted.index as usize);
        let (placeholder, length) = (self.placeholder(wanted), frame::milliseconds(self.length));
        match wanted.how {
            How::Look => get(key),
            How::Lease => {
                let mut command = Cmd::with_capacity(7, key.len() + PLACEHOLDER + 32);
                command.arg("SET").arg(key).arg(&placeholder.bytes()[..]);
                command.arg("NX").arg("GET").arg("PX").arg(length);
                command
            }
            How::Replace => {
                let identity = &self.connection.identity;
                let mut command = identity.scripts.call(Script::Lease, key, PLACEHOLDER + 32);
                command
                    .arg(&identity.incarnation.to_be_bytes()[..])
                    .arg(&placeholder.bytes()[..])
                    .arg(length);
                command
            }
        }
    }

    fn answer(&self, wanted: Wanted, answer: Value) -> Result<Lookup> {
        match answer {
            Value::Nil if wanted.how == How::Look => Ok(Lookup::Miss { lease: None }),
            Value::Nil => {
                let placeholder = self.placeholder(wanted);
                let token = token(
                    placeholder.incarnation,
                    placeholder.nonce,
                    placeholder.length,
                );
                Ok(Lookup::Miss {
                    lease: Some(Lease::new(token, self.wall)),
                })
            }
            Value::BulkString(value) => Ok(match seen(self.connection, value.into()) {
                Seen::Ours(lookup) => lookup,
                // It came a moment ago from somebody who takes the server for another. The next look replaces it.
                Seen::Foreign => Lookup::Miss { lease: None },
            }),
            Value::ServerError(error) => {
                let is_full = reply::is_out_of_memory(&error);
                let error = self.node.refused(self.connection, "lease", &error);
                match is_full {
                    true => Ok(Lookup::Miss { lease: None }),
                    false => Err(error),
                }
            }
            _ => Err(self.node.odd(self.connection, "lease")),
        }
    }
}

/// Leases that were asked for, and that nobody was told of yet. Dropped with some left, by a caller that has left or whose
/// deadline has passed, it gives them back behind what asked for them.
struct Orphans<'a> {
    asked: &'a Asked<'a>,
    wanted: &'a [Wanted],
}

impl Drop for Orphans<'_> {
    fn drop(&mut self) {
        let connection = self.asked.connection;
        let mut pipeline = Pipeline::new();
        for &wanted in self.wanted {
            if wanted.how == How::Look {
                continue;
            }
            let key = self.asked.part.key(wanted.index as usize);
            let placeholder = self.asked.placeholder(wanted);
            let mut command = connection.identity.scripts.call(Script::Release, key, HEAD);
            command.arg(&placeholder.bytes()[..HEAD]);
            pipeline.add_command(command);
        }
        if !pipeline.is_empty() {
            connection.send_apart(Commands::Several(pipeline));
        }
    }
}

// --- writing

/// What is written, by position in the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Job<'a> {
    Fill(&'a [Fill]),
    Set(&'a [Set]),
    Release(&'a [Lease]),
    Delete,
}

/// What became of a write, before it is said in the words of its call.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Done,
    /// Another state was there.
    Void,
    /// The lease is another incarnation's, or the connection was lost before the answer.
    Gone(Error),
    /// Another node has the key, and what is written is good there too.
    Elsewhere(Redirect),
    Failed(Error),
}

impl Job<'_> {
    /// The state that has to stand for it, if any.
    fn token(&self, position: usize) -> Option<&Token> {
        match self {
            Self::Fill(fills) => Some(&fills[position].lease.token),
            Self::Release(leases) => Some(&leases[position].token),
            Self::Set(_) | Self::Delete => None,
        }
    }

    fn value(&self, position: usize) -> Option<(&Bytes, Option<Duration>)> {
        match self {
            Self::Fill(fills) => Some((&fills[position].value, fills[position].ttl)),
            Self::Set(sets) => Some((&sets[position].value, sets[position].ttl)),
            Self::Release(_) | Self::Delete => None,
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

/// One write of a part over one connection.
struct Writing<'a> {
    node: &'a Node,
    connection: &'a Connection,
    part: Part<'a>,
    job: Job<'a>,
    nonces: Taken,
}

impl Node {
    /// Writes a part.
    pub(crate) async fn write(
        &self,
        part: Part<'_>,
        job: Job<'_>,
        nonces: Taken,
        trips: &Trips,
    ) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; part.len()];
        let written = self.write_on(part, job, nonces, trips, &mut outcomes).await;
        let rest = match written {
            Ok(()) => Outcome::Failed(not_sent(self)),
            Err(outcome) => outcome,
        };
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| rest.clone()))
            .collect()
    }

    /// What it leaves without an outcome has that of the error.
    async fn write_on(
        &self,
        part: Part<'_>,
        job: Job<'_>,
        nonces: Taken,
        trips: &Trips,
        outcomes: &mut [Option<Outcome>],
    ) -> std::result::Result<(), Outcome> {
        let lane = self.lane(part);
        let mut connection = self.connected(lane).await.map_err(Outcome::Failed)?;
        for attempt in 0.. {
            let writing = Writing {
                node: self,
                connection: &connection,
                part,
                job,
                nonces,
            };
            // The step that writes the commands: what isn't of this very incarnation goes no further.
            outcomes.fill(None);
            let indices = writing.of_this_incarnation(outcomes);
            if indices.is_empty() {
                return Ok(());
            }
            let (bytes, exchanges) = writing.send(&indices).await;
            if exchanges.is_empty() {
                // It ended a moment ago, before anything was sent: another may do it.
                if attempt == 1 {
                    return Err(Outcome::Failed(not_sent(self)));
                }
                connection = self.connected(lane).await.map_err(Outcome::Failed)?;
                continue;
            }
            self.count_trip(part.len(), trips);
            let small = match job {
                Job::Delete => self.config.flush_timeout,
                _ => self.config.timeout,
            };
            let limit = self.patience(small, part.len(), bytes);
            let lost = AtomicBool::new(false);
            let collect = async {
                let collected = writing.collect(exchanges, trips, outcomes).await;
                lost.store(collected.is_err(), Ordering::Relaxed);
                collected
            };
            let collected = self.within(limit, job.name(), &connection, collect).await;
            return collected.map_err(|error| match lost.into_inner() {
                true => Outcome::Gone(error),
                false => Outcome::Failed(error),
            });
        }
        unreachable!("the second attempt is the last")
    }
}

/// The part's indices in one exchange.
type Chunk<'a> = &'a [u32];

impl<'a> Writing<'a> {
    /// The part's indices whose lease, if they need one, is of this connection's incarnation. For the others it is too late.
    fn of_this_incarnation(&self, outcomes: &mut [Option<Outcome>]) -> Vec<u32> {
        let incarnation = self.connection.identity.incarnation;
        let gone = || {
            let server = &self.node.name;
            Error::new(
                ErrorKind::Unavailable,
                format!("redis {server}: is another than the one that issued the lease"),
            )
        };
        let stands = |index: &u32| {
            let index = *index as usize;
            let token = self.job.token(self.part.position(index));
            let stands = token.is_none_or(|token| token.origin == incarnation);
            if !stands {
                outcomes[index] = Some(match self.job {
                    // What is somebody else's by now needs no giving back.
                    Job::Release(_) => Outcome::Void,
                    _ => Outcome::Gone(gone()),
                });
            }
            stands
        };
        let count = u32::try_from(self.part.len()).expect("keys fit into 4 GiB");
        (0..count).filter(stands).collect()
    }

    /// Hands everything over in chunks; none if the connection has ended. Says how many bytes that is, about.
    async fn send<'i>(&self, indices: &'i [u32]) -> (usize, Vec<(Chunk<'i>, Sent)>) {
        let mut exchanges = Vec::new();
        let mut total = 0;
        let mut rest = indices;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest.iter().take(WRITE_CHUNK).take_while(|index| {
                let fits = bytes < WRITE_CHUNK_BYTES;
                bytes += self.size(**index as usize);
                fits
            });
            let (chunk, others) = rest.split_at(count.count());
            rest = others;
            total += bytes;
            let commands = self.commands(chunk);
            match self.connection.send(commands, Left::GoOn).await {
                Ok(sent) => exchanges.push((chunk, sent)),
                Err(_) => break,
            }
        }
        (total, exchanges)
    }

    /// About how many bytes are sent for it.
    fn size(&self, index: usize) -> usize {
        let value = self.job.value(self.part.position(index));
        COMMAND + self.part.key(index).len() + value.map_or(0, |(value, _)| value.len())
    }

    fn commands(&self, chunk: &[u32]) -> Commands {
        if self.is_one_command() {
            let mut command = Cmd::new();
            command.arg("UNLINK");
            for &index in chunk {
                command.arg(self.part.key(index as usize));
            }
            return Commands::One(command);
        }
        let commands = chunk.iter().map(|&index| self.command(index as usize));
        self.part.pipeline(commands)
    }

    /// Whether a chunk is one command with one answer: a node of a cluster takes no keys of two slots in one, and none of a
    /// slot that is half moved.
    fn is_one_command(&self) -> bool {
        matches!(self.job, Job::Delete) && self.part.route == Route::Alone
    }

    /// The command for one key; for a refused fill it gives the lease back.
    fn command(&self, index: usize) -> Cmd {
        let (key, position) = (self.part.key(index), self.part.position(index));
        let scripts = &self.connection.identity.scripts;
        let expected = self.job.token(position).map(|token| head(token).bytes());
        let is_refused = self.refusal(index).is_some();
        match (expected, self.job.value(position)) {
            (Some(expected), Some((value, ttl))) if !is_refused => {
                let mut command = scripts.call(Script::Fill, key, 2 * HEAD + value.len() + 24);
                command.arg(&expected[..]);
                self.append_value(&mut command, index, value);
                if let Some(ttl) = frame::ttl(ttl) {
                    command.arg(ttl);
                }
                command
            }
            (Some(expected), _) => {
                let mut command = scripts.call(Script::Release, key, HEAD);
                command.arg(&expected[..]);
                command
            }
            (None, Some((value, ttl))) if !is_refused => {
                let room = key.len() + HEAD + value.len() + 32;
                let mut command = Cmd::with_capacity(5, room);
                command.arg("SET").arg(key);
                self.append_value(&mut command, index, value);
                if let Some(ttl) = frame::ttl(ttl) {
                    command.arg("PX").arg(ttl);
                }
                command
            }
            (None, _) if matches!(self.job, Job::Delete) => {
                let mut command = Cmd::with_capacity(2, key.len() + 6);
                command.arg("UNLINK").arg(key);
                command
            }
            (None, _) => {
                // Something that has an answer, so that every key has one.
                let mut command = Cmd::new();
                command.arg("PING");
                command
            }
        }
    }

    fn append_value(&self, command: &mut Cmd, index: usize, value: &[u8]) {
        let head = Head {
            kind: Kind::Entry,
            incarnation: self.connection.identity.incarnation,
            nonce: self.nonces.at(index),
        };
        let mut argument = command.writer_for_next_arg();
        argument
            .write_all(&head.bytes())
            .and_then(|()| argument.write_all(value))
            .expect("a command is written into memory");
    }

    /// Why a value is not sent.
    fn refusal(&self, index: usize) -> Option<Error> {
        let (value, _) = self.job.value(self.part.position(index))?;
        let server = &self.node.name;
        if value.is_empty() {
            return Some(Error::new(
                ErrorKind::Config,
                format!(
                    "redis {server}: an empty value can't be stored, since it means a placeholder"
                ),
            ));
        }
        let (item, largest) = (
            HEAD + self.part.key(index).len() + value.len(),
            self.node.config.max_item,
        );
        (item > largest).then(|| {
            Error::new(
                ErrorKind::TooLarge,
                format!("redis {server}: an item of {item} bytes is over `max_item`, {largest}"),
            )
        })
    }

    /// Waits for all answers, and says what they mean; an error is the loss of the connection.
    async fn collect(
        &self,
        exchanges: Vec<(Chunk<'_>, Sent)>,
        trips: &Trips,
        outcomes: &mut [Option<Outcome>],
    ) -> Result<()> {
        let mut again = Vec::new();
        for (chunk, mut sent) in exchanges {
            let answers = self.node.answers(self.connection, &mut sent).await?;
            if self.is_one_command() {
                let [answer] = <[Value; 1]>::try_from(answers)
                    .map_err(|_| self.node.odd(self.connection, "delete"))?;
                let outcome = self.outcome(&answer);
                for &index in chunk {
                    outcomes[index as usize] = Some(outcome.clone());
                }
                continue;
            }
            let answers = (self.part.unpacked(answers, chunk.len()))
                .ok_or_else(|| self.node.odd(self.connection, self.job.name()))?;
            for (&index, answer) in chunk.iter().zip(answers) {
                match &answer {
                    Value::ServerError(error) if reply::is_unknown_script(error) => {
                        again.push(index);
                    }
                    _ => self.settle(index, &answer, outcomes),
                }
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        // Refused fills are releases, so a batch may need both.
        for script in [Script::Fill, Script::Release] {
            let indices: Vec<u32> = again
                .iter()
                .copied()
                .filter(|&index| self.script(index) == script)
                .collect();
            if indices.is_empty() {
                continue;
            }
            self.node.count_trip(indices.len(), trips);
            let commands = indices.iter().map(|&index| self.command(index as usize));
            let answers = self.node.with_script(self.connection, script, commands);
            for (&index, answer) in indices.iter().zip(answers.await?) {
                self.settle(index, &answer, outcomes);
            }
        }
        Ok(())
    }

    /// The script that the command for this key runs.
    fn script(&self, index: u32) -> Script {
        match self.job {
            Job::Fill(_) if self.refusal(index as usize).is_none() => Script::Fill,
            _ => Script::Release,
        }
    }

    fn settle(&self, index: u32, answer: &Value, outcomes: &mut [Option<Outcome>]) {
        let outcome = match self.refusal(index as usize) {
            Some(refusal) => Outcome::Failed(refusal),
            None => self.outcome(answer),
        };
        outcomes[index as usize] = Some(outcome);
    }

    fn outcome(&self, answer: &Value) -> Outcome {
        if let Some(redirect) = self.node.redirect(self.part.route, answer) {
            return match self.job {
                Job::Set(_) | Job::Delete => Outcome::Elsewhere(redirect),
                // The lease is this node's, and the key no longer: what stands for the lease there, if it was taken along,
                // is of another incarnation than that node, and as good as absent.
                Job::Fill(_) => Outcome::Gone(self.node.key_left()),
                Job::Release(_) => Outcome::Void,
            };
        }
        match (answer, self.job) {
            (Value::Okay, Job::Set(_)) | (Value::Int(_), Job::Delete) => Outcome::Done,
            (Value::Int(1), Job::Fill(_) | Job::Release(_)) => Outcome::Done,
            (Value::Int(0), Job::Fill(_) | Job::Release(_)) => Outcome::Void,
            // Somebody else has put a list there: whatever the lease was for is gone.
            (Value::ServerError(error), Job::Fill(_) | Job::Release(_))
                if error.code() == "WRONGTYPE" =>
            {
                Outcome::Void
            }
            (Value::ServerError(error), job) => {
                Outcome::Failed(self.node.refused(self.connection, job.name(), error))
            }
            (_, job) => Outcome::Failed(self.node.odd(self.connection, job.name())),
        }
    }
}

/// Why a fill that found another state than its lease's was lost.
pub(crate) fn fill_outcome(
    outcome: Outcome,
    lease: &Lease,
    now: SystemTime,
) -> Result<FillOutcome> {
    let length = Duration::from_millis(lease.token.token[1]);
    let has_expired =
        !length.is_zero() && (lease.won_at.checked_add(length)).is_some_and(|end| end <= now);
    match outcome {
        Outcome::Done => Ok(FillOutcome::Stored),
        Outcome::Void if has_expired => Ok(FillOutcome::Lost(Lost::Expired)),
        Outcome::Void => Ok(FillOutcome::Lost(Lost::Voided)),
        Outcome::Gone(_) | Outcome::Elsewhere(_) => Ok(FillOutcome::Lost(Lost::ConnectionGone)),
        Outcome::Failed(error) => Err(error),
    }
}

/// A delete, a release or an unconditional store: what is no longer the same needs no giving back.
pub(crate) fn done(outcome: Outcome) -> Result<()> {
    match outcome {
        Outcome::Done | Outcome::Void => Ok(()),
        Outcome::Gone(error) | Outcome::Failed(error) => Err(error),
        Outcome::Elsewhere(redirect) => Err(redirect.error()),
    }
}
