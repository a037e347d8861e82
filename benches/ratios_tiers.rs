//! What the in-process tiers cost beside bare maps and caches, as ratios of one run; and what they take in memory.
//!
//! Larder's lines are whole reads: the data set is found, the wire key is made, the tier asked, the hit counted. What
//! they are compared with has its key's text at hand. Nothing that is timed waits: reads are polled once.
//!
//! `cargo bench --bench ratios_tiers`, and `cargo bench --bench ratios_tiers -- memory` for the memory run.

mod race;
mod tiers;

use std::collections::HashMap;
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use larder_core::{
    Cache, Dataset as _, Kept, Keys, Reader, Recall, Route, Scope, ScopedReader, Scopes,
    SharedValue,
};
use larder_tiers::{Request, Tiers, TiersConfig};
use tokio::runtime::Runtime;

use race::{RUNS, Table};
use tiers::data::{self, Greeting, Made, Template, TemplateById, User, UserById};

/// Entries that each subject has.
const KEYS: usize = 1_000;

/// Keys of the request that is measured as a whole, and its hits.
const OWN: usize = 200;
const HITS: usize = 1_000;

/// What a user takes in memory, about.
const BYTES: usize = 128;

/// Threads that read at once.
const THREADS: usize = 2;

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    if std::env::args().any(|argument| argument == "memory") {
        return tiers::memory::run(&runtime);
    }
    let subjects = Subjects::new(&runtime);
    let own = [(); THREADS].map(|()| subjects.another_request(&runtime));
    println!(
        "{KEYS} entries each, keys of {} bytes\n",
        subjects.texts[0].len()
    );
    let table = Table::new(KEYS);
    table.head();
    subjects.hits(&table);
    subjects.at_once(&own);
    subjects.writes(&table);
    subjects.requests(&runtime);
}

/// Everything that is compared, filled with the same entries.
struct Subjects {
    cache: Cache<Made>,
    tiers: Tiers,
    request: Request<Made>,
    /// In the order in which they are asked for.
    ids: Vec<u64>,
    /// Their wire keys, in that order.
    keys: Keys,
    texts: Vec<String>,
    users: Vec<Arc<User>>,
    moka: moka::sync::Cache<String, Arc<User>>,
    quick: quick_cache::sync::Cache<String, Arc<User>>,
    map: Mutex<HashMap<String, Arc<User>>>,
}

impl Subjects {
    fn new(runtime: &Runtime) -> Self {
        let tiers = Tiers::new(roomy()).expect("a legal configuration");
        let cache = runtime.block_on(data::cache(tiers.clone()));
        let request = Request::begin(&cache);
        let mut ids: Vec<u64> = (0..KEYS as u64).map(|n| 1_000_000 + n).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut ids);
        runtime.block_on(async {
            larder_core::get_many::<UserById>(&request, &ids)
                .await
                .expect("no load fails");
            larder_core::get_many::<TemplateById>(&cache, &ids)
                .await
                .expect("no load fails");
            larder_core::get::<Greeting>(&cache, &())
                .await
                .expect("no load fails");
        });
        let mut keys = Keys::with_capacity(KEYS);
        for id in &ids {
            keys.push(cache.prefix(), UserById::NAME, id)
                .expect("a legal key");
        }
        let texts: Vec<String> = keys.iter().map(|key| key.as_str().to_owned()).collect();
        let users: Vec<Arc<User>> = ids.iter().map(|&id| Arc::new(User::of(id))).collect();
        let subjects = Self {
            moka: moka::sync::Cache::new(10_000),
            quick: quick_cache::sync::Cache::new(10_000),
            map: Mutex::default(),
            cache,
            tiers,
            request,
            ids,
            keys,
            texts,
            users,
        };
        for (text, user) in subjects.texts.iter().zip(&subjects.users) {
            subjects.moka.insert(text.clone(), Arc::clone(user));
            subjects.quick.insert(text.clone(), Arc::clone(user));
            subjects.lock().insert(text.clone(), Arc::clone(user));
        }
        subjects
    }

    /// One that has read the same users.
    fn another_request(&self, runtime: &Runtime) -> Request<Made> {
        let request = Request::begin(&self.cache);
        let read = larder_core::get_many::<UserById>(&request, &self.ids);
        runtime.block_on(read).expect("no load fails");
        request
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<User>>> {
        self.map.lock().expect("nobody panics")
    }

    fn hits(&self, table: &Table) {
        let moka = || self.hit_moka();
        table.race(
            "request-tier hit / bare moka get",
            "1.3",
            || self.hit_request(&self.request),
            moka,
        );
        table.race(
            "request-tier hit / quick_cache get",
            "",
            || self.hit_request(&self.request),
            || self.hit_quick(),
        );
        table.race(
            "request-tier hit / map behind a mutex",
            "",
            || self.hit_request(&self.request),
            || self.hit_map(),
        );
        table.race(
            "deploy-tier hit / bare moka get",
            "1.2",
            || self.hit_deploy(),
            moka,
        );
        let only = OnceLock::from(Arc::new(Template(String::new())));
        table.race(
            "deploy-tier hit without arguments / OnceLock, Arc cloned",
            "25 ns",
            || {
                now(async {
                    for _ in 0..KEYS {
                        black_box(larder_core::get::<Greeting>(&self.cache, black_box(&())).await)
                            .expect("no load");
                    }
                });
            },
            || {
                for _ in 0..KEYS {
                    black_box(black_box(&only).get().map(Arc::clone));
                }
            },
        );
        table.race(
            "bulk of 1,000 request-tier hits, a key / bare moka get",
            "",
            || {
                let read = larder_core::get_many::<UserById>(&self.request, &self.ids);
                black_box(now(read)).expect("no load");
            },
            moka,
        );
    }

    /// The same with several threads at once: all in one request, or each in its own.
    fn at_once(&self, own: &[Request<Made>; THREADS]) {
        const TURNS: usize = 10;
        let on_all = |read: &(dyn Fn(usize) + Sync)| {
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    scope.spawn(move || (0..TURNS).for_each(|_| read(thread)));
                }
            });
        };
        let table = Table::new(TURNS * KEYS);
        let moka = || on_all(&|_| self.hit_moka());
        table.race(
            "two threads, a request each: hit / bare moka get",
            "",
            || on_all(&|thread| self.hit_request(&own[thread])),
            moka,
        );
        table.race(
            "two threads, one request: hit / bare moka get",
            "",
            || on_all(&|_| self.hit_request(&self.request)),
            moka,
        );
        table.race(
            "two threads, deploy tier: hit / bare moka get",
            "",
            || on_all(&|_| self.hit_deploy()),
            moka,
        );
        table.race(
            "two threads, one request: hit / map behind a mutex",
            "",
            || on_all(&|_| self.hit_request(&self.request)),
            || on_all(&|_| self.hit_map()),
        );
    }

    fn writes(&self, table: &Table) {
        table.race(
            "ask and put / moka get and insert",
            "",
            || self.filled(KEYS),
            || self.filled_moka(KEYS),
        );
        let one_by_one: Vec<Keys> = (0..OWN).map(|n| self.keys.select([n])).collect();
        let filled = (0..RUNS).map(|_| (self.filled(OWN), self.filled_moka(OWN)));
        let (mut ours, mut beside): (Vec<_>, Vec<_>) = filled.unzip();
        Table::new(OWN).race(
            "forget / moka invalidate",
            "",
            || {
                let scope = ours.pop().expect("one for each run");
                one_by_one.iter().for_each(|key| scope.forget(key));
                scope
            },
            || {
                let moka = beside.pop().expect("one for each run");
                self.texts[..OWN]
                    .iter()
                    .for_each(|text| moka.invalidate(text));
                moka
            },
        );
    }

    /// Requests from their beginning to their end.
    fn requests(&self, runtime: &Runtime) {
        let table = Table::new(KEYS);
        table.alone("request that is never used", "50 ns", || {
            for _ in 0..KEYS {
                drop(black_box(Request::begin(&self.cache)));
            }
        });
        let table = Table::new(1);
        let mut filled: Vec<_> = (0..RUNS).map(|_| self.filled(OWN)).collect();
        table.alone("end of a request with 200 entries, in all", "", || {
            drop(filled.pop().expect("one for each run"));
        });
        let mut filled: Vec<_> = (0..RUNS).map(|_| self.filled(OWN)).collect();
        let entered = runtime.enter();
        table.alone(
            "end of a request with 200 entries, for who ends it",
            "",
            || {
                drop(filled.pop().expect("one for each run"));
            },
        );
        drop(entered);
        table.race(
            "request of 200 puts and 1,000 hits / moka of its own",
            "",
            || self.whole_request(),
            || {
                let moka = self.filled_moka(OWN);
                for n in 0..HITS {
                    black_box(moka.get(self.texts[n % OWN].as_str()));
                }
            },
        );
        table.race(
            "request of 200 puts and 1,000 hits / map of its own",
            "",
            || self.whole_request(),
            || {
                let map = Mutex::new(HashMap::new());
                let lock = || map.lock().expect("nobody panics");
                for (text, user) in self.texts.iter().zip(&self.users).take(OWN) {
                    lock().insert(text.clone(), Arc::clone(user));
                }
                for n in 0..HITS {
                    black_box(lock().get(&self.texts[n % OWN]).map(Arc::clone));
                }
            },
        );
    }

    /// The scope of a request that has missed and read so many keys.
    fn filled(&self, count: usize) -> Arc<dyn Scope> {
        let scope = self.tiers.request();
        for (key, user) in self.keys.iter().zip(&self.users).take(count) {
            let mark = match scope.get(key) {
                Recall::Unknown(mark) => mark,
                recall => panic!("{key:?} is new: {recall:?}"),
            };
            let shared: SharedValue = Arc::<User>::clone(user);
            assert_eq!(scope.put(key, mark, Some(shared), BYTES), Kept::Kept);
        }
        scope
    }

    fn filled_moka(&self, count: usize) -> moka::sync::Cache<String, Arc<User>> {
        let moka = moka::sync::Cache::new(10_000);
        for (text, user) in self.texts.iter().zip(&self.users).take(count) {
            black_box(moka.get(text.as_str()));
            moka.insert(text.clone(), Arc::clone(user));
        }
        moka
    }

    /// A request that reads 200 users and mentions each five times; its entries are gone when it returns.
    fn whole_request(&self) {
        let visit = Visit(self.cache.within(self.filled(OWN)));
        now(async {
            for n in 0..HITS {
                let read = larder_core::get::<UserById>(&visit, &self.ids[n % OWN]);
                black_box(read.await).expect("no load");
            }
        });
    }

    fn hit_request(&self, request: &Request<Made>) {
        now(async {
            for id in &self.ids {
                black_box(larder_core::get::<UserById>(request, id).await).expect("no load");
            }
        });
    }

    fn hit_deploy(&self) {
        now(async {
            for id in &self.ids {
                black_box(larder_core::get::<TemplateById>(&self.cache, id).await)
                    .expect("no load");
            }
        });
    }

    fn hit_moka(&self) {
        for text in &self.texts {
            black_box(self.moka.get(text.as_str()));
        }
    }

    fn hit_quick(&self) {
        for text in &self.texts {
            black_box(self.quick.get(text.as_str()));
        }
    }

    fn hit_map(&self) {
        for text in &self.texts {
            black_box(self.lock().get(text).map(Arc::clone));
        }
    }
}

/// Tiers from which nothing goes before its time, while the others may keep what they like.
fn roomy() -> TiersConfig {
    TiersConfig {
        budget: 1 << 30,
        per_request: 1 << 30,
        max_age: Duration::from_secs(3600),
    }
}

/// A reader whose scope is made by hand.
struct Visit(Cache<Made>);

impl<'a> Reader<'a, Made> for &'a Visit {
    fn route(self) -> Route<'a, Made> {
        Route::Cached(&self.0)
    }
}

impl<'a> ScopedReader<'a, Made> for &'a Visit {}

/// What this answers without waiting.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a hit waits for nothing"),
    }
}
