//! Accessors on the memory store: what a read answers, what it costs, and what it shares.

mod answers;
mod batching;
mod drops;
mod entries;
mod flights;
pub(crate) mod gate;
mod limits;
mod listening;
#[cfg(feature = "metrics")]
mod metrics;
mod observed;
mod requests;
mod shapes;
pub(crate) mod shelf;
mod stopping;
