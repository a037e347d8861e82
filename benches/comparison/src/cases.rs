//! What goes wrong: the same small data set with each library, whose loader can be held, and what becomes of it.
//!
//! A person's name, by id: read, and changed.

use std::time::{Duration, Instant};

use larder::BoxError;
use larder_harness::proxy::Proxy;
use larder_harness::redis::RedisServer;
use larder_harness::server::Listen;
use larder_sqlx::sqlite;
use sqlx::SqlitePool;
use tokio::time::{sleep, timeout};

use crate::gate;

/// How long an answer may take before it counts as none.
const PATIENCE: Duration = Duration::from_secs(5);

mod with_larder {
    use larder::{Cache, Change, Entity, Flush};
    use larder_sqlx::Sqlite;
    use sqlx::SqliteConnection;

    use crate::gate;

    #[derive(Clone, Debug, Entity)]
    #[entity(set_based(name))]
    struct Person {
        #[entity(id)]
        id: i64,
        name: String,
    }

    #[larder::cached(source = Sqlite, key = "name:{id}", ttl = "1h", flush_on(Person { name } => id))]
    pub(super) async fn name(db: &mut SqliteConnection, id: i64) -> sqlx::Result<Option<String>> {
        let name = sqlx::query_scalar("SELECT name FROM people WHERE id = $1");
        let name = name.bind(id).fetch_optional(db).await;
        gate::pass().await;
        name
    }

    pub(super) async fn rename(
        cache: &Cache<Sqlite>,
        id: i64,
        name: &str,
    ) -> Result<String, larder::BoxError> {
        let mut tx = cache.begin().await?;
        let update = sqlx::query("UPDATE people SET name = $1 WHERE id = $2");
        update.bind(name).bind(id).execute(&mut *tx).await?;
        tx.changed(Change::<Person>::rows([id], [PersonField::Name]));
        let committed = tx.commit().await?;
        Ok(match committed.flush {
            Flush::Fresh => "fresh".to_owned(),
            _ => "`Pending`".to_owned(),
        })
    }
}

mod with_cached {
    use std::sync::OnceLock;

    use cached::macros::concurrent_cached;
    use cached::{AsyncRedisCache, ConcurrentCachedAsync as _};
    use sqlx::SqlitePool;

    use crate::gate;
    use crate::with_cached::{DAY, Error};

    pub(super) static REDIS: OnceLock<String> = OnceLock::new();

    async fn store() -> AsyncRedisCache<i64, Option<String>> {
        let store = AsyncRedisCache::builder("name").connection_string(REDIS.get().expect("set"));
        let store = store.ttl(DAY).connection_manager(true).build().await;
        store.expect("Redis is there at the start")
    }

    #[concurrent_cached(
        ty = "AsyncRedisCache<i64, Option<String>>",
        create = { store().await },
        key = "i64",
        convert = { id },
        map_error = |e| Error::Store(e)
    )]
    pub(super) async fn name(db: &SqlitePool, id: i64) -> Result<Option<String>, Error> {
        let name = sqlx::query_scalar("SELECT name FROM people WHERE id = $1");
        let name = name.bind(id).fetch_optional(db).await;
        gate::pass().await;
        Ok(name?)
    }

    pub(super) async fn rename(db: &SqlitePool, id: i64, name: &str) -> Result<(), Error> {
        let update = sqlx::query("UPDATE people SET name = $1 WHERE id = $2");
        update.bind(name).bind(id).execute(db).await?;
        let store = NAME.get().expect("it was read before");
        store.async_cache_delete(&id).await?;
        Ok(())
    }
}

mod with_hitbox {
    use std::time::Duration;

    use hitbox::CacheKey;
    use hitbox::backend::Backend as _;
    use hitbox::concurrency::BroadcastConcurrencyManager;
    use hitbox::policy::{ConcurrencyLimit, PolicyConfig};
    use hitbox_fn::{Cache, CacheAccess, CacheableResponse, cached};
    use hitbox_redis::{ConnectionMode, RedisBackend};
    use serde::{Deserialize, Serialize};
    use sqlx::SqlitePool;

    use crate::gate;
    use crate::with_hitbox::{DAY, Error};

    #[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
    pub(super) struct Found {
        pub(super) name: Option<String>,
    }

    const SECOND: Duration = Duration::from_secs(1);

    pub(super) type Sharing =
        Cache<RedisBackend, BroadcastConcurrencyManager<Result<Found, Error>>>;

    /// A cache whose callers wait for each other, and which doesn't wait long for its store.
    pub(super) fn sharing(redis: &str) -> Sharing {
        let redis = RedisBackend::builder().connection(ConnectionMode::single(redis));
        let redis = redis
            .retries(1)
            .connection_timeout(SECOND)
            .response_timeout(SECOND);
        let policy = PolicyConfig::builder().ttl(DAY);
        let policy = policy.concurrency(ConcurrencyLimit::new(1).expect("one"));
        let cache = Cache::builder().backend(redis.build().expect("a mode"));
        let cache = cache.policy(policy.build());
        cache
            .concurrency_manager(BroadcastConcurrencyManager::new())
            .build()
    }

    #[cached(prefix = "name", skip(db))]
    pub(super) async fn name(db: SqlitePool, id: i64) -> Result<Found, Error> {
        let name = sqlx::query_scalar("SELECT name FROM people WHERE id = $1");
        let name = name.bind(id).fetch_optional(&db).await;
        gate::pass().await;
        Ok(Found { name: name? })
    }

    pub(super) async fn rename<C: CacheAccess<Backend = RedisBackend>>(
        db: &SqlitePool,
        cache: &C,
        id: i64,
        name: &str,
    ) -> Result<(), Error> {
        let update = sqlx::query("UPDATE people SET name = $1 WHERE id = $2");
        update.bind(name).bind(id).execute(db).await?;
        let key = CacheKey::from_slice(&[("fn", Some("name")), ("id", Some(&id.to_string()))]);
        cache.backend().remove(&key).await?;
        Ok(())
    }
}

/// Two functions of one name.
mod named_alike {
    pub(super) mod users {
        #[hitbox_fn::cached]
        pub(crate) async fn title(id: i64) -> Result<String, ()> {
            Ok(format!("user {id}"))
        }
    }

    pub(super) mod channels {
        #[hitbox_fn::cached]
        pub(crate) async fn title(id: i64) -> Result<String, ()> {
            Ok(format!("channel {id}"))
        }
    }
}

/// Two layouts of one type, as two versions of a program have them.
mod versions {
    use hitbox_fn::CacheableResponse;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
    pub(super) struct Old {
        pub(super) email: String,
        pub(super) name: String,
    }

    #[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
    pub(super) struct New {
        pub(super) name: String,
        pub(super) email: String,
    }
}

#[derive(Clone)]
enum With {
    Larder(larder::Cache<larder_sqlx::Sqlite>),
    Cached,
    Hitbox(hitbox_fn::Cache<hitbox_redis::RedisBackend>),
    HitboxSharing(with_hitbox::Sharing),
}

#[derive(Clone)]
struct Names {
    db: SqlitePool,
    with: With,
}

impl Names {
    async fn read(&self, id: i64) -> Result<Option<String>, String> {
        let db = self.db.clone();
        match &self.with {
            With::Larder(cache) => with_larder::name(cache, id)
                .await
                .map_err(|e| e.to_string()),
            With::Cached => with_cached::name(&db, id)
                .await
                .map_err(|e| format!("{e:?}")),
            With::Hitbox(cache) => {
                let found = with_hitbox::name(db, id).cache(cache.clone()).await;
                found.map(|found| found.name).map_err(|e| format!("{e:?}"))
            }
            With::HitboxSharing(cache) => {
                let found = with_hitbox::name(db, id).cache(cache.clone()).await;
                found.map(|found| found.name).map_err(|e| format!("{e:?}"))
            }
        }
    }

    async fn rename(&self, id: i64, name: &str) -> Result<String, String> {
        let ok = || "fresh".to_owned();
        let db = &self.db;
        match &self.with {
            With::Larder(cache) => {
                let renamed = with_larder::rename(cache, id, name).await;
                renamed.map_err(|e| e.to_string())
            }
            With::Cached => {
                let renamed = with_cached::rename(db, id, name).await;
                renamed.map(|()| ok()).map_err(|e| format!("{e:?}"))
            }
            With::Hitbox(cache) => {
                let renamed = with_hitbox::rename(db, cache, id, name).await;
                renamed.map(|()| ok()).map_err(|e| format!("{e:?}"))
            }
            With::HitboxSharing(cache) => {
                let renamed = with_hitbox::rename(db, cache, id, name).await;
                renamed.map(|()| ok()).map_err(|e| format!("{e:?}"))
            }
        }
    }

    fn spawn_read(&self, id: i64) -> tokio::task::JoinHandle<Result<Option<String>, String>> {
        let names = self.clone();
        tokio::spawn(async move { names.read(id).await })
    }

    /// A load has read the old name when the new one is committed and flushed.
    async fn a_write_during_a_load(&self) -> String {
        gate::close();
        let before = gate::loads();
        let load = self.spawn_read(1);
        gate::another(before).await;
        self.rename(1, "new").await.expect("nothing is in its way");
        gate::open();
        let _ = load.await;
        self.stays_old(1).await
    }

    /// The writer is gone after its commit, and the store hasn't got the delete.
    async fn a_writer_that_is_gone(&self, proxy: &Proxy) -> String {
        self.read(2).await.expect("nothing is in its way");
        sleep(Duration::from_millis(50)).await;
        proxy.hold_requests();
        let writer = tokio::spawn({
            let names = self.clone();
            async move { names.rename(2, "new").await }
        });
        proxy.held_request().await;
        writer.abort();
        let _ = writer.await;
        proxy.cut();
        sleep(Duration::from_millis(200)).await; // what is held is gone with its connection
        proxy.release_requests();
        // Connections are made anew, so that no read of the case itself fails and loads.
        for _ in 0..250 {
            let before = gate::loads();
            let read = self.read(9).await;
            if read.is_ok() && gate::loads() == before {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.stays_old(2).await
    }

    /// Whether the old name is answered, and for how long.
    async fn stays_old(&self, id: i64) -> String {
        let begin = Instant::now();
        sleep(Duration::from_millis(50)).await;
        let mut has_been_old = false;
        while begin.elapsed() < PATIENCE {
            match self.read(id).await.as_ref().map(Option::as_deref) {
                Ok(Some("new")) if has_been_old => {
                    return format!("the old value for {:.1} s", begin.elapsed().as_secs_f64());
                }
                Ok(Some("new")) => return "the new value".to_owned(),
                Ok(_) => has_been_old = true,
                Err(_) => {}
            }
            sleep(Duration::from_millis(20)).await;
        }
        "the old value, until its TTL".to_owned()
    }

    async fn loads_of(&self, read: impl Future<Output = ()>) -> usize {
        let before = gate::loads();
        read.await;
        gate::loads() - before
    }

    /// Nobody has this id; it is asked for twice.
    async fn absence(&self) -> String {
        let loads = self.loads_of(async {
            for _ in 0..2 {
                assert_eq!(self.read(99).await, Ok(None));
                sleep(Duration::from_millis(50)).await;
            }
        });
        format!("{} of 2 reads load", loads.await)
    }

    /// Fifty callers want a key that isn't there.
    async fn fifty_callers(&self) -> String {
        gate::close();
        let loads = self.loads_of(async {
            let reads: Vec<_> = (0..50).map(|_| self.spawn_read(3)).collect();
            sleep(Duration::from_millis(300)).await;
            gate::open();
            for read in reads {
                assert!(read.await.expect("it doesn't panic").is_ok());
            }
        });
        format!("loads: {}", loads.await)
    }

    /// The first of two callers leaves while its load runs.
    async fn a_caller_that_leaves(&self) -> String {
        gate::close();
        let before = gate::loads();
        let first = self.spawn_read(4);
        gate::another(before).await;
        let second = self.spawn_read(4);
        sleep(Duration::from_millis(100)).await;
        first.abort();
        let _ = first.await;
        gate::open();
        let answer = timeout(PATIENCE, second).await;
        let loads = gate::loads() - before;
        match answer {
            Ok(_) => format!("the other is answered; loads: {loads}"),
            Err(_) => format!(
                "the other has no answer after {} s; loads: {loads}",
                PATIENCE.as_secs()
            ),
        }
    }

    /// The store was killed.
    async fn without_the_store(&self) -> (String, String) {
        let read = match timeout(PATIENCE, self.read(5)).await {
            Ok(Ok(_)) => "loaded".to_owned(),
            Ok(Err(_)) => "an error".to_owned(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        let write = match timeout(PATIENCE, self.rename(5, "new")).await {
            Ok(Ok(answer)) => format!("committed: {answer}"),
            Ok(Err(_)) => "committed, and an error".to_owned(),
            Err(_) => format!("committed, and no answer within {} s", PATIENCE.as_secs()),
        };
        (read, write)
    }
}

async fn people() -> Result<(tempfile::TempDir, SqlitePool), BoxError> {
    let (directory, db) = crate::database().await?;
    sqlx::query("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        .execute(&db)
        .await?;
    for id in 1..10 {
        let insert = sqlx::query("INSERT INTO people VALUES ($1, 'old')");
        insert.bind(id).execute(&db).await?;
    }
    Ok((directory, db))
}

/// Runs every case with every library, and prints a table.
pub async fn run() -> Result<(), BoxError> {
    let mut columns = Vec::new();
    for library in ["larder", "cached", "hitbox", "hitbox, tuned"] {
        let mut server = RedisServer::start(Listen::Tcp, &[]);
        let proxy = Proxy::start(&server.address()).await?;
        let (_directory, db) = people().await?;
        let redis = format!("redis://{}", proxy.address());
        let with = match library {
            "larder" => {
                sqlite::migrate(&db).await?;
                let source = larder_sqlx::Sqlite::new(db.clone());
                let config = larder::Config::new(&redis)?;
                let cache = larder::Cache::builder(source);
                With::Larder(larder::BuilderExt::config(cache, config).build().await?)
            }
            "cached" => {
                with_cached::REDIS.get_or_init(|| redis.clone());
                With::Cached
            }
            "hitbox" => With::Hitbox(crate::with_hitbox::start(db.clone(), &redis)?.cache),
            _ => With::HitboxSharing(with_hitbox::sharing(&redis)),
        };
        let names = Names { db, with };
        let mut column = vec![
            names.a_write_during_a_load().await,
            names.fifty_callers().await,
            names.a_caller_that_leaves().await,
            names.absence().await,
            names.a_writer_that_is_gone(&proxy).await,
        ];
        server.kill();
        let (read, write) = names.without_the_store().await;
        column.extend([read, write]);
        columns.push((library, column));
    }
    let rows = [
        "a write while a load is under way; then reads answer",
        "fifty callers of one key that isn't there",
        "a caller leaves while its load runs, and another waits",
        "a key that doesn't exist, twice",
        "the writer is gone between commit and flush; then reads answer",
        "the store is away: a read",
        "the store is away: a write",
    ];
    println!(
        "| | {} |",
        columns
            .iter()
            .map(|(library, _)| *library)
            .collect::<Vec<_>>()
            .join(" | ")
    );
    println!("| --- |{}", " --- |".repeat(columns.len()));
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<&str> = columns.iter().map(|(_, column)| &*column[index]).collect();
        println!("| {row} | {} |", cells.join(" | "));
    }
    println!();
    alike().await?;
    layouts().await
}

/// Two functions of one name, in two modules, by the key that a library gives them.
async fn alike() -> Result<(), BoxError> {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let (_directory, db) = crate::database().await?;
    let app = crate::with_hitbox::start(db, &format!("redis://{}", server.address()))?;
    let _ = named_alike::users::title(7).cache(&app.cache).await;
    let title = named_alike::channels::title(7).cache(&app.cache).await;
    println!("hitbox: channels::title(7), after users::title(7): {title:?}");
    Ok(())
}

/// An entry of the old layout, read by the new one.
async fn layouts() -> Result<(), BoxError> {
    use cached::{AsyncRedisCache, ConcurrentCachedAsync as _};
    use hitbox::backend::CacheBackend as _;
    use versions::{New, Old};

    let server = RedisServer::start(Listen::Tcp, &[]);
    let redis = format!("redis://{}", server.address());
    let old = Old {
        email: "ada@example.com".to_owned(),
        name: "Ada".to_owned(),
    };
    let before: AsyncRedisCache<i64, Old> = AsyncRedisCache::builder("user")
        .connection_string(&redis)
        .build()
        .await?;
    let after: AsyncRedisCache<i64, New> = AsyncRedisCache::builder("user")
        .connection_string(&redis)
        .build()
        .await?;
    before.async_cache_set(7, old.clone()).await?;
    println!(
        "cached: a user of the old layout, by the new one: {:?}",
        after.async_cache_get(&7).await
    );

    let (_directory, db) = crate::database().await?;
    let app = crate::with_hitbox::start(db, &redis)?;
    let store = app.cache.backend();
    let key = hitbox::CacheKey::from_str("user", "7");
    let mut context = hitbox::CacheContext::default().boxed();
    let expire = chrono::Utc::now() + crate::with_hitbox::DAY;
    let value = hitbox::CacheValue::new(old, Some(expire), None);
    store
        .set::<Old>(&key, &value, &mut context)
        .await
        .map_err(|e| e.to_string())?;
    let found = store
        .get::<New>(&key, &mut context)
        .await
        .map_err(|e| e.to_string())?;
    println!(
        "hitbox: the same: {:?}",
        found.map(|found| found.into_inner())
    );
    Ok(())
}
