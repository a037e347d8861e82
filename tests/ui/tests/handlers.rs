//! axum's handlers get the cache, and the reader of their request, without a line that says how.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::routing::get;
use larder::{Cache, LoadError, Request, RequestLayer};
use larder_ui::forms::{App, PersonId, count, names};
use larder_ui::{Db, cache};
use std::convert::Infallible;
use tower::ServiceExt as _;

async fn show(
    State(app): State<App>,
    State(cache): State<Cache<Db>>,
    request: Request<Db>,
) -> Result<String, LoadError<Infallible>> {
    let names = names(&request, 0, "en", [PersonId(7)]).await?.len() as u64;
    Ok((count(&app).await? + count(&cache).await? + names).to_string())
}

#[tokio::test]
async fn handlers_take_the_cache_from_the_state() {
    let app = App {
        cache: cache().await,
    };
    let router = Router::new()
        .route("/", get(show))
        .layer(RequestLayer::new(&app.cache))
        .with_state(app);
    let request = HttpRequest::get("/").body(Body::empty()).unwrap();
    let answer = router.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
    assert_eq!(&*body, b"1");
}
