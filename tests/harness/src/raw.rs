//! A memcached connection without larder in it: what a test asks when larder could deceive itself.
//!
//! One request at a time, no timeouts, no pipelining, and none of larder's own parsing.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite,
    AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpStream, UnixStream};

/// A raw connection.
///
/// It panics on whatever a running memcached wouldn't do, since it is the judge and not the judged.
///
/// ```no_run
/// # async fn example() {
/// use larder_harness::raw::Raw;
///
/// let mut raw = Raw::connect("127.0.0.1:11211").await;
/// assert_eq!(raw.line("ms user:7 2 T60\r\nhi").await, "HD");
/// let item = raw.get("user:7").await.expect("it was just stored");
/// assert_eq!(&item.value[..], b"hi");
/// assert!(raw.delete("user:7").await);
/// # }
/// ```
pub struct Raw {
    reader: Box<dyn AsyncBufRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// What the server keeps under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The bytes; empty for the placeholder of a lease.
    pub value: Bytes,
    /// How long it is still kept, in whole seconds; `None` for as long as there is room.
    pub ttl: Option<Duration>,
    /// The client's flags.
    pub flags: u32,
    /// Its CAS number.
    pub cas: u64,
}

impl Raw {
    /// Connects to `host:port`, or to `/path/of/a/socket`.
    ///
    /// # Panics
    ///
    /// If nobody listens.
    pub async fn connect(address: &str) -> Self {
        if address.starts_with('/') {
            let socket = UnixStream::connect(address).await;
            let (reader, writer) = socket.expect("the server listens").into_split();
            Self::new(reader, writer)
        } else {
            let socket = TcpStream::connect(address).await;
            let (reader, writer) = socket.expect("the server listens").into_split();
            Self::new(reader, writer)
        }
    }

    /// Speaks through these halves of an open connection.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Box::new(BufReader::new(reader)),
            writer: Box::new(writer),
        }
    }

    /// Says who it is to a server that demands a password (`-Y`).
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub async fn login(&mut self, user: &str, password: &str) {
        let login = format!("{user} {password}");
        let command = format!("set auth 0 0 {}\r\n{login}", login.len());
        assert_eq!(self.line(&command).await, "STORED");
    }

    /// Sends this command, whose line ends are between its lines only, and gives the first line of the reply.
    ///
    /// # Panics
    ///
    /// If the server closes the connection.
    pub async fn line(&mut self, command: &str) -> String {
        self.bytes(command.as_bytes()).await
    }

    async fn bytes(&mut self, command: &[u8]) -> String {
        let request = [command, b"\r\n"].concat();
        let sent = self.writer.write_all(&request).await;
        sent.expect("the server reads requests");
        // TLS keeps what didn't fit into a record.
        let sent = self.writer.flush().await;
        sent.expect("the server reads requests");
        self.read_line().await
    }

    async fn read_line(&mut self) -> String {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).await;
        assert!(
            read.is_ok_and(|length| length > 0) && line.ends_with("\r\n"),
            "the server closed the connection after `{line}`"
        );
        line.truncate(line.len() - 2);
        line
    }

    /// What the server has under this key, without touching it.
    ///
    /// # Panics
    ///
    /// If it answers neither an item nor its absence.
    pub async fn get(&mut self, key: &str) -> Option<Item> {
        let line = self.line(&format!("mg {key} v t f c")).await;
        if line == "EN" {
            return None;
        }
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("VA"), "an item: {line}");
        let length: usize = number(words.next());
        let mut item = Item {
            value: Bytes::new(),
            ttl: None,
            flags: 0,
            cas: 0,
        };
        for word in words {
            match word.split_at(1) {
                ("t", "-1") => item.ttl = None,
                ("t", seconds) => item.ttl = Some(Duration::from_secs(number(Some(seconds)))),
                ("f", flags) => item.flags = number(Some(flags)),
                ("c", cas) => item.cas = number(Some(cas)),
                // The marks of a lease, which a look doesn't change.
                _ => {}
            }
        }
        let mut value = vec![0; length + 2];
        let read = self.reader.read_exact(&mut value).await;
        read.expect("the server sends what it announced");
        assert!(value.ends_with(b"\r\n"), "the value of {key} has no end");
        value.truncate(length);
        item.value = value.into();
        Some(item)
    }

    /// Stores this whatever is there, for this many seconds; 0 for as long as there is room.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub async fn set(&mut self, key: &str, value: &[u8], seconds: u32) {
        let mut command = format!("ms {key} {} T{seconds}\r\n", value.len()).into_bytes();
        command.extend_from_slice(value);
        let line = self.bytes(&command).await;
        assert_eq!(line, "HD", "storing {key}");
    }

    /// Deletes this; whether it was there.
    ///
    /// # Panics
    ///
    /// If the server answers anything else.
    pub async fn delete(&mut self, key: &str) -> bool {
        match self.line(&format!("md {key}")).await.as_str() {
            "HD" => true,
            "NF" => false,
            other => panic!("deleting {key}: {other}"),
        }
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Raw").finish_non_exhaustive()
    }
}

fn number<N: std::str::FromStr>(word: Option<&str>) -> N {
    let number = word.and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("a number, and not {word:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Listen, MemcachedServer};

    #[tokio::test]
    async fn item_comes_back_as_the_server_keeps_it() {
        for listen in [Listen::Tcp, Listen::Unix] {
            let server = MemcachedServer::start(listen, &[]);
            let mut raw = Raw::connect(&server.address()).await;
            assert_eq!(raw.get("key").await, None);
            raw.set("key", b"a\r\nb", 100).await;
            let item = raw.get("key").await.expect("it was stored");
            assert_eq!(&item.value[..], b"a\r\nb");
            assert!(item.ttl >= Some(Duration::from_secs(98)), "{item:?}");
            raw.set("key", b"c", 0).await;
            assert_eq!(raw.get("key").await.and_then(|item| item.ttl), None);
            assert!(raw.delete("key").await);
            assert!(!raw.delete("key").await);
        }
    }

    #[tokio::test]
    async fn placeholder_is_an_empty_item() {
        let server = MemcachedServer::start(Listen::Tcp, &[]);
        let mut raw = Raw::connect(&server.address()).await;
        assert_eq!(raw.line("mg key N30 c").await, "HD c1 W");
        let item = raw.get("key").await.expect("the lease stands");
        assert_eq!((item.value.len(), item.cas), (0, 1));
        assert_eq!(raw.line("mg key N30 c").await, "HD c1 Z");
    }
}
