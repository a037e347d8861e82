//! What nobody else can know.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::Conn;

#[larder::cached(ttl_only = "1h")]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
