//! The running chat: a database, and a cache in front of it.

use std::time::{Duration, Instant};

use larder::{BuilderExt as _, Cache, CacheBuilder, Config, Reader, Tiers};
use tracing::warn;

use crate::data::{messages, script_map};
use crate::db::{self, Db};
use crate::dictionary::Dictionaries;
use crate::{During as _, Options, StartResult};

/// What can't be done when the cache can't be built.
const OPENING: &str = "can't open the cache";

/// The running chat, as each request has it: what accessors are called with where no request asks.
#[derive(Clone, Debug, Reader)]
pub struct App {
    db: Db,
    cache: Cache<Db>,
    started: Instant,
}

impl App {
    /// Puts the cache in front of a database that was filled.
    ///
    /// # Errors
    ///
    /// If the configuration names no store, or another chat uses the database in a way that this one's store wouldn't
    /// notice.
    pub async fn on(db: Db, options: &Options, config: &Config) -> StartResult<Self> {
        let configure = Self::configure(&db, options, config).await?;
        let builder = configure(Cache::builder(db.clone()).config(config.clone()));
        Ok(Self::of(db, builder.build().await.during(OPENING)?))
    }

    /// What the chat builds its cache with, whichever store it has: a test adds it to what a test wants.
    ///
    /// # Errors
    ///
    /// If the database's dictionaries can't be read, or the configuration of tiers is wrong.
    pub async fn configure(
        db: &Db,
        options: &Options,
        config: &Config,
    ) -> StartResult<impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db> + use<>> {
        let dictionaries = Dictionaries::read(db).await?;
        let tiers = Tiers::from_config(config).during(OPENING)?;
        let is_warm = options.warm;
        Ok(move |builder: CacheBuilder<Db>| {
            // What is cached registers itself, by its attribute.
            let mut builder = builder
                .tiers(tiers)
                // One reader is left for the queries that aren't loads.
                .max_loads(db::READERS as usize - 1)
                .load_queue(db::PATIENCE)
                .dictionaries::<messages>(dictionaries.current, dictionaries.older);
            if is_warm {
                builder = builder.warm::<script_map>([()]);
            }
            if cfg!(debug_assertions) {
                // Who writes and doesn't say what changed is told so by the first test.
                builder = builder.strict_writes();
            }
            builder
        })
    }

    /// The chat on this database, with this cache in front of it.
    pub fn of(db: Db, cache: Cache<Db>) -> Self {
        Self {
            db,
            cache,
            started: Instant::now(),
        }
    }

    /// The database.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// The cache in front of it.
    pub fn cache(&self) -> &Cache<Db> {
        &self.cache
    }

    /// The store in words, without credentials.
    pub fn store(&self) -> String {
        self.cache.backend().to_string()
    }

    /// How long the chat has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for commits and flushes under way, which go on when nobody waits for their answers, and for loads and fills;
    /// then closes everything.
    pub async fn close(&self, deadline: Duration) {
        self.cache.close(deadline).await;
        if tokio::time::timeout(deadline, self.db.close())
            .await
            .is_err()
        {
            warn!("the database is still in use after {deadline:?}");
        }
    }
}
