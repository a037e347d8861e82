//! Both databases, for real: a cluster of PostgreSQL and files of SQLite, each test with a database of its own.

mod conformance;
mod databases;
mod notes;
mod postgres;
mod sqlite;
mod through_the_cache;
