//! The key has a name at least.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "", ttl_only = "1h")]
async fn user(_db: &mut Conn, id: u64, email: &str) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
