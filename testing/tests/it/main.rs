//! The kit, tested on larder's own tables, on sqlx's, and on real servers.
#![expect(
    clippy::future_not_send,
    reason = "what a test awaits, it awaits in its own task"
)]

mod audit;
mod checks;
mod counting;
mod durable;
mod faults;
mod isolation;
mod statements;
mod stores;
mod subscribers;
mod users;
