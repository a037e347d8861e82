//! Where loads come from.

use std::error::Error;
use std::ops::DerefMut;
use std::sync::Arc;

use crate::write::Outbox;

/// Where loads come from: an sqlx pool, an HTTP client, a `Vec` in a test.
///
/// A load acquires its connection after the lease was won, so that what it reads is never older than the lease.
/// Implementations hand out a connection without an open transaction, to a primary that has every acknowledged write.
///
/// ```
/// use std::convert::Infallible;
/// use std::sync::Arc;
/// use larder_core::Source;
///
/// /// A source whose connection is a shared client that needs no acquiring.
/// #[derive(Clone)]
/// struct Weather(Arc<WeatherClient>);
/// # struct WeatherClient;
///
/// impl Source for Weather {
///     type Conn = WeatherClient;
///     type Guard = Box<WeatherClient>; // a pool's guard, usually
///     type Error = Infallible;
///
///     async fn acquire(&self) -> Result<Self::Guard, Self::Error> {
///         Ok(Box::new(WeatherClient))
///     }
/// }
/// ```
pub trait Source: Clone + Send + Sync + 'static {
    /// What loaders get: `SqliteConnection`, a client, the user's enum of both.
    type Conn: ?Sized + Send;
    /// What holds it, and gives it back when dropped.
    type Guard: DerefMut<Target = Self::Conn> + Send + 'static;
    /// Why there is none.
    type Error: Error + Send + Sync + 'static;

    /// A connection for one load.
    fn acquire(&self) -> impl Future<Output = Result<Self::Guard, Self::Error>> + Send;

    /// The database's memory of flushes, and of the generations that are running; without one, a prefix is configured, and
    /// a flush that a crash prevents is made up for by the TTL.
    fn outbox(&self) -> Option<Arc<dyn Outbox<Self::Conn>>> {
        None
    }
}
