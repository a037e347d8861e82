//! Makes the page's script: one small file, and the source map that leads from it back to what people wrote.
//!
//! Both go into the program, so that a release can't have one without the other, and neither can be out of date. The
//! file's name has a hash of its text: a stack trace of another release's page isn't read with this release's map.

#[path = "build/minify.rs"]
mod minify;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::{env, fs};

/// What stands for the libraries that a page usually brings along: this many modules of this many functions make a map
/// of some hundred kilobytes.
const PARTS: usize = 32;
const STEPS: usize = 20;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src/page/app.js");
    let app = fs::read_to_string("src/page/app.js").expect("the page's script is there");
    let mut modules = vec![
        ("page/app.js".to_owned(), app),
        ("parts/index.js".to_owned(), index()),
    ];
    modules.extend((0..PARTS).map(|number| (format!("parts/{number:02}.js"), part(number))));
    let modules = modules
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()));
    let bundle = minify::bundle(modules);

    let mut hasher = DefaultHasher::new();
    bundle.code.hash(&mut hasher);
    println!(
        "cargo::rustc-env=CHAT_SCRIPT=app-{:016x}.js",
        hasher.finish()
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
    fs::write(out.join("app.js"), bundle.code).expect("the script can be written");
    let map = fs::File::create(out.join("app.js.map")).expect("the map can be written");
    bundle.map.to_writer(map).expect("the map can be written");
}

/// The module that leads to the others.
fn index() -> String {
    let first: Vec<String> = (0..PARTS)
        .map(|number| format!("part{number}step0"))
        .collect();
    format!(
        "/** The first step of a part. */\nfunction part(number) {{\n  return [{}][number % {PARTS}];\n}}\n",
        first.join(", ")
    )
}

/// A module of functions that call each other, until one of them throws.
fn part(number: usize) -> String {
    let mut code =
        format!("// Part {number} of what stands for a page's libraries: made by build.rs.\n");
    for step in 0..STEPS {
        let (factor, next) = (7 + number * STEPS + step, (step + 1) % STEPS);
        write!(
            code,
            r"
/** Step {step} of part {number}: goes on with the next one, or fails where it was told to. */
function part{number}step{step}(value, depth) {{
  const next = (value * {factor} + {step}) % 1048573;
  if (depth <= 0) {{
    throw new RangeError(`part {number} goes no deeper than step {step}, with ${{next}}`);
  }}
  return part{number}step{next}(next, depth - 1);
}}
"
        )
        .expect("a text takes what is written");
    }
    code
}
