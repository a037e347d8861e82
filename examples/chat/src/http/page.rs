//! `/`: one page that shows the history, and what the cache does while one reads it.
//!
//! Nothing from elsewhere: three files in the program, of which `build.rs` makes the script small. The page's policy
//! allows scripts and styles from here only, so that no message can bring its own.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;

use crate::release::{SCRIPT, SCRIPT_NAME};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn index() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, POLICY)];
    let page = include_str!("../page/index.html").replace("app.js", SCRIPT_NAME);
    (policy, file("text/html; charset=utf-8", page))
}

pub(super) async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("../page/style.css"))
}

pub(super) async fn script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", SCRIPT)
}

fn file(kind: &'static str, text: impl IntoResponse) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text)
}
