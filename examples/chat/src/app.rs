//! The running chat: a database, and a cache in front of it.

use std::time::{Duration, Instant};

use larder::{BuilderExt as _, Cache, Config, Reader, Tiers};
use tracing::warn;

use crate::data::{messages, script_map};
use crate::db::{self, Db};
use crate::dictionary::Dictionaries;
use crate::fill::filled;
use crate::{During as _, Options, StartResult};

/// The running chat, as each request has it: what accessors are called with where no request asks.
#[derive(Clone, Debug, Reader)]
pub struct App {
    db: Db,
    cache: Cache<Db>,
    started: Instant,
}

impl App {
    /// Opens the database, fills it if it is new, and puts the cache in front of it.
    ///
    /// # Errors
    ///
    /// Those of [`filled`] and of [`App::on`].
    pub async fn start(options: &Options, config: &Config) -> StartResult<Self> {
        Self::on(filled(options).await?, options, config).await
    }

    /// Puts the cache in front of a database that was filled.
    ///
    /// # Errors
    ///
    /// If the configuration names no store, or another chat uses the database in a way that this one's store wouldn't
    /// notice.
    pub async fn on(db: Db, options: &Options, config: &Config) -> StartResult<Self> {
        let dictionaries = Dictionaries::read(&db).await?;
        let what = "can't open the cache";
        let tiers = Tiers::from_config(config).during(what)?;
        // What is cached registers itself, by its attribute.
        let mut builder = Cache::builder(db.clone())
            .config(config.clone())
            .tiers(tiers)
            // One reader is left for the queries that aren't loads.
            .max_loads(db::READERS as usize - 1)
            .load_queue(db::PATIENCE)
            .dictionaries::<messages>(dictionaries.current, dictionaries.older);
        if options.warm {
            builder = builder.warm::<script_map>([()]);
        }
        if cfg!(debug_assertions) {
            // Who writes and doesn't say what changed is told so by the first test.
            builder = builder.strict_writes();
        }
        let cache = builder.build().await.during(what)?;
        Ok(Self {
            db,
            cache,
            started: Instant::now(),
        })
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
