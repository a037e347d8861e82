//! Neither stored nor kept, it would be loaded by every read.

use std::convert::Infallible;
use std::time::Duration;

use larder::{Cache, CacheBuilder, Dataset, Lifetime, NoTier, Rows, Unstored, Weigh};
use larder_ui::{Conn, Db};

#[derive(Clone)]
struct Presence(bool);

impl Weigh for Presence {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

enum Presences {}

impl Dataset for Presences {
    const NAME: &'static str = "presences";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(5));
    type Source = Db;
    type Key = u64;
    type Value = Presence;
    type Form = Unstored;
    type Tier = NoTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {
    let _: CacheBuilder<Db> = Cache::builder(Db).register::<Presences>();
}
