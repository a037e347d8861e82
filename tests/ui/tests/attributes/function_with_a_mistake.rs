//! A mistake in the body is shown where it is.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<String>, Infallible> {
    Ok(Some(id))
}

fn main() {}
