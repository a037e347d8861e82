//! Nobody could say how much of the budget it takes.

use std::convert::Infallible;
use std::time::Duration;

use larder::{Dataset, Lifetime, RequestTier, Rows, Unstored};
use larder_ui::{Conn, Db};

struct Presence(bool);

enum Presences {}

impl Dataset for Presences {
    const NAME: &'static str = "presences";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(5));
    type Source = Db;
    type Key = u64;
    type Value = Presence;
    type Form = Unstored;
    type Tier = RequestTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
