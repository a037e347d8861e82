//! What a backend's author needs, and nothing else: the trait, keys, leases, errors, configuration.

mod backend;
pub mod config;
mod error;
mod key;
mod lease;
mod prefix;
mod prefix_file;

pub use backend::{
    Backend, BackendExt, BackendStats, CallStats, Fill, FillOutcome, Found, GetOptions, Lookup,
    Lost, Pool, Reach, ServerAnswer, ServerCheck, ServerStats, Set, Trips, WriteOptions,
};
pub use config::{Config, PrefixSettings, Settings};
pub use error::{Error, ErrorKind, Result};
pub use key::{Key, KeyPart, KeyWriter, Keys, MAX_KEY};
pub use lease::{Lease, Token};
pub use prefix::{MAX_PREFIX, Prefix};
