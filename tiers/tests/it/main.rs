//! The in-process tiers as caches and services use them.
#![expect(
    clippy::disallowed_methods,
    reason = "tests spawn and yield as users do"
)]

mod budget;
mod config;
mod edges;
mod extract;
mod layer;
mod model;
mod races;
mod request;
mod scope;
mod support;
