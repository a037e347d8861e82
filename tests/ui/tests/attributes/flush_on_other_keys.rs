//! The closure answers another key than the accessor has.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::forms::Person;
use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{realm}:{id}", ttl = "7d", flush_on(Person { .. } => |person| person.id.0))]
async fn user(_db: &mut Conn, realm: u32, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
