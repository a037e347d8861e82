//! The data that `ratios_tiers` reads, and its memory run.

pub mod data;
pub mod memory;
