//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use larder::Config;

use crate::lock::beside;

/// A chat whose message history is served through larder.
///
/// The first start creates the database and fills it with generated messages, or with those of --import.
#[derive(Clone, Debug, Parser)]
#[command(name = "larder-chat", version, max_term_width = 100)]
pub struct Options {
    /// The store: memory://, memcached://HOST:PORT,HOST:PORT, redis://HOST:PORT or redis+cluster://HOST:PORT,HOST:PORT, or a
    /// socket as in memcached:///SOCKET [default: LARDER_URL, or memory://]
    #[arg(long, value_name = "URL")]
    pub cache: Option<String>,

    /// The database file; the store's prefix is kept beside it, unless LARDER_PREFIX names one
    #[arg(long, value_name = "PATH", default_value = "larder-chat.db")]
    pub db: PathBuf,

    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Parse the page's source map in the background at the start, and not with the first error that a page reports
    #[arg(long)]
    pub warm: bool,

    /// What a new database is filled with.
    #[command(flatten)]
    pub generated: Generated,

    /// Fill a new database from this file instead: JSON lines in the shape of Zulip's messages, plain or .zst
    #[arg(long, value_name = "FILE", conflicts_with = "Generated")]
    pub import: Option<PathBuf>,
}

impl Options {
    /// The configuration of the cache, without what the environment says.
    ///
    /// The prefix is kept in a file beside the database, unless another place is configured.
    pub fn config(&self) -> larder::Result<Config> {
        let prefix_file = beside(&self.db, "prefix");
        // A path that isn't UTF-8 can't be in a configuration; who has one names the prefix.
        let default = prefix_file.to_str().map_or_else(
            || "memory://".to_owned(),
            |path| format!("memory://?prefix_file={}", escaped(path)),
        );
        Config::new(&default)?.args(self.cache.as_ref().map(|url| ("url", url)))
    }
}

/// A text as the value of a key in a URL.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                escaped.push(byte.into())
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// How many messages to generate; equal numbers and seeds give equal databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Generated {
    /// Messages to generate on the first start
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=50_000_000))]
    pub messages: u32,

    /// People who write them
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub users: u32,

    /// Streams they are written to
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub streams: u32,

    /// Seeds the generator
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

impl Default for Generated {
    fn default() -> Self {
        Self {
            messages: 10_000,
            users: 500,
            streams: 40,
            seed: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Config, Generated, Options};

    #[test]
    fn command_line_is_consistent() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["larder-chat"]).unwrap();
        assert_eq!(options.generated, Generated::default());
        assert_eq!(options.listen.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn prefix_file_is_beside_the_database_unless_configured() {
        let options = Options::try_parse_from(["larder-chat", "--db", "/tmp/a b&%ü.db"]).unwrap();
        let config = options.config().unwrap();
        let file = |config: &Config| config.settings().unwrap().prefix().unwrap().file;
        assert_eq!(file(&config), Some("/tmp/a b&%ü.db.prefix".into()));
        let config = config.vars([("LARDER_PREFIX_FILE", "/run/p")]).unwrap();
        assert_eq!(file(&config), Some("/run/p".into()));
    }

    #[test]
    fn command_line_names_the_store_over_the_environment() {
        let options =
            Options::try_parse_from(["larder-chat", "--cache", "memcached://h:1"]).unwrap();
        let config = options
            .config()
            .unwrap()
            .vars([("LARDER_URL", "memory://")])
            .unwrap();
        assert_eq!(config.settings().unwrap().backend(), "memcached");
    }

    #[test]
    fn import_excludes_generating() {
        let both = ["larder-chat", "--import", "m.jsonl", "--messages", "7"];
        assert!(Options::try_parse_from(both).is_err());
        assert!(Options::try_parse_from(&both[..3]).is_ok());
    }
}
