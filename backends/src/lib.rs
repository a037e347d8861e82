//! Stores

#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "memory")]
pub use memory::{Memory, MemoryConfig};
