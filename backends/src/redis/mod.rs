//! Redis and Valkey, over the `redis` crate's multiplexed connection.
//!
//! From the bytes up: `frame` is what an entry looks like in the store, `script` what is compared and done in one step,
//! `reply` what error replies mean, `identity` a connection's first exchange, `connection` one socket and the very server
//! behind it, `node` the connections and the health of one server, `batch` cuts a call to one server into exchanges, and
//! this file is the store on a server of its own. A cluster is several such servers: `slots` says which has a key, `topology`
//! keeps that up to date, and `cluster` is the store. `docs/redis.md` and `docs/redis-cluster.md` say what restarts, failovers and
//! partitions cost.
//!
//! What it isn't: it never reads from replicas, asks no Sentinel, and doesn't use the crate's connection manager, since what
//! reconnects without a word can't tell a server from the one that was there before.

mod batch;
mod cluster;
mod config;
mod connection;
mod frame;
mod gets;
mod identity;
mod node;
mod reply;
mod script;
mod slots;
mod tap;
mod topology;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendStats, Fill, FillOutcome, Found, GetOptions, Instant, Key, Keys, Lease, Pool,
    Reach, Result, Rt, ServerCheck, Set, Trips, WriteOptions,
};

use batch::{Job, Outcome, Part};
use frame::Nonces;
use identity::{Access, Mode};
use node::Node;

use crate::transport::{Sockets, Transport};

pub use cluster::RedisCluster;
pub use config::RedisConfig;

/// A Redis or Valkey server of its own: a primary, with or without replicas.
///
/// Entries and leases are bound to the incarnation of the server, so that what a restart from a snapshot or a failover brings
/// back is never read. Connections are dialled when they are first needed.
///
/// ```no_run
/// # async fn run() -> larder_core::Result<()> {
/// use std::time::Duration;
/// use larder_backends::redis::{Redis, RedisConfig};
/// use larder_core::{BackendExt, Fill, FillOutcome, GetOptions, Lookup, Rt};
///
/// let redis = Redis::new(RedisConfig::new("10.0.0.5"), Rt::new())?;
/// let lease = GetOptions::lease(Duration::from_secs(10));
/// if let Lookup::Miss { lease: Some(lease) } = redis.get("v1/user:7", &lease).await? {
///     let outcome = redis.fill("v1/user:7", Fill::new(lease, "Bob")).await?;
///     assert_eq!(outcome, FillOutcome::Stored); // unless the key was deleted in between
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Redis {
    node: Arc<Node>,
    /// What it is called, with the number of its database.
    name: String,
    nonces: Nonces,
    pool: Pool,
    rt: Rt,
}

impl Redis {
    /// The store on this server, over sockets. Nothing is dialled yet.
    ///
    /// Fails if the configuration can't work.
    pub fn new(config: RedisConfig, rt: Rt) -> Result<Self> {
        let sockets = Sockets::new(rt, config.connect_timeout);
        Self::over(config, rt, Arc::new(sockets))
    }

    fn over(config: RedisConfig, rt: Rt, transport: Arc<dyn Transport>) -> Result<Self> {
        let address = config.address()?;
        let reach = match address.is_local() {
            true => Reach::Host,
            false => Reach::Network,
        };
        let name = match config.database {
            0 => address.to_string(),
            database => format!("{address}/{database}"),
        };
        let access = Arc::new(Access::new(&config, [&address])?);
        let config = Arc::new(config);
        Ok(Self {
            pool: Pool::new(format!("redis://{name}"), reach),
            name,
            nonces: Nonces::new(),
            node: Node::new(address, config, Mode::Standalone, rt, transport, access),
            rt,
        })
    }

    /// Connects; fails if the server doesn't answer, or isn't fit.
    pub async fn ready(&self) -> Result<()> {
        self.node.ping().await.map(|_| ())
    }

    async fn write(&self, keys: &Keys, job: Job<'_>, trips: &Trips) -> Vec<Outcome> {
        if keys.is_empty() {
            return Vec::new();
        }
        let nonces = self.nonces.take(keys.len());
        self.node.write(Part::all(keys), job, nonces, trips).await
    }
}

impl fmt::Display for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis ({})", self.name)
    }
}

#[async_trait]
impl Backend for Redis {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        if !keys.is_empty() {
            let nonces = self.nonces.take(keys.len());
            let part = Part::all(keys);
            self.node.look(part, nonces, options, found).await;
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
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
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Delete, &options.trips);
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let outcomes = self.write(keys, Job::Set(&sets), &options.trips);
        outcomes.await.into_iter().map(batch::done).collect()
    }

    async fn start(&self) -> Result<()> {
        match self.node.config.require_at_start {
            true => self.ready().await,
            false => Ok(()),
        }
    }

    async fn check(&self) -> Vec<ServerCheck> {
        vec![self.node.check().await]
    }

    async fn close(&self, deadline: Duration) {
        self.node.close(later(self.rt.now(), deadline)).await;
    }

    fn server_of(&self, _: Key<'_>) -> usize {
        0
    }

    fn pool(&self) -> Pool {
        self.pool.clone()
    }

    fn stats(&self) -> BackendStats {
        let mut stats = BackendStats::default();
        stats.servers.push(self.node.stats());
        stats
    }
}

/// So much later; a duration that reaches beyond the clock means never, which a year is to a connection.
fn later(now: Instant, duration: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    now + duration.min(YEAR)
}
