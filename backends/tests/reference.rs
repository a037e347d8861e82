//! `docs/reference.toml` is true: it is read as it stands, lacks no key, shows no default as a value, and says of each key
//! its true default and what one would change it for.
#![cfg(all(feature = "memory", feature = "memcached", feature = "redis"))]

use std::fmt::Debug;
#[cfg(feature = "tls")]
use std::path::Path;

use larder_backends::memcached::MemcachedConfig;
use larder_backends::redis::RedisConfig;
use larder_backends::{MemoryConfig, Registry};
use larder_core::{Config, Rt, Settings, config};
use larder_tiers::TiersConfig;
use serde::Serialize;
use serde::de::DeserializeOwned;

const REFERENCE: &str = include_str!("../../docs/reference.toml");

/// Second names of keys, as a URL gives them.
const ALIASES: [&str; 1] = ["path"];

/// Keys of every store, which no struct has.
const GENERAL: [&str; 4] = ["url", "backend", "prefix", "prefix_file"];

/// The file with passwords from a variable that cargo sets for tests.
fn document() -> String {
    REFERENCE
        .replace("LARDER_MEMCACHED_PASSWORD", "CARGO_PKG_NAME")
        .replace("LARDER_REDIS_PASSWORD", "CARGO_PKG_NAME")
}

/// A table of it.
fn table(name: &str) -> Config {
    Config::default()
        .toml_table(&document(), "reference.toml", name)
        .unwrap()
}

/// One key as the file shows it.
struct Shown {
    table: &'static str,
    key: &'static str,
    comment: String,
}

impl Shown {
    /// The default that the comment gives; `None` if it says that there is none.
    #[track_caller]
    fn default(&self) -> Option<&str> {
        let comment = &self.comment;
        if comment.contains("Unset by default") {
            return None;
        }
        let (_, rest) = comment
            .split_once("Default `")
            .unwrap_or_else(|| panic!("{self} gives neither its default nor `Unset by default`"));
        Some(rest.split_once('`').expect("what is quoted ends").0)
    }

    /// What the comment says after the sentence with the default.
    fn advice(&self) -> &str {
        let marks = ["Default `", "Unset by default"];
        let default = marks.iter().find_map(|mark| self.comment.split_once(mark));
        default.map_or("", |(_, rest)| rest)
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` in [{}]", self.key, self.table)
    }
}

/// All keys of the file, each with the comment right above it.
fn shown() -> Vec<Shown> {
    let (mut table, mut comment, mut shown) = ("", String::new(), Vec::new());
    for line in REFERENCE.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push_str(text);
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            table = name;
        } else if let Some((key, _)) = line.split_once(" = ") {
            let comment = std::mem::take(&mut comment);
            shown.push(Shown {
                table,
                key,
                comment,
            });
        }
        comment.clear();
    }
    shown
}

/// Every key of the struct is in one of the tables, at a value that isn't the default, and its comment knows the default.
#[track_caller]
fn check_keys<T: DeserializeOwned + Serialize + Default + Debug>(
    names: &[&str],
    section: &str,
    parse: impl Fn(&Settings) -> T,
) {
    let fields = |config: &T| toml::Table::try_from(config).unwrap();
    let written = |name: &str| fields(&parse(&table(name).settings().unwrap()));
    let default = fields(&T::default());
    let shown = shown();
    let mut defaults = vec![("backend".to_owned(), "memory".to_owned())];
    for field in config::known_keys::<T>() {
        if ALIASES.contains(&field) {
            continue;
        }
        let key = format!("{section}{field}");
        let entry = shown
            .iter()
            .find(|shown| names.contains(&shown.table) && shown.key == key);
        let entry = entry.unwrap_or_else(|| panic!("`{key}` isn't in the tables {names:?}"));
        assert_ne!(
            written(entry.table).get(field),
            default.get(field),
            "{entry} shows its default"
        );
        let unset = entry.default().is_none();
        assert_eq!(unset, default.get(field).is_none(), "{entry} has a default");
        defaults.extend(entry.default().map(|text| (key, text.to_owned())));
    }
    let documented = Config::default().args(defaults).unwrap().settings();
    assert_eq!(
        fields(&parse(&documented.unwrap())),
        default,
        "the defaults as documented, and as they are"
    );
}

#[track_caller]
fn check<T: DeserializeOwned + Serialize + Default + Debug>(names: &[&str]) {
    check_keys::<T>(names, "", |settings| settings.parse().unwrap());
}

#[test]
fn keys_of_memcached_are_shown() {
    check::<MemcachedConfig>(&["cache", "sasl"]);
}

#[test]
fn keys_of_redis_are_shown() {
    check::<RedisConfig>(&["redis"]);
}

#[test]
fn keys_of_memory_are_shown() {
    check::<MemoryConfig>(&["development"]);
}

#[test]
fn keys_of_the_tiers_are_shown() {
    check_keys::<TiersConfig>(&["cache"], "tiers_", |settings| {
        settings.section("tiers").unwrap()
    });
}

#[test]
fn keys_of_every_store_are_shown() {
    for key in GENERAL {
        let mut entries = shown().into_iter().filter(|shown| shown.key == key);
        let entry = entries
            .next()
            .unwrap_or_else(|| panic!("`{key}` isn't shown"));
        assert_eq!(entry.default(), None, "{entry}");
    }
    let prefix = |name: &str| table(name).settings().unwrap().prefix().unwrap();
    assert_eq!(prefix("cache").prefix.unwrap().as_str(), "git-3f2a91c");
    assert!(prefix("development").file.is_some());
}

#[test]
fn every_key_says_what_one_would_change_it_for() {
    // Said once, with the first table.
    let once = |shown: &Shown| {
        ["sasl", "redis", "cluster"].contains(&shown.table) && GENERAL.contains(&shown.key)
    };
    for shown in shown().into_iter().filter(|shown| !once(shown)) {
        let advised = ["Raise it", "Lower it", "Set it", "Change it"];
        let is_advised = advised.iter().any(|word| shown.advice().contains(word));
        assert!(
            is_advised,
            "{shown} doesn't say what to change it for:{}",
            shown.comment
        );
    }
}

/// Makes the files that the document names.
#[cfg(feature = "tls")]
fn make_files(directory: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["chat".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("ca.pem", &certificate),
        ("client.pem", &certificate),
        ("client.key", &key.serialize_pem()),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn stores_open_as_written() {
    let directory = tempfile::tempdir().unwrap();
    make_files(directory.path());
    let document = document().replace("/etc/larder", directory.path().to_str().unwrap());
    let open = |name: &str| {
        let config = Config::default().toml_table(&document, "reference.toml", name);
        Registry::new().open(&config.unwrap(), Rt::new()).unwrap().0
    };
    assert_eq!(open("development").to_string(), "memory (128 MiB)");
    assert_eq!(open("cache").stats().servers.len(), 3);
    assert_eq!(open("redis").stats().servers.len(), 1);
    assert_eq!(open("sasl").to_string(), "memcached (127.0.0.1:11211)");
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_what_is_missing() {
    let error = Registry::new()
        .open(&table("cache"), Rt::new())
        .unwrap_err();
    assert!(error.to_string().contains("feature `tls`"), "{error}");
}

#[tokio::test]
async fn a_cluster_opens_as_written() {
    let (cluster, _) = Registry::new().open(&table("cluster"), Rt::new()).unwrap();
    assert_eq!(
        cluster.to_string(),
        "redis cluster (cache-1.example.com:6379, cache-2.example.com:6380)"
    );
    assert_eq!(cluster.stats().servers.len(), 2);
}
