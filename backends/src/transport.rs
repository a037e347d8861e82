//! Where bytes come from and go to: the seam under the clients.
//!
//! A client knows an [`Address`], dials it through a [`Transport`], and talks through the two halves of an [`Io`].
//! [`Sockets`] is the real transport; larder's fake server is another.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{Error, ErrorKind, Result, Rt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Where a server listens, as it is configured.
///
/// `Display` is the canonical form: `10.0.0.5:11211`, `[::1]:11211`, `/run/memcached.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A name or IP address, and a port.
    Tcp {
        /// The name, in lower case and without a dot at its end, or the IP address in its shortest form, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket's absolute path.
    Unix(PathBuf),
}

impl Address {
    /// memcached's registered port.
    #[cfg(any(feature = "memcached", test))]
    pub(crate) const DEFAULT_PORT: u16 = 11211;

    /// Reads `host`, `host:port`, `1.2.3.4:port`, `[::1]:port`, `/path` or `unix:/path`; the port is 11211 by default.
    #[cfg(any(feature = "memcached", test))]
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_of("memcached", Self::DEFAULT_PORT, text)
    }

    /// The same for a server of this kind, which has a default port of its own.
    pub(crate) fn parse_of(kind: &str, default_port: u16, text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        Self::parse_tcp(text, default_port).ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "`{}` can't be a {kind} server; it takes host, host:port, [ipv6]:port or /path/of/a/socket",
                    text.escape_debug()
                ),
            )
        })
    }

    fn parse_tcp(text: &str, default_port: u16) -> Option<Self> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']')?;
            (
                host.parse::<Ipv6Addr>().ok()?.to_string(),
                rest.strip_prefix(':').or(rest.is_empty().then_some("")),
            )
        } else if let Ok(ip) = text.parse::<Ipv6Addr>() {
            (ip.to_string(), Some(""))
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port).filter(|port| !port.is_empty())),
                None => (text, Some("")),
            };
            let host = host.strip_suffix('.').unwrap_or(host);
            (host.to_ascii_lowercase(), port)
        };
        let port = match port? {
            "" => default_port,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            _ => return None,
        };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if host.is_empty() || port == 0 || !host.bytes().all(legal) {
            return None;
        }
        Some(Self::Tcp { host, port })
    }

    /// The host of an address that could be read, as it is written there.
    #[cfg(feature = "memcached")]
    pub(super) fn host_as_written(text: &str) -> &str {
        if let Some((host, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return host;
        }
        match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => text,
        }
    }

    /// Whether only this host can reach it: a unix socket or loopback.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Makes connections.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Opens one connection to this server; the caller bounds how long it waits.
    async fn dial(&self, address: &Address) -> io::Result<Io>;
}

/// One open connection. Dropping both halves closes it.
pub struct Io {
    /// What the server sends.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What is sent to the server.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

/// TCP and unix sockets.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    rt: Rt,
    patience: Duration,
}

impl Sockets {
    /// Sockets whose dials take at most this long.
    ///
    /// A name is resolved at every dial, and must be one server: its addresses of two families are tried in order, and share
    /// the time; several of one family are refused.
    pub fn new(rt: Rt, patience: Duration) -> Self {
        Self { rt, patience }
    }

    async fn dial_tcp(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let deadline = self.rt.now() + self.patience;
        let addresses = tokio::net::lookup_host((host, port)).await?;
        let addresses = of_one_server(host, addresses)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (position, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(self.rt.now());
            let share = left / u32::try_from(addresses.len() - position).unwrap_or(u32::MAX);
            match self.rt.timeout(share, TcpStream::connect(address)).await {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error,
                None => last = io::Error::new(io::ErrorKind::TimedOut, "the dial took too long"),
            }
        }
        Err(last)
    }
}

/// The addresses that a name has, if they can all be one server's: one of each family.
///
/// With two servers behind one name, a value that was deleted on one would be read from the other.
fn of_one_server(
    name: &str,
    addresses: impl IntoIterator<Item = SocketAddr>,
) -> io::Result<Vec<SocketAddr>> {
    let mut distinct: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if distinct.contains(&address) {
            continue;
        }
        let same_family = |other: &&SocketAddr| other.is_ipv4() == address.is_ipv4();
        if let Some(other) = distinct.iter().find(same_family) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "`{name}` has several addresses, {} and {} among them, but one name is one server; list each server \
                     by a name or address of its own",
                    other.ip(),
                    address.ip()
                ),
            ));
        }
        distinct.push(address);
    }
    Ok(distinct)
}

#[async_trait]
impl Transport for Sockets {
    async fn dial(&self, address: &Address) -> io::Result<Io> {
        match address {
            Address::Tcp { host, port } => {
                let stream = self.dial_tcp(host, *port).await?;
                stream.set_nodelay(true)?;
                // A peer that vanished without a word is noticed even while nothing is asked of it.
                let socket = SockRef::from(&stream);
                let keepalive = TcpKeepalive::new()
                    .with_time(Duration::from_secs(30))
                    .with_interval(Duration::from_secs(10));
                socket.set_tcp_keepalive(&keepalive)?;
                #[cfg(any(target_os = "linux", target_os = "android"))]
                socket.set_tcp_user_timeout(Some(Duration::from_secs(10)))?;
                let (reader, writer) = stream.into_split();
                Ok(Io {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                })
            }
            Address::Unix(path) => {
                let (reader, writer) = UnixStream::connect(path).await?.into_split();
                Ok(Io {
                    reader: Box::new(reader),
                    writer: Box::new(writer),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(Address::parse(text).unwrap().to_string(), expected);
    }

    #[test]
    fn addresses_have_one_canonical_form() {
        check("10.0.0.5", "10.0.0.5:11211");
        check("Cache-1.Example.COM:11212", "cache-1.example.com:11212");
        check("::1", "[::1]:11211");
        check("[::1]", "[::1]:11211");
        check("[fe80::2]:4000", "[fe80::2]:4000");
        check("0:0:0:0:0:0:0:1", "[::1]:11211");
        check("[FE80:0::02]", "[fe80::2]:11211");
        check("cache-1.example.com.", "cache-1.example.com:11211");
        check("cache.:4000", "cache:4000");
        check("localhost", "localhost:11211");
        check("/run/memcached.sock", "/run/memcached.sock");
        check("unix:/run/memcached.sock", "/run/memcached.sock");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            ":11211",
            "host:",
            "host:0",
            "host:70000",
            "host:+1",
            "a b",
            "[::1",
            ".",
            "[x]:1",
            "unix:rel",
            "h\r\n:1",
        ] {
            let error = Address::parse(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{text:?}");
        }
    }

    /// What becomes of a name with these addresses: in the order in which they are tried, or why it is refused.
    #[track_caller]
    fn check_name(addresses: &[&str], expected: std::result::Result<&[&str], &str>) {
        let parse = |address: &&str| SocketAddr::new(address.parse().unwrap(), 11211);
        let tried = of_one_server("cache", addresses.iter().map(parse));
        match (tried, expected) {
            (Ok(tried), Ok(expected)) => {
                assert_eq!(tried, expected.iter().map(parse).collect::<Vec<_>>());
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (tried, _) => panic!("{addresses:?}: {tried:?}"),
        }
    }

    #[test]
    fn a_name_is_one_server() {
        check_name(&["10.0.0.5"], Ok(&["10.0.0.5"]));
        check_name(&["::1", "127.0.0.1"], Ok(&["::1", "127.0.0.1"]));
        check_name(
            &["127.0.0.1", "::1", "127.0.0.1"],
            Ok(&["127.0.0.1", "::1"]),
        );
        check_name(&[], Ok(&[]));
        let several = Err("`cache` has several addresses, 10.0.0.5 and 10.0.0.6 among them");
        check_name(&["10.0.0.5", "10.0.0.6"], several);
        check_name(&["10.0.0.5", "fe80::1", "10.0.0.6"], several);
        check_name(
            &["fe80::1", "10.0.0.5", "fe80::2"],
            Err("fe80::1 and fe80::2"),
        );
    }

    #[test]
    fn loopback_and_unix_sockets_are_local() {
        for (text, local) in [
            ("localhost", true),
            ("127.0.0.2:1", true),
            ("[::1]:1", true),
            ("/s", true),
            ("10.0.0.5", false),
            ("cache", false),
        ] {
            assert_eq!(Address::parse(text).unwrap().is_local(), local, "{text}");
        }
    }
}
