//! Writing through larder in a database of [sqlx]: transactions, the outbox, and the register of generations, in
//! PostgreSQL and in SQLite.
//!
//! [`Postgres`] and [`Sqlite`] are sources over sqlx's pools, to be given to [`Cache::builder`](larder_core::Cache::builder).
//! With the tables that [`postgres::migrate`] and [`sqlite::migrate`] make, a flush survives the process that owes it;
//! `bounded()` does without them, and then what is stale after a crash is so until its TTL.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use larder_sqlx::{Sqlite, sqlite};
//!
//! let pool = sqlx::SqlitePool::connect("sqlite:chat.db").await?;
//! sqlite::migrate(&pool).await?;
//! let source = Sqlite::new(pool);
//! // larder::Cache::builder(source).…
//! # let _ = source;
//! # Ok(()) }
//! ```
//!
//! A program whose connection is something of its own, an enum over both databases for example, implements
//! [`Transactional`](larder_core::Transactional) by calling that of these sources, and [`Outbox`](larder_core::Outbox) by
//! calling [`PgOutbox`] and [`SqliteOutbox`].
//!
//! Tables, privileges, settings and costs are in `docs/databases.md`.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod read;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod trouble;

#[cfg(feature = "postgres")]
pub use postgres::{PgOutbox, Postgres};
#[cfg(feature = "sqlite")]
pub use sqlite::{Sqlite, SqliteOutbox};
