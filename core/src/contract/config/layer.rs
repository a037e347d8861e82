//! One layer: keys and texts of one origin, with its URL taken apart.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::url;
use crate::contract::{Error, ErrorKind, Result};

/// What the names of larder's variables begin with.
const VARIABLES: &str = "LARDER_";

/// Variables that begin like larder's and are no keys.
const NO_KEYS: [&str; 2] = ["LARDER_TEST_", "LARDER_CORPUS"];

/// Which layer wins: the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Code,
    #[cfg_attr(
        not(feature = "toml"),
        expect(dead_code, reason = "only TOML is a file")
    )]
    File,
    Environment,
    CommandLine,
}

/// Where a value was written, in the words an error says it with.
#[derive(Clone, Debug)]
pub(super) struct Origin(Arc<str>);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was written: one text, or a list as TOML and a URL's hosts have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    /// The path of a URL without hosts, which is the key `path`: a file, or the one socket among the `servers` of a
    /// backend that has those.
    Place(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Place(text) => f.write_str(text),
            Self::List(items) => f.write_str(&items.join(",")),
        }
    }
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Setting {
    /// The value, unless the key sounds as if it shouldn't be shown.
    pub(super) fn shown(&self, key: &str) -> String {
        let secretive = ["password", "passwd", "secret", "token", "credential"];
        let value = self.value.to_string();
        let hidden = if key.ends_with("_env") {
            // Somebody may have written the secret where its variable's name belongs.
            !value
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        } else {
            secretive.iter().any(|word| key.contains(word))
        };
        if hidden {
            "(hidden)".to_owned()
        } else {
            value.escape_debug().to_string()
        }
    }
}

/// One key of a layer as it was written, before `url` is taken apart.
pub(super) struct Entry {
    key: String,
    setting: Setting,
}

impl Entry {
    pub(super) fn new(key: &str, value: impl Into<Value>, origin: &str) -> Self {
        Self {
            key: key.to_owned(),
            setting: Setting {
                value: value.into(),
                origin: Origin(origin.into()),
            },
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// The keys of one layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) rank: Rank,
    /// The backend it names, if it names one.
    pub(super) backend: Option<(String, Origin)>,
    pub(super) values: BTreeMap<String, Setting>,
}

impl Layer {
    pub(super) fn new(rank: Rank, entries: impl IntoIterator<Item = Entry>) -> Result<Self> {
        let mut named = BTreeMap::new();
        for Entry { key, setting } in entries {
            let origin = setting.origin.clone();
            if named.insert(key.clone(), setting).is_some() {
                return Err(refused(&origin, format!("key `{key}` is given twice")));
            }
        }
        let mut layer = Self {
            rank,
            backend: None,
            values: BTreeMap::new(),
        };
        if let Some(url) = named.remove("url") {
            layer.take_apart(&url)?;
        }
        if let Some(setting) = named.remove("backend") {
            layer.name_backend(setting)?;
        }
        // After the URL's: a key that is given by name is meant more than one inside a URL.
        lay_over(&mut layer.values, named);
        Ok(layer)
    }

    fn take_apart(&mut self, url: &Setting) -> Result<()> {
        let Value::Text(text) = &url.value else {
            return Err(refused(&url.origin, "key `url` takes one URL, not a list"));
        };
        let url::Parts { scheme, values } =
            url::parse(text).map_err(|reason| refused(&url.origin, reason))?;
        self.backend = Some((scheme, url.origin.clone()));
        self.values.extend(values.into_iter().map(|(key, value)| {
            let origin = url.origin.clone();
            (key, Setting { value, origin })
        }));
        Ok(())
    }

    fn name_backend(&mut self, Setting { value, origin }: Setting) -> Result<()> {
        let name = value.to_string();
        if let Some((scheme, _)) = &self.backend
            && *scheme != name
        {
            return Err(refused(
                &origin,
                format!(
                    "`backend` is {name} and `url` begins with {scheme}:, leave one of them out"
                ),
            ));
        }
        self.backend = Some((name, origin));
        Ok(())
    }
}

/// Lays later keys over earlier ones.
///
/// Hosts and a place are two ways to say where the store is: the later takes the place of the other.
pub(super) fn lay_over(
    values: &mut BTreeMap<String, Setting>,
    later: impl IntoIterator<Item = (String, Setting)>,
) {
    for (key, setting) in later {
        let is_place = |setting: &Setting| matches!(setting.value, Value::Place(_));
        if is_place(&setting) {
            values.remove("servers");
        } else if key == "servers" && values.get("path").is_some_and(is_place) {
            values.remove("path");
        }
        values.insert(key, setting);
    }
}

/// The keys among these variables.
pub(super) fn from_environment(vars: impl IntoIterator<Item = (String, String)>) -> Vec<Entry> {
    vars.into_iter()
        .filter(|(name, value)| is_key(name) && !value.is_empty())
        .map(|(name, value)| {
            let key = name[VARIABLES.len()..].to_ascii_lowercase();
            Entry::new(&key, value, &name)
        })
        .collect()
}

/// The keys among the process's variables, in the order of their names.
pub(super) fn from_process_environment() -> Result<Vec<Entry>> {
    let mut vars = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| is_key(name)) else {
            continue;
        };
        let value = value
            .into_string()
            .map_err(|_| Error::new(ErrorKind::Config, format!("{name}: the value isn't UTF-8")))?;
        vars.push((name.to_owned(), value));
    }
    vars.sort();
    Ok(from_environment(vars))
}

fn is_key(variable: &str) -> bool {
    variable.starts_with(VARIABLES) && !NO_KEYS.iter().any(|name| variable.starts_with(name))
}

fn refused(origin: &Origin, reason: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Config, format!("{origin}: {reason}"))
}
