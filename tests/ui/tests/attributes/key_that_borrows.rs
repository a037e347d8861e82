//! What a key borrows would have to live as long as the process.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{name:digest}", ttl_only = "1h")]
async fn user(_db: &mut Conn, name: Option<&str>) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
