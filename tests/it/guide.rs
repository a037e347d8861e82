//! Pages and their examples are one: the backend guide's Rust blocks, one after the other, are its example; the README's
//! first is the quickstart.

const GUIDE: &str = include_str!("../../docs/backend-guide.md");
const EXAMPLE: &str = include_str!("../../examples/custom_backend.rs");

/// How the part of the file begins that the page leaves out.
const REST: &str = "/// What the suite can't ask, since only this store has it.";

/// What stands between "```rust" and "```".
fn rust_blocks(page: &'static str) -> Vec<&'static str> {
    let blocks = page.split("\n```rust\n").skip(1);
    let ended = |block: &'static str| block.split_once("\n```\n").expect("a block ends").0;
    blocks.map(ended).collect()
}

#[test]
fn the_guide_tells_the_example_line_by_line() {
    let told = rust_blocks(GUIDE).join("\n\n");
    let (file, _) = EXAMPLE.split_once(REST).expect("the rest begins so");
    for (number, (told, real)) in told.lines().zip(file.lines()).enumerate() {
        assert_eq!(
            told,
            real,
            "line {} of examples/custom_backend.rs (right) isn't what docs/backend-guide.md tells (left)",
            number + 1
        );
    }
    assert_eq!(told.lines().count(), file.trim_end().lines().count());
}

#[test]
fn the_readme_begins_with_the_quickstart() {
    let readme = rust_blocks(include_str!("../../README.md"));
    let quickstart = include_str!("../../examples/quickstart.rs");
    assert_eq!(readme[0], quickstart.trim_end());
}
