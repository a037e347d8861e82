//! Who asks, and so which way a read goes.

use std::sync::Arc;

use super::{Cache, DeployTier, NoTier, RequestTier, Source};

/// Who asks: the cache, a request, the application's own state, or a connection past the cache.
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` isn't a reader of `{S}`",
    note = "readers are `&cache`, `&request`, `Direct(&mut connection)`, and what implements `Reader` for a type of the \
            application's own; those that are held are lent: `&cache`, not `cache`"
)]
pub trait Reader<'a, S: Source>: Send {
    /// The way this reader's reads go.
    fn route(self) -> Route<'a, S>;
}

/// The way a read goes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Route<'a, S: Source> {
    /// Through the cache, and through the tier of the scope that the handle may carry.
    Cached(&'a Cache<S>),
    /// Past the cache: the loader runs on this connection, sees its own writes, and fills nothing.
    Direct(&'a mut S::Conn),
}

/// A reader that lives as long as one request, so that values may be kept for it; or one past the cache.
///
/// larder's own are `&Request` and [`Direct`]. A type of the application's own that holds a request becomes one by taking
/// the request's way; one that routes to a cache without a request is answered, and nothing is kept for it.
///
/// ```
/// # use larder_core::{Cache, Reader, Route, ScopedReader, Source};
/// # struct Request<S: Source>(Cache<S>);
/// # impl<'a, S: Source> Reader<'a, S> for &'a Request<S> { fn route(self) -> Route<'a, S> { Route::Cached(&self.0) } }
/// # impl<'a, S: Source> ScopedReader<'a, S> for &'a Request<S> {}
/// struct Visit<S: Source> {
///     request: Request<S>, // larder's
///     // … the user, the locale, clocks
/// }
///
/// impl<'a, S: Source> Reader<'a, S> for &'a Visit<S> {
///     fn route(self) -> Route<'a, S> {
///         self.request.route()
///     }
/// }
///
/// impl<'a, S: Source> ScopedReader<'a, S> for &'a Visit<S> {}
/// ```
#[diagnostic::on_unimplemented(
    message = "a data set with `type Tier = RequestTier` is read with a request, and `{Self}` isn't one",
    label = "has no request scope",
    note = "take a `larder::Request` (the extractor below a `RequestLayer`, or `Request::begin(&cache)` in a job or a \
            test) and read with `&request`",
    note = "a type of your own that holds a request reads like it: write `impl ScopedReader` beside its `impl Reader`",
    note = "inside a transaction read with `&mut tx`, or `Direct(&mut connection)`; for data that is read without a request, set \
            `type Tier = NoTier`"
)]
pub trait ScopedReader<'a, S: Source>: Reader<'a, S> {}

/// A reader that may ask for data of this tier: any reader, or a [`ScopedReader`] for [`RequestTier`].
///
/// It follows from [`Reader`] and [`ScopedReader`]; nobody else implements it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't read data with `type Tier = {T}`",
    note = "data with `type Tier = RequestTier` is read with a request: take a `larder::Request` (the extractor below a \
            `RequestLayer`, or `Request::begin(&cache)` in a job or a test) and read with `&request`",
    note = "other data is read with `&request` too, with `&cache`, or with what implements `Reader` for a type of your own"
)]
pub trait ReaderOf<'a, S: Source, T>: Reader<'a, S> {}

impl<'a, S: Source, R: Reader<'a, S>> ReaderOf<'a, S, NoTier> for R {}
impl<'a, S: Source, R: Reader<'a, S>> ReaderOf<'a, S, DeployTier> for R {}
impl<'a, S: Source, R: ScopedReader<'a, S>> ReaderOf<'a, S, RequestTier> for R {}

impl<'a, S: Source> Reader<'a, S> for &'a Cache<S> {
    fn route(self) -> Route<'a, S> {
        Route::Cached(self)
    }
}

/// A reader that is shared, as the state of a web service often is.
impl<'a, S: Source, T: Sync + Send> Reader<'a, S> for &'a Arc<T>
where
    &'a T: Reader<'a, S>,
{
    fn route(self) -> Route<'a, S> {
        (**self).route()
    }
}

impl<'a, S: Source, T: Sync + Send> ScopedReader<'a, S> for &'a Arc<T> where
    &'a T: ScopedReader<'a, S>
{
}

/// Who holds a cache, and so can flush by hand: the cache itself, a request, the application's own state.
///
/// What a request holds is the cache as the request reads through it, so that a flush is seen by the request at once.
/// `#[derive(Reader)]` implements it beside [`Reader`].
///
/// ```
/// # use larder_core::{Cache, HasCache, Source};
/// struct App<S: Source> {
///     cache: Cache<S>,
///     // …
/// }
///
/// impl<S: Source> HasCache<S> for App<S> {
///     fn cache(&self) -> &Cache<S> {
///         &self.cache
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` holds no cache of `{S}`",
    note = "`flush`, `warm` and `prime` take `&cache`, `&request`, or a type of the application's own that derives `Reader`",
    note = "a transaction flushes what it is told: `tx.changed(Change::update(&before, &after))`"
)]
pub trait HasCache<S: Source>: Sync {
    /// The cache.
    fn cache(&self) -> &Cache<S>;
}

impl<S: Source> HasCache<S> for Cache<S> {
    fn cache(&self) -> &Self {
        self
    }
}

impl<S: Source, T: HasCache<S> + Send> HasCache<S> for Arc<T> {
    fn cache(&self) -> &Cache<S> {
        (**self).cache()
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

impl<'a, S: Source> ScopedReader<'a, S> for Direct<'a, S::Conn> {}
