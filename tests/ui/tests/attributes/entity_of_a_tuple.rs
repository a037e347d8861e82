//! Columns have names.

#![allow(unused)]

#[derive(larder::Entity)]
struct User(u64, String);

fn main() {}
