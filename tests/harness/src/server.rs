//! Real memcached servers for tests and benchmarks.
//!
//! Each listens on a port of its own or on a unix socket in a directory of its own, so that tests run in parallel, and
//! is killed by its pid when it is dropped. Starting blocks the thread for a few milliseconds.

use std::ffi::OsString;
use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A free port on loopback.
    Tcp,
    /// A socket in a temporary directory.
    Unix,
}

/// A running memcached.
///
/// ```no_run
/// use larder_harness::server::{Listen, MemcachedServer};
///
/// let mut server = MemcachedServer::start(Listen::Tcp, &["-m", "64"]);
/// println!("{}", server.address()); // 127.0.0.1:41233
/// server.stop(); // still accepts connections, answers nothing
/// server.resume();
/// server.restart(); // kill -9, then a new and empty one at the same address
/// ```
#[derive(Debug)]
pub struct MemcachedServer {
    process: Child,
    endpoint: Endpoint,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Holds the unix socket; removed after the process is gone.
    _directory: TempDir,
}

#[derive(Clone, Debug)]
enum Endpoint {
    Port(u16),
    Socket(PathBuf),
}

impl MemcachedServer {
    /// Starts a server with these further arguments, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If memcached isn't installed, or doesn't start.
    pub fn start(listen: Listen, arguments: &[&str]) -> Self {
        Self::start_in(&[], listen, arguments)
    }

    /// The same with these variables in its environment.
    ///
    /// # Panics
    ///
    /// As [`MemcachedServer::start`].
    pub fn start_in(environment: &[(&str, &str)], listen: Listen, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let environment: Vec<_> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (process, endpoint) = match listen {
            Listen::Tcp => {
                // The server chooses the port and writes it down, so that no two tests ever want the same.
                let file = directory.path().join("port");
                let mut process = spawn(
                    &["-p", "-1", "-l", "127.0.0.1"],
                    &arguments,
                    &environment,
                    &file,
                );
                let port = wait(&mut process, || {
                    let text = std::fs::read_to_string(&file).ok()?;
                    let line = text
                        .lines()
                        .find_map(|line| line.strip_prefix("TCP INET: "))?;
                    line.trim().parse().ok()
                });
                (process, Endpoint::Port(port))
            }
            Listen::Unix => {
                let endpoint = Endpoint::Socket(directory.path().join("memcached.sock"));
                (endpoint.spawn(&arguments, &environment), endpoint)
            }
        };
        let mut server = Self {
            process,
            endpoint,
            arguments,
            environment,
            _directory: directory,
        };
        server.wait_until_it_answers();
        server
    }

    /// Where it listens, as a client's configuration has it: `127.0.0.1:41233` or `/tmp/x/memcached.sock`.
    pub fn address(&self) -> String {
        match &self.endpoint {
            Endpoint::Port(port) => format!("127.0.0.1:{port}"),
            Endpoint::Socket(path) => path.display().to_string(),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Kills it if it runs, and starts an empty one at the same address.
    ///
    /// # Panics
    ///
    /// If memcached doesn't start.
    pub fn restart(&mut self) {
        self.kill();
        if let Endpoint::Socket(path) = &self.endpoint {
            // What a killed server leaves behind.
            let _ = std::fs::remove_file(path);
        }
        self.process = self.endpoint.spawn(&self.arguments, &self.environment);
        self.wait_until_it_answers();
    }

    /// Stops it (SIGSTOP): the kernel still accepts connections for it, and nothing is answered.
    pub fn stop(&self) {
        self.signal("-STOP");
        // The signal is only on its way: each thread runs on until the kernel gets hold of it.
        let start = Instant::now();
        while !self.is_stopped() {
            assert!(
                start.elapsed() < PATIENCE,
                "memcached {} didn't stop",
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

    fn wait_until_it_answers(&mut self) {
        let endpoint = self.endpoint.clone();
        wait(&mut self.process, || endpoint.answers().then_some(()));
    }
}

impl Drop for MemcachedServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Endpoint {
    fn spawn(&self, arguments: &[String], environment: &[(String, String)]) -> Child {
        let nowhere = PathBuf::new();
        match self {
            Self::Port(port) => {
                let listen = ["-p", &port.to_string(), "-l", "127.0.0.1"];
                spawn(&listen, arguments, environment, &nowhere)
            }
            Self::Socket(path) => {
                let path = path
                    .to_str()
                    .expect("temporary directories have plain names");
                spawn(&["-s", path], arguments, environment, &nowhere)
            }
        }
    }

    /// Whether it answers, with anything: a server that demands a password or is full also runs, and so does one that
    /// hangs up because it speaks TLS, or the binary protocol, whose shortest message is as long as this.
    fn answers(&self) -> bool {
        fn ask(mut stream: impl std::io::Read + std::io::Write) -> bool {
            if stream.write_all(b"version                \r\n").is_err() {
                return true;
            }
            let read = stream.read(&mut [0; 64]);
            read.map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |_| true)
        }
        match self {
            Self::Port(port) => TcpStream::connect(("127.0.0.1", *port))
                .is_ok_and(|stream| stream.set_read_timeout(Some(PATIENCE)).is_ok() && ask(stream)),
            Self::Socket(path) => UnixStream::connect(path)
                .is_ok_and(|stream| stream.set_read_timeout(Some(PATIENCE)).is_ok() && ask(stream)),
        }
    }
}

fn spawn(
    listen: &[&str],
    arguments: &[String],
    environment: &[(String, String)],
    port_file: &std::path::Path,
) -> Child {
    let mut command = Command::new("memcached");
    command.args(listen).args(["-U", "0"]).args(arguments);
    if is_root() {
        command.args(["-u", "root"]);
    }
    command
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("MEMCACHED_PORT_FILENAME", OsString::from(port_file))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if port_file.as_os_str().is_empty() {
        command.env_remove("MEMCACHED_PORT_FILENAME");
    }
    command.spawn().unwrap_or_else(|error| {
        panic!("memcached can't be started ({error}); install it, for example with `apt-get install memcached`")
    })
}

/// Asks until there is an answer; there is nothing to wait on, since a daemon doesn't say when it listens.
fn wait<T>(process: &mut Child, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        if let Ok(Some(status)) = process.try_wait() {
            let mut said = String::new();
            if let Some(stderr) = &mut process.stderr {
                let _ = stderr.read_to_string(&mut said);
            }
            panic!("memcached ended at once ({status}): {}", said.trim());
        }
        assert!(
            start.elapsed() < PATIENCE,
            "memcached started and didn't answer within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    #[track_caller]
    fn ask(server: &MemcachedServer, line: &str) -> String {
        fn exchange(mut stream: impl std::io::Read + std::io::Write, line: &str) -> String {
            write!(stream, "{line}\r\n").unwrap();
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            answer.trim_end().to_owned()
        }
        match &server.endpoint {
            Endpoint::Port(port) => {
                exchange(TcpStream::connect(("127.0.0.1", *port)).unwrap(), line)
            }
            Endpoint::Socket(path) => exchange(UnixStream::connect(path).unwrap(), line),
        }
    }

    #[test]
    fn restarts_empty_at_the_same_address() {
        for listen in [Listen::Tcp, Listen::Unix] {
            let mut server = MemcachedServer::start(listen, &["-m", "16"]);
            let (address, pid) = (server.address(), server.pid());
            assert_eq!(ask(&server, "ms key 1\r\nx"), "HD");
            server.restart();
            assert_eq!(server.address(), address);
            assert_ne!(server.pid(), pid);
            assert_eq!(ask(&server, "mg key"), "EN");
        }
    }

    #[test]
    fn answers_again_after_a_stop() {
        let server = MemcachedServer::start(Listen::Unix, &[]);
        server.stop();
        server.resume();
        assert_eq!(ask(&server, "mn"), "MN");
    }
}
