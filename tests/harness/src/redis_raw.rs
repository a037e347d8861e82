//! A Redis connection without larder in it: what a test asks when larder could deceive itself.
//!
//! One request at a time, no timeouts, no pipelining, RESP2, and neither larder's code nor the client crate's.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    BufReader,
};
use tokio::net::{TcpStream, UnixStream};

/// A raw connection.
///
/// It panics on whatever a running Redis wouldn't do, since it is the judge and not the judged.
///
/// ```no_run
/// # async fn example() {
/// use larder_harness::redis::{RawRedis, Reply};
///
/// let mut raw = RawRedis::connect("127.0.0.1:6379").await;
/// raw.set("user:7", b"hi").await;
/// assert_eq!(raw.get("user:7").await.as_deref(), Some(&b"hi"[..]));
/// assert_eq!(raw.call(&["UNLINK", "user:7"]).await, Reply::Number(1));
/// # }
/// ```
pub struct RawRedis {
    reader: Box<dyn AsyncBufRead + Send + Unpin>,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
}

/// What the server says to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A simple string.
    Text(String),
    /// An error, with its code.
    Error(String),
    /// An integer.
    Number(i64),
    /// A bulk string.
    Bytes(Bytes),
    /// Nothing.
    Nil,
    /// Several of these.
    List(Vec<Self>),
}

impl RawRedis {
    /// Connects to `host:port`, or to `/path/of/a/socket`.
    ///
    /// # Panics
    ///
    /// If nobody listens.
    pub async fn connect(address: &str) -> Self {
        if address.starts_with('/') {
            let socket = UnixStream::connect(address).await;
            let (reader, writer) = socket.expect("the server listens").into_split();
            Self::over(reader, writer)
        } else {
            let socket = TcpStream::connect(address).await;
            let (reader, writer) = socket.expect("the server listens").into_split();
            Self::over(reader, writer)
        }
    }

    /// Speaks over this connection.
    pub fn over(
        reader: impl tokio::io::AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: Box::new(BufReader::new(reader)),
            writer: Box::new(writer),
        }
    }

    /// Sends one command, and gives its reply.
    ///
    /// # Panics
    ///
    /// If the server closes the connection.
    pub async fn call(&mut self, words: &[&str]) -> Reply {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.call_bytes(&words).await
    }

    /// The same with words that are any bytes.
    ///
    /// # Panics
    ///
    /// If the server closes the connection.
    pub async fn call_bytes(&mut self, words: &[&[u8]]) -> Reply {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        let sent = self.writer.write_all(&request).await;
        sent.expect("the server reads requests");
        self.reply().await
    }

    async fn reply(&mut self) -> Reply {
        let line = self.line().await;
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number(rest)),
            "$" | "*" if rest == "-1" => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; number::<usize>(rest) + 2];
                let read = self.reader.read_exact(&mut bytes).await;
                read.expect("the server sends what it announced");
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes.into())
            }
            "*" => {
                let mut replies = Vec::new();
                for _ in 0..number::<usize>(rest) {
                    replies.push(Box::pin(self.reply()).await);
                }
                Reply::List(replies)
            }
            _ => panic!("a reply, and not `{line}`"),
        }
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).await;
        assert!(
            read.is_ok_and(|length| length > 0) && line.ends_with("\r\n"),
            "the server closed the connection after `{line}`"
        );
        line.truncate(line.len() - 2);
        line
    }

    /// Says the password of the default user.
    ///
    /// # Panics
    ///
    /// If that isn't it.
    pub async fn login(&mut self, password: &str) {
        let reply = self.call(&["AUTH", password]).await;
        assert_eq!(reply, Reply::Text("OK".into()), "logging in");
    }

    /// What the server has under this key.
    ///
    /// # Panics
    ///
    /// If it answers neither bytes nor their absence.
    pub async fn get(&mut self, key: &str) -> Option<Bytes> {
        match self.call(&["GET", key]).await {
            Reply::Bytes(bytes) => Some(bytes),
            Reply::Nil => None,
            other => panic!("getting {key}: {other:?}"),
        }
    }

    /// How long the server still keeps it; `None` for as long as there is room.
    ///
    /// # Panics
    ///
    /// If it isn't there.
    pub async fn ttl(&mut self, key: &str) -> Option<Duration> {
        match self.call(&["PTTL", key]).await {
            Reply::Number(-1) => None,
            Reply::Number(left) if left >= 0 => {
                Some(Duration::from_millis(left.try_into().expect("not below 0")))
            }
            other => panic!("the TTL of {key}: {other:?}"),
        }
    }

    /// Stores this whatever is there, for as long as there is room.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub async fn set(&mut self, key: &str, value: &[u8]) {
        let reply = self.call_bytes(&[b"SET", key.as_bytes(), value]).await;
        assert_eq!(reply, Reply::Text("OK".into()), "storing {key}");
    }

    /// One field of `INFO`.
    ///
    /// # Panics
    ///
    /// If there is no such field.
    pub async fn info(&mut self, field: &str) -> String {
        let Reply::Bytes(info) = self.call(&["INFO"]).await else {
            panic!("INFO is a text");
        };
        let info = String::from_utf8_lossy(&info);
        let value = info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("INFO has `{field}`"))
            .to_owned()
    }
}

impl std::fmt::Debug for RawRedis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawRedis").finish_non_exhaustive()
    }
}

fn number<N: std::str::FromStr>(word: &str) -> N {
    let number = word.parse().ok();
    number.unwrap_or_else(|| panic!("a number, and not `{word}`"))
}
