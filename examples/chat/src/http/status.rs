//! `/healthz` and `/stats`: how the chat and its store are.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{ApiError, answer};
use crate::App;

/// `GET /healthz`: whether the chat can answer, which takes its database and not its store.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let mut db = app.db().read().await?;
    sqlx::query("SELECT 1").execute(&mut *db).await?;
    Ok(answer(StatusCode::OK, &json!({ "status": "ok" })))
}
