//! The same, by the name of something else.

use std::convert::Infallible;
use std::time::Duration;

use larder::{Dataset, Lifetime, Plain, Rows};
use larder_ui::{Conn, Db, User};

enum ForTenMinutes {}

enum Users {}

impl Dataset for Users {
    const NAME: &'static str = "users";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(600));
    type Source = Db;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = ForTenMinutes;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
