//! A type that says nothing of how it is written.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{place}", ttl_only = "1h")]
async fn user(_db: &mut Conn, place: Place) -> Result<Option<String>, Infallible> {
    Ok(None)
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place(u64);

fn main() {}
