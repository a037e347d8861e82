//! A connection has no cache; and the process keeps what never changes.

#![allow(unused)]

use larder::{Cache, FlushError};
use larder_ui::forms::{Email, map, person_by_email};
use larder_ui::{Conn, Db};

async fn save(cache: &Cache<Db>, db: &mut Conn) -> Result<(), FlushError> {
    person_by_email::flush(db, &Email(String::new())).await?;
    map::flush(cache, 7).await
}

fn main() {}
