//! What only SQLite does: one writer at a time, and commits that a reader can hold up.

use std::time::Duration;

use larder_core::conformance::Database as _;
use larder_core::{CommitFailure, Edit, ErrorKind, Register as _, Source as _, Transactional};
use larder_sqlx::{Sqlite, SqliteOutbox, sqlite};
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode};

use crate::databases::OnSqlite;

const LONG: Duration = Duration::from_secs(60);

async fn run(conn: &mut SqliteConnection, statements: &'static str) {
    sqlx::raw_sql(statements).execute(conn).await.unwrap();
}

#[tokio::test]
async fn commit_that_a_deferred_constraint_refuses_has_failed() {
    let database = OnSqlite::start().await;
    let source = database.source().await;
    let mut tx = source.begin().await.unwrap();
    run(
        &mut tx,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY); \
         CREATE TABLE child (of INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED); \
         INSERT INTO child VALUES (1)",
    )
    .await;
    let failed = Sqlite::commit(tx).await;
    assert!(
        matches!(&failed, Err(CommitFailure::Failed(_))),
        "{failed:?}"
    );
    // The connection is as good as before.
    let mut tx = source.begin().await.unwrap();
    database.write(&mut tx).await;
    Sqlite::commit(tx).await.unwrap();
    assert_eq!(database.written().await, 1);
}

#[tokio::test]
async fn commit_that_a_reader_holds_up_has_failed() {
    let impatient = |options: sqlx::sqlite::SqliteConnectOptions| {
        options
            .journal_mode(SqliteJournalMode::Delete)
            .busy_timeout(Duration::from_millis(50))
    };
    let database = OnSqlite::bare(impatient).await;
    let source = database.source().await.bounded();
    let mut reader = source.readers().begin().await.unwrap();
    let read = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM written");
    read.fetch_one(&mut *reader).await.unwrap();
    let mut tx = source.begin().await.unwrap();
    database.write(&mut tx).await;
    let failed = Sqlite::commit(tx).await;
    assert!(
        matches!(&failed, Err(CommitFailure::Failed(_))),
        "{failed:?}"
    );
    reader.rollback().await.unwrap();
    assert_eq!(database.written().await, 0);
}

#[tokio::test]
async fn lost_connection_leaves_a_commit_unknown() {
    for error in [
        sqlx::Error::WorkerCrashed,
        sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into()),
        sqlx::Error::PoolTimedOut,
    ] {
        let failure = sqlite::commit_failure(error);
        assert!(matches!(failure, CommitFailure::Unknown(_)), "{failure:?}");
    }
}

#[tokio::test]
async fn busy_file_is_tried_again() {
    let impatient = |options: sqlx::sqlite::SqliteConnectOptions| {
        options.busy_timeout(Duration::from_millis(50))
    };
    let database = OnSqlite::bare(impatient).await;
    sqlite::migrate(&database.writer).await.unwrap();
    let (here, there) = (database.source().await, database.source().await);
    let _open = here.begin().await.unwrap();
    let outbox = there.outbox().unwrap();
    let error = outbox.done(&[1]).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    // What reads isn't held up.
    outbox.read().await.unwrap();
    assert!(outbox.claim(1, LONG, LONG).await.unwrap().is_empty());
}

fn mint() -> Edit {
    Edit::Mint {
        id: "live".to_owned(),
        version: "1".to_owned(),
        pool: "memory:".to_owned(),
        holder: "a test".to_owned(),
        manifest: "{}".to_owned(),
        ttl: LONG,
    }
}

#[tokio::test]
async fn emptied_tables_are_used_again() {
    let database = OnSqlite::start().await;
    let source = database.source().await;
    let outbox = source.outbox().unwrap();
    let empty = "DELETE FROM larder_relay; DELETE FROM larder_schema";
    run(&mut database.writer.acquire().await.unwrap(), empty).await;
    outbox.edit(&mut |_| Ok(vec![mint()])).await.unwrap();
    let mut tx = source.begin().await.unwrap();
    let rows = ["{}".to_owned()];
    let pushed = outbox.push(&mut tx, "live", &rows, Duration::ZERO).await;
    pushed.unwrap();
    Sqlite::commit(tx).await.unwrap();
    assert_eq!(outbox.claim(1, LONG, LONG).await.unwrap().len(), 1);
    // Which version they have, nobody knows any more.
    let error = sqlite::migrate(&database.writer).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("make them again"), "{error}");
}

#[tokio::test]
async fn id_of_a_row_is_never_used_again() {
    let database = OnSqlite::start().await;
    let source = database.source().await;
    let outbox = source.outbox().unwrap();
    outbox.edit(&mut |_| Ok(vec![mint()])).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut tx = source.begin().await.unwrap();
        let pushed = outbox.push(&mut tx, "live", &["{}".to_owned()], LONG).await;
        Sqlite::commit(tx).await.unwrap();
        ids.extend(pushed.unwrap());
        outbox.done(&ids).await.unwrap();
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn tables_are_made_once_by_many_at_once() {
    let database = OnSqlite::bare(|options| options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (_, writer) = database.pools().await;
        tasks.spawn(async move { sqlite::migrate(&writer).await });
    }
    while let Some(made) = tasks.join_next().await {
        made.unwrap().unwrap();
    }
    let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM larder_schema");
    assert_eq!(count.fetch_one(&database.writer).await.unwrap(), 1);
}

#[tokio::test]
async fn missing_tables_are_said_with_what_to_do() {
    let database = OnSqlite::bare(|options| options).await;
    let (readers, writer) = database.pools().await;
    let error = SqliteOutbox::new(readers, writer).read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_string().contains("larder_sqlx::sqlite::migrate"),
        "{error}"
    );
}

#[tokio::test]
async fn source_without_an_outbox_needs_no_tables() {
    let database = OnSqlite::bare(|options| options).await;
    let source = database.source().await.bounded();
    assert!(source.outbox().is_none());
    let mut tx = source.begin().await.unwrap();
    database.write(&mut tx).await;
    Sqlite::commit(tx).await.unwrap();
    assert_eq!(database.written().await, 1);
}
