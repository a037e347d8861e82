//! How many maps there are isn't part of the release only because each of them is.

use std::convert::Infallible;

use larder::{Dataset, DeployTier, Lifetime, Rows};
use larder_ui::{Conn, Db, Hollow, SourceMap};

enum Maps {}

impl Dataset for Maps {
    const NAME: &'static str = "maps";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Db;
    type Key = u64;
    type Value = Vec<SourceMap>;
    type Form = Hollow;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
