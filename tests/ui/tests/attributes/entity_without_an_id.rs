//! A row has a primary key.

#![allow(unused)]

#[derive(larder::Entity)]
struct User {
    id: u64,
    name: String,
}

fn main() {}
