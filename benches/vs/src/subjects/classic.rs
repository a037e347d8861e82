//! The `memcache` crate's classic client: synchronous, over its ASCII protocol, which is its fastest.
//!
//! Its batch is `gets`; it has no batch of stores or deletes, so these are loops.

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::block_in_place;

use super::{Fetch, Form, Job, Side, Stage, Subject, expect_all};
use crate::work::Batch;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![Box::new(Classic)]
}

struct Classic;

impl Classic {
    fn connect(stage: &Stage) -> Result<memcache::Client> {
        let url = format!("memcache://{}?protocol=ascii", stage.server);
        Ok(block_in_place(|| memcache::Client::connect(url))?)
    }
}

#[async_trait]
impl Subject for Classic {
    fn name(&self) -> &'static str {
        "memcache classic (sync)"
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(Fetching(Self::connect(stage)?))))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(Filling(Self::connect(stage)?))))
    }

    async fn delete(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(Deleting(Self::connect(stage)?))))
    }
}

struct Fetching(memcache::Client);

impl Fetching {
    fn fetch(&self, batch: &Batch) -> Result<std::collections::HashMap<String, Vec<u8>>> {
        let keys: Vec<_> = batch.keys.iter().map(String::as_str).collect();
        Ok(block_in_place(|| self.0.gets(&keys))?)
    }
}

#[async_trait]
impl Job for Fetching {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        expect_all(self.fetch(batch)?.len(), batch)
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let mut found = self.fetch(batch)?;
        let mut value = |key| found.remove(key).context("a stored key is missing");
        batch
            .keys
            .iter()
            .map(|key| Ok(value(key)?.into()))
            .collect()
    }
}

struct Filling(memcache::Client);

#[async_trait]
impl Job for Filling {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        block_in_place(|| {
            for (key, value) in batch.pairs() {
                self.0.set(key, &value[..], 0)?;
            }
            Ok(())
        })
    }
}

struct Deleting(memcache::Client);

#[async_trait]
impl Job for Deleting {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        block_in_place(|| {
            let mut deleted = 0;
            for key in &batch.keys {
                deleted += usize::from(self.0.delete(key)?);
            }
            expect_all(deleted, batch)
        })
    }
}
