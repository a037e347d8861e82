//! What sqlx says, as larder's errors.

use larder_core::{CommitFailure, Error, ErrorKind};

/// How a database says what went wrong.
pub(crate) trait Codes {
    /// Its name, as errors have it.
    const NAME: &'static str;

    /// What an answer of the database means, if it is one that somebody can act upon.
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Option<(ErrorKind, &'static str)>;

    /// Whether this answer to a commit says that nothing was committed.
    fn is_refusal(error: &dyn sqlx::error::DatabaseError) -> bool;
}

/// What was tried couldn't be done: `the outbox in PostgreSQL can't be read: …`.
pub(crate) fn failed<D: Codes>(what: &str, error: sqlx::Error) -> Error {
    let (kind, advice) = match &error {
        sqlx::Error::Database(answer) => {
            D::meaning(&**answer).unwrap_or((ErrorKind::Protocol, "see the log of the database"))
        }
        sqlx::Error::PoolTimedOut => (
            ErrorKind::Timeout,
            "give the pool more connections if it is busy, or see why the database can't be reached",
        ),
        sqlx::Error::RowNotFound => (
            ErrorKind::Config,
            "a table that has one row has none; drop larder's tables, which are five, and make them again",
        ),
        sqlx::Error::PoolClosed => (ErrorKind::Unavailable, "close the cache before its pool"),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed => {
            (ErrorKind::Unavailable, "it is tried again")
        }
        _ => (
            ErrorKind::Protocol,
            "it is tried again on another connection",
        ),
    };
    let message = format!("{what} in {} failed: {error}; {advice}", D::NAME);
    Error::with_source(kind, message, error)
}

/// How a commit failed: the database says so, or nothing is known.
pub(crate) fn commit_failure<D: Codes>(error: sqlx::Error) -> CommitFailure<sqlx::Error> {
    let is_refusal = match &error {
        sqlx::Error::Database(answer) => D::is_refusal(&**answer),
        _ => false,
    };
    match is_refusal {
        true => CommitFailure::Failed(error),
        false => CommitFailure::Unknown(error),
    }
}
