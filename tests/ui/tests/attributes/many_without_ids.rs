//! Which row is whose?

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(many, source = Db, key = "user:{ids}", ttl_only = "1h")]
async fn users(_db: &mut Conn, ids: &[u64]) -> Result<Vec<String>, Infallible> {
    Ok(Vec::new())
}

fn main() {}
