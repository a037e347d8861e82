//! What one request costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{self, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use larder::{Cache, Reader, Request};

use super::ApiError;
use crate::db::Db;
use crate::writes::Written;

/// One request: what its accessors are called with, `users(&visit, ids)`, and the clocks that its answer shows.
#[derive(Clone, Debug, Reader)]
pub struct Visit {
    /// What it reads with: larder's own, which keeps what is read and counts what it costs.
    request: Request<Db>,
    clocks: Arc<Clocks>,
}

/// What the request's own work took, in nanoseconds: larder counts its reads and loads itself.
#[derive(Debug, Default)]
struct Clocks {
    queries: AtomicU64,
    flushes: AtomicU64,
    source_map: AtomicU64,
}

impl Visit {
    /// Runs a query of the request's own, on the clock that the answer shows as `db`.
    pub(super) async fn query<T>(&self, query: impl Future<Output = T> + Send) -> T {
        let begin = Instant::now();
        let answer = query.await;
        add(&self.clocks.queries, begin.elapsed());
        answer
    }

    /// Waits for the script's map, on the clock that the answer shows as `map`.
    pub(super) async fn map<T>(&self, read: impl Future<Output = T> + Send) -> T {
        let begin = Instant::now();
        let answer = read.await;
        add(&self.clocks.source_map, begin.elapsed());
        answer
    }

    /// Runs a write with the cache as this request has it: so the write is charged to the request, and what it makes
    /// stale is dropped from what the request keeps. The clock shows its flush as `cache`, and the rest as `db`.
    pub(super) async fn write<T, E>(
        &self,
        write: impl AsyncFnOnce(&Cache<Db>) -> Result<Written<T>, E>,
    ) -> Result<Written<T>, E> {
        let begin = Instant::now();
        let written = write(self.request.cache()).await;
        let flushing = written
            .as_ref()
            .map_or(Duration::ZERO, |written| written.committed.flushing);
        add(&self.clocks.flushes, flushing);
        add(
            &self.clocks.queries,
            begin.elapsed().saturating_sub(flushing),
        );
        written
    }

    fn write_headers(&self, headers: &mut HeaderMap) {
        let Some(tally) = self.request.tally() else {
            return;
        };
        // What a read takes beside its loads is the cache's part; loads are the database's, like the request's queries.
        let loading = tally.load_time();
        let reading = tally.read_time().saturating_sub(loading);
        let total = |clock: &AtomicU64| Duration::from_nanos(clock.load(Ordering::Relaxed));
        let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
        let cache = millis(reading + total(&self.clocks.flushes));
        let database = millis(loading + total(&self.clocks.queries));
        let mut timing = format!("cache;dur={cache:.3}, db;dur={database:.3}");
        let map = total(&self.clocks.source_map);
        if !map.is_zero() {
            timing += &format!(", map;dur={:.3}", millis(map));
        }
        headers.insert(
            HeaderName::from_static("server-timing"),
            HeaderValue::from_str(&timing).expect("numbers are printable"),
        );
        for (name, count) in [
            ("x-larder-trips", tally.trips()),
            ("x-larder-loads", tally.loaded()),
            ("x-larder-tier-hits", tally.tier_hits()),
        ] {
            headers.insert(HeaderName::from_static(name), count.into());
        }
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
    reader: Request<Db>,
    mut request: extract::Request,
    next: Next,
) -> Response {
    let visit = Visit {
        request: reader,
        clocks: Arc::default(),
    };
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
