//! What needs several crates, or real servers: one binary.

mod attributes;
mod consistency;
mod guide;
mod memcached;
mod read;
mod redis;
mod service;
mod tiers;
mod write;
