//! The deploy tier builds a value once, however many ask for it, and keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_core::{
    Backend, Dataset, DeployTier, Form, Lifetime, Plain, Rows, Rt, Unstored, get, get_many,
};
use larder_tiers::{Request, Tiers};
use tokio::task::JoinSet;

use super::limits::bounds;
use super::stage::{
    Chart, Map, Text, all, builder, built, cache, cache_on, counting, quiet, rows, said, text,
};
use crate::read::gate::Gate;
use crate::read::shelf::{Broken, Conn, Shelf, memory};

/// How often each key was loaded.
fn loads(shelf: &Shelf) -> BTreeMap<u64, usize> {
    let mut loads = BTreeMap::new();
    for id in shelf.asked().into_iter().flatten() {
        *loads.entry(id).or_default() += 1;
    }
    loads
}

/// A hundred readers, before the build, during it and after it, get one value.
async fn check_herd<D>()
where
    D: Dataset<Source = Shelf, Key = u64, Value = Text, Tier = DeployTier, Error = Broken>,
{
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let herd = |count: usize| {
        let reader = |_| {
            let cache = cache.clone();
            tokio::spawn(async move { get::<D>(&cache, &1).await.unwrap().unwrap() })
        };
        (0..count).map(reader).collect::<Vec<_>>()
    };
    let mut readers = herd(50);
    shelf.held().await;
    quiet().await;
    readers.extend(herd(25));
    quiet().await;
    shelf.let_go();
    readers.extend(herd(25));
    let first = get::<D>(&cache, &1).await.unwrap().unwrap();
    assert_eq!(first.0, "row 1");
    for reader in readers {
        let shared = reader.await.unwrap();
        assert!(Arc::ptr_eq(&first, &shared));
    }
    let (later, tally) = counting(&cache);
    let later = get::<D>(&later, &1).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &later));
    assert_eq!((tally.trips(), tally.tier_hits(), tally.keys()), (0, 1, 1));
    assert_eq!(shelf.asked(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_readers_share_one_build() {
    check_herd::<Map>().await;
    check_herd::<Chart>().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_of_many_overlapping_bulk_reads_is_built_once() {
    for hold in [true, false] {
        let shelf = Shelf::of(0..40);
        let cache = cache(&shelf).await;
        if hold {
            shelf.hold();
        }
        let mut readers = JoinSet::new();
        for first in 0..30 {
            let cache = cache.clone();
            readers.spawn(async move {
                let ids = first..first + 10;
                let batch = get_many::<Map>(&cache, ids.clone()).await.unwrap();
                assert_eq!(all(&batch), rows(ids));
            });
        }
        if hold {
            shelf.held().await;
            quiet().await;
            shelf.let_go();
        }
        readers.join_all().await;
        assert_eq!(loads(&shelf), (0..39).map(|id| (id, 1)).collect());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_key_is_built_once_whatever_the_timing() {
    for round in 0..100 {
        let shelf = Shelf::of(0..12);
        let config = larder_backends::MemoryConfig::default();
        let store = larder_backends::Memory::new(config, Rt::new()).unwrap();
        let gate = Gate::new(Arc::new(store));
        gate.dawdle(3);
        gate.set_down(round % 3 == 0);
        let cache = builder(&shelf, gate).rt(Rt::new());
        let cache = built(cache.tiers(Tiers::default())).await;
        let mut readers = JoinSet::new();
        for reader in 0..16 {
            let cache = cache.clone();
            readers.spawn(async move {
                let ids: Vec<u64> = (0..4).map(|_| fastrand::u64(0..12)).collect();
                let batch = match reader % 2 {
                    0 => get_many::<Map>(&cache, &ids).await.unwrap(),
                    _ => get_many::<Chart>(&cache, &ids).await.unwrap(),
                };
                assert_eq!(all(&batch), rows(ids));
            });
        }
        readers.join_all().await;
        let loads = loads(&shelf);
        assert!(
            loads.values().all(|times| *times <= 2),
            "once for each data set: {loads:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_leaves_does_not_end_the_build() {
    let shelf = Shelf::of([1, 2]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let request = Request::begin(&cache);
    let reader = tokio::spawn(async move { get_many::<Map>(&request, [1, 2]).await.is_ok() });
    shelf.held().await;
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    shelf.let_go();
    quiet().await;
    for id in [1, 2] {
        assert_eq!(said(get::<Map>(&cache, &id).await.unwrap()), text(id));
    }
    assert_eq!(shelf.asked(), [[1, 2]]);
}

/// A bypassed reader shares no load that is running: it waits, looks again, and finds what was built.
#[tokio::test(start_paused = true)]
async fn a_build_that_waited_for_another_takes_what_that_one_built() {
    let shelf = Shelf::of([1, 2]);
    let cache = cache(&shelf).await;
    shelf.hold();
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { all(&get_many::<Map>(&cache, [1]).await.unwrap()) }
    });
    shelf.held().await;
    cache.bypass(true);
    let (counted, tally) = counting(&cache);
    let second = tokio::spawn(async move {
        let both = all(&get_many::<Map>(&counted, [1, 2]).await.unwrap());
        let one = all(&get_many::<Map>(&counted, [1]).await.unwrap());
        (both, one)
    });
    quiet().await;
    shelf.let_go();
    assert_eq!(first.await.unwrap(), rows([1]));
    assert_eq!(second.await.unwrap(), (rows([1, 2]), rows([1])));
    assert_eq!(shelf.asked(), [[1], [2]]);
    assert_eq!(
        (tally.loads(), tally.loaded()),
        (1, 1),
        "of the second reader"
    );
    let map = &cache.stats().accessors[0];
    assert_eq!((map.loads, map.loaded), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_absent_row_is_not_remembered() {
    let shelf = Shelf::of([1]);
    let cache = cache(&shelf).await;
    for _ in 0..2 {
        let batch = get_many::<Map>(&cache, [1, 9]).await.unwrap();
        assert_eq!(all(&batch), [(1, text(1)), (9, None)]);
    }
    let none = get::<Chart>(&cache, &9).await.unwrap();
    assert_eq!(none, None);
    shelf.write(9, "row 9");
    assert_eq!(said(get::<Map>(&cache, &9).await.unwrap()), text(9));
    assert_eq!(said(get::<Chart>(&cache, &9).await.unwrap()), text(9));
    assert_eq!(
        shelf.asked(),
        [vec![1, 9], vec![9], vec![9], vec![9], vec![9]]
    );
}

/// One value of the whole deployment, and how it is stored.
struct Whole<F>(F);

impl<F: Form<Text> + Send + Sync> Dataset for Whole<F> {
    const NAME: &'static str = "whole";
    const LIFETIME: Lifetime = Lifetime::Immutable;
    type Source = Shelf;
    type Key = ();
    type Value = Text;
    type Form = F;
    type Tier = DeployTier;
    type Error = Broken;

    async fn load(conn: &mut Conn, _: Vec<()>) -> Result<Rows<Self>, Broken> {
        let rows = conn.0.load(&[0]).await?;
        Ok(rows.into_iter().map(|(_, row)| ((), Text(row))).collect())
    }
}

async fn check_whole<F: Form<Text> + Send + Sync>() {
    let shelf = Shelf::of([0]);
    let cache = cache(&shelf).await;
    assert_eq!(cache.stats().tiers.unwrap().deploy.bytes, 0);
    let mut readers = JoinSet::new();
    for _ in 0..100 {
        let cache = cache.clone();
        readers.spawn(async move { get::<Whole<F>>(&cache, &()).await.unwrap().unwrap() });
    }
    let shares = readers.join_all().await;
    let (request, tally) = counting(&cache);
    let again = get::<Whole<F>>(&request, &()).await.unwrap().unwrap();
    assert_eq!(again.0, "row 0");
    assert!(shares.iter().all(|share| Arc::ptr_eq(share, &again)));
    let batch = get_many::<Whole<F>>(&request, [(), ()]).await.unwrap();
    assert_eq!(batch.len(), 2);
    assert!(Arc::ptr_eq(batch.get(&()).unwrap(), &again));
    assert_eq!((tally.trips(), tally.tier_hits(), tally.keys()), (0, 2, 2));
    assert_eq!(shelf.loads(), 1);
    let tiers = cache.stats().tiers.unwrap();
    assert_eq!(tiers.deploy.entries, 1);
    // In the handle, where it takes what it weighs and nothing to find it.
    assert!((20..100).contains(&tiers.deploy.bytes), "{tiers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_data_set_without_arguments_has_one_value_for_all() {
    check_whole::<Unstored>().await;
    check_whole::<Plain>().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_without_arguments_is_served_however_large_it_is() {
    // What is too large for a handle is kept like other entries, and what is too large for these isn't kept.
    for (bytes, loads, refused) in [(10_000, 1, 0), (60_000, 3, 3)] {
        let shelf = Shelf::default();
        shelf.write(0, &"x".repeat(bytes));
        let tiers = Tiers::new(bounds(64 * 1_024, 1_024)).unwrap();
        let cache = built(builder(&shelf, memory()).tiers(tiers)).await;
        for _ in 0..3 {
            let whole = get::<Whole<Unstored>>(&cache, &()).await.unwrap();
            assert_eq!(whole.unwrap().0.len(), bytes);
        }
        assert_eq!(shelf.loads(), loads);
        assert_eq!(cache.stats().accessors[0].tier_refused, refused);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_deploy_tier_has_ends_with_its_cache() {
    let tiers = Tiers::default();
    let shelf = Shelf::of(0..5);
    let cache = built(builder(&shelf, memory()).tiers(tiers.clone())).await;
    get_many::<Map>(&cache, 1..5).await.unwrap();
    get::<Whole<Unstored>>(&cache, &()).await.unwrap();
    let deploy = tiers.stats().deploy;
    assert!(deploy.entries >= 4 && deploy.bytes > 0, "{deploy:?}");
    drop(cache);
    quiet().await;
    let deploy = tiers.stats().deploy;
    assert_eq!((deploy.entries, deploy.bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn caches_with_prefixes_of_their_own_share_tiers_but_no_values() {
    let (shelf, other) = (Shelf::of([0, 1]), Shelf::default());
    other.write(0, "another whole");
    other.write(1, "another map");
    let tiers = Tiers::default();
    let store = memory();
    let prefix = |name| larder_core::Prefix::new(name).unwrap();
    let cache = |shelf, name| {
        let builder = builder(shelf, Arc::clone(&store)).prefix(prefix(name));
        built(builder.tiers(tiers.clone()))
    };
    let (old, new) = (cache(&shelf, "old").await, cache(&other, "new").await);
    for _ in 0..2 {
        for (cache, map, whole) in [
            (&old, "row 1", "row 0"),
            (&new, "another map", "another whole"),
        ] {
            let of_map = get::<Map>(cache, &1).await.unwrap();
            assert_eq!(said(of_map).as_deref(), Some(map));
            let of_chart = get::<Chart>(cache, &1).await.unwrap();
            assert_eq!(said(of_chart).as_deref(), Some(map));
            let of_whole = get::<Whole<Unstored>>(cache, &()).await.unwrap();
            assert_eq!(said(of_whole).as_deref(), Some(whole));
        }
    }
    assert_eq!((shelf.loads(), other.loads()), (3, 3));
}

/// A pool that gives no leases one can trust: each reader that misses may fill.
#[derive(Debug)]
struct ViaProxy(Arc<dyn Backend>);

#[tokio::test(start_paused = true)]
async fn without_leases_too_a_value_is_built_once() {
    let shelf = Shelf::of([1]);
    let gate = Gate::new(Arc::new(ViaProxy(memory())));
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    gate.answered_gets().close();
    let readers: Vec<_> = (0..5)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { said(get::<Chart>(&cache, &1).await.unwrap()) })
        })
        .collect();
    for _ in &readers {
        gate.answered_gets().arrived().await;
    }
    shelf.hold();
    gate.answered_gets().open();
    shelf.held().await;
    quiet().await;
    shelf.let_go();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), text(1));
    }
    assert_eq!(shelf.asked(), [[1]]);
}

mod via_proxy {
    use std::fmt;
    use std::time::Duration;

    use larder_core::{
        BackendStats, Fill, FillOutcome, Found, GetOptions, Keys, Lease, Pool, Result, ServerCheck,
        Set, WriteOptions,
    };

    use super::{Backend, ViaProxy};

    impl fmt::Display for ViaProxy {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} via a proxy", self.0)
        }
    }

    #[deny(clippy::missing_trait_methods)]
    #[async_trait::async_trait]
    impl Backend for ViaProxy {
        async fn get_each(&self, keys: &Keys, options: &GetOptions, found: Found<'_>) {
            self.0.get_each(keys, options, found).await;
        }

        async fn fill_many(
            &self,
            keys: &Keys,
            fills: Vec<Fill>,
            options: &WriteOptions,
        ) -> Vec<Result<FillOutcome>> {
            self.0.fill_many(keys, fills, options).await
        }

        async fn release_many(
            &self,
            keys: &Keys,
            leases: Vec<Lease>,
            options: &WriteOptions,
        ) -> Vec<Result<()>> {
            self.0.release_many(keys, leases, options).await
        }

        async fn delete_many(&self, keys: &Keys, options: &WriteOptions) -> Vec<Result<()>> {
            self.0.delete_many(keys, options).await
        }

        async fn set_immutable_many(
            &self,
            keys: &Keys,
            sets: Vec<Set>,
            options: &WriteOptions,
        ) -> Vec<Result<()>> {
            self.0.set_immutable_many(keys, sets, options).await
        }

        async fn start(&self) -> Result<()> {
            self.0.start().await
        }

        async fn check(&self) -> Vec<ServerCheck> {
            self.0.check().await
        }

        async fn close(&self, deadline: Duration) {
            self.0.close(deadline).await;
        }

        fn server_of(&self, _: larder_core::Key<'_>) -> usize {
            0
        }

        fn pool(&self) -> Pool {
            let mut pool = self.0.pool();
            pool.leases = false;
            pool
        }

        fn stats(&self) -> BackendStats {
            self.0.stats()
        }
    }
}
