//! Each reader gets a value of its own, also where several waited for one load.

use std::convert::Infallible;
use std::time::Duration;

use larder::{Dataset, Lifetime, NoTier, Plain, Rows};
use larder_ui::{Conn, Db};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Page {
    html: String,
}

enum Pages {}

impl Dataset for Pages {
    const NAME: &'static str = "pages";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(600));
    type Source = Db;
    type Key = u64;
    type Value = Page;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
