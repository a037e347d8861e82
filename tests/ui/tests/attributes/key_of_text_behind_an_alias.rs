//! Text by another name is text.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{email}", ttl_only = "1h")]
async fn user(_db: &mut Conn, email: Email) -> Result<Option<String>, Infallible> {
    Ok(None)
}

type Email = Option<String>;

fn main() {}
