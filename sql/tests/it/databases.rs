//! Databases of the tests' own.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use larder_core::conformance::Database;
use larder_harness::postgres::PostgresServer;
use larder_sqlx::{Postgres, Sqlite, postgres, sqlite};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
};
use tempfile::TempDir;

const WRITTEN: &str = "CREATE TABLE written (id INTEGER)";

/// A database of the server that the tests of this program share.
pub(crate) struct OnPostgres {
    pub(crate) server: Arc<PostgresServer>,
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

impl OnPostgres {
    /// With larder's tables.
    pub(crate) async fn start() -> Self {
        let bare = Self::bare().await;
        postgres::migrate(&bare.pool).await.unwrap();
        bare
    }

    /// Without.
    pub(crate) async fn bare() -> Self {
        let start = tokio::task::spawn_blocking(|| {
            let server = shared();
            let url = server.database();
            (server, url)
        });
        let (server, url) = start.await.unwrap();
        let pool = pool(&url).await;
        sqlx::raw_sql(WRITTEN).execute(&pool).await.unwrap();
        Self { server, url, pool }
    }
}

/// The server, started by whoever is first and ended by whoever is last.
fn shared() -> Arc<PostgresServer> {
    static SERVER: Mutex<Weak<PostgresServer>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    match server.upgrade() {
        Some(server) => server,
        None => {
            let started = Arc::new(PostgresServer::start(&["-c", "fsync=off"]));
            *server = Arc::downgrade(&started);
            started
        }
    }
}

pub(crate) async fn pool(url: &str) -> PgPool {
    let options = postgres::only_primaries(PgPoolOptions::new());
    options.max_connections(10).connect(url).await.unwrap()
}

#[async_trait]
impl Database for OnPostgres {
    type Source = Postgres;

    async fn source(&self) -> Postgres {
        Postgres::new(pool(&self.url).await)
    }

    async fn write(&self, conn: &mut PgConnection) {
        let insert = sqlx::query("INSERT INTO written VALUES (1)");
        insert.execute(conn).await.unwrap();
    }

    async fn written(&self) -> u64 {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM written");
        count.fetch_one(&self.pool).await.unwrap().unsigned_abs()
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// A file with write-ahead logging, a pool of readers and one writer.
pub(crate) struct OnSqlite {
    pub(crate) writer: SqlitePool,
    options: SqliteConnectOptions,
    _directory: TempDir,
}

impl OnSqlite {
    /// With larder's tables.
    pub(crate) async fn start() -> Self {
        let bare = Self::bare(|options| options).await;
        sqlite::migrate(&bare.writer).await.unwrap();
        bare
    }

    /// Without.
    pub(crate) async fn bare(
        adjust: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new()
            .filename(directory.path().join("test.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let options = adjust(options);
        let writer = sqlite_pool(&options, 1).await;
        sqlx::raw_sql(WRITTEN).execute(&writer).await.unwrap();
        Self {
            writer,
            options,
            _directory: directory,
        }
    }

    /// As another process has it: with pools of its own.
    pub(crate) async fn pools(&self) -> (SqlitePool, SqlitePool) {
        let readers = self.options.clone().pragma("query_only", "on");
        (
            sqlite_pool(&readers, 4).await,
            sqlite_pool(&self.options, 1).await,
        )
    }
}

async fn sqlite_pool(options: &SqliteConnectOptions, connections: u32) -> SqlitePool {
    let pool = SqlitePoolOptions::new().max_connections(connections);
    pool.connect_with(options.clone()).await.unwrap()
}

#[async_trait]
impl Database for OnSqlite {
    type Source = Sqlite;

    async fn source(&self) -> Sqlite {
        let (readers, writer) = self.pools().await;
        Sqlite::with_writer(readers, writer)
    }

    async fn write(&self, conn: &mut SqliteConnection) {
        let insert = sqlx::query("INSERT INTO written VALUES (1)");
        insert.execute(conn).await.unwrap();
    }

    async fn written(&self) -> u64 {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM written");
        count.fetch_one(&self.writer).await.unwrap().unsigned_abs()
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// One pool for everything, without foreign keys and write-ahead logging: correctness depends on neither.
pub(crate) struct OnPlainSqlite(OnSqlite);

impl OnPlainSqlite {
    pub(crate) async fn start() -> Self {
        let plain = |options: SqliteConnectOptions| {
            options
                .journal_mode(SqliteJournalMode::Delete)
                .foreign_keys(false)
        };
        let bare = OnSqlite::bare(plain).await;
        sqlite::migrate(&bare.writer).await.unwrap();
        Self(bare)
    }
}

#[async_trait]
impl Database for OnPlainSqlite {
    type Source = Sqlite;

    async fn source(&self) -> Sqlite {
        Sqlite::new(sqlite_pool(&self.0.options, 4).await)
    }

    async fn write(&self, conn: &mut SqliteConnection) {
        self.0.write(conn).await;
    }

    async fn written(&self) -> u64 {
        self.0.written().await
    }

    async fn advance(&self, duration: Duration) {
        self.0.advance(duration).await;
    }
}
