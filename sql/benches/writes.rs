//! What a write costs through larder, on real servers: commits a second without it, with the insert into the outbox, and
//! with everything; what claiming costs beside dead rows; and what the foreign key costs.
//!
//! `cargo bench -p larder-sqlx --all-features`. It starts PostgreSQL and memcached itself. Ways are interleaved in rounds, and a
//! figure is the median of its rounds: compare within one run only.

#[path = "../tests/it/notes.rs"]
#[expect(dead_code, reason = "the benchmark needs a part of it")]
mod notes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{Cache, Change, Edit, Outbox, Prefix, RowId, Rt, Source};
use larder_harness::postgres::PostgresServer;
use larder_harness::server::{Listen, MemcachedServer};
use larder_sqlx::{PgOutbox, Postgres, Sqlite, SqliteOutbox, postgres, sqlite};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use notes::{HasNotes, Note, NoteById};

const SLICE: Duration = Duration::from_millis(250);
const ROUNDS: usize = 16;
const LONG: Duration = Duration::from_secs(3600);

/// A source that can be written past larder.
trait Bare: HasNotes {
    fn write_bare(
        &self,
        id: i64,
        text: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

impl Bare for Postgres {
    async fn write_bare(&self, id: i64, text: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.pool().begin().await?;
        Self::write(&mut tx, id, text).await?;
        tx.commit().await
    }
}

impl Bare for Sqlite {
    async fn write_bare(&self, id: i64, text: &str) -> Result<(), sqlx::Error> {
        let mut tx = self.writer().begin_with("BEGIN IMMEDIATE").await?;
        Self::write(&mut tx, id, text).await?;
        tx.commit().await
    }
}

/// One way to write.
enum Way<S: Bare> {
    /// A transaction of sqlx.
    Plain(S),
    /// The same with a row for the outbox, and rows deleted together as core does.
    Insert(S, Arc<dyn Outbox<S::Conn>>),
    /// Through a cache.
    Through(Cache<S>),
}

impl<S: Bare> Way<S> {
    async fn write(&self, id: i64, nth: u64, done: &mut Vec<RowId>) {
        let text = format!("text {nth}");
        match self {
            Self::Plain(source) => {
                let written = source.write_bare(id, &text).await;
                written.expect("a note is written");
            }
            Self::Insert(source, outbox) => {
                let mut tx = source.begin().await.expect("a transaction begins");
                S::write(&mut tx, id, &text)
                    .await
                    .expect("a note is written");
                let row = [format!(
                    r#"{{"v":1,"levels":[{{"keys":["note_by_id:{id}"]}}]}}"#
                )];
                let pushed = outbox.push(&mut tx, "bench", &row, LONG).await;
                assert!(S::commit(tx).await.is_ok());
                done.extend(pushed.expect("the generation is there"));
            }
            Self::Through(cache) => {
                let mut tx = cache.begin().await.expect("a transaction begins");
                S::write(&mut tx, id, &text)
                    .await
                    .expect("a note is written");
                let before = Note {
                    id,
                    text: String::new(),
                };
                let after = Note { id, text };
                tx.changed(Change::update_unlocked(&before, &after));
                let committed = tx.commit().await.expect("it is committed");
                assert!(committed.flush.is_fresh());
            }
        }
    }

    /// Commits a second of so many writers, each with a row of its own.
    async fn measure(self: &Arc<Self>, writers: i64) -> f64 {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let tasks: Vec<_> = (1..=writers)
            .map(|id| {
                let (way, stop) = (Arc::clone(self), Arc::clone(&stop));
                tokio::spawn(async move {
                    let (mut count, mut done, mut deleted) = (0, Vec::new(), Instant::now());
                    while !stop.load(Ordering::Relaxed) {
                        way.write(id, count, &mut done).await;
                        count += 1;
                        if let Self::Insert(_, outbox) = &*way
                            && deleted.elapsed() > Duration::from_millis(300)
                        {
                            let gone = outbox.done(&std::mem::take(&mut done)).await;
                            gone.expect("rows are deleted");
                            deleted = Instant::now();
                        }
                    }
                    count
                })
            })
            .collect();
        tokio::time::sleep(SLICE).await;
        stop.store(true, Ordering::Relaxed);
        let mut count = 0;
        for task in tasks {
            count += task.await.expect("a writer writes");
        }
        #[expect(clippy::cast_precision_loss, reason = "there aren't that many")]
        let count = count as f64;
        count / start.elapsed().as_secs_f64()
    }
}

/// Prints commits a second of each way, and their share of the first in the same round.
async fn compare<S: Bare>(title: &str, writers: i64, ways: Vec<(&str, Way<S>)>) {
    let ways: Vec<_> = ways
        .into_iter()
        .map(|(name, way)| (name, Arc::new(way)))
        .collect();
    let mut order: Vec<usize> = (0..ways.len()).collect();
    let mut figures = vec![Vec::new(); ways.len()];
    for round in 0..=ROUNDS {
        // What one leaves behind isn't always paid by the same next one.
        fastrand::shuffle(&mut order);
        for &nth in &order {
            let figure = ways[nth].1.measure(writers).await;
            // The first round warms up.
            if round > 0 {
                figures[nth].push(figure);
            }
        }
    }
    println!("\n{title}, {writers} writer(s)");
    for ((name, _), of) in ways.iter().zip(&figures) {
        let shares = of.iter().zip(&figures[0]).map(|(own, first)| own / first);
        let shares = spread(shares.collect());
        println!("  {name:32} {:8.0}/s  {shares}", median(of.clone()));
    }
}

/// The median, and the quarters around it.
fn spread(mut figures: Vec<f64>) -> String {
    figures.sort_by(f64::total_cmp);
    let at = |share: usize| figures[figures.len() * share / 4];
    format!("{:.2} ({:.2} to {:.2})", at(2), at(1), at(3))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

async fn cache<S: HasNotes>(source: S, server: &MemcachedServer, version: &str) -> Cache<S> {
    let config = MemcachedConfig::new([server.address()]);
    let backend = Memcached::new(config, Rt::new()).expect("that can be configured");
    let cache = Cache::builder(source)
        .backend(Arc::new(backend))
        .version(version)
        .prefix(Prefix::random())
        .register::<NoteById<S>>();
    cache.build().await.expect("a cache can be built")
}

async fn mint(outbox: &dyn larder_core::Register, id: &str) {
    let mint = Edit::Mint {
        id: id.to_owned(),
        version: "bench".to_owned(),
        pool: "memcached:bench".to_owned(),
        holder: "a benchmark".to_owned(),
        manifest: "{}".to_owned(),
        ttl: LONG,
    };
    let minted = outbox.edit(&mut |_| Ok(vec![mint.clone()])).await;
    minted.expect("a generation is registered");
}

const NOTES: &str = "CREATE TABLE note (id BIGINT PRIMARY KEY, text TEXT NOT NULL); \
     INSERT INTO note SELECT value, '' FROM ";

async fn on_postgres(server: &PostgresServer, memcached: &MemcachedServer) {
    let pool = || async {
        let pool = PgPoolOptions::new().max_connections(20);
        let pool = pool.connect(&server.database()).await;
        let pool = pool.expect("the server answers");
        postgres::migrate(&pool).await.expect("tables are made");
        let notes = format!("{NOTES} generate_series(1, 100) AS value");
        run(&pool, &notes).await;
        pool
    };
    let plain = pool().await;
    // A database of its own for the cache, since a generation of another pool is one more to flush.
    let through = pool().await;
    for writers in [1, 8] {
        let source = Postgres::new(plain.clone());
        let outbox = Arc::new(PgOutbox::new(plain.clone()));
        let id = format!("bench-{writers}");
        if writers == 1 {
            mint(&*outbox, "bench").await;
        }
        let durable = cache(Postgres::new(through.clone()), memcached, &id).await;
        let bounded = cache(Postgres::new(through.clone()).bounded(), memcached, &id).await;
        let ways = vec![
            ("sqlx", Way::Plain(source.clone())),
            (
                "sqlx, with a row for the outbox",
                Way::Insert(source, outbox),
            ),
            ("larder, bounded", Way::Through(bounded.clone())),
            ("larder, durable", Way::Through(durable.clone())),
        ];
        compare("PostgreSQL", writers, ways).await;
        durable.close(Duration::from_secs(5)).await;
        bounded.close(Duration::from_secs(5)).await;
        run(&through, "DELETE FROM larder_generation").await;
    }
    foreign_key(&plain).await;
    claims(&plain).await;
}

async fn run(pool: &PgPool, statements: &str) {
    let statements = sqlx::AssertSqlSafe(statements.to_owned());
    let run = sqlx::raw_sql(statements).execute(pool).await;
    run.expect("statements of the benchmark work");
}

/// Commits with and without the foreign key, and how many multixacts it takes.
async fn foreign_key(pool: &PgPool) {
    let multixacts = || async {
        run(pool, "CHECKPOINT").await;
        let next = sqlx::query_scalar::<_, i64>(
            "SELECT next_multixact_id::text::bigint FROM pg_control_checkpoint()",
        );
        next.fetch_one(pool).await.expect("a superuser may ask")
    };
    let way = Arc::new(Way::Insert(
        Postgres::new(pool.clone()),
        Arc::new(PgOutbox::new(pool.clone())),
    ));
    let mut figures = [Vec::new(), Vec::new()];
    let mut taken = 0.0;
    for round in 0..=ROUNDS {
        for (nth, statement) in [
            "ALTER TABLE larder_outbox DROP CONSTRAINT larder_outbox_generation_fkey",
            "ALTER TABLE larder_outbox ADD CONSTRAINT larder_outbox_generation_fkey \
                 FOREIGN KEY (generation) REFERENCES larder_generation ON DELETE SET NULL",
        ]
        .into_iter()
        .enumerate()
        {
            run(pool, "TRUNCATE larder_outbox").await;
            run(pool, statement).await;
            let before = multixacts().await;
            let figure = way.measure(8).await;
            let after = multixacts().await;
            if round > 0 {
                figures[nth].push(figure);
                #[expect(clippy::cast_precision_loss, reason = "there aren't that many")]
                let count = (after - before) as f64;
                taken = count / (figure * SLICE.as_secs_f64());
            }
        }
    }
    let shares = figures[1].iter().zip(&figures[0]);
    let shares = spread(shares.map(|(with, without)| with / without).collect());
    let [without, with] = figures.map(median);
    println!("\nForeign key on PostgreSQL, 8 writers");
    println!("  without                          {without:8.0}/s");
    println!(
        "  with                             {with:8.0}/s  {shares}, {taken:.2} multixacts a commit"
    );
}

/// What claiming costs when nothing is due, when rows are, and beside 10,000 dead rows.
async fn claims(pool: &PgPool) {
    let outbox = PgOutbox::new(pool.clone());
    run(
        pool,
        "TRUNCATE larder_outbox; ALTER TABLE larder_outbox SET (autovacuum_enabled = false)",
    )
    .await;
    run(pool, "VACUUM ANALYZE larder_outbox").await;
    println!("\nClaiming on PostgreSQL");
    claim("no rows", &outbox, 20).await;
    let dead = "INSERT INTO larder_outbox (generation, created_at, next_at, text) \
         SELECT 'bench', now(), now() - interval '1 s', repeat('k', 100) FROM generate_series(1, 10000); \
         DELETE FROM larder_outbox";
    run(pool, dead).await;
    claim("beside 10,000 dead rows, at first", &outbox, 1).await;
    claim("beside 10,000 dead rows, after", &outbox, 20).await;
    run(
        pool,
        "INSERT INTO larder_outbox (generation, created_at, next_at, text) \
         SELECT 'bench', now(), now() - interval '1 s', repeat('k', 100) FROM generate_series(1, 500)",
    )
    .await;
    claim("500 rows beside 10,000 dead ones", &outbox, 1).await;
    run(pool, "DELETE FROM larder_outbox").await;
    claim("none again", &outbox, 20).await;
    run(pool, "VACUUM larder_outbox").await;
    claim("after vacuum", &outbox, 20).await;
}

async fn claim<C: ?Sized + 'static>(title: &str, outbox: &dyn Outbox<C>, times: usize) {
    let mut figures = Vec::new();
    let mut rows = 0;
    for _ in 0..times {
        let start = Instant::now();
        let claimed = outbox.claim(500, LONG, Duration::ZERO).await;
        figures.push(start.elapsed().as_secs_f64() * 1e3);
        rows = claimed.expect("rows are claimed").len();
    }
    println!("  {title:40} {:8.2} ms, {rows} rows", median(figures));
}

async fn on_sqlite(memcached: &MemcachedServer, synchronous: SqliteSynchronous) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let source = |name: &'static str| {
        let path = directory.path().join(name);
        async move {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(synchronous);
            let writer = SqlitePoolOptions::new().max_connections(1);
            let writer = writer.connect_with(options.clone()).await;
            let writer = writer.expect("the file can be written");
            sqlite::migrate(&writer).await.expect("tables are made");
            let notes = format!(
                "{NOTES} (WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 100) SELECT value FROM n)"
            );
            let notes = sqlx::raw_sql(sqlx::AssertSqlSafe(notes));
            notes.execute(&writer).await.expect("notes are made");
            let readers = SqlitePoolOptions::new().max_connections(4);
            let readers = readers.connect_with(options).await;
            Sqlite::with_writer(readers.expect("the file can be read"), writer)
        }
    };
    let (plain, through) = (source("plain.db").await, source("through.db").await);
    let outbox = SqliteOutbox::new(plain.readers().clone(), plain.writer().clone());
    mint(&outbox, "bench").await;
    let durable = cache(through.clone(), memcached, "bench").await;
    let bounded = cache(through.bounded(), memcached, "bench").await;
    for writers in [1, 8] {
        let outbox = plain.outbox().expect("it has one");
        let ways = vec![
            ("sqlx", Way::Plain(plain.clone())),
            (
                "sqlx, with a row for the outbox",
                Way::Insert(plain.clone(), outbox),
            ),
            ("larder, bounded", Way::Through(bounded.clone())),
            ("larder, durable", Way::Through(durable.clone())),
        ];
        compare(
            &format!("SQLite, synchronous = {synchronous:?}"),
            writers,
            ways,
        )
        .await;
    }
    if matches!(synchronous, SqliteSynchronous::Full) {
        println!("\nClaiming on SQLite");
        let deleted = "DELETE FROM larder_outbox; \
             INSERT INTO larder_outbox (generation, created_at, next_at, text) \
             SELECT 'bench', 0, 0, hex(randomblob(50)) FROM \
             (WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 10000) SELECT value FROM n)";
        let writer = plain.writer();
        sqlx::raw_sql(deleted)
            .execute(writer)
            .await
            .expect("rows are made");
        claim("500 of 10,000 rows", &outbox, 1).await;
        let delete = sqlx::raw_sql("DELETE FROM larder_outbox").execute(writer);
        delete.await.expect("rows are deleted");
        claim("after 10,000 rows were deleted", &outbox, 20).await;
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let memcached = MemcachedServer::start(Listen::Unix, &[]);
    let server = tokio::task::spawn_blocking(|| PostgresServer::start(&[]));
    let server = server.await.expect("PostgreSQL starts");
    on_postgres(&server, &memcached).await;
    for synchronous in [SqliteSynchronous::Full, SqliteSynchronous::Normal] {
        on_sqlite(&memcached, synchronous).await;
    }
}
