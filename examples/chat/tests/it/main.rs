//! The chat from outside: requests in, answers out, on a database and a store of its own for each test.

mod filling;
mod messages;
mod overload;
mod page;
mod store;
mod support;
mod users;
