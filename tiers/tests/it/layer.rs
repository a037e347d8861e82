//! The layer gives each HTTP request a reader, and ends it.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use http::{Request as HttpRequest, Response};
use larder_core::{Cache, get};
use larder_tiers::{Request, RequestLayer, Tiers};
use tower::{Layer, Service, ServiceExt as _, service_fn};

use super::support::{PerRequest, Rowid, cache, settle};

type Asked = HttpRequest<String>;

fn asked() -> Asked {
    HttpRequest::new("body".to_owned())
}

/// The reader that a handler is given.
fn reader(asked: &Asked) -> Request<Rowid> {
    asked
        .extensions()
        .get()
        .cloned()
        .expect("a layer began one")
}

/// A handler that reads once and answers whether its reader kept it.
async fn read_twice(asked: Asked) -> Result<Response<bool>, Infallible> {
    let reader = reader(&asked);
    let first = get::<PerRequest>(&reader, &1).await.unwrap().unwrap();
    let second = get::<PerRequest>(&reader, &1).await.unwrap().unwrap();
    Ok(Response::new(std::sync::Arc::ptr_eq(&first, &second)))
}

/// A handler that reads once and gives its reader away.
async fn escaping(asked: Asked) -> Result<Request<Rowid>, Infallible> {
    let reader = reader(&asked);
    get::<PerRequest>(&reader, &1).await.unwrap();
    Ok(reader)
}

async fn setting() -> (Tiers, Cache<Rowid>) {
    let tiers = Tiers::default();
    let cache = cache(Some(&tiers)).await;
    (tiers, cache)
}

#[tokio::test]
async fn each_request_has_a_reader_until_its_response() {
    let (tiers, cache) = setting().await;
    let mut service = RequestLayer::new(&cache).layer(service_fn(read_twice));
    for _ in 0..2 {
        let answer = service.ready().await.unwrap().call(asked()).await.unwrap();
        assert!(answer.into_body());
        settle().await;
        assert_eq!(tiers.stats().request.entries, 0);
    }
    assert!(reader_is_untallied(&cache).await);
}

async fn reader_is_untallied(cache: &Cache<Rowid>) -> bool {
    let handler = |asked| async move { Ok::<_, Infallible>(reader(&asked).tally().is_none()) };
    let service = RequestLayer::new(cache).layer(service_fn(handler));
    service.oneshot(asked()).await.unwrap()
}

#[tokio::test]
async fn a_tallied_layer_counts_each_request_apart() {
    let (_, cache) = setting().await;
    let handler = |asked: Asked| async move {
        let reader = reader(&asked);
        get::<PerRequest>(&reader, &1).await.unwrap();
        Ok::<_, Infallible>(reader.tally().expect("it is tallied").keys())
    };
    let layer = RequestLayer::new(&cache).tallied();
    for _ in 0..2 {
        let service = layer.layer(service_fn(handler));
        assert_eq!(service.oneshot(asked()).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_batching_layer_batches_within_each_request() {
    let (_, cache) = setting().await;
    let handler = |asked: Asked| async move {
        let reader = reader(&asked);
        let (one, other) = tokio::join!(
            get::<PerRequest>(&reader, &1),
            get::<PerRequest>(&reader, &2)
        );
        assert!(one.unwrap().is_some() && other.unwrap().is_some());
        Ok::<_, Infallible>(reader.tally().expect("it is tallied").loads())
    };
    for layer in [
        RequestLayer::new(&cache).tallied().batched(),
        RequestLayer::new(&cache).batched().tallied(),
        RequestLayer::new(&cache.batched()).tallied(),
    ] {
        let service = layer.layer(service_fn(handler));
        assert_eq!(service.oneshot(asked()).await.unwrap(), 1);
        cache.flush::<PerRequest>([1, 2]).await.unwrap();
    }
}

/// A clone that got away keeps nothing alive: the request is over with its response.
#[tokio::test]
async fn the_response_ends_it_for_all_clones() {
    let (tiers, cache) = setting().await;
    let service = RequestLayer::new(&cache).layer(service_fn(escaping));
    let escaped = service.oneshot(asked()).await.unwrap();
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
    get::<PerRequest>(&escaped, &1).await.unwrap();
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn it_is_over_as_soon_as_the_response_is_there() {
    let (tiers, cache) = setting().await;
    let mut response = pin!(
        RequestLayer::new(&cache)
            .layer(service_fn(escaping))
            .call(asked())
    );
    let _escaped = response.as_mut().await.unwrap();
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn a_client_that_leaves_ends_it() {
    let (tiers, cache) = setting().await;
    let handler = |asked: Asked| async move {
        let reader = reader(&asked);
        get::<PerRequest>(&reader, &1).await.unwrap();
        pending::<Result<(), Infallible>>().await
    };
    let service = RequestLayer::new(&cache).layer(service_fn(handler));
    {
        let mut response = pin!(service.oneshot(asked()));
        while tiers.stats().request.entries == 0 {
            let mut context = Context::from_waker(Waker::noop());
            assert!(response.as_mut().poll(&mut context).is_pending());
            tokio::task::yield_now().await;
        }
    }
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn a_panic_in_a_handler_ends_it() {
    let (tiers, cache) = setting().await;
    let escaped = std::sync::Arc::new(std::sync::Mutex::new(None));
    let handler = {
        let escaped = std::sync::Arc::clone(&escaped);
        move |asked: Asked| {
            let escaped = std::sync::Arc::clone(&escaped);
            async move {
                let reader = reader(&asked);
                get::<PerRequest>(&reader, &1).await.unwrap();
                *escaped.lock().unwrap() = Some(reader);
                if !asked.body().is_empty() {
                    panic!("a handler's own");
                }
                Ok::<_, Infallible>(())
            }
        }
    };
    let service = RequestLayer::new(&cache).layer(service_fn(handler));
    let task = tokio::spawn(service.oneshot(asked()));
    assert!(task.await.unwrap_err().is_panic());
    settle().await;
    assert!(escaped.lock().unwrap().is_some());
    assert_eq!(tiers.stats().request.entries, 0);
}

/// A service that panics before it makes a future, having kept something.
#[derive(Clone)]
struct Brittle;

impl Service<Asked> for Brittle {
    type Response = ();
    type Error = Infallible;
    type Future = std::future::Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, asked: Asked) -> Self::Future {
        let reader = reader(&asked);
        let scope = reader.cache().scope().expect("the cache has tiers");
        let key = larder_core::Keys::one("a").unwrap();
        scope.put(key.get(0), larder_core::Mark(0), None, 0);
        ESCAPED.set(Some(reader));
        panic!("before there is a future");
    }
}

thread_local! {
    static ESCAPED: std::cell::Cell<Option<Request<Rowid>>> = const { std::cell::Cell::new(None) };
}

#[tokio::test]
async fn a_panic_in_a_call_ends_it() {
    let (tiers, cache) = setting().await;
    let service = RequestLayer::new(&cache).layer(Brittle);
    let task = tokio::spawn(async move { service.oneshot(asked()).await });
    assert!(task.await.unwrap_err().is_panic());
    settle().await;
    assert!(ESCAPED.take().is_some());
    assert_eq!(tiers.stats().request.entries, 0);
}

#[tokio::test]
async fn a_layer_within_another_goes_on_with_its_request() {
    let (tiers, cache) = setting().await;
    let inner = RequestLayer::new(&cache)
        .tallied()
        .layer(service_fn(escaping));
    let after_inner = {
        let tiers = tiers.clone();
        move |asked: Asked| {
            let (inner, tiers, outer) = (inner.clone(), tiers.clone(), reader(&asked));
            async move {
                inner.oneshot(asked).await?;
                settle().await;
                // The inner layer hasn't ended it.
                assert_eq!(tiers.stats().request.entries, 1);
                let before = outer.cache().stats().tiers.unwrap().request.hits;
                get::<PerRequest>(&outer, &1).await.unwrap();
                assert_eq!(
                    outer.cache().stats().tiers.unwrap().request.hits,
                    before + 1
                );
                Ok::<_, Infallible>(())
            }
        }
    };
    let service = RequestLayer::new(&cache).layer(service_fn(after_inner));
    service.oneshot(asked()).await.unwrap();
    settle().await;
    assert_eq!(tiers.stats().request.entries, 0);
}

/// Two caches of one source: a handler gets the reader of the layer that is next to it.
#[tokio::test]
async fn a_layer_of_another_cache_begins_its_own() {
    let ((_, one), (_, other)) = (setting().await, setting().await);
    let handler = {
        let one = one.clone();
        move |asked: Asked| {
            let is_inner = reader(&asked).cache().is_same_as(&one);
            async move { Ok::<_, Infallible>(is_inner) }
        }
    };
    let inner = RequestLayer::new(&one).layer(service_fn(handler));
    let service = RequestLayer::new(&other).layer(inner);
    assert!(service.oneshot(asked()).await.unwrap());
}
