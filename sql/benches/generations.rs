//! What a flush costs when many versions of the code are running: `cargo bench -p larder-sqlx --bench generations
//! --all-features`.
//!
//! One commit that changes 6,000 users, beside 1 to 7 live generations on one memcached, over SQLite. It prints times;
//! nothing passes or fails.

use std::time::{Duration, Instant};

use larder_backends::{Memcached, MemcachedConfig};
use larder_core::{
    Cache, Change, Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime, NoTier, Plain, Rows,
    Rt, get_many,
};
use larder_harness::server::{Listen, MemcachedServer};
use larder_sqlx::{Sqlite, sqlite};
use sqlx::SqliteConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

const USERS: u64 = 6_000;
const ROUNDS: usize = 11;

#[derive(Clone)]
struct User {
    id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UserField {
    Name,
}

impl FieldSet for UserField {
    const ALL: &'static [Self] = &[Self::Name];

    fn name(self) -> &'static str {
        "name"
    }
}

impl Entity for User {
    const NAME: &'static str = "user";
    const SET_BASED: FieldBits = FieldBits::ALL;
    type Id = u64;
    type Field = UserField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, _: &Self) -> FieldBits {
        FieldBits::ALL
    }
}

enum Names {}

impl Dataset for Names {
    const NAME: &'static str = "name";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Sqlite;
    type Key = u64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = sqlx::Error;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<User>([UserField::Name], |id| *id);
    }

    async fn load(_: &mut SqliteConnection, ids: Vec<u64>) -> Result<Rows<Self>, sqlx::Error> {
        Ok(ids
            .into_iter()
            .map(|id| (id, format!("user {id}")))
            .collect())
    }
}

#[tokio::main]
async fn main() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let folder = tempfile::tempdir().expect("there is room for a file");
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("bench.db"))
        .create_if_missing(true);
    let pool = SqlitePool::connect_with(options).await.expect("it opens");
    sqlite::migrate(&pool).await.expect("its tables are made");
    let mut caches = Vec::new();
    println!("| live generations | deletes | flush of one commit, median | fastest |");
    println!("| --- | --- | --- | --- |");
    for generations in 1..=7 {
        caches.push(cache(&pool, &server, generations).await);
        if ![1, 2, 4, 7].contains(&generations) {
            continue;
        }
        // Until the newest has waited for the others to know of it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            for cache in &caches {
                let read = get_many::<Names>(cache, 0..USERS).await;
                assert_eq!(read.expect("loads succeed").missing().count(), 0);
            }
            times.push(flush(&caches[0]).await);
        }
        times.sort();
        println!(
            "| {generations} | {} | {:.1?} | {:.1?} |",
            USERS * generations as u64,
            times[ROUNDS / 2],
            times[0]
        );
    }
    for cache in caches {
        cache.close(Duration::from_secs(1)).await;
    }
}

async fn cache(pool: &SqlitePool, server: &MemcachedServer, version: usize) -> Cache<Sqlite> {
    let config = MemcachedConfig::new([server.address()]);
    let memcached = Memcached::new(config, Rt::new()).expect("the address is legal");
    Cache::builder(Sqlite::new(pool.clone()))
        .backend(std::sync::Arc::new(memcached))
        .version(format!("version {version}"))
        .register::<Names>()
        .build()
        .await
        .expect("the database is there")
}

/// How long it took from the commit to the last confirmation.
async fn flush(cache: &Cache<Sqlite>) -> Duration {
    let mut tx = cache.begin().await.expect("the database is there");
    tx.changed(Change::<User>::rows(0..USERS, [UserField::Name]));
    let began = Instant::now();
    let committed = tx.commit().await.expect("the database is there");
    assert!(
        committed.flush.is_fresh(),
        "{:?} after {:?}",
        committed.flush,
        began.elapsed()
    );
    committed.flushing
}
