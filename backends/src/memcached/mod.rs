//! A pipelining memcached client.

mod transport;

pub use transport::{Address, Io, Sockets, Transport};
