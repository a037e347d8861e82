//! Real PostgreSQL servers for tests and benchmarks.
//!
//! Each has a cluster of its own in a temporary directory, listens on a free port of the loopback interface and on a socket in
//! that directory, and doesn't outlive the process that started it, however that ends. Starting takes a second or two:
//! so one server per test binary, and a [database](PostgresServer::database) per test.
//!
//! PostgreSQL refuses to run as root; started by root it runs as `postgres` or `nobody`. The newest of
//! `/usr/lib/postgresql/*/bin` is taken, or what is in the path; `LARDER_TEST_POSTGRES` in the environment names another
//! directory.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::redis::free_port;

/// How long a server may take to answer before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the server when the process that holds the other end of its input ends, or says so.
const WATCH: &str = r#"
    directory=$1; shift
    "$@" >"$directory/log" 2>&1 &
    server=$!
    read -r word
    kill -QUIT "$server" 2>/dev/null
    wait "$server"
    [ "$word" = keep ] || rm -rf "$directory"
"#;

/// A running PostgreSQL.
///
/// ```no_run
/// use larder_harness::postgres::PostgresServer;
///
/// let mut server = PostgresServer::start(&["-c", "synchronous_commit=off"]);
/// let url = server.database(); // postgres://larder@127.0.0.1:14123/larder_1
/// println!("{}", server.ask(&url, "SELECT version()"));
/// server.restart(); // kill -9 of all its processes, then another at the same port, which recovers
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    watch: Child,
    programs: PathBuf,
    user: Option<User>,
    port: u16,
    arguments: Vec<String>,
    databases: AtomicU32,
    /// Holds the cluster, its socket and its log; removed after the server is gone.
    directory: TempDir,
}

/// Whom the server runs as.
#[derive(Clone, Copy, Debug)]
struct User {
    uid: u32,
    gid: u32,
}

impl PostgresServer {
    /// Starts a server with these further arguments, and waits until it answers.
    ///
    /// What it acknowledges is on the disk, as by default; `&["-c", "fsync=off"]` is faster where a test doesn't crash
    /// the machine, and tests can't.
    ///
    /// # Panics
    ///
    /// If PostgreSQL isn't installed, or doesn't start.
    pub fn start(arguments: &[&str]) -> Self {
        loop {
            match Self::try_start(arguments) {
                Ok(server) => return server,
                // Somebody was faster to take the port that was free a moment ago.
                Err(said) if said.contains("Address already in use") => {}
                Err(said) => panic!("PostgreSQL doesn't start: {said}"),
            }
        }
    }

    fn try_start(arguments: &[&str]) -> Result<Self, String> {
        let (programs, user) = (programs(), user());
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        if let Some(user) = user {
            chown(directory.path(), Some(user.uid), Some(user.gid))
                .expect("root may give a directory away");
        }
        let mut init = command(programs.join("initdb"), user);
        init.args(["--no-sync", "-A", "trust", "-U", "larder", "-E", "UTF8"])
            .args(["--locale=C", "-D"])
            .arg(directory.path().join("data"));
        run(&mut init);
        let port = free_port();
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let mut server = Self {
            watch: spawn(&programs, user, directory.path(), port, &arguments),
            programs,
            user,
            port,
            arguments,
            databases: AtomicU32::new(0),
            directory,
        };
        server.wait_until_it_answers().map(|()| server)
    }

    /// A new database, as a URL.
    ///
    /// # Panics
    ///
    /// If it can't be made.
    pub fn database(&self) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("larder_{number}");
        self.ask(&self.url("postgres"), &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database, over TCP.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://larder@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens: `127.0.0.1:14123`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What `psql` prints for these statements: a line a row, columns divided by `|`.
    ///
    /// # Panics
    ///
    /// If one of them fails.
    pub fn ask(&self, url: &str, statements: &str) -> String {
        let mut psql = command(self.programs.join("psql"), self.user);
        psql.args([
            "-XqAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            "-c",
            statements,
        ]);
        run(&mut psql)
    }

    /// The process that the others belong to.
    ///
    /// # Panics
    ///
    /// If the server doesn't run.
    pub fn pid(&self) -> u32 {
        self.status().expect("the server runs").0
    }

    /// Kills all of its processes (SIGKILL): no connection is told why, and what wasn't on the disk isn't.
    ///
    /// # Panics
    ///
    /// If it doesn't run.
    pub fn kill(&mut self) {
        let pid = self.pid();
        // Its children would end by themselves, but some only after a while, and until then it can't be started again.
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let all: Vec<String> = std::iter::once(pid.to_string())
            .chain(children.split_whitespace().map(str::to_owned))
            .collect();
        // One that has ended in between makes it fail, and is what was wanted.
        let _ = Command::new("kill")
            .arg("-KILL")
            .args(&all)
            .stderr(Stdio::null())
            .status();
        self.end("keep");
        let start = Instant::now();
        while all.iter().any(|pid| is_running(pid)) {
            assert!(start.elapsed() < PATIENCE, "PostgreSQL wasn't killed");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it and starts it again as a standby, which follows nobody: it answers reads, and refuses writes.
    ///
    /// # Panics
    ///
    /// If it doesn't start.
    pub fn restart_as_standby(&mut self) {
        let signal = self.directory.path().join("data/standby.signal");
        std::fs::write(&signal, "").expect("the cluster's directory can be written");
        self.restart();
    }

    /// Kills it if it runs, and starts it again on what it has on the disk.
    ///
    /// # Panics
    ///
    /// If it doesn't start.
    pub fn restart(&mut self) {
        if self
            .status()
            .is_some_and(|(pid, _)| is_running(&pid.to_string()))
        {
            self.kill();
        }
        // What a killed server leaves behind.
        for file in ["data/postmaster.pid", "log"] {
            let _ = std::fs::remove_file(self.directory.path().join(file));
        }
        self.watch = spawn(
            &self.programs,
            self.user,
            self.directory.path(),
            self.port,
            &self.arguments,
        );
        if let Err(said) = self.wait_until_it_answers() {
            panic!("PostgreSQL doesn't start again: {said}");
        }
    }

    /// The server's process, and how far it has come, by the file it keeps for that.
    fn status(&self) -> Option<(u32, String)> {
        let file =
            std::fs::read_to_string(self.directory.path().join("data/postmaster.pid")).ok()?;
        let mut lines = file.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        Some((pid, lines.nth(6).unwrap_or_default().trim().to_owned()))
    }

    /// Asks until it is ready; there is nothing to wait on, since a daemon doesn't say when it listens.
    fn wait_until_it_answers(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            if self
                .status()
                .is_some_and(|(_, state)| state == "ready" || state == "standby")
            {
                return Ok(());
            }
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            let said = log.unwrap_or_default();
            if said.contains("FATAL") && self.status().is_none() {
                return Err(said);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("nothing within {PATIENCE:?}: {said}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&mut self, word: &str) {
        if let Some(mut input) = self.watch.stdin.take() {
            let _ = writeln!(input, "{word}");
        }
        let _ = self.watch.wait();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.end("");
    }
}

fn spawn(
    programs: &Path,
    user: Option<User>,
    directory: &Path,
    port: u16,
    arguments: &[String],
) -> Child {
    let mut watch = command(Path::new("/bin/sh"), user);
    watch
        .args(["-c", WATCH, "sh"])
        .arg(directory)
        .arg(programs.join("postgres"))
        .arg("-D")
        .arg(directory.join("data"))
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-k"])
        .arg(directory)
        .args(["-c", "max_connections=200"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What stops the tests by a signal to their group gives this one time to clear away.
        .process_group(0);
    watch.spawn().expect("`sh` can be run")
}

/// Runs a program to its end; answers what it printed.
fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} can't be run: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

fn command(program: impl AsRef<OsStr>, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    // Where the tests are may be closed to that user.
    command.current_dir("/");
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Where PostgreSQL's programs are.
fn programs() -> PathBuf {
    if let Some(directory) = std::env::var_os("LARDER_TEST_POSTGRES") {
        return directory.into();
    }
    let version = |path: &Path| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    let installed = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = installed
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| version(path));
    let in_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|directory| directory.join("initdb").exists())
    };
    newest
        .map(|path| path.join("bin"))
        .or_else(in_path)
        .expect("PostgreSQL's `initdb` is neither in /usr/lib/postgresql/*/bin nor in the path; install it, for example with `apt-get install postgresql`")
}

/// Whom to be instead of root.
fn user() -> Option<User> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !is_root {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let is_it = fields.next() == Some(name);
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            is_it.then_some(User { uid, gid })
        })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    Some(user.expect("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to be instead"))
}

fn is_running(pid: &str) -> bool {
    // `pid (name) state …`; a zombie doesn't run.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovers_what_it_acknowledged_and_leaves_nothing() {
        let mut server = PostgresServer::start(&[]);
        let (one, two) = (server.database(), server.database());
        server.ask(
            &one,
            "CREATE TABLE kept (id int); INSERT INTO kept VALUES (7)",
        );
        let pid = server.pid();
        server.restart();
        assert_ne!(server.pid(), pid);
        assert_eq!(server.ask(&one, "SELECT id FROM kept"), "7");
        assert_eq!(server.ask(&two, "SELECT to_regclass('kept')"), "");
        let (pid, directory) = (server.pid(), server.directory.path().to_owned());
        drop(server);
        assert!(!is_running(&pid.to_string()));
        assert!(!directory.exists());
    }
}
