//! What is cached: a crate that the web server names, and a worker easily doesn't.

use std::convert::Infallible;
use std::time::Duration;

use larder_core::{Dataset, FlushOn, Lifetime, NoTier, Plain, Rows, dataset};
use larder_linking_entity::{House, Lamp, LampField};

/// Whether a lamp is on.
#[derive(Debug)]
pub enum LampIsOn {}

impl Dataset for LampIsOn {
    const NAME: &'static str = "lamp_is_on";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = House;
    type Key = u64;
    type Value = bool;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.id::<Lamp>([LampField::IsOn], |id| *id);
    }

    async fn load(_: &mut (), ids: Vec<u64>) -> Result<Rows<Self>, Infallible> {
        Ok(ids.into_iter().map(|id| (id, id % 2 == 0)).collect())
    }
}

dataset!(LampIsOn);
