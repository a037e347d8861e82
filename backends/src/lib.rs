//! Stores

#[cfg(feature = "memcached")]
pub mod memcached;
