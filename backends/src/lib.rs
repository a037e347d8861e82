//! The stores behind larder: each knows bytes, keys and leases, and nothing of the values in them.

#[cfg(feature = "redis")]
mod health;
#[cfg(any(feature = "memcached", feature = "redis"))]
mod join;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "redis")]
pub mod redis;
mod registry;
#[cfg(any(feature = "memcached", feature = "redis"))]
mod tls;
#[cfg(any(feature = "memcached", feature = "redis"))]
#[cfg_attr(
    not(feature = "__transport"),
    expect(unreachable_pub, reason = "public behind the hidden feature")
)]
mod transport;

#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisCluster, RedisConfig};
#[cfg(feature = "memcached")]
pub use memcached::{BulkForm, Hashing, Memcached, MemcachedConfig};
#[cfg(feature = "memory")]
pub use memory::{Memory, MemoryConfig};
pub use registry::{BuilderExt, Registry};
