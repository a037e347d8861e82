//! The data that `ratios_tiers` reads, and its memory run.

pub(crate) mod data;
pub(crate) mod memory;
