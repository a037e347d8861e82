//! The chat over HTTP.
//!
//! Each JSON answer says what it cost: `Server-Timing`, `X-Larder-Trips`, `X-Larder-Loads` and `X-Larder-Tier-Hits`, see
//! [`Visit`].

mod answer;
mod client_errors;
mod messages;
mod page;
mod status;
mod streams;
mod users;
mod visit;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use axum::routing::{get, post, put};
use larder::RequestLayer;

use crate::App;

pub use answer::ApiError;
pub use visit::Visit;

/// The longest body: a message of the longest text, escaped.
const LONGEST_BODY: usize = 256 << 10;

/// All routes of the chat.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/style.css", get(page::style))
        .route(concat!("/", env!("CHAT_SCRIPT")), get(page::script))
        .route("/healthz", get(status::health))
        .route("/stats", get(status::stats))
        .route("/api/messages", get(messages::list).post(messages::send))
        .route("/api/messages/move", post(messages::move_topic))
        .route(
            "/api/messages/{id}/reactions",
            post(messages::react).delete(messages::unreact),
        )
        .route("/api/users", get(users::by_email))
        .route("/api/users/swap-emails", post(users::swap_emails))
        .route("/api/users/{id}", get(users::by_id).patch(users::change))
        .route("/api/users/{id}/subscriptions", get(users::subscriptions))
        .route("/api/streams", get(streams::list))
        .route(
            "/api/streams/{id}",
            get(streams::by_id).patch(streams::change),
        )
        .route("/api/streams/{id}/subscribers", get(streams::subscribers))
        .route(
            "/api/streams/{id}/subscribers/{user}",
            put(streams::subscribe).delete(streams::unsubscribe),
        )
        .route(
            "/api/client-errors",
            post(client_errors::report).layer(DefaultBodyLimit::max(client_errors::LONGEST_BODY)),
        )
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(DefaultBodyLimit::max(LONGEST_BODY))
        .layer(from_fn(visit::measure))
        .layer(RequestLayer::new(app.cache()).tallied())
        .with_state(app)
}
