//! The tiers' keys in a configuration.

use std::time::Duration;

use larder_core::{Config, Error, ErrorKind, Result, config};
use larder_tiers::{Tiers, TiersConfig};

const REFERENCE: &str = include_str!("../../../docs/reference.toml");

fn parse(config: &Config) -> Result<TiersConfig> {
    config.settings()?.section("tiers")
}

#[track_caller]
fn check_error(error: &Error, expected: &str) {
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn keys_come_from_every_layer() {
    let config = Config::new("memory://?tiers_budget=1GiB&tiers_max_age=5s&capacity=1MiB")
        .unwrap()
        .toml("[cache]\ntiers_per_request = '1MiB'", "service.toml")
        .unwrap()
        .vars([("LARDER_TIERS_MAX_AGE", "7s")])
        .unwrap();
    let expected = TiersConfig {
        budget: 1 << 30,
        per_request: 1 << 20,
        max_age: Duration::from_secs(7),
    };
    assert_eq!(parse(&config).unwrap(), expected);
    assert_eq!(Tiers::from_config(&config).unwrap().stats().budget, 1 << 30);
}

#[test]
fn without_keys_there_are_defaults() {
    let config = Config::new("memory://").unwrap();
    assert_eq!(parse(&config).unwrap(), TiersConfig::default());
}

/// As `LARDER_URL=memcached://…` over a file that says `memory`.
#[test]
fn another_backend_leaves_the_tiers_as_they_are() {
    let config = Config::new("memory://?tiers_budget=1GiB&capacity=1MiB")
        .unwrap()
        .vars([("LARDER_URL", "memcached://h1")])
        .unwrap();
    assert_eq!(parse(&config).unwrap().budget, 1 << 30);
}

#[test]
fn the_stores_own_keys_are_others() {
    let config = Config::new("memory://?tiers_budget=1GiB&capacity=1MiB").unwrap();
    let memory: larder_backends::MemoryConfig = config.settings().unwrap().parse().unwrap();
    assert_eq!(memory.capacity, 1 << 20);
}

#[test]
fn mistakes_say_key_value_and_origin() {
    let of = |name: &str, value: &str| {
        let config = Config::new("memory://").unwrap();
        let config = config.vars([(name.to_owned(), value.to_owned())]).unwrap();
        Tiers::from_config(&config).unwrap_err()
    };
    check_error(
        &of("LARDER_TIERS_BUGDET", "1GiB"),
        "unknown key `tiers_bugdet` in tiers config (LARDER_TIERS_BUGDET); known keys: tiers_budget, tiers_max_age, \
         tiers_per_request",
    );
    check_error(
        &of("LARDER_TIERS_BUDGET", "much"),
        "tiers config: tiers_budget = `much` (LARDER_TIERS_BUDGET): expected a size in bytes, such as 65536, 64MiB or \
         10MB",
    );
    check_error(
        &of("LARDER_TIERS_MAX_AGE", "30"),
        "tiers config: tiers_max_age = `30` (LARDER_TIERS_MAX_AGE): expected a duration with its unit, such as 50ms, 2s \
         or 1h 30m",
    );
}

#[test]
fn what_can_never_work_is_refused() {
    let refused = |config: TiersConfig| Tiers::new(config).unwrap_err().to_string();
    let default = TiersConfig::default();
    let budget = 64;
    assert_eq!(
        refused(TiersConfig {
            budget,
            ..default.clone()
        }),
        "a budget of 64 bytes for the tiers keeps next to nothing; give tiers_budget at least 65536, or 64MiB"
    );
    let per_request = 0;
    assert_eq!(
        refused(TiersConfig {
            per_request,
            ..default.clone()
        }),
        "tiers_per_request is 0, so that no request could keep anything; give it bytes, such as 4MiB"
    );
    let max_age = Duration::ZERO;
    assert_eq!(
        refused(TiersConfig { max_age, ..default }),
        "tiers_max_age is 0, so that no request could keep anything; give it a duration, such as 30s"
    );
}

#[test]
fn the_reference_shows_every_key_at_no_default() {
    let config = Config::default()
        .toml_table(REFERENCE, "reference.toml", "cache")
        .unwrap();
    let fields = |config: &TiersConfig| toml::Table::try_from(config).unwrap();
    let written = fields(&parse(&config).unwrap());
    let default = fields(&TiersConfig::default());
    let document: toml::Table = REFERENCE.parse().unwrap();
    for key in config::known_keys::<TiersConfig>() {
        let shown = document["cache"].get(format!("tiers_{key}"));
        assert!(shown.is_some(), "`tiers_{key}` isn't in the table cache");
        assert_ne!(
            written.get(key),
            default.get(key),
            "`{key}` shows its default"
        );
    }
}
