//! Why the chat can't start.

use std::fmt;

/// The result of a step of the start.
pub type StartResult<T> = Result<T, StartError>;

/// Why the chat can't start: one line that says who, what and what next, with the cause at its end.
#[derive(Debug)]
pub struct StartError(String);

impl StartError {
    /// A reason of its own.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Says what an error happened during.
pub(crate) trait During<T> {
    /// The error becomes these words, a colon and its own.
    fn during(self, what: impl fmt::Display) -> StartResult<T>;
}

impl<T, E: fmt::Display> During<T> for Result<T, E> {
    fn during(self, what: impl fmt::Display) -> StartResult<T> {
        self.map_err(|cause| StartError(format!("{what}: {cause}")))
    }
}
