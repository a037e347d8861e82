//! The bare socket: it sends byte for byte what larder sends, and drops the answer.
//!
//! What larder sends is recorded from larder's client itself, through a proxy, when the case begins. The answer to a
//! fixed request has a fixed length, also recorded: the loop reads that many bytes, compares the last five (`MN`, or
//! `END`), and parses nothing.

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use memchr::memmem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use super::{Fetch, Form, Job, Side, Stage, Subject, larder, names};
use crate::recorder::{Exchange, Recorder};
use crate::wire::Wire;
use crate::work::Batch;

/// As much is read at once.
const READ: usize = 256 * 1024;

/// How many bytes at the end of an answer are looked at.
const TAIL: usize = 5;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(Limit { form: Form::Meta }),
        Box::new(Limit { form: Form::Get }),
    ]
}

struct Limit {
    form: Form,
}

#[async_trait]
impl Subject for Limit {
    fn name(&self) -> &'static str {
        match self.form {
            Form::Meta => names::RAW_META,
            Form::Get => names::RAW_GET,
        }
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        self.form
    }

    async fn fetch(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let mut client = Recorded::start(stage, self.form).await?;
        let mut job = client.client.fetching();
        // The first call dials and greets, which isn't part of what a call sends.
        job.run(&stage.work.batches[0]).await?;
        let exchanges = client.record(&mut job, stage).await?;
        Ok(Some(Box::new(
            Replay::connect(&stage.server, exchanges).await?,
        )))
    }

    async fn spread(&self, stage: &Stage) -> Result<Option<Box<dyn Fetch>>> {
        let mut recorders = Vec::new();
        for server in &stage.servers {
            recorders.push(Recorder::start(server).await?);
        }
        let addresses: Vec<_> = recorders.iter().map(Recorder::address).collect();
        let mut job = larder::Client::connect(&addresses, self.form, 1)?.fetching();
        let mut exchanges = vec![Vec::new(); recorders.len()];
        for batch in &stage.work.batches {
            // The first call dials and greets, which isn't part of what a call sends.
            job.run(batch).await?;
            recorders.iter().for_each(Recorder::rewind);
            job.run(batch).await?;
            for (recorder, exchanges) in recorders.iter().zip(&mut exchanges) {
                exchanges.push(recorder.recorded()?);
            }
        }
        let mut replays = Vec::new();
        for (server, exchanges) in stage.servers.iter().zip(exchanges) {
            replays.push(Replay::connect(server, exchanges).await?);
        }
        Ok(Some(Box::new(Spread(replays))))
    }

    async fn fill(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        if self.form == Form::Get {
            return Ok(None);
        }
        let mut client = Recorded::start(stage, self.form).await?;
        let mut wire = Wire::connect(&stage.server).await?;
        let mut exchanges = Vec::new();
        let mut job = client.client.filling();
        for batch in &stage.work.batches {
            wire.delete(batch).await?;
            job.prepare(batch).await?;
            exchanges.push(client.record_one(&mut job, batch).await?);
        }
        let replay = Replay::connect(&stage.server, exchanges).await?;
        Ok(Some(Box::new(Fill { replay, wire })))
    }

    async fn delete(&self, stage: &Stage) -> Result<Option<Box<dyn Job>>> {
        if self.form == Form::Get {
            return Ok(None);
        }
        let mut client = Recorded::start(stage, self.form).await?;
        let mut wire = Wire::connect(&stage.server).await?;
        let mut exchanges = Vec::new();
        let mut job = client.client.deleting();
        job.run(&stage.work.batches[0]).await?;
        for batch in &stage.work.batches {
            wire.store(batch).await?;
            exchanges.push(client.record_one(&mut job, batch).await?);
        }
        Ok(Some(Box::new(
            Replay::connect(&stage.server, exchanges).await?,
        )))
    }
}

/// larder's client behind a recorder.
struct Recorded {
    recorder: Recorder,
    client: larder::Client,
}

impl Recorded {
    async fn start(stage: &Stage, form: Form) -> Result<Self> {
        let recorder = Recorder::start(&stage.server).await?;
        let client = larder::Client::connect([&recorder.address()], form, 1)?;
        Ok(Self { recorder, client })
    }

    async fn record(&mut self, job: &mut impl Job, stage: &Stage) -> Result<Vec<Exchange>> {
        let mut exchanges = Vec::new();
        for batch in &stage.work.batches {
            exchanges.push(self.record_one(job, batch).await?);
        }
        Ok(exchanges)
    }

    async fn record_one(&mut self, job: &mut impl Job, batch: &Batch) -> Result<Exchange> {
        self.recorder.rewind();
        job.run(batch).await?;
        self.recorder.recorded()
    }
}

/// Sends recorded requests again.
pub(super) struct Replay {
    stream: TcpStream,
    /// By the number of the batch.
    exchanges: Vec<Exchange>,
    buffer: Vec<u8>,
}

impl Replay {
    pub(super) async fn connect(server: &str, exchanges: Vec<Exchange>) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let buffer = vec![0; READ];
        Ok(Self {
            stream,
            exchanges,
            buffer,
        })
    }

    /// Writes and reads at once: a server that can't send doesn't receive either.
    pub(super) async fn replay(&mut self, number: usize) -> Result<()> {
        let Exchange { request, reply } = &self.exchanges[number];
        let (mut reader, mut writer) = self.stream.split();
        let write = async { writer.write_all(request).await.map_err(Into::into) };
        tokio::try_join!(write, skim(&mut reader, reply, &mut self.buffer))?;
        Ok(())
    }
}

/// Reads an answer, and compares its length and its end with those of the recorded one.
async fn skim(reader: &mut ReadHalf<'_>, recorded: &[u8], buffer: &mut [u8]) -> Result<()> {
    let mut left = recorded.len();
    let mut tail = &[][..];
    while left > 0 {
        let length = reader.read(buffer).await?;
        ensure!(length > 0, "the server hung up");
        left = left
            .checked_sub(length)
            .context("the answer was longer than recorded")?;
        tail = &buffer[length.saturating_sub(TAIL)..length];
    }
    ensure!(
        recorded.ends_with(tail),
        "the answer ended unlike the recorded one"
    );
    Ok(())
}

/// The replays of several servers: all requests go out, and then one answer is read after the other, most of which have
/// come by then. A part is short enough to be written though nobody reads yet.
struct Spread(Vec<Replay>);

#[async_trait]
impl Job for Spread {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        if let [replay] = &mut self.0[..] {
            return replay.replay(batch.number).await;
        }
        for replay in &mut self.0 {
            let request = &replay.exchanges[batch.number].request;
            replay.stream.write_all(request).await?;
        }
        for replay in &mut self.0 {
            let reply = &replay.exchanges[batch.number].reply;
            skim(&mut replay.stream.split().0, reply, &mut replay.buffer).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Fetch for Spread {
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        self.run(batch).await?;
        let replies: Vec<_> = self
            .0
            .iter()
            .map(|replay| &replay.exchanges[batch.number].reply)
            .collect();
        for value in &batch.values {
            let found = |reply: &&Vec<u8>| memmem::find(reply, value).is_some();
            ensure!(replies.iter().any(found), "a value is missing");
        }
        Ok(batch.values.clone())
    }
}

#[async_trait]
impl Job for Replay {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        self.replay(batch.number).await
    }
}

#[async_trait]
impl Fetch for Replay {
    /// The loop keeps no answer; the recorded one stands for it, whose length and end it was compared with.
    async fn answers(&mut self, batch: &Batch) -> Result<Vec<Bytes>> {
        self.run(batch).await?;
        let reply = &self.exchanges[batch.number].reply;
        let mut from = 0;
        let mut answers = Vec::with_capacity(batch.len());
        for value in &batch.values {
            let at = memmem::find(&reply[from..], value).context("a value is missing")?;
            from += at + value.len();
            answers.push(value.clone());
        }
        Ok(answers)
    }
}

/// Replays fills with the leases of the day: only the CAS numbers differ from what was recorded.
struct Fill {
    replay: Replay,
    wire: Wire,
}

#[async_trait]
impl Job for Fill {
    async fn prepare(&mut self, batch: &Batch) -> Result<()> {
        let leases = self.wire.lease(batch).await?;
        let exchange = &mut self.replay.exchanges[batch.number];
        exchange.request = with_leases(&exchange.request, batch, &leases)?;
        Ok(())
    }

    async fn run(&mut self, batch: &Batch) -> Result<()> {
        self.replay.replay(batch.number).await
    }
}

/// The request with these CAS numbers in its `ms` lines, one per key of the batch; other lines stay as they are.
fn with_leases(request: &[u8], batch: &Batch, leases: &[u64]) -> Result<Vec<u8>> {
    let mut changed = Vec::with_capacity(request.len() + batch.len());
    let mut fills = batch.pairs().zip(leases);
    let mut rest = request;
    while let Some(end) = memmem::find(rest, b"\r\n") {
        let (line, after) = rest.split_at(end);
        let line = std::str::from_utf8(line)?;
        let mut words: Vec<_> = line.split(' ').collect();
        let mut block = "\r\n".len();
        let lease;
        if words[0] == "ms" {
            let ((key, value), cas) = fills.next().context("there are more fills than keys")?;
            ensure!(words.get(1) == Some(&key), "`{line}` doesn't fill `{key}`");
            lease = format!("C{cas}");
            // After command, key and length, which may look like anything.
            let cas = words.iter_mut().skip(3).find(|word| is_cas(word));
            *cas.with_context(|| format!("`{line}` has no lease"))? = &lease;
            block += value.len() + "\r\n".len();
        }
        changed.extend_from_slice(words.join(" ").as_bytes());
        let data = after.split_at_checked(block);
        let (data, after) = data.context("a fill is cut short")?;
        changed.extend_from_slice(data);
        rest = after;
    }
    ensure!(fills.next().is_none(), "a key isn't filled");
    Ok(changed)
}

fn is_cas(word: &str) -> bool {
    word.strip_prefix('C').is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_replaced_and_all_else_is_kept() {
        let batch = Batch {
            number: 0,
            ids: vec![1, 2],
            keys: vec!["C1".into(), "b".into()],
            values: vec![Bytes::from_static(b"x C7 y"), Bytes::from_static(b"\r\n")],
        };
        let recorded = b"ms C1 6 C11 T5 q\r\nx C7 y\r\nmn\r\nms b 2 C9 q\r\n\r\n\r\nmn\r\n";
        let changed = with_leases(recorded, &batch, &[100, 2]).unwrap();
        assert_eq!(
            changed.escape_ascii().to_string(),
            b"ms C1 6 C100 T5 q\r\nx C7 y\r\nmn\r\nms b 2 C2 q\r\n\r\n\r\nmn\r\n"
                .escape_ascii()
                .to_string()
        );
    }
}
