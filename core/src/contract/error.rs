//! What can go wrong below an accessor, in one cloneable type.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of an operation on a backend, key or configuration.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller would act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The configuration, or the use made of it, can't work.
    Config,
    /// Arguments that can't be a key.
    Key,
    /// The value is larger than the store, or the accessor, takes.
    TooLarge,
    /// A value couldn't be encoded.
    Codec,
    /// No answer within the deadline.
    Timeout,
    /// The server can't be reached, or the connection was lost.
    Unavailable,
    /// The server answered something that can't be placed.
    Protocol,
    /// The server, or this build, can't do it.
    Unsupported,
}

impl ErrorKind {
    /// The kind in one lower-case word, as it appears in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Key => "key",
            Self::TooLarge => "too_large",
            Self::Codec => "codec",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Protocol => "protocol",
            Self::Unsupported => "unsupported",
        }
    }
}

/// An error that says who, what and what next, and never shows values or credentials.
///
/// It is cheap to clone, because one failed exchange fails many keys.
///
/// ```
/// use larder_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Timeout, "memcached 10.0.0.5:11211: no answer to a get within 100ms");
/// assert!(error.is_retryable());
/// assert_eq!(error.to_string(), "memcached 10.0.0.5:11211: no answer to a get within 100ms");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind; the message is lower case and has no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            source: None,
        }))
    }

    /// The same with its cause, which [`std::error::Error::source`] then answers.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }))
    }

    /// What went wrong, as far as a caller would act on it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Timeout | ErrorKind::Unavailable)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
