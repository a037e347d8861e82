//! How a Redis is configured.

use std::path::PathBuf;
use std::time::Duration;

use larder_core::config::{Secret, bytes, duration};
use larder_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::tls::TlsConfig;
use crate::transport::Address;

/// Redis's registered port.
const DEFAULT_PORT: u16 = 6379;

/// A Redis or Valkey server, and how patient to be with it.
///
/// ```
/// use larder_backends::redis::RedisConfig;
///
/// let config = RedisConfig::new("10.0.0.5");
/// assert_eq!(config.database, 0);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `host`, `host:port`, `[ipv6]:port` or `/path/of/a/socket`: the primary, and only it. A name is one server, however
    /// many addresses it has.
    pub servers: Vec<String>,
    /// The number of the database, as in `redis://host/3`.
    #[serde(alias = "path")]
    pub database: u32,
    /// Who we are to a server with users (ACL); without it a password is that of the user `default`.
    pub user: Option<String>,
    /// The password; a configuration has it in a variable of the environment, and names that: `password_env`.
    #[serde(rename = "password_env")]
    pub password: Option<Secret>,
    /// Encrypts connections (feature `tls`), as a URL does that begins with `rediss://`. Unix sockets stay as they are.
    ///
    /// The files below are read when the store is made, and again at every dial, so that certificates are renewed without
    /// a restart; while what is there can't be used, what was read last is.
    pub tls: bool,
    /// PEM certificates of the authorities that a server's certificate may come from; by default those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate, in PEM and followed by its intermediates, for servers that demand one of their clients.
    pub cert_file: Option<PathBuf>,
    /// The private key of `cert_file`, in PEM; may be the same file.
    pub key_file: Option<PathBuf>,
    /// The name or IP address that the certificate of every server is for; by default that by which `servers`, or their
    /// cluster, names it.
    pub server_name: Option<String>,
    /// Connections for small calls; bulk calls share one more, which is opened when the first comes.
    ///
    /// Keep processes x (connections + 1) x 1.2 below the server's limit (`maxclients`).
    pub connections: usize,
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
    /// A connection is closed when something is under way on it and no byte has come for this long.
    #[serde(with = "duration")]
    pub stall: Duration,
    /// The pause after a dial that failed; it doubles up to `backoff_limit`.
    #[serde(with = "duration")]
    pub backoff: Duration,
    /// The longest pause between dials.
    #[serde(with = "duration")]
    pub backoff_limit: Duration,
    /// Building the cache fails unless the server answers.
    pub require_at_start: bool,
    /// The longest item to send, with its key.
    #[serde(with = "bytes")]
    pub max_item: usize,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            servers: vec!["127.0.0.1:6379".to_owned()],
            database: 0,
            user: None,
            password: None,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            connections: 1,
            connect_timeout: Duration::from_millis(250),
            timeout: Duration::from_millis(100),
            flush_timeout: Duration::from_secs(1),
            stall: Duration::from_secs(1),
            backoff: Duration::from_millis(50),
            backoff_limit: Duration::from_secs(5),
            require_at_start: false,
            max_item: 1 << 20,
        }
    }
}

impl RedisConfig {
    /// The defaults for this server.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            servers: vec![server.into()],
            ..Self::default()
        }
    }

    /// The servers, if everything here can work.
    pub(crate) fn addresses(&self) -> Result<Vec<Address>> {
        let parse = |server: &String| Address::parse_of("redis", DEFAULT_PORT, server);
        let addresses: Vec<Address> = self.servers.iter().map(parse).collect::<Result<_>>()?;
        if addresses.is_empty() {
            return Err(refused("`servers` is empty; name the primary"));
        }
        if !(1..=64).contains(&self.connections) {
            let connections = self.connections;
            return Err(refused(format!(
                "`connections` is {connections}; it takes 1 to 64"
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
            let max_item = self.max_item;
            return Err(refused(format!(
                "`max_item` is {max_item}; it takes at least 1024"
            )));
        }
        if self.user.is_some() && self.password.is_none() {
            return Err(refused("`user` needs its `password_env`"));
        }
        self.tls_config().check()?;
        Ok(addresses)
    }

    /// What it says about TLS.
    pub(super) fn tls_config(&self) -> TlsConfig<'_> {
        TlsConfig {
            store: "redis",
            is_on: self.tls,
            ca_file: self.ca_file.as_deref(),
            cert_file: self.cert_file.as_deref(),
            key_file: self.key_file.as_deref(),
            server_name: self.server_name.as_deref(),
        }
    }

    /// The same as a scheme has it that says so.
    pub(crate) fn with_tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// The one server, if everything here can work.
    pub(super) fn address(&self) -> Result<Address> {
        let mut addresses = self.addresses()?;
        if addresses.len() > 1 {
            return Err(refused(
                "`servers` lists several; name the primary alone, since what was deleted there may still be elsewhere",
            ));
        }
        Ok(addresses.remove(0))
    }
}

/// The error of a configuration that can't work.
pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("redis config: {}", message.into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(change: impl FnOnce(&mut RedisConfig), reason: &str) {
        let mut config = RedisConfig::default();
        change(&mut config);
        let error = config.address().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(reason), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        check_refused(|config| config.servers.clear(), "`servers` is empty");
        check_refused(
            |config| config.servers = vec!["a".into(), "b".into()],
            "the primary alone",
        );
        check_refused(
            |config| config.servers = vec!["a b".into()],
            "`a b` can't be a redis server",
        );
        check_refused(|config| config.connections = 0, "`connections`");
        check_refused(|config| config.timeout = Duration::ZERO, "`timeout`");
        check_refused(|config| config.stall = Duration::MAX, "`stall`");
        check_refused(|config| config.max_item = 10, "`max_item`");
        check_refused(|config| config.ca_file = Some("ca".into()), "`tls = true`");
        check_refused(
            |config| (config.tls, config.key_file) = (true, Some("key".into())),
            "`key_file` needs its `cert_file`",
        );
        check_refused(
            |config| config.user = Some("anna".into()),
            "`user` needs its `password_env`",
        );
    }

    #[test]
    fn the_port_is_redis_s_own() {
        let address = RedisConfig::new("Cache-1").address().unwrap();
        assert_eq!(address.to_string(), "cache-1:6379");
    }
}
