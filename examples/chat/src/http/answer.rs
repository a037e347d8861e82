//! Answers: JSON, and in JSON why there is none.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use larder::{CommitError, Committed, LoadError};
use serde::Serialize;
use serde_json::json;
use tracing::error;

use crate::db::is_overload;
use crate::writes::WriteError;

/// An answer of this status with this value as JSON.
pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                // Texts of people are in it: no browser may take it for a page.
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            ];
            (status, headers, body).into_response()
        }
        Err(error) => ApiError::internal(error).into_response(),
    }
}

/// The answer to a write: what was written, and whether everybody sees it: `"flush": "fresh"`, or `"pending"`.
pub(super) fn written(
    status: StatusCode,
    value: &impl Serialize,
    committed: &Committed,
) -> Response {
    #[derive(Serialize)]
    struct Written<'a, T> {
        #[serde(flatten)]
        value: &'a T,
        flush: &'static str,
    }
    let flush = committed.flush.as_str();
    answer(status, &Written { value, flush })
}

/// Why a request isn't answered: a status, and a reason that its sender can act on.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    reason: String,
}

impl ApiError {
    /// The request can't be understood, or asks for too much.
    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: reason.into(),
        }
    }

    /// There is no such thing.
    pub(super) fn unknown(reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            reason: reason.into(),
        }
    }

    /// The database is asked for more than it can answer in time.
    fn overloaded() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: "the database has too much to do; try again in a moment".to_owned(),
        }
    }

    /// Nobody knows whether it was done.
    fn unknown_outcome(cause: impl std::fmt::Display) -> Self {
        error!(%cause, "a commit's outcome is unknown");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "it isn't known whether this was done; look before you do it again".to_owned(),
        }
    }

    /// The chat's own trouble: the log says which.
    pub(super) fn internal(cause: impl std::fmt::Display) -> Self {
        error!(%cause, "a request failed");
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "something went wrong here; the log says what".to_owned(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = answer(self.status, &json!({ "error": self.reason }));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let soon = header::HeaderValue::from_static("1");
            response.headers_mut().insert(header::RETRY_AFTER, soon);
        }
        response
    }
}

/// Trouble of the store never comes here: it costs a load.
impl From<LoadError<sqlx::Error>> for ApiError {
    fn from(error: LoadError<sqlx::Error>) -> Self {
        match &error {
            LoadError::Overloaded { .. } | LoadError::Timeout { .. } => Self::overloaded(),
            LoadError::Loader(cause) if is_overload(cause) => Self::overloaded(),
            _ => Self::internal(error),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        if is_overload(&error) {
            Self::overloaded()
        } else {
            Self::internal(error)
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let reason = error.to_string();
        match error {
            WriteError::UnknownUser(_)
            | WriteError::UnknownStream(_)
            | WriteError::UnknownMessage(_)
            | WriteError::UnknownTopic(_)
            | WriteError::UnknownReaction(_) => Self::unknown(reason),
            WriteError::Inactive(_) => Self::bad(reason),
            WriteError::EmailTaken(_) | WriteError::HasReacted(_) => Self {
                status: StatusCode::CONFLICT,
                reason,
            },
            WriteError::Database(error) => error.into(),
            WriteError::Load(error) => error.into(),
            WriteError::Commit(CommitError::Failed(error)) => error.into(),
            WriteError::Commit(error) if error.may_have_committed() => Self::unknown_outcome(error),
            // Nothing was done: the chat was registering anew, for example.
            WriteError::Commit(error) if error.is_retryable() => Self::overloaded(),
            WriteError::Commit(error) => Self::internal(error),
        }
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

/// An extractor whose rejection is answered like every other error.
pub(super) struct Valid<E>(pub(super) E);

impl<S, E> FromRequestParts<S> for Valid<E>
where
    S: Send + Sync,
    E: FromRequestParts<S, Rejection: Into<ApiError>>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        E::from_request_parts(parts, state)
            .await
            .map(Self)
            .map_err(Into::into)
    }
}

impl<S, E> FromRequest<S> for Valid<E>
where
    S: Send + Sync,
    E: FromRequest<S, Rejection: Into<ApiError>>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        E::from_request(request, state)
            .await
            .map(Self)
            .map_err(Into::into)
    }
}

/// The answer where no route is.
pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::unknown(format!("there is nothing at {}", uri.path()))
}

/// The answer where a route doesn't take the method.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        reason: format!("{} doesn't take {method}", uri.path()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder::ErrorKind;

    use super::*;

    #[track_caller]
    fn check(error: impl Into<ApiError>, status: StatusCode, retry_after: Option<&str>) {
        let response = error.into().into_response();
        assert_eq!(response.status(), status);
        let header = response.headers().get(header::RETRY_AFTER);
        assert_eq!(header.map(|value| value.to_str().unwrap()), retry_after);
    }

    #[test]
    fn overload_is_said_with_when_to_come_back_and_nothing_else_is_503() {
        type Load = LoadError<sqlx::Error>;
        let (accessor, after) = ("message", Duration::from_secs(30));
        let (busy, broken) = (
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::INTERNAL_SERVER_ERROR,
        );
        check(Load::Overloaded { accessor, after }, busy, Some("1"));
        check(Load::Timeout { accessor, after }, busy, Some("1"));
        check(
            Load::Loader(sqlx::Error::PoolTimedOut.into()),
            busy,
            Some("1"),
        );
        check(sqlx::Error::PoolTimedOut, busy, Some("1"));
        let load = Load::Loader(sqlx::Error::RowNotFound.into());
        check(load, broken, None);
        check(Load::Panicked { accessor }, broken, None);
        check(sqlx::Error::RowNotFound, broken, None);
        let commit = |error| WriteError::Commit(error);
        let timed_out = || sqlx::Error::PoolTimedOut;
        check(commit(CommitError::Failed(timed_out())), busy, Some("1"));
        // Whoever is told to come back would do it twice.
        for unknown in [Some(timed_out()), None] {
            check(commit(CommitError::Unknown(unknown)), broken, None);
        }
        let refused = |kind| commit(CommitError::Refused(larder::Error::new(kind, "no")));
        check(refused(ErrorKind::Unavailable), busy, Some("1"));
        check(refused(ErrorKind::Config), broken, None);
    }
}
