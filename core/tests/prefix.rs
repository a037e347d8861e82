//! Where the prefix comes from, and the file that the processes of one host share.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;

use larder_core::{ErrorKind, Pool, Prefix, PrefixSettings, Reach, Result};

/// Names the prefix file to a child process of these tests.
const FILE: &str = "LARDER_TEST_PREFIX_FILE";

fn from_file(path: &Path) -> Result<Prefix> {
    let mut settings = PrefixSettings::default();
    settings.file = Some(path.to_owned());
    settings.resolve(&host())
}

fn host() -> Pool {
    Pool::new("memcached://127.0.0.1:11211", Reach::Host)
}

fn network() -> Pool {
    Pool::new("memcached://10.0.0.5:11211", Reach::Network)
}

fn files(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn random_prefixes_are_legal_and_never_the_same() {
    let prefixes: HashSet<_> = (0..1_000).map(|_| Prefix::random()).collect();
    assert_eq!(prefixes.len(), 1_000);
    assert!(
        prefixes
            .iter()
            .all(|prefix| Prefix::new(prefix.as_str()).is_ok_and(|legal| legal == *prefix))
    );
}

#[test]
fn pool_is_part_of_the_prefix_once() {
    let prefix = Prefix::new("v1").unwrap();
    let hashed = prefix.for_pool(&host());
    assert_eq!(hashed.as_str().len(), "v1.".len() + 11);
    assert_ne!(hashed, prefix.for_pool(&network()));
    assert_eq!(hashed.for_pool(&host()), hashed);
    assert_eq!(hashed.for_pool(&network()), prefix.for_pool(&network()));
}

#[test]
fn what_is_configured_is_checked() {
    for wrong in ["", "a/b", "a b", "é", "123456789012345678901"] {
        assert_eq!(
            Prefix::new(wrong).unwrap_err().kind(),
            ErrorKind::Config,
            "{wrong:?}"
        );
    }
    assert!(Prefix::new("12345678901234567890").is_ok());
}

#[test]
fn configured_prefix_comes_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = PrefixSettings::default();
    settings.prefix = Some(Prefix::new("v1").unwrap());
    settings.file = Some(directory.path().join("prefix"));
    for pool in [Pool::new("memory", Reach::Process), host(), network()] {
        assert_eq!(settings.resolve(&pool).unwrap().as_str(), "v1");
    }
    assert_eq!(files(directory.path()), [""; 0]);
}

#[test]
fn store_of_one_process_takes_a_random_prefix() {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = PrefixSettings::default();
    settings.file = Some(directory.path().join("prefix"));
    let memory = Pool::new("memory", Reach::Process);
    assert_ne!(
        settings.resolve(&memory).unwrap(),
        settings.resolve(&memory).unwrap()
    );
    assert_eq!(files(directory.path()), [""; 0]);
}

#[test]
fn shared_store_without_a_prefix_names_the_ways() {
    let error = PrefixSettings::default()
        .resolve(&host())
        .unwrap_err()
        .to_string();
    for word in [
        "memcached://127.0.0.1:11211",
        "LARDER_PREFIX",
        "`prefix`",
        "`prefix_file`",
    ] {
        assert!(error.contains(word), "{error}");
    }
    let error = PrefixSettings::default()
        .resolve(&network())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("LARDER_PREFIX") && !error.contains("prefix_file"),
        "{error}"
    );
}

#[test]
fn prefix_file_is_refused_for_a_store_that_other_hosts_share() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prefix");
    let mut settings = PrefixSettings::default();
    settings.file = Some(path.clone());
    assert_eq!(
        settings.resolve(&network()).unwrap_err().to_string(),
        format!(
            "prefix file {} names this host only, but memcached://10.0.0.5:11211 is shared; set LARDER_PREFIX to the \
             same value on all hosts of this deployment",
            path.display()
        )
    );
    assert_eq!(files(directory.path()), [""; 0]);
}

#[test]
fn file_holds_one_line_and_nothing_is_left_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prefix");
    let prefix = from_file(&path).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        format!("{prefix}\n")
    );
    assert_eq!(from_file(&path).unwrap(), prefix);
    assert_eq!(files(directory.path()), ["prefix"]);
}

#[test]
fn racing_threads_agree() {
    for _ in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("prefix");
        let start = Barrier::new(16);
        let prefixes: HashSet<_> = std::thread::scope(|scope| {
            let race = || {
                start.wait();
                from_file(&path).unwrap()
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(race)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(prefixes.len(), 1, "{prefixes:?}");
        assert_eq!(files(directory.path()), ["prefix"]);
    }
}

#[test]
fn racing_processes_agree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prefix");
    let race = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_takes_part_in_the_race", "--nocapture"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let processes: Vec<_> = (0..8).map(|_| race()).collect();
    let prefix = from_file(&path).unwrap();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(said.contains(&format!("took {prefix};")), "{said}");
    }
    assert_eq!(files(directory.path()), ["prefix"]);
}

/// One process of the race above; by itself it has nothing to do.
#[test]
fn process_takes_part_in_the_race() {
    if let Some(path) = std::env::var_os(FILE) {
        println!("took {};", from_file(Path::new(&path)).unwrap());
    }
}

#[test]
fn crash_before_the_file_has_its_name_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    // What a process leaves that was killed while it wrote aside: a file of any content under another name.
    std::fs::write(directory.path().join(".prefix.7Yq2mX0c_kAZ3tB9-d1e"), "7Yq").unwrap();
    let path = directory.path().join("prefix");
    assert_eq!(from_file(&path).unwrap(), from_file(&path).unwrap());
}

#[test]
fn prefix_written_by_hand_is_taken() {
    #[track_caller]
    fn check(content: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("prefix");
        std::fs::write(&path, content).unwrap();
        assert_eq!(from_file(&path).unwrap().as_str(), "v1");
    }
    check("v1\n");
    check("v1");
    check("v1\r\n");
}

#[test]
fn garbage_names_the_file_and_the_way_out() {
    #[track_caller]
    fn check(content: &[u8]) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("prefix");
        std::fs::write(&path, content).unwrap();
        let error = from_file(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        for words in [
            path.to_str().unwrap(),
            "doesn't hold a prefix",
            "delete it while",
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(
            std::fs::read(&path).unwrap(),
            content,
            "nothing was repaired behind anybody's back"
        );
    }
    check(b"");
    check(b"\n");
    check(b"v1\nv2\n");
    check(b"v 1\n");
    check(b"\xff\xfe\n");
    check(&[0; 4096]);
    check(&[b'x'; 1 << 20]);
}

#[test]
fn file_that_cannot_be_made_says_what_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("var/prefix");
    let error = from_file(&missing).unwrap_err().to_string();
    for words in [
        missing.to_str().unwrap(),
        "its directory must exist",
        "LARDER_PREFIX",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let error = from_file(directory.path()).unwrap_err().to_string();
    assert!(error.contains("can't be read"), "{error}");
}
