//! Writing: what a write makes stale, and how it is flushed after the commit, whatever happens.
//!
//! A [`Change`] says what was written; the flush plans (`plan`) say which keys that makes stale. The guard ([`Tx`])
//! collects them (`stale`), puts them into the outbox, commits, and has them deleted (`deliver`). What isn't confirmed is
//! held (`undelivered`) and goes on (`keeper`). What a database does for this is `store`.

mod change;
mod committed;
mod deliver;
mod entity;
mod keeper;
mod plan;
mod stale;
mod store;
mod tx;
mod undelivered;
mod writes;

pub use change::{Before, Change};
pub use committed::{CommitError, Committed, Flush, Pending, TransactionError};
pub use entity::{Entity, FieldBits, FieldSet, LockRow};
pub use plan::{FlushOn, FlushQuery, LINKED, Linked, Plan, plan};
pub use store::{
    Backlog, CommitFailure, Decide, Edit, Generation, Outbox, Purge, PutOff, Register, Registered,
    Row, RowId, Savepoint, Transactional,
};
pub use tx::Tx;

pub(crate) use keeper::{finish, start};
pub(crate) use plan::{AccessorPlan, OwnKeys, Plans, Register as RegisterDataset};
pub(crate) use stale::Stale;
pub(crate) use store::answered;
pub(crate) use undelivered::Undelivered;
pub(crate) use writes::{Own, Writes};
