//! `/healthz` and `/stats`: how the chat and its store are.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use larder::{Backlog, CacheStats, ServerCheck};
use serde::Serialize;
use serde_json::json;

use super::answer::{ApiError, answer};
use crate::App;
use crate::db::Sql;

/// `GET /healthz`: whether the chat can answer, which takes its database and not its store.
pub(super) async fn health(State(app): State<App>) -> Result<Response, ApiError> {
    let mut db = app.db().read().await?;
    db.query(Sql::same("SELECT 1")).execute().await?;
    Ok(answer(StatusCode::OK, &json!({ "status": "ok" })))
}

/// `GET /stats`: what was counted since the start, what waits to be flushed, and how each server of the store answers now.
pub(super) async fn stats(State(app): State<App>) -> Response {
    #[derive(Serialize)]
    struct Stats<'a> {
        store: &'a str,
        uptime_s: u64,
        #[serde(flatten)]
        cache: CacheStats,
        outbox: Waiting,
        servers: Vec<Server>,
    }
    let cache = app.cache();
    let (servers, backlog) = tokio::join!(cache.check(), cache.backlog());
    let stats = Stats {
        store: &app.store(),
        outbox: Waiting::from(backlog),
        uptime_s: app.uptime().as_secs(),
        cache: cache.stats(),
        servers: servers.into_iter().map(Server::from).collect(),
    };
    answer(StatusCode::OK, &stats)
}

/// What waits in the outbox now.
#[derive(Default, Serialize)]
struct Waiting {
    rows: Option<u64>,
    oldest_s: Option<f64>,
    error: Option<String>,
}

impl From<larder::Result<Option<Backlog>>> for Waiting {
    fn from(backlog: larder::Result<Option<Backlog>>) -> Self {
        match backlog {
            Ok(backlog) => Self {
                rows: backlog.map(|backlog| backlog.rows),
                oldest_s: backlog.and_then(|backlog| Some(backlog.oldest?.as_secs_f64())),
                error: None,
            },
            Err(error) => Self {
                error: Some(error.to_string()),
                ..Self::default()
            },
        }
    }
}

/// What a server of the store said when it was asked.
#[derive(Serialize)]
struct Server {
    server: String,
    up: bool,
    version: Option<String>,
    latency_us: Option<u128>,
    error: Option<String>,
}

impl From<ServerCheck> for Server {
    fn from(check: ServerCheck) -> Self {
        let answer = check.answer.as_ref();
        Self {
            up: answer.is_ok(),
            version: answer.ok().map(|answer| answer.version.clone()),
            latency_us: answer.ok().map(|answer| answer.latency.as_micros()),
            error: answer.err().map(ToString::to_string),
            server: check.server,
        }
    }
}
