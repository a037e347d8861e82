//! The guard: a transaction of the database, and what it makes stale.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use super::change::{LockId, next_lock};
use super::committed::{CommitError, Committed, Flush, TransactionError};
use super::deliver::ask_queries;
use super::plan::{Images, Touching};
use super::stale::Stale;
use super::writes::{Own, Writes};
use super::{Before, Change, CommitFailure, Entity, LockRow, RowId, Savepoint, Transactional};
use crate::contract::{Error, ErrorKind, Result};
use crate::generation::Member;
use crate::read::{Reader, Route, ScopedReader, Shared, TierKind};
use crate::{Cache, Mechanism};

/// How long after its insertion a relay takes a row of the outbox: its writer delivers it long before.
const GRACE: Duration = Duration::from_secs(1);

/// An open transaction, and the changes made in it.
///
/// It is the connection, so statements run on it; and it is a reader, whose reads go past the cache and see its own
/// writes. What it is told by [`changed`](Tx::changed) is flushed after the commit, in a task that goes on if the caller
/// is dropped. Dropped without a commit, it is rolled back.
///
/// ```
/// # use larder_core::*;
/// # async fn rename<S: Transactional, User: LockRow<S, Id = u64> + Clone>(cache: &Cache<S>, rename: fn(&User) -> User) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = cache.begin().await?;
/// let before = tx.lock::<User>(&7).await?.ok_or("there is no user 7")?;
/// let after = rename(&before);
/// // sqlx::query("UPDATE …").execute(&mut *tx).await?;
/// tx.changed(Change::update(&before, &after));
/// let committed = tx.commit().await?;
/// if committed.flush.is_fresh() {
///     // whoever reads from now on, in any process, sees the new name
/// }
/// # Ok(()) }
/// ```
pub struct Tx<S: Transactional> {
    /// `None` once it is committed or rolled back.
    inner: Option<S::Tx>,
    cache: Cache<S>,
    stale: Stale,
    own: Vec<Own>,
    /// The entities that changed.
    entities: BTreeSet<&'static str>,
    /// Why it can't be committed.
    refused: Option<Error>,
    /// The entity whose plans are being asked for keys: afterwards, one of them has panicked.
    asking: Option<&'static str>,
    /// Whether it was said what changed, or that nothing did.
    said: bool,
    /// As what it commits, once it was checked.
    member: Option<Arc<Member>>,
    /// How many savepoints are open.
    depth: u32,
    /// The rows that it has locked, in order.
    locks: Vec<LockId>,
    place: &'static Location<'static>,
}

impl<S: Transactional> Cache<S> {
    /// Begins a transaction.
    ///
    /// Through the handle of a request, what it changes is also dropped from what the request keeps.
    ///
    /// While it is open, don't read through the pool what the transaction's own connection could: on a pool of one
    /// connection, such as SQLite's writer, that waits for itself. With
    /// [`strict_writes`](crate::CacheBuilder::strict_writes) it is an error at once.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Tx<S>, S::Error>> + Send + '_ {
        let place = Location::caller();
        async move {
            // Here and not at the commit, which holds locks.
            self.shared.generations.may_commit().await;
            let inner = self.shared.source.begin().await?;
            self.shared.writes.opened(place);
            Ok(Tx {
                inner: Some(inner),
                cache: self.clone(),
                stale: Stale::default(),
                own: Vec::new(),
                entities: BTreeSet::new(),
                refused: None,
                asking: None,
                said: false,
                member: None,
                depth: 0,
                locks: Vec::new(),
                place,
            })
        }
    }

    /// Runs this in a transaction, and commits if it answers `Ok`: so it can't be forgotten.
    ///
    /// # Errors
    ///
    /// Those of the work, which is then rolled back, and those of beginning and committing.
    #[track_caller]
    pub fn transaction<T, W>(
        &self,
        work: impl AsyncFnOnce(&mut Tx<S>) -> Result<T, W>,
    ) -> impl Future<Output = Result<(T, Committed), TransactionError<W, S::Error>>> {
        let begin = self.begin();
        async move {
            let mut tx = begin.await.map_err(TransactionError::Begin)?;
            match work(&mut tx).await {
                Ok(answer) => {
                    let committed = tx.commit().await.map_err(TransactionError::Commit)?;
                    Ok((answer, committed))
                }
                Err(error) => {
                    // The work's own error says more than that of its rollback, which happens by itself.
                    let _ = tx.rollback().await;
                    Err(TransactionError::Work(error))
                }
            }
        }
    }
}

impl<S: Transactional> Tx<S> {
    /// Says what was changed: everything cached of it is flushed after the commit.
    ///
    /// What the request keeps of it is dropped now, and again after the flush.
    pub fn changed<T: Entity>(&mut self, change: Change<'_, T>) {
        self.said = true;
        if let Some(lock) = change.lock
            && self.locks.binary_search(&lock).is_err()
        {
            let error = self.misused(&format!(
                "the image before of a changed `{}` was locked in another transaction, or in a savepoint that was undone; \
                 lock the row again",
                T::NAME
            ));
            self.refused.get_or_insert(error);
        }
        if change.fields.is_empty() {
            return;
        }
        self.entities.insert(T::NAME);
        let writes = &self.cache.shared.writes;
        let (scope, own) = (self.cache.scope(), &mut self.own);
        let generations = &self.cache.shared.generations;
        let images = match self.cache.shared.without(Mechanism::BothImages) {
            true => Images::After,
            false => Images::Both,
        };
        let panicked = self.asking.replace(T::NAME);
        let touched = (writes.plans).touch(
            &change,
            images,
            &mut self.stale,
            |accessor, touched: Touching<'_>| {
                if let Some(scope) = scope.filter(|_| accessor.tier() == TierKind::Request) {
                    own.push(match touched {
                        Touching::Keys(keys) => {
                            Own::drop_from(scope, generations, accessor.name(), keys.clone())
                        }
                        Touching::Unknown => Own::end(scope, generations, accessor.name()),
                    });
                }
            },
        );
        self.asking = panicked;
        if let Err(error) = touched {
            self.refused.get_or_insert(error);
        }
    }

    /// Says what was changed in many entities.
    pub fn changed_many<'c, T: Entity>(
        &mut self,
        changes: impl IntoIterator<Item = Change<'c, T>>,
    ) {
        self.said = true;
        for change in changes {
            self.changed(change);
        }
    }

    /// Says that what was written is cached nowhere: for [`strict_writes`](crate::CacheBuilder::strict_writes), which
    /// takes a guard that wrote and said nothing for a mistake.
    pub fn unchanged(&mut self) {
        self.said = true;
    }

    /// Reads a row and locks it until the end of the transaction: the image before a change. `None` if there is none.
    pub async fn lock<T: LockRow<S>>(&mut self, id: &T::Id) -> Result<Option<Before<T>>, S::Error> {
        let row = T::lock(self, id).await?;
        Ok(row.map(|image| {
            let lock = next_lock();
            self.locks.push(lock);
            Before::new(image, lock)
        }))
    }

    /// Runs this up to a savepoint, which is undone if it answers an error.
    ///
    /// What it said was changed is flushed even so: a flush too many harms nobody.
    ///
    /// # Errors
    ///
    /// Those of the work, and the database's.
    pub async fn savepoint<T, W: From<S::Error>>(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, W>,
    ) -> Result<T, W> {
        let (depth, locked) = (self.depth + 1, self.locks.len());
        S::savepoint(self.inner(), Savepoint::Set, depth).await?;
        // Dropped half-way, the work stays undone or done by half: the depth tells the commit.
        self.depth = depth;
        let answer = work(self).await;
        if answer.is_err() {
            S::savepoint(self.inner(), Savepoint::RollBack, depth).await?;
            self.locks.truncate(locked);
        }
        S::savepoint(self.inner(), Savepoint::Release, depth).await?;
        self.depth = depth - 1;
        answer
    }

    /// Undoes everything.
    ///
    /// # Errors
    ///
    /// The database's; it rolls back by itself then.
    pub async fn rollback(mut self) -> Result<(), S::Error> {
        self.forget();
        match self.inner.take() {
            Some(inner) => S::rollback(inner).await,
            None => Ok(()),
        }
    }

    /// Commits, flushes, and answers once the flush is confirmed or it is known that it can't be at once.
    ///
    /// A commit, one small insert before it where the source has an [outbox](crate::Source::outbox), and one exchange per server
    /// and live generation. Commit and flush go on if the caller is dropped.
    ///
    /// # Errors
    ///
    /// That nothing was committed, or that it isn't known: see [`CommitError`].
    pub async fn commit(mut self) -> Result<Committed, CommitError<S::Error>> {
        let shared = Arc::clone(&self.cache.shared);
        // All of it, what is still before the commit too: a client that hangs up has forgotten nothing.
        let commit = async move { self.prepare().await?.run().await };
        let task = shared.tasks.track_future(commit);
        shared
            .rt
            .spawn(task)
            .await
            .unwrap_or(Err(CommitError::Interrupted))
    }

    /// Commits, and waits until everybody sees the write, at most this long.
    ///
    /// # Errors
    ///
    /// Those of [`Tx::commit`]. That it isn't fresh in time is no error: the answer says it.
    pub async fn commit_fresh(self, limit: Duration) -> Result<Committed, CommitError<S::Error>> {
        let rt = self.cache.shared.rt;
        let mut committed = self.commit().await?;
        if let Flush::Pending(pending) = &committed.flush {
            let began = rt.now();
            if pending.delivered_within(&rt, limit).await {
                committed.flushing += rt.now() - began;
                committed.flush = Flush::Fresh;
            }
        }
        Ok(committed)
    }

    /// Everything that can still be refused.
    async fn prepare(&mut self) -> Result<Commit<S>, CommitError<S::Error>> {
        let shared = Arc::clone(&self.cache.shared);
        let (rt, limit) = (shared.rt, shared.writes.commit_timeout);
        let prepared = rt.timeout(limit, async {
            self.check().await?;
            self.push().await
        });
        let prepared = prepared.await.unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::Timeout,
                format!("the database didn't answer within {limit:?}, before the commit; nothing was committed"),
            ))
        });
        match (prepared, self.inner.take()) {
            (Ok(ids), Some(inner)) => Ok(Commit {
                inner,
                cache: self.cache.clone(),
                stale: std::mem::take(&mut self.stale),
                own: std::mem::take(&mut self.own),
                ids,
            }),
            (Err(error), inner) => {
                self.forget();
                if let Some(inner) = inner {
                    let _ = rt.timeout(limit, S::rollback(inner)).await;
                }
                shared.writes.counters.refused.add(1);
                Err(CommitError::Refused(error))
            }
            (Ok(_), None) => Err(CommitError::Interrupted),
        }
    }

    async fn check(&mut self) -> Result<()> {
        if let Some(error) = self.refused.take() {
            return Err(error);
        }
        if let Some(entity) = self.asking {
            return Err(self.misused(&format!(
                "a flush plan of `{entity}` panicked, so that not all of the keys are known that it makes stale"
            )));
        }
        if self.depth > 0 {
            return Err(self.misused(
                "a savepoint's future was dropped before its end, so that half of its work may be done",
            ));
        }
        if self.cache.shared.writes.strict && !self.said {
            let written = match &mut self.inner {
                Some(inner) => S::has_written(inner).await,
                None => Ok(None),
            };
            if let Ok(Some(true)) = written {
                return Err(self.misused(
                    "it has written, and nothing says what changed; call `changed`, or `unchanged` if nothing caches it",
                ));
            }
        }
        self.stale.deduplicate();
        // What makes nothing stale here may do so for those who are linked with more, and for other versions.
        if self.entities.is_empty() {
            return Ok(());
        }
        // The register isn't asked for it, whose answer would wait for a connection like this one's: what a generation lists
        // never changes, and the outbox refuses one that is gone.
        let shared = &self.cache.shared;
        self.member = shared.generations.member();
        let entities = self.entities.iter().copied();
        let objection = self
            .member
            .as_ref()
            .and_then(|member| member.objection(entities, shared.rt));
        objection.map_or(Ok(()), Err)
    }

    fn misused(&self, problem: &str) -> Error {
        Error::new(
            ErrorKind::Config,
            format!(
                "the transaction begun at {} can't be committed: {problem}",
                self.place
            ),
        )
    }

    /// Puts what is stale into the outbox, in this transaction. A row of nothing holds the generation as well, so that a
    /// writer who sleeps now isn't overtaken by a version to which it is something.
    async fn push(&mut self) -> Result<Vec<RowId>> {
        let shared = &self.cache.shared;
        let member = self.member.take();
        let (Some(outbox), Some(generation)) = (
            &shared.writes.outbox,
            member.as_ref().and_then(|member| member.id.as_deref()),
        ) else {
            return Ok(Vec::new());
        };
        if self.entities.is_empty() || shared.without(Mechanism::Outbox) {
            return Ok(Vec::new());
        }
        let rows = self.stale.rows();
        let (outbox, conn) = (Arc::clone(outbox), self.inner());
        outbox.push(conn, generation, &rows, GRACE).await
    }

    /// Leaves nothing to be warned about.
    fn forget(&mut self) {
        self.stale = Stale::default();
        for own in self.own.drain(..) {
            own.leave();
        }
    }

    fn inner(&mut self) -> &mut S::Tx {
        self.inner
            .as_mut()
            .expect("a guard is consumed by what ends its transaction")
    }
}

/// A transaction that was checked, on its way.
struct Commit<S: Transactional> {
    inner: S::Tx,
    cache: Cache<S>,
    stale: Stale,
    own: Vec<Own>,
    ids: Vec<RowId>,
}

impl<S: Transactional> Commit<S> {
    async fn run(self) -> Result<Committed, CommitError<S::Error>> {
        let Self {
            inner,
            cache,
            mut stale,
            own,
            ids,
        } = self;
        let shared: &Arc<Shared<S>> = &cache.shared;
        let counters = &shared.writes.counters;
        let early = shared.without(Mechanism::FlushAfterCommit);
        if early {
            let _ = Writes::flush(shared, stale.copy(), Vec::new(), cache.tally()).await;
        }
        if shared.without(Mechanism::QueryAfterCommit) {
            ask_queries(shared, &mut stale).await;
        }
        let limit = shared.writes.commit_timeout;
        let answer = shared.rt.timeout(limit, S::commit(inner)).await;
        let unknown = match answer {
            Some(Ok(())) => None,
            Some(Err(CommitFailure::Failed(error))) => {
                counters.failed.add(1);
                own.into_iter().for_each(Own::leave);
                return Err(CommitError::Failed(error));
            }
            Some(Err(CommitFailure::Unknown(error))) => Some(CommitError::Unknown(Some(error))),
            None => Some(CommitError::Unknown(None)),
        };
        if let Some(unknown) = unknown {
            counters.unknown.add(1);
            // Its rows in the outbox may appear yet, so they are left to the relay.
            Writes::flush(shared, stale, Vec::new(), cache.tally()).await;
            Own::settle(own, shared);
            return Err(unknown);
        }
        counters.commits.add(1);
        let began = shared.rt.now();
        let flush = match early {
            true => Flush::Fresh,
            false => Writes::flush(shared, stale, ids, cache.tally()).await,
        };
        Own::settle(own, shared);
        Ok(Committed {
            flush,
            flushing: shared.rt.now() - began,
        })
    }
}

impl<S: Transactional> Deref for Tx<S> {
    type Target = S::Conn;

    fn deref(&self) -> &S::Conn {
        self.inner
            .as_ref()
            .expect("a guard is consumed by what ends its transaction")
    }
}

impl<S: Transactional> DerefMut for Tx<S> {
    fn deref_mut(&mut self) -> &mut S::Conn {
        self.inner()
    }
}

impl<'a, S: Transactional> Reader<'a, S> for &'a mut Tx<S> {
    fn route(self) -> Route<'a, S> {
        Route::Direct(&mut **self)
    }
}

impl<'a, S: Transactional> ScopedReader<'a, S> for &'a mut Tx<S> {}

impl<S: Transactional> Drop for Tx<S> {
    fn drop(&mut self) {
        self.cache.shared.writes.closed(self.place);
        if self.inner.is_none() {
            return;
        }
        let had_changes = !self.stale.is_empty();
        self.forget();
        if !had_changes {
            return;
        }
        self.cache.shared.writes.counters.dropped.add(1);
        let place = self.place;
        tracing::warn!(
            begun_at = %place,
            "a transaction with changes was dropped, so that it was rolled back; commit it, or say `rollback`"
        );
        if self.cache.shared.writes.strict && !std::thread::panicking() {
            panic!(
                "the transaction begun at {place} was dropped with changes and neither committed nor rolled back"
            );
        }
    }
}

impl<S: Transactional> fmt::Debug for Tx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("begun_at", &format_args!("{}", self.place))
            .field("entities", &self.entities)
            .finish_non_exhaustive()
    }
}
