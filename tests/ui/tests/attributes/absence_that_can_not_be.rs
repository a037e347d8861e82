//! A value for every key, and none absent.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "count", ttl_only = "1h", absent_ttl = "1m")]
async fn count(_db: &mut Conn) -> Result<u64, Infallible> {
    Ok(7)
}

fn main() {}
