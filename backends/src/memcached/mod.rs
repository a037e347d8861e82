//! A pipelining memcached client, made for bulk.
//!
//! From the bytes up: `protocol` writes commands and reads replies, `exchange` knows what a request under way expects,
//! `connection` owns a socket and shares it among callers, `handshake` is what happens on a new connection before it is of
//! use, `records` helps older servers with TLS, `server` keeps the connections and the health of one server, `batch` cuts a
//! call to one server into exchanges, `placement` knows which server a key lives on, and this file spreads a call over the
//! servers. It speaks the meta commands of memcached 1.6.13 and newer; to servers with SASL, which know no other, the old
//! `binary` protocol, and `wire` is the choice between them.
//!
//! What it isn't: it has no fail-over: the keys of a server that is down are misses until it is back, since a key that
//! moved would come back with an old value (docs/pools.md).

mod batch;
mod binary;
mod config;
mod connection;
mod exchange;
mod handshake;
mod placement;
mod protocol;
mod records;
mod server;
mod wire;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Key, Keys,
    Lease, Pool, Reach, Result, Rt, ServerCheck, Set, Trips, WriteOptions,
};

use batch::{Job, Look, Outcome, Part};
use handshake::Access;
use placement::Placement;
use server::Server;

use crate::join::join_all;
#[cfg(feature = "__transport")]
pub use crate::transport::{Address, Io, Sockets, Transport};
#[cfg(not(feature = "__transport"))]
use crate::transport::{Sockets, Transport};
pub use config::{BulkForm, Hashing, MemcachedConfig};

/// A pool of memcached servers, each key on one of them.
///
/// The server of a key follows from the key and the servers' names and weights, so every process that lists the same ones,
/// in any order, agrees, and a server that is added or removed moves only its own share of the keys ([`Hashing`]).
/// Connections are dialled when they are first needed.
///
/// ```no_run
/// # async fn run() -> larder_core::Result<()> {
/// use std::time::Duration;
/// use larder_backends::memcached::{Memcached, MemcachedConfig};
/// use larder_core::{BackendExt, Fill, FillOutcome, GetOptions, Lookup, Rt};
///
/// let memcached = Memcached::new(MemcachedConfig::new(["10.0.0.5", "10.0.0.6"]), Rt::new())?;
/// let lease = GetOptions::lease(Duration::from_secs(10));
/// if let Lookup::Miss { lease: Some(lease) } = memcached.get("v1/user:7", &lease).await? {
///     let outcome = memcached.fill("v1/user:7", Fill::new(lease, "Bob")).await?;
///     assert_eq!(outcome, FillOutcome::Stored); // unless the key was deleted in between
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Memcached {
    servers: Vec<Arc<Server>>,
    placement: Placement,
    config: Arc<MemcachedConfig>,
    pool: Pool,
    rt: Rt,
}

impl Memcached {
    /// A pool of these servers, over sockets. Nothing is dialled yet.
    ///
    /// Fails if the configuration can't work.
    pub fn new(config: MemcachedConfig, rt: Rt) -> Result<Self> {
        let sockets = Sockets::new(rt, config.connect_timeout);
        Self::over(config, rt, Arc::new(sockets))
    }

    /// A pool of these servers, over another transport.
    #[cfg(feature = "__transport")]
    pub fn with_transport(
        config: MemcachedConfig,
        rt: Rt,
        transport: Arc<dyn Transport>,
    ) -> Result<Self> {
        Self::over(config, rt, transport)
    }

    fn over(config: MemcachedConfig, rt: Rt, transport: Arc<dyn Transport>) -> Result<Self> {
        let (members, placement) = config.members()?;
        let reach = match members.iter().all(|member| member.address.is_local()) {
            true => Reach::Host,
            false => Reach::Network,
        };
        let pool = Pool::new(placement::description(config.hash, &members), reach);
        let addresses = members.iter().map(|member| &member.address);
        let access = Arc::new(Access::new(&config, addresses)?);
        let config = Arc::new(config);
        Ok(Self {
            placement,
            pool: match config.via_proxy {
                true => pool.without_leases(),
                false => pool,
            },
            servers: members
                .into_iter()
                .map(|member| {
                    let transport = Arc::clone(&transport);
                    let access = Arc::clone(&access);
                    Server::new(member.address, Arc::clone(&config), rt, transport, access)
                })
                .collect(),
            config,
            rt,
        })
    }

    /// Connects to every server; fails if one doesn't answer, or isn't fit.
    pub async fn ready(&self) -> Result<()> {
        join_all(self.servers.iter().map(|server| server.ping()))
            .await
            .into_iter()
            .try_for_each(|answer| answer.map(|_| ()))
    }

    /// The one server of these keys, if that is clear without looking at each.
    fn sole_owner(&self, keys: &Keys) -> Option<&Server> {
        match (keys.len(), &self.servers[..]) {
            (0, _) => None,
            (_, [server]) => Some(server),
            (1, _) => Some(&self.servers[self.placement.owner(keys.get(0).as_bytes())]),
            _ => None,
        }
    }

    /// Where the keys of each server stand.
    fn split(&self, keys: &Keys) -> Parts {
        let owner = |key: Key<'_>| self.placement.owner(key.as_bytes());
        Parts::new(self.servers.len(), keys.iter().map(owner).collect())
    }

    /// The servers that have a part.
    fn asked<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = (&'a Server, &'a [u32])> {
        let asked = self.servers.iter().zip(parts.iter());
        asked
            .filter(|(_, positions)| !positions.is_empty())
            .map(|(server, positions)| (&**server, positions))
    }

    /// Lets every server do its part at the same time, and puts the answers where their keys stand.
    async fn on_owners<'a, T: Send, F: Future<Output = Vec<T>> + Send>(
        &'a self,
        keys: &'a Keys,
        parts: &'a Parts,
        run: impl Fn(&'a Server, Part<'a>) -> F + Send + Sync,
    ) -> Vec<T> {
        let asked = || self.asked(parts);
        let answered =
            join_all(asked().map(|(server, positions)| run(server, Part::some(keys, positions))))
                .await;
        let mut answers: Vec<Option<T>> = Vec::new();
        answers.resize_with(keys.len(), || None);
        for ((_, positions), part) in asked().zip(answered) {
            for (&position, answer) in positions.iter().zip(part) {
                answers[position as usize] = Some(answer);
            }
        }
        answers
            .into_iter()
            .map(|answer| answer.expect("every key has an owner"))
            .collect()
    }

    /// Looks keys up on all their servers at the same time.
    async fn look_on_owners(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        let parts = self.split(keys);
        let looks: Vec<(&Server, Look<'_>)> = self
            .asked(&parts)
            .map(|(server, part)| (server, server.look_of(Part::some(keys, part), options)))
            .collect();
        let mut others = Vec::new();
        let mut started = Vec::with_capacity(looks.len());
        for (server, look) in &looks {
            match server.start_look(look) {
                Some(look) => started.push(look),
                None => others.push((server, look)),
            }
        }
        // Servers take turns in handing over, between awaits, so that none ever waits for the lock.
        let found = Mutex::new(found);
        let found = || {
            |position, answer| {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                found(position, answer);
            }
        };
        let others = join_all(others.into_iter().map(|(server, look)| {
            let mut found = found();
            async move { server.look(look, &mut found).await }
        }));
        // What is under way needs nobody to push it on: taken one after the other, most answers have come when their turn
        // is there, where a task that waits for all of them is woken by each.
        let started = async {
            let mut turn = self.rt.turn();
            for look in started {
                look.look_on(&mut found()).await;
                turn.over().await;
            }
        };
        tokio::join!(others, started);
    }

    async fn write(&self, keys: &Keys, job: Job<'_>, trips: &Trips) -> Vec<Outcome> {
        // What few callers need is boxed, since moving a large future costs a single-key call more than its work.
        match self.sole_owner(keys) {
            Some(server) => server.write(Part::all(keys), job, trips).await,
            None => {
                let parts = self.split(keys);
                Box::pin(
                    self.on_owners(keys, &parts, |server, part| server.write(part, job, trips)),
                )
                .await
            }
        }
    }
}

/// The positions of a batch's keys, server by server, in three pieces of memory however many servers there are.
struct Parts {
    positions: Vec<u32>,
    /// Where the part of each server ends.
    ends: Vec<usize>,
}

impl Parts {
    /// The parts of so many servers, if these own the keys.
    fn new(servers: usize, owners: Vec<usize>) -> Self {
        let mut ends = vec![0; servers];
        for &owner in &owners {
            ends[owner] += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total - *end;
        }
        // Each end stands at its part's start, and moves on as the part is filled.
        let mut positions = vec![0; owners.len()];
        for (position, &owner) in owners.iter().enumerate() {
            positions[ends[owner]] = u32::try_from(position).expect("keys fit into 4 GiB");
            ends[owner] += 1;
        }
        Self { positions, ends }
    }

    fn iter(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let bounds = starts.zip(&self.ends);
        bounds.map(|(&start, &end)| &self.positions[start..end])
    }
}

fn no_leases() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "memcached: leases can't be trusted through a proxy (`via_proxy`), so mutable data can't be cached",
    )
}

impl fmt::Display for Memcached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memcached (")?;
        for (position, server) in self.servers.iter().enumerate() {
            f.write_str(if position == 0 { "" } else { ", " })?;
            f.write_str(&server.name)?;
        }
        f.write_str(")")
    }
}

#[async_trait]
impl Backend for Memcached {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        if self.config.via_proxy && options.lease.is_some() {
            let error = no_leases();
            for position in 0..keys.len() {
                found(position, Err(error.clone()));
            }
            return;
        }
        match self.sole_owner(keys) {
            Some(server) => {
                let look = server.look_of(Part::all(keys), options);
                match server.start_look(&look) {
                    Some(started) => started.look_on(found).await,
                    // Boxed, since a small call should not pay for the size of a large one's future.
                    None => Box::pin(server.look(&look, found)).await,
                }
            }
            None => Box::pin(self.look_on_owners(keys, options, found)).await,
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        if self.config.via_proxy {
            return fills.iter().map(|_| Err(no_leases())).collect();
        }
        let outcomes = self.write(keys, Job::Fill(&fills), &options.trips).await;
        let now = self.rt.wall();
        outcomes
            .into_iter()
            .zip(&fills)
            .map(|(outcome, fill)| batch::fill_outcome(outcome, &fill.lease, now))
            .collect()
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Release(&leases), &options.trips);
        outcomes.await.into_iter().map(batch::deleted).collect()
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Delete, &options.trips);
        outcomes.await.into_iter().map(batch::deleted).collect()
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Set(&sets), &options.trips);
        outcomes.await.into_iter().map(batch::stored).collect()
    }

    async fn start(&self) -> Result<()> {
        match self.config.require_at_start {
            true => self.ready().await,
            false => Ok(()),
        }
    }

    async fn check(&self) -> Vec<ServerCheck> {
        join_all(self.servers.iter().map(|server| server.check())).await
    }

    async fn close(&self, deadline: Duration) {
        let deadline = connection::later(self.rt.now(), deadline);
        join_all(self.servers.iter().map(|server| server.close(deadline))).await;
    }

    fn server_of(&self, key: Key<'_>) -> usize {
        match self.servers.len() {
            1 => 0,
            _ => self.placement.owner(key.as_bytes()),
        }
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn stats(&self) -> BackendStats {
        let mut stats = BackendStats::default();
        stats.servers = self.servers.iter().map(|server| server.stats()).collect();
        stats
    }
}

/// Reads any bytes as a server's replies, in these pieces and by this protocol, and counts them; for the fuzzer.
#[cfg(feature = "__transport")]
#[doc(hidden)]
pub fn read_replies<'a>(binary: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> usize {
    let wire = match binary {
        true => wire::Wire::Binary,
        false => wire::Wire::Text,
    };
    let mut parser = wire::Parser::new(wire, 1 << 16);
    let mut buffer = bytes::BytesMut::new();
    let mut replies = 0;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(_)) => replies += 1,
                Ok(None) => break,
                Err(_) => return replies,
            }
        }
    }
    replies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_the_order_of_the_batch() {
        let parts = Parts::new(4, vec![2, 0, 2, 3, 0, 2]);
        let parts: Vec<_> = parts.iter().collect();
        assert_eq!(parts, [&[1, 4][..], &[], &[0, 2, 5], &[3]]);
    }
}
