//! What is measured: each client, and the bare socket, behind one trait.

mod accessor;
mod async_memcached;
mod classic;
mod exp;
pub mod larder;
mod limit;
mod plain;
pub mod redis;
pub mod redis_cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;

use crate::work::{Batch, Work};

/// One way to do the work.
///
/// A subject takes part in the cases it can do: what it doesn't implement, it doesn't appear in. Whatever it hands out
/// holds its own connections, already used once, so that no dial is ever timed.
#[async_trait]
pub trait Subject: Send + Sync {
    /// What tables and charts call it.
    fn name(&self) -> &'static str;

    /// Whose it is.
    fn side(&self) -> Side;

    /// Which command form it fetches with: it is compared with the limit of the same form.
    fn form(&self) -> Form;

    /// Fetches batches.
    async fn fetch(&self, _stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(None)
    }

    /// Fetches batches from all servers of the stage.
    async fn spread(&self, _stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(None)
    }

    /// Reads batches of structs; it has checked that it gets the right ones.
    async fn read(&self, _stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(None)
    }

    /// Stores batches of absent keys.
    async fn fill(&self, _stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(None)
    }

    /// Deletes batches of present keys.
    async fn delete(&self, _stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(None)
    }

    /// This many callers that get one key after the other.
    async fn callers(&self, _stage: &Stage, _count: usize) -> Result<Option<Callers>> {
        Ok(None)
    }

    /// Fetches batches from a Redis that has the work's items as larder stores them.
    async fn redis_fetch(&self, _stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(None)
    }

    /// The same from the nodes of a Redis Cluster.
    async fn redis_cluster_fetch(&self, _stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(None)
    }

    /// This many callers that get one key after the other from such a Redis.
    async fn redis_callers(&self, _stage: &Stage, _count: usize) -> Result<Option<Callers>> {
        Ok(None)
    }

    /// Somebody who fetches batches and somebody who gets single keys, by the same client.
    async fn neighbours(&self, _stage: &Stage) -> Result<Option<Neighbours>> {
        Ok(None)
    }
}

/// All subjects, in the order of the tables.
pub fn all() -> Vec<Box<dyn Subject>> {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    subjects.extend(limit::subjects());
    subjects.extend(plain::subjects());
    subjects.extend(larder::subjects());
    subjects.extend(accessor::subjects());
    subjects.extend(exp::subjects());
    subjects.extend(classic::subjects());
    subjects.extend(async_memcached::subjects());
    subjects.extend(redis::subjects());
    subjects.extend(redis_cluster::subjects());
    subjects
}

/// Names that the targets refer to.
pub mod names {
    pub const RAW_META: &str = "raw socket, meta";
    pub const RAW_GET: &str = "raw socket, get";
    pub const PLAIN: &str = "plain connection per task";
    pub const LARDER_META: &str = "larder, meta";
    pub const LARDER_GET: &str = "larder, get";
    pub const LARDER_TWO: &str = "larder, meta, 2 connections";
    pub const RAW_DECODE_META: &str = "raw socket + decode, meta";
    pub const RAW_DECODE_GET: &str = "raw socket + decode, get";
    pub const ACCESSOR_META: &str = "larder accessor, meta";
    pub const ACCESSOR_GET: &str = "larder accessor, get";
    pub const RAW_MGET: &str = "raw socket, MGET";
    pub const LARDER_REDIS: &str = "larder, Redis";
    pub const REDIS_CRATE: &str = "redis crate, multiplexed";
    pub const RAW_GETS: &str = "raw sockets, GET";
    pub const LARDER_CLUSTER: &str = "larder, Redis Cluster";
    pub const CLUSTER_CRATE: &str = "redis crate, cluster client";
    pub const EXP: &str = "memcache exp, run_many";
    pub const EXP_POOL: &str = "memcache exp, default pool";
    pub const EXP_POOL_WIDE: &str = "memcache exp, one idle per task";
}

/// Whose a subject is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nobody's: a bare socket, the limit.
    Raw,
    /// Ours.
    Larder,
    /// Somebody else's.
    Peer,
}

/// How keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A pipeline of meta commands.
    Meta,
    /// Lines of the classic `get`; Redis's `MGET`.
    Get,
}

/// Where a case takes place.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The server's address: the first's, if there are several.
    pub server: String,
    /// The addresses of all servers.
    pub servers: Vec<String>,
    /// What each server holds.
    pub work: Arc<Work>,
}

/// Work that is timed call by call.
#[async_trait]
pub trait Job: Send {
    /// Does, untimed, what must come before the call: a fill needs its lease.
    async fn prepare(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }

    /// The timed call. It fails unless the server did what was asked for every key.
    async fn run(&mut self, batch: &Batch) -> Result<()>;
}

/// A job that fetches.
#[async_trait]
pub trait Fetch: Job {
    /// The batch's values, key by key: compared once, outside the timing.
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>>;
}

/// Bulk and single work by one client.
pub struct Neighbours {
    /// Fetches batches without pause; `None` leaves the single gets alone.
    pub bulk: Option<Box<dyn Job>>,
    /// Gets a key now and then.
    pub caller: Box<dyn Caller>,
}

/// Callers that work all at once.
pub type Callers = Vec<Box<dyn Caller>>;

/// Gets one key: what a subject implements to be a [`Caller`].
pub trait Get: Send + 'static {
    /// A value as the client hands it out.
    type Value: AsRef<[u8]> + Send;

    /// The key's value; a miss is an error.
    fn get(&mut self, key: &str) -> impl Future<Output = Result<Self::Value>> + Send;
}

/// Gets one key after the other.
#[async_trait]
pub trait Caller: Send {
    /// Gets the next key, and compares its value.
    async fn check(&mut self) -> Result<()>;

    /// Gets the next key, and says how long that took.
    async fn call(&mut self) -> Result<Duration>;

    /// Gets keys until then, and says how long each took.
    async fn call_until(&mut self, end: Instant) -> Calls;
}

/// What a caller experienced.
#[derive(Debug, Default)]
pub struct Calls {
    /// How long each answered call took, in nanoseconds.
    pub latencies: Vec<u64>,
    /// The first of the calls that failed, and how many did.
    pub failed: Option<(anyhow::Error, u64)>,
}

impl Calls {
    fn fail(&mut self, error: anyhow::Error, times: u64) {
        self.failed.get_or_insert((error, 0)).1 += times;
    }

    /// Adds another caller's calls.
    pub fn add(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        if let Some((error, times)) = other.failed {
            self.fail(error, times);
        }
    }
}

/// The caller that a getter makes; `number` tells callers apart, so that they ask for different keys.
fn caller<G: Get>(getter: G, stage: &Stage, number: usize) -> Box<dyn Caller> {
    /// Callers start this far apart in a batch.
    const STRIDE: usize = 37;
    Box::new(Walk {
        getter,
        work: Arc::clone(&stage.work),
        batch: number % stage.work.batches.len(),
        position: number * STRIDE,
    })
}

/// Goes round through one batch's keys.
struct Walk<G> {
    getter: G,
    work: Arc<Work>,
    batch: usize,
    position: usize,
}

impl<G> Walk<G> {
    fn step(&mut self) -> (usize, usize) {
        self.position += 1;
        let batch = &self.work.batches[self.batch];
        (self.batch, self.position % batch.len())
    }
}

#[async_trait]
impl<G: Get> Caller for Walk<G> {
    async fn check(&mut self) -> Result<()> {
        let (batch, position) = self.step();
        let batch = &self.work.batches[batch];
        let value = self.getter.get(&batch.keys[position]).await?;
        ensure!(
            value.as_ref() == batch.values[position],
            "`{}` has another value than was stored",
            batch.keys[position]
        );
        Ok(())
    }

    async fn call(&mut self) -> Result<Duration> {
        let (batch, position) = self.step();
        let start = Instant::now();
        self.getter
            .get(&self.work.batches[batch].keys[position])
            .await?;
        Ok(start.elapsed())
    }

    async fn call_until(&mut self, end: Instant) -> Calls {
        let mut calls = Calls::default();
        let mut start = Instant::now();
        while start < end {
            let (batch, position) = self.step();
            let answer = self
                .getter
                .get(&self.work.batches[batch].keys[position])
                .await;
            let now = Instant::now();
            match answer {
                Ok(_) => calls
                    .latencies
                    .push(u64::try_from((now - start).as_nanos()).unwrap_or(u64::MAX)),
                Err(error) => calls.fail(error, 1),
            }
            start = now;
        }
        calls
    }
}

/// Fails unless that many of the batch's keys were answered with something.
fn expect_all(found: usize, batch: &Batch) -> Result<()> {
    ensure!(
        found == batch.len(),
        "{found} of {} keys were answered",
        batch.len()
    );
    Ok(())
}
