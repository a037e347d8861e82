//! A reader for each request, by a tower layer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use larder_core::{Cache, Source};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Request;

/// Gives each HTTP request a [`Request`] in its extensions, and ends it when the response is there, when the handler
/// panics, or when the client has left.
///
/// Add it to a router, or around any service of `http` requests. With the feature `axum` handlers take the reader as an
/// argument, and tasks that they spawn take a clone.
///
/// ```
/// # #[cfg(feature = "axum")] mod app {
/// # use std::{convert::Infallible, sync::Arc, time::Duration};
/// # use larder_core::{Cache, Dataset, Lifetime, Plain, RequestTier, Rt, Rows, Source};
/// # use larder_tiers::Tiers;
/// # #[derive(Clone)] pub struct Db;
/// # impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible; async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
/// # enum DisplayNames {}
/// # impl Dataset for DisplayNames {
/// #     const NAME: &'static str = "display_name"; const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(60));
/// #     type Source = Db; type Key = u64; type Value = String; type Form = Plain; type Tier = RequestTier; type Error = Infallible;
/// #     fn flush_on(plan: &mut larder_core::FlushOn<Self>) { plan.by_hand(); }
/// #     async fn load(_: &mut (), ids: Vec<u64>) -> Result<Rows<Self>, Infallible> { Ok(ids.into_iter().map(|id| (id, format!("user {id}"))).collect()) }
/// # }
/// use axum::{Router, routing::get};
/// use larder_tiers::{Request, RequestLayer};
///
/// async fn greet(request: Request<Db>) -> String {
///     // Asked for once however often it is needed, also by what is called from here.
///     let name = larder_core::get::<DisplayNames>(&request, &7).await;
///     let again = larder_core::get::<DisplayNames>(&request, &7).await;
/// #   assert_eq!(request.cache().stats().tiers.unwrap().request.hits, 1); drop(again);
///     format!("hello, {}", name.unwrap().unwrap())
/// }
///
/// fn router(cache: &Cache<Db>) -> Router {
///     Router::new()
///         .route("/", get(greet))
///         .layer(RequestLayer::new(cache))
/// }
/// # pub async fn show() {
/// #     use tower::ServiceExt as _;
/// #     let memory = larder_backends::Memory::new(Default::default(), Rt::new()).unwrap();
/// #     let cache = Cache::builder(Db).backend(Arc::new(memory)).tiers(Tiers::default()).build().await.unwrap();
/// #     let asked = http::Request::new(axum::body::Body::empty());
/// #     let answer = router(&cache).oneshot(asked).await.unwrap();
/// #     let body = axum::body::to_bytes(answer.into_body(), 99).await.unwrap();
/// #     assert_eq!(body, "hello, user 7");
/// # }
/// # }
/// # #[cfg(feature = "axum")] #[tokio::main(flavor = "current_thread")] async fn main() { app::show().await }
/// # #[cfg(not(feature = "axum"))] fn main() {}
/// ```
///
/// The response is there before its body is: what a body that is streamed reads comes after the end, and is read by way
/// of the store, each time. A task that goes on after the response does the same, unless it
/// [begins](Request::begin) a request of its own.
///
/// Around a layer of the same cache, the outer one counts: the inner one begins and ends nothing, so that middleware and
/// handler share what they read. Below a layer of another cache with the same source, a handler gets the reader of the
/// layer that is next to it.
#[derive(Clone, Debug)]
pub struct RequestLayer<S: Source> {
    cache: Cache<S>,
    tallied: bool,
}

impl<S: Source> RequestLayer<S> {
    /// Requests that read through this cache.
    pub fn new(cache: &Cache<S>) -> Self {
        Self {
            cache: cache.clone(),
            tallied: false,
        }
    }

    /// Counts what each request costs, apart from all others: see [`Request::tally`]. A layer within another leaves this to
    /// the outer one.
    #[must_use]
    pub fn tallied(self) -> Self {
        Self {
            tallied: true,
            ..self
        }
    }

    /// Batches what each request reads, as [`Request::batched`] does. A layer within another leaves this to the outer one.
    #[must_use]
    pub fn batched(self) -> Self {
        Self {
            cache: self.cache.batched(),
            ..self
        }
    }

    fn begin(&self) -> Request<S> {
        match self.tallied {
            true => Request::begin(&self.cache.tallied().0),
            false => Request::begin(&self.cache),
        }
    }
}

impl<S: Source, T> Layer<T> for RequestLayer<S> {
    type Service = RequestService<S, T>;

    fn layer(&self, inner: T) -> RequestService<S, T> {
        RequestService {
            layer: self.clone(),
            inner,
        }
    }
}

/// What a [`RequestLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct RequestService<S: Source, T> {
    layer: RequestLayer<S>,
    inner: T,
}

impl<S, T, B> Service<http::Request<B>> for RequestService<S, T>
where
    S: Source,
    T: Service<http::Request<B>>,
{
    type Response = T::Response;
    type Error = T::Error;
    type Future = RequestFuture<S, T::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let outer = request
            .extensions()
            .get::<Request<S>>()
            .is_some_and(|outer| outer.cache().is_same_as(&self.layer.cache));
        // Begun by a layer around this one, which ends it.
        let ending = (!outer).then(|| Ending(self.layer.begin()));
        if let Some(Ending(begun)) = &ending {
            request.extensions_mut().insert(begun.clone());
        }
        RequestFuture {
            inner: self.inner.call(request),
            ending,
        }
    }
}

pin_project! {
    /// The response of a [`RequestService`].
    #[derive(Debug)]
    pub struct RequestFuture<S: Source, F> {
        #[pin]
        inner: F,
        ending: Option<Ending<S>>,
    }
}

impl<S: Source, F: Future> Future for RequestFuture<S, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = ready!(this.inner.poll(context));
        *this.ending = None;
        Poll::Ready(output)
    }
}

/// Ends the request when it is dropped.
#[derive(Debug)]
struct Ending<S: Source>(Request<S>);

impl<S: Source> Drop for Ending<S> {
    fn drop(&mut self) {
        self.0.end();
    }
}
