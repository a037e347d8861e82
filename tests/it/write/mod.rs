//! Writing: no reader is given what was there before an acknowledged write, whatever happens.

mod commits;
mod ledger;
mod office;
