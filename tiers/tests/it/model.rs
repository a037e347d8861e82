//! Any sequence of calls answers as a simple model does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use larder_core::{Kept, Mark, Recall, Scopes as _};
use larder_tiers::{Tiers, TiersConfig};
use proptest::prelude::*;

use super::support::{Found, ScopeExt as _, keys, number, value};

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const MAX_AGE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
enum Step {
    /// Looks the key up, and remembers the mark, if there is one.
    Get(usize),
    /// Puts a value under one of the marks that were taken, for whichever key.
    Put(usize, prop::sample::Index, u64),
    Forget(Vec<usize>),
    Distrust(Vec<usize>),
    Wait(u64),
    End,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    let some = prop::collection::vec(key.clone(), 0..3);
    prop_oneof![
        8 => key.clone().prop_map(Step::Get),
        8 => (key, any::<prop::sample::Index>(), any::<u64>())
            .prop_map(|(key, mark, value)| Step::Put(key, mark, value)),
        3 => some.clone().prop_map(Step::Forget),
        1 => some.prop_map(Step::Distrust),
        2 => (0..20_u64).prop_map(Step::Wait),
        1 => Just(Step::End),
    ]
}

/// Time is counted in steps for drops, and in seconds for age.
#[derive(Default)]
struct Model {
    kept: BTreeMap<usize, (u64, u64)>,
    dropped: BTreeMap<usize, usize>,
    distrusted: BTreeSet<usize>,
    seconds: u64,
    ended: bool,
}

impl Model {
    fn fresh(&self, key: usize) -> Option<u64> {
        let (value, since) = self.kept.get(&key)?;
        (self.seconds - since < MAX_AGE.as_secs()).then_some(*value)
    }

    fn find(&self, key: usize) -> Found {
        match self.fresh(key).filter(|_| !self.ended) {
            Some(value) => Found::Value(value),
            None if self.distrusted.contains(&key) => Found::Distrusted,
            None => Found::Nothing,
        }
    }

    /// What is said of a value that is put, and the number of the one that is there instead.
    fn put(&mut self, key: usize, read_at: usize, value: u64) -> (Kept, Option<u64>) {
        let too_late = self.dropped.get(&key).is_some_and(|at| *at > read_at);
        if self.ended || too_late || self.distrusted.contains(&key) {
            return (Kept::TooLate, None);
        }
        if let Some(other) = self.fresh(key) {
            return (Kept::Other(None), Some(other));
        }
        self.kept.insert(key, (value, self.seconds));
        (Kept::Kept, None)
    }

    fn forget(&mut self, key: usize, now: usize) {
        self.kept.remove(&key);
        self.dropped.insert(key, now);
    }
}

fn texts(picked: &[usize]) -> larder_core::Keys {
    let texts: Vec<&str> = picked.iter().map(|key| KEYS[*key]).collect();
    keys(&texts)
}

async fn follow(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let tiers = Tiers::new(TiersConfig {
        max_age: MAX_AGE,
        ..TiersConfig::default()
    })
    .unwrap();
    let scope = tiers.request();
    let mut model = Model::default();
    // A mark of the very beginning, before anything was dropped.
    let mut marks: Vec<(usize, Mark)> = vec![(0, scope.mark("a"))];
    for (now, step) in steps.into_iter().enumerate() {
        let now = now + 1;
        match step {
            Step::Get(key) => {
                prop_assert_eq!(scope.find(KEYS[key]), model.find(key));
                if let Recall::Unknown(mark) = scope.get(texts(&[key]).get(0)) {
                    marks.push((now, mark));
                }
            }
            Step::Put(key, mark, put) => {
                let (read_at, mark) = *mark.get(&marks);
                let kept = scope.put(texts(&[key]).get(0), mark, value(put), 8);
                let said = match kept {
                    Kept::Other(Some(other)) => (Kept::Other(None), Some(number(&other))),
                    kept => (kept, None),
                };
                prop_assert_eq!(said, model.put(key, read_at, put));
            }
            Step::Forget(picked) => {
                scope.forget(&texts(&picked));
                picked.iter().for_each(|key| model.forget(*key, now));
            }
            Step::Distrust(picked) => {
                scope.distrust(&texts(&picked));
                picked.iter().for_each(|key| model.forget(*key, now));
                model.distrusted.extend(picked);
            }
            Step::Wait(seconds) => {
                tokio::time::advance(Duration::from_secs(seconds)).await;
                model.seconds += seconds;
            }
            Step::End => {
                scope.end();
                model.ended = true;
            }
        }
        for (key, text) in KEYS.iter().enumerate() {
            prop_assert_eq!(scope.find(text), model.find(key));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_scope_is_its_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(follow(steps))?;
    }
}
