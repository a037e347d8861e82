//! The reader of one request.

use std::fmt;
use std::sync::Arc;

use larder_core::{Cache, HasCache, Reader, Route, ScopedReader, Source, Tally};

/// A reader for one request, or for one job: what it reads of data sets of the request tier is kept until it ends.
///
/// A `RequestLayer` makes one for each HTTP request; a job or a test [begins](Self::begin) its own. It is a handle: clone
/// it and pass the clone into `tokio::spawn`. It ends when it is told so, or with its last clone.
///
/// ```
/// # use std::{convert::Infallible, sync::Arc, time::Duration};
/// # use larder_core::{Cache, Dataset, Lifetime, Plain, RequestTier, Rt, Rows, Source};
/// # #[derive(Clone)] struct Db;
/// # impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible; async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
/// # enum DisplayNames {}
/// # impl Dataset for DisplayNames {
/// #     const NAME: &'static str = "display_name"; const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(60));
/// #     type Source = Db; type Key = u64; type Value = String; type Form = Plain; type Tier = RequestTier; type Error = Infallible;
/// #     fn flush_on(plan: &mut larder_core::FlushOn<Self>) { plan.by_hand(); }
/// #     async fn load(_: &mut (), ids: Vec<u64>) -> Result<Rows<Self>, Infallible> { Ok(ids.into_iter().map(|id| (id, format!("user {id}"))).collect()) }
/// # }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = larder_backends::Memory::new(Default::default(), Rt::new())?;
/// use larder_tiers::{Request, Tiers};
///
/// let cache = Cache::builder(Db)
/// #   .backend(Arc::new(memory))
///     .tiers(Tiers::default())
///     // …
///     .build()
///     .await?;
/// let request = Request::begin(&cache);
/// let name = larder_core::get::<DisplayNames>(&request, &7).await?;
///
/// let clone = request.clone();
/// let task = tokio::spawn(async move { larder_core::get::<DisplayNames>(&clone, &7).await });
/// let same = task.await??;
/// assert!(Arc::ptr_eq(&name.unwrap(), &same.unwrap())); // one value for all of the request
/// # Ok(()) }
/// ```
pub struct Request<S: Source> {
    cache: Cache<S>,
}

impl<S: Source> Request<S> {
    /// Begins a request of its own, whatever the handle belongs to.
    ///
    /// In a cache without tiers it is a reader that keeps nothing.
    pub fn begin(cache: &Cache<S>) -> Self {
        let scope = cache.tiers().map(|tiers| tiers.request());
        Self {
            cache: cache.within(scope),
        }
    }

    /// A clone that batches: calls of [`get`](larder_core::get) that are made through it, or through its clones, at the
    /// same time become one bulk read for each data set, as [`Cache::batched`] tells. Two requests never share a batch.
    ///
    /// ```
    /// # use std::{convert::Infallible, sync::Arc, time::Duration};
    /// # use larder_core::{Cache, Dataset, Lifetime, Plain, RequestTier, Rt, Rows, Source};
    /// # use larder_tiers::{Request, Tiers};
    /// # #[derive(Clone)] struct Db;
    /// # impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible; async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
    /// # enum DisplayNames {}
    /// # impl Dataset for DisplayNames {
    /// #     const NAME: &'static str = "display_name"; const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(60));
    /// #     type Source = Db; type Key = u64; type Value = String; type Form = Plain; type Tier = RequestTier; type Error = Infallible;
    /// #     fn flush_on(plan: &mut larder_core::FlushOn<Self>) { plan.by_hand(); }
    /// #     async fn load(_: &mut (), ids: Vec<u64>) -> Result<Rows<Self>, Infallible> { Ok(ids.into_iter().map(|id| (id, format!("user {id}"))).collect()) }
    /// # }
    /// # struct Message { sender: u64, text: &'static str }
    /// # type Error = larder_core::LoadError<Infallible>;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let memory = larder_backends::Memory::new(Default::default(), Rt::new())?;
    /// # let cache = Cache::builder(Db).backend(Arc::new(memory)).tiers(Tiers::default()).build().await?;
    /// # let (cache, tally) = cache.tallied();
    /// # let messages = [7, 8, 9].map(|sender| Message { sender, text: "hello" });
    /// /// Knows nothing of the other messages on the page.
    /// async fn line(request: &Request<Db>, message: &Message) -> Result<String, Error> {
    ///     let name = larder_core::get::<DisplayNames>(request, &message.sender).await?;
    ///     let name = name.as_deref().map_or("somebody", String::as_str);
    ///     Ok(format!("{name}: {}", message.text))
    /// }
    ///
    /// let request = Request::begin(&cache).batched();
    /// let lines = messages.iter().map(|message| line(&request, message));
    /// let page = futures_util::future::try_join_all(lines).await?;
    ///
    /// assert_eq!(page, ["user 7: hello", "user 8: hello", "user 9: hello"]);
    /// assert_eq!(tally.loads(), 1); // all three senders in one query
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn batched(&self) -> Self {
        Self {
            cache: self.cache.batched(),
        }
    }

    /// The cache, as this request reads and flushes through it.
    ///
    /// A flush by it also drops what the request keeps: `request.cache().flush::<UserById>([7])`.
    pub fn cache(&self) -> &Cache<S> {
        &self.cache
    }

    /// What the request counts for, if it was begun with a tallied handle.
    pub fn tally(&self) -> Option<&Arc<Tally>> {
        self.cache.tally()
    }

    /// Ends it, for all its clones: what it kept is out of reach at once, and removed soon after. Reads still answer, by
    /// way of the store.
    pub fn end(&self) {
        if let Some(scope) = self.cache.scope() {
            scope.end();
        }
    }
}

impl<S: Source> Clone for Request<S> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
        }
    }
}

impl<S: Source> fmt::Debug for Request<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("scope", &self.cache.scope())
            .finish_non_exhaustive()
    }
}

impl<'a, S: Source> Reader<'a, S> for &'a Request<S> {
    fn route(self) -> Route<'a, S> {
        Route::Cached(&self.cache)
    }
}

impl<'a, S: Source> ScopedReader<'a, S> for &'a Request<S> {}

impl<S: Source> HasCache<S> for Request<S> {
    fn cache(&self) -> &Cache<S> {
        &self.cache
    }
}
