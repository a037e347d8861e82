//! `docs/reference.toml` is true: it is read as it stands, lacks no key, and shows no default.
#![cfg(all(feature = "memory", feature = "memcached"))]

use std::fmt::Debug;
#[cfg(feature = "tls")]
use std::path::Path;

use larder_backends::memcached::MemcachedConfig;
use larder_backends::{MemoryConfig, Registry};
use larder_core::{Config, Rt, config};
use serde::Serialize;
use serde::de::DeserializeOwned;

const REFERENCE: &str = include_str!("../../docs/reference.toml");

/// The document with a variable that cargo sets for tests.
fn document() -> String {
    REFERENCE.replace("LARDER_MEMCACHED_PASSWORD", "CARGO_PKG_NAME")
}

fn table(name: &str) -> Config {
    Config::default()
        .toml_table(&document(), "reference.toml", name)
        .unwrap()
}

/// Every key of the struct is in one of the tables, with a value that isn't the default.
#[track_caller]
fn check<T: DeserializeOwned + Serialize + Default + Debug>(names: &[&str]) {
    let fields = |config: &T| toml::Table::try_from(config).unwrap();
    let default = fields(&T::default());
    let document: toml::Table = REFERENCE.parse().unwrap();
    for key in config::known_keys::<T>() {
        let Some(name) = names
            .iter()
            .find(|name| document[**name].get(key).is_some())
        else {
            panic!("`{key}` isn't in the tables {names:?}");
        };
        let written: T = table(name).settings().unwrap().parse().unwrap();
        assert_ne!(
            fields(&written).get(key),
            default.get(key),
            "`{key}` shows its default"
        );
    }
}

#[test]
fn every_key_of_memcached_is_shown() {
    check::<MemcachedConfig>(&["cache", "sasl"]);
}

#[test]
fn every_key_of_memory_is_shown() {
    check::<MemoryConfig>(&["development"]);
}

#[test]
fn keys_of_every_backend_are_shown() {
    let document: toml::Table = REFERENCE.parse().unwrap();
    for key in ["url", "backend", "prefix", "prefix_file"] {
        let shown = |table: &str| document[table].get(key).is_some();
        assert!(
            shown("cache") || shown("development"),
            "`{key}` isn't shown"
        );
    }
    let prefix = |name: &str| table(name).settings().unwrap().prefix().unwrap();
    assert_eq!(prefix("cache").prefix.unwrap().as_str(), "git-3f2a91c");
    assert!(prefix("development").file.is_some());
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
