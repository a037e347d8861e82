//! From a configuration to a store, and to a cache.
#![cfg(feature = "memory")]

use std::convert::Infallible;

use larder_backends::{BuilderExt, Memory, MemoryConfig, Registry};
use larder_core::{Cache, Config, ErrorKind, Result, Rt, Source};
#[cfg(feature = "memcached")]
use larder_core::{Prefix, Reach};

/// A source that is never asked.
#[derive(Clone)]
struct Nothing;

impl Source for Nothing {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

async fn build(config: Result<Config>) -> Result<Cache<Nothing>> {
    Cache::builder(Nothing).config(config?).build().await
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn memory_needs_nothing_but_its_name() {
    let cache = build(Config::new("memory://")).await.unwrap();
    assert_eq!(cache.backend().to_string(), "memory (64 MiB)");
    let other = build(Config::new("memory://?capacity=1MiB")).await.unwrap();
    assert_ne!(cache.prefix(), other.prefix());
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn environment_takes_the_place_of_the_programs_choice() {
    let config = Config::new("memory://?capacity=1MiB").and_then(|config| {
        let vars = [
            ("LARDER_URL", "memcached://[::1]:11311,127.0.0.1"),
            ("LARDER_PREFIX", "v1"),
        ];
        config.vars(vars)
    });
    let cache = build(config).await.unwrap();
    assert_eq!(cache.backend().pool().reach, Reach::Host);
    assert!(cache.prefix().as_str().starts_with("v1."));
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn socket_in_a_url_is_a_server() {
    let open = |url| Registry::new().open(&Config::new(url).unwrap(), Rt::new());
    let (by_url, _) = open("memcached:///run/larder%20test.sock").unwrap();
    let (by_key, _) = open("memcached://?servers=/run/larder%20test.sock").unwrap();
    assert_eq!(by_url.pool(), by_key.pool());
    assert_eq!(by_url.pool().reach, Reach::Host);
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn processes_of_one_host_share_the_prefix_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.prefix");
    let config = |url: &str| {
        let file = [("prefix_file", path.to_str().unwrap())];
        Config::new(url).and_then(|config| config.args(file))
    };
    let one = build(config("memcached://localhost")).await.unwrap();
    let other = build(config("memcached://localhost")).await.unwrap();
    assert_eq!(one.prefix(), other.prefix());
    let elsewhere = build(config("memcached://localhost:11212")).await.unwrap();
    assert_ne!(one.prefix(), elsewhere.prefix());

    refused(
        build(config("memcached://10.0.0.5")).await,
        &format!(
            "prefix file {} names this host only, but memcached://10.0.0.5:11211 is shared; set LARDER_PREFIX to the \
             same value on all hosts of this deployment",
            path.display()
        ),
    );
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn prefix_of_the_builder_comes_first() {
    let config = Config::new("memcached://10.0.0.5").unwrap();
    let prefix = Prefix::random();
    let builder = Cache::builder(Nothing).prefix(prefix);
    let cache = builder.config(config.clone()).build().await.unwrap();
    assert!(cache.prefix().as_str().starts_with(prefix.as_str()));

    let error = build(Ok(config)).await.unwrap_err().to_string();
    assert!(
        error.starts_with("no prefix for memcached://10.0.0.5:11211; set LARDER_PREFIX"),
        "{error}"
    );
}

#[tokio::test]
async fn mistakes_are_found_when_the_cache_is_built() {
    refused(
        build(Config::new("memory://?capcity=1MiB")).await,
        "unknown key `capcity` in memory config (the URL in the program's code); known keys: capacity, max_item, and \
         for every backend: backend, prefix, prefix_file, tiers_*, url",
    );
    let config =
        Config::new("memory://").and_then(|config| config.vars([("LARDER_URL", "etcd://h1")]));
    let error = build(config).await.unwrap_err().to_string();
    assert!(
        error.starts_with("unknown scheme `etcd` (LARDER_URL); known schemes: "),
        "{error}"
    );
    assert!(error.contains("memory"), "{error}");
}

#[cfg(feature = "memcached")]
#[tokio::test]
async fn mistake_in_a_servers_name_is_found_when_the_cache_is_built() {
    refused(
        build(Config::new("memcached://h1:port")).await,
        "`h1:port` can't be a memcached server; it takes host, host:port, [ipv6]:port or /path/of/a/socket",
    );
}

#[cfg(not(feature = "memcached"))]
#[tokio::test]
async fn backend_that_is_not_compiled_in_names_its_feature() {
    refused(
        build(Config::new("memcached://h1")).await,
        "unknown scheme `memcached` (the URL in the program's code); known schemes: memory; turn on larder's feature \
         `memcached`",
    );
}

#[tokio::test]
async fn schemes_of_ones_own_join_and_replace() {
    let small = |config: MemoryConfig, rt| Memory::new(config.capacity(1 << 20), rt);
    let registry = Registry::new().with("tiny", small).with("memory", small);
    let names = format!("{registry:?}");
    assert_eq!(names.matches(r#""memory""#).count(), 1, "{names}");
    assert!(names.ends_with(r#""tiny"}"#), "{names}");
    for url in ["tiny://", "memory://"] {
        let (store, _) = registry
            .open(&Config::new(url).unwrap(), Rt::new())
            .unwrap();
        assert_eq!(store.to_string(), "memory (1 MiB)");
    }
    let builder = Cache::builder(Nothing).config_with(registry, Config::new("tiny://").unwrap());
    assert!(builder.build().await.is_ok());
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn redis_is_written_as_a_url_or_by_keys() {
    let open = |url| Registry::new().open(&Config::new(url).unwrap(), Rt::new());
    for (url, same, shown) in [
        (
            "redis://Cache-1/3",
            "redis://?servers=cache-1:6379&database=3",
            "redis (cache-1:6379/3)",
        ),
        (
            "redis:///run/redis.sock?database=2",
            "redis://?servers=/run/redis.sock&database=2",
            "redis (/run/redis.sock/2)",
        ),
        ("redis://", "redis://127.0.0.1", "redis (127.0.0.1:6379)"),
    ] {
        let (by_url, _) = open(url).unwrap();
        let (by_key, _) = open(same).unwrap();
        assert_eq!(by_url.pool(), by_key.pool());
        assert_eq!(by_url.to_string(), shown);
    }
    let reach = |url| open(url).unwrap().0.pool().reach;
    assert_eq!(reach("redis://h1"), larder_core::Reach::Network);
    assert_eq!(reach("redis:///s"), larder_core::Reach::Host);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn replicas_are_refused_with_the_reason() {
    for url in ["redis://h1?readonly=true", "redis+cluster://h1?readonly"] {
        let error = build(Config::new(url)).await.unwrap_err().to_string();
        assert!(
            error.starts_with("unknown key `readonly` in redis"),
            "{error}"
        );
        assert!(
            error.ends_with("what was deleted may still be there"),
            "{error}"
        );
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn tls_of_redis_is_a_scheme() {
    for url in ["rediss://h1", "rediss+cluster://h1,h2"] {
        let config = Config::new(&format!("{url}?ca_file=/nowhere/ca.pem"));
        let error = build(config).await.unwrap_err().to_string();
        let expected = match cfg!(feature = "tls") {
            true => "/nowhere/ca.pem",
            false => "feature `tls`",
        };
        assert!(error.contains(expected), "{error}");
    }
}

/// What a flush needs of the generation of another configuration.
#[cfg(all(feature = "memcached", feature = "redis"))]
#[test]
fn a_pool_is_opened_by_its_description() {
    let urls = [
        "memcached://h1",
        "memcached://h1,h2:11212",
        "memcached://h1:11211*3,h2:11211",
        "memcached://h1,h2?hash=ketama",
        "memcached://h1:11211*2,h2:11211*3?hash=ketama_weighted",
        "memcached:///run/memcached.sock",
        "redis://h1:6379/3",
        "redis+cluster://h1,h2",
    ];
    let registry = Registry::new();
    let pool = |url: &str| {
        let config = Config::new(url).unwrap();
        let (backend, _) = registry.open(&config, Rt::new()).unwrap();
        backend.pool().description
    };
    for theirs in urls {
        for ours in urls {
            let config = Config::new(ours).unwrap();
            let opened = registry.open_pool(&config, &pool(theirs), Rt::new());
            let opened = opened.unwrap_or_else(|error| panic!("{theirs} from {ours}: {error}"));
            assert_eq!(opened.pool().description, pool(theirs), "from {ours}");
        }
    }
    let config = Config::new("memcached://h1").unwrap();
    registry
        .open_pool(&config, &pool("memory://"), Rt::new())
        .unwrap_err();
}
