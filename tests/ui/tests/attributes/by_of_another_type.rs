//! The id in a value is borrowed, or of another type than those that are asked for.
#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(many, source = Db, key = "name:{ids}", by = |name| name.len(), ttl_only = "1h")]
async fn names(_db: &mut Conn, ids: &[u64]) -> Result<Vec<String>, Infallible> {
    Ok(Vec::new())
}

#[larder::cached(many, source = Db, key = "square:{realm}:{ids}", by = |square| square, ttl_only = "1h")]
async fn squares(_db: &mut Conn, realm: u32, ids: &[u64]) -> Result<Vec<u64>, Infallible> {
    Ok(Vec::new())
}

fn main() {}
