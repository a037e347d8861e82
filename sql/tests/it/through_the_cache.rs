//! Two processes, one database and one memcached, by the public API: what one commits, the other reads.

use std::sync::Arc;
use std::time::Duration;

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::conformance::Database;
use larder_core::{
    Cache, CacheBuilder, Change, CommitError, Flush, LoadError, Rt, Source as _, Transactional, Tx,
    get,
};
use larder_harness::proxy::Proxy;
use larder_harness::server::{Listen, MemcachedServer};
use larder_sqlx::{Postgres, Sqlite};
use sqlx::postgres::PgPoolOptions;

use crate::databases::{OnPostgres, OnSqlite, pool};
use crate::notes::{HasNotes, NOTES, Note, NoteById};
use crate::postgres::{commit_that_waits, run, waiting_commit};

/// A process: a cache on its own pools, and its own connections to memcached.
async fn process<S: HasNotes>(source: S, server: &MemcachedServer) -> Cache<S> {
    builder(source, server).build().await.unwrap()
}

fn builder<S: HasNotes>(source: S, server: &MemcachedServer) -> CacheBuilder<S> {
    let config = MemcachedConfig::new([server.address()]);
    let backend = Memcached::new(config, Rt::new()).unwrap();
    Cache::builder(source)
        .backend(Arc::new(backend))
        .version("1")
        .strict_writes()
        .register::<NoteById<S>>()
}

async fn read<S: HasNotes>(cache: &Cache<S>) -> String {
    get::<NoteById<S>>(cache, &7).await.unwrap().unwrap()
}

/// Reads until the store has it, and so answers without a load.
async fn read_from_the_store<S: HasNotes>(cache: &Cache<S>) -> String {
    loop {
        let (tallied, tally) = cache.tallied();
        let text = read(&tallied).await;
        tally.settled().await;
        if tally.loads() == 0 {
            return text;
        }
        // A generation that isn't the first fills nothing for a while.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A transaction that has written the note, and said so.
async fn written<S: HasNotes>(cache: &Cache<S>, text: &str) -> Tx<S> {
    let mut tx = cache.begin().await.unwrap();
    let before = tx.lock::<Note>(&7).await.unwrap().unwrap();
    let after = Note {
        id: 7,
        text: text.to_owned(),
    };
    S::write(&mut tx, 7, text).await.unwrap();
    tx.changed(Change::update(&before, &after));
    tx
}

async fn others_see_every_write<D: Database<Source: HasNotes>>(database: &D) {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let one = process(database.source().await, &server).await;
    let two = process(database.source().await, &server).await;
    let mut writers = [&one, &two].into_iter().cycle();
    for nth in 0..20 {
        let text = format!("text {nth}");
        read_from_the_store(&one).await;
        read_from_the_store(&two).await;
        let tx = written(writers.next().unwrap(), &text).await;
        let committed = tx.commit().await.unwrap();
        assert!(committed.flush.is_fresh(), "{:?}", committed.flush);
        assert_eq!([read(&one).await, read(&two).await], [&*text, &*text]);
    }
    // What was delivered is deleted.
    while one.backlog().await.unwrap().unwrap().rows > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = one.stats();
    assert_eq!(stats.generations.len(), 1, "one version on one pool");

    // What is undone flushes nothing, and is nowhere.
    let tx = written(&one, "undone").await;
    tx.rollback().await.unwrap();
    assert_eq!(read_from_the_store(&two).await, "text 19");
}

async fn flush_waits_for_a_killed_server<D: Database<Source: HasNotes>>(database: &D) {
    let mut server = MemcachedServer::start(Listen::Unix, &[]);
    let one = process(database.source().await, &server).await;
    let two = process(database.source().await, &server).await;
    read_from_the_store(&two).await;
    server.kill();
    let committed = written(&one, "after").await.commit().await.unwrap();
    let Flush::Pending(pending) = committed.flush else {
        panic!("nobody could confirm it");
    };
    assert_eq!(read(&one).await, "after", "this process asks its source");
    assert_eq!(one.backlog().await.unwrap().unwrap().rows, 1);
    server.restart();
    assert!(pending.delivered().await);
    assert_eq!(read_from_the_store(&one).await, "after");
    assert_eq!(read(&two).await, "after");
    while one.backlog().await.unwrap().unwrap().rows > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn what_a_dead_process_owed_is_delivered<D: Database<Source: HasNotes>>(database: &D) {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let two = process(database.source().await, &server).await;
    assert_eq!(read_from_the_store(&two).await, "before");
    // As it is left by one that is killed between its commit and its flush.
    let source = database.source().await;
    let outbox = source.outbox().unwrap();
    let generation = outbox.read().await.unwrap().generations.remove(0).id;
    let rows = ["{\"v\":1,\"levels\":[{\"keys\":[\"note_by_id:7\"]}]}".to_owned()];
    let mut tx = source.begin().await.unwrap();
    D::Source::write(&mut tx, 7, "after").await.unwrap();
    let pushed = outbox.push(&mut tx, &generation, &rows, Duration::ZERO);
    pushed.await.unwrap();
    assert!(D::Source::commit(tx).await.is_ok());
    while read(&two).await != "after" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn rotation_empties_the_cache<D: Database<Source: HasNotes>>(database: &D) {
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let one = process(database.source().await, &server).await;
    let two = process(database.source().await, &server).await;
    read_from_the_store(&two).await;
    // What a restore does.
    let mut tx = database.source().await.begin().await.unwrap();
    D::Source::write(&mut tx, 7, "restored").await.unwrap();
    assert!(D::Source::commit(tx).await.is_ok());
    assert_eq!(read(&one).await, "before");
    one.rotate().await.unwrap();
    assert_eq!(read(&one).await, "restored");
    while read(&two).await != "restored" {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

macro_rules! on_both {
    ($($case:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let database = super::OnPostgres::start().await;
                let notes = sqlx::raw_sql(super::NOTES);
                notes.execute(&database.pool).await.unwrap();
                super::$case(&database).await;
            })+
        }

        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let database = super::OnSqlite::start().await;
                let notes = sqlx::raw_sql(super::NOTES);
                notes.execute(&database.writer).await.unwrap();
                super::$case(&database).await;
            })+
        }
    };
}

on_both![
    others_see_every_write,
    flush_waits_for_a_killed_server,
    what_a_dead_process_owed_is_delivered,
    rotation_empties_the_cache,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_of_an_unknown_commit_is_seen() {
    let database = OnPostgres::start().await;
    let mut holder = database.pool.acquire().await.unwrap();
    run(&mut holder, NOTES).await;
    run(&mut holder, &commit_that_waits("UPDATE ON note")).await;
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let proxy = Proxy::start(&database.server.address()).await.unwrap();
    let url = database
        .url
        .replace(&database.server.address(), &proxy.address());
    let one = process(Postgres::new(pool(&url).await), &server).await;
    let two = process(database.source().await, &server).await;
    read_from_the_store(&two).await;

    run(&mut holder, "SELECT pg_advisory_lock(7)").await;
    let commit = tokio::spawn(written(&one, "after").await.commit());
    let pid = waiting_commit(&database.url).await;
    proxy.hold_replies();
    run(&mut holder, "SELECT pg_advisory_unlock(7)").await;
    let text = || sqlx::query_scalar::<_, String>("SELECT text FROM note");
    while text().fetch_one(&database.pool).await.unwrap() != "after" {}
    proxy.cut();
    let is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)";
    let is_there = || sqlx::query_scalar::<_, bool>(is_there).bind(pid);
    while is_there().fetch_one(&database.pool).await.unwrap() {}
    proxy.release_replies();
    let error = commit.await.unwrap().unwrap_err();
    assert!(matches!(error, CommitError::Unknown(_)), "{error:?}");
    while read(&two).await != "after" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The row of a commit that may come yet is left to the relay, which finds that it has come.
    while two.backlog().await.unwrap().unwrap().rows > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_of_a_commit_that_took_too_long_is_seen() {
    let database = OnPostgres::start().await;
    let mut holder = database.pool.acquire().await.unwrap();
    run(&mut holder, NOTES).await;
    run(&mut holder, &commit_that_waits("UPDATE ON note")).await;
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let one = builder(database.source().await, &server).commit_timeout(Duration::from_millis(500));
    let one = one.build().await.unwrap();
    let two = process(database.source().await, &server).await;
    read_from_the_store(&two).await;

    run(&mut holder, "SELECT pg_advisory_lock(7)").await;
    let error = written(&one, "after").await.commit().await.unwrap_err();
    assert!(matches!(error, CommitError::Unknown(None)), "{error:?}");
    assert_eq!(read_from_the_store(&two).await, "before");
    run(&mut holder, "SELECT pg_advisory_unlock(7)").await;
    while read(&two).await != "after" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its connection goes on, and isn't in a transaction any more.
    let open = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%')";
    let is_open = || sqlx::query_scalar::<_, bool>(open);
    while is_open().fetch_one(&database.pool).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let committed = written(&one, "later").await.commit().await.unwrap();
    assert!(committed.flush.is_fresh(), "{:?}", committed.flush);
    assert_eq!(read(&two).await, "later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_waits_for_no_writer() {
    let database = OnPostgres::start().await;
    let mut holder = database.pool.acquire().await.unwrap();
    run(&mut holder, NOTES).await;
    run(&mut holder, &commit_that_waits("UPDATE ON note")).await;
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let one = process(database.source().await, &server).await;
    let two = process(database.source().await, &server).await;
    read_from_the_store(&two).await;
    run(&mut holder, "SELECT pg_advisory_lock(7)").await;
    let commit = tokio::spawn(written(&one, "after").await.commit());
    waiting_commit(&database.url).await;
    let before = [one.prefix(), two.prefix()];
    one.rotate().await.unwrap();
    assert_ne!(one.prefix(), before[0]);
    while two.prefix() == before[1] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its entries are nobody's any more, so that there is nothing to be old.
    run(&mut holder, "SELECT pg_advisory_unlock(7)").await;
    let committed = commit.await.unwrap().unwrap();
    assert!(committed.flush.is_fresh(), "{:?}", committed.flush);
    assert_eq!([read(&one).await, read(&two).await], ["after", "after"]);
}

/// Both connections of the pool are those of transactions, for longer than what is known of the register stays fresh: a
/// commit that asked for it would wait for a connection that only a commit gives back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_a_busy_pool_wait_for_no_connection() {
    let database = OnPostgres::start().await;
    let mut holder = database.pool.acquire().await.unwrap();
    run(&mut holder, NOTES).await;
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let options = PgPoolOptions::new().max_connections(2);
    let pool = options.connect(&database.url).await.unwrap();
    let cache = process(Postgres::new(pool), &server).await;
    let first = written(&cache, "first").await;
    let second = tokio::spawn({
        let cache = cache.clone();
        // It waits for the row that the first one has locked.
        async move { written(&cache, "second").await.commit().await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = std::time::Instant::now();
    for committed in [first.commit().await, second.await.unwrap()] {
        let flush = committed.unwrap().flush;
        assert!(flush.is_fresh(), "{flush:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "it hung");
    assert_eq!(read(&cache).await, "second");
}

/// A load on a pool whose only connection is that of a transaction, which waits for the load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_past_the_transaction_that_holds_the_only_connection_is_an_error_where_that_is_strict()
{
    let database = OnSqlite::start().await;
    let notes = sqlx::raw_sql(NOTES);
    notes.execute(&database.writer).await.unwrap();
    let server = MemcachedServer::start(Listen::Unix, &[]);
    let cache = process(Sqlite::new(database.writer.clone()), &server).await;
    let mut tx = written(&cache, "after").await;
    let error = get::<NoteById<Sqlite>>(&cache, &7).await.unwrap_err();
    assert!(matches!(error, LoadError::Panicked { .. }), "{error:?}");
    let own = get::<NoteById<Sqlite>>(&mut tx, &7).await.unwrap();
    assert_eq!(own.as_deref(), Some("after"));
    tx.commit().await.unwrap();
    assert_eq!(read(&cache).await, "after");
}
