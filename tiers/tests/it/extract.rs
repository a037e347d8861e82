//! The reader as an argument of axum's handlers.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::get as on_get;
use http::{Request as HttpRequest, StatusCode};
use larder_core::get;
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
