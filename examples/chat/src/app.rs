//! The running chat: a database, a cache in front of it, and the writes under way.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder::backends::Registry;
use larder::{Cache, Config, Rt, Tiers};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::data::{DisplayNames, Messages, ScriptMap, Streams, Subscribers, Users, UsersByEmail};
use crate::db::{self, Db};
use crate::dictionary::Dictionaries;
use crate::fill::fill_once;
use crate::lock::{Lock, beside};
use crate::{During as _, Options, StartResult};

/// The running chat, shared by all requests.
#[derive(Debug)]
pub struct App {
    db: Db,
    cache: Cache<Db>,
    /// The store in words, without credentials.
    store: String,
    started: Instant,
    writes: TaskTracker,
    _lock: Lock,
}

impl App {
    /// Opens the database, fills it if it is new, and puts the cache in front of it.
    ///
    /// # Errors
    ///
    /// If the database can't be opened or filled, the configuration names no store, or another chat uses the database
    /// in a way that this one's store wouldn't notice.
    pub async fn start(options: &Options, config: &Config) -> StartResult<Arc<Self>> {
        let what = "can't open the cache";
        let (backend, prefix) = Registry::new().open(config, Rt::new()).during(what)?;
        let lock = Lock::take(&options.db, backend.pool().reach)?;
        let db = Db::open(&options.db).await?;
        // A prefix beside a new database is that of a deleted one: under it, the store may still hold its messages.
        fill_once(&db, options, || forget_prefix(&options.db)).await?;
        let dictionaries = Dictionaries::read(&db).await?;
        let prefix = prefix.resolve(&backend.pool()).during(what)?;
        let store = backend.to_string();
        let tiers = Tiers::from_config(config).during(what)?;
        let builder = Cache::builder(db.clone())
            .backend(backend)
            .prefix(prefix)
            .tiers(tiers)
            .register::<Messages>()
            .register::<Users>()
            .register::<DisplayNames>()
            .register::<UsersByEmail>()
            .register::<Streams>()
            .register::<Subscribers>()
            // One reader is left for the queries that aren't loads.
            .max_loads(db::READERS as usize - 1)
            .load_queue(db::PATIENCE)
            .dictionaries::<Messages>(dictionaries.current, dictionaries.older);
        let builder = match options.warm {
            true => builder.warm::<ScriptMap>([()]),
            false => builder.register::<ScriptMap>(),
        };
        let cache = builder.build().await.during(what)?;
        Ok(Arc::new(Self {
            db,
            cache,
            store,
            started: Instant::now(),
            writes: TaskTracker::new(),
            _lock: lock,
        }))
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The cache in front of it.
    pub fn cache(&self) -> &Cache<Db> {
        &self.cache
    }

    /// The store in words.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// How long the chat has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs a write to its end as a task of its own, whether or not the caller waits for it.
    ///
    /// A client that hangs up between the commit and the flush would otherwise leave the past in the cache.
    ///
    /// # Panics
    ///
    /// If the write does.
    pub async fn write<F>(&self, write: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match self.writes.spawn(write).await {
            Ok(written) => written,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Waits until no write is under way.
    pub async fn writes_settled(&self) {
        self.writes.close();
        self.writes.wait().await;
        self.writes.reopen();
    }

    /// Waits for the writes under way, then for the cache's loads and fills, and closes everything.
    pub async fn close(&self, deadline: Duration) {
        if tokio::time::timeout(deadline, self.writes_settled())
            .await
            .is_err()
        {
            warn!(
                left = self.writes.len(),
                "writes are still under way after {deadline:?}"
            );
        }
        self.cache.close(deadline).await;
        if tokio::time::timeout(deadline, self.db.close())
            .await
            .is_err()
        {
            warn!("the database is still in use after {deadline:?}");
        }
    }
}

fn forget_prefix(database: &Path) -> StartResult<()> {
    let path = beside(database, "prefix");
    match std::fs::remove_file(&path) {
        Ok(()) => {
            info!(path = %path.display(), "removed the cache's prefix of an earlier database");
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).during(format!(
            "{}: can't remove the prefix of an earlier database",
            path.display()
        )),
    }
}
