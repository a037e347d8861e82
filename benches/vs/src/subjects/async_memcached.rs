//! `async-memcached`: one exclusive connection per client, both protocols.

use anyhow::{Context as _, Result};
use async_memcached::{AsciiProtocol as _, Client, MetaProtocol as _};
use async_trait::async_trait;
use bytes::Bytes;

use super::{Callers, Fetch, Form, Get, Job, Side, Stage, Subject, caller, expect_all};
use crate::work::Batch;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(AsyncMemcached { form: Form::Meta }),
        Box::new(AsyncMemcached { form: Form::Get }),
        Box::new(PerTask),
    ]
}

/// Its batches.
struct AsyncMemcached {
    form: Form,
}

#[async_trait]
impl Subject for AsyncMemcached {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Meta => "async-memcached, meta",
            Form::Get => "async-memcached, get / set",
        }
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        self.form
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let client = connect(stage).await?;
        Ok(Some(match self.form {
            Form::Meta => Box::new(MetaGet(client)),
            Form::Get => Box::new(AsciiGet(client)),
        }))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        let client = connect(stage).await?;
        Ok(Some(match self.form {
            Form::Meta => Box::new(MetaSet(client)),
            Form::Get => Box::new(AsciiSet(client)),
        }))
    }
}

async fn connect(stage: &Stage) -> Result<Client> {
    Ok(Client::new(format!("tcp://{}", stage.server)).await?)
}

struct MetaGet(Client);

#[async_trait]
impl Job for MetaGet {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let found = self.0.meta_get_multi(&batch.keys, Some(&["v"])).await?;
        expect_all(found.len(), batch)
    }
}

#[async_trait]
impl Fetch for MetaGet {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let found = self.0.meta_get_multi(&batch.keys, Some(&["v"])).await?;
        in_order(
            batch,
            found
                .into_iter()
                .map(|value| (value.key.unwrap_or_default(), value.data)),
        )
    }
}

struct AsciiGet(Client);

#[async_trait]
impl Job for AsciiGet {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        expect_all(self.0.get_multi(&batch.keys).await?.len(), batch)
    }
}

#[async_trait]
impl Fetch for AsciiGet {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let found = self.0.get_multi(&batch.keys).await?;
        in_order(
            batch,
            found.into_iter().map(|value| (value.key, value.data)),
        )
    }
}

/// Both batches name the keys of what they found, in whatever order.
fn in_order(
    batch: &Batch,
    found: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
) -> Result<Vec<Bytes>> {
    let mut found: std::collections::HashMap<_, _> = found.collect();
    let mut value = |key: &str| found.remove(key.as_bytes()).flatten();
    let value = |key: &String| value(key).context("a stored key is missing");
    batch
        .keys
        .iter()
        .map(value)
        .map(|value| Ok(value?.into()))
        .collect()
}

struct MetaSet(Client);

#[async_trait]
impl Job for MetaSet {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let items: Vec<_> = batch
            .pairs()
            .map(|(key, value)| (key, &value[..]))
            .collect();
        let refused = self.0.meta_set_multi(&items, None).await?;
        expect_all(batch.len() - refused.len(), batch)
    }
}

struct AsciiSet(Client);

#[async_trait]
impl Job for AsciiSet {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let items: Vec<_> = batch
            .pairs()
            .map(|(key, value)| (key, &value[..]))
            .collect();
        let outcomes = self.0.set_multi(&items, None, None).await?;
        expect_all(
            outcomes.values().filter(|outcome| outcome.is_ok()).count(),
            batch,
        )
    }
}

/// A client for each task, since a client serves one call at a time.
struct PerTask;

#[async_trait]
impl Subject for PerTask {
    fn name(&self) -> &'static str {
        "async-memcached, one per task"
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        let mut callers = Vec::new();
        for number in 0..count {
            callers.push(caller(Single(connect(stage).await?), stage, number));
        }
        Ok(Some(callers))
    }
}

struct Single(Client);

impl Get for Single {
    type Value = Vec<u8>;

    async fn get(&mut self, key: &str) -> Result<Vec<u8>> {
        let found = self.0.get(key).await?;
        let data = found.and_then(|value| value.data);
        data.context("a stored key is missing")
    }
}
