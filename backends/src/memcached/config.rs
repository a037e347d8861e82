//! How a memcached pool is configured.

use std::path::PathBuf;
use std::time::Duration;

use larder_core::config::{Secret, bytes, duration};
use larder_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::placement::{Member, Placement};
use crate::tls::TlsConfig;

/// A pool of memcached servers, and how patient to be with them.
///
/// ```
/// use larder_backends::memcached::MemcachedConfig;
///
/// let config = MemcachedConfig::new(["10.0.0.5", "10.0.0.6:11212", "/run/memcached.sock"]);
/// assert_eq!(config.connections, 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MemcachedConfig {
    /// `host`, `host:port`, `[ipv6]:port` or `/path/of/a/socket`, in any order, each with `*weight` behind it or without.
    /// A key lives on one of them; a name is one server.
    pub servers: Vec<String>,
    /// How keys are spread over the servers.
    pub hash: Hashing,
    /// Connections a server for small calls; bulk calls share one more, which is opened when the first comes.
    ///
    /// Keep processes x (connections + 1) x 1.2 below the server's limit (`-c`).
    pub connections: usize,
    /// How many keys are looked up.
    pub bulk: BulkForm,
    /// Encrypts connections (`memcached -Z`; feature `tls`). Unix sockets stay as they are: memcached has no TLS on them.
    ///
    /// The files below are read when the pool is made, and again at every dial, so that certificates are renewed without
    /// a restart; while what is there can't be used, what was read last is.
    pub tls: bool,
    /// PEM certificates of the authorities that a server's certificate may come from; by default those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate, in PEM and followed by its intermediates, for servers that demand one of their clients.
    pub cert_file: Option<PathBuf>,
    /// The private key of `cert_file`, in PEM; may be the same file.
    pub key_file: Option<PathBuf>,
    /// The name or IP address that the certificate of every server is for; by default that by which `servers` names it.
    pub server_name: Option<String>,
    /// Who we are to servers that demand a password: a text file of theirs (`memcached -Y`), or SASL (`-S`).
    pub user: Option<String>,
    /// The password of `user`; a configuration has it in a variable of the environment, and names that: `password_env`.
    #[serde(rename = "password_env")]
    pub password: Option<Secret>,
    /// The servers ask for `user` and password by SASL (`-S`), and so speak the old binary protocol alone.
    ///
    /// What is absent then takes a second trip for its lease, and how old a lease is is told by the clocks of the hosts.
    pub sasl: bool,
    /// How long a dial may take, with the exchange in which the server introduces itself.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// How long a caller waits for a look-up or a fill. A bulk call waits 1 ms longer for every 20 keys, and for every
    /// 64 KiB it sends.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The same for deletes, whose answer matters more than its time: a bulk call waits as much longer.
    #[serde(with = "duration")]
    pub flush_timeout: Duration,
    /// A connection is closed when something is under way on it and no byte has come for this long, or for `flush_timeout`
    /// if that is longer.
    #[serde(with = "duration")]
    pub stall: Duration,
    /// The pause after a dial that failed; it doubles up to `backoff_limit`.
    #[serde(with = "duration")]
    pub backoff: Duration,
    /// The longest pause between dials.
    #[serde(with = "duration")]
    pub backoff_limit: Duration,
    /// Something between us and the server dials it for us, so that a connection of ours may outlive the server.
    ///
    /// Leases can't be trusted there: every call that asks for one, or fills, is refused for now. It can't be noticed from here,
    /// so say it for mcrouter, twemproxy, managed endpoints, and port forwarders that survive the server.
    pub via_proxy: bool,
    /// Building the cache fails unless every server answers.
    pub require_at_start: bool,
    /// The longest item to send, with key and header; the server's own limit (`-I`) holds in any case.
    #[serde(with = "bytes")]
    pub max_item: usize,
}

/// How a bulk call looks keys up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BulkForm {
    /// A pipeline of `mg`: one trip with the leases, and neighbours are served in between.
    #[default]
    Meta,
    /// Classic `gets` lines of up to 100 keys: faster on the server's default settings (1.3 to 1.8 times for small
    /// values), but neighbours wait longer, and what is absent takes a second trip for its leases.
    Get,
}

/// How keys are spread over servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashing {
    /// Rendezvous hashing: shares are exactly as weights are, and a server that comes or goes moves its own share only.
    #[default]
    Rendezvous,
    /// The ring of libmemcached's `MEMCACHED_BEHAVIOR_KETAMA` (`behaviors={"ketama": True}` of pylibmc), without weights:
    /// for pools shared with such clients.
    Ketama,
    /// The ring of `MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED` (`{"ketama_weighted": True}` of pylibmc, `OPT_LIBKETAMA_COMPATIBLE`
    /// of PHP).
    KetamaWeighted,
}

impl Default for MemcachedConfig {
    fn default() -> Self {
        Self {
            servers: vec!["127.0.0.1:11211".to_owned()],
            hash: Hashing::Rendezvous,
            connections: 1,
            bulk: BulkForm::Meta,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            user: None,
            password: None,
            sasl: false,
            connect_timeout: Duration::from_millis(250),
            timeout: Duration::from_millis(100),
            flush_timeout: Duration::from_secs(1),
            stall: Duration::from_secs(1),
            backoff: Duration::from_millis(50),
            backoff_limit: Duration::from_secs(5),
            via_proxy: false,
            require_at_start: false,
            max_item: 1 << 20,
        }
    }
}

impl MemcachedConfig {
    /// The defaults for these servers.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// The servers, sorted, and which key lives on which, if everything here can work.
    pub(super) fn members(&self) -> Result<(Vec<Member>, Placement)> {
        let mut members = Vec::with_capacity(self.servers.len());
        for server in &self.servers {
            members.push(Member::parse(server)?);
        }
        members.sort_unstable();
        if let Some(pair) = members
            .windows(2)
            .find(|pair| pair[0].address == pair[1].address)
        {
            let twice = &pair[0].address;
            return Err(refused(format!("server {twice} is listed twice")));
        }
        if members.is_empty() {
            return Err(refused("`servers` is empty; list at least one".to_owned()));
        }
        if !(1..=64).contains(&self.connections) {
            return Err(refused(format!(
                "`connections` is {}; it takes 1 to 64",
                self.connections
            )));
        }
        for (name, duration) in [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
            ("flush_timeout", self.flush_timeout),
            ("stall", self.stall),
            ("backoff", self.backoff),
            ("backoff_limit", self.backoff_limit),
        ] {
            if duration < Duration::from_millis(1) || duration > Duration::from_secs(3600) {
                return Err(refused(format!(
                    "`{name}` is {duration:?}; it takes 1ms to 1h"
                )));
            }
        }
        if self.max_item < 1024 {
            return Err(refused(format!(
                "`max_item` is {}; it takes at least 1024",
                self.max_item
            )));
        }
        self.tls_config().check()?;
        self.check_login()?;
        let placement = Placement::new(self.hash, &members)?;
        Ok((members, placement))
    }

    /// What it says about TLS.
    pub(super) fn tls_config(&self) -> TlsConfig<'_> {
        TlsConfig {
            store: "memcached",
            is_on: self.tls,
            ca_file: self.ca_file.as_deref(),
            cert_file: self.cert_file.as_deref(),
            key_file: self.key_file.as_deref(),
            server_name: self.server_name.as_deref(),
        }
    }

    fn check_login(&self) -> Result<()> {
        let (user, password) = match (&self.user, &self.password) {
            (None, None) if self.sasl => {
                return Err(refused("`sasl` needs `user` and `password_env`".to_owned()));
            }
            (None, None) => return Ok(()),
            (Some(user), Some(password)) => (user, password.expose()),
            (Some(_), None) => return Err(refused("`user` needs its `password_env`".to_owned())),
            (None, Some(_)) => return Err(refused("`password_env` needs its `user`".to_owned())),
        };
        if self.sasl && self.bulk == BulkForm::Get {
            return Err(refused(
                "`bulk` is for the text protocol, and servers with `sasl` speak the other; take one of them away".to_owned(),
            ));
        }
        // Such a server reads `user:password` lines, and splits what it is sent at blanks.
        let fits = |text: &str| match self.sasl {
            true => !text.is_empty() && !text.contains('\0'),
            false => {
                !text.is_empty() && !text.contains(|c: char| c.is_ascii_whitespace() || c == '\0')
            }
        };
        if !fits(user) || !self.sasl && user.contains(':') {
            return Err(refused(
                "`user` can't be empty, and at a server with a text file (-Y) has no blanks and no colon".to_owned(),
            ));
        }
        if !fits(password) {
            return Err(refused(
                "the password can't be empty, and at a server with a text file (-Y) has no blanks"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// The error of a configuration that can't work.
pub(super) fn refused(message: String) -> Error {
    Error::new(ErrorKind::Config, format!("memcached config: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(change: impl FnOnce(&mut MemcachedConfig), reason: &str) {
        let mut config = MemcachedConfig::default();
        change(&mut config);
        let error = config.members().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        check_refused(|config| config.servers.clear(), "`servers` is empty");
        check_refused(
            |config| config.servers = vec!["a".into(), "A:11211".into()],
            "a:11211 is listed twice",
        );
        check_refused(|config| config.servers = vec!["a b".into()], "`a b`");
        check_refused(|config| config.connections = 0, "`connections`");
        check_refused(|config| config.timeout = Duration::ZERO, "`timeout`");
        check_refused(|config| config.stall = Duration::MAX, "`stall`");
        check_refused(|config| config.max_item = 10, "`max_item`");
        check_refused(|config| config.ca_file = Some("ca".into()), "`tls = true`");
        check_refused(
            |config| (config.tls, config.cert_file) = (true, Some("cert".into())),
            "`cert_file` needs its `key_file`",
        );
        check_refused(
            |config| config.user = Some("anna".into()),
            "`user` needs its `password_env`",
        );
        check_refused(
            |config| config.password = Some(Secret::new("x")),
            "`password_env` needs its `user`",
        );
        for (user, password) in [("an:na", "x"), ("an na", "x"), ("", "x"), ("anna", "x y")] {
            check_refused(
                |config| {
                    config.user = Some(user.into());
                    config.password = Some(Secret::new(password));
                },
                "can't be empty",
            );
        }
        check_refused(|config| config.sasl = true, "`sasl` needs `user`");
    }

    #[test]
    fn the_order_of_servers_does_not_matter() {
        let members = |servers: [&str; 3]| MemcachedConfig::new(servers).members().unwrap().0;
        assert_eq!(
            members(["b", "a:1", "/s"]),
            members(["/s", "a:1", "b:11211"])
        );
    }
}
