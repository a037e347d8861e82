//! Contracts and logic of larder; opens no socket.
//!
//! Users depend on the façade crate `larder`, authors of backends on this one: see [`contract`].

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod contract;
pub mod entry;
#[doc(hidden)]
pub mod expansion;
mod generation;
mod observed;
#[cfg(feature = "metrics")]
mod publish;
mod read;
mod rt;
mod stats;
mod switches;
mod write;

pub use contract::*;
pub use entry::{Codec, Compression, Dictionary};
pub use generation::{LiveGeneration, Uncached};
pub use observed::Observed;
pub use read::*;
pub use rt::{Clock, Instant, Rt, Turn};
pub use stats::{AccessorStats, CacheStats, Latency, Tally, WriteStats};
pub use switches::Mechanism;
pub use write::{
    Backlog, Before, Change, CommitError, CommitFailure, Committed, Decide, Edit, Entity,
    FieldBits, FieldSet, Flush, FlushOn, FlushQuery, Generation, LockRow, Outbox, Pending, Plan,
    Purge, PutOff, Register, Registered, Row, RowId, Savepoint, TransactionError, Transactional,
    Tx, plan,
};

#[doc(hidden)]
pub use expansion as private;
