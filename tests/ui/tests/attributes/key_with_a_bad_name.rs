//! A name is part of metrics and spans.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user by id:{id}", ttl_only = "1h")]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
