//! What a read or write costs on larder's own paths, one by one: `cargo bench --bench hot_path`.
//!
//! Times depend on the machine, so nothing here passes or fails. How close the memcached client is to the socket's
//! limit, and how it stands beside other clients, is what `benches/vs` measures.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use larder_backends::memcached::{Memcached, MemcachedConfig};
use larder_backends::{Memory, MemoryConfig};
use larder_core::{
    Backend, BackendExt as _, Cache, Dataset, Fill, FillOutcome, FlushOn, GetOptions, Keys,
    Lifetime, Lookup, NoTier, Plain, Prefix, Rt, Source, WriteOptions,
};
use larder_harness::server::{Listen, MemcachedServer};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// Sizes of batches.
const BATCHES: [u64; 3] = [100, 1_000, 5_000];

/// Bytes of a stored value, and of a user.
const VALUE: usize = 500;

/// What accessors ask for on a miss.
const LEASE: Duration = Duration::from_secs(10);

criterion_group!(benches, keys, memory, memcached, at_once, singles);
criterion_main!(benches);

fn keys(c: &mut Criterion) {
    let prefix = Prefix::new("git-3f2a91c").unwrap();
    let mut group = c.benchmark_group("keys");
    group.bench_function("integer", |b| {
        b.iter(|| {
            let mut keys = Keys::new();
            keys.push(prefix, "message", black_box(&1_234_567_u64))
                .unwrap();
            keys
        });
    });
    group.bench_function("integer and text", |b| {
        b.iter(|| {
            let mut keys = Keys::new();
            keys.push(prefix, "topic", black_box(&(7_u32, "weekly meeting")))
                .unwrap();
            keys
        });
    });
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("1000 integers", |b| {
        b.iter(|| {
            let mut keys = Keys::with_capacity(1_000);
            for id in 0..1_000_u64 {
                keys.push(prefix, "message", black_box(&id)).unwrap();
            }
            keys
        });
    });
    group.finish();
}

/// Accessors on the memory store: all that a read costs but the network.
fn memory(c: &mut Criterion) {
    let runtime = runtime();
    let memory = Memory::new(MemoryConfig::default(), Rt::new()).unwrap();
    let cache = runtime.block_on(warm(Arc::new(memory)));
    let mut group = c.benchmark_group("accessor on memory");
    group.bench_function("one hit", |b| {
        b.to_async(&runtime)
            .iter(|| larder_core::get::<UserById>(&cache, black_box(&7)));
    });
    for count in BATCHES {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("hits", count), |b| {
            b.to_async(&runtime)
                .iter(|| larder_core::get_many::<UserById>(&cache, 0..black_box(count)));
        });
    }
    group.finish();
}

/// The client in bulk, and accessors on it.
fn memcached(c: &mut Criterion) {
    let runtime = runtime();
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let backend = client(&runtime, &server);
    let cache = runtime.block_on(warm(Arc::clone(&backend)));
    let options = GetOptions::lease(LEASE);

    let mut group = c.benchmark_group("memcached");
    for count in BATCHES {
        group.throughput(Throughput::Elements(count));
        let keys = raw_keys(count);
        runtime.block_on(fill(&*backend, &keys));
        group.bench_function(BenchmarkId::new("hits", count), |b| {
            b.to_async(&runtime)
                .iter(|| backend.get_many(&keys, &options));
        });
        group.bench_function(BenchmarkId::new("hits by accessor", count), |b| {
            b.to_async(&runtime)
                .iter(|| larder_core::get_many::<UserById>(&cache, 0..black_box(count)));
        });
    }

    let keys = raw_keys(1_000);
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("fills/1000", |b| {
        b.to_async(&runtime).iter_custom(async |calls| {
            let mut took = Duration::ZERO;
            for _ in 0..calls {
                delete(&*backend, &keys).await;
                let fills = leased(&*backend, &keys).await;
                let start = Instant::now();
                let outcomes = backend
                    .fill_many(&keys, fills, &WriteOptions::default())
                    .await;
                took += start.elapsed();
                black_box(outcomes);
            }
            took
        });
    });
    group.bench_function("deletes/1000", |b| {
        b.to_async(&runtime).iter_custom(async |calls| {
            let mut took = Duration::ZERO;
            for _ in 0..calls {
                fill(&*backend, &keys).await;
                let start = Instant::now();
                delete(&*backend, &keys).await;
                took += start.elapsed();
            }
            took
        });
    });
    group.finish();
}

/// A hundred hits that one task wants at once: each on its own, batched, and asked for in bulk.
fn at_once(c: &mut Criterion) {
    let runtime = runtime();
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let cache = runtime.block_on(warm(client(&runtime, &server)));
    let mut group = c.benchmark_group("memcached 100 hits at once");
    group.throughput(Throughput::Elements(100));
    for (name, cache) in [("single", cache.clone()), ("batched", cache.batched())] {
        group.bench_function(name, |b| {
            b.to_async(&runtime)
                .iter(|| on_a_worker(cache.clone(), hundred_by_singles));
        });
    }
    group.bench_function("bulk", |b| {
        b.to_async(&runtime)
            .iter(|| on_a_worker(cache.clone(), hundred_in_bulk));
    });
    group.finish();
    let mut group = c.benchmark_group("memcached one hit");
    for (name, cache) in [("single", cache.clone()), ("batched", cache.batched())] {
        group.bench_function(name, |b| {
            b.to_async(&runtime)
                .iter(|| larder_core::get::<UserById>(&cache, black_box(&7)));
        });
    }
    group.finish();
}

/// As a service's handlers run.
async fn on_a_worker<F>(cache: Cache<Inventor>, work: impl FnOnce(Cache<Inventor>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let work = tokio::spawn(work(cache));
    work.await.expect("every read is a hit");
}

async fn hundred_by_singles(cache: Cache<Inventor>) {
    let ids: Vec<u64> = (0..100).collect();
    let reads = ids
        .iter()
        .map(|id| larder_core::get::<UserById>(&cache, id));
    black_box(join_all(reads).await);
}

async fn hundred_in_bulk(cache: Cache<Inventor>) {
    let read = larder_core::get_many::<UserById>(&cache, 0..100_u64).await;
    black_box(read.expect("every read is a hit"));
}

/// Single gets by many tasks at once: how well they share a connection.
fn singles(c: &mut Criterion) {
    let runtime = runtime();
    let server = MemcachedServer::start(Listen::Tcp, &[]);
    let backend = client(&runtime, &server);
    runtime.block_on(fill(&*backend, &raw_keys(1_000)));
    let mut group = c.benchmark_group("memcached single gets");
    group.throughput(Throughput::Elements(1));
    for tasks in [1, 8, 64, 512] {
        group.bench_function(BenchmarkId::new("tasks", tasks), |b| {
            b.to_async(&runtime)
                .iter_custom(|gets| shared_out(Arc::clone(&backend), gets, tasks));
        });
    }
    group.finish();
}

/// How long so many gets take that so many tasks make.
async fn shared_out(backend: Arc<dyn Backend>, gets: u64, tasks: u64) -> Duration {
    let mut callers = tokio::task::JoinSet::new();
    let start = Instant::now();
    for task in 0..tasks {
        let backend = Arc::clone(&backend);
        let share = gets / tasks + u64::from(task < gets % tasks);
        callers.spawn(async move {
            let options = GetOptions::lease(LEASE);
            for get in 0..share {
                let key = raw_key((task * 37 + get) % 1_000);
                let found = backend.get(&key, &options).await;
                assert!(matches!(found, Ok(Lookup::Hit { .. })), "{key}: {found:?}");
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("every get is a hit");
    }
    start.elapsed()
}

/// Two workers, as the targets are set for.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be built")
}

/// The server's client, which connects with the runtime's first call.
fn client(runtime: &Runtime, server: &MemcachedServer) -> Arc<dyn Backend> {
    let _context = runtime.enter();
    let config = MemcachedConfig::new([server.address()]);
    Arc::new(Memcached::new(config, Rt::new()).expect("the configuration is right"))
}

fn raw_key(number: u64) -> String {
    format!("bench/value:{number:020}")
}

fn raw_keys(count: u64) -> Keys {
    let mut keys = Keys::new();
    for number in 0..count {
        keys.push_raw(&raw_key(number)).expect("the key is legal");
    }
    keys
}

/// Stores values under all keys.
async fn fill(backend: &dyn Backend, keys: &Keys) {
    delete(backend, keys).await;
    let fills = leased(backend, keys).await;
    for outcome in backend
        .fill_many(keys, fills, &WriteOptions::default())
        .await
    {
        assert_eq!(outcome.expect("the server answers"), FillOutcome::Stored);
    }
}

/// Fills for absent keys.
async fn leased(backend: &dyn Backend, keys: &Keys) -> Vec<Fill> {
    let value = Bytes::from(vec![b'x'; VALUE]);
    let found = backend.get_many(keys, &GetOptions::lease(LEASE)).await;
    let fills = found.into_iter().map(|lookup| match lookup {
        Ok(Lookup::Miss { lease: Some(lease) }) => Fill::new(lease, value.clone()),
        other => panic!("an absent key is answered {other:?}"),
    });
    fills.collect()
}

async fn delete(backend: &dyn Backend, keys: &Keys) {
    for answer in backend.delete_many(keys, &WriteOptions::default()).await {
        answer.expect("the server answers");
    }
}

/// What accessors read: about [`VALUE`] bytes each.
#[derive(Clone, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    email: String,
    about: String,
}

/// Makes users up.
#[derive(Clone)]
struct Inventor;

impl Source for Inventor {
    type Conn = ();
    type Guard = Box<()>;
    type Error = Infallible;

    async fn acquire(&self) -> Result<Box<()>, Infallible> {
        Ok(Box::new(()))
    }
}

enum UserById {}

impl Dataset for UserById {
    const NAME: &'static str = "user_by_id";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(7 * 24 * 3600));
    type Source = Inventor;
    type Key = u64;
    type Value = User;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Infallible;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.by_hand();
    }

    async fn load((): &mut (), ids: Vec<u64>) -> Result<Vec<(u64, User)>, Infallible> {
        let user = |id| User {
            id,
            name: format!("User {id}"),
            email: format!("user{id}@example.com"),
            about: "a".repeat(VALUE - 50),
        };
        Ok(ids.into_iter().map(|id| (id, user(id))).collect())
    }
}

/// A cache whose store has as many users as the largest batch.
async fn warm(backend: Arc<dyn Backend>) -> Cache<Inventor> {
    let cache = Cache::builder(Inventor)
        .backend(backend)
        .prefix(Prefix::new("bench").expect("the prefix is legal"))
        .register::<UserById>()
        .build()
        .await
        .expect("users can be cached");
    let (filling, tally) = cache.tallied();
    let users = 0..BATCHES[BATCHES.len() - 1];
    larder_core::get_many::<UserById>(&filling, users)
        .await
        .expect("nothing fails that is made up");
    tally.settled().await;
    cache
}
