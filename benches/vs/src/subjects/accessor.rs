//! Through an accessor: ids to decoded structs, as a service reads them.
//!
//! The limit is a bare socket that sends what the accessor sends, and then postcard alone on the same payloads: no
//! envelope is checked, no age, no flight is looked for, nothing is paired.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use larder_core::{Cache, Dataset, FlushOn, Lifetime, NoTier, Plain, Prefix, Source};
use serde::{Deserialize, Serialize};

use super::limit::Replay;
use super::{Form, Job, Side, Stage, Subject, expect_all, larder, names};
use crate::recorder::Recorder;
use crate::work::Batch;

/// Bytes of an entry before its payload, as `docs/formats.md` has it.
const ENVELOPE: usize = 18;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    let limit = |form| -> Box<dyn Subject> { Box::new(Limit { form }) };
    let accessor = |form| -> Box<dyn Subject> { Box::new(Accessor { form }) };
    vec![
        limit(Form::Meta),
        limit(Form::Get),
        accessor(Form::Meta),
        accessor(Form::Get),
    ]
}

/// A chat message, about as long as the value it is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Message {
    id: u64,
    sender: u32,
    stream: u32,
    sent_at: i64,
    topic: String,
    text: String,
    reactions: Vec<(u16, u32)>,
}

impl Message {
    fn of(id: u64, value: &Bytes) -> Self {
        /// What the other fields come to.
        const REST: usize = 40;
        let text = String::from_utf8_lossy(value).into_owned();
        let (text, _) = text.split_at(text.len().saturating_sub(REST));
        Self {
            id,
            sender: 1_000 + (id % 500) as u32,
            stream: (id % 40) as u32,
            sent_at: 1_735_689_600 + id as i64,
            topic: format!("topic {}", id % 97),
            text: text.to_owned(),
            reactions: (0..(id % 4) as u16).map(|kind| (kind, 7)).collect(),
        }
    }

    fn all_of(batch: &Batch) -> impl Iterator<Item = Self> {
        let pairs = batch.ids.iter().zip(&batch.values);
        pairs.map(|(id, value)| Self::of(*id, value))
    }
}

/// Where messages come from once, when the store is filled.
#[derive(Clone)]
struct Messages(Arc<HashMap<u64, Message>>);

impl Source for Messages {
    type Conn = Self;
    type Guard = Box<Self>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<Self>, Infallible> {
        Ok(Box::new(self.clone()))
    }
}

enum MessageById {}

impl Dataset for MessageById {
    const NAME: &'static str = "message";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(7 * 24 * 60 * 60));
    type Source = Messages;
    type Key = u64;
    type Value = Message;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load(
        messages: &mut Messages,
        ids: Vec<u64>,
    ) -> Result<Vec<(u64, Message)>, Infallible> {
        let found = ids
            .into_iter()
            .filter_map(|id| Some((id, messages.0.get(&id)?.clone())));
        Ok(found.collect())
    }
}

struct Accessor {
    form: Form,
}

#[async_trait]
impl Subject for Accessor {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Meta => names::ACCESSOR_META,
            Form::Get => names::ACCESSOR_GET,
        }
    }

    fn side(&self) -> Side {
        Side::Larder
    }

    fn form(&self) -> Form {
        self.form
    }

    async fn read(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        Ok(Some(Box::new(
            Reading::warm(&stage.server, self.form, stage).await?,
        )))
    }
}

/// A cache whose store has every message.
struct Reading(Cache<Messages>);

impl Reading {
    /// Fills the store, and sees that every later read is one trip and no load.
    async fn warm(server: &str, form: Form, stage: &Stage) -> Result<Self> {
        let batches = || stage.work.batches.iter();
        let messages = batches().flat_map(Message::all_of);
        let source = Messages(Arc::new(
            messages.map(|message| (message.id, message)).collect(),
        ));
        let cache = Cache::builder(source)
            .backend(larder::Client::connect([server], form, 1)?.into_backend())
            .prefix(Prefix::new("bench")?)
            .register::<MessageById>()
            .build()
            .await?;
        let (filling, tally) = cache.tallied();
        for batch in batches() {
            larder_core::get_many::<MessageById>(&filling, &batch.ids).await?;
        }
        tally.settled().await;
        for batch in batches() {
            let (reading, tally) = cache.tallied();
            let found = larder_core::get_many::<MessageById>(&reading, &batch.ids).await?;
            ensure!(
                (tally.trips(), tally.loads()) == (1, 0),
                "a warm read took {} trips and {} loads",
                tally.trips(),
                tally.loads()
            );
            ensure!(
                found.into_found().into_iter().eq(Message::all_of(batch)),
                "it doesn't give every id its message"
            );
        }
        Ok(Self(cache))
    }
}

#[async_trait]
impl Job for Reading {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        let messages = larder_core::get_many::<MessageById>(&self.0, &batch.ids).await?;
        let found = messages.iter().filter(|(_, message)| message.is_some());
        expect_all(found.count(), batch)
    }
}

/// The bare socket and the bare codec.
struct Limit {
    form: Form,
}

#[async_trait]
impl Subject for Limit {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Meta => names::RAW_DECODE_META,
            Form::Get => names::RAW_DECODE_GET,
        }
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        self.form
    }

    async fn read(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        let recorder = Recorder::start(&stage.server).await?;
        let mut reading = Reading::warm(&recorder.address(), self.form, stage).await?;
        let mut exchanges = Vec::new();
        let mut payloads = Vec::new();
        for batch in &stage.work.batches {
            recorder.rewind();
            reading.run(batch).await?;
            let exchange = recorder.recorded()?;
            let entries = payloads_of(&exchange.reply)?;
            let messages = entries.iter().map(|entry| decode(entry));
            ensure!(
                messages.collect::<Result<Vec<_>>>()? == Message::all_of(batch).collect::<Vec<_>>(),
                "the recorded payloads aren't the batch's messages"
            );
            payloads.push(entries);
            exchanges.push(exchange);
        }
        let replay = Replay::connect(&stage.server, exchanges).await?;
        Ok(Some(Box::new(Decoding { replay, payloads })))
    }
}

struct Decoding {
    replay: Replay,
    /// By the number of the batch.
    payloads: Vec<Vec<Bytes>>,
}

#[async_trait]
impl Job for Decoding {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        self.replay.replay(batch.number).await?;
        let payloads = &self.payloads[batch.number];
        let messages: Result<Vec<_>> = payloads.iter().map(|payload| decode(payload)).collect();
        expect_all(black_box(messages?).len(), batch)
    }
}

fn decode(payload: &[u8]) -> Result<Message> {
    Ok(postcard::from_bytes(payload)?)
}

/// The payloads of the entries in a recorded reply of either form.
fn payloads_of(reply: &[u8]) -> Result<Vec<Bytes>> {
    let mut payloads = Vec::new();
    let mut rest = reply;
    while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
        let line = std::str::from_utf8(&rest[..end])?;
        rest = &rest[end + 2..];
        let mut words = line.split(' ');
        let length = match words.next() {
            Some("VA") => words.next(),
            Some("VALUE") => words.nth(2),
            Some("MN" | "END") => continue,
            _ => bail!("`{line}` announces no value"),
        };
        let length: usize = length
            .with_context(|| format!("no length in `{line}`"))?
            .parse()?;
        let (entry, after) = rest
            .split_at_checked(length)
            .context("a value is cut short")?;
        let payload = entry
            .get(ENVELOPE..)
            .context("an entry without its envelope")?;
        payloads.push(Bytes::copy_from_slice(payload));
        rest = after.strip_prefix(b"\r\n").context("a value doesn't end")?;
    }
    Ok(payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_found_in_both_forms() {
        let envelope = "e".repeat(ENVELOPE);
        let meta =
            format!("VA 20 s20 c7 t-1\r\n{envelope}a\n\r\nVA 19 s19 c8\r\n{envelope}b\r\nMN\r\n");
        let get = format!(
            "VALUE k1 0 20\r\n{envelope}a\n\r\nEND\r\nVALUE k2 0 19 9\r\n{envelope}b\r\nEND\r\n"
        );
        for reply in [meta, get] {
            assert_eq!(payloads_of(reply.as_bytes()).unwrap(), ["a\n", "b"]);
        }
    }
}
