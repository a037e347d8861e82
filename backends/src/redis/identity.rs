//! The first exchange on a new connection: who we are, what the server is, and which incarnation of it.
//!
//! The incarnation is a hash of two things that `INFO` says: `run_id`, which is new whenever the process starts, and
//! `master_replid`, which is new whenever the history of its data is: above all when a replica becomes the primary. The
//! first alone would let a server that was a replica for a while, and is the primary again, bring back what had been
//! deleted meanwhile. The price is that the cache is cold once when the first replica of all is attached to a running
//! primary, and when the last one has been gone for an hour (`repl-backlog-ttl`), since those change it too.

use std::borrow::Cow;
use std::sync::Arc;

use larder_core::config::Secret;
use larder_core::{Error, ErrorKind, Result};
use redis::{Cmd, Pipeline, ServerError, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::config::RedisConfig;
use super::reply;
use super::script::Scripts;
use super::tap::{Got, Gots};
use crate::tls::Tls;
use crate::transport::{Address, Io};

/// The oldest server that takes `SET` with both `NX` and `GET`.
const OLDEST: (u32, u32) = (7, 0);

/// How every connection to a store begins: by TLS, by a password, or by neither.
#[derive(Debug)]
pub(crate) struct Access {
    tls: Option<Tls>,
    user: Option<String>,
    password: Option<Secret>,
    database: u32,
}

/// What kind of server is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One primary with all keys.
    Standalone,
    /// A node of a cluster, and a primary.
    Cluster,
    /// A node of a cluster that is asked about the cluster and nothing else, so that it may be a replica.
    Seed,
}

/// What a server that we can work with said.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// For people: `7.0.15`, `valkey 8.1.1`.
    pub(crate) version: String,
    /// What entries and leases are bound to.
    pub(crate) incarnation: u64,
    /// The server's time when it answered, in milliseconds since 1970.
    pub(super) time: u64,
    pub(super) run_id: String,
    pub(super) scripts: Arc<Scripts>,
    /// Connections it takes.
    pub(super) maxclients: Option<u64>,
}

impl Access {
    /// Reads what the configuration names; fails if that can't be used.
    pub(crate) fn new<'a>(
        config: &RedisConfig,
        servers: impl IntoIterator<Item = &'a Address> + Clone,
    ) -> Result<Self> {
        if config.password.is_some()
            && !config.tls
            && let Some(server) = servers
                .clone()
                .into_iter()
                .find(|server| !server.is_local())
        {
            tracing::warn!(%server, "the password is sent through the network in the clear; turn on `tls`");
        }
        Ok(Self {
            tls: Tls::new(config.tls_config(), servers)?,
            user: config.user.clone(),
            password: config.password.clone(),
            database: config.database,
        })
    }

    /// Encrypts a connection that was just opened, if that is demanded; one to a unix socket stays as it is.
    pub(super) async fn secure(&self, io: Io, address: &Address) -> Result<Io> {
        match &self.tls {
            Some(tls) => tls.secure(io, address).await,
            None => Ok(io),
        }
    }

    /// Why there is no first exchange, if the server says nothing of it.
    pub(super) fn lost(&self, error: &Error) -> Error {
        if error.kind() == ErrorKind::Config {
            return error.clone();
        }
        let remedy = match &self.tls {
            None => "if it speaks TLS there, write rediss:// or set `tls = true`",
            Some(_) => {
                "if it demands a certificate of its clients (tls-auth-clients), name one, and its key, by `cert_file` and \
                 `key_file`"
            }
        };
        let message = format!("{error}, before it was of use; {remedy}");
        Error::with_source(error.kind(), message, error.clone())
    }

    /// What is asked first on a new connection.
    pub(super) fn hello(&self) -> Cmd {
        let mut hello = Cmd::new();
        hello.arg("HELLO").arg(3);
        if let Some(password) = &self.password {
            let user = self.user.as_deref().unwrap_or("default");
            hello.arg("AUTH").arg(user).arg(password.expose());
        }
        hello
    }

    /// Everything else that is asked, in the same exchange.
    pub(super) fn greeting(&self) -> Pipeline {
        let mut greeting = Pipeline::new();
        greeting.cmd("SELECT").arg(self.database);
        // Servers before 7.2 don't know it, and it may be forbidden: its answer isn't looked at.
        greeting
            .cmd("CLIENT")
            .arg("SETINFO")
            .arg("LIB-NAME")
            .arg("larder");
        greeting.cmd("INFO").arg("server");
        greeting.cmd("INFO").arg("replication");
        greeting.cmd("INFO").arg("clients");
        greeting.cmd("TIME");
        Scripts::load(&mut greeting);
        greeting
    }

    /// What its answers say, or why this server won't do.
    pub(super) fn identify(
        &self,
        server: &str,
        mode: Mode,
        answers: Vec<Value>,
        strings: impl Fn(&Value) -> Option<Gots>,
    ) -> Result<Identity> {
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Value::Nil);
        if let Value::ServerError(error) = next() {
            let database = self.database;
            return Err(match error.details() {
                Some(text) if text.contains("out of range") => Error::new(
                    ErrorKind::Config,
                    format!(
                        "redis {server}: has no database {database}; choose a smaller `database` (its `databases` says how many there are)"
                    ),
                ),
                _ => self.refused(server, &error),
            });
        }
        next();
        let about = Info::of(self.said(server, &next())?);
        let replication = Info::of(self.said(server, &next())?);
        let clients = Info::of(self.said(server, &next())?);
        let time = next();
        let time = strings(&time)
            .and_then(milliseconds)
            .ok_or_else(|| match &time {
                Value::ServerError(error) => self.refused(server, error),
                _ => foreign(server, "no time"),
            })?;
        let scripts = Scripts::loaded(&mut next).map_err(|error| match error {
            Some(error) => self.refused(server, &error),
            None => foreign(server, "no names for scripts"),
        })?;
        check_mode(server, mode, about.field("redis_mode"))?;
        let version = supported(server, &about)?;
        let run_id = about
            .field("run_id")
            .ok_or_else(|| foreign(server, "no run_id"))?;
        let history = match mode {
            Mode::Standalone | Mode::Cluster => primary(server, &replication)?,
            Mode::Seed => replication.field("master_replid").unwrap_or_default(),
        };
        Ok(Identity {
            version,
            incarnation: incarnation(run_id, history),
            time,
            run_id: run_id.to_owned(),
            scripts: Arc::new(scripts),
            maxclients: clients
                .field("maxclients")
                .and_then(|text| text.parse().ok()),
        })
    }

    fn said(&self, server: &str, answer: &Value) -> Result<String> {
        match answer {
            Value::ServerError(error) => Err(self.refused(server, error)),
            _ => match text(answer) {
                Some(text) => Ok(text.into_owned()),
                None => Err(foreign(server, "no INFO")),
            },
        }
    }

    /// Why the server refuses us, without what it may have quoted of our commands.
    pub(super) fn refused(&self, server: &str, error: &ServerError) -> Error {
        let details = error.details().unwrap_or_default();
        let (kind, what) = match error.code() {
            "WRONGPASS" => (
                ErrorKind::Config,
                "refuses the user or the password; check `user` and the variable that `password_env` names".to_owned(),
            ),
            "NOAUTH" => (
                ErrorKind::Config,
                "demands a password; set `password_env`, and `user` if it isn't that of the default user".to_owned(),
            ),
            "NOPERM" => (
                ErrorKind::Config,
                "doesn't let this user do what larder needs; docs/redis.md has the ACL rule".to_owned(),
            ),
            "DENIED" => (
                ErrorKind::Config,
                "is in protected mode and takes connections from its own host alone; give it a password or a bind address"
                    .to_owned(),
            ),
            "LOADING" => (ErrorKind::Unavailable, "is loading its data".to_owned()),
            "ERR" if details.contains("max number of clients") => (
                ErrorKind::Unavailable,
                "has no connection to spare; raise its `maxclients`, or lower `connections` (processes x (connections + 1) \
                 x 1.2 should be below the limit)"
                    .to_owned(),
            ),
            "NOPROTO" | "ERR" if details.contains("unknown command") => too_old("it"),
            _ => return reply::error(server, "first exchange", error),
        };
        Error::new(kind, format!("redis {server}: {what}"))
    }
}

/// Checks what a server says of itself later: that it is still the primary, and of the same incarnation.
pub(super) fn still(server: &str, known: &Identity, replication: &str) -> Result<()> {
    let history = primary(server, &Info::of(replication.to_owned()))?.to_owned();
    match incarnation(&known.run_id, &history) == known.incarnation {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "redis {server}: its data has another history than before, so nothing known of it holds"
            ),
        )),
    }
}

/// The answer to `TIME`, in milliseconds.
pub(super) fn milliseconds(time: Gots) -> Option<u64> {
    let mut numbers = time.iter().map(|part| -> Option<u64> {
        match part {
            Got::Bytes(digits) => std::str::from_utf8(digits).ok()?.parse().ok(),
            _ => None,
        }
    });
    let (seconds, micros) = (numbers.next()??, numbers.next()??);
    Some(seconds.checked_mul(1_000)? + micros / 1_000)
}

/// The answer to `INFO`.
pub(super) fn text(answer: &Value) -> Option<Cow<'_, str>> {
    match answer {
        Value::BulkString(text) => Some(String::from_utf8_lossy(text)),
        Value::VerbatimString { text, .. } => Some(Cow::Borrowed(text)),
        _ => None,
    }
}

fn incarnation(run_id: &str, history: &str) -> u64 {
    xxh3_64(format!("{run_id} {history}").as_bytes())
}

/// The history of its data, if it is a primary.
fn primary<'a>(server: &str, replication: &'a Info) -> Result<&'a str> {
    match replication.field("role") {
        Some("master") => {}
        Some("slave") => {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "redis {server}: is a replica, where what was deleted may still be read; name the primary"
                ),
            ));
        }
        _ => return Err(foreign(server, "no role")),
    }
    replication
        .field("master_replid")
        .ok_or_else(|| foreign(server, "no master_replid"))
}

fn check_mode(server: &str, expected: Mode, mode: Option<&str>) -> Result<()> {
    let what = match (mode, expected) {
        (Some("sentinel"), _) => "is a Sentinel, which has no data; name the primary it watches",
        (Some("cluster"), Mode::Standalone) => {
            "is a node of a cluster; write redis+cluster:// for all of it"
        }
        (Some("standalone"), Mode::Cluster | Mode::Seed) => {
            "isn't a node of a cluster; write redis:// for a server of its own"
        }
        _ => return Ok(()),
    };
    Err(Error::new(
        ErrorKind::Config,
        format!("redis {server}: {what}"),
    ))
}

fn supported(server: &str, about: &Info) -> Result<String> {
    let version = about
        .field("redis_version")
        .ok_or_else(|| foreign(server, "no version"))?;
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(|number| number.ok());
    if (number().unwrap_or(0), number().unwrap_or(0)) < OLDEST {
        let (kind, what) = too_old(&format!("version `{}`", version.escape_debug()));
        return Err(Error::new(kind, format!("redis {server}: {what}")));
    }
    Ok(match about.field("valkey_version") {
        Some(version) => format!("valkey {version}"),
        None => version.to_owned(),
    })
}

fn too_old(what: &str) -> (ErrorKind, String) {
    let (major, minor) = OLDEST;
    (
        ErrorKind::Unsupported,
        format!("{what} is too old; larder needs Redis {major}.{minor}, Valkey, or newer"),
    )
}

fn foreign(server: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Protocol,
        format!("redis {server}: doesn't answer like a Redis ({what})"),
    )
}

/// Lines of `field:value`.
struct Info(String);

impl Info {
    fn of(text: String) -> Self {
        Self(text)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(':')?.trim();
            (!value.is_empty()).then_some(value)
        })
    }
}
