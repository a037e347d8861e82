//! Threads that meet: nothing old enters, nothing stays behind.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use larder_core::{Recall, Scopes as _};
use larder_tiers::{Tiers, TiersConfig};

use super::support::{ScopeExt as _, keys, number, value};

/// A row, and which version of it the last flush has made known.
#[derive(Default)]
struct Row {
    version: AtomicU64,
    flushed: AtomicU64,
}

#[test]
fn no_value_from_before_a_drop_is_ever_found_after_it() {
    const KEYS: [&str; 3] = ["a", "b", "c"];
    let tiers = Tiers::default();
    let scope = tiers.request();
    let rows: [Row; 3] = Default::default();
    let over = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    thread::scope(|threads| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                threads.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        for (row, key) in rows.iter().zip(KEYS) {
                            let flushed = row.flushed.load(Ordering::SeqCst);
                            match scope.get(keys(&[key]).get(0)) {
                                Recall::Kept(found) => {
                                    let version = number(&found.unwrap());
                                    assert!(version >= flushed, "{key}: {version} < {flushed}");
                                    hits.fetch_add(1, Ordering::Relaxed);
                                }
                                Recall::Unknown(mark) => {
                                    let read = row.version.load(Ordering::SeqCst);
                                    thread::yield_now();
                                    scope.put(keys(&[key]).get(0), mark, value(read), 8);
                                }
                                Recall::Distrusted => panic!("nothing is distrusted here"),
                            }
                        }
                    }
                })
            })
            .collect();
        let mut round = 0;
        while round < 1_000 || hits.load(Ordering::Relaxed) < 1_000 {
            round += 1;
            for (row, key) in rows.iter().zip(KEYS) {
                row.version.store(round, Ordering::SeqCst);
                scope.forget(&keys(&[key]));
                row.flushed.store(round, Ordering::SeqCst);
            }
            thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    drop(scope);
    assert_eq!(tiers.stats().request.entries, 0);
    assert_eq!(tiers.stats().request.bytes, 0);
}

#[test]
fn nothing_outlives_an_end_that_meets_puts() {
    let tiers = Tiers::default();
    for _ in 0..200 {
        let scope = tiers.request();
        let early = scope.mark("0");
        thread::scope(|threads| {
            for first in [0, 1] {
                let scope = &scope;
                threads.spawn(move || {
                    for key in (first..60).step_by(2) {
                        scope.keep(&key.to_string(), early, key);
                    }
                });
            }
            while tiers.stats().request.entries < 10 {
                thread::yield_now();
            }
            scope.end();
        });
        assert_eq!(tiers.stats().request.entries, 0);
        assert_eq!(tiers.stats().request.bytes, 0);
    }
}

/// Puts, drops and squeezes of the same keys by many threads: every entry is counted in once, and out once.
#[test]
fn the_count_of_bytes_survives_everything_at_once() {
    let tiers = Tiers::new(TiersConfig {
        budget: 64 << 10,
        per_request: 64 << 10,
        ..TiersConfig::default()
    })
    .unwrap();
    let scopes = [tiers.request(), tiers.request(), tiers.deploy()];
    thread::scope(|threads| {
        for seed in 0..4 {
            let scopes = &scopes;
            threads.spawn(move || {
                let mut random = Xorshift(seed + 1);
                for _ in 0..4_000 {
                    let scope = &scopes[random.below(3)];
                    let key = keys(&[&random.below(40).to_string()]);
                    match scope.get(key.get(0)) {
                        Recall::Unknown(mark) => {
                            let bytes = random.below(6_000);
                            scope.put(key.get(0), mark, value(0), bytes);
                        }
                        _ if random.below(4) == 0 => scope.forget(&key),
                        _ => {}
                    }
                }
            });
        }
    });
    let stats = tiers.stats();
    assert!(stats.request.bytes + stats.deploy.bytes <= stats.budget);
    assert!(stats.deploy.evicted > 0);
    drop(scopes);
    let stats = tiers.stats();
    assert_eq!((stats.request.entries, stats.deploy.entries), (0, 0));
    assert_eq!((stats.request.bytes, stats.deploy.bytes), (0, 0));
}

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
