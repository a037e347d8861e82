//! A source whose values are made from their ids, and data sets of every tier.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Cache, Dataset, DeployImmutable, DeployTier, FlushOn, Lifetime, Plain, RequestTier, Rt, Source,
};
use larder_tiers::Tiers;
use serde::{Deserialize, Serialize};

/// A cache on the memory store, with these tiers.
pub(crate) async fn cache(tiers: Tiers) -> Cache<Made> {
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).expect("a legal configuration");
    Cache::builder(Made)
        .backend(Arc::new(memory))
        .tiers(tiers)
        .register::<UserById>()
        .register::<TemplateById>()
        .register::<Greeting>()
        .register::<Page>()
        .build()
        .await
        .expect("every data set can be cached")
}

/// Every value is made from its id.
#[derive(Clone)]
pub(crate) struct Made;

impl Source for Made {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) email: String,
}

impl User {
    pub(crate) fn of(id: u64) -> Self {
        Self {
            id,
            name: format!("User {id}"),
            email: format!("user.{id}@example.com"),
        }
    }
}

macro_rules! datasets {
    ($($(#[doc = $doc:literal])+ $dataset:ident = $name:literal: $key:ty => $value:ty, $tier:ty, $lifetime:expr, $make:expr;)*) => {$(
        $(#[doc = $doc])+
        pub(crate) enum $dataset {}

        impl Dataset for $dataset {
            const NAME: &'static str = $name;
            const LIFETIME: Lifetime = $lifetime;
            type Source = Made;
            type Key = $key;
            type Value = $value;
            type Form = Plain;
            type Tier = $tier;
            type Error = Infallible;

            fn flush_on(plan: &mut FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load((): &mut (), keys: Vec<$key>) -> Result<Vec<($key, $value)>, Infallible> {
                let make: fn($key) -> $value = $make;
                Ok(keys.into_iter().map(|key| (key, make(key))).collect())
            }
        }
    )*};
}

datasets! {
    /// Kept for a request.
    UserById = "user_by_id": u64 => User, RequestTier, Lifetime::Ttl(Duration::from_secs(3600)), User::of;
    /// Kept for a request, 1 KiB each.
    Page = "page": u64 => String, RequestTier, Lifetime::Ttl(Duration::from_secs(3600)), |id| format!("{id:1024}");
    /// Kept by the process.
    TemplateById = "template_by_id": u64 => Template, DeployTier, Lifetime::Immutable, |id| Template(format!("Dear {id}"));
    /// Kept by the process, and there is one.
    Greeting = "greeting": () => Template, DeployTier, Lifetime::Immutable, |()| Template("Dear all".to_owned());
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Template(pub(crate) String);

/// Templates are part of the release.
impl DeployImmutable for Template {}
