//! At the start there is no request to keep it.

use larder::{Cache, CacheBuilder};
use larder_ui::{Db, UserOfRequest};

fn start() -> CacheBuilder<Db> {
    Cache::builder(Db).warm::<UserOfRequest>([7])
}

fn main() {}
