//! Where a cache tells the kit what it does: a listener for reads and loads, and a wrapper around the store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendStats, CacheBuilder, Event, Fill, FillOutcome, Found, GetOptions, Key, Keys,
    Lease, Listener, Lookup, Pool, Result, Rt, ServerCheck, Set, Source, Trips, WriteOptions,
};

use super::Op;
use super::record::{Asked, Record};
use super::scope::{self, Mark};
use crate::audit::{Book, texts};

/// Has a cache tell the kit what it does, so that [`captured`](crate::captured), [`empty_cache`](crate::empty_cache) and
/// [`assert_flushes_complete`](crate::assert_flushes_complete) work on it.
///
/// A [`TestCache`](crate::TestCache) does; this is for tests of a service that builds its cache itself.
///
/// ```
/// # use larder_core::{Cache, Rt};
/// # use larder_testing::doc::Db;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), larder_core::Error> {
/// # use std::sync::Arc; use larder_backends::Memory;
/// # let memory = Arc::new(Memory::new(Default::default(), Rt::new())?);
/// use larder_testing::Recorded as _;
///
/// let builder = Cache::builder(Db::new()).backend(memory);
/// let cache = builder.recorded().build().await?;
/// # Ok(()) }
/// ```
pub trait Recorded: Sized {
    /// The same cache, which tells the kit what it does. Call it after all that wraps the store.
    #[must_use]
    fn recorded(self) -> Self;
}

impl<S: Source> Recorded for CacheBuilder<S> {
    fn recorded(self) -> Self {
        self.listener(Arc::new(Recorder)).wrap(Recording::new)
    }
}

/// Tells whoever captures what a cache does.
#[derive(Debug)]
struct Recorder;

impl<S: Source> Listener<S> for Recorder {
    fn hear(&self, event: &Event<'_, S>) {
        scope::each(|mark| match mark {
            Mark::Capture(record) => tell(record, event),
            Mark::Audit(audit) => {
                let book: Option<&Book<S>> = audit.any().downcast_ref();
                if let (Some(book), Event::Read(read)) = (book, event) {
                    book.note(read.keys_again());
                }
            }
            Mark::Empty => {}
        });
    }
}

fn tell<S: Source>(record: &Record, event: &Event<'_, S>) {
    match event {
        Event::Read(read) => record.add(Asked::Read {
            accessor: read.accessor,
            is_single: read.is_single,
            bulk: read.bulk,
            keys: read.keys,
            tier_hits: read.tier_hits,
            hits: read.hits,
            absent: read.absent,
            misses: read.misses,
            shared: read.shared,
        }),
        Event::LoadStarted { .. } => record.begin(),
        &Event::Loaded {
            accessor,
            keys,
            found,
            ..
        } => record.add(Asked::Load {
            accessor,
            keys,
            found,
        }),
        &Event::LoadSettled { accessor, filled } => {
            if filled > 0 {
                record.add(Asked::Filled {
                    accessor,
                    entries: filled,
                });
            }
            record.end();
        }
        Event::Flushed { keys, failed } => record.add(Asked::Flushed {
            keys: keys.iter().map(|key| key.as_str().to_owned()).collect(),
            is_confirmed: failed.is_none(),
        }),
        _ => {}
    }
}

/// A backend around a backend, which tells whoever captures what it is asked; it changes nothing else, but for what is done
/// in [`empty_cache`](crate::empty_cache).
///
/// [`Recorded`] puts it around the store of a cache, and adds the listener that tells of reads and loads.
pub struct Recording {
    inner: Arc<dyn Backend>,
    name: Arc<str>,
    rt: Rt,
}

impl Recording {
    /// Tells of this backend's calls.
    pub fn new(inner: Arc<dyn Backend>, rt: Rt) -> Self {
        Self {
            name: inner.to_string().into(),
            inner,
            rt,
        }
    }

    fn begin<'c>(&self, op: Op, keys: &'c Keys) -> Call<'c> {
        let records = match keys.is_empty() {
            // An empty batch asks nobody.
            true => Vec::new(),
            false => scope::records(),
        };
        records.iter().for_each(|record| record.begin());
        Call {
            backend: Arc::clone(&self.name),
            op,
            keys,
            records,
            counted: Arc::default(),
            done: 0,
            failed: 0,
        }
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recording").field(&self.inner).finish()
    }
}

// A method that the trait gains with a default would otherwise not be passed on.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Recording {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        let is_empty = scope::is_empty();
        let mut call = self.begin(Op::Get, keys);
        let inward = options.clone().trips(call.trips(&options.trips));
        let found = &mut |position: usize, mut answer: Result<Lookup>| {
            if is_empty {
                answer = answer.map(|lookup| self.forget(lookup, position, options));
            }
            call.saw(&answer, |lookup| matches!(lookup, Lookup::Hit { .. }));
            found(position, answer);
        };
        self.inner.get_each(keys, &inward, found).await;
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let mut call = self.begin(Op::Fill, keys);
        let inward = WriteOptions::trips(call.trips(&options.trips));
        let answers = self.inner.fill_many(keys, fills, &inward).await;
        call.saw_all(&answers, |outcome| *outcome == FillOutcome::Stored);
        answers
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let mut call = self.begin(Op::Release, keys);
        let inward = WriteOptions::trips(call.trips(&options.trips));
        let answers = self.inner.release_many(keys, leases, &inward).await;
        call.saw_all(&answers, |()| true);
        answers
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let mut call = self.begin(Op::Delete, keys);
        let inward = WriteOptions::trips(call.trips(&options.trips));
        let answers = self.inner.delete_many(keys, &inward).await;
        call.saw_all(&answers, |()| true);
        drop(call);
        for audit in scope::audits() {
            // Elsewhere, since it is no part of the work.
            let reader = self.rt.spawn_apart(audit.read(texts(keys)));
            let _ = reader.await;
        }
        answers
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let mut call = self.begin(Op::Set, keys);
        let inward = WriteOptions::trips(call.trips(&options.trips));
        let answers = self.inner.set_immutable_many(keys, sets, &inward).await;
        call.saw_all(&answers, |()| true);
        answers
    }

    async fn start(&self) -> Result<()> {
        self.inner.start().await
    }

    async fn check(&self) -> Vec<ServerCheck> {
        self.inner.check().await
    }

    async fn close(&self, deadline: Duration) {
        self.inner.close(deadline).await;
    }

    fn server_of(&self, key: Key<'_>) -> usize {
        self.inner.server_of(key)
    }

    fn pool(&self) -> Pool {
        self.inner.pool()
    }

    fn stats(&self) -> BackendStats {
        self.inner.stats()
    }
}

impl Recording {
    /// A hit as it looks to one who is to find nothing: a miss, whose lease replaces what is there.
    fn forget(&self, lookup: Lookup, position: usize, options: &GetOptions) -> Lookup {
        match lookup {
            Lookup::Hit { token, .. } => {
                let is_leased = options.lease_of(position).is_some();
                Lookup::Miss {
                    lease: is_leased.then(|| Lease::new(token, self.rt.wall())),
                }
            }
            other => other,
        }
    }
}

/// A call under way; it is told when it is over, or when its caller leaves.
struct Call<'c> {
    backend: Arc<str>,
    op: Op,
    keys: &'c Keys,
    records: Vec<Arc<Record>>,
    /// The trips of this call.
    counted: Arc<AtomicU64>,
    done: usize,
    failed: usize,
}

impl Call<'_> {
    /// Where the call's trips are counted: here, and where its caller counts.
    fn trips(&self, caller: &Trips) -> Trips {
        caller.clone().and(Arc::clone(&self.counted))
    }

    fn saw<T>(&mut self, answer: &Result<T>, is_done: impl Fn(&T) -> bool) {
        match answer {
            Ok(answer) => self.done += usize::from(is_done(answer)),
            Err(_) => self.failed += 1,
        }
    }

    fn saw_all<T>(&mut self, answers: &[Result<T>], is_done: impl Fn(&T) -> bool) {
        answers.iter().for_each(|answer| self.saw(answer, &is_done));
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let trips = self.counted.load(Ordering::Relaxed);
        if self.records.is_empty() {
            return;
        }
        let mut accessors: Vec<String> = Vec::new();
        for key in self.keys.iter() {
            let logical = key.without_prefix();
            let accessor = logical.split_once(':').map_or(logical, |(name, _)| name);
            if !accessors.iter().any(|known| known == accessor) {
                accessors.push(accessor.to_owned());
            }
        }
        let asked = Asked::Call {
            backend: Arc::clone(&self.backend),
            op: self.op,
            accessors,
            keys: self.keys.len(),
            trips,
            done: self.done,
            failed: self.failed,
        };
        for record in &self.records {
            record.add(asked.clone());
            record.end();
        }
    }
}
