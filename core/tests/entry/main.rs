//! Entries by their public interface: what is sealed is opened, and nothing else is.
#![cfg(all(
    feature = "postcard",
    feature = "rmp",
    feature = "bincode",
    feature = "json",
    feature = "zstd"
))]

mod damage;
mod dictionaries;
mod evolution;
mod fingerprints;
mod hostile;
mod round_trip;
mod support;
