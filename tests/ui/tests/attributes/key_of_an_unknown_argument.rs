//! A slip in the key.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{relm}:{id}", ttl_only = "1h")]
async fn user(_db: &mut Conn, realm: u32, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
