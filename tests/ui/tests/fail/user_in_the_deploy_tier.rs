//! An administrator renames a user, and this process never learns of it.

use std::convert::Infallible;

use larder::{Dataset, DeployTier, Lifetime, Plain, Rows};
use larder_ui::{Conn, Db, User};

enum Users {}

impl Dataset for Users {
    const NAME: &'static str = "users";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Db;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
