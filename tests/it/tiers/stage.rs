//! Data sets of both tiers over a [`Shelf`], and the caches of these tests.

use std::sync::Arc;

use larder_core::{
    Backend, Batch, Cache, CacheBuilder, DeployImmutable, Immutable, Prefix, Tally, Weigh,
};
use larder_tiers::{Request, Tiers};
use serde::{Deserialize, Serialize};

use crate::read::shelf::{Shelf, clock, memory};

/// What both tiers keep: a row's text, which can't be cloned, so that who holds it shares it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Text(pub(super) String);

/// In these tests no row of a data set of the deploy tier is changed, but to show that nobody sees it.
impl DeployImmutable for Text {}

impl Weigh for Text {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.0.len()
    }
}

macro_rules! tiered {
    (
        $(#[$doc:meta])*
        $name:ident = $text:literal: $tier:ident, $form:ident, $lifetime:expr
        $(, $const:ident: $type:ty = $value:expr)*
    ) => {
        $(#[$doc])*
        pub(super) enum $name {}

        impl larder_core::Dataset for $name {
            const NAME: &'static str = $text;
            const LIFETIME: larder_core::Lifetime = $lifetime;
            $(const $const: $type = $value;)*
            type Source = $crate::read::shelf::Shelf;
            type Key = u64;
            type Value = $crate::tiers::stage::Text;
            type Form = larder_core::$form;
            type Tier = larder_core::$tier;
            type Error = $crate::read::shelf::Broken;

            fn flush_on(plan: &mut larder_core::FlushOn<Self>) {
                plan.by_hand();
            }

            async fn load(
                conn: &mut $crate::read::shelf::Conn,
                ids: Vec<u64>,
            ) -> Result<larder_core::Rows<Self>, Self::Error> {
                let rows = conn.0.load(&ids).await?;
                let text = |text| $crate::tiers::stage::Text(text);
                Ok(rows.into_iter().map(|(id, row)| (id, text(row))).collect())
            }
        }
    };
}
pub(super) use tiered;

use larder_core::Lifetime::{Immutable as Forever, Ttl};

use crate::read::shelf::HOUR;

tiered!(
    /// Stored, and kept for a request.
    Name = "name": RequestTier, Plain, Ttl(HOUR)
);
tiered!(
    /// The same rows under the same arguments, and yet another data set.
    Badge = "badge": RequestTier, Plain, Ttl(HOUR)
);
tiered!(
    /// Kept for a request, and nowhere else.
    Draft = "draft": RequestTier, Unstored, Ttl(HOUR)
);
tiered!(
    /// Built by every process that needs it.
    Map = "map": DeployTier, Unstored, Forever
);
tiered!(
    /// Built by one process, and shared with the others through the store.
    Chart = "chart": DeployTier, Plain, Forever
);

impl Immutable for Chart {}

/// A process without neighbours.
pub(super) async fn cache(shelf: &Shelf) -> Cache<Shelf> {
    cache_on(shelf, memory()).await
}

/// One process among several on this store.
pub(super) async fn cache_on(shelf: &Shelf, backend: Arc<dyn Backend>) -> Cache<Shelf> {
    built(builder(shelf, backend).tiers(Tiers::default())).await
}

/// Without tiers yet.
pub(super) fn builder(shelf: &Shelf, backend: Arc<dyn Backend>) -> CacheBuilder<Shelf> {
    Cache::builder(shelf.clone())
        .backend(backend)
        .prefix(Prefix::new("test").unwrap())
        .rt(clock())
}

pub(super) async fn built(builder: CacheBuilder<Shelf>) -> Cache<Shelf> {
    builder.build().await.expect("the configuration is legal")
}

/// A request that counts what it alone costs.
pub(super) fn counting(cache: &Cache<Shelf>) -> (Request<Shelf>, Arc<Tally>) {
    let (cache, tally) = cache.tallied();
    (Request::begin(&cache), tally)
}

/// What a tally has counted: trips, keys, keys from a tier, keys from the store, calls of loaders.
#[track_caller]
pub(super) fn check(tally: &Tally, expected: Cost) {
    let cost = Cost {
        trips: tally.trips(),
        keys: tally.keys(),
        tier_hits: tally.tier_hits(),
        hits: tally.hits() + tally.absent(),
        loads: tally.loads(),
    };
    assert_eq!(cost, expected);
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) trips: u64,
    pub(super) keys: u64,
    pub(super) tier_hits: u64,
    pub(super) hits: u64,
    pub(super) loads: u64,
}

/// The row that [`Shelf::of`] made.
pub(super) fn text(id: u64) -> Option<String> {
    Some(format!("row {id}"))
}

/// The text of an answer.
pub(super) fn said(answer: Option<Arc<Text>>) -> Option<String> {
    answer.map(|text| text.0.clone())
}

/// The keys and texts of a bulk read, as they were asked for.
pub(super) fn all(batch: &Batch<u64, Arc<Text>>) -> Vec<(u64, Option<String>)> {
    let pair = |(id, text): (&u64, Option<&Arc<Text>>)| (*id, text.map(|text| text.0.clone()));
    batch.iter().map(pair).collect()
}

/// What [`all`] says if every row is as [`Shelf::of`] made it.
pub(super) fn rows(ids: impl IntoIterator<Item = u64>) -> Vec<(u64, Option<String>)> {
    ids.into_iter().map(|id| (id, text(id))).collect()
}

/// Lets everything that can run do so, without moving the clock.
pub(super) async fn quiet() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
