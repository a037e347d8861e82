//! The answer to a bulk read.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::Hash;

use indexmap::IndexMap;

/// The answer to a bulk read: one value, or its absence, per distinct key.
///
/// ```
/// # use larder_core::Batch;
/// # fn show(batch: Batch<u64, String>) {
/// // Asked for 7, 9, 7, of which 9 doesn't exist.
/// assert_eq!(batch.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [7, 9, 7]);
/// assert_eq!(batch.missing().collect::<Vec<_>>(), [&9]);
/// assert_eq!(batch.into_found().len(), 1);
/// # }
/// ```
#[derive(Clone)]
pub struct Batch<K, V> {
    /// Distinct keys, in the order in which they were first asked for.
    pub(crate) values: IndexMap<K, Option<V>, foldhash::fast::RandomState>,
    /// Positions in `values`, as asked; empty if no key was asked for twice.
    pub(crate) asked: Vec<u32>,
}

impl<K: Hash + Eq, V> Batch<K, V> {
    /// The batch of these keys, nothing found yet.
    pub(crate) fn of(keys: impl Iterator<Item = impl std::borrow::Borrow<K>>) -> Self
    where
        K: Clone,
    {
        let room = keys.size_hint().0;
        let mut values: IndexMap<K, Option<V>, _> =
            IndexMap::with_capacity_and_hasher(room, foldhash::fast::RandomState::default());
        let mut asked = Vec::new();
        for (position, key) in keys.enumerate() {
            let (index, known) = values.insert_full(key.borrow().clone(), None);
            if known.is_some() && asked.is_empty() {
                // The first key asked for twice: until here, positions and indices agreed.
                asked.extend((0..position).map(to_u32));
            }
            if known.is_some() || !asked.is_empty() {
                asked.push(to_u32(index));
            }
        }
        Self { values, asked }
    }

    /// Keys and values as they were asked for, duplicates included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&K, Option<&V>)> {
        (0..self.len()).map(|position| {
            let index = match self.asked.get(position) {
                Some(index) => *index as usize,
                None => position,
            };
            let (key, value) = self
                .values
                .get_index(index)
                .expect("every position has its key");
            (key, value.as_ref())
        })
    }

    /// How many keys were asked for, duplicates included.
    pub fn len(&self) -> usize {
        if self.asked.is_empty() {
            self.values.len()
        } else {
            self.asked.len()
        }
    }

    /// Whether none was asked for.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value of this key; `None` if it is absent, or wasn't asked for.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.values.get(key)?.as_ref()
    }

    /// The distinct keys without a value.
    pub fn missing(&self) -> impl Iterator<Item = &K> {
        self.values
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(key, _)| key)
    }

    /// The values that were found, each once, in the order in which they were first asked for.
    pub fn into_found(self) -> Vec<V> {
        self.values.into_values().flatten().collect()
    }

    /// The values that were found, by key.
    pub fn into_map(self) -> HashMap<K, V> {
        self.values
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    /// The same answers under other keys, such as ids without what they have in common. Two keys must not become one.
    pub fn map_keys<L: Hash + Eq>(self, key: impl Fn(K) -> L) -> Batch<L, V> {
        let values = self.values.into_iter();
        Batch {
            values: values.map(|(each, value)| (key(each), value)).collect(),
            asked: self.asked,
        }
    }

    /// The values of all distinct keys, or the keys that have none.
    pub fn require(self) -> Result<Vec<V>, Missing<K>> {
        if self.values.values().all(Option::is_some) {
            return Ok(self.into_found());
        }
        let missing = self.values.into_iter().filter(|(_, value)| value.is_none());
        Err(Missing(missing.map(|(key, _)| key).collect()))
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Batch<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.values).finish()
    }
}

fn to_u32(position: usize) -> u32 {
    u32::try_from(position).expect("a batch has fewer than 2^32 keys")
}

/// Keys that were required and don't exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing<K>(pub Vec<K>);

impl<K> fmt::Display for Missing<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the required keys have no value", self.0.len())
    }
}

impl<K: fmt::Debug> Error for Missing<K> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(asked: &[u64], found: &[u64]) -> Batch<u64, String> {
        let mut batch = Batch::of(asked.iter());
        for key in found {
            batch.values[key] = Some(format!("v{key}"));
        }
        batch
    }

    #[track_caller]
    fn check(asked: &[u64], found: &[u64]) {
        let batch = batch(asked, found);
        let expected: Vec<_> = asked
            .iter()
            .map(|key| (*key, found.contains(key).then(|| format!("v{key}"))))
            .collect();
        let answered: Vec<_> = batch.iter().map(|(k, v)| (*k, v.cloned())).collect();
        assert_eq!(answered, expected);
        assert_eq!(batch.len(), asked.len());
        for key in asked {
            assert_eq!(batch.get(key).is_some(), found.contains(key));
        }
        assert_eq!(batch.clone().into_map().len(), found.len());
        assert_eq!(
            batch.require().is_ok(),
            batch_distinct(asked) == found.len()
        );
    }

    fn batch_distinct(asked: &[u64]) -> usize {
        asked.iter().collect::<std::collections::HashSet<_>>().len()
    }

    #[test]
    fn answers_come_as_asked_with_duplicates() {
        check(&[], &[]);
        check(&[7], &[7]);
        check(&[7, 8, 9], &[7, 9]);
        check(&[7, 7], &[7]);
        check(&[7, 9, 7], &[7]);
        check(&[9, 9, 8, 7, 8, 9], &[]);
        check(&[1, 2, 3, 1, 4, 2], &[1, 2, 3, 4]);
    }

    #[test]
    fn other_keys_have_the_same_answers() {
        let batch = batch(&[7, 9, 7], &[7]).map_keys(|key| format!("id {key}"));
        let answered: Vec<_> = batch.iter().map(|(k, v)| (&**k, v.cloned())).collect();
        let seven = ("id 7", Some("v7".to_owned()));
        assert_eq!(answered, [seven.clone(), ("id 9", None), seven]);
        assert_eq!(batch.get(&"id 7".to_owned()), Some(&"v7".to_owned()));
    }

    #[test]
    fn missing_names_each_key_once() {
        assert_eq!(batch(&[7, 9, 9], &[7]).require(), Err(Missing(vec![9])));
        assert_eq!(batch(&[7, 9, 9], &[7]).missing().collect::<Vec<_>>(), [&9]);
    }
}
