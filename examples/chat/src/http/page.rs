//! `/`: one page that shows the history, and what the cache does while one reads it.
//!
//! No build step and nothing from elsewhere: three files in the program. The page's policy allows scripts and styles
//! from here only, so that no message can bring its own.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn index() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, POLICY)];
    (
        policy,
        file(
            "text/html; charset=utf-8",
            include_str!("../page/index.html"),
        ),
    )
}

pub(super) async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("../page/style.css"))
}

pub(super) async fn script() -> impl IntoResponse {
    file(
        "text/javascript; charset=utf-8",
        include_str!("../page/app.js"),
    )
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
