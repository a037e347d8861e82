//! Reading as if nothing were cached.

use tracing::Instrument as _;

use super::scope::{self, Mark};

/// Runs this as if nothing were cached: every look-up misses, and what is loaded is stored, in place of what is there.
///
/// For tests of what a cold cache costs, without emptying a store that others use.
///
/// ```
/// # use larder_testing::doc::{Db, UserById};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use larder_testing::{TestCache, assert_loads, empty_cache};
///
/// let cache = TestCache::new(Db::of(["Ada"])).await;
/// let user = async || larder_core::get::<UserById>(&cache, &0).await.unwrap();
/// assert_loads!(1, user());
/// assert_loads!(0, user());
/// assert_loads!(1, empty_cache(user()));
/// # }
/// ```
///
/// As with [`captured`](crate::captured), that is what happens in the span that this opens, on caches that tell the kit what
/// they do. A request that begins in it has kept nothing either; one that is older keeps what it has, and so does the deploy
/// tier, whose values never change.
///
/// # Panics
///
/// If the program has set a `tracing` subscriber without [`layer`](crate::layer).
pub async fn empty_cache<T>(work: impl Future<Output = T>) -> T {
    work.instrument(scope::open(Mark::Empty)).await
}
