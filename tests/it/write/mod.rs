//! Writing: no reader is given what was there before an acknowledged write, whatever happens.

mod commits;
mod ledger;
mod office;
mod outages;
mod outbox;
mod pending;
mod plans;
mod registration;
mod requests;
mod servers;
mod versions;
