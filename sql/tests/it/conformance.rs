//! Both databases pass the suite of databases.

use crate::databases::{OnPlainSqlite, OnPostgres, OnSqlite};

larder_core::database_conformance! {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    on_postgres => OnPostgres::start().await;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    on_sqlite => OnSqlite::start().await;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    on_sqlite_with_one_pool => OnPlainSqlite::start().await;
}
