//! What expires may change, and nobody would look again.

use std::convert::Infallible;
use std::time::Duration;

use larder::{Cache, CacheBuilder, Dataset, DeployTier, Lifetime, Rows, Unstored};
use larder_ui::{Conn, Db, SourceMap};

enum Maps {}

impl Dataset for Maps {
    const NAME: &'static str = "maps";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = Db;
    type Key = u64;
    type Value = SourceMap;
    type Form = Unstored;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {
    let _: CacheBuilder<Db> = Cache::builder(Db).register::<Maps>();
}
