//! What needs several crates, or real servers: one binary.

mod memcached;
mod read;
mod service;
mod tiers;
