//! Reading: data sets, who asks, and what happens on a miss.
//!
//! [`get`] and [`get_many`] ask the store first, open what it has, and load what it hasn't: one exchange, one call of
//! the loader, one fill. The parts, in the order in which a read meets them: [`Reader`] says whether to go through the
//! cache, [`Cache`] holds what one service shares, `accessor` what one data set shares, `fetch` is the way of one
//! call, `flight` makes many callers wait for one load, `load` is that load.

mod accessor;
mod accessors;
mod again;
mod backoff;
mod batch;
mod cache;
mod dataset;
mod error;
mod fetch;
mod flight;
mod flush;
mod listener;
mod load;
mod memo;
mod reader;
#[cfg(feature = "axum")]
mod response;
mod scope;
mod source;
mod tier;

pub(crate) use accessor::{Accessor, AnyAccessor, Setting};
pub(crate) use accessors::Accessors;
pub use again::{AnyKey, Difference, Seen};
pub use batch::{Batch, Missing};
pub(crate) use cache::Shared;
pub use cache::{Cache, CacheBuilder};
pub(crate) use dataset::KeyOf;
pub use dataset::{
    Answer, BoxError, Dataset, Form, Immutable, Lifetime, Plain, Rows, Unstored, Weigh,
};
pub use error::{FlushError, LoadError};
pub use fetch::{get, get_many, prime, refresh, uncached, warm};
pub use listener::{Event, HitEvent, Listener, ReadEvent};
pub use reader::{Direct, HasCache, Reader, ReaderOf, Route, ScopedReader};
pub use scope::{Kept, Mark, Recall, Scope, Scopes, SharedValue, TierStats, TiersStats};
pub use source::Source;
pub use tier::{Changing, DeployImmutable, DeployTier, NoTier, RequestTier, Tier, TierKind};
