//! A key owns its text, and lends it for one call.
#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{name:digest}", ttl_only = "1h")]
async fn user(_db: &mut Conn, name: &'static str) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
