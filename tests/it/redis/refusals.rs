//! Servers that won't do: a clear error within the connect deadline, few dials, and no credentials anywhere.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder_backends::redis::{Redis, RedisConfig};
use larder_core::config::Secret;
use larder_core::{Backend, BackendExt, Error, ErrorKind, Fill, FillOutcome, GetOptions, Rt, Set};
use larder_harness::redis::RedisServer;
use larder_harness::server::{Listen, MemcachedServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{asking, config, hit, ok, won};

const PASSWORD: &str = "hunter2-is-secret";

/// Uses it, and shows all that could show a password.
async fn shown(redis: &Redis, error: &Error) -> String {
    let checks = redis.check().await;
    format!(
        "{error} {error:?} {redis} {redis:?} {checks:?} {:?} {:?}",
        redis.stats(),
        redis.pool()
    )
}

/// The error of the first use of this server, which comes in time.
async fn refused(config: RedisConfig, kind: ErrorKind, words: &[&str]) -> Error {
    let patience = config.connect_timeout + Duration::from_millis(500);
    let redis = Redis::new(config, Rt::new()).unwrap();
    let start = Instant::now();
    let error = redis.get("k", &asking()).await.unwrap_err();
    assert!(start.elapsed() < patience, "after {:?}", start.elapsed());
    let everything = shown(&redis, &error).await;
    assert_eq!(error.kind(), kind, "{error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` in `{error}`");
    }
    assert!(!everything.contains(PASSWORD), "{everything}");
    let error = redis.ready().await.unwrap_err();
    assert_eq!(error.kind(), kind);
    error
}

fn with_login(server: &RedisServer, user: Option<&str>, password: Option<&str>) -> RedisConfig {
    let mut config = config(server);
    config.user = user.map(str::to_owned);
    config.password = password.map(Secret::new);
    config
}

#[tokio::test]
async fn passwords_are_demanded_and_refused_clearly() {
    let server = RedisServer::start(Listen::Tcp, &["--requirepass", "right"]);
    let login = |user, password| with_login(&server, user, password);
    let (kind, words) = (ErrorKind::Config, ["refuses", "`password_env`"]);
    refused(login(None, Some(PASSWORD)), kind, &words).await;
    refused(login(Some("anna"), Some(PASSWORD)), kind, &words).await;
    let words = ["demands a password", "`password_env`"];
    refused(login(None, None), kind, &words).await;

    let redis = Redis::new(login(None, Some("right")), Rt::new()).unwrap();
    won(redis.get("k", &asking()).await);
}

/// The rule of docs/redis.md is enough, and nothing less is.
#[tokio::test]
async fn the_documented_acl_rule_is_enough() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let guide = include_str!("../../../docs/redis.md");
    let rule = guide
        .lines()
        .find_map(|line| line.trim().strip_prefix("ACL SETUSER larder "))
        .expect("the guide has the rule");
    let mut raw = server.raw().await;
    let words = |rule: &str| -> Vec<String> {
        let rule = rule.replace("PASSWORD", PASSWORD);
        ["ACL", "SETUSER", "larder"]
            .into_iter()
            .map(str::to_owned)
            .chain(rule.split_whitespace().map(str::to_owned))
            .collect()
    };
    let rules = words(rule);
    ok(
        &mut raw,
        &rules.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    let login = || with_login(&server, Some("larder"), Some(PASSWORD));
    let redis = Redis::new(login(), Rt::new()).unwrap();
    let lease = won(redis.get("k", &asking()).await);
    let outcome = redis.fill("k", Fill::new(lease, "value")).await.unwrap();
    assert_eq!(outcome, FillOutcome::Stored);
    assert_eq!(hit(redis.get("k", &asking()).await), b"value");
    redis.set_immutable("s", Set::new("value")).await.unwrap();
    redis.delete("k").await.unwrap();
    let lease = won(redis.get("k", &asking()).await);
    redis.release("k", lease).await.unwrap();
    // What a restart leaves is replaced, by a script.
    raw.set("k", b"foreign").await;
    won(redis.get("k", &asking()).await);
    assert!(redis.check().await[0].answer.is_ok());

    for allowed in rule.split_whitespace().filter(|word| word.starts_with('+')) {
        let mut rules = words(rule);
        rules.retain(|word| word != allowed);
        rules.insert(3, "reset".into());
        ok(
            &mut raw,
            &rules.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
        let redis = Redis::new(login(), Rt::new()).unwrap();
        let fails = use_all(&redis, &mut raw).await.is_err();
        assert!(fails, "{allowed} isn't needed");
    }
}

/// Does everything once.
async fn use_all(
    redis: &Redis,
    raw: &mut larder_harness::redis::RawRedis,
) -> larder_core::Result<()> {
    raw.set("foreign", b"foreign").await;
    redis.delete("used").await?;
    redis.delete("foreign-and-absent").await?;
    for key in ["foreign", "used"] {
        let lookup = redis.get(key, &asking()).await?;
        let lease = won(Ok(lookup));
        redis.fill(key, Fill::new(lease, "value")).await?;
        hit(Ok(redis.get(key, &GetOptions::look()).await?));
    }
    // The second step of a batch that doesn't ask everywhere looks with `GET`.
    let mut keys = larder_core::Keys::one("twice")?;
    keys.push_raw("twice")?;
    let once = asking().lease_at_most(1);
    let mut answers = redis.get_many(&keys, &once).await;
    answers.remove(1)?;
    let lease = won(answers.remove(0));
    redis.release("twice", lease).await?;
    redis.set_immutable("used", Set::new("value")).await
}

#[tokio::test]
async fn a_user_who_may_do_too_little_is_told_so() {
    let server = RedisServer::start(Listen::Tcp, &[]);
    let mut raw = server.raw().await;
    let rule = ["ACL", "SETUSER", "poor", "on", ">x", "~*", "+@read"];
    ok(&mut raw, &rule).await;
    let config = with_login(&server, Some("poor"), Some("x"));
    refused(config, ErrorKind::Config, &["doesn't let this user", "ACL"]).await;
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let server = RedisServer::start(Listen::Tcp, &["--databases", "2"]);
    let mut config = config(&server);
    config.database = 7;
    refused(config, ErrorKind::Config, &["no database 7", "`database`"]).await;
}

#[tokio::test]
async fn replicas_sentinels_and_cluster_nodes_are_refused() {
    let primary = RedisServer::start(Listen::Tcp, &[]);
    let port = primary.port().to_string();
    let replica = RedisServer::start(Listen::Tcp, &["--replicaof", "127.0.0.1", &port]);
    let words = ["is a replica", "name the primary"];
    refused(config(&replica), ErrorKind::Unavailable, &words).await;

    let node = RedisServer::start(Listen::Tcp, &["--cluster-enabled", "yes"]);
    refused(config(&node), ErrorKind::Config, &["redis+cluster://"]).await;
}

#[tokio::test]
async fn a_memcached_is_no_redis() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let mut config = RedisConfig::new(server.address());
    config.connect_timeout = Duration::from_secs(2);
    let redis = Redis::new(config, Rt::new()).unwrap();
    let error = redis.get("k", &asking()).await.unwrap_err();
    assert!(
        error.to_string().contains("before it was of use"),
        "{error}"
    );
}

/// A server that answers every connection with this, or with nothing, and counts them.
async fn stranger(answer: Option<&'static [u8]>) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dials = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&dials);
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            match answer {
                None => open.push(stream),
                Some(answer) => {
                    tokio::spawn(async move {
                        let mut request = [0; 4096];
                        let _ = stream.read(&mut request).await;
                        let _ = stream.write_all(answer).await;
                    });
                }
            }
        }
    });
    (address, dials)
}

/// As a server without `HELLO` says, which quotes what it doesn't know.
const OLD: &[u8] = b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, \
    `hunter2-is-secret`, \r\n-NOAUTH Authentication required.\r\n-NOAUTH Authentication required.\r\n\
    -NOAUTH x\r\n-NOAUTH x\r\n-NOAUTH x\r\n-NOAUTH x\r\n-NOAUTH x\r\n-NOAUTH x\r\n-NOAUTH x\r\n";

/// What a TLS server says to who doesn't: an alert.
const ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x46";

#[tokio::test]
async fn what_listens_there_instead_is_told_without_quoting_it() {
    for (answer, kind, word) in [
        (OLD, ErrorKind::Unsupported, "too old"),
        (ALERT, ErrorKind::Config, "rediss://"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            ErrorKind::Protocol,
            "of use",
        ),
        (b"", ErrorKind::Unavailable, "of use"),
        (
            b"-ERR max number of clients reached\r\n",
            ErrorKind::Unavailable,
            "maxclients",
        ),
        (
            b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n",
            ErrorKind::Config,
            "protected mode",
        ),
    ] {
        let (address, _) = stranger(Some(answer)).await;
        let mut config = RedisConfig::new(address);
        config.connect_timeout = Duration::from_secs(2);
        config.password = Some(Secret::new(PASSWORD));
        refused(config, kind, &[word]).await;
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_the_connect_deadline() {
    let (address, _) = stranger(None).await;
    let mut config = RedisConfig::new(address);
    config.connect_timeout = Duration::from_millis(300);
    let start = Instant::now();
    refused(
        config,
        ErrorKind::Timeout,
        &["no answer to a first exchange"],
    )
    .await;
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_us_is_not_dialled_without_pause() {
    let (address, dials) = stranger(Some(OLD)).await;
    let mut config = RedisConfig::new(address);
    config.connect_timeout = Duration::from_secs(2);
    let redis = Arc::new(Redis::new(config, Rt::new()).unwrap());
    let end = Instant::now() + Duration::from_secs(1);
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let redis = Arc::clone(&redis);
            tokio::spawn(async move {
                while Instant::now() < end {
                    assert!(redis.get("k", &asking()).await.is_err());
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    // 50 ms, 100 ms, 200 ms, … between them, less the jitter; then one a second.
    let dials = dials.load(Ordering::SeqCst);
    assert!((2..=8).contains(&dials), "{dials} dials in a second");
}

/// A log that a test reads.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_shows_a_password() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let server = RedisServer::start(Listen::Tcp, &["--requirepass", "correct-horse"]);
    for password in ["correct-horse", PASSWORD] {
        let redis = Redis::new(with_login(&server, None, Some(password)), Rt::new()).unwrap();
        let answer = redis.get("k", &asking()).await;
        assert_eq!(answer.is_ok(), password != PASSWORD);
        tracing::info!(?answer, checks = ?redis.check().await, stats = ?redis.stats(), ?redis, "used");
        // The name of a server that isn't there: it would be told in the clear.
        let mut config = RedisConfig::new("cache.invalid");
        config.password = Some(Secret::new(password));
        tracing::info!(?config, "configured");
        drop(Redis::new(config, Rt::new()).unwrap());
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in ["in the clear", "refuses the user"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    for password in ["correct-horse", PASSWORD] {
        assert!(!log.contains(password), "{log}");
    }
}

#[tokio::test]
async fn a_server_that_must_be_there_at_the_start_is_asked() {
    let server = RedisServer::start(Listen::Unix, &[]);
    let mut config = config(&server);
    config.require_at_start = true;
    let redis = Redis::new(config.clone(), Rt::new()).unwrap();
    redis.start().await.unwrap();
    assert_eq!(redis.stats().servers[0].state, "up");
    drop(server);
    let redis = Redis::new(config, Rt::new()).unwrap();
    let error = redis.start().await.unwrap_err();
    assert!(error.to_string().contains("can't be reached"), "{error}");
}
