//! A data set is a type, which an `impl` block can't hold.

#![allow(unused)]

use std::convert::Infallible;

use larder_ui::Db;

struct Users;

impl Users {
    #[larder::cached(source = Db, key = "user:{id}", ttl_only = "1h")]
    pub async fn by_id(&self, id: u64, name: &str) -> Result<Option<String>, Infallible> {
        Ok(None)
    }
}

fn main() {}
