//! A store in a SQLite file, which the processes of one host share without a server: a backend of one's own, with its own
//! scheme, configuration and tests. `docs/backend-guide.md` tells it from the first line on.
//!
//! `cargo run --example custom_backend`, twice: the second run finds what the first has stored.
//! `cargo test --example custom_backend` runs the suite that every backend passes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use larder::{Config, Registry};
use larder_core::{
    Backend, BackendExt as _, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions,
    Key, Keys, Lease, Lookup, Lost, Pool, Reach, Result, Rt, ServerAnswer, ServerCheck,
    ServerStats, Set, Token, Trips, WriteOptions, config,
};
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

/// What an operator can set: `sqlite:///run/app/cache.db?capacity=1GiB`, or the same in TOML or the environment.
#[derive(Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SqliteConfig {
    /// The file, in a directory that exists.
    path: PathBuf,
    /// How large the file may grow, 256 MiB by default; the oldest entries make room.
    #[serde(with = "config::bytes")]
    capacity: u64,
    /// The largest value, 1 MiB by default.
    #[serde(with = "config::bytes")]
    max_item: usize,
    /// How long a call may take, 250 ms by default, waiting for writes of other processes included.
    #[serde(with = "config::duration")]
    timeout: Duration,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            capacity: 256 << 20,
            max_item: 1 << 20,
            timeout: Duration::from_millis(250),
        }
    }
}

impl SqliteConfig {
    /// Refuses what can never work, and gives the file the name that it has in every process.
    fn checked(mut self) -> Result<Self> {
        let refused = |reason: String| Error::new(ErrorKind::Config, format!("sqlite: {reason}"));
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            let reason = "`path` must name a file, as in sqlite:///run/app/cache.db";
            return Err(refused(reason.to_owned()));
        };
        let is_here = directory.as_os_str().is_empty();
        let directory = if is_here { Path::new(".") } else { directory };
        let found = directory.canonicalize().map_err(|error| {
            let directory = directory.display();
            refused(format!("directory {directory}: {error}; make it first"))
        })?;
        if self.capacity / 4 < self.max_item as u64 {
            return Err(refused(format!(
                "a capacity of {} bytes holds less than four values of max_item, {}; raise it, or lower that",
                self.capacity, self.max_item
            )));
        }
        self.path = found.join(name);
        Ok(self)
    }
}

/// One handle onto the file.
struct Sqlite(Arc<Shared>);

/// What callers share with the task that works for them.
struct Shared {
    config: Arc<SqliteConfig>,
    rt: Rt,
    /// Where calls wait in the order in which they came.
    line: Mutex<mpsc::Sender<Call>>,
    closed: AtomicBool,
    stats: Mutex<ServerStats>,
}

type Call = Box<dyn FnOnce(&mut Database) + Send>;

/// So many calls may wait. More of them means a disk that hangs, and memory is no place to wait for that.
const LINE: usize = 10_000;

impl Sqlite {
    /// A handle, which opens the file when it is needed.
    fn new(config: SqliteConfig, rt: Rt) -> Result<Self> {
        let mut stats = ServerStats::default();
        stats.state = "idle";
        Ok(Self(Arc::new(Shared {
            config: Arc::new(config.checked()?),
            rt,
            line: Mutex::new(mpsc::channel(1).0), // to nobody: the first call brings a task
            closed: AtomicBool::new(false),
            stats: Mutex::new(stats),
        })))
    }

    /// Has this done with the file, behind all earlier calls, and waits for it.
    ///
    /// It is handed over when this is first polled. A caller who leaves, or whose time is over, ends only the waiting.
    async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let Shared {
            config, rt, closed, ..
        } = &*self.0;
        if closed.load(Ordering::Relaxed) {
            let what = "this handle was closed; make a new one to go on";
            return Err(config.error(ErrorKind::Unavailable, what));
        }
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.0);
        self.0.hand_over(Box::new(move |database| {
            let done = database.run(work);
            shared.note(done.as_ref().err());
            let _ = reply.send(done); // to nobody, if the caller has left
        }))?;
        match rt.timeout(config.timeout, answer).await {
            Some(Ok(done)) => done,
            Some(Err(_)) => Err(config.error(ErrorKind::Unavailable, "the call was given up")),
            None => {
                let what = format!("no answer within {:?}", config.timeout);
                Err(config.error(ErrorKind::Timeout, what))
            }
        }
    }

    /// The same for a batch of keys: one trip, and an answer for each, which is the error if all of it failed.
    async fn batch<T: Send + 'static>(
        &self,
        keys: &Keys,
        trips: &Trips,
        work: impl FnOnce(&mut Session, &Keys) -> rusqlite::Result<Vec<Result<T>>> + Send + 'static,
    ) -> Vec<Result<T>> {
        if keys.is_empty() {
            return Vec::new(); // no I/O, so no trip
        }
        self.0.count(keys, trips);
        let owned = keys.clone();
        let answers = self.ask(move |session| work(session, &owned)).await;
        answers.unwrap_or_else(|error| keys.iter().map(|_| Err(error.clone())).collect())
    }
}

impl Shared {
    /// Puts a call behind those that wait.
    fn hand_over(&self, call: Call) -> Result<()> {
        let mut line = lock(&self.line);
        let call = match line.try_send(call) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(call)) => call,
            Err(TrySendError::Full(_)) => {
                let what = format!("{LINE} calls wait already; is the disk well?");
                return Err(self.config.error(ErrorKind::Unavailable, what));
            }
        };
        // There was no task yet, or it ended with its runtime.
        let (sender, calls) = mpsc::channel(LINE);
        let _ = sender.try_send(call);
        *line = sender;
        let database = Database {
            config: Arc::clone(&self.config),
            rt: self.rt,
            session: None,
        };
        self.rt.spawn_if_running(do_calls(calls, database));
        Ok(())
    }

    fn count(&self, keys: &Keys, trips: &Trips) {
        trips.add(1);
        let mut stats = lock(&self.stats);
        stats.trips += 1;
        stats.keys += keys.len() as u64;
    }

    fn note(&self, error: Option<&Error>) {
        let mut stats = lock(&self.stats);
        stats.state = if error.is_some() { "down" } else { "up" };
        if let Some(error) = error {
            stats.last_error = Some(error.to_string());
        }
    }
}

/// Has the file for as long as the handle is there, and does its calls one after the other.
async fn do_calls(mut calls: mpsc::Receiver<Call>, mut database: Database) {
    let rt = database.rt;
    let mut waiting: Vec<Call> = Vec::new();
    while calls.recv_many(&mut waiting, 64).await > 0 {
        let now = std::mem::take(&mut waiting);
        let done = rt.spawn_blocking(move || {
            now.into_iter().for_each(|call| call(&mut database));
            database
        });
        database = match done.await {
            Ok(database) => database,
            Err(_) => return, // a call panicked, and the next one brings another task
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file, opened when it is needed.
struct Database {
    config: Arc<SqliteConfig>,
    rt: Rt,
    session: Option<Session>,
}

/// The file while it is open: what a connection is to a server.
struct Session {
    connection: Connection,
    config: Arc<SqliteConfig>,
    rt: Rt,
    /// Which file it is, of all that were ever at this path.
    file: FileId,
    /// Which life of the file this is: the origin of its tokens.
    incarnation: u64,
}

impl Database {
    /// Does this with the file, which must be the one at its path before and after.
    ///
    /// If somebody has removed it, other processes have a new one: what is read here may be deleted there, and what is
    /// deleted here may still be there.
    fn run<T>(&mut self, work: impl FnOnce(&mut Session) -> rusqlite::Result<T>) -> Result<T> {
        let done = self.session().and_then(work);
        let is_in_place = self.session.as_ref().is_some_and(Session::is_in_place);
        let failed = match done {
            Ok(done) if is_in_place => return Ok(done),
            Ok(_) => self
                .config
                .error(ErrorKind::Unavailable, "the file was replaced meanwhile"),
            Err(error) => self.config.error_of(error),
        };
        if failed.kind() != ErrorKind::Timeout {
            self.session = None; // whatever it is, the next call begins anew
        }
        Err(failed)
    }

    fn session(&mut self) -> rusqlite::Result<&mut Session> {
        let session = match self.session.take().filter(Session::is_in_place) {
            Some(session) => session,
            None => Session::open(&self.config, self.rt)?,
        };
        Ok(self.session.insert(session))
    }
}

impl Session {
    fn open(config: &Arc<SqliteConfig>, rt: Rt) -> rusqlite::Result<Self> {
        loop {
            let before = FileId::at(&config.path);
            let mut connection = Connection::open(&config.path)?;
            connection.busy_timeout(config.timeout)?;
            let incarnation = set_up(&mut connection)?;
            // Unless it was there before and still is, this may be the name of another than we have opened.
            let after = FileId::at(&config.path);
            if let Some(file) = after.filter(|_| before == after) {
                return Ok(Self {
                    connection,
                    config: Arc::clone(config),
                    rt,
                    file,
                    incarnation,
                });
            }
        }
    }

    fn is_in_place(&self) -> bool {
        FileId::at(&self.config.path) == Some(self.file)
    }
}

/// Makes the tables if there are none, and answers which life of the file this is.
///
/// What a killed process has written the system still has. A machine that loses power may lose the last writes, deletes
/// among them, so what was stored before it started doesn't count.
fn set_up(connection: &mut Connection) -> rusqlite::Result<u64> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    // Where it can't be told when the machine started, every write waits for the disk instead.
    let synchronous = if boot.is_some() { "normal" } else { "full" };
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    let this_life = |at: &Connection| {
        let life = "SELECT incarnation FROM life WHERE boot IS ?1";
        at.query_row(life, [&boot], |row| row.get(0)).optional()
    };
    if let Ok(Some(incarnation)) = this_life(connection) {
        return Ok(i64::cast_unsigned(incarnation)); // without waiting for who writes
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS life (incarnation INTEGER NOT NULL, boot TEXT);
         CREATE TABLE IF NOT EXISTS entries (
             number INTEGER PRIMARY KEY AUTOINCREMENT,
             key TEXT NOT NULL UNIQUE,
             value BLOB NOT NULL,
             since INTEGER NOT NULL,
             expires INTEGER NOT NULL
         );
         CREATE INDEX IF NOT EXISTS entries_by_end ON entries (expires);",
    )?;
    let incarnation = match this_life(&transaction)? {
        Some(incarnation) => incarnation,
        None => {
            transaction.execute_batch("DELETE FROM life; DELETE FROM entries;")?;
            let new_life = "INSERT INTO life VALUES (random(), ?1) RETURNING incarnation";
            transaction.query_row(new_life, [&boot], |row| row.get(0))?
        }
    };
    transaction.commit()?;
    Ok(i64::cast_unsigned(incarnation))
}

/// Tells files apart whatever they are called, as long as they exist, which includes being open.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl FileId {
    /// The file at this path, if there is one.
    #[cfg(unix)]
    fn at(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let found = path.metadata().ok()?;
        Some(Self(found.dev(), found.ino()))
    }

    /// Elsewhere a file that is open can't be removed.
    #[cfg(not(unix))]
    fn at(path: &Path) -> Option<Self> {
        path.exists().then_some(Self(0, 0))
    }
}

impl SqliteConfig {
    fn error(&self, kind: ErrorKind, what: impl fmt::Display) -> Error {
        Error::new(kind, format!("sqlite ({}): {what}", self.path.display()))
    }

    fn error_of(&self, error: rusqlite::Error) -> Error {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, NotADatabase};
        let (kind, next) = match error.sqlite_error_code() {
            Some(DatabaseBusy) => (ErrorKind::Timeout, "; another process writes for too long"),
            Some(DatabaseCorrupt | NotADatabase) => (ErrorKind::Unavailable, "; remove the file"),
            _ => (ErrorKind::Unavailable, ""),
        };
        let path = self.path.display();
        Error::with_source(kind, format!("sqlite ({path}): {error}{next}"), error)
    }

    fn accepts(&self, value: &Bytes) -> Result<()> {
        match value.len() {
            0 => Err(self.error(
                ErrorKind::Config,
                "an empty value can't be stored: it means a lease",
            )),
            length if length > self.max_item => {
                let what = format!(
                    "a value of {length} bytes is over max_item, {}",
                    self.max_item
                );
                Err(self.error(ErrorKind::TooLarge, what))
            }
            _ => Ok(()),
        }
    }
}

/// What one transaction sees. While one writes no other does, so looking and changing are one step.
struct View<'a> {
    transaction: Transaction<'a>,
    incarnation: u64,
    wall: SystemTime,
    /// The same in milliseconds.
    now: i64,
}

impl View<'_> {
    fn look(&self, key: Key<'_>) -> rusqlite::Result<Lookup> {
        // What has ended is absent, for every call.
        let query =
            "SELECT number, expires, since, value FROM entries WHERE key = ?1 AND expires > ?2";
        let mut query = self.transaction.prepare_cached(query)?;
        let found = query.query_row((key.as_str(), self.now), |row| {
            let token = self.token(row.get(0)?, row.get(1)?);
            let age = self.now.saturating_sub(row.get(2)?).max(0).cast_unsigned();
            Ok(match row.get_ref(3)?.as_blob()? {
                [] => Lookup::Busy {
                    age: Duration::from_millis(age),
                    token,
                },
                value => Lookup::Hit {
                    value: Bytes::copy_from_slice(value),
                    token,
                },
            })
        });
        Ok(found.optional()?.unwrap_or(Lookup::Miss { lease: None }))
    }

    /// Replaces whatever is there. The new row has a number that no row ever had.
    fn put(&self, key: Key<'_>, value: &[u8], ttl: Option<Duration>) -> rusqlite::Result<Token> {
        let expires = ttl.map_or(i64::MAX, |ttl| self.now.saturating_add(millis(ttl)));
        let insert =
            "INSERT OR REPLACE INTO entries (key, value, since, expires) VALUES (?1, ?2, ?3, ?4)";
        let mut insert = self.transaction.prepare_cached(insert)?;
        let number = insert.insert((key.as_str(), value, self.now, expires))?;
        Ok(self.token(number, expires))
    }

    fn remove(&self, key: Key<'_>) -> rusqlite::Result<()> {
        let delete = "DELETE FROM entries WHERE key = ?1";
        self.transaction
            .prepare_cached(delete)?
            .execute([key.as_str()])?;
        Ok(())
    }

    /// Names a state of a key, by its number. Its end goes along, so that who comes too late can be told so.
    fn token(&self, number: i64, expires: i64) -> Token {
        Token {
            token: [number, expires].map(i64::cast_unsigned),
            origin: self.incarnation,
        }
    }

    /// Whether the key is in the very state that this token names; if not, why.
    fn stands(&self, key: Key<'_>, token: Token) -> rusqlite::Result<Result<(), Lost>> {
        if token.origin != self.incarnation {
            return Ok(Err(Lost::ConnectionGone));
        }
        Ok(match self.look(key)? {
            Lookup::Hit { token: there, .. } | Lookup::Busy { token: there, .. }
                if there == token =>
            {
                Ok(())
            }
            _ if token.token[1].cast_signed() <= self.now => Err(Lost::Expired),
            _ => Err(Lost::Voided),
        })
    }

    /// Removes what has ended, a little with every write, and the oldest entries while the file is too large.
    fn make_room(&self, capacity: u64, written: usize) -> rusqlite::Result<()> {
        let ended = "DELETE FROM entries WHERE number IN \
                     (SELECT number FROM entries WHERE expires <= ?1 ORDER BY expires LIMIT ?2)";
        let mut ended = self.transaction.prepare_cached(ended)?;
        ended.execute((self.now, 2 * written as i64))?;
        let used = "SELECT (page_count - freelist_count) * page_size \
                    FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
        let mut used = self.transaction.prepare_cached(used)?;
        let oldest = "DELETE FROM entries WHERE number = (SELECT min(number) FROM entries)";
        let mut oldest = self.transaction.prepare_cached(oldest)?;
        while used
            .query_row([], |row| row.get::<_, i64>(0))?
            .cast_unsigned()
            > capacity
        {
            if oldest.execute([])? == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Whole milliseconds, rounded up.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

impl Session {
    fn view(&mut self, behavior: TransactionBehavior) -> rusqlite::Result<View<'_>> {
        let transaction = self.connection.transaction_with_behavior(behavior)?;
        let wall = self.rt.wall(); // not before, since a transaction may have to wait
        Ok(View {
            transaction,
            incarnation: self.incarnation,
            wall,
            now: millis(
                wall.duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default(),
            ),
        })
    }

    fn look_up(&mut self, keys: &Keys, options: &GetOptions) -> rusqlite::Result<Vec<Lookup>> {
        // Who reads waits for nobody, and if everything is found that is all.
        let view = self.view(TransactionBehavior::Deferred)?;
        let found: rusqlite::Result<Vec<_>> = keys.iter().map(|key| view.look(key)).collect();
        drop(view);
        let mut found = found?;
        let missed: Vec<usize> = (0..keys.len())
            .filter(|&position| matches!(found[position], Lookup::Miss { .. }))
            .collect();
        let wants_lease = |&position: &usize| options.lease_of(position).is_some();
        if !missed.iter().any(wants_lease) {
            return Ok(found);
        }
        let view = self.view(TransactionBehavior::Immediate)?;
        for position in missed {
            let key = keys.get(position);
            // Somebody may have been faster: another process, or the same key earlier in this batch.
            found[position] = match (view.look(key)?, options.lease_of(position)) {
                (Lookup::Miss { .. }, Some(length)) => {
                    let token = view.put(key, &[], Some(length))?;
                    let lease = Some(Lease::new(token, view.wall));
                    Lookup::Miss { lease }
                }
                (found, _) => found,
            };
        }
        view.transaction.commit()?;
        Ok(found)
    }

    /// Does one step per key: all of them, or none.
    fn change<T>(
        &mut self,
        keys: &Keys,
        mut step: impl FnMut(&View<'_>, usize, Key<'_>) -> rusqlite::Result<Result<T>>,
    ) -> rusqlite::Result<Vec<Result<T>>> {
        let capacity = self.config.capacity;
        let view = self.view(TransactionBehavior::Immediate)?;
        let steps = keys.iter().enumerate();
        let answers = steps.map(|(position, key)| step(&view, position, key));
        let answers = answers.collect::<rusqlite::Result<Vec<_>>>()?;
        view.make_room(capacity, keys.len())?;
        view.transaction.commit()?;
        Ok(answers)
    }

    fn release(&mut self, keys: &Keys, tokens: &[Token]) -> rusqlite::Result<Vec<Result<()>>> {
        self.change(keys, |view, position, key| {
            if view.stands(key, tokens[position])?.is_ok() {
                view.remove(key)?;
            }
            Ok(Ok(()))
        })
    }
}

#[async_trait]
impl Backend for Sqlite {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        if keys.is_empty() {
            return;
        }
        self.0.count(keys, &options.trips);
        let (owned, options, shared) = (keys.clone(), options.clone(), Arc::clone(&self.0));
        let asked = self.ask(move |session| {
            Ok(OnTheirWay {
                lookups: session.look_up(&owned, &options)?,
                keys: owned,
                shared,
            })
        });
        match asked.await {
            Ok(mut arrived) => {
                let lookups = std::mem::take(&mut arrived.lookups).into_iter();
                lookups
                    .enumerate()
                    .for_each(|(position, lookup)| found(position, Ok(lookup)));
            }
            Err(error) => (0..keys.len()).for_each(|position| found(position, Err(error.clone()))),
        }
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let config = Arc::clone(&self.0.config);
        let work = move |session: &mut Session, keys: &Keys| {
            session.change(keys, |view, position, key| {
                let Fill {
                    lease, value, ttl, ..
                } = &fills[position];
                let stands = view.stands(key, lease.token)?;
                Ok(match (config.accepts(value), stands) {
                    (Ok(()), Ok(())) => {
                        view.put(key, value, *ttl)?;
                        Ok(FillOutcome::Stored)
                    }
                    (Ok(()), Err(lost)) => Ok(FillOutcome::Lost(lost)),
                    (Err(refused), stands) => {
                        if stands.is_ok() {
                            view.remove(key)?; // a refused fill gives its lease back
                        }
                        Err(refused)
                    }
                })
            })
        };
        self.batch(keys, &options.trips, work).await
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let tokens: Vec<_> = leases.iter().map(|lease| lease.token).collect();
        let work = move |session: &mut Session, keys: &Keys| session.release(keys, &tokens);
        self.batch(keys, &options.trips, work).await
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let work = |session: &mut Session, keys: &Keys| {
            session.change(keys, |view, _, key| view.remove(key).map(Ok))
        };
        self.batch(keys, &options.trips, work).await
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let config = Arc::clone(&self.0.config);
        let work = move |session: &mut Session, keys: &Keys| {
            session.change(keys, |view, position, key| {
                let Set { value, ttl, .. } = &sets[position];
                if let Err(refused) = config.accepts(value) {
                    return Ok(Err(refused));
                }
                view.put(key, value, *ttl)?;
                Ok(Ok(()))
            })
        };
        self.batch(keys, &options.trips, work).await
    }

    /// Opens the file. No server could come up later: a path that doesn't work now is a mistake.
    async fn start(&self) -> Result<()> {
        self.ask(|_| Ok(())).await
    }

    async fn check(&self) -> Vec<ServerCheck> {
        let asked = self.0.rt.now();
        let version = self.ask(|session| {
            let version = "SELECT 'SQLite ' || sqlite_version()";
            session
                .connection
                .query_row(version, [], |row| row.get::<_, String>(0))
        });
        let answer = version
            .await
            .map(|version| ServerAnswer::new(version, asked.elapsed()));
        vec![ServerCheck::new(self.to_string(), answer)]
    }

    async fn close(&self, deadline: Duration) {
        self.0.closed.store(true, Ordering::Relaxed);
        let (done, closed) = oneshot::channel();
        // Behind what is under way.
        let last = self.0.hand_over(Box::new(|database| {
            database.session = None;
            let _ = done.send(());
        }));
        if last.is_ok() {
            self.0.rt.timeout(deadline, closed).await;
        }
    }

    fn server_of(&self, _: Key<'_>) -> usize {
        0
    }

    fn pool(&self) -> Pool {
        Pool::new(
            format!("sqlite://{}", self.0.config.path.display()),
            Reach::Host,
        )
    }

    fn stats(&self) -> BackendStats {
        let mut server = lock(&self.0.stats).clone();
        server.server = self.to_string();
        let line = lock(&self.0.line);
        server.in_flight = (line.max_capacity() - line.capacity()) as u64;
        let mut stats = BackendStats::default();
        stats.servers.push(server);
        stats
    }
}

impl fmt::Display for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite ({})", self.0.config.path.display())
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.0.config).finish()
    }
}

/// What a look-up found, between the task and whoever asked. If nobody takes it, its leases are given back.
struct OnTheirWay {
    lookups: Vec<Lookup>,
    keys: Keys,
    shared: Arc<Shared>,
}

impl Drop for OnTheirWay {
    fn drop(&mut self) {
        let lookups = self.lookups.iter().enumerate();
        let won = lookups.filter_map(|(position, lookup)| match lookup {
            Lookup::Miss { lease: Some(lease) } => Some((position, lease.token)),
            _ => None,
        });
        let (positions, tokens): (Vec<usize>, Vec<Token>) = won.unzip();
        if positions.is_empty() {
            return;
        }
        let keys = self.keys.select(positions);
        // Where that can't be done they end with their time.
        let _ = self.shared.hand_over(Box::new(move |database| {
            let _ = database.run(|session| session.release(&keys, &tokens));
        }));
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let schemes = Registry::new().with("sqlite", Sqlite::new);
    let file = std::env::temp_dir().join("larder-example.db");
    let config = Config::new(&format!("sqlite://{}", file.display()))?.env()?;
    let (store, _) = schemes.open(&config, Rt::new())?; // a service does `.config_with(schemes, config)`
    let options = GetOptions::lease(Duration::from_secs(10));
    match store.get("greeting", &options).await? {
        Lookup::Hit { value, .. } => println!("{store} has {value:?}"),
        Lookup::Miss { lease: Some(lease) } => {
            let greeting = format!("hello from process {}", std::process::id());
            let fill = Fill::new(lease, greeting).ttl(Duration::from_secs(60));
            println!(
                "{store} had nothing: {:?}",
                store.fill("greeting", fill).await?
            );
        }
        other => println!("{store}: {other:?}"),
    }
    store.close(Duration::from_secs(1)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use larder_core::conformance::{Abilities, Peeked, Subject};
    use tempfile::TempDir;

    use super::*;

    larder_core::conformance! {
        #[tokio::test(start_paused = true)]
        sqlite => Place::new(), except [
            dead_server_fails_only_its_keys,
            hung_server_costs_a_call_its_deadline,
        ];
    }

    /// A directory with the file in it, in a directory of its own, so that it can be taken away as a whole.
    pub(super) struct Place {
        outer: TempDir,
        rt: Rt,
    }

    impl Place {
        pub(super) fn new() -> Self {
            let outer = TempDir::new().expect("there is room for a directory");
            let rt = Rt::following_tokio(SystemTime::now());
            let place = Self { outer, rt };
            std::fs::create_dir(place.directory()).expect("it is new");
            place
        }

        fn directory(&self) -> PathBuf {
            self.outer.path().join("store")
        }

        pub(super) fn handle(&self, change: impl FnOnce(&mut SqliteConfig)) -> Sqlite {
            let mut config = SqliteConfig {
                path: self.directory().join("cache.db"),
                timeout: Duration::from_secs(10),
                ..SqliteConfig::default()
            };
            change(&mut config);
            Sqlite::new(config, self.rt).expect("the configuration can work")
        }

        /// The file itself, past the store.
        pub(super) fn raw(&self) -> Connection {
            let file = Connection::open(self.directory().join("cache.db"));
            let mut file = file.expect("the directory is there");
            set_up(&mut file).expect("it is a new file, or one of ours");
            file
        }
    }

    #[async_trait]
    impl Subject for Place {
        fn can(&self) -> Abilities {
            Abilities::one_server()
                .peeks()
                .kills()
                .skips_time()
                .exact_time()
        }

        async fn backend(&self) -> Arc<dyn Backend> {
            Arc::new(self.handle(|_| {}))
        }

        async fn advance(&self, duration: Duration) {
            tokio::time::advance(duration).await;
        }

        async fn peek(&self, key: &str) -> Option<Peeked> {
            let now = self.rt.wall().duration_since(SystemTime::UNIX_EPOCH);
            let now = millis(now.expect("it is later"));
            let query = "SELECT value, expires FROM entries WHERE key = ?1 AND expires > ?2";
            let found = self.raw().query_row(query, (key, now), |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?))
            });
            let (value, expires) = found.optional().expect("the file can be read")?;
            let left = Duration::from_millis((expires - now).cast_unsigned());
            Some(Peeked::new(value, (expires < i64::MAX).then_some(left)))
        }

        async fn kill(&self, _: usize) {
            // Under another name first: so it is gone in one step, whoever has it open.
            let away = self.outer.path().join("away");
            std::fs::rename(self.directory(), &away).expect("it was there");
            std::fs::remove_dir_all(away).expect("nobody finds it there");
        }

        async fn restart(&self, _: usize) {
            std::fs::create_dir(self.directory()).expect("it was taken away");
        }
    }
}

/// What the suite can't ask, since only this store has it.
#[cfg(test)]
mod more_tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::process::{Child, Command, Stdio};

    use super::tests::Place;
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    async fn won(store: &Sqlite, key: &str) -> Option<Lease> {
        match store.get(key, &GetOptions::lease(LEASE)).await.unwrap() {
            Lookup::Miss { lease } => lease,
            _ => None,
        }
    }

    async fn has(store: &Sqlite, key: &str) -> bool {
        let found = store.get(key, &GetOptions::look()).await.unwrap();
        matches!(found, Lookup::Hit { .. })
    }

    #[test]
    fn what_cannot_work_is_refused() {
        #[track_caller]
        fn check(change: impl FnOnce(&mut SqliteConfig), reason: &str) {
            let mut config = SqliteConfig {
                path: "cache.db".into(),
                ..SqliteConfig::default()
            };
            change(&mut config);
            let error = Sqlite::new(config, Rt::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(reason), "{error}");
        }
        check(
            |config| config.path = PathBuf::new(),
            "`path` must name a file",
        );
        check(|config| config.path = "/".into(), "`path` must name a file");
        check(
            |config| config.path = "/no/such/cache.db".into(),
            "directory /no/such",
        );
        check(|config| config.capacity = 256, "a capacity of 256 bytes");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn write_of_another_process_costs_a_write_its_deadline() {
        let place = Place::new();
        let store = place.handle(|config| config.timeout = Duration::from_millis(500));
        store.start().await.unwrap();
        let other = place.raw();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = store.set_immutable("k", Set::new("v")).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Timeout, "{refused}");
        assert!(!has(&store, "k").await);
        other.execute_batch("COMMIT").unwrap();
        store.set_immutable("k", Set::new("v")).await.unwrap();
        assert!(has(&store, "k").await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn handles_that_open_a_new_file_at_once_share_it() {
        let place = Place::new();
        let stores: Vec<_> = (0..16).map(|_| Arc::new(place.handle(|_| {}))).collect();
        let starts: Vec<_> = stores
            .iter()
            .map(Arc::clone)
            .map(|store| tokio::spawn(async move { store.start().await }))
            .collect();
        for start in starts {
            start.await.unwrap().unwrap();
        }
        stores[0].set_immutable("k", Set::new("v")).await.unwrap();
        for store in &stores {
            assert!(has(store, "k").await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_before_the_machine_started_is_gone() {
        let place = Place::new();
        let before = place.handle(|_| {});
        before.set_immutable("k", Set::new("v")).await.unwrap();
        let lease = won(&before, "leased").await.unwrap();
        before.close(LEASE).await;
        place
            .raw()
            .execute("UPDATE life SET boot = 'another'", [])
            .unwrap();

        let after = place.handle(|_| {});
        assert!(!has(&after, "k").await);
        let filled = after.fill("leased", Fill::new(lease, "v")).await.unwrap();
        assert_eq!(filled, FillOutcome::Lost(Lost::ConnectionGone));
    }

    #[tokio::test(start_paused = true)]
    async fn oldest_entries_make_room() {
        let place = Place::new();
        let capacity = 1 << 20;
        let store =
            place.handle(|config| (config.capacity, config.max_item) = (capacity, 64 << 10));
        for number in 0..100 {
            let value = Set::new(vec![b'v'; 32 << 10]);
            store
                .set_immutable(&format!("k{number}"), value)
                .await
                .unwrap();
        }
        assert!(has(&store, "k99").await);
        assert!(!has(&store, "k0").await);
        let used = "SELECT sum(length(value)) FROM entries";
        let used: i64 = place.raw().query_row(used, [], |row| row.get(0)).unwrap();
        assert!(
            (capacity / 4..capacity).contains(&used.cast_unsigned()),
            "{used}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn lease_of_a_caller_who_left_comes_back() {
        let place = Place::new();
        let store = place.handle(|_| {});
        let options = GetOptions::lease(LEASE);
        {
            let mut asked = std::pin::pin!(store.get("k", &options));
            let handed_over = std::future::poll_fn(|context| {
                std::task::Poll::Ready(asked.as_mut().poll(context).is_pending())
            });
            assert!(handed_over.await);
        }
        // Behind the look-up, and behind what follows it.
        store.check().await;
        store.check().await;
        assert!(won(&store, "k").await.is_some());
    }

    const KEYS: usize = 300;

    /// A process of the next test, which says which keys it has won.
    #[tokio::test]
    #[ignore = "is started by the test below"]
    async fn contender() {
        let config = SqliteConfig {
            path: std::env::var_os("LARDER_TEST_FILE").unwrap().into(),
            timeout: Duration::from_secs(30),
            ..SqliteConfig::default()
        };
        let store = Sqlite::new(config, Rt::new()).unwrap();
        store.start().await.unwrap();
        println!("\nready");
        std::io::stdin().lines().next().unwrap().unwrap();
        for number in 0..KEYS {
            if won(&store, &format!("k{number}")).await.is_some() {
                println!("won {number}");
            }
        }
    }

    #[tokio::test]
    async fn every_key_is_won_by_one_of_several_processes() {
        let place = Place::new();
        place.raw();
        let this = std::env::current_exe().unwrap();
        let mut children: Vec<Child> = (0..3)
            .map(|_| {
                let mut contender = Command::new(&this);
                contender.args([
                    "--exact",
                    "more_tests::contender",
                    "--ignored",
                    "--nocapture",
                ]);
                contender.env("LARDER_TEST_FILE", &place.handle(|_| {}).0.config.path);
                contender.stdin(Stdio::piped()).stdout(Stdio::piped());
                contender.spawn().unwrap()
            })
            .collect();
        let mut outputs: Vec<_> = children
            .iter_mut()
            .map(|child| {
                BufReader::new(child.stdout.take().unwrap())
                    .lines()
                    .map_while(Result::ok)
            })
            .collect();
        for output in &mut outputs {
            assert!(output.any(|line| line == "ready"));
        }
        for child in &mut children {
            child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        }
        let mut winners = Vec::new();
        for output in outputs {
            winners
                .extend(output.filter_map(|line| line.strip_prefix("won ")?.parse::<usize>().ok()));
        }
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(winners.len(), KEYS, "no key is won twice");
        assert_eq!(
            winners.into_iter().collect::<BTreeSet<_>>(),
            (0..KEYS).collect()
        );
    }
}
