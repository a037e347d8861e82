//! The kit for tests of services that cache with larder.
//!
//! A service's tests want three things of its cache: not to see each other, to know what a request costs, and to be told
//! when what is cached isn't true. [`TestCache`] is a cache of a test's own, on any store; [`captured`] and
//! [`assert_trips!`] count; [`assert_flushes_complete`] writes every field of an entity, and compares
//! every answer with the database's; [`Faults`] has things go wrong. `docs/testing.md` shows all of it at work.
//!
//! The façade re-exports this as `larder::testing`, with its feature `testing`.

mod audit;
mod capture;
#[doc(hidden)]
pub mod doc;
mod faults;
mod test_cache;

pub use audit::{Finding, FlushAudit, Problem, assert_flushes_complete};
pub use capture::{
    AccessorCounts, Asked, BackendCounts, Captured, Loop, Recorded, Recording, captured,
    empty_cache, layer,
};
pub use faults::{Fault, Faults, Faulty, Op};
pub use test_cache::{TestCache, TestCacheBuilder};
