//! The cases: which work, on which server, and how it is known to have been done.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use larder_harness::redis::RedisServer;
use larder_harness::redis_cluster::RedisCluster;
use larder_harness::server::{Listen, MemcachedServer};
use tokio::task::block_in_place;

use crate::measure::{self, Before, Entrant, Pace, Row};
use crate::stopped;
use crate::subjects::{self, Callers, Fetch, Job, Stage, Subject};
use crate::wire::Wire;
use crate::work::Work;

/// How many keys a call has that goes to several servers.
const SPREAD: usize = 1_000;

/// A kind of work and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Fetch so many keys, all there.
    Bulk(usize),
    /// Read so many structs through an accessor, all there.
    Accessor(usize),
    /// Get single keys from so many tasks.
    Singles(usize),
    /// Store so many absent keys.
    Fill(usize),
    /// Delete so many present keys.
    Delete(usize),
    /// Get a single key every 0.2 ms while bulks of so many keys run without pause.
    Neighbour(usize),
    /// Fetch so many keys from Redis, all there.
    RedisBulk(usize),
    /// Get single keys from Redis from so many tasks.
    RedisSingles(usize),
    /// Fetch so many keys from a cluster of three, all there.
    RedisCluster(usize),
    /// Fetch 1,000 keys, all there, from so many servers.
    Pool(usize),
    /// The same while one of them is stopped.
    Stopped(usize),
}

impl Case {
    /// All cases, in the order in which they run.
    pub const ALL: [Self; 22] = [
        Self::Bulk(100),
        Self::Bulk(1_000),
        Self::Bulk(5_000),
        Self::Accessor(1_000),
        Self::Singles(1),
        Self::Singles(8),
        Self::Singles(64),
        Self::Singles(512),
        Self::Fill(1_000),
        Self::Delete(1_000),
        Self::Neighbour(5_000),
        Self::Pool(1),
        Self::Pool(3),
        Self::Pool(50),
        Self::Stopped(50),
        Self::RedisBulk(100),
        Self::RedisBulk(1_000),
        Self::RedisBulk(5_000),
        Self::RedisSingles(1),
        Self::RedisSingles(64),
        Self::RedisCluster(1_000),
        Self::RedisCluster(5_000),
    ];

    /// The name that `--case` filters by, and JSON lines carry.
    pub fn name(self) -> String {
        match self {
            Self::Bulk(keys) => format!("bulk-{keys}"),
            Self::Accessor(keys) => format!("accessor-{keys}"),
            Self::Singles(tasks) => format!("singles-{tasks}"),
            Self::Fill(keys) => format!("fill-{keys}"),
            Self::Delete(keys) => format!("delete-{keys}"),
            Self::Neighbour(keys) => format!("neighbour-{keys}"),
            Self::RedisBulk(keys) => format!("redis-bulk-{keys}"),
            Self::RedisSingles(tasks) => format!("redis-singles-{tasks}"),
            Self::RedisCluster(keys) => format!("redis-cluster-{keys}"),
            Self::Pool(servers) => format!("pool-{servers}"),
            Self::Stopped(servers) => format!("stopped-{servers}"),
        }
    }

    /// What is done, in words.
    pub fn title(self, value: usize) -> String {
        match self {
            Self::Bulk(keys) => format!("Fetch {keys} keys in bulk, all hits, {value}-byte values"),
            Self::Accessor(keys) => {
                format!(
                    "Read {keys} structs through an accessor, all hits, about {value} bytes each"
                )
            }
            Self::Singles(1) => format!("Get single keys, 1 task, {value}-byte values"),
            Self::Singles(tasks) => {
                format!("Get single keys, {tasks} tasks at once, {value}-byte values")
            }
            Self::RedisBulk(keys) => {
                format!("Fetch {keys} keys in bulk from Redis, all hits, {value}-byte values")
            }
            Self::RedisSingles(tasks) => {
                format!("Get single keys from Redis, {tasks} at once, {value}-byte values")
            }
            Self::RedisCluster(keys) => format!(
                "Fetch {keys} keys in bulk from a Redis Cluster of three, all hits, {value}-byte values"
            ),
            Self::Fill(keys) => format!("Store {keys} absent keys, {value}-byte values"),
            Self::Delete(keys) => format!("Delete {keys} keys"),
            Self::Neighbour(keys) => format!(
                "Get a key every 0.2 ms beside bulks of {keys} keys, one server thread, {value}-byte values"
            ),
            Self::Pool(1) => {
                format!("Fetch {SPREAD} keys from 1 server with one thread, {value}-byte values")
            }
            Self::Pool(servers) => format!(
                "Fetch {SPREAD} keys from {servers} servers with one thread each, {value}-byte values"
            ),
            Self::Stopped(servers) => format!(
                "Fetch {SPREAD} keys from {servers} servers, one of which is stopped (SIGSTOP), {value}-byte values"
            ),
        }
    }

    /// Keys a call handles.
    pub fn keys(self) -> usize {
        match self {
            Self::Singles(_) | Self::Neighbour(_) | Self::RedisSingles(_) => 1,
            Self::Pool(_) | Self::Stopped(_) => SPREAD,
            Self::Bulk(keys)
            | Self::Accessor(keys)
            | Self::Fill(keys)
            | Self::Delete(keys)
            | Self::RedisBulk(keys)
            | Self::RedisCluster(keys) => keys,
        }
    }

    /// Whether its calls follow one another, each with a batch of keys.
    pub fn is_batch(self) -> bool {
        !matches!(
            self,
            Self::Singles(_) | Self::Neighbour(_) | Self::Stopped(_) | Self::RedisSingles(_)
        )
    }

    /// Measures all subjects that can do it, on a server of its own.
    pub async fn run(
        self,
        subjects: &[Box<dyn Subject>],
        value: usize,
        pace: Pace,
    ) -> Result<Vec<Row>> {
        let options = self.server_options();
        let servers: Vec<_> = (0..self.servers())
            .map(|_| block_in_place(|| MemcachedServer::start(Listen::Tcp, options)))
            .collect();
        let redis = self
            .is_redis()
            .then(|| block_in_place(|| RedisServer::start(Listen::Tcp, &[])));
        let cluster = match self {
            Self::RedisCluster(_) => {
                Some(RedisCluster::start(subjects::redis_cluster::NODES, &[]).await)
            }
            _ => None,
        };
        let servers_of_stage: Vec<_> = match (&redis, &cluster) {
            (Some(redis), _) => vec![redis.address()],
            (_, Some(cluster)) => cluster.addresses(),
            _ => servers.iter().map(MemcachedServer::address).collect(),
        };
        let stage = Stage {
            server: servers_of_stage[0].clone(),
            servers: servers_of_stage,
            work: Arc::new(self.work(value)),
        };
        match self {
            Self::Accessor(_) => {}
            Self::RedisBulk(_) | Self::RedisSingles(_) => subjects::redis::furnish(&stage).await?,
            Self::RedisCluster(_) => subjects::redis_cluster::furnish(&stage).await?,
            _ => stage.furnish().await?,
        }
        let stage = &stage;
        // A p99 needs more calls than a median.
        let longer = Pace {
            slice: pace.slice * 4,
            ..pace
        };
        Ok(match self {
            Self::Bulk(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.fetch(stage).await.transpose()?;
                        Some(checked_fetch(job, stage).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Nothing, pace).await?
            }
            Self::Accessor(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move { subject.read(stage).await.transpose() })
                });
                measure::jobs(entrants.await, stage, Before::Nothing, pace).await?
            }
            Self::Fill(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.fill(stage).await.transpose()?;
                        Some(checked_write(job, stage, Before::Absent).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Absent, pace).await?
            }
            Self::Delete(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.delete(stage).await.transpose()?;
                        Some(checked_write(job, stage, Before::Present).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Present, pace).await?
            }
            Self::Singles(tasks) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let callers = subject.callers(stage, tasks).await.transpose()?;
                        Some(checked_callers(callers).await)
                    })
                });
                measure::callers(entrants.await, longer).await
            }
            Self::RedisBulk(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.redis_fetch(stage).await.transpose()?;
                        Some(checked_fetch(job, stage).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Nothing, pace).await?
            }
            Self::RedisCluster(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.redis_cluster_fetch(stage).await.transpose()?;
                        Some(checked_fetch(job, stage).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Nothing, pace).await?
            }
            Self::RedisSingles(tasks) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let callers = subject.redis_callers(stage, tasks).await.transpose()?;
                        Some(checked_callers(callers).await)
                    })
                });
                measure::callers(entrants.await, longer).await
            }
            Self::Neighbour(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move { subject.neighbours(stage).await.transpose() })
                });
                measure::neighbours(entrants.await, stage, longer).await
            }
            Self::Pool(_) => {
                let entrants = enter(subjects, |subject| {
                    Box::pin(async move {
                        let job = subject.spread(stage).await.transpose()?;
                        Some(checked_fetch(job, stage).await)
                    })
                });
                measure::jobs(entrants.await, stage, Before::Nothing, pace).await?
            }
            Self::Stopped(_) => stopped::run(&servers, stage, pace).await?,
        })
    }

    fn work(self, value: usize) -> Work {
        match self {
            Self::Singles(_) | Self::RedisSingles(_) => Work::new(1_000, value),
            Self::Neighbour(keys) => Work::new(keys, value),
            // Every subject has entries of its own, and a server's default memory is 64 MiB.
            Self::Accessor(keys) => Work::new(keys, value).first(5),
            // Each server of a pool has all of it.
            Self::Pool(_) | Self::Stopped(_) => Work::new(SPREAD, value).first(5),
            Self::Bulk(keys)
            | Self::Fill(keys)
            | Self::Delete(keys)
            | Self::RedisBulk(keys)
            | Self::RedisCluster(keys) => Work::new(keys, value),
        }
    }

    fn is_redis(self) -> bool {
        matches!(self, Self::RedisBulk(_) | Self::RedisSingles(_))
    }

    /// How many memcached servers it takes.
    fn servers(self) -> usize {
        match self {
            Self::Pool(servers) | Self::Stopped(servers) => servers,
            Self::RedisBulk(_) | Self::RedisSingles(_) | Self::RedisCluster(_) => 0,
            _ => 1,
        }
    }

    /// The server's defaults, but for what a case is about.
    fn server_options(self) -> &'static [&'static str] {
        match self {
            // Several subjects open a connection per task, and keep it through all rounds.
            Self::Singles(_) => &["-c", "4096"],
            // With several threads it would be luck whether the two share one.
            Self::Neighbour(_) => &["-t", "1"],
            // So that fifty of them fit on one machine, a quarter of which their housekeeping would take otherwise.
            Self::Pool(_) | Self::Stopped(_) => &["-m", "8", "-t", "1", "-o", "no_lru_maintainer"],
            _ => &[],
        }
    }
}

impl Stage {
    /// Stores all of the work's items, on every server: which of them is asked for a key is the client's business.
    async fn furnish(&self) -> Result<()> {
        for server in &self.servers {
            let mut wire = Wire::connect(server).await?;
            for batch in &self.work.batches {
                wire.store(batch).await?;
            }
        }
        Ok(())
    }
}

/// Work that a subject makes for a case: none if it doesn't do such.
type Made<'a, W> = Pin<Box<dyn Future<Output = Option<Result<W>>> + Send + 'a>>;

/// The subjects that take part, with the work they made.
async fn enter<'a, W>(
    subjects: &'a [Box<dyn Subject>],
    make: impl Fn(&'a dyn Subject) -> Made<'a, W>,
) -> Vec<Entrant<W>> {
    let mut entrants = Vec::new();
    for subject in subjects {
        if let Some(work) = make(&**subject).await {
            entrants.push(Entrant::new(&**subject, work));
        }
    }
    entrants
}

/// The job, if it pairs every key with its value.
async fn checked_fetch(job: Result<Box<dyn Fetch>>, stage: &Stage) -> Result<Box<dyn Job>> {
    let mut job = job?;
    for batch in &stage.work.batches {
        let answers = job.answers(batch).await?;
        ensure!(
            answers == batch.values,
            "it doesn't pair every key with its value"
        );
    }
    Ok(job)
}

/// The job, if the server has what it stored, and hasn't what it deleted.
async fn checked_write(
    job: Result<Box<dyn Job>>,
    stage: &Stage,
    before: Before,
) -> Result<Box<dyn Job>> {
    let mut job = job?;
    let mut wire = Wire::connect(&stage.server).await?;
    let batch = &stage.work.batches[0];
    match before {
        Before::Absent => wire.delete(batch).await?,
        _ => wire.store(batch).await?,
    }
    job.prepare(batch).await?;
    job.run(batch).await?;
    for (found, (key, value)) in wire.fetch(batch).await?.iter().zip(batch.pairs()) {
        let expected = (before == Before::Absent).then_some(&value[..]);
        ensure!(
            found.as_deref() == expected,
            "after it, the server has something else as `{key}`"
        );
    }
    Ok(job)
}

/// The callers, if each gets the right value; that also dials for each.
async fn checked_callers(callers: Result<Callers>) -> Result<Callers> {
    let mut callers = callers?;
    for (number, caller) in callers.iter_mut().enumerate() {
        caller
            .check()
            .await
            .with_context(|| format!("caller {number}"))?;
    }
    Ok(callers)
}
