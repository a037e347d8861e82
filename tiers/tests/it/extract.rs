//! The reader as an argument of axum's handlers.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::IntoResponse as _;
use axum::routing::get as on_get;
use http::{Request as HttpRequest, StatusCode};
use larder_core::{LoadError, get};
use larder_tiers::{Request, RequestLayer, Tiers};
use tower::ServiceExt as _;

use super::support::{PerRequest, Rowid, cache, settle};

async fn show(request: Request<Rowid>) -> String {
    let first = get::<PerRequest>(&request, &1).await.unwrap();
    let second = get::<PerRequest>(&request, &1).await.unwrap();
    format!("{}", first == second)
}

async fn ask(router: Router) -> (StatusCode, String) {
    let asked = HttpRequest::get("/").body(Body::empty()).unwrap();
    let response = router.oneshot(asked).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn handlers_get_the_layers_reader() {
    let tiers = Tiers::default();
    let cache = cache(Some(&tiers)).await;
    let router = Router::new()
        .route("/", on_get(show))
        .layer(RequestLayer::new(&cache));
    assert_eq!(ask(router).await, (StatusCode::OK, "true".to_owned()));
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn without_the_layer_the_answer_says_what_is_missing() {
    let router = Router::new().route("/", on_get(show));
    let (status, text) = ask(router).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        text,
        "a handler asked for larder's Request<it::support::Rowid>, and none was begun for this route; add \
         `.layer(RequestLayer::new(&cache))` to its router"
    );
}

#[tokio::test]
async fn a_failed_load_tells_the_client_whether_to_try_again() {
    let accessor = "user_by_id";
    let after = Duration::from_secs(30);
    let secret = std::io::Error::other("password of db-7");
    for (error, status) in [
        (LoadError::Overloaded { accessor, after }, 503),
        (LoadError::Timeout { accessor, after }, 503),
        (LoadError::Closed { accessor }, 503),
        (LoadError::Loader(Arc::new(secret)), 500),
        (LoadError::Panicked { accessor }, 500),
        (LoadError::Recursive { accessor }, 500),
    ] {
        let response = error.into_response();
        assert_eq!(response.status(), status);
        let retry = response.headers().get("retry-after");
        assert_eq!(retry.is_some(), status == 503);
        let body = to_bytes(response.into_body(), 1_000).await;
        let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
        assert!(!body.contains("db-7") && !body.contains(accessor), "{body}");
    }
}
