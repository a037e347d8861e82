//! What needs several crates, or real servers: one binary.

mod read;
