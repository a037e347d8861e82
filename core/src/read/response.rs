//! What a client of a service is told when a load failed: axum's handlers may answer a [`LoadError`] as it is.

use std::error::Error;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER};

use super::LoadError;

/// Seconds after which a client may try again: about as long as a queue of loads takes to shrink.
const RETRY: HeaderValue = HeaderValue::from_static("1");

/// 503 with `Retry-After` where the source is slower than it is asked, and while the service stops; 500 for the rest.
///
/// The body gives nothing away; what happened is an event of `tracing` at the level of errors.
impl<E: Error> IntoResponse for LoadError<E> {
    fn into_response(self) -> Response {
        tracing::error!(error = %self, "a request is answered without the data it needs");
        match self {
            Self::Overloaded { .. } | Self::Timeout { .. } | Self::Closed { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                [(RETRY_AFTER, RETRY)],
                "the service is busy; try again\n",
            )
                .into_response(),
            Self::Loader(_) | Self::Panicked { .. } | Self::Recursive { .. } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "something went wrong\n").into_response()
            }
        }
    }
}
