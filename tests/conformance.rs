//! Every backend passes the suite of `larder::conformance`, a line each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use larder_backends::memcached::BulkForm;
use larder_backends::{
    Memcached, MemcachedConfig, Memory, MemoryConfig, Redis, RedisCluster, RedisConfig,
};
use larder_core::config::Secret;
use larder_core::conformance::{Abilities, Peeked, Subject};
use larder_core::{Backend, Observed, Rt};
use larder_harness::fake::{Fake, Network};
use larder_harness::raw::Raw;
use larder_harness::redis::{RawRedis, RedisServer};
use larder_harness::redis_cluster;
use larder_harness::sasl::SaslUser;
use larder_harness::server::{Listen, MemcachedServer};
use larder_harness::tls::{Authority, password_file};
use larder_testing::{Faults, Recording};
use tempfile::TempDir;

larder_core::conformance! {
    #[tokio::test(start_paused = true)]
    memory => MemorySubject::start(), except [
        store_holds_exactly_what_was_stored,
        lost_fill_leaves_nothing_in_the_store,
        lease_from_before_a_kill_is_lost,
        fill_queued_before_the_reconnect_is_lost,
        killed_server_is_reported_and_used_again,
        dead_server_fails_only_its_keys,
        hung_server_costs_a_call_its_deadline,
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_tcp => MemcachedSubject::start(Listen::Tcp, 1, BulkForm::Meta),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_unix => MemcachedSubject::start(Listen::Unix, 1, BulkForm::Meta),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_three_servers => MemcachedSubject::start(Listen::Tcp, 3, BulkForm::Meta);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_get_lines => MemcachedSubject::start(Listen::Unix, 1, BulkForm::Get),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_tls_password => GuardedSubject::start(),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_binary => MemcachedSubject::start_binary(),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    memcached_sasl => SaslSubject::start(), except [
        dead_server_fails_only_its_keys,
        // They look into the store from aside, which speaks no text.
        entry_without_ttl_stays,
        long_ttl_is_kept,
        lost_fill_leaves_nothing_in_the_store,
        store_holds_exactly_what_was_stored,
    ];

    #[tokio::test(start_paused = true)]
    memcached_fakes => FakeSubject::start(3);

    #[tokio::test(start_paused = true)]
    observed_memory => Wrapped(MemorySubject::start(), observed), except [
        store_holds_exactly_what_was_stored,
        lost_fill_leaves_nothing_in_the_store,
        lease_from_before_a_kill_is_lost,
        fill_queued_before_the_reconnect_is_lost,
        killed_server_is_reported_and_used_again,
        dead_server_fails_only_its_keys,
        hung_server_costs_a_call_its_deadline,
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    observed_memcached => Wrapped(MemcachedSubject::start(Listen::Tcp, 2, BulkForm::Meta), observed);

    #[tokio::test(start_paused = true)]
    faulty_memory => Wrapped(MemorySubject::start(), faulty), except [
        store_holds_exactly_what_was_stored,
        lost_fill_leaves_nothing_in_the_store,
        lease_from_before_a_kill_is_lost,
        fill_queued_before_the_reconnect_is_lost,
        killed_server_is_reported_and_used_again,
        dead_server_fails_only_its_keys,
        hung_server_costs_a_call_its_deadline,
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    faulty_memcached => Wrapped(MemcachedSubject::start(Listen::Tcp, 2, BulkForm::Meta), faulty);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    recording_memcached => Wrapped(MemcachedSubject::start(Listen::Tcp, 2, BulkForm::Meta), recording);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    redis_tcp => RedisSubject::start(Listen::Tcp),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    redis_unix => RedisSubject::start(Listen::Unix),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    redis_tls_user => RedisSubject::start_guarded(),
        except [dead_server_fails_only_its_keys];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    redis_cluster_of_three => ClusterSubject::start().await;
}

/// The memory store, under tokio's paused clock.
///
/// It can't be killed, stopped or looked into, since there is nothing beside the process it lives in.
struct MemorySubject(Memory);

impl MemorySubject {
    fn start() -> Self {
        let rt = Rt::following_tokio(SystemTime::UNIX_EPOCH);
        let memory = Memory::new(MemoryConfig::default(), rt);
        Self(memory.expect("the default configuration holds something"))
    }
}

#[async_trait::async_trait]
impl Subject for MemorySubject {
    fn can(&self) -> Abilities {
        Abilities::one_server().skips_time().exact_time()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(self.0.handle())
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::advance(duration).await;
    }
}

/// The memcached client over real servers, each case its own.
struct MemcachedSubject {
    servers: Vec<Mutex<MemcachedServer>>,
    bulk: BulkForm,
    /// Speaks the binary protocol, also to a server without SASL.
    binary: bool,
}

impl MemcachedSubject {
    fn start(listen: Listen, servers: usize, bulk: BulkForm) -> Self {
        let server = || Mutex::new(MemcachedServer::start(listen, &["-m", "128"]));
        Self {
            servers: (0..servers).map(|_| server()).collect(),
            bulk,
            binary: false,
        }
    }

    /// The protocol of servers with SASL, on one that can also be asked by text what it has.
    fn start_binary() -> Self {
        Self {
            binary: true,
            ..Self::start(Listen::Tcp, 1, BulkForm::Meta)
        }
    }

    fn server(&self, number: usize) -> MutexGuard<'_, MemcachedServer> {
        self.servers[number]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> MemcachedConfig {
        let addresses = (0..self.servers.len()).map(|number| self.server(number).address());
        let mut config = MemcachedConfig::new(addresses);
        config.bulk = self.bulk;
        // Time enough for a machine that runs other tests beside this, and none lost waiting to dial again.
        config.connect_timeout = Duration::from_secs(2);
        config.timeout = Duration::from_secs(3);
        config.flush_timeout = Duration::from_secs(3);
        config.backoff_limit = Duration::from_millis(200);
        if self.binary {
            config.sasl = true;
            config.user = Some(SaslSubject::USER.to_owned());
            config.password = Some(Secret::new(SaslSubject::PASSWORD));
        }
        config
    }
}

#[async_trait::async_trait]
impl Subject for MemcachedSubject {
    fn can(&self) -> Abilities {
        Abilities::one_server()
            .servers(self.servers.len())
            .peeks()
            .kills()
            .stops()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(Memcached::new(self.config(), Rt::new()).expect("the configuration can work"))
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let mut found = None;
        for number in 0..self.servers.len() {
            let address = self.server(number).address();
            if let Some(item) = Raw::connect(&address).await.get(key).await {
                assert_eq!(found, None, "two servers have {key}");
                found = Some(Peeked::new(item.value, item.ttl));
            }
        }
        found
    }

    async fn kill(&self, server: usize) {
        self.server(server).kill();
    }

    async fn restart(&self, server: usize) {
        self.server(server).restart();
    }

    async fn stop(&self, server: usize) {
        self.server(server).stop();
    }

    async fn resume(&self, server: usize) {
        self.server(server).resume();
    }
}

/// The memcached client over a server that shows a certificate and demands a password.
struct GuardedSubject {
    subject: MemcachedSubject,
    authority: Authority,
    /// Holds the server's file of passwords.
    _directory: TempDir,
}

impl GuardedSubject {
    const USER: &str = "anna";
    const PASSWORD: &str = "hunter2";

    fn start() -> Self {
        let authority = Authority::new();
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let passwords = password_file(directory.path(), Self::USER, Self::PASSWORD);
        let passwords = passwords
            .to_str()
            .expect("temporary directories have plain names");
        let options = authority.issue(&["127.0.0.1"]).server_options();
        let server = MemcachedServer::start(
            Listen::Tcp,
            &["-m", "128", "-Y", passwords, "-Z", "-o", &options],
        );
        Self {
            subject: MemcachedSubject {
                servers: vec![Mutex::new(server)],
                bulk: BulkForm::Meta,
                binary: false,
            },
            authority,
            _directory: directory,
        }
    }
}

#[async_trait::async_trait]
impl Subject for GuardedSubject {
    fn can(&self) -> Abilities {
        self.subject.can()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        let mut config = self.subject.config();
        config.tls = true;
        config.ca_file = Some(self.authority.file());
        config.user = Some(Self::USER.to_owned());
        config.password = Some(Secret::new(Self::PASSWORD));
        Arc::new(Memcached::new(config, Rt::new()).expect("the configuration can work"))
    }

    async fn advance(&self, duration: Duration) {
        self.subject.advance(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let address = self.subject.server(0).address();
        let mut raw = self.authority.connect(&address).await;
        raw.login(Self::USER, Self::PASSWORD).await;
        let item = raw.get(key).await?;
        Some(Peeked::new(item.value, item.ttl))
    }

    async fn kill(&self, server: usize) {
        self.subject.kill(server).await;
    }

    async fn restart(&self, server: usize) {
        self.subject.restart(server).await;
    }

    async fn stop(&self, server: usize) {
        self.subject.stop(server).await;
    }

    async fn resume(&self, server: usize) {
        self.subject.resume(server).await;
    }
}

/// The memcached client over a server with SASL, which tells nobody how long an entry has left.
struct SaslSubject {
    subject: MemcachedSubject,
    _user: SaslUser,
}

impl SaslSubject {
    const USER: &str = "zulip@localhost";
    const PASSWORD: &str = "correct horse";

    fn start() -> Self {
        let user = SaslUser::new(Self::USER, Self::PASSWORD);
        let server = user.start(Listen::Tcp, &["-m", "128"]);
        Self {
            subject: MemcachedSubject {
                servers: vec![Mutex::new(server)],
                bulk: BulkForm::Meta,
                binary: true,
            },
            _user: user,
        }
    }
}

#[async_trait::async_trait]
impl Subject for SaslSubject {
    fn can(&self) -> Abilities {
        Abilities::one_server().kills().stops()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        self.subject.backend().await
    }

    async fn advance(&self, duration: Duration) {
        self.subject.advance(duration).await;
    }

    async fn kill(&self, server: usize) {
        self.subject.kill(server).await;
    }

    async fn restart(&self, server: usize) {
        self.subject.restart(server).await;
    }

    async fn stop(&self, server: usize) {
        self.subject.stop(server).await;
    }

    async fn resume(&self, server: usize) {
        self.subject.resume(server).await;
    }
}

/// The memcached client over fake servers, under tokio's paused clock.
struct FakeSubject(Vec<Fake>);

impl FakeSubject {
    fn start(servers: usize) -> Self {
        Self((0..servers).map(|_| Fake::new()).collect())
    }
}

#[async_trait::async_trait]
impl Subject for FakeSubject {
    fn can(&self) -> Abilities {
        Abilities::one_server()
            .servers(self.0.len())
            .peeks()
            .kills()
            .stops()
            .skips_time()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        let names: Vec<_> = (0..self.0.len()).map(|n| format!("cache-{n}")).collect();
        let network = Network::new();
        for (name, fake) in names.iter().zip(&self.0) {
            network.set(name, Some(fake));
        }
        let config = MemcachedConfig::new(names);
        let (rt, transport) = (self.0[0].rt(), network.transport());
        let memcached = Memcached::with_transport(config, rt, transport);
        Arc::new(memcached.expect("the configuration can work"))
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::advance(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let mut found = self.0.iter().filter_map(|fake| {
            let value = fake.peek(key)?;
            Some(Peeked::new(value, fake.ttl(key)))
        });
        let first = found.next();
        assert_eq!(found.next(), None, "two servers have {key}");
        first
    }

    async fn kill(&self, server: usize) {
        self.0[server].kill();
    }

    async fn restart(&self, server: usize) {
        self.0[server].restart();
    }

    async fn stop(&self, server: usize) {
        self.0[server].stop();
    }

    async fn resume(&self, server: usize) {
        self.0[server].resume();
    }
}

/// A wrapper around the backend of another subject.
struct Wrapped<S>(S, fn(Arc<dyn Backend>) -> Arc<dyn Backend>);

#[async_trait::async_trait]
impl<S: Subject> Subject for Wrapped<S> {
    fn can(&self) -> Abilities {
        self.0.can()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        self.1(self.0.backend().await)
    }

    async fn advance(&self, duration: Duration) {
        self.0.advance(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        self.0.peek(key).await
    }

    async fn kill(&self, server: usize) {
        self.0.kill(server).await;
    }

    async fn restart(&self, server: usize) {
        self.0.restart(server).await;
    }

    async fn stop(&self, server: usize) {
        self.0.stop(server).await;
    }

    async fn resume(&self, server: usize) {
        self.0.resume(server).await;
    }

    fn secrets(&self) -> Vec<String> {
        self.0.secrets()
    }
}

fn observed(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Observed::new(inner, Rt::new()))
}

/// The test kit's wrapper, with no fault to inject.
fn faulty(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Faults::new().around()(inner, Rt::new()))
}

/// The test kit's wrapper, with nobody who captures.
fn recording(inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
    Arc::new(Recording::new(inner, Rt::new()))
}

/// The Redis client over a real server, each case its own.
struct RedisSubject {
    server: Mutex<RedisServer>,
    config: RedisConfig,
    /// Holds the certificates.
    _authority: Option<Authority>,
}

impl RedisSubject {
    const PASSWORD: &str = "correct-horse";

    /// With a password for the default user.
    fn start(listen: Listen) -> Self {
        let arguments = ["--maxmemory", "256mb", "--requirepass", Self::PASSWORD];
        let server = RedisServer::start(listen, &arguments);
        Self::of(RedisConfig::new(server.address()), server, None)
    }

    /// With TLS on a port of its own, and a user of its own.
    fn start_guarded() -> Self {
        let authority = Authority::new();
        let identity = authority.issue(&["127.0.0.1"]);
        let tls_port = |port: u16| port + 10_000;
        let server = RedisServer::start_at(Listen::Tcp, |port| {
            let user = format!("larder on >{} ~* +@all", Self::PASSWORD);
            let port = tls_port(port).to_string();
            let ca = authority.file().display().to_string();
            let certificate = identity.certificate.display().to_string();
            let key = identity.key.display().to_string();
            let mut arguments: Vec<&str> = vec!["--requirepass", Self::PASSWORD, "--user"];
            arguments.extend(user.split(' '));
            arguments.extend(["--tls-port", &port, "--tls-auth-clients", "no"]);
            arguments.extend(["--tls-cert-file", &certificate, "--tls-key-file", &key]);
            arguments.extend(["--tls-ca-cert-file", &ca]);
            arguments.into_iter().map(str::to_owned).collect()
        });
        let mut config = RedisConfig::new(format!("127.0.0.1:{}", tls_port(server.port())));
        config.tls = true;
        config.ca_file = Some(authority.file());
        config.user = Some("larder".to_owned());
        Self::of(config, server, Some(authority))
    }

    fn of(mut config: RedisConfig, server: RedisServer, authority: Option<Authority>) -> Self {
        config.password = Some(Secret::new(Self::PASSWORD));
        // Time enough for a machine that runs other tests beside this, and none lost waiting to dial again.
        config.connect_timeout = Duration::from_secs(2);
        config.timeout = Duration::from_secs(3);
        config.flush_timeout = Duration::from_secs(3);
        config.backoff_limit = Duration::from_millis(200);
        Self {
            server: Mutex::new(server),
            config,
            _authority: authority,
        }
    }

    fn server(&self) -> MutexGuard<'_, RedisServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Subject for RedisSubject {
    fn can(&self) -> Abilities {
        Abilities::one_server().peeks().kills().stops()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        let redis = Redis::new(self.config.clone(), Rt::new());
        Arc::new(redis.expect("the configuration can work"))
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let address = self.server().address();
        let mut raw = RawRedis::connect(&address).await;
        raw.login(Self::PASSWORD).await;
        let stored = raw.get(key).await?;
        // A value follows 17 bytes of the client's; a placeholder is nothing but those and when it was placed.
        let value = match stored[0] {
            b'L' => Bytes::new(),
            _ => stored.slice(17..),
        };
        Some(Peeked::new(value, raw.ttl(key).await))
    }

    async fn kill(&self, _: usize) {
        self.server().kill();
    }

    async fn restart(&self, _: usize) {
        self.server().restart();
    }

    async fn stop(&self, _: usize) {
        self.server().stop();
    }

    async fn resume(&self, _: usize) {
        self.server().resume();
    }

    fn secrets(&self) -> Vec<String> {
        vec![Self::PASSWORD.to_owned()]
    }
}

/// The Redis client over a real cluster of three nodes, each case its own.
struct ClusterSubject(tokio::sync::Mutex<redis_cluster::RedisCluster>);

impl ClusterSubject {
    const NODES: usize = 3;
    const PASSWORD: &str = "correct-horse";

    async fn start() -> Self {
        let arguments = ["--maxmemory", "128mb"];
        let cluster =
            redis_cluster::RedisCluster::start_locked(Self::NODES, Self::PASSWORD, &arguments);
        Self(tokio::sync::Mutex::new(cluster.await))
    }
}

#[async_trait::async_trait]
impl Subject for ClusterSubject {
    fn can(&self) -> Abilities {
        Abilities::one_server()
            .servers(Self::NODES)
            .peeks()
            .kills()
            .stops()
    }

    async fn backend(&self) -> Arc<dyn Backend> {
        let mut config = RedisConfig::default();
        config.servers = self.0.lock().await.addresses();
        config.password = Some(Secret::new(Self::PASSWORD));
        // Time enough for a machine that runs other tests beside this, and none lost waiting to dial again.
        config.connect_timeout = Duration::from_secs(2);
        config.timeout = Duration::from_secs(3);
        config.flush_timeout = Duration::from_secs(3);
        config.backoff_limit = Duration::from_millis(200);
        let cluster = RedisCluster::new(config, Rt::new()).expect("the configuration can work");
        // What the suite counts begins when the nodes are known.
        cluster.check().await;
        Arc::new(cluster)
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    async fn peek(&self, key: &str) -> Option<Peeked> {
        let (stored, ttl) = self.0.lock().await.get(key).await?;
        let value = match stored[0] {
            b'L' => Bytes::new(),
            _ => stored.slice(17..),
        };
        Some(Peeked::new(value, ttl))
    }

    async fn kill(&self, node: usize) {
        self.0.lock().await.kill(node);
    }

    async fn restart(&self, node: usize) {
        self.0.lock().await.restart(node).await;
    }

    async fn stop(&self, node: usize) {
        self.0.lock().await.node(node).stop();
    }

    async fn resume(&self, node: usize) {
        self.0.lock().await.node(node).resume();
    }

    fn secrets(&self) -> Vec<String> {
        vec![Self::PASSWORD.to_owned()]
    }
}
