//! Configuration: which store, how it is set, and where each value came from.
//!
//! A [`Config`] is a stack of layers: the URL in the program's code, then TOML, then `LARDER_*` in the environment, then
//! the program's own command line. Each is made of keys and texts, and the later wins, key by key. Laid over each other
//! they are [`Settings`], which a backend turns into its own serde struct with [`Settings::parse`]; everything that is
//! wrong with a value is said with its key and its origin. A URL and a TOML table are two spellings of the same keys.
//!
//! This knows no backend: which schemes there are is the business of a registry.

mod de;
mod layer;
mod settings;
#[cfg(feature = "toml")]
mod toml;
mod units;
mod url;

use std::fmt;

use self::layer::{Entry, Layer, Rank};
use super::Result;

pub use de::known_keys;
pub use settings::{PrefixSettings, Settings};
pub use units::{Secret, bytes, duration};

/// Where larder's settings come from, layer by layer.
///
/// The order in which the methods are called matters only within a layer: the environment always wins over TOML.
///
/// ```
/// use larder_core::Config;
///
/// let config = Config::new("memory://")? // what the program does if nobody says otherwise
///     .vars([("LARDER_URL", "memcached://h1:11211,h2:11211?timeout=50ms"), ("LARDER_PREFIX", "git-3f2a91c")])?
///     .args([("timeout", "80ms")])?;
/// assert_eq!(
///     config.settings()?.to_string(),
///     "backend = memcached (LARDER_URL); prefix = git-3f2a91c (LARDER_PREFIX); \
///      servers = h1:11211,h2:11211 (LARDER_URL); timeout = 80ms (the command line)",
/// );
/// # Ok::<(), larder_core::Error>(())
/// ```
///
/// | key | means |
/// |---|---|
/// | `url` | backend, servers and any other keys at once; a key that its own layer also gives by name wins over it |
/// | `backend` | the scheme alone: `memory`, `memcached` |
/// | `prefix`, `prefix_file` | see [`PrefixSettings`] |
/// | `tiers_…` | the in-process tiers', see [`Settings::section`] |
/// | all others | the backend's own |
///
/// If a later layer names another backend, the backend's own keys of the earlier layers are dropped: a file that sets
/// memcached's timeout doesn't stand in the way of `LARDER_URL=memory://`. [`Settings`] lists what was dropped.
#[derive(Clone, Default)]
pub struct Config {
    /// Sorted by rank; layers of one rank stay in the order they were added.
    layers: Vec<Layer>,
}

impl Config {
    /// The configuration in the program's code, as a URL: `memory://?capacity=128MiB`,
    /// `memcached://h1:11211,h2:11211?timeout=50ms`, `memcached:///run/memcached.sock`.
    ///
    /// Hosts are the key `servers`. A path without hosts is the only one of them, a unix socket; for a backend that has no
    /// servers it is the key `path`. The query's are keys by name. A `%` begins an escaped byte. A program that leaves the
    /// choice to its environment begins with [`Config::default`].
    ///
    /// Fails for what isn't such a URL, and for one with credentials in it: those are for
    /// [`password_env`](Secret).
    pub fn new(url: &str) -> Result<Self> {
        Self::default().with(
            Rank::Code,
            [Entry::new("url", url, "the URL in the program's code")],
        )
    }

    /// Adds what the environment's `LARDER_*` say: `LARDER_URL`, `LARDER_PREFIX`, `LARDER_TIMEOUT` and so on, the key's
    /// name in capitals. An empty variable is as good as none.
    ///
    /// A variable that is no key is an error, found when the [`Settings`] are parsed, so that `LARDER_TIMOUT` doesn't go
    /// unnoticed. `LARDER_TEST_*` and `LARDER_CORPUS` belong to larder's own tests and benchmarks and are never keys.
    pub fn env(self) -> Result<Self> {
        self.with(Rank::Environment, layer::from_process_environment()?)
    }

    /// The same as [`Config::env`] with these variables instead of the process's.
    pub fn vars<N: AsRef<str>, V: Into<String>>(
        self,
        vars: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self> {
        let vars = vars
            .into_iter()
            .map(|(name, value)| (name.as_ref().to_owned(), value.into()));
        self.with(Rank::Environment, layer::from_environment(vars))
    }

    /// Adds keys from the program's own command line, which win over everything else.
    ///
    /// ```
    /// # use larder_core::Config;
    /// # struct Cli { cache: Option<String> }
    /// # let cli = Cli { cache: None };
    /// let config = Config::new("memory://")?.args(cli.cache.map(|url| ("url", url)))?;
    /// # Ok::<(), larder_core::Error>(())
    /// ```
    pub fn args<K: AsRef<str>, V: Into<String>>(
        self,
        args: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self> {
        let entries = args
            .into_iter()
            .map(|(key, value)| Entry::new(key.as_ref(), value.into(), "the command line"));
        self.with(Rank::CommandLine, entries)
    }

    /// This configuration with another pool: what [`Pool::description`](crate::Pool::description) says of it, and everything
    /// else as it is.
    pub fn with_pool(&self, description: &str) -> Result<Self> {
        self.clone().with(
            Rank::CommandLine,
            [Entry::new(
                "url",
                description,
                "the pool of another generation",
            )],
        )
    }

    /// What all layers together say.
    ///
    /// Fails if none of them names a backend.
    pub fn settings(&self) -> Result<Settings> {
        Settings::of(&self.layers)
    }

    fn with(mut self, rank: Rank, entries: impl IntoIterator<Item = Entry>) -> Result<Self> {
        let at = self.layers.partition_point(|layer| layer.rank <= rank);
        self.layers.insert(at, Layer::new(rank, entries)?);
        Ok(self)
    }
}

/// As [`Settings`] shows it, without secrets.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.settings() {
            Ok(settings) => settings.fmt(f),
            Err(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({self})")
    }
}
