//! A store whose answers a test can hold back or turn into errors: execution and reply as two steps.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::{
    Backend, BackendExt as _, BackendStats, Error, ErrorKind, Fill, FillOutcome, Found, GetOptions,
    Key, Keys, Lease, Pool, Result, ServerCheck, Set, WriteOptions,
};
use tokio::sync::Semaphore;

/// Wraps a backend.
pub(crate) struct Gate {
    inner: Arc<dyn Backend>,
    down: AtomicBool,
    deaf: AtomicBool,
    panics: AtomicBool,
    gets: Barrier,
    delivered: Barrier,
    replies: Barrier,
    arriving: Barrier,
    deletes: Barrier,
    closes: Barrier,
    checked: AtomicU32,
    dawdle: AtomicU32,
    after_fill: Mutex<Option<BoxFuture>>,
}

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where calls wait, if it is closed.
#[derive(Debug)]
pub(crate) struct Barrier {
    closed: Mutex<Option<Arc<Semaphore>>>,
    arrived: Semaphore,
}

impl Barrier {
    pub(crate) fn new() -> Self {
        Self {
            closed: Mutex::new(None),
            arrived: Semaphore::new(0),
        }
    }

    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = Some(Arc::new(Semaphore::new(0)));
    }

    pub(crate) fn open(&self) {
        if let Some(closed) = self.closed.lock().unwrap().take() {
            closed.close();
        }
    }

    /// Waits until one more call waits here.
    pub(crate) async fn arrived(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    pub(crate) async fn pass(&self) {
        let closed = self.closed.lock().unwrap().clone();
        if let Some(closed) = closed {
            self.arrived.add_permits(1);
            let _closed = closed.acquire().await;
        }
    }
}

impl Gate {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            down: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            gets: Barrier::new(),
            delivered: Barrier::new(),
            replies: Barrier::new(),
            arriving: Barrier::new(),
            deletes: Barrier::new(),
            closes: Barrier::new(),
            checked: AtomicU32::new(0),
            dawdle: AtomicU32::new(0),
            after_fill: Mutex::default(),
        })
    }

    /// Every call fails from now on, or works again.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// From now on deletes aren't executed, and time out, or they are again.
    pub(crate) fn set_deaf_to_deletes(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Relaxed);
    }

    /// From now on deletes panic, or they don't.
    pub(crate) fn set_panicking_at_deletes(&self, panics: bool) {
        self.panics.store(panics, Ordering::Relaxed);
    }

    /// Look-ups that were executed wait here with their answers.
    pub(crate) fn answered_gets(&self) -> &Barrier {
        &self.gets
    }

    /// Look-ups that have handed all answers over wait here before they end.
    pub(crate) fn delivered_gets(&self) -> &Barrier {
        &self.delivered
    }

    /// Fills that were executed wait here with their answers.
    pub(crate) fn answered_fills(&self) -> &Barrier {
        &self.replies
    }

    /// Deletes wait here before they are executed.
    pub(crate) fn arriving_deletes(&self) -> &Barrier {
        &self.arriving
    }

    /// Deletes that were executed wait here with their answers.
    pub(crate) fn answered_deletes(&self) -> &Barrier {
        &self.deletes
    }

    /// Its end waits here, while it still answers.
    pub(crate) fn closes(&self) -> &Barrier {
        &self.closes
    }

    /// How often it was asked for its state.
    pub(crate) fn checked(&self) -> u32 {
        self.checked.load(Ordering::Relaxed)
    }

    /// From now on every request and every answer is on its way for up to this many turns of the scheduler.
    pub(crate) fn dawdle(&self, turns: u32) {
        self.dawdle.store(turns, Ordering::Relaxed);
    }

    /// What happens once, after the next fill was executed and before it returns for the first time. It must not wait.
    pub(crate) fn after_fill(&self, hook: impl Future<Output = ()> + Send + 'static) {
        *self.after_fill.lock().unwrap() = Some(Box::pin(hook));
    }

    async fn linger(&self) {
        for _ in 0..fastrand::u32(0..=self.dawdle.load(Ordering::Relaxed)) {
            tokio::task::yield_now().await;
        }
    }

    fn trouble<T>(&self, keys: &Keys) -> Option<Vec<Result<T>>> {
        let error = Error::new(ErrorKind::Unavailable, "the gate is shut");
        let down = self.down.load(Ordering::Relaxed);
        down.then(|| keys.iter().map(|_| Err(error.clone())).collect())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({:?})", self.inner)
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate ({})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Gate {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        self.linger().await;
        let answers = match self.trouble(keys) {
            Some(trouble) => trouble,
            None => self.inner.get_many(keys, options).await,
        };
        self.linger().await;
        self.gets.pass().await;
        for (position, answer) in answers.into_iter().enumerate() {
            found(position, answer);
        }
        self.delivered.pass().await;
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        if let Some(trouble) = self.trouble(keys) {
            return trouble;
        }
        self.linger().await;
        let answers = self.inner.fill_many(keys, fills, options).await;
        self.linger().await;
        let hook = self.after_fill.lock().unwrap().take();
        if let Some(hook) = hook {
            hook.await;
        }
        self.replies.pass().await;
        answers
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        self.linger().await;
        match self.trouble(keys) {
            Some(trouble) => trouble,
            None => self.inner.release_many(keys, leases, options).await,
        }
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        self.linger().await;
        self.arriving.pass().await;
        assert!(!self.panics.load(Ordering::Relaxed), "a delete panics");
        let timeout = Error::new(ErrorKind::Timeout, "no answer to a delete");
        let answers = match self.trouble(keys) {
            Some(trouble) => trouble,
            None if self.deaf.load(Ordering::Relaxed) => {
                keys.iter().map(|_| Err(timeout.clone())).collect()
            }
            None => self.inner.delete_many(keys, options).await,
        };
        self.linger().await;
        self.deletes.pass().await;
        answers
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        match self.trouble(keys) {
            Some(trouble) => trouble,
            None => self.inner.set_immutable_many(keys, sets, options).await,
        }
    }

    async fn start(&self) -> Result<()> {
        self.inner.start().await
    }

    async fn check(&self) -> Vec<ServerCheck> {
        self.checked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.inner.check().await;
        if self.down.load(Ordering::Relaxed) {
            for check in &mut answers {
                check.answer = Err(Error::new(ErrorKind::Unavailable, "the gate is shut"));
            }
        }
        answers
    }

    async fn close(&self, deadline: Duration) {
        self.closes.pass().await;
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
