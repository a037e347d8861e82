//! Every load may fail.

#![allow(unused)]

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
async fn user(_db: &mut Conn, id: u64) -> Option<String> {
    None
}

fn main() {}
