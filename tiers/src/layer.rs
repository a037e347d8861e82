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
/// What a response's body reads while it is streamed comes after the end: it is read by way of the store.
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

    /// Counts what each request costs: see [`Request::tally`].
    #[must_use]
    pub fn tallied(self) -> Self {
        Self {
            tallied: true,
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
