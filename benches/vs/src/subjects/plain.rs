//! What a program without a client library would do: a connection of its own for each task, one request at a time.

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Callers, Form, Get, Job, Neighbours, Side, Stage, Subject, caller, expect_all, names};
use crate::work::Batch;

pub(super) fn subjects() -> Vec<Box<dyn Subject>> {
    vec![Box::new(PerTask), Box::new(Alone), Box::new(OneLine)]
}

/// A connection per task.
struct PerTask;

#[async_trait]
impl Subject for PerTask {
    fn name(&self) -> &'static str {
        names::PLAIN
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        Form::Meta
    }

    async fn callers(&self, stage: &Stage, count: usize) -> Result<Option<Callers>> {
        let mut callers = Vec::new();
        for number in 0..count {
            let connection = Connection::connect(&stage.server).await?;
            callers.push(caller(connection, stage, number));
        }
        Ok(Some(callers))
    }
}

/// Single gets with nobody beside them.
struct Alone;

#[async_trait]
impl Subject for Alone {
    fn name(&self) -> &'static str {
        "plain connection, no bulk"
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        Form::Meta
    }

    async fn neighbours(&self, stage: &Stage) -> Result<Option<Neighbours>> {
        let connection = Connection::connect(&stage.server).await?;
        Ok(Some(Neighbours {
            bulk: None,
            caller: caller(connection, stage, 0),
        }))
    }
}

/// All keys of a batch in one `get` line, on a connection of its own.
struct OneLine;

#[async_trait]
impl Subject for OneLine {
    fn name(&self) -> &'static str {
        "plain connections, one get line"
    }

    fn side(&self) -> Side {
        Side::Raw
    }

    fn form(&self) -> Form {
        Form::Get
    }

    async fn neighbours(&self, stage: &Stage) -> Result<Option<Neighbours>> {
        let bulk = Connection::connect(&stage.server).await?;
        let single = Connection::connect(&stage.server).await?;
        Ok(Some(Neighbours {
            bulk: Some(Box::new(bulk)),
            caller: caller(single, stage, 0),
        }))
    }
}

/// One connection, one request at a time.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn connect(server: &str) -> Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            request: Vec::new(),
            buffer: Vec::with_capacity(64 * 1024),
        })
    }

    async fn more(&mut self) -> Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server hung up");
        }
        Ok(())
    }
}

impl Get for Connection {
    type Value = Vec<u8>;

    async fn get(&mut self, key: &str) -> Result<Vec<u8>> {
        self.request.clear();
        self.request.extend_from_slice(b"mg ");
        self.request.extend_from_slice(key.as_bytes());
        self.request.extend_from_slice(b" v\r\n");
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let start = loop {
            self.more().await?;
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                break end + 1;
            }
        };
        let line = std::str::from_utf8(&self.buffer[..start])?.trim_end();
        let length = line.strip_prefix("VA ");
        let length: usize = length
            .with_context(|| format!("{key} is answered `{line}`"))?
            .parse()?;
        while self.buffer.len() < start + length + 2 {
            self.more().await?;
        }
        Ok(self.buffer[start..start + length].to_vec())
    }
}

#[async_trait]
impl Job for Connection {
    async fn run(&mut self, batch: &Batch) -> Result<()> {
        self.request.clear();
        self.request.extend_from_slice(b"get");
        for key in &batch.keys {
            self.request.push(b' ');
            self.request.extend_from_slice(key.as_bytes());
        }
        self.request.extend_from_slice(b"\r\n");
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        while !self.buffer.ends_with(b"\r\nEND\r\n") {
            self.more().await?;
        }
        let values = memchr::memmem::find_iter(&self.buffer, "VALUE bench/").count();
        expect_all(values, batch)
    }
}
