//! The Redis client against real servers, beyond what every backend passes.

mod cluster;
mod traffic;
