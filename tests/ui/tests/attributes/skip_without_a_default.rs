//! Something stands for what is skipped where nobody gives it.
#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h", skip(until))]
async fn user(_db: &mut Conn, id: u64, until: std::time::Instant) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
