//! Nothing that may change gets into the process and stays there, no attribute is taken for what it doesn't say, and the
//! compiler says what to write instead.
//!
//! After a message changed, `TRYBUILD=overwrite cargo test -p larder-ui` writes the files beside the cases anew; what
//! they say is for people, so read them.

use std::process::Command;

/// The compiler whose messages are written down.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn what_may_change_is_refused_and_told_where_to_go() {
    let cases = trybuild::TestCases::new();
    // With a case that passes all are built, rather than checked: an assertion in a constant fails only then.
    cases.pass("tests/pass/*.rs");
    refuse(&cases, "tests/fail/*.rs");
}

#[test]
fn mistakes_in_attributes_are_told_with_what_to_write() {
    refuse(&trybuild::TestCases::new(), "tests/attributes/*.rs");
}

fn refuse(cases: &trybuild::TestCases, paths: &str) {
    if compiler().starts_with(COMPILER) {
        cases.compile_fail(paths);
    } else {
        println!(
            "the messages aren't compared: they are those of {COMPILER}x, and this is {}",
            compiler()
        );
    }
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.expect("rustc can be run").stdout;
    String::from_utf8_lossy(&version).trim().to_owned()
}
