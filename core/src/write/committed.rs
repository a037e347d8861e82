//! What a commit answers.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use tokio::sync::watch;

use crate::Rt;
use crate::contract::Error;

/// The write is committed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Committed {
    /// What is known of the flush.
    pub flush: Flush,
    /// How long it took, after the commit.
    pub flushing: Duration,
}

/// Whether what a write made stale is gone.
#[derive(Clone, Debug)]
pub enum Flush {
    /// Every owner of every key in every live generation has confirmed: no reader that begins now is given what was
    /// before.
    Fresh,
    /// Some owner didn't confirm. Other processes may still read what was before; this one reads these keys from the
    /// source.
    Pending(Pending),
}

impl Flush {
    /// Whether everybody sees the write.
    pub const fn is_fresh(&self) -> bool {
        matches!(self, Self::Fresh)
    }

    /// `fresh` or `pending`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Pending(_) => "pending",
        }
    }
}

/// A flush that goes on.
#[derive(Clone)]
pub struct Pending {
    state: watch::Receiver<State>,
    cause: Error,
}

/// How far a pending flush has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Delivered,
    /// This process doesn't wait for it any more; without an outbox, entries may be old until their TTL.
    GivenUp,
}

/// Ends the waiting for a [`Pending`].
#[derive(Debug)]
pub(super) struct Deliver(watch::Sender<State>);

impl Pending {
    pub(super) fn new(cause: Error) -> (Deliver, Self) {
        let (sender, state) = watch::channel(State::Waiting);
        (Deliver(sender), Self { state, cause })
    }

    /// Why it wasn't confirmed at once.
    pub fn cause(&self) -> &Error {
        &self.cause
    }

    /// Waits until somebody has delivered it: this process, or any other that relays the outbox. From then on it is as
    /// good as [`Flush::Fresh`].
    ///
    /// `false` if nobody here will know: when the cache was closed; when more than 100,000 flushes wait in this process; or,
    /// without an outbox, when more keys had to be remembered than there is room for. With an outbox the flush is delivered
    /// even so, by whoever relays it.
    pub async fn delivered(&self) -> bool {
        let mut state = self.state.clone();
        let over = state.wait_for(|state| *state != State::Waiting).await;
        over.is_ok_and(|state| *state == State::Delivered)
    }

    pub(super) async fn delivered_within(&self, rt: &Rt, limit: Duration) -> bool {
        rt.timeout(limit, self.delivered()).await.unwrap_or(false)
    }
}

impl Deliver {
    pub(super) fn delivered(&self) {
        self.end(State::Delivered);
    }

    pub(super) fn give_up(&self) {
        self.end(State::GivenUp);
    }

    fn end(&self, end: State) {
        self.0.send_if_modified(|state| {
            let waits = *state == State::Waiting;
            if waits {
                *state = end;
            }
            waits
        });
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("state", &*self.state.borrow())
            .field("cause", &self.cause)
            .finish()
    }
}

/// Why a commit didn't come about, or isn't known to have.
#[non_exhaustive]
pub enum CommitError<E> {
    /// The database refused: nothing was committed, nothing was flushed.
    Failed(E),
    /// The connection was lost before the database answered, or no answer came within the builder's
    /// [`commit_timeout`](crate::CacheBuilder::commit_timeout), which is no error of the database's: it may have been
    /// committed, now or a moment later. What it would have made stale was flushed, and with an outbox it is flushed again
    /// should it have been committed.
    Unknown(Option<E>),
    /// Larder refused, before the database was asked: nothing was committed.
    Refused(Error),
    /// The task that commits panicked, or was cut off by the end of the runtime: nothing is known.
    Interrupted,
}

impl<E> CommitError<E> {
    /// Whether nothing was committed and the same transaction may succeed a moment later: this process was registering
    /// anew, for example.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Refused(error) if error.is_retryable())
    }

    /// Whether the write may have been committed.
    pub const fn may_have_committed(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Interrupted)
    }
}

impl<E: fmt::Display> fmt::Display for CommitError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the commit failed: {error}"),
            Self::Unknown(Some(error)) => {
                write!(f, "it isn't known whether the commit succeeded: {error}")
            }
            Self::Unknown(None) => f.write_str(
                "it isn't known whether the commit succeeded: the database didn't answer in time",
            ),
            Self::Refused(error) => error.fmt(f),
            Self::Interrupted => {
                f.write_str("the commit was interrupted, and nothing is known of it")
            }
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for CommitError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
            Self::Unknown(error) => f.debug_tuple("Unknown").field(error).finish(),
            Self::Refused(error) => f.debug_tuple("Refused").field(error).finish(),
            Self::Interrupted => f.write_str("Interrupted"),
        }
    }
}

impl<E: StdError + 'static> StdError for CommitError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) | Self::Unknown(Some(error)) => error.source(),
            Self::Refused(error) => error.source(),
            Self::Unknown(None) | Self::Interrupted => None,
        }
    }
}

/// Why a [`transaction`](crate::Cache::transaction) failed. It is an error for whatever the work fails with that can be
/// shown, `anyhow::Error` included.
#[derive(Debug)]
#[non_exhaustive]
pub enum TransactionError<W, E> {
    /// It couldn't begin.
    Begin(E),
    /// The work failed, and was rolled back.
    Work(W),
    /// It couldn't be committed.
    Commit(CommitError<E>),
}

impl<W: fmt::Display, E: fmt::Display> fmt::Display for TransactionError<W, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(error) => write!(f, "the transaction couldn't begin: {error}"),
            Self::Work(error) => error.fmt(f),
            Self::Commit(error) => error.fmt(f),
        }
    }
}

impl<W: fmt::Display + fmt::Debug, E: StdError + 'static> StdError for TransactionError<W, E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Begin(error) => error.source(),
            Self::Work(_) => None,
            Self::Commit(error) => error.source(),
        }
    }
}

impl<W, E> TransactionError<W, E> {
    /// The work's own error, if it is one.
    pub fn into_work(self) -> Option<W> {
        match self {
            Self::Work(error) => Some(error),
            Self::Begin(_) | Self::Commit(_) => None,
        }
    }
}
