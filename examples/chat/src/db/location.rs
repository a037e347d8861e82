//! Where a database is: what `--db` takes.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file of SQLite's.
    Sqlite(PathBuf),
    /// A URL of PostgreSQL's.
    Postgres(String),
}

impl Location {
    /// A path, or a URL: `sqlite://PATH`, `postgres://USER:PASSWORD@HOST/DATABASE`.
    pub fn parse(text: OsString) -> Result<Self, Infallible> {
        let Some(url) = text.to_str() else {
            return Ok(Self::Sqlite(text.into()));
        };
        let is_postgres = ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.starts_with(scheme));
        Ok(match url.strip_prefix("sqlite://") {
            _ if is_postgres => Self::Postgres(url.to_owned()),
            Some(path) => Self::Sqlite(path.into()),
            None => Self::Sqlite(text.into()),
        })
    }
}

/// Without the password.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::Postgres(url) => {
                // What is behind the question mark may be a password as well.
                let url = url.split_once('?').map_or(&**url, |(url, _)| url);
                let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
                let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
                write!(f, "{scheme}://{place}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Location;

    #[track_caller]
    fn check(text: &str, expected: Location, shown: &str) {
        let Ok(location) = Location::parse(text.into());
        assert_eq!(location, expected);
        assert_eq!(location.to_string(), shown);
    }

    #[test]
    fn locations_are_paths_or_urls_and_shown_without_secrets() {
        let sqlite = |path: &str| Location::Sqlite(path.into());
        let postgres = |url: &str| Location::Postgres(url.into());
        check("chat.db", sqlite("chat.db"), "chat.db");
        check("sqlite:///var/a b.db", sqlite("/var/a b.db"), "/var/a b.db");
        check("sqlite://chat.db", sqlite("chat.db"), "chat.db");
        let url = "postgres://ada:s3:cr@t@db.example:5433/chat?password=s3cret";
        check(url, postgres(url), "postgres://db.example:5433/chat");
        let url = "postgresql:///chat?host=/run/postgresql";
        check(url, postgres(url), "postgresql:///chat");
    }
}
