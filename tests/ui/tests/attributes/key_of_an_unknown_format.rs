//! Normalising belongs to the type, so that key and loader see the same.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{email:lower}", ttl_only = "1h")]
async fn user(_db: &mut Conn, email: &str) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
