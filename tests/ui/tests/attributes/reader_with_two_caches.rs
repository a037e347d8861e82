//! Which of them?

#![allow(unused)]

use larder::Cache;
use larder_ui::Db;

#[derive(larder::Reader)]
struct App {
    ours: Cache<Db>,
    theirs: Cache<Db>,
}

fn main() {}
