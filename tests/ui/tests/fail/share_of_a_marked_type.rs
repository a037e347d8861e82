//! The tier shares by itself; a mark is for one type, and what holds it isn't marked with it.

use std::convert::Infallible;
use std::sync::Arc;

use larder::{Dataset, DeployTier, Lifetime, Rows};
use larder_ui::{Conn, Db, Hollow, SourceMap};

enum Maps {}

impl Dataset for Maps {
    const NAME: &'static str = "maps";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Db;
    type Key = u64;
    type Value = Arc<SourceMap>;
    type Form = Hollow;
    type Tier = DeployTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
