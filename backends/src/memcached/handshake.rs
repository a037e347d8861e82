//! The first exchange on a new connection: what the server is, and whether its leases can be trusted.

use bytes::BytesMut;
use larder_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::protocol::{HELLO, Parser, Reply};
use super::transport::Io;

/// The oldest server whose `md C` compares.
const OLDEST: (u32, u32, u32) = (1, 6, 13);

/// No memcached takes a higher limit than this (`-I`), whatever one says.
const LARGEST_ITEM: usize = 1 << 30;

/// What a server that we can work with said.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) version: String,
    /// The longest item, with key and header.
    pub(super) item_size_max: usize,
    /// Connections it takes.
    pub(super) maxconns: Option<u64>,
    pub(super) parser: Parser,
    pub(super) input: BytesMut,
}

/// Asks for version and settings, and refuses a server that can't keep the protocol's promises.
pub(super) async fn greet(io: &mut Io, server: &str) -> Result<Greeted> {
    // A server without a connection to spare says so and closes, whatever it is sent: what it says is read in any case.
    let written = io.writer.write_all(HELLO).await;
    let mut parser = Parser::new(0);
    let mut input = BytesMut::with_capacity(8 << 10);
    let mut version = None;
    let mut settings = Settings::default();
    loop {
        while let Some(reply) = parser
            .next(&mut input)
            .map_err(|violation| foreign(server, violation.0))?
        {
            match reply {
                Reply::Version(text) => version = Some(supported(server, &text)?),
                Reply::Stat(text) => settings.note(&text),
                Reply::End => {
                    let version = version.ok_or_else(|| foreign(server, "no version"))?;
                    return settings.accept(server, version, parser, input);
                }
                Reply::Error(text) => return Err(refused(server, &text)),
                Reply::ClientError(text) if text.starts_with(b"unauthenticated") => {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        format!(
                            "memcached {server}: demands a password (-Y), which this client can't give"
                        ),
                    ));
                }
                _ => return Err(foreign(server, "an answer to something else")),
            }
        }
        let read = io.reader.read_buf(&mut input).await;
        let lost = match (read, &written) {
            (Ok(0), _) => "the server closed it".to_owned(),
            (Ok(_), _) => continue,
            (Err(_), Err(error)) => error.to_string(),
            (Err(error), Ok(())) => error.to_string(),
        };
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "memcached {server}: the new connection was lost before it was of use ({lost})"
            ),
        ));
    }
}

#[derive(Debug, Default)]
struct Settings {
    cas_enabled: Option<bool>,
    item_size_max: Option<usize>,
    maxconns: Option<u64>,
}

impl Settings {
    fn note(&mut self, stat: &[u8]) {
        let Some((name, value)) = std::str::from_utf8(stat)
            .ok()
            .and_then(|stat| stat.split_once(' '))
        else {
            return;
        };
        match name {
            "cas_enabled" => self.cas_enabled = Some(value == "yes"),
            "item_size_max" => self.item_size_max = value.parse().ok(),
            "maxconns" => self.maxconns = value.parse().ok(),
            _ => {}
        }
    }

    fn accept(
        self,
        server: &str,
        version: String,
        mut parser: Parser,
        input: BytesMut,
    ) -> Result<Greeted> {
        if self.cas_enabled != Some(true) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "memcached {server}: runs without CAS numbers, so a fill could put back what was just deleted; \
                     start it without -C"
                ),
            ));
        }
        let item_size_max = self
            .item_size_max
            .ok_or_else(|| foreign(server, "no item_size_max among its settings"))?
            .min(LARGEST_ITEM);
        parser.set_max_value(item_size_max);
        Ok(Greeted {
            version,
            item_size_max,
            maxconns: self.maxconns,
            parser,
            input,
        })
    }
}

fn supported(server: &str, version: &[u8]) -> Result<String> {
    let version = String::from_utf8_lossy(version).into_owned();
    let mut numbers = version.split(['.', '-', '_']).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(|number| number.ok());
    if let (Some(major), Some(minor)) = (number(), number())
        && (major, minor, number().unwrap_or(0)) >= OLDEST
    {
        return Ok(version);
    }
    let (major, minor, patch) = OLDEST;
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "memcached {server}: version `{}` is too old; larder needs {major}.{minor}.{patch} or newer",
            version.escape_debug()
        ),
    ))
}

fn refused(server: &str, text: &[u8]) -> Error {
    if text.starts_with(b"Too many open connections") {
        return Error::new(
            ErrorKind::Unavailable,
            format!(
                "memcached {server}: has no connection to spare; raise its limit (-c), or lower `connections` \
                 (processes x connections x 1.2 should be below the limit)"
            ),
        );
    }
    foreign(server, "an error instead of a version")
}

fn foreign(server: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!(
            "memcached {server}: doesn't answer like a memcached that speaks its text protocol ({what})"
        ),
    )
}

#[cfg(test)]
mod tests {
    use larder_core::ErrorKind::{Protocol, Unavailable, Unsupported};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Greets a server that says this and closes.
    async fn greet_one_that_says(text: &str) -> Result<Greeted> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(text.as_bytes()).await.unwrap();
        drop(theirs);
        let (reader, writer) = tokio::io::split(ours);
        let mut io = Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        greet(&mut io, "10.0.0.5:11211").await
    }

    #[tokio::test]
    async fn a_server_with_cas_is_accepted() {
        let text = "VERSION 1.6.18\r\nSTAT maxconns 1024\r\nSTAT odd\r\nSTAT cas_enabled yes\r\n\
                    STAT item_size_max 1048576\r\nEND\r\n";
        let greeted = greet_one_that_says(text).await.unwrap();
        assert_eq!(greeted.version, "1.6.18");
        assert_eq!(
            (greeted.item_size_max, greeted.maxconns),
            (1 << 20, Some(1024))
        );
    }

    #[tokio::test]
    async fn a_limit_beyond_memcacheds_own_is_not_believed() {
        let text = format!(
            "VERSION 1.6.18\r\nSTAT cas_enabled yes\r\nSTAT item_size_max {}\r\nEND\r\n",
            usize::MAX
        );
        let mut greeted = greet_one_that_says(&text).await.unwrap();
        assert_eq!(greeted.item_size_max, 1 << 30);
        for length in [(1 << 30) + 1, usize::MAX] {
            let mut value = BytesMut::from(format!("VA {length} c1\r\n").as_str());
            assert!(greeted.parser.next(&mut value).is_err(), "{length}");
        }
    }

    #[tokio::test]
    async fn a_server_that_cannot_do_is_refused_with_the_reason() {
        for (text, kind, reason) in [
            ("VERSION 1.6.12\r\n", Unsupported, "1.6.13 or newer"),
            ("VERSION odd\r\n", Unsupported, "too old"),
            (
                "VERSION 1.6.18\r\nSTAT cas_enabled no\r\nSTAT item_size_max 9\r\nEND\r\n",
                Unsupported,
                "without -C",
            ),
            (
                "VERSION 1.6.18\r\nSTAT cas_enabled yes\r\nEND\r\n",
                Protocol,
                "item_size_max",
            ),
            ("ERROR Too many open connections\r\n", Unavailable, "-c"),
            ("CLIENT_ERROR unauthenticated\r\n", Unsupported, "-Y"),
            ("-ERR unknown command\r\n", Protocol, "text protocol"),
            ("ERROR\r\n", Protocol, "text protocol"),
            ("HD\r\n", Protocol, "something else"),
            ("", Unavailable, "lost before"),
        ] {
            let error = greet_one_that_says(text).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{text:?}");
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
        }
    }
}
