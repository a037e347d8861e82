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

use larder_core::{
    Cache, Dataset as _, Kept, Key, Keys, Mark, Reader, Recall, Route, Scope, ScopedReader, Scopes,
    SharedValue,
};
use larder_tiers::{Request, Tiers};
use tokio::runtime::Runtime;

use race::Table;
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
    let _entered = runtime.enter();
    let subjects = Subjects::new(&runtime);
    println!(
        "{KEYS} entries each, keys of {} bytes\n",
        subjects.texts[0].len()
    );
    let table = Table::new(KEYS);
    table.head();
    subjects.hits(&table);
    subjects.at_once();
    subjects.writes(&table);
    subjects.requests();
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
        let tiers = Tiers::default();
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<User>>> {
        self.map.lock().expect("nobody panics")
    }

    fn hits(&self, table: &Table) {
        let moka = || self.hit_moka();
        table.race(
            "request-tier hit / bare moka get",
            "1.3",
            || self.hit_request(),
            moka,
        );
        table.race(
            "request-tier hit / quick_cache get",
            "",
            || self.hit_request(),
            || self.hit_quick(),
        );
        table.race(
            "request-tier hit / map behind a mutex",
            "",
            || self.hit_request(),
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

    /// The same with several threads at once, on the same entries.
    fn at_once(&self) {
        const TURNS: usize = 20;
        let on_all = |read: &(dyn Fn() + Sync)| {
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| (0..TURNS).for_each(|_| read()));
                }
            });
        };
        let table = Table::new(TURNS * KEYS);
        table.race(
            "request-tier hit / bare moka get, two threads at once",
            "",
            || on_all(&|| self.hit_request()),
            || on_all(&|| self.hit_moka()),
        );
        table.race(
            "deploy-tier hit / bare moka get, two threads at once",
            "",
            || on_all(&|| self.hit_deploy()),
            || on_all(&|| self.hit_moka()),
        );
    }

    fn writes(&self, table: &Table) {
        let scope = self.tiers.request();
        let marks: Vec<Mark> = self.keys.iter().map(|key| mark(&*scope, key)).collect();
        table.race(
            "put into a request / bare moka insert",
            "",
            || {
                for ((key, user), mark) in self.keys.iter().zip(&self.users).zip(&marks) {
                    put(&*scope, key, *mark, user);
                }
            },
            || {
                for (text, user) in self.texts.iter().zip(&self.users) {
                    self.moka.insert(text.clone(), Arc::clone(user));
                }
            },
        );
        let one_by_one: Vec<Keys> = (0..KEYS).map(|n| self.keys.select([n])).collect();
        table.race(
            "ask, put and forget / bare moka get, insert, invalidate",
            "",
            || {
                for (keys, user) in one_by_one.iter().zip(&self.users) {
                    scope.forget(keys);
                    let key = keys.get(0);
                    put(&*scope, key, mark(&*scope, key), user);
                }
            },
            || {
                for (text, user) in self.texts.iter().zip(&self.users) {
                    self.moka.invalidate(text);
                    black_box(self.moka.get(text));
                    self.moka.insert(text.clone(), Arc::clone(user));
                }
            },
        );
    }

    /// Requests from their beginning to their end.
    fn requests(&self) {
        let table = Table::new(100);
        table.alone("request that is never used", "50 ns", || {
            for _ in 0..100 {
                drop(black_box(Request::begin(&self.cache)));
            }
        });
        let table = Table::new(1);
        table.race(
            "request of 200 puts and 1,000 hits / moka of its own",
            "",
            || self.request(),
            || {
                let moka = moka::sync::Cache::new(10_000);
                for (text, user) in self.own() {
                    moka.insert(text.clone(), Arc::clone(user));
                }
                for n in 0..HITS {
                    black_box(moka.get(self.texts[n % OWN].as_str()));
                }
            },
        );
        table.race(
            "request of 200 puts and 1,000 hits / map of its own",
            "",
            || self.request(),
            || {
                let map = Mutex::new(HashMap::new());
                for (text, user) in self.own() {
                    map.lock()
                        .expect("nobody panics")
                        .insert(text.clone(), Arc::clone(user));
                }
                for n in 0..HITS {
                    black_box(
                        map.lock()
                            .expect("nobody panics")
                            .get(&self.texts[n % OWN])
                            .map(Arc::clone),
                    );
                }
            },
        );
    }

    fn own(&self) -> impl Iterator<Item = (&String, &Arc<User>)> {
        self.texts.iter().zip(&self.users).take(OWN)
    }

    /// A request that reads 200 users and mentions each five times.
    fn request(&self) {
        let scope = self.tiers.request();
        for (key, user) in self.keys.iter().zip(&self.users).take(OWN) {
            put(&*scope, key, mark(&*scope, key), user);
        }
        let visit = Visit(self.cache.within(scope));
        now(async {
            for n in 0..HITS {
                let read = larder_core::get::<UserById>(&visit, &self.ids[n % OWN]);
                black_box(read.await).expect("no load");
            }
        });
    }

    fn hit_request(&self) {
        now(async {
            for id in &self.ids {
                black_box(larder_core::get::<UserById>(&self.request, id).await).expect("no load");
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

/// What a scope answers for a key that it hasn't.
fn mark(scope: &dyn Scope, key: Key<'_>) -> Mark {
    match scope.get(key) {
        Recall::Unknown(mark) => mark,
        kept => panic!("{key:?} is there: {kept:?}"),
    }
}

fn put(scope: &dyn Scope, key: Key<'_>, mark: Mark, user: &Arc<User>) {
    let shared: SharedValue = Arc::<User>::clone(user);
    let kept = scope.put(key, mark, Some(shared), BYTES);
    assert_eq!(kept, Kept::Kept);
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
