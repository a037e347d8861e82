//! A value in hand may be older than a write.

#![allow(unused)]

use larder::Cache;
use larder_ui::Db;
use larder_ui::forms::{Person, person_by_email};

async fn remember(cache: &Cache<Db>, person: Person) -> Result<(), larder::Error> {
    person_by_email::prime(cache, [(person.email.clone(), person)]).await
}

fn main() {}
