//! The tiers: what a cache is given, and what makes its scopes.

use std::any::Any;
use std::sync::Arc;

use larder_core::{Config, Result, Rt, Scope, Scopes, TiersStats};

use crate::TiersConfig;
use crate::room::{Room, TierOf};
use crate::scope::Scoped;
use crate::store::Store;

/// The in-process tiers: one store of decoded values, bounded in bytes, for requests and for what can't change while the
/// code runs.
///
/// A handle: clones are the same tiers, and the caches of a process may share them and so their budget.
#[derive(Clone, Debug)]
pub struct Tiers {
    store: Arc<Store>,
}

impl Tiers {
    /// Tiers that keep this much.
    ///
    /// Fails for what can't work, such as a budget of nothing.
    pub fn new(config: TiersConfig) -> Result<Self> {
        config.check()?;
        Ok(Self::of(config))
    }

    /// Tiers as the keys `tiers_budget`, `tiers_per_request` and `tiers_max_age` say, with the defaults for those that
    /// aren't set.
    ///
    /// ```
    /// use larder_core::Config;
    /// use larder_tiers::Tiers;
    ///
    /// let config = Config::new("memory://?tiers_budget=256MiB")?.vars([("LARDER_TIERS_MAX_AGE", "10s")])?;
    /// assert_eq!(Tiers::from_config(&config)?.stats().budget, 256 << 20);
    ///
    /// let config = Config::new("memory://?tiers_bugdet=256MiB")?;
    /// assert_eq!(
    ///     Tiers::from_config(&config).unwrap_err().to_string(),
    ///     "unknown key `tiers_bugdet` in tiers config (the URL in the program's code); known keys: tiers_budget, \
    ///      tiers_max_age, tiers_per_request",
    /// );
    /// # Ok::<(), larder_core::Error>(())
    /// ```
    pub fn from_config(config: &Config) -> Result<Self> {
        Self::new(config.settings()?.section("tiers")?)
    }

    /// Plain numbers about what is kept now; hits and misses are known to the caches, see
    /// [`Cache::stats`](larder_core::Cache::stats).
    pub fn stats(&self) -> TiersStats {
        self.store.room().stats()
    }

    fn of(config: TiersConfig) -> Self {
        Self {
            store: Arc::new(Store::new(config, Rt::new())),
        }
    }

    fn scope(&self, tier: TierOf) -> Arc<dyn Scope> {
        Arc::new(Scoped::new(Arc::clone(&self.store), tier))
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self::of(TiersConfig::default())
    }
}

impl Scopes for Tiers {
    fn request(&self) -> Arc<dyn Scope> {
        self.scope(TierOf::Request)
    }

    fn deploy(&self) -> Arc<dyn Scope> {
        self.scope(TierOf::Deploy)
    }

    fn reserve(&self, bytes: usize) -> Option<Box<dyn Any + Send + Sync>> {
        let bytes = bytes as u64;
        let room = self.store.room();
        room.reserve(bytes).then(|| {
            let room = Arc::clone(room);
            Box::new(Reserved { room, bytes }) as Box<dyn Any + Send + Sync>
        })
    }

    fn stats(&self) -> TiersStats {
        Self::stats(self)
    }
}

/// Bytes that were set aside, until it is dropped.
struct Reserved {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.room.unreserve(self.bytes);
    }
}
