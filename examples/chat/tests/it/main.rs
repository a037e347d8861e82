//! The chat from outside: requests in, answers out, on a database and a store of its own for each test.
#![expect(
    clippy::future_not_send,
    reason = "what a test awaits, it awaits in its own task"
)]

mod bundle;
mod caching;
mod client_errors;
mod filling;
mod fresh;
mod messages;
mod overload;
mod page;
mod plans;
mod stopping;
mod store;
mod streams;
mod support;
mod tutorial;
mod users;
