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

use crate::transport::Address;

/// Where a node of a cluster sends us for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    pub(crate) to: Address,
    /// For this one question alone, which `ASKING` has to precede, since the slot is on its way there (`ASK`); otherwise for
    /// good (`MOVED`).
    pub(crate) asking: bool,
}

impl Redirect {
    /// What this reply of the node at `asked` says: `MOVED 3999 10.0.0.6:6379`.
    pub(super) fn of(error: &ServerError, asked: &Address) -> Option<Self> {
        let asking = match error.code() {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let (_, place) = error.details()?.trim().split_once(' ')?;
        let (host, port) = place.rsplit_once(':')?;
        let to = announced(host, port.parse().ok()?, asked)?;
        Some(Self { to, asking })
    }

    /// For a key that is sent to and fro.
    pub(crate) fn error(&self) -> Error {
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "redis {}: doesn't have the key, and nor has any node that says who has it; its slot is being moved, or the \
                 cluster's nodes disagree",
                self.to
            ),
        )
    }
}

/// The address of a node as the node at `asked` announces it. One without a name is reached by the name that was asked.
pub(super) fn announced(host: &str, port: u16, asked: &Address) -> Option<Address> {
    let host = match (host, asked) {
        ("" | "?", Address::Tcp { host, .. }) => host,
        _ => host,
    };
    match Address::parse_of("redis", port, host) {
        Ok(address @ Address::Tcp { .. }) if port != 0 => Some(address),
        _ => None,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, port: u16, expected: impl Into<Option<&'static str>>) {
        let asked = Address::parse_of("redis", 6379, "cache-1").unwrap();
        let address = announced(host, port, &asked).map(|address| address.to_string());
        assert_eq!(address.as_deref(), expected.into());
    }

    #[test]
    fn nodes_are_reached_where_the_cluster_says() {
        check("10.0.0.6", 6379, "10.0.0.6:6379");
        check("fe80::2", 7000, "[fe80::2]:7000");
        check("Node-2.example.com", 7000, "node-2.example.com:7000");
        check("", 7001, "cache-1:7001");
        check("?", 7001, "cache-1:7001");
        check("10.0.0.6", 0, None);
        check("a b", 7000, None);
        check("/tmp/redis.sock", 7000, None);
    }
}
