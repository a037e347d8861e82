//! An argument is known by its name.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{realm}:{id}", ttl_only = "1h")]
async fn user(_db: &mut Conn, (realm, id): (u32, u64)) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
