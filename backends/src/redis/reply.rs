//! What the server's error replies mean.
//!
//! | reply | what it is to the caller | the connection |
//! |---|---|---|
//! | `LOADING`, `MASTERDOWN`, `BUSY`, `CLUSTERDOWN`, `TRYAGAIN`, `MISCONF`, `NOREPLICAS` | an error that a retry helps | stays |
//! | `OOM` | a miss without a lease, or an error for what should have been stored; counted | stays |
//! | `READONLY` | an error that a retry helps: the server is a replica now | is closed |
//! | `NOAUTH`, `WRONGPASS` | an error of the configuration | is closed |
//! | `NOPERM`, `WRONGTYPE` | an error of the configuration | stays |
//! | `NOSCRIPT` | nothing: the script is loaded and called again | stays |
//! | anything else | an error of the protocol | stays |

use larder_core::{Error, ErrorKind};
use redis::ServerError;

/// Whether the connection is of no more use after this.
pub(super) fn ends_connection(error: &ServerError) -> bool {
    matches!(error.code(), "READONLY" | "NOAUTH" | "WRONGPASS")
}

/// Whether the server has no room for what it should store.
pub(super) fn is_out_of_memory(error: &ServerError) -> bool {
    error.code() == "OOM"
}

/// Whether the server has forgotten a script.
pub(super) fn is_unknown_script(error: &ServerError) -> bool {
    error.code() == "NOSCRIPT"
}

/// The error of a call that the server refused. It doesn't quote the server, which may quote our keys and values.
pub(crate) fn error(server: &str, what: &str, error: &ServerError) -> Error {
    let (kind, why) = match error.code() {
        "LOADING" => (ErrorKind::Unavailable, "it is loading its data"),
        "MASTERDOWN" => (
            ErrorKind::Unavailable,
            "it is a replica that has lost its primary",
        ),
        "BUSY" => (ErrorKind::Unavailable, "it is busy with somebody's script"),
        "CLUSTERDOWN" => (ErrorKind::Unavailable, "its cluster is down"),
        "TRYAGAIN" => (ErrorKind::Unavailable, "its keys are being moved"),
        "MISCONF" => (
            ErrorKind::Unavailable,
            "it can't save its data, and so takes none (stop-writes-on-bgsave-error)",
        ),
        "NOREPLICAS" => (
            ErrorKind::Unavailable,
            "it has too few replicas to take anything",
        ),
        "READONLY" => (ErrorKind::Unavailable, "it has become a replica"),
        "OOM" => (
            ErrorKind::Unavailable,
            "it has no room; raise maxmemory, or let it evict (maxmemory-policy)",
        ),
        "NOAUTH" | "WRONGPASS" => (ErrorKind::Config, "it no longer knows who we are"),
        "NOPERM" => (
            ErrorKind::Config,
            "its user may not do this; docs/redis.md has the ACL rule",
        ),
        "WRONGTYPE" => (
            ErrorKind::Config,
            "somebody else keeps something under larder's keys; give larder a database of its own",
        ),
        "MOVED" | "ASK" => (ErrorKind::Unavailable, "another node has the key"),
        code => {
            let code: String = code.chars().take(40).collect();
            return Error::new(
                ErrorKind::Protocol,
                format!(
                    "redis {server}: refused a {what} with `{}`",
                    code.escape_debug()
                ),
            );
        }
    };
    Error::new(
        kind,
        format!("redis {server}: refused a {what}, since {why}"),
    )
}
