//! The `memcache` crate's experimental meta-protocol client, asynchronous.
//!
//! `run_many` is its lower and faster batch, `get_many` and `set_many` the ones its documentation leads with. Its pool
//! keeps 8 idle connections; with more tasks than that, each beyond the eighth dials anew unless `max_idle` is raised,
//! so both are measured.

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use memcache::exp::{self, AsyncMemcache, AsyncMetaClient, Ttl};

use super::{
    Callers, Fetch, Form, Get, Job, Neighbours, Side, Stage, Subject, caller, expect_all, names,
};
use crate::work::Batch;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Commands),
        Box::new(Verbs),
        Box::new(Pool { wide: false }),
        Box::new(Pool { wide: true }),
    ]
}

/// Commands in a batch: `AsyncMetaClient::run_many`.
struct Commands;

#[async_trait]
impl Subject for Commands {
    fn name(&self) -> &'static str {
        names::EXP
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Meta
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(Fetching(connect(stage).await?))))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(Filling(connect(stage).await?))))
    }

    async fn delete(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(Deleting(connect(stage).await?))))
    }

    async fn neighbours(&self, stage: &Stage) -> Result<Option<Neighbours>> {
        let client = connect(stage).await?;
        Ok(Some(Neighbours {
            bulk: Some(Box::new(Fetching(client.clone()))),
            caller: caller(Single(client), stage, 0),
        }))
    }
}

async fn connect(stage: &Stage) -> Result<AsyncMetaClient> {
    Ok(AsyncMetaClient::connect(stage.server.as_str()).await?)
}

struct Fetching(AsyncMetaClient);

#[async_trait]
impl Job for Fetching {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let mut found = 0;
        for answer in self
            .0
            .run_many(batch.keys.iter().map(exp::Get::new))
            .await?
        {
            found += usize::from(answer?.value.is_some());
        }
        expect_all(found, batch)
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let answers = self
            .0
            .run_many(batch.keys.iter().map(exp::Get::new))
            .await?;
        let value = |answer: exp::GetResult| answer.value.context("a stored key is missing");
        answers
            .into_iter()
            .map(|answer| Ok(value(answer?)?.into()))
            .collect()
    }
}

struct Filling(AsyncMetaClient);

#[async_trait]
impl Job for Filling {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let sets = batch.pairs().map(|(key, value)| exp::Set::new(key, value));
        let mut stored = 0;
        for outcome in self.0.run_many(sets).await? {
            stored += usize::from(outcome?.applied());
        }
        expect_all(stored, batch)
    }
}

struct Deleting(AsyncMetaClient);

#[async_trait]
impl Job for Deleting {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let mut deleted = 0;
        for outcome in self
            .0
            .run_many(batch.keys.iter().map(exp::Delete::new))
            .await?
        {
            deleted += usize::from(outcome?.applied());
        }
        expect_all(deleted, batch)
    }
}

/// Verbs: `AsyncMemcache`.
struct Verbs;

#[async_trait]
impl Subject for Verbs {
    fn name(&self) -> &'static str {
        "memcache exp, get_many / set_many"
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Meta
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(GetMany(verbs(stage).await?))))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(SetMany(verbs(stage).await?))))
    }
}

async fn verbs(stage: &Stage) -> Result<AsyncMemcache> {
    Ok(AsyncMemcache::connect([stage.server.as_str()]).await?)
}

struct GetMany(AsyncMemcache);

#[async_trait]
impl Job for GetMany {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let keys = batch.keys.iter().map(String::as_str);
        let found = self.0.get_many::<Vec<u8>, _>(keys).await?;
        expect_all(found.len(), batch)
    }
}

#[async_trait]
impl Fetch for GetMany {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let keys = batch.keys.iter().map(String::as_str);
        let mut found = self.0.get_many::<Vec<u8>, _>(keys).await?;
        let mut value = |key: &String| {
            found
                .remove(key.as_str())
                .context("a stored key is missing")
        };
        batch
            .keys
            .iter()
            .map(|key| Ok(value(key)?.into()))
            .collect()
    }
}

struct SetMany(AsyncMemcache);

#[async_trait]
impl Job for SetMany {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let pairs = batch.pairs().map(|(key, value)| (key, &value[..]));
        Ok(self.0.set_many(pairs, Ttl::NEVER).await?)
    }
}

/// Its pool, shared by all tasks.
struct Pool {
    /// Keeps a connection for each task; otherwise its default of 8.
    wide: bool,
}

#[async_trait]
impl Subject for Pool {
    fn name(&self) -> &'static str {
        if self.wide {
            names::EXP_POOL_WIDE
        } else {
            names::EXP_POOL
        }
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Meta
    }

    async fn callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        let builder = AsyncMetaClient::builder();
        let builder = if self.wide {
            builder.max_idle(count)
        } else {
            builder
        };
        let client = builder.connect_async(stage.server.as_str()).await?;
        let callers = (0..count).map(|number| caller(Single(client.clone()), stage, number));
        Ok(Some(callers.collect()))
    }
}

struct Single(AsyncMetaClient);

impl Get for Single {
    type Value = Vec<u8>;

    async fn get(&mut self, key: &str) -> Result<Vec<u8>> {
        let answer = self.0.run(exp::Get::new(key)).await?;
        answer.value.context("a stored key is missing")
    }
}
