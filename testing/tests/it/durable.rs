//! A cache whose source has an outbox and a register: SQLite, in a file.

use std::time::Duration;

use larder_core::{
    Change, Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime, LockRow, NoTier, Plain, Rows,
    get,
};
use larder_sqlx::{Sqlite, sqlite};
use larder_testing::{TestCache, assert_flushes_complete, captured};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions};
use tempfile::TempDir;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    id: i64,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoteField {
    Text,
}

impl FieldSet for NoteField {
    const ALL: &'static [Self] = &[Self::Text];

    fn name(self) -> &'static str {
        "text"
    }
}

impl Entity for Note {
    const NAME: &'static str = "note";
    type Id = i64;
    type Field = NoteField;

    fn id(&self) -> i64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(NoteField::Text, self.text != other.text)])
    }
}

impl LockRow<Sqlite> for Note {
    async fn lock(conn: &mut SqliteConnection, id: &i64) -> Result<Option<Self>, sqlx::Error> {
        let text = sqlx::query_scalar("SELECT text FROM note WHERE id = ?").bind(id);
        let text: Option<String> = text.fetch_optional(conn).await?;
        Ok(text.map(|text| Self { id: *id, text }))
    }
}

enum NoteById {}

impl Dataset for NoteById {
    const NAME: &'static str = "note_by_id";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Sqlite;
    type Key = i64;
    type Value = Note;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<Note>(NoteField::Text, |id| *id);
    }

    async fn load(conn: &mut SqliteConnection, ids: Vec<i64>) -> Result<Rows<Self>, sqlx::Error> {
        let mut rows = Vec::new();
        for id in ids {
            let note = Note::lock(conn, &id).await?;
            rows.extend(note.map(|note| (id, note)));
        }
        Ok(rows)
    }
}

async fn cache(directory: &TempDir) -> TestCache<Sqlite> {
    let options = SqliteConnectOptions::new()
        .filename(directory.path().join("test.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = |connections| SqlitePoolOptions::new().max_connections(connections);
    let writer = pool(1).connect_with(options.clone()).await.unwrap();
    let readers = pool(4).connect_with(options).await.unwrap();
    sqlite::migrate(&writer).await.unwrap();
    let table = "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL); \
                 INSERT INTO note VALUES (7, 'before')";
    sqlx::raw_sql(table).execute(&writer).await.unwrap();
    TestCache::builder(Sqlite::with_writer(readers, writer))
        .register::<NoteById>()
        .build()
        .await
}

async fn write(cache: &TestCache<Sqlite>, text: &str) {
    let mut tx = cache.begin().await.unwrap();
    let before = tx.lock::<Note>(&7).await.unwrap().unwrap();
    let after = Note {
        text: text.to_owned(),
        ..before.clone()
    };
    let update = sqlx::query("UPDATE note SET text = ? WHERE id = 7");
    update.bind(text).execute(&mut *tx).await.unwrap();
    tx.changed(Change::update(&before, &after));
    assert!(tx.commit().await.unwrap().flush.is_fresh());
}

async fn read(cache: &TestCache<Sqlite>) -> String {
    let note = get::<NoteById>(cache, &7).await.unwrap();
    note.unwrap().text
}

#[tokio::test]
async fn statements_of_loads_and_writes_are_counted_and_larders_own_arent() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory).await;
    let (_, cold) = captured(read(&cache)).await;
    cold.assert_queries(1);
    cold.assert_trips(2);
    captured(read(&cache)).await.1.assert_queries(0);

    let ((), writing) = captured(write(&cache, "after")).await;
    writing.assert_queries(2); // the row under its lock, and its update
    writing.assert_trips(1);
    assert!(
        writing
            .to_string()
            .contains("(not counted)  INSERT INTO larder_outbox"),
        "{writing}"
    );
    assert_eq!(read(&cache).await, "after");
    cache.finish().await;
}

#[tokio::test]
async fn an_audit_passes_on_a_real_database() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory).await;
    assert_flushes_complete::<Note>(&cache)
        .reads(async || drop(read(&cache).await))
        .field(NoteField::Text, async || write(&cache, "after").await)
        .never_created()
        .never_deleted()
        .run()
        .await;
    cache.finish().await;
}

#[tokio::test]
async fn a_registration_outlives_a_leap_of_the_clock() {
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(&directory).await;
    read(&cache).await;
    cache.clock().advance(Duration::from_secs(3_700));
    // Until it is renewed, reads go to the source.
    for _ in 0..500 {
        let (_, captured) = captured(read(&cache)).await;
        if captured.accessor("note_by_id").hits == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("ten seconds later nothing is cached");
}
