//! When a build that failed may be tried again.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::Instant;

/// The pause after the first failure; it doubles with each, up to the longest.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

/// Keys whose failures are remembered. The failures of more at once aren't, so that keys which somebody makes up can't
/// fill the memory.
const MOST: usize = 1_000;

/// The builds that failed, and when each may be tried again. What they failed with isn't kept.
pub(crate) struct Backoff<K> {
    failures: Mutex<HashMap<K, Failures, foldhash::fast::RandomState>>,
}

#[derive(Clone, Copy)]
struct Failures {
    pause: Duration,
    until: Instant,
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self {
            failures: Mutex::default(),
        }
    }
}

impl<K: Clone + Eq + Hash> Backoff<K> {
    /// When all of these keys may be tried, if one of them has to wait.
    pub(crate) fn until(&self, keys: &[K]) -> Option<Instant> {
        let failures = self.lock();
        let until = keys.iter().filter_map(|key| failures.get(key));
        until.map(|failures| failures.until).max()
    }

    /// These keys failed now: each waits about twice as long as the last time, a little more or less, since other
    /// processes failed when this one did.
    pub(crate) fn failed(&self, keys: &[K], now: Instant) {
        let mut failures = self.lock();
        for key in keys {
            if failures.len() >= MOST && !failures.contains_key(key) {
                failures.retain(|_, failures| failures.until > now);
                if failures.len() >= MOST {
                    return;
                }
            }
            let last = failures.get(key);
            let pause = last.map_or(SHORTEST, |last| (last.pause * 2).min(LONGEST));
            let until = now + pause.mul_f64(0.75 + 0.25 * fastrand::f64());
            failures.insert(key.clone(), Failures { pause, until });
        }
    }

    /// These keys were built.
    pub(crate) fn succeeded(&self, keys: &[K]) {
        let mut failures = self.lock();
        if !failures.is_empty() {
            for key in keys {
                failures.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Failures, foldhash::fast::RandomState>> {
        // Hashing and comparing keys is the user's code.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rt;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_end_with_a_success() {
        let (backoff, rt) = (Backoff::default(), Rt::new());
        for expected in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            backoff.failed(&[7], rt.now());
            let pause = backoff.until(&[1, 7]).unwrap() - rt.now();
            let expected = Duration::from_millis(expected);
            assert!(
                (expected * 3 / 4..=expected).contains(&pause),
                "{pause:?} for {expected:?}"
            );
        }
        backoff.succeeded(&[7]);
        assert_eq!(backoff.until(&[1, 7]), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_made_up_keys_are_bounded() {
        let (backoff, rt) = (Backoff::default(), Rt::new());
        let keys: Vec<usize> = (0..MOST * 2).collect();
        backoff.failed(&keys, rt.now());
        assert_eq!(backoff.lock().len(), MOST);
        assert_eq!(backoff.until(&keys[MOST..]), None);
        rt.sleep(LONGEST).await;
        backoff.failed(&keys[MOST..], rt.now());
        assert!(backoff.until(&keys[MOST..]).is_some());
        assert_eq!(backoff.lock().len(), MOST);
    }
}
