//! The example service: a chat whose message history is served through larder.
//!
//! What to read first: [`data`] is what the chat caches and what makes it stale, [`writes`] is what it writes, and [`http`]
//! is where accessors are called. The rest is what a service needs besides: a [database](db), a [filling](fill) of it on
//! first start, and the [dictionaries](dictionary) that make its messages small.
//!
//! The library exists for the tests; the program is `cargo run --release -p larder-chat`.

pub mod app;
pub mod data;
pub mod db;
pub mod dictionary;
mod error;
pub mod fill;
pub mod http;
pub mod options;
pub mod release;
pub mod render;
pub mod stack;
pub mod writes;

pub use app::App;
pub(crate) use error::During;
pub use error::{StartError, StartResult};
pub use options::Options;
