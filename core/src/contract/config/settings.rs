//! What all layers together say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use super::de;
use super::layer::{Layer, Origin, Setting};
use crate::contract::{Error, ErrorKind, Prefix, Result};

/// Keys that mean the same whatever the backend.
pub(super) const GENERAL: [&str; 2] = ["prefix", "prefix_file"];

/// Keys that mean the same whatever the backend, and belong to a part of larder: `tiers_budget` is the key `budget` of the
/// section `tiers`.
pub(super) const SECTIONS: [&str; 1] = ["tiers"];

/// The part of a key in its section: `budget` for `tiers_budget`.
fn key_in<'a>(section: &str, key: &'a str) -> Option<&'a str> {
    key.strip_prefix(section)?.strip_prefix('_')
}

/// Whether the key means the same whatever the backend.
fn is_general(key: &str) -> bool {
    GENERAL.contains(&key)
        || SECTIONS
            .iter()
            .any(|section| key_in(section, key).is_some())
}

/// The effective configuration: one backend, and a value and its origin for every key that is set.
///
/// [`Display`](fmt::Display) shows all of it in one line for a log, without secrets.
#[derive(Clone)]
pub struct Settings {
    backend: String,
    origin: Origin,
    values: BTreeMap<String, Setting>,
    /// Keys of an earlier layer's backend, and who named another.
    dropped: Vec<(String, Setting, Origin)>,
}

impl Settings {
    /// The layers laid over each other, the first at the bottom.
    pub(super) fn of(layers: &[Layer]) -> Result<Self> {
        let mut backend: Option<(String, Origin)> = None;
        let mut values = BTreeMap::new();
        let mut dropped = Vec::new();
        for layer in layers {
            if let Some((name, origin)) = &layer.backend {
                if backend.as_ref().is_some_and(|(earlier, _)| earlier != name) {
                    let (general, others) = values
                        .into_iter()
                        .partition(|(key, _): &(String, _)| is_general(key));
                    values = general;
                    let others: BTreeMap<_, _> = others;
                    dropped.extend(
                        others
                            .into_iter()
                            .map(|(key, setting)| (key, setting, origin.clone())),
                    );
                }
                backend = Some((name.clone(), origin.clone()));
            }
            values.extend(layer.values.clone());
        }
        let (backend, origin) = backend.ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                "no backend is configured; set LARDER_URL, or `url` or `backend` in the table [cache]",
            )
        })?;
        Ok(Self {
            backend,
            origin,
            values,
            dropped,
        })
    }

    /// The backend's name, which is the URL's scheme.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Who named the backend, for an error about its name.
    pub fn backend_origin(&self) -> impl fmt::Display + '_ {
        &self.origin
    }

    /// The backend's own struct, made of these keys.
    ///
    /// Texts become what the struct's fields ask for: numbers, booleans, the variants of an enum, lists (separated by
    /// commas where it isn't TOML), options, and with [`duration`](super::duration) and [`bytes`](super::bytes) `50ms`
    /// and `64MiB`. Nested structs aren't supported, nor is `#[serde(flatten)]`.
    ///
    /// Fails for keys that the struct doesn't have, and lists those it has; for values that a field doesn't take, and
    /// says which key, which value and where it was written.
    ///
    /// ```
    /// use larder_core::{Config, config};
    ///
    /// #[derive(Debug, Default, serde::Deserialize)]
    /// #[serde(default, deny_unknown_fields)]
    /// struct CupboardConfig {
    ///     shelves: u32,
    ///     #[serde(with = "config::bytes")]
    ///     capacity: u64,
    ///     password_env: Option<config::Secret>,
    /// }
    ///
    /// let config = Config::new("cupboard://?shelves=4&capacity=1MiB")?;
    /// let cupboard: CupboardConfig = config.settings()?.parse()?;
    /// assert_eq!((cupboard.shelves, cupboard.capacity), (4, 1 << 20));
    ///
    /// let config = config.vars([("LARDER_SHELFS", "5")])?;
    /// assert_eq!(
    ///     config.settings()?.parse::<CupboardConfig>().unwrap_err().to_string(),
    ///     "unknown key `shelfs` in cupboard config (LARDER_SHELFS); known keys: capacity, password_env, shelves, \
    ///      and for every backend: backend, prefix, prefix_file, tiers_*, url",
    /// );
    /// # Ok::<(), larder_core::Error>(())
    /// ```
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let own = self
            .values
            .iter()
            .filter(|(key, _)| !is_general(key))
            .map(|(key, setting)| (key.as_str(), setting));
        T::deserialize(de::Struct::of_backend(&self.backend, own))
            .map_err(|problem| Error::new(ErrorKind::Config, problem.to_string()))
    }

    /// The struct of a part of larder, made of the keys that begin with its name: `tiers_budget` is the field `budget` of
    /// what the section `tiers` becomes.
    ///
    /// Fails as [`parse`](Self::parse) does.
    ///
    /// # Panics
    ///
    /// If larder has no such section: its keys would be the backend's.
    pub fn section<T: DeserializeOwned>(&self, name: &'static str) -> Result<T> {
        assert!(SECTIONS.contains(&name), "`{name}` is no section");
        let own = self
            .values
            .iter()
            .filter_map(|(key, setting)| Some((key_in(name, key)?, setting)));
        T::deserialize(de::Struct::of_section(name, own))
            .map_err(|problem| Error::new(ErrorKind::Config, problem.to_string()))
    }

    /// What is said about the prefix.
    ///
    /// Fails if that can't be a prefix.
    pub fn prefix(&self) -> Result<PrefixSettings> {
        let prefix = match self.values.get("prefix") {
            None => None,
            Some(setting) => Some(Prefix::new(&setting.value.to_string()).map_err(|error| {
                Error::new(error.kind(), format!("{}: {error}", setting.origin))
            })?),
        };
        let file = self
            .values
            .get("prefix_file")
            .map(|setting| PathBuf::from(setting.value.to_string()));
        Ok(PrefixSettings { prefix, file })
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend = {} ({})", self.backend, self.origin)?;
        for (key, setting) in &self.values {
            write!(f, "; {key} = {} ({})", setting.shown(key), setting.origin)?;
        }
        for (key, setting, by) in &self.dropped {
            write!(
                f,
                "; dropped {key} = {} ({}), since {by} names another backend",
                setting.shown(key),
                setting.origin,
            )?;
        }
        Ok(())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({self})")
    }
}

/// What the configuration says about the prefix; [`resolve`](PrefixSettings::resolve) makes one of it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PrefixSettings {
    /// The key `prefix`, or `LARDER_PREFIX`: the same on all hosts of a deployment, another in the next one.
    pub prefix: Option<Prefix>,
    /// The key `prefix_file`: for the processes of one host, the file they share a random prefix through.
    pub file: Option<PathBuf>,
}
