//! What only PostgreSQL does: many writers at once, commits that fail late or without an answer, standbys, roles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::conformance::Database as _;
use larder_core::{
    CommitFailure, Edit, ErrorKind, Outbox, PutOff, Register as _, Savepoint, Source as _,
    Transactional,
};
use larder_harness::postgres::PostgresServer;
use larder_harness::proxy::Proxy;
use larder_sqlx::{PgOutbox, Postgres, postgres};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::databases::{OnPostgres, pool};

const LONG: Duration = Duration::from_secs(60);

fn mint(id: &str) -> Edit {
    Edit::Mint {
        id: id.to_owned(),
        version: "1".to_owned(),
        pool: "memory:".to_owned(),
        holder: "a test".to_owned(),
        manifest: "{}".to_owned(),
        ttl: LONG,
    }
}

fn delete(id: &str) -> Edit {
    Edit::Delete { id: id.to_owned() }
}

async fn edit(outbox: &PgOutbox, edits: &[Edit]) {
    let edited = outbox.edit(&mut |_| Ok(edits.to_vec())).await;
    edited.unwrap();
}

pub(crate) async fn run(conn: &mut PgConnection, statements: &str) {
    let run = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
    run.execute(conn).await.unwrap();
}

async fn push(outbox: &PgOutbox, conn: &mut PgConnection) -> larder_core::Result<Vec<i64>> {
    outbox.push(conn, "live", &["{}".to_owned()], LONG).await
}

/// Makes every commit after this (`INSERT ON slow`) wait, inside the server, until the lock 7 is free.
pub(crate) fn commit_that_waits(after: &str) -> String {
    format!(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER wait AFTER {after} DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION wait()"
    )
}

/// Waits until a commit waits for the lock; answers the pid of its server process.
pub(crate) async fn waiting_commit(url: &str) -> i32 {
    let mut conn = PgConnection::connect(url).await.unwrap();
    loop {
        let found = sqlx::query_scalar(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        );
        if let Some(pid) = found.fetch_optional(&mut conn).await.unwrap() {
            return pid;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A commit that waits in the server, and whoever holds it up.
async fn commit_under_way(
    url: &str,
) -> (
    PgConnection,
    i32,
    tokio::task::JoinHandle<Result<(), CommitFailure<sqlx::Error>>>,
) {
    let mut holder = PgConnection::connect(url).await.unwrap();
    run(&mut holder, "CREATE TABLE slow (id int)").await;
    run(&mut holder, &commit_that_waits("INSERT ON slow")).await;
    run(&mut holder, "SELECT pg_advisory_lock(7)").await;
    let source = Postgres::new(pool(url).await);
    let mut tx = source.begin().await.unwrap();
    run(&mut tx, "INSERT INTO slow VALUES (1)").await;
    let commit = tokio::spawn(Postgres::commit(tx));
    let pid = waiting_commit(url).await;
    (holder, pid, commit)
}

#[tokio::test]
async fn commit_that_a_deferred_constraint_refuses_has_failed() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let mut tx = source.begin().await.unwrap();
    run(
        &mut tx,
        "CREATE TABLE chosen (id int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO chosen VALUES (1), (1)",
    )
    .await;
    let failed = Postgres::commit(tx).await;
    assert!(
        matches!(&failed, Err(CommitFailure::Failed(_))),
        "{failed:?}"
    );
}

#[tokio::test]
async fn commit_whose_connection_is_terminated_is_unknown() {
    let database = OnPostgres::start().await;
    let (mut holder, pid, commit) = commit_under_way(&database.url).await;
    let terminate = format!("SELECT pg_terminate_backend({pid})");
    run(&mut holder, &terminate).await;
    let outcome = commit.await.unwrap();
    assert!(
        matches!(&outcome, Err(CommitFailure::Unknown(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn cancelled_commit_has_failed() {
    let database = OnPostgres::start().await;
    let (mut holder, pid, commit) = commit_under_way(&database.url).await;
    let cancel = format!("SELECT pg_cancel_backend({pid})");
    run(&mut holder, &cancel).await;
    let outcome = commit.await.unwrap();
    assert!(
        matches!(&outcome, Err(CommitFailure::Failed(_))),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_on_a_killed_server_is_unknown_and_the_source_recovers() {
    let start = || (PostgresServer::start(&[]), ());
    let (mut server, ()) = tokio::task::spawn_blocking(start).await.unwrap();
    let url = server.database();
    let source = Postgres::new(pool(&url).await);
    postgres::migrate(source.pool()).await.unwrap();
    let outbox = PgOutbox::new(source.pool().clone());
    edit(&outbox, &[mint("live")]).await;
    let mut tx = source.begin().await.unwrap();
    push(&outbox, &mut tx).await.unwrap();
    Postgres::commit(tx).await.unwrap();

    let (_holder, _, commit) = commit_under_way(&url).await;
    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        server
    });
    let mut server = server.await.unwrap();
    let outcome = commit.await.unwrap();
    assert!(
        matches!(&outcome, Err(CommitFailure::Unknown(_))),
        "{outcome:?}"
    );
    let error = outbox.backlog().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");

    let server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    });
    let _server = server.await.unwrap();
    assert_eq!(
        outbox.backlog().await.unwrap().rows,
        1,
        "it was acknowledged"
    );
}

#[tokio::test]
async fn commit_whose_answer_is_lost_is_unknown_and_there() {
    let database = OnPostgres::start().await;
    let proxy = Proxy::start(&database.server.address()).await.unwrap();
    let url = database
        .url
        .replace(&database.server.address(), &proxy.address());
    let source = Postgres::new(pool(&url).await);
    let mut tx = source.begin().await.unwrap();
    database.write(&mut tx).await;
    proxy.hold_replies();
    let commit = tokio::spawn(Postgres::commit(tx));
    proxy.held_reply().await;
    proxy.cut();
    let outcome = commit.await.unwrap();
    assert!(
        matches!(&outcome, Err(CommitFailure::Unknown(_))),
        "{outcome:?}"
    );
    assert_eq!(database.written().await, 1);
}

/// As by a client that hangs up.
#[tokio::test]
async fn begin_that_was_dropped_leaves_no_transaction_to_whoever_comes_next() {
    let database = OnPostgres::start().await;
    let proxy = Proxy::start(&database.server.address()).await.unwrap();
    let url = database
        .url
        .replace(&database.server.address(), &proxy.address());
    // What is held is the answer to BEGIN, and not that to a test before it.
    let options = PgPoolOptions::new().test_before_acquire(false);
    let pool = options.max_connections(1).connect(&url).await.unwrap();
    let source = Postgres::new(pool);
    let ask = "SELECT pg_current_xact_id()::text";
    let transaction = || sqlx::query_scalar::<_, String>(ask).fetch_one(source.pool());
    transaction().await.unwrap();
    for _ in 0..2 {
        // Connections are tested as they are given back.
        while source.pool().num_idle() == 0 {
            tokio::task::yield_now().await;
        }
        proxy.hold_replies();
        let begin = tokio::spawn({
            let source = source.clone();
            async move { source.begin().await.map(drop) }
        });
        proxy.held_reply().await;
        begin.abort();
        assert!(begin.await.unwrap_err().is_cancelled());
        proxy.release_replies();
        let (one, two) = (transaction().await.unwrap(), transaction().await.unwrap());
        assert_ne!(
            one, two,
            "both statements are in the transaction that was begun"
        );
    }
}

#[tokio::test]
async fn error_that_was_passed_over_refuses_the_commit() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live")]).await;
    let mut tx = source.begin().await.unwrap();
    let divided = sqlx::raw_sql("SELECT 1 / 0").execute(&mut *tx).await;
    assert!(divided.is_err());
    let error = push(&outbox, &mut tx).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_string().contains("a statement before it failed"),
        "{error}"
    );
}

#[tokio::test]
async fn stopped_writer_keeps_its_generation_ended_and_nobody_waiting() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live"), mint("other")]).await;
    let mut tx = source.begin().await.unwrap();
    push(&outbox, &mut tx).await.unwrap();

    edit(&outbox, &[delete("live"), delete("other"), mint("next")]).await;
    assert!(!outbox.renew("live", LONG, Duration::ZERO).await.unwrap());
    let ids = |registered: larder_core::Registered| -> Vec<String> {
        let generations = registered.generations.into_iter();
        generations.map(|generation| generation.id).collect()
    };
    let registered = outbox.read().await.unwrap();
    assert!(registered.generations[0].left.is_zero());
    assert_eq!(ids(registered), ["live", "next"]);

    Postgres::commit(tx).await.unwrap();
    edit(&outbox, &[delete("live")]).await;
    assert_eq!(ids(outbox.read().await.unwrap()), ["next"]);
    let generation: Option<String> = sqlx::query_scalar("SELECT generation FROM larder_outbox")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(generation, None);
}

#[tokio::test]
async fn generation_of_very_many_rows_is_ended_and_deleted_bit_by_bit() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live")]).await;
    let mut tx = source.begin().await.unwrap();
    let rows = vec!["{}".to_owned(); 10_001];
    outbox.push(&mut tx, "live", &rows, LONG).await.unwrap();
    Postgres::commit(tx).await.unwrap();

    edit(&outbox, &[delete("live")]).await;
    let registered = outbox.read().await.unwrap();
    assert_eq!(registered.generations.len(), 1, "it would take too long");
    assert!(registered.generations[0].left.is_zero());
    assert!(!outbox.renew("live", LONG, Duration::ZERO).await.unwrap());

    edit(&outbox, &[delete("live")]).await;
    assert!(outbox.read().await.unwrap().generations.is_empty());
    assert_eq!(outbox.backlog().await.unwrap().rows, 10_001);
}

#[tokio::test]
async fn very_many_rows_are_counted_in_part() {
    let database = OnPostgres::start().await;
    let outbox = PgOutbox::new(database.pool.clone());
    let rows = "INSERT INTO larder_outbox (created_at, next_at, text) \
        SELECT statement_timestamp() - make_interval(mins => 9), statement_timestamp(), '{}' \
        FROM generate_series(1, 100010)";
    run(&mut database.pool.acquire().await.unwrap(), rows).await;
    let backlog = outbox.backlog().await.unwrap();
    assert_eq!(backlog.rows, 100_000);
    let age = backlog.oldest.unwrap().as_secs();
    assert!((540..600).contains(&age), "{age}");
}

#[tokio::test]
async fn generation_deleted_by_hand_waits_for_its_writers() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live")]).await;
    let mut tx = source.begin().await.unwrap();
    push(&outbox, &mut tx).await.unwrap();
    let other = database.pool.clone();
    let by_hand = tokio::spawn(async move {
        let delete = sqlx::query("DELETE FROM larder_generation");
        delete.execute(&other).await.unwrap().rows_affected()
    });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' \
        AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database()))";
    let waits = || sqlx::query_scalar::<_, bool>(waits).fetch_one(&database.pool);
    while !waits().await.unwrap() {
        assert!(!by_hand.is_finished());
    }
    Postgres::commit(tx).await.unwrap();
    assert_eq!(by_hand.await.unwrap(), 1);
    assert_eq!(outbox.rows(10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn old_snapshot_writes_under_a_generation_that_was_renewed_and_not_under_one_that_is_gone() {
    let database = OnPostgres::start().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live")]).await;
    for (is_deleted, works) in [(false, true), (true, false)] {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ";
        let mut tx = database.pool.begin_with(begin).await.unwrap();
        run(&mut tx, "SELECT count(*) FROM larder_generation").await;
        assert!(outbox.renew("live", LONG, Duration::ZERO).await.unwrap());
        if is_deleted {
            edit(&outbox, &[delete("live")]).await;
        }
        assert_eq!(push(&outbox, &mut tx).await.is_ok(), works);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_editor_is_put_out() {
    let database = OnPostgres::start().await;
    let outbox = PgOutbox::new(database.pool.clone());
    let (stopped, mut began) = tokio::sync::mpsc::channel(1);
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let editor = outbox.clone();
    let editor = tokio::spawn(async move {
        let mut decide = move |_: &larder_core::Registered| {
            stopped.try_send(()).unwrap();
            tokio::task::block_in_place(|| wait.recv().unwrap());
            Ok(vec![mint("late")])
        };
        editor.edit(&mut decide).await
    });
    began.recv().await.unwrap();
    let start = Instant::now();
    edit(&outbox, &[mint("next")]).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    go_on.send(()).unwrap();
    let error = editor.await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let registered = outbox.read().await.unwrap();
    assert_eq!(registered.generations.len(), 1);
    assert_eq!(registered.generations[0].id, "next");
}

#[tokio::test]
async fn only_statements_that_write_count_as_writes() {
    #[track_caller]
    fn check(statements: &str, written: bool, expected: bool) {
        assert_eq!(written, expected, "{statements}");
    }
    let database = OnPostgres::start().await;
    let source = database.source().await;
    run(
        &mut source.acquire().await.unwrap(),
        "CREATE TABLE row (id int); INSERT INTO row VALUES (1); CREATE SEQUENCE number; \
         CREATE TABLE part (id int) PARTITION BY LIST (id); CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)",
    )
    .await;
    for (statements, expected) in [
        ("SELECT * FROM row", false),
        ("SELECT * FROM row FOR UPDATE", false),
        ("SELECT nextval('number')", false),
        ("CREATE TEMP TABLE temporary AS SELECT 1 AS id", false),
        ("UPDATE row SET id = 2 WHERE id = 9", false),
        ("UPDATE row SET id = 2", true),
        ("DELETE FROM row WHERE id = 2", true),
        ("INSERT INTO part VALUES (1)", true),
        ("COPY row FROM PROGRAM 'echo 1'", true),
        ("TRUNCATE row", true),
        (
            "MERGE INTO row USING (SELECT 1 AS id) AS new ON false WHEN NOT MATCHED THEN INSERT VALUES (1)",
            true,
        ),
    ] {
        let mut tx = source.begin().await.unwrap();
        run(&mut tx, statements).await;
        check(
            statements,
            postgres::has_written(&mut tx).await.unwrap(),
            expected,
        );
        Postgres::commit(tx).await.unwrap();
    }
    let mut tx = source.begin().await.unwrap();
    Postgres::savepoint(&mut tx, Savepoint::Set, 1)
        .await
        .unwrap();
    run(&mut tx, "INSERT INTO row VALUES (1)").await;
    Postgres::savepoint(&mut tx, Savepoint::RollBack, 1)
        .await
        .unwrap();
    check(
        "a savepoint",
        postgres::has_written(&mut tx).await.unwrap(),
        false,
    );
}

#[tokio::test]
async fn tables_are_made_once_by_many_at_once() {
    let database = OnPostgres::bare().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = pool(&database.url).await;
        tasks.spawn(async move { postgres::migrate(&pool).await });
    }
    while let Some(made) = tasks.join_next().await {
        made.unwrap().unwrap();
    }
    let ask = |statement| database.server.ask(&database.url, statement);
    assert_eq!(ask("SELECT version FROM larder_schema"), "1");
    assert_eq!(ask("SELECT count(*) FROM larder_relay"), "1");
}

#[tokio::test]
async fn making_tables_waits_for_no_table_of_the_application() {
    let database = OnPostgres::bare().await;
    let mut tx = database.pool.begin().await.unwrap();
    run(&mut tx, "LOCK TABLE written IN ACCESS EXCLUSIVE MODE").await;
    postgres::migrate(&database.pool).await.unwrap();
}

#[tokio::test]
async fn missing_tables_and_privileges_are_said_with_what_to_do() {
    let database = OnPostgres::bare().await;
    let outbox = PgOutbox::new(database.pool.clone());
    let error = outbox.read().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_string().contains("larder_sqlx::postgres::migrate"),
        "{error}"
    );

    postgres::migrate(&database.pool).await.unwrap();
    let role = role(&database, "reader").await;
    let error = PgOutbox::new(role).backlog().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("docs/databases.md"), "{error}");
}

#[tokio::test]
async fn emptied_tables_are_used_again() {
    let database = OnPostgres::start().await;
    let source = database.source().await;
    let outbox = PgOutbox::new(database.pool.clone());
    edit(&outbox, &[mint("live")]).await;
    let mut conn = database.pool.acquire().await.unwrap();
    run(
        &mut conn,
        "TRUNCATE larder_generation, larder_outbox, larder_relay, larder_purge, larder_schema",
    )
    .await;
    edit(&outbox, &[mint("live")]).await;
    let mut tx = source.begin().await.unwrap();
    let rows = ["{}".to_owned()];
    let pushed = outbox.push(&mut tx, "live", &rows, Duration::ZERO).await;
    pushed.unwrap();
    Postgres::commit(tx).await.unwrap();
    assert_eq!(outbox.claim(1, LONG, LONG).await.unwrap().len(), 1);
    // Which version they have, nobody knows any more.
    let error = postgres::migrate(&database.pool).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("make them again"), "{error}");
}

/// A pool of a new role, which may do nothing yet.
async fn role(database: &OnPostgres, name: &str) -> PgPool {
    // Roles are the server's, so their names are made different by the database's.
    let (_, of) = database.url.rsplit_once('/').unwrap();
    let create = format!("CREATE ROLE {name}_{of} LOGIN");
    database.server.ask(&database.url, &create);
    pool(&database.url.replace("larder@", &format!("{name}_{of}@"))).await
}

#[tokio::test]
async fn documented_privileges_are_enough() {
    let docs = include_str!("../../../docs/databases.md");
    let grants: Vec<&str> = docs
        .lines()
        .filter(|line| line.starts_with("GRANT "))
        .collect();
    assert_eq!(grants.len(), 2);
    let database = OnPostgres::start().await;
    let role = role(&database, "app").await;
    let (_, of) = database.url.rsplit_once('/').unwrap();
    for grant in grants {
        let grant = grant.replace("TO app;", &format!("TO app_{of};"));
        database.server.ask(&database.url, &grant);
    }
    postgres::migrate(&role).await.unwrap();
    let outbox = PgOutbox::new(role.clone());
    let purge = Edit::Purge {
        accessor: "user".to_owned(),
        epoch: "1".to_owned(),
    };
    edit(
        &outbox,
        &[mint("live"), mint("other"), purge.clone(), purge],
    )
    .await;
    edit(&outbox, &[delete("other")]).await;
    assert!(outbox.renew("live", LONG, Duration::ZERO).await.unwrap());
    let mut tx = role.begin().await.unwrap();
    let rows = ["{}".to_owned()];
    let ids = outbox.push(&mut tx, "live", &rows, Duration::ZERO).await;
    let ids = ids.unwrap();
    assert!(postgres::has_written(&mut tx).await.unwrap());
    tx.commit().await.unwrap();
    assert_eq!(outbox.claim(1, LONG, LONG).await.unwrap().len(), 1);
    let later = PutOff {
        id: ids[0],
        text: "{}".to_owned(),
        pause: LONG,
    };
    outbox.put_off(&[later]).await.unwrap();
    outbox.done(&ids).await.unwrap();
    outbox.drop_older(LONG).await.unwrap();
    outbox.backlog().await.unwrap();
    // And a generation that others still refer to.
    let mut tx = role.begin().await.unwrap();
    push(&outbox, &mut tx).await.unwrap();
    tx.commit().await.unwrap();
    edit(&outbox, &[delete("live")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standby_is_refused() {
    let start = || {
        let mut server = PostgresServer::start(&["-c", "fsync=off"]);
        let url = server.database();
        server.restart_as_standby();
        (server, url)
    };
    let (_server, url) = tokio::task::spawn_blocking(start).await.unwrap();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    assert!(!postgres::is_primary(&mut conn).await.unwrap());
    let options = || PgPoolOptions::new().acquire_timeout(Duration::from_millis(500));
    assert!(options().connect(&url).await.is_ok());
    let refused = postgres::only_primaries(options()).connect(&url).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn source_without_an_outbox_needs_no_tables() {
    let database = OnPostgres::bare().await;
    let source = database.source().await.bounded();
    assert!(source.outbox().is_none());
    let mut tx = source.begin().await.unwrap();
    database.write(&mut tx).await;
    Postgres::commit(tx).await.unwrap();
    assert_eq!(database.written().await, 1);
    let source = Arc::new(source);
    source.acquire().await.unwrap();
}
