//! A TOML table as a layer.

use std::path::Path;

use toml::{Table, Value as Toml};

use super::Config;
use super::layer::{Entry, Rank, Value};
use crate::contract::{Error, ErrorKind, Result};

impl Config {
    /// Adds the table `[cache]` of this TOML document; `file` is what errors call it.
    ///
    /// Other tables belong to the program, and a document without the table adds nothing.
    ///
    /// ```
    /// # use larder_core::Config;
    /// let toml = r#"
    ///     [cache]
    ///     backend = "memcached"
    ///     servers = ["h1:11211", "unix:/run/memcached.sock"]
    ///     timeout = "50ms"
    /// "#;
    /// let config = Config::new("memory://")?.toml(toml, "service.toml")?;
    /// assert!(config.to_string().starts_with("backend = memcached (service.toml [cache])"));
    /// # Ok::<(), larder_core::Error>(())
    /// ```
    pub fn toml(self, document: &str, file: &str) -> Result<Self> {
        self.toml_table(document, file, "cache")
    }

    /// The same as [`Config::toml`] for another table, for a program with more than one cache.
    pub fn toml_table(self, document: &str, file: &str, table: &str) -> Result<Self> {
        let mut document: Table = document
            .parse()
            .map_err(|error| not_toml(file, document, &error))?;
        let origin = format!("{file} [{table}]");
        let entries = match document.remove(table) {
            None => Table::new(),
            Some(Toml::Table(entries)) => entries,
            Some(_) => return Err(refused(&format!("{file}: `{table}` isn't a table"))),
        };
        let entries = entries
            .into_iter()
            .map(|(key, value)| match value_of(value) {
                Some(value) => Ok(Entry::new(&key, value, &origin)),
                None => Err(refused(&format!(
                    "{origin}: key `{key}` takes a text, a number, true or false, or a list of these"
                ))),
            })
            .collect::<Result<Vec<_>>>()?;
        self.with(Rank::File, entries)
    }

    /// The same as [`Config::toml`] for a file, which must exist.
    pub fn toml_file(self, path: impl AsRef<Path>) -> Result<Self> {
        let file = path.as_ref().display().to_string();
        let document = std::fs::read_to_string(&path).map_err(|error| {
            let message = format!("{file}: the configuration can't be read: {error}");
            Error::with_source(ErrorKind::Config, message, error)
        })?;
        self.toml(&document, &file)
    }
}

fn value_of(value: Toml) -> Option<Value> {
    match value {
        Toml::Array(items) => items
            .into_iter()
            .map(text_of)
            .collect::<Option<_>>()
            .map(Value::List),
        value => text_of(value).map(Value::Text),
    }
}

fn text_of(value: Toml) -> Option<String> {
    match value {
        Toml::String(text) => Some(text),
        Toml::Integer(number) => Some(number.to_string()),
        Toml::Float(number) => Some(number.to_string()),
        Toml::Boolean(flag) => Some(flag.to_string()),
        Toml::Datetime(_) | Toml::Array(_) | Toml::Table(_) => None,
    }
}

/// Says where and why, without the line itself: a password may stand in it.
fn not_toml(file: &str, document: &str, error: &toml::de::Error) -> Error {
    let line = error
        .span()
        .and_then(|span| document.get(..span.start))
        .map(|before| before.matches('\n').count() + 1);
    let reason = error.message().lines().next().unwrap_or_default();
    refused(&match line {
        Some(line) => format!("{file}: not TOML: line {line}: {reason}"),
        None => format!("{file}: not TOML: {reason}"),
    })
}

fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Config, message)
}
