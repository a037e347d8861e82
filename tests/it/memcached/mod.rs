//! The memcached client against real servers, beyond what every backend passes.

mod bulk;
mod faults;
mod peers;
mod tls;
mod wire;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{GetOptions, Keys, Lease, Lookup, Result, Rt};
use larder_harness::server::{Listen, MemcachedServer};

const LEASE: Duration = Duration::from_secs(10);

/// A server on loopback and a client of it.
fn start(arguments: &[&str]) -> (MemcachedServer, Memcached) {
    let server = MemcachedServer::start(Listen::Tcp, arguments);
    let client = client(&server);
    (server, client)
}

/// A patient client: the machine may be busy with other tests.
fn config(server: &MemcachedServer) -> MemcachedConfig {
    let mut config = MemcachedConfig::new([server.address()]);
    config.connect_timeout = Duration::from_secs(5);
    config.timeout = Duration::from_secs(5);
    config.flush_timeout = Duration::from_secs(5);
    config.stall = Duration::from_secs(5);
    config
}

fn client(server: &MemcachedServer) -> Memcached {
    Memcached::new(config(server), Rt::new()).unwrap()
}

/// Keys `name:0`, `name:1`, …
fn numbered(name: &str, count: usize) -> Keys {
    let mut keys = Keys::with_capacity(count);
    for number in 0..count {
        keys.push_raw(&format!("{name}:{number}")).unwrap();
    }
    keys
}

fn asking() -> GetOptions {
    GetOptions::lease(LEASE)
}

#[track_caller]
fn won(lookup: Result<Lookup>) -> Lease {
    match lookup {
        Ok(Lookup::Miss { lease: Some(lease) }) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

#[track_caller]
fn hit(lookup: Result<Lookup>) -> Vec<u8> {
    match lookup {
        Ok(Lookup::Hit { value, .. }) => value.to_vec(),
        other => panic!("expected a hit, got {other:?}"),
    }
}

/// A socket of our own to the server, so that larder isn't asked about larder.
struct Raw(BufReader<TcpStream>);

impl Raw {
    fn new(server: &MemcachedServer) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a line, or several, and returns one line of the answer.
    fn ask(&mut self, text: &str) -> String {
        write!(self.0.get_mut(), "{text}\r\n").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// One of the server's statistics.
    fn stat(&mut self, name: &str) -> u64 {
        let mut found = None;
        let mut line = self.ask("stats");
        while line != "END" {
            if let Some(value) = line.strip_prefix(&format!("STAT {name} ")) {
                found = value.parse().ok();
            }
            line = self.line();
        }
        found.unwrap_or_else(|| panic!("no statistic {name}"))
    }
}
