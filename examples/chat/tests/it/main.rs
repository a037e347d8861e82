//! The chat from outside: requests in, answers out, on a database and a store of its own for each test.

mod bundle;
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
mod users;
