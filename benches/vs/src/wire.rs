//! A plain connection to a server, for everything outside the timing: filling it, emptying it, looking what is there.
//!
//! It shares no code with any subject, so that none can vouch for itself.

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::work::Batch;

/// One connection, one batch at a time.
#[derive(Debug)]
pub struct Wire {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Wire {
    /// Connects.
    pub async fn connect(server: &str) -> Result<Self> {
        let stream = TcpStream::connect(server)
            .await
            .with_context(|| format!("connecting to {server}"))?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self {
            reader: BufReader::with_capacity(64 * 1024, reader),
            writer,
        })
    }

    /// Stores the batch's values, without a lifetime.
    pub async fn store(&mut self, batch: &Batch) -> Result<()> {
        let mut request = Vec::new();
        for (key, value) in batch.pairs() {
            request.extend_from_slice(format!("ms {key} {} q\r\n", value.len()).as_bytes());
            request.extend_from_slice(value);
            request.extend_from_slice(b"\r\n");
        }
        self.silent(request, "").await
    }

    /// Deletes the batch's keys, whether they are there or not.
    pub async fn delete(&mut self, batch: &Batch) -> Result<()> {
        let lines = batch.keys.iter().map(|key| format!("md {key} q\r\n"));
        // memcached says NF for an absent key in quiet mode too.
        self.silent(lines.collect::<String>().into_bytes(), "NF")
            .await
    }

    /// The batch's values as the server has them.
    pub async fn fetch(&mut self, batch: &Batch) -> Result<Vec<Option<Vec<u8>>>> {
        let lines = batch.keys.iter().map(|key| format!("mg {key} v\r\n"));
        let request = lines.collect::<String>().into_bytes();
        let Self { reader, writer } = self;
        let write = async { writer.write_all(&request).await.map_err(Into::into) };
        let read = async {
            let mut values = Vec::with_capacity(batch.len());
            for _ in 0..batch.len() {
                values.push(read_value(reader).await?);
            }
            anyhow::Ok(values)
        };
        let ((), values) = tokio::try_join!(write, read)?;
        Ok(values)
    }

    /// Leases on the batch's absent keys, as CAS numbers.
    pub async fn lease(&mut self, batch: &Batch) -> Result<Vec<u64>> {
        let lines = batch.keys.iter().map(|key| format!("mg {key} N10 c\r\n"));
        let request = lines.collect::<String>().into_bytes();
        let Self { reader, writer } = self;
        let write = async { writer.write_all(&request).await.map_err(Into::into) };
        let read = async {
            let mut numbers = Vec::with_capacity(batch.len());
            for _ in 0..batch.len() {
                let line = read_line(reader).await?;
                ensure!(line.contains(" W"), "`{line}` isn't a lease");
                let number = line.split(' ').find_map(|flag| flag.strip_prefix('c'));
                let number = number.with_context(|| format!("no CAS number in `{line}`"))?;
                numbers.push(number.parse()?);
            }
            anyhow::Ok(numbers)
        };
        let ((), numbers) = tokio::try_join!(write, read)?;
        Ok(numbers)
    }

    /// Sends quiet commands, and reads to the end of the answer, in which only `expected` lines may stand.
    async fn silent(&mut self, mut request: Vec<u8>, expected: &str) -> Result<()> {
        request.extend_from_slice(b"mn\r\n");
        let Self { reader, writer } = self;
        let write = async { writer.write_all(&request).await.map_err(Into::into) };
        let read = async {
            loop {
                match read_line(reader).await?.as_str() {
                    "MN" => break anyhow::Ok(()),
                    line if line == expected => {}
                    line => bail!("the server says `{line}`"),
                }
            }
        };
        tokio::try_join!(write, read)?;
        Ok(())
    }
}

async fn read_value(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Vec<u8>>> {
    let line = read_line(reader).await?;
    if line == "EN" {
        return Ok(None);
    }
    let length = line.strip_prefix("VA ");
    let length: usize = length
        .and_then(|length| length.parse().ok())
        .with_context(|| format!("the server says `{line}` instead of a value"))?;
    let mut value = vec![0; length + 2];
    reader.read_exact(&mut value).await?;
    value.truncate(length);
    Ok(Some(value))
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let text = line.strip_suffix("\r\n");
    Ok(text.context("the server hung up")?.to_owned())
}
