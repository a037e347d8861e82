//! The tasks of a request share what it keeps.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use larder::{Dataset, Lifetime, RequestTier, Rows, Unstored, Weigh};
use larder_ui::{Conn, Db};

struct Basket {
    items: RefCell<Vec<u64>>,
}

impl Weigh for Basket {
    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&**self.items.borrow())
    }
}

enum Baskets {}

impl Dataset for Baskets {
    const NAME: &'static str = "baskets";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(60));
    type Source = Db;
    type Key = u64;
    type Value = Basket;
    type Form = Unstored;
    type Tier = RequestTier;
    type Error = Infallible;

    async fn load(_: &mut Conn, _: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(Vec::new())
    }
}

fn main() {}
