//! The reader of a request as an argument of axum's handlers.

use std::any::type_name;
use std::convert::Infallible;
use std::fmt;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use larder_core::Source;

use crate::Request;

impl<S: Source, St: Sync> FromRequestParts<St> for Request<S> {
    type Rejection = NoRequest;

    async fn from_request_parts(parts: &mut Parts, _: &St) -> Result<Self, NoRequest> {
        let request = parts.extensions.get::<Self>().cloned();
        request.ok_or(NoRequest {
            source: type_name::<S>(),
        })
    }
}

/// For handlers that are also reached by routes outside the layer.
impl<S: Source, St: Sync> OptionalFromRequestParts<St> for Request<S> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &St) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// A handler asked for a [`Request`], and there is no [`RequestLayer`](crate::RequestLayer) around it: a mistake in the
/// program, so that the client gets a 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRequest {
    source: &'static str,
}

impl fmt::Display for NoRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a handler asked for larder's Request<{}>, and none was begun for this route; add \
             `.layer(RequestLayer::new(&cache))` to its router",
            self.source
        )
    }
}

impl std::error::Error for NoRequest {}

impl IntoResponse for NoRequest {
    fn into_response(self) -> Response {
        tracing::error!(problem = %self);
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
