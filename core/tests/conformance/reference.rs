//! The model of the contract made asynchronous: servers that are tables, and every way to get them wrong.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use larder_core::conformance::{Abilities, Peeked, Subject};
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Instant, Key,
    Keys, Lease, Lookup, Lost, Pool, Reach, Result, Rt, ServerAnswer, ServerCheck, ServerStats,
    Set, Token, Trips, WriteOptions,
};

/// One way to break the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    AnswersReversed,
    BusyIsAlwaysNew,
    BusyNamesNobody,
    ChecksFirstServerOnly,
    CloseAbandonsWork,
    DeadServerFailsAll,
    DeadServerMisses,
    DeleteKeepsLease,
    DeleteLeavesTombstone,
    DeleteOfAbsentFails,
    DeletesFirstOfBatchOnly,
    DuplicatesDropped,
    DuplicatesWinAgain,
    EmptyAccepted,
    EmptyBatchTakesATrip,
    EverybodyWins,
    ExpiredSaysVoided,
    FillAddsWhatIsAbsent,
    FillInTwoSteps,
    FillKeepsExpiry,
    FillKeepsToken,
    FillsAtTheSecondPoll,
    FillsWaitForTheNextServer,
    HangsWithItsServer,
    KeysFoldCase,
    LargeValuesCut,
    LeaseAtMostIgnored,
    LeaseFillsAnyKey,
    LeaseForEver,
    LeaseHalved,
    LongKeysCut,
    LookWins,
    LostFillLeavesPlaceholder,
    NoTtlIsADay,
    OriginUnchecked,
    OversizedAccepted,
    OversizedFailsItsBatch,
    PoolPerHandle,
    RefusedFillKeepsLease,
    ReleaseKeepsLease,
    ReleaseOfPlaceholdersOnly,
    ReleaseUnchecked,
    ReleasesFirstOfBatchOnly,
    RepliesCross,
    ServesAfterClose,
    SetKeepsToken,
    SetNeverOverwrites,
    ShowsPassword,
    StatisticsForgotten,
    StorePerHandle,
    StoresReversed,
    TokenUnchecked,
    TokensFromKeys,
    TripPerKey,
    TripsUncounted,
    TtlAbove30DaysIsADate,
    TtlIgnored,
    TtlRoundedDown,
    ValuesDecorated,
    ValuesEndAtLineEnd,
}

const PASSWORD: &str = "correct-horse";
const LARGEST: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SECOND: Duration = Duration::from_secs(1);

/// How long a call waits for a stopped server.
const PATIENCE: Duration = Duration::from_millis(200);

/// A subject of so many servers.
pub(crate) struct Reference {
    world: Arc<World>,
}

impl Reference {
    pub(crate) fn servers(count: usize) -> Self {
        Self::new(count, None)
    }

    pub(crate) fn flawed(count: usize, flaw: Flaw) -> Self {
        Self::new(count, Some(flaw))
    }

    fn new(count: usize, flaw: Option<Flaw>) -> Self {
        let servers = (0..count).map(|_| Mutex::new(Server::default())).collect();
        Self {
            world: Arc::new(World { servers, flaw }),
        }
    }
}

#[async_trait]
impl Subject for Reference {
    fn can(&self) -> Abilities {
        Abilities::one_server()
            .servers(self.world.servers.len())
            .peeks()
            .kills()
            .stops()
            .skips_time()
            .exact_time()
            .value_limits(LARGEST, LARGEST + 1)
            .patience(SECOND)
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        let world = match self.world.flaw {
            Some(flaw @ Flaw::StorePerHandle) => Self::flawed(self.world.servers.len(), flaw).world,
            _ => Arc::clone(&self.world),
        };
        let servers = world.servers.len();
        Arc::new(Handle {
            world,
            connections: Mutex::new(vec![Connection::default(); servers]),
            closed: AtomicBool::new(false),
            replies: Mutex::default(),
            rt: Rt::following_tokio(SystemTime::UNIX_EPOCH + 365 * DAY),
        })
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::advance(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let now = Rt::new().now();
        let mut server = self.world.server(self.world.server_of(key));
        let entry = server.find(key, now)?;
        let ttl = entry.expires.map(|expires| expires - now);
        Some(Peeked::new(entry.value.clone(), ttl))
    }

    async fn kill(&self, server: usize) {
        self.world.server(server).up = false;
    }

    async fn restart(&self, server: usize) {
        let mut server = self.world.server(server);
        *server = Server {
            incarnation: server.incarnation + 1,
            ..Server::default()
        };
    }

    async fn stop(&self, server: usize) {
        self.world.server(server).stopped = true;
    }

    async fn resume(&self, server: usize) {
        self.world.server(server).stopped = false;
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned()]
    }
}

/// The servers, and what is wrong with them and their client.
struct World {
    servers: Vec<Mutex<Server>>,
    flaw: Option<Flaw>,
}

impl World {
    fn server(&self, number: usize) -> MutexGuard<'_, Server> {
        self.servers[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn server_of(&self, key: &str) -> usize {
        let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash >> 32) as usize % self.servers.len()
    }
}

/// One server: entries, and a counter of tokens that begins again when it is restarted.
struct Server {
    entries: HashMap<String, Entry>,
    last_token: u64,
    incarnation: u64,
    up: bool,
    stopped: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            last_token: 0,
            incarnation: 1,
            up: true,
            stopped: false,
        }
    }
}

struct Entry {
    /// Empty for a placeholder.
    value: Bytes,
    token: u64,
    since: Instant,
    expires: Option<Instant>,
}

impl Server {
    fn find(&mut self, key: &str, now: Instant) -> Option<&mut Entry> {
        let entry = self.entries.get(key)?;
        if entry.expires.is_some_and(|expires| expires <= now) {
            self.entries.remove(key);
        }
        self.entries.get_mut(key)
    }
}

/// A handle's connection to one server.
#[derive(Clone, Default)]
struct Connection {
    incarnation: u64,
    origin: u64,
    trips: u64,
    keys: u64,
}

struct Handle {
    world: Arc<World>,
    connections: Mutex<Vec<Connection>>,
    closed: AtomicBool,
    /// Where the replies of look-ups wait, when they cross.
    replies: Mutex<VecDeque<Vec<Result<Lookup>>>>,
    rt: Rt,
}

/// One key at its server, through a connection.
struct Spot<'a> {
    server: &'a mut Server,
    origin: u64,
    key: String,
    position: usize,
    now: Instant,
    flaw: Option<Flaw>,
}

impl Handle {
    fn has(&self, flaw: Flaw) -> bool {
        self.world.flaw == Some(flaw)
    }

    /// Does the step for every key at its server, and answers at the second poll.
    async fn call<T: Send>(
        &self,
        keys: &Keys,
        trips: &Trips,
        mut step: impl FnMut(Spot<'_>) -> Result<T> + Send,
    ) -> Vec<Result<T>> {
        if keys.is_empty() && !self.has(Flaw::EmptyBatchTakesATrip) {
            return Vec::new();
        }
        if self.is_closed() {
            return keys.iter().map(|_| Err(closed())).collect();
        }
        let now = self.rt.now();
        let mut asked = HashSet::new();
        let mut is_hung = false;
        let mut answers: Vec<Result<T>> = keys
            .iter()
            .enumerate()
            .map(|(position, key)| {
                let key = self.on_the_wire(key.as_str());
                let number = self.world.server_of(&key);
                let mut server = self.world.server(number);
                if !server.up {
                    return Err(Error::new(ErrorKind::Unavailable, "reference: refused"));
                }
                if server.stopped {
                    is_hung = true;
                    return Err(Error::new(ErrorKind::Timeout, "reference: no answer"));
                }
                asked.insert(number);
                let origin = self.origin(number, server.incarnation);
                step(Spot {
                    server: &mut server,
                    origin,
                    key,
                    position,
                    now,
                    flaw: self.world.flaw,
                })
            })
            .collect();
        self.count(keys, &asked, trips);
        if is_hung && self.has(Flaw::HangsWithItsServer) {
            std::future::pending::<()>().await;
        }
        if is_hung {
            self.rt.sleep(PATIENCE).await;
        }
        if self.has(Flaw::DeadServerFailsAll) && answers.iter().any(Result::is_err) {
            let error = || Err(Error::new(ErrorKind::Unavailable, "reference: all fail"));
            answers = keys.iter().map(|_| error()).collect();
        }
        self.rt.yield_now().await;
        if self.has(Flaw::CloseAbandonsWork) && self.is_closed() {
            return keys.iter().map(|_| Err(closed())).collect();
        }
        answers
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) && !self.has(Flaw::ServesAfterClose)
    }

    fn on_the_wire(&self, key: &str) -> String {
        match self.world.flaw {
            Some(Flaw::LongKeysCut) => key[..key.len().min(200)].to_owned(),
            Some(Flaw::KeysFoldCase) => key.to_lowercase(),
            _ => key.to_owned(),
        }
    }

    /// The number of the connection to this incarnation of a server; another incarnation is dialled anew.
    fn origin(&self, number: usize, incarnation: u64) -> u64 {
        static DIALS: AtomicU64 = AtomicU64::new(1);
        let mut connections = self.connections();
        let connection = &mut connections[number];
        if connection.incarnation != incarnation {
            connection.incarnation = incarnation;
            connection.origin = DIALS.fetch_add(1, Ordering::Relaxed);
        }
        connection.origin
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, keys: &Keys, asked: &HashSet<usize>, trips: &Trips) {
        match self.world.flaw {
            Some(Flaw::TripsUncounted) => {}
            Some(Flaw::TripPerKey) => trips.add(keys.len() as u64),
            Some(Flaw::EmptyBatchTakesATrip) if keys.is_empty() => trips.add(1),
            _ => trips.add(asked.len() as u64),
        }
        if self.has(Flaw::StatisticsForgotten) {
            return;
        }
        let mut connections = self.connections();
        for &number in asked {
            connections[number].trips += 1;
        }
        for key in keys.iter() {
            connections[self.world.server_of(&self.on_the_wire(key.as_str()))].keys += 1;
        }
    }
}

impl Spot<'_> {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn find(&mut self) -> Option<&mut Entry> {
        self.server.find(&self.key, self.now)
    }

    fn token(&self, token: u64, length: u64) -> Token {
        Token {
            token: [token, length],
            origin: match self.flaw {
                Some(Flaw::OriginUnchecked | Flaw::FillsWaitForTheNextServer) => 0,
                _ => self.origin,
            },
        }
    }

    /// Puts these bytes there, under a new token.
    fn put(&mut self, value: Bytes, expires: Option<Instant>) -> u64 {
        self.server.last_token += 1;
        let token = match self.has(Flaw::TokensFromKeys) {
            true => self.key.len() as u64,
            false => self.server.last_token,
        };
        let entry = Entry {
            value,
            token,
            since: self.now,
            expires,
        };
        self.server.entries.insert(self.key.clone(), entry);
        token
    }

    fn look(&mut self, options: &GetOptions, rt: Rt) -> Lookup {
        let everybody_wins = self.has(Flaw::EverybodyWins);
        let again = self.has(Flaw::DuplicatesWinAgain) && self.position > 0;
        let now = self.now;
        let found = self
            .find()
            .map(|entry| (entry.value.clone(), entry.token, now - entry.since));
        // Readers of one data set ask for the same length, which tells an expired lease from a voided one.
        let length = options.lease.map_or(0, |length| length.as_millis() as u64);
        match found {
            Some((value, token, _)) if !value.is_empty() => {
                return Lookup::Hit {
                    value: self.undecorated(value),
                    token: self.token(token, 0),
                };
            }
            Some((_, token, age)) if !everybody_wins && !again => {
                return Lookup::Busy {
                    age: match self.has(Flaw::BusyIsAlwaysNew) {
                        true => Duration::ZERO,
                        false => age,
                    },
                    token: match self.has(Flaw::BusyNamesNobody) {
                        true => self.token(token + 1_000_000, length),
                        false => self.token(token, length),
                    },
                };
            }
            _ => {}
        }
        let asked = match self.flaw {
            Some(Flaw::LookWins) => Some(SECOND),
            Some(Flaw::LeaseAtMostIgnored) => options.lease,
            _ => options.lease_of(self.position),
        };
        let Some(lease) = asked else {
            return Lookup::Miss { lease: None };
        };
        let expires = match self.flaw {
            Some(Flaw::LeaseForEver) => None,
            Some(Flaw::LeaseHalved) => Some(self.now + lease / 2),
            _ => Some(self.now + lease),
        };
        let token = self.put(Bytes::new(), expires);
        Lookup::Miss {
            lease: Some(Lease::new(self.token(token, length), rt.wall())),
        }
    }

    fn refuse(&mut self, value: &Bytes) -> Result<()> {
        if value.is_empty() && !self.has(Flaw::EmptyAccepted) {
            return Err(Error::new(ErrorKind::Config, "reference: an empty value"));
        }
        if value.len() > LARGEST && !self.has(Flaw::OversizedAccepted) {
            return Err(Error::new(ErrorKind::TooLarge, "reference: too large"));
        }
        Ok(())
    }

    fn fill(&mut self, fill: &Fill, wall: SystemTime) -> Result<FillOutcome> {
        let token = fill.lease.token;
        let is_ours = token.origin == self.token(0, 0).origin;
        if let Err(error) = self.refuse(&fill.value) {
            if is_ours && !self.has(Flaw::RefusedFillKeepsLease) {
                self.release(token);
            }
            return Err(error);
        }
        if !is_ours {
            return Ok(FillOutcome::Lost(Lost::ConnectionGone));
        }
        let adds = self.has(Flaw::FillAddsWhatIsAbsent);
        let unchecked = self.has(Flaw::TokenUnchecked);
        let any_key = self.has(Flaw::LeaseFillsAnyKey)
            && (self.server.entries.values()).any(|entry| entry.token == token.token[0]);
        let found = self.find().map(|entry| (entry.token, entry.expires));
        let stands = match found {
            None => adds || any_key,
            Some((current, _)) => current == token.token[0] || unchecked || any_key,
        };
        if stands {
            let expires = match (self.flaw, found) {
                (Some(Flaw::FillKeepsExpiry), Some((_, expires))) => expires,
                _ => self.expiry(fill.ttl),
            };
            let value = self.decorated(&fill.value);
            self.put(value, expires);
            if self.has(Flaw::FillKeepsToken)
                && let Some(entry) = self.find()
            {
                entry.token = token.token[0];
            }
            return Ok(FillOutcome::Stored);
        }
        if found.is_none() && self.has(Flaw::LostFillLeavesPlaceholder) {
            self.put(Bytes::new(), None);
        }
        let length = Duration::from_millis(token.token[1]);
        let over = !length.is_zero() && fill.lease.won_at + length <= wall;
        Ok(FillOutcome::Lost(
            match over && !self.has(Flaw::ExpiredSaysVoided) {
                true => Lost::Expired,
                false => Lost::Voided,
            },
        ))
    }

    fn release(&mut self, token: Token) {
        let is_ours = token.origin == self.token(0, 0).origin;
        let first_only = self.has(Flaw::ReleasesFirstOfBatchOnly) && self.position > 0;
        if !is_ours || first_only || self.has(Flaw::ReleaseKeepsLease) {
            return;
        }
        let unchecked = self.has(Flaw::ReleaseUnchecked);
        let placeholders_only = self.has(Flaw::ReleaseOfPlaceholdersOnly);
        let frees = self.find().is_some_and(|entry| {
            (entry.token == token.token[0] || unchecked)
                && (entry.value.is_empty() || !placeholders_only)
        });
        if frees {
            self.server.entries.remove(&self.key);
        }
    }

    fn delete(&mut self) -> Result<()> {
        let first_only = self.has(Flaw::DeletesFirstOfBatchOnly) && self.position > 0;
        let keeps_leases = self.has(Flaw::DeleteKeepsLease);
        let leased = self.find().is_some_and(|entry| entry.value.is_empty());
        if first_only || (keeps_leases && leased) {
            return Ok(());
        }
        let removed = self.server.entries.remove(&self.key);
        if removed.is_none() && self.has(Flaw::DeleteOfAbsentFails) {
            return Err(Error::new(ErrorKind::Protocol, "reference: not found"));
        }
        if self.has(Flaw::DeleteLeavesTombstone) {
            self.put(Bytes::new(), Some(self.now + SECOND));
        }
        Ok(())
    }

    fn set(&mut self, set: &Set) -> Result<()> {
        self.refuse(&set.value)?;
        let before = self.find().map(|entry| entry.token);
        if before.is_some() && self.has(Flaw::SetNeverOverwrites) {
            return Ok(());
        }
        let (value, expires) = (self.decorated(&set.value), self.expiry(set.ttl));
        self.put(value, expires);
        if self.has(Flaw::SetKeepsToken)
            && let (Some(before), Some(entry)) = (before, self.find())
        {
            entry.token = before;
        }
        Ok(())
    }

    fn expiry(&self, ttl: Option<Duration>) -> Option<Instant> {
        let ttl = match self.flaw {
            Some(Flaw::TtlIgnored) => None,
            Some(Flaw::NoTtlIsADay) => ttl.or(Some(DAY)),
            // 0 means for ever on the wire.
            Some(Flaw::TtlRoundedDown) => ttl
                .map(|ttl| Duration::from_secs(ttl.as_secs()))
                .filter(|ttl| !ttl.is_zero()),
            // A date in the year 1970.
            Some(Flaw::TtlAbove30DaysIsADate) => ttl.map(|ttl| match ttl > 30 * DAY {
                true => Duration::ZERO,
                false => ttl,
            }),
            _ => ttl,
        };
        // Later than the clock can say is for ever.
        ttl.and_then(|ttl| self.now.checked_add(ttl))
    }

    fn decorated(&self, value: &Bytes) -> Bytes {
        match self.flaw {
            Some(Flaw::ValuesDecorated) => [b"decorated:", &value[..]].concat().into(),
            Some(Flaw::ValuesEndAtLineEnd) => {
                let end = value.windows(2).position(|pair| pair == b"\r\n");
                value.slice(..end.unwrap_or(value.len()))
            }
            Some(Flaw::LargeValuesCut) => value.slice(..value.len().min(512 * 1024)),
            _ => value.clone(),
        }
    }

    fn undecorated(&self, value: Bytes) -> Bytes {
        match self.has(Flaw::ValuesDecorated) {
            true => value.slice(b"decorated:".len()..),
            false => value,
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "reference: closed")
}

impl Handle {
    async fn look_up(&self, keys: &Keys, options: &GetOptions) -> Vec<Result<Lookup>> {
        let rt = self.rt;
        let look = |mut spot: Spot<'_>| Ok(spot.look(options, rt));
        if self.has(Flaw::RepliesCross) && !keys.is_empty() {
            // Whoever waits longest is given the next reply, and whoever left is forgotten.
            let replies = || self.replies.lock().unwrap_or_else(PoisonError::into_inner);
            let mut unanswered = Some(look);
            let answers = keys.iter().enumerate().map(|(position, key)| {
                let key = key.as_str().to_owned();
                let number = self.world.server_of(&key);
                let mut server = self.world.server(number);
                let origin = self.origin(number, server.incarnation);
                let look = unanswered.as_mut().expect("it is never taken");
                look(Spot {
                    server: &mut server,
                    origin,
                    key,
                    position,
                    now: self.rt.now(),
                    flaw: self.world.flaw,
                })
            });
            let answers = answers.collect();
            replies().push_back(answers);
            self.rt.yield_now().await;
            return replies().pop_front().unwrap_or_default();
        }
        let mut answers = self.call(keys, &options.trips, look).await;
        match self.world.flaw {
            Some(Flaw::AnswersReversed) => answers.reverse(),
            Some(Flaw::DuplicatesDropped) => {
                let mut seen = HashSet::new();
                let mut firsts = keys.iter().map(|key| seen.insert(key.as_bytes()));
                answers.retain(|_| firsts.next() == Some(true));
            }
            Some(Flaw::DeadServerMisses) => {
                for answer in &mut answers {
                    if answer.is_err() && !self.is_closed() {
                        *answer = Ok(Lookup::Miss { lease: None });
                    }
                }
            }
            _ => {}
        }
        answers
    }
}

#[async_trait]
impl Backend for Handle {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        for (position, answer) in self.look_up(keys, options).await.into_iter().enumerate() {
            if position < keys.len() {
                found(position, answer);
            }
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        if self.has(Flaw::FillsAtTheSecondPoll) {
            self.rt.yield_now().await;
        }
        if self.has(Flaw::FillInTwoSteps) {
            // Compared now and stored later, whatever happens in between.
            let compared = self
                .call(keys, &options.trips, |mut spot| {
                    let token = fills[spot.position].lease.token.token[0];
                    Ok(spot.find().is_some_and(|entry| entry.token == token))
                })
                .await;
            return self
                .call(keys, &Trips::default(), |mut spot| {
                    let fill = &fills[spot.position];
                    match compared[spot.position] {
                        Ok(true) => {
                            spot.put(fill.value.clone(), None);
                            Ok(FillOutcome::Stored)
                        }
                        _ => Ok(FillOutcome::Lost(Lost::Voided)),
                    }
                })
                .await;
        }
        let wall = self.rt.wall();
        let fill = |mut spot: Spot<'_>| spot.fill(&fills[spot.position], wall);
        let mut answers = self.call(keys, &options.trips, fill).await;
        while self.has(Flaw::FillsWaitForTheNextServer) && answers.iter().any(Result::is_err) {
            self.rt.sleep(PATIENCE).await;
            answers = self.call(keys, &options.trips, fill).await;
        }
        self.all_or_nothing(answers)
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        self.call(keys, &options.trips, |mut spot| {
            spot.release(leases[spot.position].token);
            Ok(())
        })
        .await
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        self.call(keys, &options.trips, |mut spot| spot.delete())
            .await
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let set = |mut spot: Spot<'_>| spot.set(&sets[spot.position]);
        let mut answers = self.call(keys, &options.trips, set).await;
        if self.has(Flaw::StoresReversed) {
            answers.reverse();
        }
        self.all_or_nothing(answers)
    }

    async fn start(&self) -> Result<()> {
        Ok(())
    }

    async fn check(&self) -> Vec<ServerCheck> {
        let count = match self.has(Flaw::ChecksFirstServerOnly) {
            true => 1,
            false => self.world.servers.len(),
        };
        (0..count)
            .map(|number| {
                let answer = match (self.is_closed(), self.world.server(number).up) {
                    (true, _) => Err(closed()),
                    (_, false) => Err(Error::new(ErrorKind::Unavailable, "reference: refused")),
                    _ => Ok(ServerAnswer::new("reference", Duration::ZERO)),
                };
                ServerCheck::new(number.to_string(), answer)
            })
            .collect()
    }

    async fn close(&self, _: Duration) {
        self.closed.store(true, Ordering::Relaxed);
        // What is under way takes one more poll.
        if !self.has(Flaw::CloseAbandonsWork) {
            self.rt.yield_now().await;
        }
    }

    fn server_of(&self, _: Key<'_>) -> usize {
        0
    }

    fn pool(&self) -> Pool {
        let address = match self.has(Flaw::PoolPerHandle) {
            true => std::ptr::from_ref(self).addr(),
            false => Arc::as_ptr(&self.world).addr(),
        };
        Pool::new(format!("reference://{address}"), Reach::Process)
    }

    fn stats(&self) -> BackendStats {
        let mut stats = BackendStats::default();
        for (number, connection) in self.connections().iter().enumerate() {
            let mut server = ServerStats::default();
            server.server = number.to_string();
            server.state = "up";
            server.trips = connection.trips;
            server.keys = connection.keys;
            stats.servers.push(server);
        }
        stats
    }
}

impl Handle {
    fn all_or_nothing<T>(&self, mut answers: Vec<Result<T>>) -> Vec<Result<T>> {
        let refused = answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .find(|error| error.kind() == ErrorKind::TooLarge)
            .cloned();
        if let (Some(error), true) = (refused, self.has(Flaw::OversizedFailsItsBatch)) {
            answers.fill_with(|| Err(error.clone()));
        }
        answers
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reference")?;
        match self.has(Flaw::ShowsPassword) {
            true => write!(f, " (user:{PASSWORD})"),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
