//! A loader gets what it loads through.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::Db;

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
async fn user(id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
