//! Which backend a configuration names: schemes, and what opens a store of each.
//!
//! A registry is a value that the program makes. There is no global one, and nothing registers itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use larder_core::{
    Backend, CacheBuilder, Config, Error, ErrorKind, PrefixSettings, Result, Rt, Settings, Source,
};
use serde::de::DeserializeOwned;

type Open = Arc<dyn Fn(&Settings, Rt) -> Result<Arc<dyn Backend>> + Send + Sync>;

/// Schemes of stores, and what opens a store of each.
///
/// ```
/// # #[cfg(feature = "memory")] fn main() -> larder_core::Result<()> {
/// use larder_backends::{Memory, MemoryConfig, Registry};
/// use larder_core::{Backend, Config, Rt};
///
/// // A scheme of one's own beside the built-in ones: its struct says which keys there are.
/// let registry = Registry::new().with("tiny", |config: MemoryConfig, rt| Memory::new(config.capacity(1 << 20), rt));
/// let (store, _) = registry.open(&Config::new("tiny://?max_item=64KiB")?, Rt::new())?;
/// assert_eq!(store.to_string(), "memory (1 MiB)");
///
/// let unknown = registry.open(&Config::new("tinny://")?, Rt::new()).unwrap_err();
/// assert!(unknown.to_string().starts_with("unknown scheme `tinny` (the URL in the program's code); known schemes: "));
/// # Ok(()) }
/// # #[cfg(not(feature = "memory"))] fn main() {}
/// ```
#[derive(Clone)]
pub struct Registry {
    schemes: BTreeMap<String, Open>,
}

impl Registry {
    /// The schemes that are built in: `memory`, `memcached`, `redis` and `redis+cluster` (`rediss` with TLS), as far as their features are on.
    pub fn new() -> Self {
        let registry = Self {
            schemes: BTreeMap::new(),
        };
        #[cfg(feature = "memory")]
        let registry = registry.with("memory", crate::Memory::new);
        #[cfg(feature = "memcached")]
        let registry = registry.with("memcached", crate::memcached::Memcached::new);
        #[cfg(feature = "redis")]
        let registry = {
            use crate::redis::{Redis, RedisCluster, RedisConfig};
            registry
                .with("redis", Redis::new)
                .with("rediss", |config: RedisConfig, rt| {
                    Redis::new(config.with_tls(), rt)
                })
                .with("redis+cluster", RedisCluster::new)
                .with("rediss+cluster", |config: RedisConfig, rt| {
                    RedisCluster::new(config.with_tls(), rt)
                })
        };
        registry
    }

    /// Adds a scheme, or replaces the one of this name.
    ///
    /// A backend's constructor is all it takes, since the keys become its struct by serde. It opens no connection yet, and
    /// fails for what can never work.
    #[must_use]
    pub fn with<T, B>(
        mut self,
        scheme: impl Into<String>,
        open: impl Fn(T, Rt) -> Result<B> + Send + Sync + 'static,
    ) -> Self
    where
        T: DeserializeOwned,
        B: Backend,
    {
        let open = move |settings: &Settings, rt| {
            let backend = open(settings.parse()?, rt)?;
            Ok(Arc::new(backend) as Arc<dyn Backend>)
        };
        self.schemes.insert(scheme.into(), Arc::new(open));
        self
    }

    /// The store that this configuration names, and what it says about the prefix. The effective configuration is logged,
    /// without secrets.
    ///
    /// Fails for a scheme that isn't registered, and for keys and values that its backend doesn't take.
    pub fn open(&self, config: &Config, rt: Rt) -> Result<(Arc<dyn Backend>, PrefixSettings)> {
        let settings = config.settings()?;
        let open = self
            .schemes
            .get(settings.backend())
            .ok_or_else(|| self.unknown(&settings))?;
        let prefix = settings.prefix()?;
        let backend =
            open(&settings, rt).map_err(|error| with_reason(settings.backend(), error))?;
        tracing::info!(store = %backend, configuration = %settings, "opened the cache's store");
        Ok((backend, prefix))
    }

    /// Another pool, by its description, with whatever else this configuration says: how a flush reaches the generation
    /// of a configuration that was changed.
    ///
    /// Fails for a pool that can't be described by a URL, such as a store within another process, and where what is opened
    /// would place keys otherwise.
    pub fn open_pool(
        &self,
        config: &Config,
        description: &str,
        rt: Rt,
    ) -> Result<Arc<dyn Backend>> {
        let mut url = description.to_owned();
        if description.starts_with("memcached://") && !description.contains('?') {
            // What a description leaves out is the default, whatever this configuration says.
            url.push_str("?hash=rendezvous");
        }
        let (backend, _) = self.open(&config.with_pool(&url)?, rt)?;
        let opened = backend.pool().description;
        if opened != description {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the pool {description} of another generation can't be opened with this configuration, which makes it \
                     {opened}"
                ),
            ));
        }
        Ok(backend)
    }

    fn unknown(&self, settings: &Settings) -> Error {
        let (scheme, origin) = (settings.backend(), settings.backend_origin());
        let known: Vec<_> = self.schemes.keys().map(String::as_str).collect();
        let remedy = match scheme {
            "memory" | "memcached" | "redis" => format!("; turn on larder's feature `{scheme}`"),
            "rediss" | "redis+cluster" | "rediss+cluster" => {
                "; turn on larder's feature `redis`".to_owned()
            }
            _ => String::new(),
        };
        let message = format!(
            "unknown scheme `{}` ({origin}); known schemes: {}{remedy}",
            scheme.escape_debug(),
            known.join(", "),
        );
        Error::new(ErrorKind::Config, message)
    }
}

/// Adds why there is no such key to the error of one that other clients have.
fn with_reason(scheme: &str, error: Error) -> Error {
    const REPLICAS: [&str; 3] = ["readonly", "read_from", "read_from_replicas"];
    let message = error.to_string();
    let names = |key: &str| message.starts_with(&format!("unknown key `{key}` in "));
    match scheme.starts_with("redis") && REPLICAS.iter().any(|key| names(key)) {
        true => Error::new(
            error.kind(),
            format!(
                "{message}; replicas are never read from, since what was deleted may still be there"
            ),
        ),
        false => error,
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.schemes.keys()).finish()
    }
}

/// A configuration for the builder of a cache.
///
/// ```
/// # #[cfg(feature = "memory")] async fn build<S: larder_core::Source>(pool: S) -> larder_core::Result<()> {
/// use larder_backends::BuilderExt;
/// use larder_core::{Cache, Config};
///
/// let config = Config::new("memory://")?.env()?; // the embedded store, unless LARDER_URL names another
/// let cache = Cache::builder(pool).config(config).build().await?;
/// # Ok(()) }
/// ```
pub trait BuilderExt: Sized {
    /// Stores entries where this configuration says, under the prefix that it says.
    ///
    /// What is wrong with it is the error of [`CacheBuilder::build`]. A prefix given to the builder comes first.
    #[must_use]
    fn config(self, config: Config) -> Self {
        self.config_with(Registry::new(), config)
    }

    /// The same with schemes of the program's own.
    #[must_use]
    fn config_with(self, registry: Registry, config: Config) -> Self;
}

impl<S: Source> BuilderExt for CacheBuilder<S> {
    fn config_with(self, registry: Registry, config: Config) -> Self {
        let registry = Arc::new(registry);
        let (others, own) = (Arc::clone(&registry), config.clone());
        self.open(move |rt| registry.open(&config, rt))
            .open_pools(move |pool, rt| others.open_pool(&own, pool, rt))
    }
}
