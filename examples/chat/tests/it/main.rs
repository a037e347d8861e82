//! The chat from outside: requests in, answers out, on a database and a store of its own for each test.

mod bundle;
mod client_errors;
mod filling;
mod messages;
mod overload;
mod page;
mod store;
mod support;
mod users;
