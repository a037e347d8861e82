//! Keys own what they are made of.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{name:digest}", ttl_only = "1h")]
async fn user<'a>(_db: &'a mut Conn, name: &'a str) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
