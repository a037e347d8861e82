//! Deploy-immutable values that are also stored: built by one process of all that share the store.

use std::sync::Arc;

use bytes::Bytes;
use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_core::{Backend, Cache, Keys, Rt, Set, WriteOptions, get, get_many, prime};
use larder_harness::server::{Listen, MemcachedServer};
use larder_tiers::Tiers;

use super::stage::{
    Chart, Map, Text, all, builder, built, cache_on, counting, quiet, rows, said, text,
};
use crate::read::gate::Gate;
use crate::read::shelf::{Shelf, memory};

#[tokio::test(start_paused = true)]
async fn the_second_process_takes_what_the_first_one_built() {
    let store = memory();
    let (here, there) = (Shelf::of([1, 2]), Shelf::of([1, 2, 3]));
    let first = cache_on(&here, Arc::clone(&store)).await;
    get_many::<Chart>(&first, [1, 2]).await.unwrap();
    quiet().await;
    let second = cache_on(&there, store).await;
    let (counted, tally) = counting(&second);
    let batch = get_many::<Chart>(&counted, [1, 2, 3]).await.unwrap();
    assert_eq!(all(&batch), rows([1, 2, 3]));
    assert_eq!(there.asked(), [[3]]);
    tally.settled().await;
    assert_eq!((tally.hits(), tally.trips()), (2, 2));
    get_many::<Chart>(&counted, [1, 2, 3]).await.unwrap();
    assert_eq!((tally.tier_hits(), tally.trips()), (3, 2));
}

#[tokio::test]
async fn through_memcached_too() {
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let process = async |shelf: &Shelf| {
        let config = MemcachedConfig::new([server.address()]);
        let client = Memcached::new(config, Rt::new()).unwrap();
        let builder = builder(shelf, Arc::new(client)).rt(Rt::new());
        built(builder.tiers(Tiers::default())).await
    };
    let (here, there) = (Shelf::of([1]), Shelf::of([1]));
    let (counted, tally) = counting(&process(&here).await);
    get::<Chart>(&counted, &1).await.unwrap();
    tally.settled().await;
    let second = process(&there).await;
    assert_eq!(said(get::<Chart>(&second, &1).await.unwrap()), text(1));
    assert_eq!((here.loads(), there.loads()), (1, 0));
}

/// What is built by every process costs the store nothing.
#[tokio::test(start_paused = true)]
async fn what_is_not_stored_never_reaches_the_store() {
    let shelf = Shelf::of([1]);
    let gate = Gate::new(memory());
    gate.set_down(true);
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    let (counted, tally) = counting(&cache);
    get::<Map>(&counted, &1).await.unwrap();
    get::<Map>(&counted, &1).await.unwrap();
    tally.settled().await;
    assert_eq!((tally.trips(), tally.loads()), (0, 1));
    assert_eq!(cache.stats().accessors[0].failed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_entry_is_built_anew_and_replaced() {
    let store = memory();
    let (here, there) = (Shelf::of([1]), Shelf::of([1]));
    let first = cache_on(&here, Arc::clone(&store)).await;
    let mut keys = Keys::new();
    keys.push(first.prefix(), "chart", &1_u64).unwrap();
    let damaged = vec![Set::new(Bytes::from_static(b"no chart at all"))];
    let options = WriteOptions::default();
    for answer in store.set_immutable_many(&keys, damaged, &options).await {
        answer.unwrap();
    }
    assert_eq!(said(get::<Chart>(&first, &1).await.unwrap()), text(1));
    assert_eq!(here.loads(), 1);
    quiet().await;
    let second = cache_on(&there, store).await;
    assert_eq!(said(get::<Chart>(&second, &1).await.unwrap()), text(1));
    assert_eq!(there.loads(), 0, "the entry was replaced");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_lost_hurts_nobody_who_keeps_the_value() {
    let store = memory();
    let shelf = Shelf::of([1]);
    let cache = cache_on(&shelf, Arc::clone(&store)).await;
    get::<Chart>(&cache, &1).await.unwrap();
    quiet().await;
    let mut keys = Keys::new();
    keys.push(cache.prefix(), "chart", &1_u64).unwrap();
    store.delete_many(&keys, &WriteOptions::default()).await;
    assert_eq!(said(get::<Chart>(&cache, &1).await.unwrap()), text(1));
    assert_eq!(shelf.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_costs_a_build() {
    let shelf = Shelf::of([1, 2]);
    let gate = Gate::new(memory());
    let cache = cache_on(&shelf, Arc::clone(&gate) as _).await;
    gate.set_down(true);
    for _ in 0..2 {
        let batch = get_many::<Chart>(&cache, [1, 2]).await.unwrap();
        assert_eq!(all(&batch), rows([1, 2]));
    }
    assert_eq!(shelf.asked(), [[1, 2]]);
}

/// Values in hand go into the store, and from there into the tier of whoever reads them.
#[tokio::test(start_paused = true)]
async fn what_was_primed_is_not_built() {
    let shelf = Shelf::default();
    let cache = cache_on(&shelf, memory()).await;
    prime::<Chart>(&cache, [(1, Text("row 1".into()))])
        .await
        .unwrap();
    let (counted, tally) = counting(&cache);
    for _ in 0..2 {
        assert_eq!(said(get::<Chart>(&counted, &1).await.unwrap()), text(1));
    }
    assert_eq!((tally.hits(), tally.tier_hits()), (1, 1));
    assert_eq!(shelf.loads(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_prefix_is_another_deployment() {
    let store = memory();
    let (old, new) = (Shelf::of([1]), Shelf::default());
    new.write(1, "of the new code");
    let process = |shelf, prefix| -> std::pin::Pin<Box<dyn Future<Output = Cache<Shelf>>>> {
        let prefix = larder_core::Prefix::new(prefix).unwrap();
        let builder = builder(shelf, Arc::clone(&store) as Arc<dyn Backend>).prefix(prefix);
        Box::pin(built(builder.tiers(Tiers::default())))
    };
    let (before, after) = (process(&old, "v1").await, process(&new, "v2").await);
    assert_eq!(said(get::<Chart>(&before, &1).await.unwrap()), text(1));
    quiet().await;
    let chart = said(get::<Chart>(&after, &1).await.unwrap());
    assert_eq!(chart.as_deref(), Some("of the new code"));
}
