//! Redis: larder's client, the `redis` crate by itself, and a bare socket, on the very same entries.
//!
//! larder stores the entries, so that all read the same bytes: each value with the 17 that larder puts before it. The socket
//! sends one `MGET` for all keys, as the crate does; it reads an answer of known length, compares its end, and parses nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use larder_backends::redis::{Redis, RedisConfig};
use larder_core::{Backend, BackendExt as _, GetOptions, Keys, Lookup, Rt, Set, WriteOptions};
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::larder::{LEASE, hit, keys_of};
use super::{Callers, Fetch, Form, Get, Job, Side, Stage, Subject, caller, expect_all, names};
use crate::work::Batch;

/// What larder puts before every value.
const HEAD: usize = 17;

/// As much is read at once.
const READ: usize = 256 * 1024;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![Box::new(Raw), Box::new(Ours), Box::new(Crate)]
}

/// Stores all of the work's items.
pub async fn furnish(stage: &Stage) -> Result<()> {
    store(&*Ours::connect(stage)?.0, stage).await
}

pub(super) async fn store(backend: &dyn Backend, stage: &Stage) -> Result<()> {
    for batch in &stage.work.batches {
        let sets = batch.values.iter().cloned().map(Set::new).collect();
        let (keys, options) = (keys_of(batch)?, WriteOptions::default());
        let stored = backend.set_immutable_many(&keys, sets, &options).await;
        stored.into_iter().try_for_each(|stored| stored)?;
    }
    Ok(())
}

/// The request for a batch, as bytes.
fn request(batch: &Batch) -> Vec<u8> {
    let mut request = format!("*{}\r\n$4\r\nMGET\r\n", batch.len() + 1);
    for key in &batch.keys {
        request.push_str(&format!("${}\r\n{key}\r\n", key.len()));
    }
    request.into_bytes()
}

struct Raw;

#[async_trait]
impl Subject for Raw {
    fn name(&self) -> &'static str {
        names::RAW_MGET
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let requests = stage.work.batches.iter().map(request).collect();
        let lengths = stage.work.batches.iter().map(answer_length).collect();
        let socket = Socket::connect(&stage.server, requests, lengths).await?;
        Ok(Some(Box::new(socket)))
    }
}

/// How long the answer to a batch is.
fn answer_length(batch: &Batch) -> usize {
    let values = batch.values.iter().map(value_length);
    format!("*{}\r\n", batch.len()).len() + values.sum::<usize>()
}

/// How long a value is as it comes.
pub(super) fn value_length(value: &Bytes) -> usize {
    let length = HEAD + value.len();
    format!("${length}\r\n").len() + length + 2
}

/// Takes the next value off an answer, which has to be as long as this one.
pub(super) fn take_value(rest: &mut &[u8], like: &Bytes) -> Result<Bytes> {
    let length = HEAD + like.len();
    let head = format!("${length}\r\n");
    let value = rest.strip_prefix(head.as_bytes());
    let value = value.context("a value is missing")?;
    *rest = &value[length + 2..];
    Ok(Bytes::copy_from_slice(&value[HEAD..length]))
}

/// Sends prepared requests and reads answers of known length.
pub(super) struct Socket {
    stream: TcpStream,
    /// By the number of the batch.
    requests: Vec<Vec<u8>>,
    lengths: Vec<usize>,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) async fn connect(
        server: &str,
        requests: Vec<Vec<u8>>,
        lengths: Vec<usize>,
    ) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            requests,
            lengths,
            buffer: vec![0; READ],
        })
    }

    /// Writes and reads at once, and shows every piece of the answer.
    pub(super) async fn exchange(
        &mut self,
        batch: &Batch,
        mut read: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let (mut reader, mut writer) = self.stream.split();
        let request = &self.requests[batch.number];
        let write = async { writer.write_all(request).await.map_err(Into::into) };
        let reading = async {
            let mut left = self.lengths[batch.number];
            while left > 0 {
                let length = reader.read(&mut self.buffer).await?;
                ensure!(length > 0, "the server hung up");
                left = left
                    .checked_sub(length)
                    .context("the answer is longer than it should be")?;
                ensure!(
                    left > 0 || self.buffer[..length].ends_with(b"\r\n"),
                    "the answer has another end"
                );
                read(&self.buffer[..length]);
            }
            anyhow::Ok(())
        };
        tokio::try_join!(write, reading)?;
        Ok(())
    }
}

#[async_trait]
impl Job for Socket {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        self.exchange(batch, |_| {}).await
    }
}

#[async_trait]
impl Fetch for Socket {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let mut reply = Vec::new();
        self.exchange(batch, |piece| reply.extend_from_slice(piece))
            .await?;
        let mut rest = &reply[format!("*{}\r\n", batch.len()).len()..];
        let values = batch.values.iter();
        values.map(|value| take_value(&mut rest, value)).collect()
    }
}

struct Ours;

impl Ours {
    fn connect(stage: &Stage) -> Result<Client> {
        Ok(Client(Arc::new(Redis::new(config(stage), Rt::new())?)))
    }
}

/// A client's configuration. Patience changes nothing of what is measured, and a busy machine shouldn't end it.
pub(super) fn config(stage: &Stage) -> RedisConfig {
    let mut config = RedisConfig::default();
    config.servers.clone_from(&stage.servers);
    config.timeout = Duration::from_secs(10);
    config.connect_timeout = Duration::from_secs(10);
    config
}

#[async_trait]
impl Subject for Ours {
    fn name(&self) -> &'static str {
        names::LARDER_REDIS
    }

    fn side(&self) -> Side {
        Side::Larder
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(Self::connect(stage)?)))
    }

    async fn redis_callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        let client = Self::connect(stage)?;
        let callers = (0..count).map(|number| caller(client.clone(), stage, number));
        Ok(Some(callers.collect()))
    }
}

#[derive(Clone)]
struct Client(Arc<Redis>);

impl Client {
    async fn look_up(&self, keys: &Keys) -> Vec<larder_core::Result<Lookup>> {
        self.0.get_many(keys, &GetOptions::lease(LEASE)).await
    }
}

#[async_trait]
impl Job for Client {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let mut found = 0;
        for answer in self.look_up(&keys_of(batch)?).await {
            found += usize::from(matches!(answer?, Lookup::Hit { .. }));
        }
        expect_all(found, batch)
    }
}

#[async_trait]
impl Fetch for Client {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let answers = self.look_up(&keys_of(batch)?).await;
        answers.into_iter().map(|answer| hit(answer?)).collect()
    }
}

impl Get for Client {
    type Value = Bytes;

    async fn get(&mut self, key: &str) -> Result<Bytes> {
        hit(self.0.get(key, &GetOptions::lease(LEASE)).await?)
    }
}

/// The crate's own multiplexed connection.
struct Crate;

impl Crate {
    async fn connect(stage: &Stage) -> Result<Multiplexed> {
        let client = redis::Client::open(format!("redis://{}/", stage.server))?;
        Ok(Multiplexed(
            client.get_multiplexed_async_connection().await?,
        ))
    }
}

#[async_trait]
impl Subject for Crate {
    fn name(&self) -> &'static str {
        names::REDIS_CRATE
    }

    fn side(&self) -> Side {
        Side::Peer
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn redis_fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        Ok(Some(Box::new(Self::connect(stage).await?)))
    }

    async fn redis_callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        let client = Self::connect(stage).await?;
        let callers = (0..count).map(|number| caller(client.clone(), stage, number));
        Ok(Some(callers.collect()))
    }
}

#[derive(Clone)]
struct Multiplexed(MultiplexedConnection);

impl Multiplexed {
    async fn mget(&mut self, batch: &Batch) -> Result<Vec<Vec<u8>>> {
        let mut command = redis::cmd("MGET");
        command.arg(&batch.keys);
        match self.0.send_packed_command(&command).await? {
            Value::Array(values) => values.into_iter().map(value).collect(),
            _ => bail!("an MGET is answered with something else"),
        }
    }
}

pub(super) fn value(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(value) => Ok(value),
        _ => bail!("a stored key is answered with something else"),
    }
}

#[async_trait]
impl Job for Multiplexed {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let found = self.mget(batch).await?;
        expect_all(found.len(), batch)
    }
}

#[async_trait]
impl Fetch for Multiplexed {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        let values = self.mget(batch).await?.into_iter();
        Ok(values.map(without_head).collect())
    }
}

impl Get for Multiplexed {
    type Value = Bytes;

    async fn get(&mut self, key: &str) -> Result<Bytes> {
        let mut command = redis::cmd("GET");
        command.arg(key);
        let answer = self.0.send_packed_command(&command).await?;
        value(answer).map(without_head)
    }
}

pub(super) fn without_head(value: Vec<u8>) -> Bytes {
    let mut value = Bytes::from(value);
    value.advance(HEAD);
    value
}
