//! What counts its uses changes with each of them.

use std::cell::Cell;

use larder::DeployImmutable;

struct Template {
    text: String,
    used: Cell<u64>,
}

impl DeployImmutable for Template {}

fn main() {}
