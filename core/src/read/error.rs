//! How reads and flushes fail.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::contract::Error;

/// Why there is no value.
///
/// It is cloneable, because everyone who waits for a load is given its error. A store in trouble has no variant: it
/// costs a load.
#[non_exhaustive]
pub enum LoadError<E> {
    /// The loader, or acquiring its connection, failed.
    Loader(Arc<E>),
    /// The load panicked, or the runtime was shut down under it.
    Panicked {
        /// The data set.
        accessor: &'static str,
    },
    /// The load took longer than the accessor's `LOAD_TIMEOUT`.
    Timeout {
        /// The data set.
        accessor: &'static str,
        /// Its limit.
        after: Duration,
    },
    /// The load found no place below the caps on concurrent loads in time: the source is slower than it is asked.
    Overloaded {
        /// The data set.
        accessor: &'static str,
        /// How long it waited: the cache's `load_queue`.
        after: Duration,
    },
    /// A loader asked, through the cache, for the very value it was loading.
    Recursive {
        /// The data set.
        accessor: &'static str,
    },
    /// The cache was closed.
    Closed {
        /// The data set.
        accessor: &'static str,
    },
}

impl<E> LoadError<E> {
    /// The loader's own error, if it is one.
    pub fn loader(&self) -> Option<&E> {
        match self {
            Self::Loader(error) => Some(error),
            _ => None,
        }
    }
}

impl<E> Clone for LoadError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Loader(error) => Self::Loader(Arc::clone(error)),
            Self::Panicked { accessor } => Self::Panicked { accessor },
            Self::Timeout { accessor, after } => Self::Timeout {
                accessor,
                after: *after,
            },
            Self::Overloaded { accessor, after } => Self::Overloaded {
                accessor,
                after: *after,
            },
            Self::Recursive { accessor } => Self::Recursive { accessor },
            Self::Closed { accessor } => Self::Closed { accessor },
        }
    }
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(error) => error.fmt(f),
            Self::Panicked { accessor } => write!(f, "the load of `{accessor}` panicked"),
            Self::Timeout { accessor, after } => write!(
                f,
                "the load of `{accessor}` took longer than its LOAD_TIMEOUT of {after:?}"
            ),
            Self::Overloaded { accessor, after } => write!(
                f,
                "the load of `{accessor}` waited {after:?} for a place below the cap on concurrent loads; \
                 the source is slower than it is asked"
            ),
            Self::Recursive { accessor } => write!(
                f,
                "the loader of `{accessor}` asked through the cache for a value it was loading"
            ),
            Self::Closed { accessor } => {
                write!(
                    f,
                    "`{accessor}` can't be loaded, since the cache was closed"
                )
            }
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(error) => f.debug_tuple("Loader").field(error).finish(),
            Self::Panicked { accessor } => f.debug_tuple("Panicked").field(accessor).finish(),
            Self::Timeout { accessor, after } => f
                .debug_tuple("Timeout")
                .field(accessor)
                .field(after)
                .finish(),
            Self::Overloaded { accessor, after } => f
                .debug_tuple("Overloaded")
                .field(accessor)
                .field(after)
                .finish(),
            Self::Recursive { accessor } => f.debug_tuple("Recursive").field(accessor).finish(),
            Self::Closed { accessor } => f.debug_tuple("Closed").field(accessor).finish(),
        }
    }
}

impl<E: StdError + 'static> StdError for LoadError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // `Loader` shows the loader's error as its own, so its cause is that error's cause.
        self.loader().and_then(StdError::source)
    }
}

/// Which keys a flush couldn't confirm.
///
/// Their entries may be served until their TTL: nothing is retried.
#[derive(Clone, Debug)]
pub struct FlushError {
    pub(crate) accessor: &'static str,
    pub(crate) keys: Vec<String>,
    pub(crate) cause: Error,
}

impl FlushError {
    /// The keys, without their prefix, whose entries may still be there.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Why the first of them wasn't confirmed.
    pub fn cause(&self) -> &Error {
        &self.cause
    }
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of the flushed keys of `{}` weren't confirmed, so that their entries may be served until their TTL: {}",
            self.keys.len(),
            self.accessor,
            self.cause
        )
    }
}

impl StdError for FlushError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}
