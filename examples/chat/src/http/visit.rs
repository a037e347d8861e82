//! What one request costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use larder::{Cache, Reader, Route, Tally};

use super::ApiError;
use crate::App;
use crate::db::Db;
use crate::writes::Written;

/// One request: the reader that its accessors are called with, and the clocks that its answer shows.
#[derive(Clone, Debug)]
pub struct Visit {
    cache: Cache<Db>,
    tally: Arc<Tally>,
    /// Nanoseconds that queries of the request's own took.
    queried: Arc<AtomicU64>,
    /// And its flushes.
    flushed: Arc<AtomicU64>,
}

impl Visit {
    fn begin(app: &App) -> Self {
        let (cache, tally) = app.cache().tallied();
        Self {
            cache,
            tally,
            queried: Arc::default(),
            flushed: Arc::default(),
        }
    }

    /// The cache handle whose trips and loads are charged to this request.
    pub fn cache(&self) -> Cache<Db> {
        self.cache.clone()
    }

    /// Runs a query of the request's own, on the clock that the answer shows as `db`.
    pub(super) async fn query<T>(&self, query: impl Future<Output = T> + Send) -> T {
        let begin = Instant::now();
        let answer = query.await;
        add(&self.queried, begin.elapsed());
        answer
    }

    /// Runs a write: the clock shows its flush as `cache`, and the rest as `db`.
    pub(super) async fn write<T, E>(
        &self,
        write: impl Future<Output = Result<Written<T>, E>> + Send,
    ) -> Result<Written<T>, E> {
        let begin = Instant::now();
        let written = write.await;
        let flushing = written
            .as_ref()
            .map_or(Duration::ZERO, |written| written.flushing);
        add(&self.flushed, flushing);
        add(&self.queried, begin.elapsed().saturating_sub(flushing));
        written
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        // What a read takes beside its loads is the cache's part; loads are the database's, like the request's queries.
        let loading = self.tally.load_time();
        let reading = self.tally.read_time().saturating_sub(loading);
        let total = |clock: &AtomicU64| Duration::from_nanos(clock.load(Ordering::Relaxed));
        let cache = (reading + total(&self.flushed)).as_secs_f64() * 1_000.0;
        let database = (loading + total(&self.queried)).as_secs_f64() * 1_000.0;
        let timing = format!("cache;dur={cache:.3}, db;dur={database:.3}");
        headers.insert(
            HeaderName::from_static("server-timing"),
            HeaderValue::from_str(&timing).expect("numbers are printable"),
        );
        headers.insert(
            HeaderName::from_static("x-larder-trips"),
            self.tally.trips().into(),
        );
        headers.insert(
            HeaderName::from_static("x-larder-loads"),
            self.tally.loaded().into(),
        );
    }
}

/// A visit is what accessors are called with: `larder::get::<Users>(&visit, &id)`.
impl<'a> Reader<'a, Db> for &'a Visit {
    fn route(self) -> Route<'a, Db> {
        Route::Cached(&self.cache)
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let visit = parts.extensions.get::<Self>();
        visit
            .cloned()
            .ok_or_else(|| ApiError::internal("no visit was begun for this route"))
    }
}

/// Begins a visit for each request, and writes what it cost into each JSON answer.
pub(super) async fn measure(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Response {
    let visit = Visit::begin(&app);
    request.extensions_mut().insert(visit.clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json")
    {
        visit.write_headers(headers);
    }
    response
}

fn add(clock: &AtomicU64, took: Duration) {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    clock.fetch_add(nanos, Ordering::Relaxed);
}
