//! Contracts and logic of larder; opens no socket.
//!
//! Users depend on the façade crate `larder`, authors of backends on this one: see [`contract`].

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contract;
pub mod entry;
mod observed;
#[cfg(feature = "metrics")]
mod publish;
mod read;
mod rt;
mod stats;

pub use contract::*;
pub use entry::{Codec, Compression, Dictionary};
pub use observed::Observed;
pub use read::*;
pub use rt::{Instant, Rt, Turn};
pub use stats::{AccessorStats, CacheStats, Latency, Tally};
