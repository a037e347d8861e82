//! larder's memcached client, below the accessors: keys to bytes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use larder_backends::{BulkForm, Memcached, MemcachedConfig};
use larder_core::{
    Backend, BackendExt as _, ErrorKind, Fill, FillOutcome, GetOptions, Keys, Lease, Lookup, Rt,
    WriteOptions,
};

use super::{
    Callers, Fetch, Form, Get, Job, Neighbours, Side, Stage, Subject, caller, expect_all, names,
};
use crate::work::Batch;

/// The lease an accessor asks for on a miss; it asks for it on every key, hit or not.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// How long fills live, as an accessor would have it.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    let larder = |form, connections| -> Box<dyn Subject> { Box::new(Larder { form, connections }) };
    vec![
        larder(Form::Meta, 1),
        larder(Form::Meta, 2),
        larder(Form::Get, 1),
    ]
}

struct Larder {
    form: Form,
    connections: usize,
}

impl Larder {
    fn client(&self, stage: &Stage) -> Result<Client> {
        Client::connect([&stage.server], self.form, self.connections)
    }

    /// Only singles go over several connections, and only bulk reads know two forms.
    fn is_default(&self) -> bool {
        self.form == Form::Meta && self.connections == 1
    }
}

#[async_trait]
impl Subject for Larder {
    fn name(&self) -> &'static str {
        match (self.form, self.connections) {
            (Form::Meta, 1) => names::LARDER_META,
            (Form::Meta, _) => names::LARDER_TWO,
            (Form::Get, _) => names::LARDER_GET,
        }
    }

    fn side(&self) -> Side {
        Side::Larder
    }

    fn form(&self) -> Form {
        self.form
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        if self.connections > 1 {
            return Ok(None);
        }
        Ok(Some(Box::new(self.client(stage)?.fetching())))
    }

    async fn spread(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        if self.connections > 1 {
            return Ok(None);
        }
        let client = Client::connect(&stage.servers, self.form, 1)?;
        Ok(Some(Box::new(client.fetching())))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        if !self.is_default() {
            return Ok(None);
        }
        Ok(Some(Box::new(self.client(stage)?.filling())))
    }

    async fn delete(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        if !self.is_default() {
            return Ok(None);
        }
        Ok(Some(Box::new(self.client(stage)?.deleting())))
    }

    async fn callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        if self.form == Form::Get {
            return Ok(None);
        }
        let client = self.client(stage)?;
        let callers = (0..count).map(|number| caller(client.clone(), stage, number));
        Ok(Some(callers.collect()))
    }

    async fn neighbours(&self, stage: &Stage) -> Result<Option<Neighbours>> {
        if self.connections > 1 {
            return Ok(None);
        }
        let client = self.client(stage)?;
        Ok(Some(Neighbours {
            bulk: Some(Box::new(client.clone().fetching())),
            caller: caller(client, stage, 0),
        }))
    }
}

/// A client and the jobs it does; the limit records these very jobs.
#[derive(Clone)]
pub struct Client(Arc<Memcached>);

impl Client {
    pub fn connect(
        servers: impl IntoIterator<Item = impl Into<String>>,
        form: Form,
        connections: usize,
    ) -> Result<Self> {
        let mut config = MemcachedConfig::new(servers);
        config.connections = connections;
        config.bulk = match form {
            Form::Meta => BulkForm::Meta,
            Form::Get => BulkForm::Get,
        };
        Ok(Self(Arc::new(Memcached::new(config, Rt::new())?)))
    }

    /// What a cache is built on.
    pub(super) fn into_backend(self) -> Arc<dyn Backend> {
        self.0
    }

    pub(super) fn fetching(&self) -> Fetching {
        Fetching(self.clone())
    }

    pub(super) fn filling(&self) -> Filling {
        Filling {
            client: self.clone(),
            leases: Vec::new(),
        }
    }

    pub(super) fn deleting(&self) -> Deleting {
        Deleting(self.clone())
    }

    /// Fetches the batch: how many of its keys weren't answered in time, and how many weren't asked for at all.
    pub async fn fetch_what_is_there(&self, batch: &Batch) -> Result<(usize, usize)> {
        let (mut late, mut refused) = (0, 0);
        for answer in self.look_up(&keys_of(batch)?).await {
            match answer {
                Ok(Lookup::Hit { .. }) => {}
                Ok(other) => bail!("a stored key is answered {other:?}"),
                Err(error) if error.kind() == ErrorKind::Timeout => late += 1,
                Err(_) => refused += 1,
            }
        }
        Ok((late, refused))
    }

    async fn look_up(&self, keys: &Keys) -> Vec<larder_core::Result<Lookup>> {
        self.0.get_many(keys, &GetOptions::lease(LEASE)).await
    }
}

/// The keys as larder takes them; making them is part of what is timed.
pub(super) fn keys_of(batch: &Batch) -> Result<Keys> {
    let mut keys = Keys::with_capacity(batch.len());
    for key in &batch.keys {
        keys.push_raw(key)?;
    }
    Ok(keys)
}

pub(super) struct Fetching(Client);

#[async_trait]
impl Job for Fetching {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let mut found = 0;
        for answer in self.0.look_up(&keys_of(batch)?).await {
            found += usize::from(matches!(answer?, Lookup::Hit { .. }));
        }
        expect_all(found, batch)
    }
}

#[async_trait]
impl Fetch for Fetching {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let answers = self.0.look_up(&keys_of(batch)?).await;
        answers.into_iter().map(|answer| hit(answer?)).collect()
    }
}

pub(super) fn hit(lookup: Lookup) -> Result<Bytes> {
    match lookup {
        Lookup::Hit { value, .. } => Ok(value),
        other => bail!("a stored key is answered {other:?}"),
    }
}

pub(super) struct Filling {
    client: Client,
    leases: Vec<Lease>,
}

#[async_trait]
impl Job for Filling {
    async fn prepare(&mut self, batch: &Batch) -> Result<()> {
        self.leases.clear();
        for answer in self.client.look_up(&keys_of(batch)?).await {
            match answer? {
                Lookup::Miss { lease: Some(lease) } => self.leases.push(lease),
                other => bail!("an absent key is answered {other:?}"),
            }
        }
        Ok(())
    }

    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let leases = self.leases.drain(..).zip(&batch.values);
        let fills = leases
            .map(|(lease, value)| Fill::new(lease, value.clone()).ttl(TTL))
            .collect();
        let outcomes = self
            .client
            .0
            .fill_many(&keys_of(batch)?, fills, &WriteOptions::default())
            .await;
        let mut stored = 0;
        for outcome in outcomes {
            stored += usize::from(outcome? == FillOutcome::Stored);
        }
        expect_all(stored, batch)
    }
}

pub(super) struct Deleting(Client);

#[async_trait]
impl Job for Deleting {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let answers = self
            .0
            .0
            .delete_many(&keys_of(batch)?, &WriteOptions::default())
            .await;
        ensure!(answers.len() == batch.len(), "an answer is missing");
        answers.into_iter().try_for_each(|answer| Ok(answer?))
    }
}

impl Get for Client {
    type Value = Bytes;

    async fn get(&mut self, key: &str) -> Result<Bytes> {
        hit(self.0.get(key, &GetOptions::lease(LEASE)).await?)
    }
}
