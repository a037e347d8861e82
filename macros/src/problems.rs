//! Mistakes, collected so that all of them are shown at once.

use proc_macro2::{Span, TokenStream};
use syn::{Error, Result};

/// What is wrong so far.
#[derive(Default)]
pub(crate) struct Problems(Option<Error>);

impl Problems {
    /// One more.
    pub(crate) fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// One more, at this place.
    pub(crate) fn at(&mut self, span: Span, problem: impl std::fmt::Display) {
        self.add(Error::new(span, problem));
    }

    /// Keeps what went well.
    pub(crate) fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What the compiler shows of them.
    pub(crate) fn shown(self) -> Option<TokenStream> {
        self.0.map(Error::into_compile_error)
    }

    /// An error, if anything is wrong.
    pub(crate) fn check(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
