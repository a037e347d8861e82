//! A pipelining memcached client, made for bulk.
//!
//! From the bytes up: `protocol` writes commands and reads replies, `exchange` knows what a request under way expects,
//! `connection` owns a socket and shares it among callers, `tls` encrypts what a transport opened, `handshake` is a
//! connection's first exchange, `server` keeps the connections and the health of one server, `batch` cuts a call to one
//! server into exchanges, and this file spreads a call over the servers. It speaks the meta commands of memcached 1.6.13
//! and newer; to servers with SASL, which know no other, the old `binary` protocol, and `wire` is the choice between them.
//!
//! What it isn't: it has no consistent ring shared with other clients, and no fail-over: the keys of a server that is down
//! are misses until it is back.

mod batch;
mod binary;
mod config;
mod connection;
mod exchange;
mod handshake;
mod protocol;
mod server;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
#[cfg_attr(
    not(feature = "__transport"),
    expect(unreachable_pub, reason = "public behind the hidden feature")
)]
mod transport;
mod wire;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions, Keys, Lease,
    Pool, Reach, Result, Rt, ServerCheck, Set, Trips, WriteOptions,
};
use xxhash_rust::xxh3::xxh3_64;

use batch::{Job, Outcome, Part};
use handshake::Access;
use server::Server;

pub use config::{BulkForm, MemcachedConfig};
#[cfg(feature = "__transport")]
pub use transport::{Address, Io, Sockets, Transport};
#[cfg(not(feature = "__transport"))]
use transport::{Address, Sockets, Transport};

/// A pool of memcached servers, each key on one of them.
///
/// The server of a key is chosen by rendezvous hashing over a fixed hash, so every process that lists the same servers,
/// in any order, agrees, and a server that is added or removed moves only its own share of the keys. Connections are
/// dialled when they are first needed.
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
    /// What each server's name adds to the hash of a key.
    seeds: Vec<u64>,
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
        let addresses = config.addresses()?;
        let names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let reach = match addresses.iter().all(Address::is_local) {
            true => Reach::Host,
            false => Reach::Network,
        };
        let pool = Pool::new(format!("memcached://{}", names.join(",")), reach);
        let access = Arc::new(Access::new(&config, &addresses)?);
        let config = Arc::new(config);
        Ok(Self {
            seeds: names.iter().map(|name| xxh3_64(name.as_bytes())).collect(),
            pool: match config.via_proxy {
                true => pool.without_leases(),
                false => pool,
            },
            servers: addresses
                .into_iter()
                .map(|address| {
                    let transport = Arc::clone(&transport);
                    let access = Arc::clone(&access);
                    Server::new(address, Arc::clone(&config), rt, transport, access)
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

    /// The server of a key.
    fn owner(&self, key: &[u8]) -> usize {
        if self.servers.len() == 1 {
            return 0;
        }
        let hash = xxh3_64(key);
        let scores = self.seeds.iter().map(|seed| mix(hash ^ seed));
        let (owner, _) = scores
            .enumerate()
            .max_by_key(|&(_, score)| score)
            .expect("a pool has a server");
        owner
    }

    /// The one server of these keys, if that is clear without looking at each.
    fn sole_owner(&self, keys: &Keys) -> Option<&Server> {
        match (keys.len(), &self.servers[..]) {
            (0, _) => None,
            (_, [server]) => Some(server),
            (1, _) => Some(&self.servers[self.owner(keys.get(0).as_bytes())]),
            _ => None,
        }
    }

    /// Where the keys of each server stand.
    fn split(&self, keys: &Keys) -> Vec<Vec<u32>> {
        let share = keys.len() / self.servers.len();
        let mut parts = Vec::new();
        parts.resize_with(self.servers.len(), || {
            Vec::with_capacity(share + share / 4 + 4)
        });
        for (position, key) in keys.iter().enumerate() {
            let position = u32::try_from(position).expect("keys fit into 4 GiB");
            parts[self.owner(key.as_bytes())].push(position);
        }
        parts
    }

    /// The servers that have a part.
    fn asked<'a>(&'a self, parts: &'a [Vec<u32>]) -> impl Iterator<Item = (&'a Server, &'a [u32])> {
        let asked = self.servers.iter().zip(parts);
        asked
            .filter(|(_, positions)| !positions.is_empty())
            .map(|(server, positions)| (&**server, &positions[..]))
    }

    /// Lets every server do its part at the same time, and puts the answers where their keys stand.
    async fn on_owners<'a, T: Send, F: Future<Output = Vec<T>> + Send>(
        &'a self,
        keys: &'a Keys,
        parts: &'a [Vec<u32>],
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

fn no_leases() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "memcached: leases can't be trusted through a proxy (`via_proxy`), so mutable data can't be cached",
    )
}

/// Spreads every bit over all others.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
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
            Some(server) => server.look(Part::all(keys), options, found).await,
            None => {
                let parts = self.split(keys);
                // Servers take turns in handing over, between awaits, so that none ever waits for the lock.
                let found = Mutex::new(found);
                let looks = self.asked(&parts).map(|(server, positions)| async {
                    let part = Part::some(keys, positions);
                    let found = &mut |position, answer| {
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        found(position, answer);
                    };
                    server.look(part, options, found).await;
                });
                join_all(looks).await;
            }
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

/// Waits for all of these at the same time, in the caller's task.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = Vec::new();
    outputs.resize_with(waiting.len(), || None);
    poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for (future, output) in waiting.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    outputs
        .into_iter()
        .map(|output| output.expect("all are ready"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who upgrades one process after the other has both versions ask the same servers: a key that moved would be deleted
    /// on one and read from the other.
    #[test]
    fn a_key_stays_on_its_server_from_version_to_version() {
        let servers = ["10.0.0.5", "cache-b:11212", "/run/memcached.sock"];
        let pool = Memcached::new(MemcachedConfig::new(servers), Rt::new()).unwrap();
        for (key, server) in [
            ("a", "/run/memcached.sock"),
            ("user:1", "10.0.0.5:11211"),
            ("user:2", "cache-b:11212"),
            ("user:3", "10.0.0.5:11211"),
            ("v1/user:7", "10.0.0.5:11211"),
            ("v1/page:/start", "10.0.0.5:11211"),
            ("v2/k\u{fc}che", "/run/memcached.sock"),
            (
                "session:0123456789abcdef0123456789abcdef",
                "/run/memcached.sock",
            ),
        ] {
            let owner = &pool.servers[pool.owner(key.as_bytes())];
            assert_eq!(&*owner.name, server, "{key}");
        }
    }
}
