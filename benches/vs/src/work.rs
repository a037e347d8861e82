//! What is fetched, stored and deleted: the same keys and values for every subject.
//!
//! A population of items is shuffled once and cut into batches, so that a call fetches keys that lie scattered over the
//! server's memory, and consecutive calls fetch different ones. Everything follows from a fixed seed.

use bytes::Bytes;

/// Items on a server, whatever the size of the batches.
const POPULATION: u64 = 20_000;

/// Length of a key in bytes.
pub const KEY: usize = 32;

/// All items, in batches of one size.
#[derive(Debug)]
pub struct Work {
    /// Every item belongs to one batch.
    pub batches: Vec<Batch>,
}

/// Keys and their values, position by position.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where this batch stands in its [`Work`].
    pub number: usize,
    /// What the keys are made of.
    pub ids: Vec<u64>,
    /// The keys, 32 bytes each.
    pub keys: Vec<String>,
    /// What belongs to the keys.
    pub values: Vec<Bytes>,
}

impl Work {
    /// The population with values of this many bytes, in batches of this many keys.
    pub fn new(batch: usize, value: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(0x1a7d_e711);
        let mut ids: Vec<u64> = (0..POPULATION).collect();
        random.shuffle(&mut ids);
        let batches = ids
            .chunks_exact(batch)
            .enumerate()
            .map(|(number, ids)| {
                let keys: Vec<_> = ids.iter().map(|id| key(*id)).collect();
                let values = keys
                    .iter()
                    .map(|key| value_of(key, value, &mut random))
                    .collect();
                Batch {
                    number,
                    ids: ids.to_vec(),
                    keys,
                    values,
                }
            })
            .collect();
        Self { batches }
    }

    /// Only so many of its batches.
    pub fn first(mut self, batches: usize) -> Self {
        self.batches.truncate(batches);
        self
    }

    /// The batch for this turn; turns go round.
    pub fn batch(&self, turn: usize) -> &Batch {
        &self.batches[turn % self.batches.len()]
    }
}

impl Batch {
    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Keys with their values.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (&str, &Bytes)> {
        self.keys.iter().map(String::as_str).zip(&self.values)
    }
}

fn key(id: u64) -> String {
    format!("bench/message:{id:0width$}", width = KEY - 14)
}

/// A value that begins with its key, so that no other key's value can pass for it; the rest doesn't compress.
fn value_of(key: &str, length: usize, random: &mut fastrand::Rng) -> Bytes {
    key.bytes()
        .chain(std::iter::repeat_with(|| random.alphanumeric() as u8))
        .take(length)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_appears_once_and_begins_its_value() {
        let work = Work::new(1_000, 100);
        let keys: std::collections::HashSet<_> =
            work.batches.iter().flat_map(|batch| &batch.keys).collect();
        assert_eq!(keys.len() as u64, POPULATION);
        for (key, value) in work.batches.iter().flat_map(Batch::pairs) {
            assert_eq!((key.len(), value.len()), (KEY, 100));
            assert!(value.starts_with(key.as_bytes()));
        }
    }
}
