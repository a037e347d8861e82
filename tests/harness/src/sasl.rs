//! What a memcached that runs with SASL (`-S`) asks: a database with one user, in a directory that goes with it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::server::{Listen, MemcachedServer};

/// A user that such a server lets in.
///
/// ```no_run
/// use larder_harness::sasl::SaslUser;
/// use larder_harness::server::Listen;
///
/// let user = SaslUser::new("zulip@localhost", "hunter2");
/// let server = user.start(Listen::Tcp, &["-m", "64"]);
/// ```
#[derive(Debug)]
pub struct SaslUser(TempDir);

impl SaslUser {
    /// Makes the database, and the configuration that names it.
    ///
    /// # Panics
    ///
    /// If `saslpasswd2` isn't installed.
    pub fn new(user: &str, password: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let database = directory.path().join("sasldb2");
        let (user, realm) = user.split_once('@').expect("a user of a realm");
        // It is there where Debian puts it, which not everybody's PATH names.
        let program = match Path::new("/usr/sbin/saslpasswd2") {
            path if path.exists() => path,
            _ => Path::new("saslpasswd2"),
        };
        let mut process = Command::new(program)
            .args(["-p", "-c", "-a", "memcached", "-u", realm, "-f"])
            .args([database.as_os_str(), user.as_ref()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!(
                    "saslpasswd2 can't be started ({error}); install it, for example with `apt-get install sasl2-bin \
                     libsasl2-modules`"
                )
            });
        let mut stdin = process.stdin.take().expect("it is a pipe");
        stdin
            .write_all(password.as_bytes())
            .expect("it reads a password");
        drop(stdin);
        let status = process.wait().expect("it ends");
        assert!(status.success(), "saslpasswd2 failed: {status}");
        let configuration = format!(
            "mech_list: plain\npwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\n",
            database.display()
        );
        std::fs::write(directory.path().join("memcached.conf"), configuration)
            .expect("it is writable");
        Self(directory)
    }

    /// Starts a server that lets this user in, and nobody else.
    pub fn start(&self, listen: Listen, arguments: &[&str]) -> MemcachedServer {
        let path = self.0.path().to_str();
        let path = path.expect("temporary directories have plain names");
        let arguments = [&["-S"], arguments].concat();
        MemcachedServer::start_in(&[("SASL_CONF_PATH", path)], listen, &arguments)
    }
}
