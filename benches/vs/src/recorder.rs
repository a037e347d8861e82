//! A proxy on loopback that writes down what a client sends and how the server answers.
//!
//! The raw limit replays what it recorded: it can't drift from what larder's client really sends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Stands between a client and a server.
#[derive(Debug)]
pub struct Recorder {
    address: SocketAddr,
    tape: Arc<Mutex<Vec<Exchange>>>,
    /// Ends all forwarding when it is dropped.
    _tasks: JoinSet<()>,
}

/// What went over one connection.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// All the client sent.
    pub request: Vec<u8>,
    /// All the server answered.
    pub reply: Vec<u8>,
}

impl Recorder {
    /// A recorder in front of this server.
    pub async fn start(server: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let tape = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server.to_owned(), Arc::clone(&tape)));
        Ok(Self {
            address,
            tape,
            _tasks: tasks,
        })
    }

    /// Where the client connects to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Forgets what it has recorded.
    pub fn rewind(&self) {
        for exchange in self.lock().iter_mut() {
            *exchange = Exchange::default();
        }
    }

    /// What was sent and answered since the last [`rewind`](Self::rewind), once the client has its answer.
    ///
    /// A batch that went over several connections is an error: one replaying socket couldn't stand for it.
    pub fn recorded(&self) -> Result<Exchange> {
        let mut spoken = self.lock().clone();
        spoken.retain(|exchange| !exchange.request.is_empty());
        let count = spoken.len();
        let exchange = spoken.pop().context("the client sent nothing")?;
        ensure!(
            count == 1,
            "the client spoke on {count} connections, and the limit replays one"
        );
        Ok(exchange)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Exchange>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forwards one connection after the other, each in both directions at once.
async fn accept(listener: TcpListener, server: String, tape: Arc<Mutex<Vec<Exchange>>>) {
    let mut forwarding = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(upstream) = TcpStream::connect(&server).await else {
            continue;
        };
        for side in [&client, &upstream] {
            // Where it fails, forwarding is slower and no less true.
            side.set_nodelay(true).ok();
        }
        let connection = {
            let mut tape = tape.lock().unwrap_or_else(PoisonError::into_inner);
            tape.push(Exchange::default());
            tape.len() - 1
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = upstream.into_split();
        let record = Arc::clone(&tape);
        forwarding.spawn(forward(from_client, to_server, move |bytes| {
            let mut tape = record.lock().unwrap_or_else(PoisonError::into_inner);
            tape[connection].request.extend_from_slice(bytes);
        }));
        let record = Arc::clone(&tape);
        forwarding.spawn(forward(from_server, to_client, move |bytes| {
            let mut tape = record.lock().unwrap_or_else(PoisonError::into_inner);
            tape[connection].reply.extend_from_slice(bytes);
        }));
    }
}

/// Records before it forwards: who has the answer finds all of it on the tape.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, record: impl Fn(&[u8]) + Send) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        record(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_directions_are_on_the_tape_before_they_arrive() -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = listener.local_addr()?.to_string();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            let mut request = [0; 4];
            for answer in ["VERSION 1\r\n", "MN\r\n"] {
                stream.read_exact(&mut request).await?;
                stream.write_all(answer.as_bytes()).await?;
            }
            anyhow::Ok(())
        });

        let recorder = Recorder::start(&server).await?;
        let mut client = TcpStream::connect(recorder.address()).await?;
        client.write_all(b"v1\r\n").await?;
        client.read_exact(&mut [0; 11]).await?;
        recorder.rewind();
        client.write_all(b"mn\r\n").await?;
        client.read_exact(&mut [0; 4]).await?;
        let exchange = recorder.recorded()?;
        assert_eq!(
            (&exchange.request[..], &exchange.reply[..]),
            (&b"mn\r\n"[..], &b"MN\r\n"[..])
        );
        answering.await?
    }

    #[tokio::test]
    async fn silence_cant_be_replayed() -> Result<()> {
        let recorder = Recorder::start("127.0.0.1:1").await?;
        let error = recorder.recorded().unwrap_err();
        assert_eq!(error.to_string(), "the client sent nothing");
        Ok(())
    }
}
