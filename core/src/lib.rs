//! Contracts and logic of larder; opens no socket.
//!
//! Users depend on the façade crate `larder`, authors of backends on this one: see [`contract`].

pub mod contract;
pub mod entry;
mod rt;

pub use contract::*;
pub use rt::{Instant, Rt};
