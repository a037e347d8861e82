//! A process would keep it until it ends.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::forms::Map;
use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl = "7d", by_hand, tier = deploy, form = larder::Unstored)]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<Map>, Infallible> {
    Ok(None)
}

fn main() {}
