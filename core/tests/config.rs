//! Configuration: layers, what they become, and what is said about mistakes in them.

use std::process::Command;
use std::time::Duration;

use larder_core::config::{self, Secret};
use larder_core::{Config, ErrorKind, Result};
use serde::Deserialize;

/// One field of every kind that a backend's struct may have.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct CupboardConfig {
    servers: Vec<String>,
    #[serde(with = "config::duration")]
    timeout: Duration,
    #[serde(with = "config::bytes")]
    capacity: usize,
    shelves: u8,
    depth: Option<i32>,
    weight: f64,
    locked: bool,
    wood: Wood,
    label: Label,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Wood {
    #[default]
    Oak,
    Ash,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
struct Label(String);

fn parse(config: &Config) -> Result<CupboardConfig> {
    config.settings()?.parse()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn url_and_toml_are_two_spellings() {
    let url = "cupboard://h1:1,h2:2?timeout=1s%20500ms&capacity=1.5MiB&shelves=3&depth=-4&weight=0.5&locked=true\
               &wood=ash&label=Tea,%20etc.";
    let toml = r#"
        [cache]
        backend = "cupboard"
        servers = ["h1:1", "h2:2"]
        timeout = "1500ms"
        capacity = 1572864
        shelves = 3
        depth = -4
        weight = 0.5
        locked = true
        wood = "ash"
        label = "Tea, etc."

        [elsewhere]
        capacity = "not ours"
    "#;
    let by_url = parse(&Config::new(url).unwrap()).unwrap();
    let by_toml = parse(&Config::default().toml(toml, "service.toml").unwrap()).unwrap();
    let expected = CupboardConfig {
        servers: vec!["h1:1".into(), "h2:2".into()],
        timeout: Duration::from_millis(1500),
        capacity: 3 << 19,
        shelves: 3,
        depth: Some(-4),
        weight: 0.5,
        locked: true,
        wood: Wood::Ash,
        label: Label("Tea, etc.".into()),
    };
    assert_eq!(by_url, expected);
    assert_eq!(by_toml, expected);
}

#[test]
fn list_in_the_environment_is_separated_by_commas() {
    let config = Config::new("cupboard://h1").unwrap();
    let servers = |list| {
        parse(&config.clone().vars([("LARDER_SERVERS", list)]).unwrap())
            .unwrap()
            .servers
    };
    assert_eq!(
        servers("h2:1, unix:/run/a.sock"),
        ["h2:1", "unix:/run/a.sock"]
    );
    assert_eq!(servers("h3"), ["h3"]);
    assert_eq!(servers(" "), [""; 0]);
}

#[test]
fn later_layer_wins_key_by_key_whatever_the_order_of_calls() {
    let config = Config::default()
        .args([("shelves", "4")])
        .unwrap()
        .vars([("LARDER_URL", "cupboard://h3?timeout=3s&shelves=3")])
        .unwrap()
        .toml(
            "[cache]\nurl = 'cupboard://h2?timeout=2s&shelves=2'\ncapacity = '2KiB'",
            "a.toml",
        )
        .unwrap();
    let cupboard = parse(&config).unwrap();
    assert_eq!(cupboard.servers, ["h3"]);
    assert_eq!(cupboard.timeout, Duration::from_secs(3));
    assert_eq!(cupboard.capacity, 2048);
    assert_eq!(cupboard.shelves, 4);
    assert_eq!(
        config.to_string(),
        "backend = cupboard (LARDER_URL); capacity = 2KiB (a.toml [cache]); servers = h3 (LARDER_URL); \
         shelves = 4 (the command line); timeout = 3s (LARDER_URL)"
    );
}

#[test]
fn second_file_wins_over_the_first() {
    let config = Config::new("cupboard://")
        .and_then(|config| config.toml("[cache]\nshelves = 1\nwood = 'ash'", "base.toml"))
        .and_then(|config| config.toml("[cache]\nshelves = 2", "local.toml"))
        .unwrap();
    let cupboard = parse(&config).unwrap();
    assert_eq!((cupboard.shelves, cupboard.wood), (2, Wood::Ash));
}

#[test]
fn key_by_name_wins_over_the_url_of_its_layer() {
    let toml = "[cache]\ntimeout = '2s'\nurl = 'cupboard://h1?timeout=1s'\nbackend = 'cupboard'";
    let config = Config::default().toml(toml, "a.toml").unwrap();
    assert_eq!(parse(&config).unwrap().timeout, Duration::from_secs(2));
}

#[test]
fn another_backend_drops_the_earlier_ones_keys() {
    let config = Config::new("cellar://h1?racks=7&prefix=v1")
        .and_then(|config| config.vars([("LARDER_BOTTLES", "9")]))
        .and_then(|config| config.args([("url", "cupboard://?shelves=2")]))
        .unwrap();
    assert_eq!(parse(&config).unwrap().shelves, 2);
    let settings = config.settings().unwrap();
    assert_eq!(settings.prefix().unwrap().prefix.unwrap().as_str(), "v1");
    assert_eq!(
        settings.to_string(),
        "backend = cupboard (the command line); prefix = v1 (the URL in the program's code); shelves = 2 (the command line); \
         dropped bottles = 9 (LARDER_BOTTLES), since the command line names another backend; \
         dropped racks = 7 (the URL in the program's code), since the command line names another backend; \
         dropped servers = h1 (the URL in the program's code), since the command line names another backend"
    );
}

#[test]
fn keys_without_a_backend_wait_for_one() {
    let config = Config::default()
        .toml("[cache]\nshelves = 2", "a.toml")
        .unwrap();
    refused(
        config.settings(),
        "no backend is configured; set LARDER_URL, or `url` or `backend` in the table [cache]",
    );
    let config = config.vars([("LARDER_BACKEND", "cupboard")]).unwrap();
    assert_eq!(parse(&config).unwrap().shelves, 2);
}

#[test]
fn environment_of_others_is_left_alone() {
    let config = Config::new("cupboard://")
        .and_then(|config| {
            config.vars([
                ("PATH", "/bin"),
                ("MY_LARDER_URL", "cellar://"),
                ("LARDER_TEST_SERVER", "h1"),
                ("LARDER_CORPUS", "messages.jsonl"),
                ("LARDER_SHELVES", ""),
            ])
        })
        .unwrap();
    assert_eq!(parse(&config).unwrap(), CupboardConfig::default());
}

#[test]
fn process_environment_is_read() {
    let own = std::env::vars_os().map(|(name, _)| name);
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "process_reads_its_environment"]);
    for name in own.filter(|name| name.to_string_lossy().starts_with("LARDER_")) {
        child.env_remove(name);
    }
    child.envs([
        ("LARDER_TEST_CHILD", "1"),
        ("LARDER_URL", "cupboard://h1"),
        ("LARDER_SHELVES", "5"),
    ]);
    let output = child.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// The other process of the test above; by itself it has nothing to do.
#[test]
fn process_reads_its_environment() {
    if std::env::var_os("LARDER_TEST_CHILD").is_some() {
        let config = Config::new("cellar://?racks=7").unwrap().env().unwrap();
        assert_eq!(parse(&config).unwrap().shelves, 5);
        assert!(
            config
                .to_string()
                .starts_with("backend = cupboard (LARDER_URL); "),
            "{config}"
        );
    }
}

#[test]
fn unknown_key_is_refused_and_the_known_ones_are_listed() {
    let known = "known keys: capacity, depth, label, locked, servers, shelves, timeout, weight, wood, and for every \
                 backend: backend, prefix, prefix_file, tiers_*, url";
    let base = Config::new("cupboard://").unwrap();
    refused(
        parse(&base.clone().vars([("LARDER_TIMOUT", "1s")]).unwrap()),
        &format!("unknown key `timout` in cupboard config (LARDER_TIMOUT); {known}"),
    );
    refused(
        parse(
            &base
                .clone()
                .toml("[cache]\n'time out' = 1", "a.toml")
                .unwrap(),
        ),
        &format!("unknown key `time out` in cupboard config (a.toml [cache]); {known}"),
    );
    refused(
        parse(&base.args([("password", "hunter2")]).unwrap()),
        &format!("unknown key `password` in cupboard config (the command line); {known}"),
    );
    refused(
        parse(&Config::new("cupboard://h1/x").unwrap()),
        &format!("unknown key `path` in cupboard config (the URL in the program's code); {known}"),
    );
}

#[test]
fn value_of_the_wrong_kind_names_key_value_and_origin() {
    #[track_caller]
    fn check(key: &str, value: &str, expected: &str) {
        let variable = format!("LARDER_{}", key.to_uppercase());
        let config = Config::new("cupboard://")
            .unwrap()
            .vars([(&variable, value)])
            .unwrap();
        refused(
            parse(&config),
            &format!("cupboard config: {key} = `{value}` ({variable}): expected {expected}"),
        );
    }
    check(
        "timeout",
        "50",
        "a duration with its unit, such as 50ms, 2s or 1h 30m",
    );
    check(
        "capacity",
        "64 apples",
        "a size in bytes, such as 65536, 64MiB or 10MB",
    );
    check("shelves", "256", "a whole number from 0 to 255");
    check("shelves", "3.5", "a whole number from 0 to 255");
    check(
        "depth",
        "deep",
        "a whole number from -2147483648 to 2147483647",
    );
    check("weight", "heavy", "a number");
    check("locked", "yes", "true or false");
    check("wood", "pine", "one of oak, ash");
}

#[test]
fn list_where_one_value_belongs_is_refused() {
    let config = Config::new("cupboard://").unwrap();
    refused(
        parse(
            &config
                .clone()
                .toml("[cache]\nshelves = [1, 2]", "a.toml")
                .unwrap(),
        ),
        "cupboard config: shelves = `1,2` (a.toml [cache]): expected one value, not a list",
    );
    refused(
        config
            .clone()
            .toml("[cache]\nshelves = { top = 1 }", "a.toml"),
        "a.toml [cache]: key `shelves` takes a text, a number, true or false, or a list of these",
    );
    refused(
        config.toml("[cache]\nurl = ['cupboard://']", "a.toml"),
        "a.toml [cache]: key `url` takes one URL, not a list",
    );
}

#[test]
fn missing_key_without_default_is_named() {
    #[derive(Debug, Deserialize)]
    struct Strict {
        #[serde(rename = "shelves")]
        _shelves: u8,
    }
    refused(
        Config::new("cupboard://")
            .unwrap()
            .settings()
            .unwrap()
            .parse::<Strict>(),
        "cupboard config: key `shelves` must be set",
    );
}

#[test]
fn layer_that_contradicts_itself_is_refused() {
    refused(
        Config::default().toml("[cache]\nurl = 'cupboard://'\nbackend = 'cellar'", "a.toml"),
        "a.toml [cache]: `backend` is cellar and `url` begins with cupboard:, leave one of them out",
    );
    refused(
        Config::default().args([("shelves", "1"), ("shelves", "2")]),
        "the command line: key `shelves` is given twice",
    );
    refused(
        Config::default().vars([("LARDER_URL", "h1:11211")]),
        "LARDER_URL: this isn't the URL of a store, write it like memory:// or \
         memcached://h1:11211,h2:11211?timeout=50ms",
    );
}

#[test]
fn broken_toml_is_located_and_not_quoted() {
    let error = Config::default()
        .toml(
            "[cache]\nurl = 'memory://'\npassword = 'hunter2\n",
            "a.toml",
        )
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("a.toml: not TOML: line 3: "), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    refused(
        Config::default().toml("cache = 1", "a.toml"),
        "a.toml: `cache` isn't a table",
    );
}

#[test]
fn file_is_read_and_a_missing_one_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("service.toml");
    let missing = Config::default().toml_file(&path).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Config);
    assert!(
        missing
            .to_string()
            .contains("service.toml: the configuration can't be read"),
        "{missing}"
    );

    std::fs::write(
        &path,
        "[sessions]\nshelves = 2\n[cache]\nbackend = 'cupboard'\n",
    )
    .unwrap();
    let config = Config::default().toml_file(&path).unwrap();
    assert_eq!(parse(&config).unwrap(), CupboardConfig::default());
    let document = std::fs::read_to_string(&path).unwrap();
    let config = config
        .toml_table(&document, "service.toml", "sessions")
        .unwrap();
    assert_eq!(parse(&config).unwrap().shelves, 2);
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Locked {
    password_env: Option<Secret>,
}

#[test]
fn secret_comes_from_the_variable_that_is_named() {
    let config = Config::new("cupboard://?password_env=PATH").unwrap();
    let locked: Locked = config.settings().unwrap().parse().unwrap();
    let secret = locked.password_env.as_ref().unwrap();
    assert_eq!(secret.expose(), std::env::var("PATH").unwrap());
    assert_eq!(
        format!("{locked:?}"),
        "Locked { password_env: Some(Secret(from PATH)) }"
    );
    assert!(
        config.to_string().contains("password_env = PATH"),
        "{config}"
    );
}

#[test]
fn secret_written_in_place_of_its_name_is_not_shown() {
    let config = Config::new("cupboard://?password_env=hunter2").unwrap();
    refused(
        config.settings().unwrap().parse::<Locked>(),
        "cupboard config: password_env = `(hidden)` (the URL in the program's code): expected the name of a variable of \
         the environment that is set and holds the secret",
    );
    let config = config
        .args([("password", "hunter3"), ("auth_token", "hunter4")])
        .unwrap();
    for shown in [
        config.to_string(),
        format!("{config:?}"),
        format!("{:?}", config.settings()),
    ] {
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn prefix_that_cannot_be_one_names_its_origin() {
    let config = Config::new("cupboard://")
        .unwrap()
        .vars([("LARDER_PREFIX", "a b")])
        .unwrap();
    refused(
        config.settings().unwrap().prefix(),
        "LARDER_PREFIX: `a b` can't be a prefix; it takes 1 to 20 characters of A-Z a-z 0-9 . _ -",
    );
}

#[test]
fn known_keys_are_those_of_the_struct() {
    assert_eq!(config::known_keys::<Locked>(), ["password_env"]);
    assert_eq!(config::known_keys::<CupboardConfig>().len(), 9);
    assert_eq!(config::known_keys::<u32>(), [""; 0]);
}

#[test]
fn structs_can_be_read_from_other_formats_as_well() {
    let toml = "capacity = 1024\ntimeout = '50ms'\nservers = ['h1']";
    let cupboard: CupboardConfig = toml::from_str(toml).unwrap();
    assert_eq!(
        (cupboard.capacity, cupboard.timeout),
        (1024, Duration::from_millis(50))
    );
    assert!(toml::from_str::<CupboardConfig>("capacity = -1").is_err());
}
