//! Nothing to read with.

#![allow(unused)]

#[derive(larder::Reader)]
struct App {
    name: String,
}

fn main() {}
