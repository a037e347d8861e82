//! What never changes has no TTL.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl = "7d", by_hand, immutable)]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
