//! What `docs/consistency.md` says is shown by tests, and the tests that it names are there.

use std::path::Path;

const PAGE: &str = include_str!("../../docs/consistency.md");

/// What stands in backticks in the last column of the table of failures, in order.
fn named() -> Vec<&'static str> {
    let (_, table) = PAGE
        .split_once("\n| What fails |")
        .expect("a table of failures");
    let (table, _) = table.split_once("\n\n").expect("the table ends");
    let tests = table.lines().skip(2).map(|row| {
        let (_, tests) = row
            .trim_end_matches(" |")
            .rsplit_once(" | ")
            .expect("columns");
        assert!(tests.contains('`'), "no test in {row}");
        tests
    });
    tests
        .flat_map(|tests| tests.split('`').skip(1).step_by(2))
        .collect()
}

#[test]
fn the_tests_that_the_page_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: String| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let suite = ["faults", "leases"].map(|file| read(format!("core/src/conformance/{file}.rs")));
    let named = named();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let is_there = match name.split_once("::") {
            _ if name.ends_with(".rs") => root.join(name).exists(),
            // A test of another directory, one of this one's, a case of the suite.
            Some((module, test)) => {
                let (directory, module, test) = match test.split_once("::") {
                    Some((inner, test)) => (module, inner, test),
                    None => ("write", module, test),
                };
                let file = read(format!("tests/it/{directory}/{module}.rs"));
                file.contains(&format!("fn {test}("))
            }
            None => {
                let case = format!("fn {name}(");
                suite.iter().any(|file| file.contains(&case))
            }
        };
        assert!(is_there, "docs/consistency.md names {name}, which is gone");
    }
}
