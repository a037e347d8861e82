//! A data set is one set of values.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
async fn user<T: Default>(_db: &mut Conn, id: u64) -> Result<Option<T>, Infallible> {
    Ok(None)
}

fn main() {}
