//! Real Redis servers for tests and benchmarks.
//!
//! Each listens on a port of its own or on a unix socket in a directory of its own, so that tests run in parallel, and
//! is killed by its pid when it is dropped. It keeps nothing on disk unless its arguments say so; what it keeps is in
//! its directory, where it is found again after a restart. Starting blocks the thread for a few milliseconds.
//!
//! `LARDER_TEST_REDIS` in the environment names another program: `LARDER_TEST_REDIS=valkey-server` runs all of it on Valkey.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use crate::redis_raw::{RawRedis, Reply};
use crate::server::Listen;

/// How long a server may take to answer before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ports that the kernel gives to nobody by itself, so that one is still free when a killed server comes back; and so
/// are those 10,000 above, where the nodes of a cluster talk to each other.
const PORTS: std::ops::Range<u16> = 10_000..22_000;

/// A running Redis.
///
/// ```no_run
/// use larder_harness::redis::RedisServer;
/// use larder_harness::server::Listen;
///
/// let mut server = RedisServer::start(Listen::Tcp, &["--maxmemory", "64mb"]);
/// println!("{}", server.address()); // 127.0.0.1:14123
/// server.stop(); // still accepts connections, answers nothing
/// server.resume();
/// server.restart(); // kill -9, then another at the same address, with what the first had saved
/// ```
#[derive(Debug)]
pub struct RedisServer {
    process: Child,
    is_killed: bool,
    endpoint: Endpoint,
    arguments: Vec<String>,
    /// Holds the socket, the log and what the server saves; removed after the process is gone.
    directory: TempDir,
}

#[derive(Clone, Debug)]
enum Endpoint {
    Port(u16),
    Socket(PathBuf),
}

impl RedisServer {
    /// Starts a server with these further arguments, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed, or doesn't start.
    pub fn start(listen: Listen, arguments: &[&str]) -> Self {
        Self::start_at(listen, |_| {
            arguments.iter().map(|&text| text.to_owned()).collect()
        })
    }

    /// The same where the arguments depend on the port, as those of a server with TLS and of a cluster's node do.
    ///
    /// On a unix socket the port is 0.
    ///
    /// # Panics
    ///
    /// If Redis isn't installed, or doesn't start.
    pub fn start_at(listen: Listen, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        loop {
            let directory = tempfile::tempdir().expect("a temporary directory can be made");
            let (endpoint, arguments) = match listen {
                Listen::Tcp => {
                    let port = free_port();
                    (Endpoint::Port(port), arguments(port))
                }
                Listen::Unix => {
                    let socket = directory.path().join("redis.sock");
                    (Endpoint::Socket(socket), arguments(0))
                }
            };
            let process = endpoint.spawn(directory.path(), &arguments);
            let mut server = Self {
                process,
                is_killed: false,
                endpoint,
                arguments,
                directory,
            };
            match server.wait_until_it_answers() {
                Ok(()) => return server,
                // Somebody was faster to take the port that was free a moment ago.
                Err(said) if said.contains("Address already in use") => {}
                Err(said) => panic!("{said}"),
            }
        }
    }

    /// Where it listens, as a client's configuration has it: `127.0.0.1:14123` or `/tmp/x/redis.sock`.
    pub fn address(&self) -> String {
        match &self.endpoint {
            Endpoint::Port(port) => format!("127.0.0.1:{port}"),
            Endpoint::Socket(path) => path.display().to_string(),
        }
    }

    /// Its port; 0 on a unix socket.
    pub fn port(&self) -> u16 {
        match &self.endpoint {
            Endpoint::Port(port) => *port,
            Endpoint::Socket(_) => 0,
        }
    }

    /// Where it keeps its files: `dump.rdb`, `redis.log`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A raw connection, without larder in it.
    ///
    /// # Panics
    ///
    /// If it doesn't listen.
    pub async fn raw(&self) -> RawRedis {
        RawRedis::connect(&self.address()).await
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.is_killed = true;
    }

    /// Whether it wasn't killed, or was started again since.
    pub fn is_running(&self) -> bool {
        !self.is_killed
    }

    /// Kills it if it runs, and starts another at the same address, in the same directory and with the same arguments.
    ///
    /// It has what the first had saved; without `--save` or `SAVE` that is nothing.
    ///
    /// # Panics
    ///
    /// If Redis doesn't start.
    pub fn restart(&mut self) {
        self.restart_unawaited();
        if let Err(said) = self.wait_until_it_answers() {
            panic!("{said}");
        }
    }

    /// The same without waiting until it answers, since it may take long to load what it had saved.
    ///
    /// # Panics
    ///
    /// If Redis can't be started.
    pub fn restart_unawaited(&mut self) {
        self.kill();
        if let Endpoint::Socket(path) = &self.endpoint {
            // What a killed server leaves behind.
            let _ = std::fs::remove_file(path);
        }
        self.process = self.endpoint.spawn(self.directory.path(), &self.arguments);
        self.is_killed = false;
    }

    /// The arguments of the next restart.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&text| text.to_owned()).collect();
    }

    /// Stops it (SIGSTOP): the kernel still accepts connections for it, and nothing is answered.
    ///
    /// # Panics
    ///
    /// If it doesn't stop.
    pub fn stop(&self) {
        self.signal("-STOP");
        // The signal is only on its way: each thread runs on until the kernel gets hold of it.
        let start = Instant::now();
        while !self.is_stopped() {
            assert!(
                start.elapsed() < PATIENCE,
                "redis-server {} didn't stop",
                self.pid()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether every thread of it is stopped; where there is no `/proc` to tell, nothing says otherwise.
    fn is_stopped(&self) -> bool {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", self.pid())) else {
            return true;
        };
        threads.flatten().all(|thread| {
            // `pid (name) state …`
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(')')
                .next()
                .is_some_and(|rest| rest.starts_with(" T"))
        })
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Panics
    ///
    /// If it is gone.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status()
            .expect("`kill` can be run");
        assert!(
            status.success(),
            "kill {signal} {} failed",
            self.process.id()
        );
    }

    /// Asks until there is an answer; there is nothing to wait on, since a daemon doesn't say when it listens.
    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while !self.endpoint.answers() {
            let ended = self.process.try_wait();
            if let Ok(Some(status)) = ended {
                let log = std::fs::read_to_string(self.directory.path().join("redis.log"));
                let mut said = log.unwrap_or_default();
                if let Some(output) = &mut self.process.stdout {
                    // What it says of its arguments comes before it has a log.
                    let _ = output.read_to_string(&mut said);
                }
                return Err(format!("{} ended at once ({status}): {said}", program()));
            }
            if start.elapsed() > PATIENCE {
                return Err(format!(
                    "{} started and didn't answer within {PATIENCE:?}",
                    program()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Endpoint {
    fn spawn(&self, directory: &Path, arguments: &[String]) -> Child {
        let mut command = Command::new(program());
        command.args(["--daemonize", "no", "--logfile", "redis.log", "--dir"]);
        command.arg(directory);
        command.args(["--save", "", "--appendonly", "no"]);
        match self {
            Self::Port(port) => {
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
            }
            Self::Socket(path) => {
                command.args(["--port", "0", "--unixsocket"]).arg(path);
            }
        }
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command.spawn().unwrap_or_else(|error| {
            panic!(
                "{} can't be started ({error}); install it, for example with `apt-get install redis-server`",
                program()
            )
        })
    }

    /// Whether it answers, with anything but that it is still loading: a server that demands a password, or TLS, also
    /// runs.
    fn answers(&self) -> bool {
        fn ask(mut stream: impl Read + Write) -> bool {
            let mut said = [0; 64];
            let read = stream
                .write_all(b"PING\r\n")
                .and_then(|()| stream.read(&mut said));
            read.is_ok_and(|count| !said[..count].starts_with(b"-LOADING"))
        }
        match self {
            Self::Port(port) => TcpStream::connect(("127.0.0.1", *port))
                .is_ok_and(|stream| stream.set_read_timeout(Some(PATIENCE)).is_ok() && ask(stream)),
            Self::Socket(path) => UnixStream::connect(path)
                .is_ok_and(|stream| stream.set_read_timeout(Some(PATIENCE)).is_ok() && ask(stream)),
        }
    }
}

/// What is started.
fn program() -> String {
    std::env::var("LARDER_TEST_REDIS").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A port on which nobody listens right now.
pub(crate) fn free_port() -> u16 {
    // From another place in every process and call, so that tests in parallel rarely try the same.
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), PORTS.start);
    let count = u64::from(PORTS.end - PORTS.start);
    (0..count)
        .map(|step| PORTS.start + u16::try_from((seed.wrapping_add(step)) % count).expect("below"))
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("some port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn restarts_at_the_same_address_with_what_was_saved() {
        for listen in [Listen::Tcp, Listen::Unix] {
            let mut server = RedisServer::start(listen, &[]);
            let (address, pid) = (server.address(), server.pid());
            let mut raw = server.raw().await;
            raw.set("saved", b"1").await;
            assert_eq!(raw.call(&["SAVE"]).await, Reply::Text("OK".into()));
            raw.set("unsaved", b"2").await;
            server.restart();
            assert_eq!(server.address(), address);
            assert_ne!(server.pid(), pid);
            let mut raw = server.raw().await;
            assert_eq!(raw.get("saved").await.as_deref(), Some(&b"1"[..]));
            assert_eq!(raw.get("unsaved").await, None);
        }
    }

    #[tokio::test]
    async fn answers_again_after_a_stop() {
        let server = RedisServer::start(Listen::Unix, &[]);
        server.stop();
        server.resume();
        let mut raw = server.raw().await;
        assert_eq!(raw.call(&["PING"]).await, Reply::Text("PONG".into()));
    }
}
