//! Real and fake servers for larder's own tests and benchmarks.

pub mod fake;
pub mod postgres;
pub mod proxy;
pub mod raw;
pub mod redis;
pub mod redis_cluster;
mod redis_raw;
pub mod sasl;
pub mod server;
pub mod tls;
