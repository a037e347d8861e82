//! Each slip is told.

#![allow(unused)]

#[derive(larder::Entity)]
#[entity(named = "user")]
struct User {
    #[entity(id)]
    id: u64,
    #[entity(skipped)]
    name: String,
}

fn main() {}
