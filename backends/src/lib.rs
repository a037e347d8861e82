//! The stores behind larder: each knows bytes, keys and leases, and nothing of the values in them.

#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(feature = "memory")]
mod memory;
mod registry;

#[cfg(feature = "memcached")]
pub use memcached::{BulkForm, Hashing, Memcached, MemcachedConfig};
#[cfg(feature = "memory")]
pub use memory::{Memory, MemoryConfig};
pub use registry::{BuilderExt, Registry};
