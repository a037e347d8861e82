//! The keys that an audit has read, and what a reader at the worst moment was given.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{AnyKey, Cache, Difference, Keys, Seen, Source};

use crate::capture::scope::Mark;
use crate::captured;

/// How long a reader waits for a connection that the writer may have.
const PATIENCE: Duration = Duration::from_secs(1);

/// The keys of one source, and their values.
pub(crate) struct Book<S: Source> {
    cache: Cache<S>,
    state: Mutex<State<S>>,
}

struct State<S: Source> {
    keys: HashMap<String, Arc<dyn AnyKey<S>>>,
    /// What the source had of them before the write.
    before: HashMap<String, Seen>,
    /// Those whose reader at the worst moment was given what was there before, or nothing in time.
    early: HashSet<String>,
}

/// A book, to whoever deletes entries without knowing their source.
pub(crate) trait Deleted: Send + Sync {
    /// Reads those of these keys that are known, as somebody does who comes right after the delete.
    fn read(self: Arc<Self>, keys: Vec<String>) -> Pin<Box<dyn Future<Output = ()> + Send>>;
    /// The `Book<S>`.
    fn any(&self) -> &(dyn std::any::Any + Send + Sync);
}

/// A book, to an audit that doesn't know its source.
#[async_trait]
pub(super) trait Pages: Send + Sync {
    /// The mark of the work that is listened to.
    fn mark(&self) -> Mark;
    /// The data sets whose keys were read.
    fn accessors(&self) -> HashSet<&'static str>;
    /// Remembers what the source has; answers what is wrong already.
    async fn look(&self) -> Vec<Trouble>;
    /// Compares what is cached with what the source has; answers what is wrong, and whether anything changed.
    async fn compare(&self) -> (Vec<Trouble>, bool);
}

/// What is wrong with one key.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) accessor: &'static str,
    pub(super) key: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Stale(Vec<Difference>),
    /// The same, and a reader right after its delete was given the old value.
    FlushedEarly(Vec<Difference>),
    Uncached,
    Unreadable(String),
}

impl<S: Source> Book<S> {
    pub(super) fn new(cache: &Cache<S>) -> Arc<Self> {
        Arc::new(Self {
            cache: cache.clone(),
            state: Mutex::new(State {
                keys: HashMap::new(),
                before: HashMap::new(),
                early: HashSet::new(),
            }),
        })
    }

    /// These keys were read.
    pub(crate) fn note(&self, keys: Vec<Box<dyn AnyKey<S>>>) {
        let mut state = self.lock();
        for key in keys {
            let text = key.key().to_owned();
            state.keys.entry(text).or_insert_with(|| key.into());
        }
    }

    /// The keys, in order.
    fn keys(&self) -> Vec<Arc<dyn AnyKey<S>>> {
        let mut keys: Vec<_> = self.lock().keys.values().map(Arc::clone).collect();
        keys.sort_by(|one, other| one.key().cmp(other.key()));
        keys
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Deleted for Book<S> {
    fn read(self: Arc<Self>, keys: Vec<String>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            for text in keys {
                let known = {
                    let state = self.lock();
                    let key = state.keys.get(&text).map(Arc::clone);
                    key.zip(state.before.get(&text).cloned())
                };
                let Some((key, before)) = known else {
                    continue;
                };
                let cached = tokio::time::timeout(PATIENCE, key.cached(&self.cache)).await;
                let is_early = match cached {
                    Ok(Ok(seen)) => seen == before,
                    // The only connection is the writer's, who hasn't committed.
                    Err(_) => true,
                    Ok(Err(_)) => false,
                };
                if is_early {
                    self.lock().early.insert(text);
                }
            }
        })
    }

    fn any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }
}

/// Handle of a book that a mark can share.
pub(super) struct Shared<S: Source>(pub(super) Arc<Book<S>>);

#[async_trait]
impl<S: Source> Pages for Shared<S> {
    fn mark(&self) -> Mark {
        Mark::Audit(Arc::clone(&self.0) as _)
    }

    fn accessors(&self) -> HashSet<&'static str> {
        let state = self.0.lock();
        state.keys.values().map(|key| key.accessor()).collect()
    }

    async fn look(&self) -> Vec<Trouble> {
        self.0.lock().before.clear();
        self.0.lock().early.clear();
        let mut troubles = Vec::new();
        for key in self.0.keys() {
            // It was filled by now, so that this finds it, unless it can't be.
            let (cached, captured) = captured(key.cached(&self.0.cache)).await;
            let is_missed = captured.accessor(key.accessor()).misses > 0;
            let what = match (cached, key.fresh(&self.0.cache).await) {
                (Ok(cached), Ok(fresh)) => {
                    let differences = cached.differences(&fresh);
                    let is_absent = fresh.is_absent();
                    let text = key.key().to_owned();
                    self.0.lock().before.insert(text, fresh);
                    match is_missed && !is_absent {
                        true => Some(What::Uncached),
                        false => (!differences.is_empty()).then_some(What::Stale(differences)),
                    }
                }
                (Err(error), _) | (_, Err(error)) => Some(What::Unreadable(error.to_string())),
            };
            troubles.extend(what.map(|what| Trouble {
                accessor: key.accessor(),
                key: key.key().to_owned(),
                what,
            }));
        }
        troubles
    }

    async fn compare(&self) -> (Vec<Trouble>, bool) {
        let mut troubles = Vec::new();
        let mut has_changed = false;
        for key in self.0.keys() {
            let cached = key.cached(&self.0.cache).await;
            let what = match (cached, key.fresh(&self.0.cache).await) {
                (Ok(cached), Ok(fresh)) => {
                    let state = self.0.lock();
                    has_changed |= state.before.get(key.key()) != Some(&fresh);
                    let differences = cached.differences(&fresh);
                    match (differences.is_empty(), state.early.contains(key.key())) {
                        (true, _) => None,
                        (false, false) => Some(What::Stale(differences)),
                        (false, true) => Some(What::FlushedEarly(differences)),
                    }
                }
                (Err(error), _) | (_, Err(error)) => Some(What::Unreadable(error.to_string())),
            };
            troubles.extend(what.map(|what| Trouble {
                accessor: key.accessor(),
                key: key.key().to_owned(),
                what,
            }));
        }
        (troubles, has_changed)
    }
}

/// The keys of a delete, without prefix.
pub(crate) fn texts(keys: &Keys) -> Vec<String> {
    let texts = keys.iter().map(|key| key.without_prefix().to_owned());
    texts.collect()
}
