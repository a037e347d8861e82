//! A backend around a backend, which measures how long each kind of call takes and what fails.
//!
//! A server's numbers say how much it is asked, an accessor's how long its reads take, loads included. This says what
//! lies between: how long the store took, and whether it is the store or the source that is slow. It changes nothing
//! else: what is asked is passed on as it comes, and answers are handed over as they come.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::{Instrument as _, Span};

use crate::contract::{
    Backend, BackendStats, Fill, FillOutcome, Found, GetOptions, Key, Keys, Lease, Pool, Result,
    ServerCheck, Set, WriteOptions,
};
use crate::rt::{Instant, Rt};
use crate::stats::CallCounters;

/// Measures the calls of a backend, whichever it is.
///
/// [`CacheBuilder::wrap`](crate::CacheBuilder::wrap) puts it around what a configuration opens:
///
/// ```
/// # use std::sync::Arc;
/// # use larder_core::{Backend, Cache, Observed, Source};
/// # async fn build<S: Source>(pool: S, memcached: Arc<dyn Backend>) -> larder_core::Result<()> {
/// let cache = Cache::builder(pool).backend(memcached).wrap(Observed::new).build().await?;
/// for call in cache.stats().backend.calls {
///     println!("{}: half of them within {} us, {} timed out", call.command, call.latency.p50_us, call.timed_out);
/// }
/// # Ok(()) }
/// ```
///
/// A call costs two looks at the clock more. With the feature `metrics` the numbers are also emitted, as
/// `docs/metrics.md` lists them; and each call is a `tracing` span at debug level, `larder.request{command, keys}`, below
/// that of the read or load it belongs to.
pub struct Observed {
    inner: Arc<dyn Backend>,
    rt: Rt,
    gets: CallCounters,
    fills: CallCounters,
    releases: CallCounters,
    deletes: CallCounters,
    sets: CallCounters,
}

impl Observed {
    /// Measures this backend's calls from now on.
    pub fn new(inner: Arc<dyn Backend>, rt: Rt) -> Self {
        let name = inner.to_string();
        let store = name.split_whitespace().next().unwrap_or("unnamed");
        let counters = |command| CallCounters::new(store, command);
        Self {
            rt,
            gets: counters("get"),
            fills: counters("fill"),
            releases: counters("release"),
            deletes: counters("delete"),
            sets: counters("set"),
            inner,
        }
    }

    fn begin<'a>(&self, counters: &'a CallCounters, keys: &Keys) -> Call<'a> {
        Call {
            counters,
            rt: self.rt,
            // An empty batch asks nobody.
            since: (!keys.is_empty()).then(|| self.rt.now()),
            span: tracing::debug_span!(
                "larder.request",
                command = counters.command(),
                keys = keys.len()
            ),
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "observed {}", self.inner)
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observed").field(&self.inner).finish()
    }
}

// A method that the trait gains with a default would otherwise not be passed on.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Observed {
    async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
        let call = self.begin(&self.gets, keys);
        let found = &mut |position, answer| {
            call.saw(&answer);
            found(position, answer);
        };
        let asked = self.inner.get_each(keys, options, found);
        asked.instrument(call.span.clone()).await;
        call.end();
    }

    async fn fill_many(
        &self,
        keys: &Keys,
        fills: Vec<Fill>,
        options: &WriteOptions,
    ) -> Vec<Result<FillOutcome>> {
        let call = self.begin(&self.fills, keys);
        call.over(self.inner.fill_many(keys, fills, options)).await
    }

    async fn release_many(
        &self,
        keys: &Keys,
        leases: Vec<Lease>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let call = self.begin(&self.releases, keys);
        call.over(self.inner.release_many(keys, leases, options))
            .await
    }

    async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
        let call = self.begin(&self.deletes, keys);
        call.over(self.inner.delete_many(keys, options)).await
    }

    async fn set_immutable_many(
        &self,
        keys: &Keys,
        sets: Vec<Set>,
        options: &WriteOptions,
    ) -> Vec<Result<()>> {
        let call = self.begin(&self.sets, keys);
        call.over(self.inner.set_immutable_many(keys, sets, options))
            .await
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

    /// The backend's own, and its calls.
    fn stats(&self) -> BackendStats {
        let mut stats = self.inner.stats();
        let kinds = [
            &self.gets,
            &self.fills,
            &self.releases,
            &self.deletes,
            &self.sets,
        ];
        stats.calls.extend(kinds.map(CallCounters::snapshot));
        stats
    }
}

/// A call under way.
///
/// Dropped before its end it was left by its caller: slow calls are those that are left, so they are measured too.
struct Call<'a> {
    counters: &'a CallCounters,
    rt: Rt,
    /// `None` once it is measured.
    since: Option<Instant>,
    span: Span,
}

impl Call<'_> {
    async fn over<T>(self, asked: impl Future<Output = Vec<Result<T>>> + Send) -> Vec<Result<T>> {
        let answers = asked.instrument(self.span.clone()).await;
        for answer in &answers {
            self.saw(answer);
        }
        self.end();
        answers
    }

    fn saw<T>(&self, answer: &Result<T>) {
        if let Err(error) = answer {
            self.counters.failed(error);
        }
    }

    fn end(mut self) {
        self.measure();
    }

    fn measure(&mut self) -> bool {
        let since = self.since.take();
        if let Some(since) = since {
            self.counters
                .took(self.rt.now().saturating_duration_since(since));
        }
        since.is_some()
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.measure() {
            self.counters.abandoned();
        }
    }
}
