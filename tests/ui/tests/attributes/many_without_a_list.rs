//! Many of what?

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(many, source = Db, key = "user:{id}", ttl_only = "1h")]
async fn users(_db: &mut Conn, id: u64) -> Result<Vec<(u64, String)>, Infallible> {
    Ok(Vec::new())
}

fn main() {}
