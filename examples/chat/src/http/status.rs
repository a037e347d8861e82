//! `/healthz` and `/stats`: how the chat and its store are.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use larder::{CacheStats, ServerCheck};
use serde::Serialize;
use serde_json::json;

use super::answer::{ApiError, answer};
use crate::App;

/// `GET /healthz`: whether the chat can answer, which takes its database and not its store.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut db = app.db().read().await?;
    sqlx::query("SELECT 1").execute(&mut *db).await?;
    Ok(answer(StatusCode::OK, &json!({ "status": "ok" })))
}

/// `GET /stats`: what was counted since the start, and how each server of the store answers now.
pub(super) async fn stats(State(app): State<Arc<App>>) -> Response {
    #[derive(Serialize)]
    struct Stats<'a> {
        store: &'a str,
        uptime_s: u64,
        #[serde(flatten)]
        cache: CacheStats,
        servers: Vec<Server>,
    }
    let servers = app.cache().check().await;
    let stats = Stats {
        store: app.store(),
        uptime_s: app.uptime().as_secs(),
        cache: app.cache().stats(),
        servers: servers.into_iter().map(Server::from).collect(),
    };
    answer(StatusCode::OK, &stats)
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
