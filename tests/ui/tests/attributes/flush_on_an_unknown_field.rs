//! Fields are checked by the compiler.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::forms::Person;
use larder_ui::{Conn, Db};

#[larder::cached(source = Db, key = "user:{id}", ttl = "7d", flush_on(Person { mail, is_active } => |person| person.id.0))]
async fn user(_db: &mut Conn, id: u64) -> Result<Option<String>, Infallible> {
    Ok(None)
}

fn main() {}
