//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use larder::Config;

use crate::db::Location;

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

    /// The database: a file, or postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(long, value_name = "PATH|URL", default_value = "larder-chat.db",
        value_parser = OsStringValueParser::new().try_map(Location::parse))]
    pub db: Location,

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
    pub fn config(&self) -> larder::Result<Config> {
        Config::new("memory://")?.args(self.cache.as_ref().map(|url| ("url", url)))
    }
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

    use super::{Generated, Location, Options};

    #[test]
    fn command_line_is_consistent() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["larder-chat"]).unwrap();
        assert_eq!(options.generated, Generated::default());
        assert_eq!(options.listen.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn the_database_is_a_file_or_a_url() {
        let db = |db| {
            Options::try_parse_from(["larder-chat", "--db", db])
                .unwrap()
                .db
        };
        assert_eq!(db("a b.db"), Location::Sqlite("a b.db".into()));
        let url = "postgres://localhost/chat";
        assert_eq!(db(url), Location::Postgres(url.to_owned()));
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
