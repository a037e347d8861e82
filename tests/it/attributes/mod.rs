//! Attributes and derives: what they expand to does what the same by hand does.

mod bulk;
mod derives;
mod flushes;
mod keys;
mod options;
mod reads;
mod server;
mod tiers;
mod town;
