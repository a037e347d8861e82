//! The in-process tiers of larder: decoded values that live as long as one request, or as long as the code that runs.
//!
//! [`Tiers`] are given to a cache when it is built. From then on its data sets of the deploy tier keep their values in
//! the process, and those of the request tier keep them for whoever reads with a [`Request`]. Both share one budget of
//! bytes. Nothing else is kept: what may change and is shared between requests stays in the store, where a flush reaches
//! it. Why is in `docs/architecture.md`.

mod config;
mod drops;
#[cfg(feature = "axum")]
mod extract;
#[cfg(feature = "tower")]
mod layer;
mod request;
mod room;
mod scope;
mod store;
mod tiers;

pub use config::TiersConfig;
#[cfg(feature = "axum")]
pub use extract::NoRequest;
#[cfg(feature = "tower")]
pub use layer::{RequestFuture, RequestLayer, RequestService};
pub use request::Request;
pub use tiers::Tiers;
