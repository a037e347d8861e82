//! A database in memory: rows, row locks, transactions, the outbox, the register of generations. It is the second test of
//! the seam that `larder-sqlx` joins by, and its commits can be held, refused, or left unknown and land later.
//!
//! Each statement sees what is committed, and what its own transaction wrote: READ COMMITTED. A row is locked by whoever
//! writes or locks it, until the end of that transaction. Times are tokio's, so that a test that pauses the clock pauses
//! the database's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backlog, Cache, CommitFailure, Decide, Edit, Entity, Error, ErrorKind, Generation, Outbox,
    Purge, PutOff, Register, Registered, Result, Row, RowId, Savepoint, Source, Transactional,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::read::gate::Barrier;

/// What all processes of a test share.
#[derive(Clone)]
pub(super) struct Database(Arc<Inner>);

struct Inner {
    tables: Mutex<Tables>,
    /// Told when a transaction has ended.
    ended: Notify,
    /// Held by whoever edits the register.
    editing: Arc<tokio::sync::Mutex<()>>,
    next: AtomicU64,
    /// Commits wait here before they are executed.
    arriving: Barrier,
    /// Whether an outbox row holds its generation, and fails without it.
    foreign_key: AtomicBool,
    /// Whether rows are claimed in the order in which they became due, and not in that of their insertion.
    claims_by_due: AtomicBool,
}

type Key = (&'static str, u64);
type Transaction = u64;

#[derive(Default)]
struct Tables {
    /// Rows as JSON.
    rows: BTreeMap<Key, String>,
    locks: HashMap<Key, Transaction>,
    generations: BTreeMap<String, Registration>,
    /// Generations that transactions under way refer to.
    referred: Vec<(Transaction, String)>,
    purges: BTreeMap<String, (String, Option<String>, Instant)>,
    outbox: BTreeMap<RowId, Waiting>,
    claimed: Option<Instant>,
    next_commit: Fate,
    limbo: Vec<Changes>,
}

/// What becomes of the next commit.
#[derive(Clone, Copy, Default)]
enum Fate {
    #[default]
    Done,
    Failed,
    /// Its answer is lost, and it is executed later.
    Unknown,
    /// Its answer never comes, and it is executed later.
    Silent,
}

#[derive(Clone)]
struct Registration {
    version: String,
    pool: String,
    holder: String,
    manifest: String,
    registered: Instant,
    renewed: Instant,
    until: Instant,
    /// Somebody wanted it deleted, while a transaction held it.
    ended: bool,
}

struct Waiting {
    text: String,
    inserted: Instant,
    due: Instant,
    attempts: u32,
}

/// What a transaction has done so far.
struct Changes {
    id: Transaction,
    /// The last is what came after the innermost savepoint.
    stack: Vec<Undo>,
    rows: BTreeMap<Key, Option<String>>,
    pushed: BTreeMap<RowId, Waiting>,
}

/// What was before a savepoint.
struct Undo {
    rows: BTreeMap<Key, Option<String>>,
    pushed: BTreeSet<RowId>,
}

/// One process's way to the database.
#[derive(Clone)]
pub(super) struct Ledger {
    database: Database,
    line: Arc<Line>,
    /// Whether it has an outbox and a register.
    remembers: bool,
}

/// What happens on the way.
struct Line {
    cut: AtomicBool,
    loads: Barrier,
    looks: Barrier,
    edits: Barrier,
    pushes: Barrier,
    counts: Barrier,
    loaded: AtomicUsize,
    /// The cache of the process, for loaders that read through it. Neither ends before the test.
    cache: OnceLock<Cache<Ledger>>,
}

/// A connection, and the transaction that may be open on it.
pub(super) struct Conn {
    ledger: Ledger,
    changes: Option<Changes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub(super) &'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

/// What can be a row.
pub(super) trait Record: Entity<Id = u64> + Clone + Serialize + DeserializeOwned {}

impl<T: Entity<Id = u64> + Clone + Serialize + DeserializeOwned> Record for T {}

impl Database {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            tables: Mutex::default(),
            ended: Notify::new(),
            editing: Arc::default(),
            next: AtomicU64::new(1),
            arriving: Barrier::new(),
            foreign_key: AtomicBool::new(true),
            claims_by_due: AtomicBool::new(true),
        }))
    }

    /// The way to it of one more process.
    pub(super) fn line(&self) -> Ledger {
        Ledger {
            remembers: true,
            database: self.clone(),
            line: Arc::new(Line {
                cut: AtomicBool::new(false),
                loads: Barrier::new(),
                looks: Barrier::new(),
                edits: Barrier::new(),
                pushes: Barrier::new(),
                counts: Barrier::new(),
                loaded: AtomicUsize::new(0),
                cache: OnceLock::new(),
            }),
        }
    }

    /// Writes a row past everything: what was there before the test began, or what nobody is told of.
    pub(super) fn write<T: Record>(&self, row: &T) {
        self.tables().rows.insert(key::<T>(row.id()), json(row));
    }

    /// Commits wait here before they are executed.
    pub(super) fn arriving_commits(&self) -> &Barrier {
        &self.0.arriving
    }

    /// The next commit is refused.
    pub(super) fn fail_next_commit(&self) {
        self.tables().next_commit = Fate::Failed;
    }

    /// The connection of the next commit is lost; what it commits waits for [`Database::land`].
    pub(super) fn lose_next_commit(&self) {
        self.tables().next_commit = Fate::Unknown;
    }

    /// The connection of the next commit is cut without a word; what it commits waits for [`Database::land`].
    pub(super) fn silence_next_commit(&self) {
        self.tables().next_commit = Fate::Silent;
    }

    /// Executes the commits whose answers were lost.
    pub(super) fn land(&self) {
        let limbo = std::mem::take(&mut self.tables().limbo);
        limbo.into_iter().for_each(|changes| self.apply(changes));
    }

    /// From now on rows of the outbox are inserted whether or not their generation is registered, and don't hold it.
    pub(super) fn drop_foreign_key(&self) {
        self.0.foreign_key.store(false, Ordering::Relaxed);
    }

    /// From now on rows are claimed in the order of their insertion, whenever they became due.
    pub(super) fn claim_by_insertion(&self) {
        self.0.claims_by_due.store(false, Ordering::Relaxed);
    }

    /// The ids of all generations that have a row.
    pub(super) fn generations(&self) -> Vec<String> {
        self.tables().generations.keys().cloned().collect()
    }

    /// The texts of all rows of the outbox.
    pub(super) fn outbox(&self) -> Vec<String> {
        let tables = self.tables();
        tables.outbox.values().map(|row| row.text.clone()).collect()
    }

    /// Inserts a row of the outbox as if another program had written it.
    pub(super) fn insert_into_outbox(&self, text: &str) {
        let (now, id) = (Instant::now(), self.next() as RowId);
        let row = Waiting {
            text: text.to_owned(),
            inserted: now,
            due: now,
            attempts: 0,
        };
        self.tables().outbox.insert(id, row);
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.tables.lock().unwrap()
    }

    pub(super) fn next(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    fn has_foreign_key(&self) -> bool {
        self.0.foreign_key.load(Ordering::Relaxed)
    }

    fn apply(&self, changes: Changes) {
        let mut tables = self.tables();
        for (key, row) in changes.rows {
            match row {
                Some(row) => tables.rows.insert(key, row),
                None => tables.rows.remove(&key),
            };
        }
        tables.outbox.extend(changes.pushed);
        drop(tables);
        self.end(changes.id);
    }

    fn end(&self, transaction: Transaction) {
        let mut tables = self.tables();
        tables.locks.retain(|_, holder| *holder != transaction);
        tables.referred.retain(|(by, _)| *by != transaction);
        drop(tables);
        self.0.ended.notify_waiters();
    }
}

impl Ledger {
    /// The same without an outbox: what larder can do alone.
    pub(super) fn forgetful(self) -> Self {
        Self {
            remembers: false,
            ..self
        }
    }

    /// Cuts the process off from the database, or connects it again.
    pub(super) fn cut(&self, cut: bool) {
        self.line.cut.store(cut, Ordering::Relaxed);
    }

    /// Loaders that have read their rows wait here.
    pub(super) fn loads(&self) -> &Barrier {
        &self.line.loads
    }

    /// Questions to the register wait here before they are executed.
    pub(super) fn looks(&self) -> &Barrier {
        &self.line.looks
    }

    /// Edits of the register wait here before they are committed, alone; they are even if nobody waits for that any more.
    pub(super) fn edits(&self) -> &Barrier {
        &self.line.edits
    }

    /// Inserts into the outbox wait here before they are executed.
    pub(super) fn pushes(&self) -> &Barrier {
        &self.line.pushes
    }

    /// Counts of the outbox wait here before they are executed.
    pub(super) fn counts(&self) -> &Barrier {
        &self.line.counts
    }

    /// Has loaders of this process read through this cache.
    pub(super) fn know(&self, cache: &Cache<Self>) {
        let _known = self.line.cache.set(cache.clone());
    }

    /// How often a loader asked.
    pub(super) fn loaded(&self) -> usize {
        self.line.loaded.load(Ordering::Relaxed)
    }

    fn reach(&self) -> Result<(), Broken> {
        match self.line.cut.load(Ordering::Relaxed) {
            true => Err(Broken("the database can't be reached")),
            false => Ok(()),
        }
    }

    fn tables(&self) -> Result<MutexGuard<'_, Tables>> {
        self.reach()
            .map_err(|broken| Error::new(ErrorKind::Unavailable, broken.0))?;
        Ok(self.database.tables())
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

impl Conn {
    /// The row of this id.
    pub(super) fn find<T: Record>(&self, id: u64) -> Option<T> {
        let key = key::<T>(id);
        let own = (self.changes.as_ref()).and_then(|changes| changes.rows.get(&key));
        let text = match own {
            Some(own) => own.clone(),
            None => self.ledger.database.tables().rows.get(&key).cloned(),
        };
        text.map(|text| parse(&text))
    }

    /// All rows of an entity, by their ids.
    pub(super) fn all<T: Record>(&self) -> Vec<T> {
        let of = |(name, _): &&Key| *name == T::NAME;
        let mut ids: BTreeSet<u64> = {
            let tables = self.ledger.database.tables();
            tables.rows.keys().filter(of).map(|(_, id)| *id).collect()
        };
        if let Some(changes) = &self.changes {
            ids.extend(changes.rows.keys().filter(of).map(|(_, id)| *id));
        }
        ids.into_iter().filter_map(|id| self.find(id)).collect()
    }

    /// Locks a row, and reads it: `SELECT … FOR UPDATE`.
    pub(super) async fn lock<T: Record>(&mut self, id: u64) -> Result<Option<T>, Broken> {
        self.take(key::<T>(id)).await?;
        Ok(self.find(id))
    }

    /// Inserts or updates a row.
    pub(super) async fn put<T: Record>(&mut self, row: &T) -> Result<(), Broken> {
        self.set(key::<T>(row.id()), Some(json(row))).await
    }

    /// Deletes a row.
    pub(super) async fn remove<T: Record>(&mut self, id: u64) -> Result<(), Broken> {
        self.set(key::<T>(id), None).await
    }

    /// The cache of the process.
    pub(super) fn cache(&self) -> Cache<Ledger> {
        let cache = self.ledger.line.cache.get();
        cache.expect("nobody loads before it is built").clone()
    }

    /// Tells that a loader has read what it answers, and waits if loads are held.
    pub(super) async fn loaded(&self) {
        let line = &self.ledger.line;
        line.loaded.fetch_add(1, Ordering::Relaxed);
        line.loads.pass().await;
    }

    async fn set(&mut self, key: Key, row: Option<String>) -> Result<(), Broken> {
        self.take(key).await?;
        let changes = self.changes.as_mut().ok_or(NO_TRANSACTION)?;
        changes.rows.insert(key, row);
        Ok(())
    }

    /// Locks a row, once nobody else has it.
    async fn take(&mut self, key: Key) -> Result<(), Broken> {
        self.ledger.reach()?;
        let own = self.changes.as_ref().ok_or(NO_TRANSACTION)?.id;
        let database = &self.ledger.database;
        loop {
            let ended = database.0.ended.notified();
            let holder = *database.tables().locks.entry(key).or_insert(own);
            if holder == own {
                return Ok(());
            }
            ended.await;
        }
    }
}

const NO_TRANSACTION: Broken = Broken("rows are written in transactions");

/// A connection that is dropped rolls back.
impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(changes) = self.changes.take() {
            self.ledger.database.end(changes.id);
        }
    }
}

impl Source for Ledger {
    type Conn = Conn;
    type Guard = Box<Conn>;
    type Error = Broken;

    async fn acquire(&self) -> Result<Box<Conn>, Broken> {
        self.reach()?;
        Ok(Box::new(Conn {
            ledger: self.clone(),
            changes: None,
        }))
    }

    fn outbox(&self) -> Option<Arc<dyn Outbox<Conn>>> {
        let outbox: Arc<dyn Outbox<Conn>> = Arc::new(self.clone());
        self.remembers.then_some(outbox)
    }
}

impl Transactional for Ledger {
    type Tx = Box<Conn>;

    async fn begin(&self) -> Result<Box<Conn>, Broken> {
        let mut conn = self.acquire().await?;
        conn.changes = Some(Changes {
            id: self.database.next(),
            stack: Vec::new(),
            rows: BTreeMap::new(),
            pushed: BTreeMap::new(),
        });
        Ok(conn)
    }

    async fn commit(mut conn: Box<Conn>) -> Result<(), CommitFailure<Broken>> {
        let database = conn.ledger.database.clone();
        let reached = conn.ledger.reach();
        reached.map_err(CommitFailure::Failed)?;
        database.0.arriving.pass().await;
        let fate = std::mem::take(&mut database.tables().next_commit);
        let changes = conn.changes.take();
        let changes = changes.ok_or(CommitFailure::Failed(NO_TRANSACTION))?;
        match fate {
            Fate::Done => database.apply(changes),
            Fate::Failed => {
                database.end(changes.id);
                return Err(CommitFailure::Failed(Broken("the commit was refused")));
            }
            Fate::Unknown => {
                database.tables().limbo.push(changes);
                return Err(CommitFailure::Unknown(Broken("the answer was lost")));
            }
            Fate::Silent => {
                database.tables().limbo.push(changes);
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    }

    async fn rollback(conn: Box<Conn>) -> Result<(), Broken> {
        drop(conn);
        Ok(())
    }

    async fn savepoint(conn: &mut Box<Conn>, step: Savepoint, depth: u32) -> Result<(), Broken> {
        let changes = conn.changes.as_mut().ok_or(NO_TRANSACTION)?;
        let depth = depth as usize;
        match step {
            Savepoint::Set => changes.stack.push(Undo {
                rows: changes.rows.clone(),
                pushed: changes.pushed.keys().copied().collect(),
            }),
            Savepoint::RollBack => {
                changes.stack.truncate(depth);
                let undo = changes.stack.last().ok_or(Broken("no such savepoint"))?;
                changes.rows.clone_from(&undo.rows);
                changes.pushed.retain(|id, _| undo.pushed.contains(id));
            }
            Savepoint::Release => changes.stack.truncate(depth - 1),
        }
        Ok(())
    }

    async fn has_written(conn: &mut Box<Conn>) -> Result<Option<bool>, Broken> {
        let changes = conn.changes.as_ref().ok_or(NO_TRANSACTION)?;
        Ok(Some(!changes.rows.is_empty()))
    }
}

#[async_trait]
impl Register for Ledger {
    async fn read(&self) -> Result<Registered> {
        self.line.looks.pass().await;
        Ok(self.tables()?.registered())
    }

    async fn edit(&self, decide: Decide<'_>) -> Result<()> {
        let editing = Arc::clone(&self.database.0.editing).lock_owned().await;
        let now = Instant::now();
        let edits = decide(&self.tables()?.registered())?;
        let ledger = self.clone();
        let commit = tokio::spawn(async move {
            ledger.line.edits.pass().await;
            let database = &ledger.database;
            let mut tables = database.tables();
            for edit in edits {
                tables.apply(edit, now, database.has_foreign_key());
            }
            drop(editing);
        });
        commit.await.expect("edits don't panic");
        Ok(())
    }

    async fn renew(&self, id: &str, ttl: Duration, unless: Duration) -> Result<bool> {
        let mut tables = self.tables()?;
        let now = Instant::now();
        let known = tables.generations.get_mut(id);
        let Some(registration) = known.filter(|known| !known.ended) else {
            return Ok(false);
        };
        if now - registration.renewed >= unless {
            registration.renewed = now;
            registration.until = now + ttl;
        }
        Ok(true)
    }
}

impl Tables {
    fn apply(&mut self, edit: Edit, now: Instant, has_foreign_key: bool) {
        match edit {
            Edit::Mint {
                id,
                version,
                pool,
                holder,
                manifest,
                ttl,
            } => {
                let registration = Registration {
                    version,
                    pool,
                    holder,
                    manifest,
                    registered: now,
                    renewed: now,
                    ended: false,
                    until: now + ttl,
                };
                self.generations.insert(id, registration);
            }
            Edit::End { id } => {
                if let Some(known) = self.generations.get_mut(&id) {
                    known.until = now;
                    known.ended = true;
                }
            }
            Edit::Delete { id } => {
                let is_held = self.referred.iter().any(|(_, held)| *held == id);
                match self.generations.get_mut(&id) {
                    Some(held) if is_held && has_foreign_key => {
                        held.until = now;
                        held.ended = true;
                    }
                    _ => drop(self.generations.remove(&id)),
                }
            }
            Edit::Purge { accessor, epoch } => {
                let former = self.purges.remove(&accessor).map(|(epoch, ..)| epoch);
                self.purges.insert(accessor, (epoch, former, now));
            }
            edit => panic!("what is {edit:?}?"),
        }
    }

    fn registered(&self) -> Registered {
        let now = Instant::now();
        let generation = |(id, known): (&String, &Registration)| Generation {
            id: id.clone(),
            version: known.version.clone(),
            pool: known.pool.clone(),
            holder: known.holder.clone(),
            manifest: known.manifest.clone(),
            age: now - known.registered,
            left: known.until.saturating_duration_since(now),
        };
        let purge = |(accessor, (epoch, former, at)): (&String, &(String, _, Instant))| Purge {
            accessor: accessor.clone(),
            epoch: epoch.clone(),
            former: Option::clone(former),
            age: now - *at,
        };
        Registered {
            generations: self.generations.iter().map(generation).collect(),
            purges: self.purges.iter().map(purge).collect(),
        }
    }

    fn row(id: RowId, row: &Waiting) -> Row {
        Row {
            id,
            text: row.text.clone(),
            attempts: row.attempts,
            age: row.inserted.elapsed(),
        }
    }
}

#[async_trait]
impl Outbox<Conn> for Ledger {
    async fn push(
        &self,
        conn: &mut Conn,
        generation: &str,
        rows: &[String],
        grace: Duration,
    ) -> Result<Vec<RowId>> {
        let refuse = |problem: &str| Err(Error::new(ErrorKind::Unavailable, problem));
        self.line.pushes.pass().await;
        let mut tables = self.tables()?;
        let Some(changes) = &mut conn.changes else {
            return refuse(NO_TRANSACTION.0);
        };
        if self.database.has_foreign_key() && !tables.generations.contains_key(generation) {
            let problem = format!("foreign key: the generation `{generation}` isn't registered");
            return refuse(&problem);
        }
        tables.referred.push((changes.id, generation.to_owned()));
        let now = Instant::now();
        let insert = |text: &String| {
            let id = self.database.next() as RowId;
            let row = Waiting {
                text: text.clone(),
                inserted: now,
                due: now + grace,
                attempts: 0,
            };
            changes.pushed.insert(id, row);
            id
        };
        Ok(rows.iter().map(insert).collect())
    }

    async fn claim(&self, limit: usize, hold: Duration, interval: Duration) -> Result<Vec<Row>> {
        let mut tables = self.tables()?;
        let now = Instant::now();
        if tables.claimed.is_some_and(|at| now - at < interval) {
            return Ok(Vec::new());
        }
        let by_due = self.database.0.claims_by_due.load(Ordering::Relaxed);
        let mut due: Vec<(&RowId, &mut Waiting)> = tables.outbox.iter_mut().collect();
        due.retain(|(_, row)| row.due <= now);
        if by_due {
            due.sort_by_key(|(_, row)| row.due);
        }
        let claim = |(id, row): (&RowId, &mut Waiting)| {
            let claimed = Tables::row(*id, row);
            row.due = now + hold;
            row.attempts += 1;
            claimed
        };
        let claimed: Vec<Row> = due.into_iter().take(limit).map(claim).collect();
        if !claimed.is_empty() {
            tables.claimed = Some(now);
        }
        Ok(claimed)
    }

    async fn rows(&self, limit: usize) -> Result<Vec<Row>> {
        let tables = self.tables()?;
        let rows = tables.outbox.iter().take(limit);
        Ok(rows.map(|(id, row)| Tables::row(*id, row)).collect())
    }

    async fn done(&self, ids: &[RowId]) -> Result<()> {
        let mut tables = self.tables()?;
        ids.iter().for_each(|id| drop(tables.outbox.remove(id)));
        Ok(())
    }

    async fn put_off(&self, rows: &[PutOff]) -> Result<()> {
        let mut tables = self.tables()?;
        for PutOff { id, text, pause } in rows {
            if let Some(row) = tables.outbox.get_mut(id) {
                row.text.clone_from(text);
                row.due = Instant::now() + *pause;
            }
        }
        Ok(())
    }

    async fn left(&self, ids: &[RowId]) -> Result<Vec<RowId>> {
        let tables = self.tables()?;
        let left = ids.iter().filter(|id| tables.outbox.contains_key(id));
        Ok(left.copied().collect())
    }

    async fn drop_older(&self, age: Duration) -> Result<u64> {
        let mut tables = self.tables()?;
        let before = tables.outbox.len();
        tables.outbox.retain(|_, row| row.inserted.elapsed() <= age);
        Ok((before - tables.outbox.len()) as u64)
    }

    async fn backlog(&self) -> Result<Backlog> {
        self.line.counts.pass().await;
        let tables = self.tables()?;
        Ok(Backlog {
            rows: tables.outbox.len() as u64,
            oldest: tables
                .outbox
                .values()
                .map(|row| row.inserted.elapsed())
                .max(),
        })
    }
}

fn key<T: Record>(id: u64) -> Key {
    (T::NAME, id)
}

fn json<T: Record>(row: &T) -> String {
    serde_json::to_string(row).expect("rows are JSON")
}

fn parse<T: Record>(text: &str) -> T {
    serde_json::from_str(text).expect("it was written by this type")
}
