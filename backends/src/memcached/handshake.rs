//! What happens on a new connection before it is of use: TLS, a password, and the first exchange, in which the server
//! says what it is, and whether its leases can be trusted.

use std::io;

use bytes::BytesMut;
use larder_core::config::Secret;
use larder_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::config::MemcachedConfig;
use super::protocol::{Reply, Violation};
use super::records::Records;
use super::wire::{Parser, Wire};
use crate::tls::{self, Tls};
use crate::transport::{Address, Io};

/// The oldest server whose `md C` compares.
const OLDEST: (u32, u32, u32) = (1, 6, 13);

/// The oldest server that the binary protocol was tried with.
const OLDEST_BINARY: (u32, u32, u32) = (1, 5, 22);

/// No memcached takes a higher limit than this (`-I`), whatever one says.
const LARGEST_ITEM: usize = 1 << 30;

/// What it takes to be let in by the servers of a pool.
#[derive(Debug)]
pub(super) struct Access {
    wire: Wire,
    tls: Option<Tls>,
    login: Option<Login>,
}

/// Who we are, to a server that asks.
#[derive(Debug)]
struct Login {
    user: String,
    password: Secret,
}

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

impl Access {
    /// Reads what the configuration names; fails if that can't be used.
    pub(super) fn new<'a>(
        config: &MemcachedConfig,
        servers: impl IntoIterator<Item = &'a Address> + Clone,
    ) -> Result<Self> {
        let login = config.user.clone().zip(config.password.clone());
        if let (Some(_), false) = (&login, config.tls)
            && let Some(server) = servers
                .clone()
                .into_iter()
                .find(|server| !server.is_local())
        {
            tracing::warn!(%server, "the password is sent through the network in the clear; turn on `tls`");
        }
        Ok(Self {
            wire: Wire::of(config),
            tls: Tls::new(config.tls_config(), servers)?,
            login: login.map(|(user, password)| Login { user, password }),
        })
    }

    /// Encrypts a connection that was just opened, if that is demanded; one to a unix socket stays as it is.
    pub(super) async fn secure(&self, io: Io, address: &Address) -> Result<Io> {
        match (&self.tls, address) {
            (Some(tls), Address::Tcp { .. }) => {
                let Io { reader, writer } = tls.secure(io, address).await?;
                let writer = Box::new(Records::new(writer));
                Ok(Io { reader, writer })
            }
            _ => Ok(io),
        }
    }

    /// Asks for version and settings, says who we are if that is demanded, and refuses a server that can't keep the
    /// protocol's promises.
    ///
    /// A password by the text protocol goes to servers that demand one, and to no others: they would store it. By SASL it
    /// comes first, since there a server that is asked anything else hangs up.
    pub(super) async fn greet(&self, io: &mut Io, server: &str) -> Result<Greeted> {
        let mut parser = Parser::new(self.wire, 0);
        let mut input = BytesMut::with_capacity(8 << 10);
        let mut version = None;
        let mut settings = Settings::default();
        let mut demand = Demand::None;
        let mut heard = false;
        match (self.wire, &self.login) {
            (Wire::Binary, Some(login)) => {
                send(io, |out| {
                    self.wire.login(out, &login.user, login.password.expose())
                })
                .await;
                demand = Demand::Asked;
            }
            _ => send(io, |out| self.wire.hello(out)).await,
        }
        loop {
            while let Some(reply) = parser
                .next(&mut input)
                .map_err(|violation| self.misread(server, violation, &input))?
            {
                heard = true;
                match reply {
                    Reply::Version(text) => {
                        version = Some(supported(server, &text, self.wire)?);
                    }
                    Reply::Stat(text) => settings.note(&text),
                    Reply::End => {
                        let version = version.ok_or_else(|| foreign(server, "no version"))?;
                        if self.login.is_some() && demand == Demand::None {
                            tracing::warn!(%server, "it demands no password, though one is set for it; start it with -Y or -S");
                        }
                        return settings.accept(server, version, parser, input);
                    }
                    // Both commands are answered so, or only one of them: it depends on how they arrive.
                    Reply::ClientError(text) if text.starts_with(b"unauthenticated") => {
                        let login = self.login.as_ref().ok_or_else(|| {
                            let message = format!(
                                "memcached {server}: demands a password (-Y); set `user` and `password_env`"
                            );
                            Error::new(ErrorKind::Config, message)
                        })?;
                        if demand == Demand::None {
                            send(io, |out| {
                                self.wire.login(out, &login.user, login.password.expose());
                            })
                            .await;
                            demand = Demand::Asked;
                        }
                    }
                    Reply::ClientError(text)
                        if text.starts_with(b"authentication failure")
                            && demand == Demand::Asked =>
                    {
                        return Err(self.denied(server));
                    }
                    Reply::Stored if demand == Demand::Asked => {
                        send(io, |out| self.wire.hello(out)).await;
                        demand = Demand::Met;
                    }
                    // It runs without SASL, and takes the binary protocol from everybody.
                    Reply::Error(text)
                        if text.starts_with(b"unknown command") && demand == Demand::Asked =>
                    {
                        send(io, |out| self.wire.hello(out)).await;
                        demand = Demand::None;
                    }
                    Reply::Error(text) => return Err(self.refused(server, &text)),
                    _ => return Err(foreign(server, "an answer to something else")),
                }
            }
            match io.reader.read_buf(&mut input).await {
                Ok(0) => return Err(self.lost(server, None, heard, &input)),
                Ok(_) => {}
                Err(error) => return Err(self.lost(server, Some(error), heard, &input)),
            }
        }
    }

    /// The error of a server that doesn't take the password.
    fn denied(&self, server: &str) -> Error {
        let remedy = match self.wire {
            Wire::Text => {
                "compare them with its file (-Y), which it reads at its start and at SIGHUP"
            }
            Wire::Binary => {
                "compare them with those that its SASL knows (`saslpasswd2 -a memcached -c USER` where it asks the sasldb), \
                 and let its memcached.conf offer the mechanism PLAIN (`mech_list: plain`)"
            }
        };
        Error::new(
            ErrorKind::Config,
            format!(
                "memcached {server}: refuses `user` or the password in `password_env`; {remedy}"
            ),
        )
    }

    /// The error of a server that says `ERROR`.
    fn refused(&self, server: &str, text: &[u8]) -> Error {
        if text.starts_with(b"Too many open connections") {
            return Error::new(
                ErrorKind::Unavailable,
                format!(
                    "memcached {server}: has no connection to spare; raise its limit (-c), or lower `connections` \
                     (processes x connections x 1.2 should be below the limit)"
                ),
            );
        }
        match self.wire {
            Wire::Text => foreign(server, "an error instead of a version"),
            Wire::Binary => speaks_text(server),
        }
    }

    /// The error of bytes that are no reply.
    fn misread(&self, server: &str, violation: Violation, input: &[u8]) -> Error {
        match self.wire {
            _ if input.starts_with(TLS_ALERT) => speaks_tls(server),
            Wire::Binary if input.starts_with(b"CLIENT_ERROR") => speaks_text(server),
            _ => foreign(server, violation.0),
        }
    }

    /// Why there is no first exchange.
    fn lost(&self, server: &str, error: Option<io::Error>, heard: bool, input: &[u8]) -> Error {
        if let Some(reason) = error.as_ref().and_then(tls::refused_us) {
            return Error::new(ErrorKind::Config, format!("memcached {server}: {reason}"));
        }
        if input.starts_with(TLS_ALERT) {
            return speaks_tls(server);
        }
        let how = match &error {
            Some(error) => error.to_string(),
            None => "the server closed it".to_owned(),
        };
        let mut message =
            format!("memcached {server}: the new connection was lost before it was of use ({how})");
        // One that hangs up without a word may have heard words it doesn't know.
        if !heard && input.is_empty() {
            message += match &self.tls {
                None => "; if it speaks TLS (-Z), set `tls = true`",
                Some(_) => {
                    "; if it demands a certificate of its clients (ssl_verify_mode), name one, and its key, by \
                     `cert_file` and `key_file`"
                }
            };
            message += match self.wire {
                Wire::Text => "; if it runs with SASL (-S), set `sasl = true`",
                Wire::Binary => "; if it runs without SASL (-S), take `sasl` away",
            };
        }
        Error::new(ErrorKind::Unavailable, message)
    }
}

fn speaks_text(server: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "memcached {server}: speaks the text protocol alone (-Y, or -B ascii), which has no SASL; take `sasl` away"
        ),
    )
}

fn speaks_tls(server: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "memcached {server}: speaks TLS on this port; set `tls = true`, or name another port"
        ),
    )
}

/// How a record begins by which TLS says that it can't read what it was sent.
const TLS_ALERT: &[u8] = &[21, 3];

/// Whether the server has asked who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Demand {
    None,
    /// It was told.
    Asked,
    /// It is content.
    Met,
}

/// Sends what this writes. What fails here is found by reading: a server without a connection to spare says so and closes,
/// whatever it is sent.
async fn send(io: &mut Io, write: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Vec::new();
    write(&mut bytes);
    if io.writer.write_all(&bytes).await.is_ok() {
        // Fails as the next read does.
        let _ = io.writer.flush().await;
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

fn supported(server: &str, version: &[u8], wire: Wire) -> Result<String> {
    let oldest = match wire {
        Wire::Text => OLDEST,
        Wire::Binary => OLDEST_BINARY,
    };
    let version = String::from_utf8_lossy(version).into_owned();
    let mut numbers = version.split(['.', '-', '_']).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(|number| number.ok());
    if let (Some(major), Some(minor)) = (number(), number())
        && (major, minor, number().unwrap_or(0)) >= oldest
    {
        return Ok(version);
    }
    let (major, minor, patch) = oldest;
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "memcached {server}: version `{}` is too old; larder needs {major}.{minor}.{patch} or newer",
            version.escape_debug()
        ),
    ))
}

fn foreign(server: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("memcached {server}: doesn't answer like a memcached ({what})"),
    )
}

#[cfg(test)]
mod tests {
    use larder_core::ErrorKind::{Config, Protocol, Unavailable, Unsupported};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Greets a server that says this and closes.
    async fn greet_one_that_says(text: &str) -> Result<Greeted> {
        greet(text, &unknown()).await
    }

    fn unknown() -> Access {
        Access {
            wire: Wire::Text,
            tls: None,
            login: None,
        }
    }

    async fn greet(text: &str, access: &Access) -> Result<Greeted> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(text.as_bytes()).await.unwrap();
        drop(theirs);
        let (reader, writer) = tokio::io::split(ours);
        let mut io = Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        access.greet(&mut io, "10.0.0.5:11211").await
    }

    fn known() -> Access {
        Access {
            login: Some(Login {
                user: "anna".to_owned(),
                password: Secret::new("hunter2"),
            }),
            ..unknown()
        }
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
            ("CLIENT_ERROR unauthenticated\r\n", Config, "`password_env`"),
            (
                "CLIENT_ERROR authentication failure\r\n",
                Protocol,
                "something else",
            ),
            ("STORED\r\n", Protocol, "something else"),
            ("\u{15}\u{3}\u{3}\u{0}\u{2}", Config, "`tls = true`"),
            ("-ERR unknown command\r\n", Protocol, "like a memcached"),
            ("ERROR\r\n", Protocol, "like a memcached"),
            ("HD\r\n", Protocol, "something else"),
            ("", Unavailable, "lost before"),
        ] {
            let error = greet_one_that_says(text).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{text:?}");
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
        }
    }

    #[tokio::test]
    async fn a_password_is_given_once_however_often_it_is_demanded() {
        const FIT: &str =
            "VERSION 1.6.18\r\nSTAT cas_enabled yes\r\nSTAT item_size_max 1048576\r\nEND\r\n";
        const DEMAND: &str = "CLIENT_ERROR unauthenticated\r\n";
        for demands in [DEMAND, &DEMAND.repeat(2)] {
            let text = format!("{demands}STORED\r\n{FIT}");
            greet(&text, &known()).await.unwrap();
        }
        let text = format!("{DEMAND}CLIENT_ERROR authentication failure\r\n");
        let error = greet(&text, &known()).await.unwrap_err();
        assert_eq!(error.kind(), Config);
        assert!(error.to_string().contains("refuses `user`"), "{error}");
        assert!(!format!("{error} {:?}", known()).contains("hunter2"));
    }

    #[tokio::test]
    async fn a_server_that_demands_no_password_is_not_given_one() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs
            .write_all(
                b"VERSION 1.6.18\r\nSTAT cas_enabled yes\r\nSTAT item_size_max 1024\r\nEND\r\n",
            )
            .await
            .unwrap();
        let (reader, writer) = tokio::io::split(ours);
        let mut io = Io {
            reader: Box::new(reader),
            writer: Box::new(writer),
        };
        known().greet(&mut io, "10.0.0.5:11211").await.unwrap();
        drop(io);
        let mut sent = Vec::new();
        theirs.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, super::super::protocol::HELLO);
    }
}
