//! A reader that is lent ends where the request does.

use larder::{Cache, Request, ScopedReader};
use larder_ui::Db;

fn reader<'a>(cache: &'a Cache<Db>) -> impl ScopedReader<'a, Db> {
    let request = Request::begin(cache);
    &request
}

fn main() {}
