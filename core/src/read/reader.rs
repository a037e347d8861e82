//! Who asks, and so which way a read goes.

use super::{Cache, Source};

/// Who asks: the cache, the application's own state, or a connection past the cache.
///
/// ```
/// # use larder_core::{Cache, Reader, Route, Source};
/// # struct Inner; struct Db; #[derive(Clone)] struct S;
/// # impl Source for S { type Conn = (); type Guard = Box<()>; type Error = std::convert::Infallible;
/// #   async fn acquire(&self) -> Result<Box<()>, Self::Error> { Ok(Box::new(())) } }
/// struct App {
///     cache: Cache<S>,
///     // …
/// }
///
/// impl<'a> Reader<'a, S> for &'a App {
///     fn route(self) -> Route<'a, S> {
///         Route::Cached(&self.cache)
///     }
/// }
/// ```
pub trait Reader<'a, S: Source>: Send {
    /// The way this reader's reads go.
    fn route(self) -> Route<'a, S>;
}

/// The way a read goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Route<'a, S: Source> {
    /// Through the cache.
    Cached(&'a Cache<S>),
    /// Past the cache: the loader runs on this connection, sees its own writes, and fills nothing.
    Direct(&'a mut S::Conn),
}

impl<'a, S: Source> Reader<'a, S> for &'a Cache<S> {
    fn route(self) -> Route<'a, S> {
        Route::Cached(self)
    }
}

/// Reads on this connection, past the cache: inside a transaction, where one's own writes must be seen and what they
/// show must not be filled.
#[derive(Debug)]
pub struct Direct<'a, C: ?Sized>(pub &'a mut C);

impl<'a, S: Source> Reader<'a, S> for Direct<'a, S::Conn> {
    fn route(self) -> Route<'a, S> {
        Route::Direct(self.0)
    }
}
