//! The source hands out another type.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::Db;

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
async fn user(_db: &mut String, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
