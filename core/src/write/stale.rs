//! What one commit makes stale: logical keys, and queries for more, base before derived.
//!
//! A logical key is a key without its prefix. It is expanded for the generations that are live when it is delivered, not
//! for those that were when it was written down.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::contract::{Error, ErrorKind, Keys, Prefix, Result};

/// What one commit makes stale.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    /// Keys of a later level are deleted once those of all earlier ones are confirmed.
    levels: Vec<Level>,
    /// Where it is a row of several that one commit wrote.
    part: Option<Part>,
}

/// A row of several that one commit wrote: what it has of later levels comes after those before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Names the commit.
    pub(crate) of: String,
    pub(crate) nth: usize,
}

/// What is stale, for look-ups.
pub(crate) struct Index<'s>(Vec<IndexOfLevel<'s>>);

struct IndexOfLevel<'s> {
    keys: HashSet<&'s [u8]>,
    queries: HashSet<&'s Deferred>,
}

/// Keys that may be deleted together.
#[derive(Debug, Default)]
pub(crate) struct Level {
    pub(crate) keys: Keys,
    pub(crate) queries: Vec<Deferred>,
}

/// A query for keys that is asked after the commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Deferred {
    pub(crate) accessor: String,
    pub(crate) query: String,
    /// As JSON.
    pub(crate) arguments: String,
}

/// Keys in one row of the outbox.
const ROW: usize = 2_000;

/// A row of the outbox as it is written: readable by whoever looks into the table, and by other versions of this code.
#[derive(Serialize, Deserialize)]
struct Written<T> {
    v: u32,
    levels: Vec<WrittenLevel<T>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<Part>,
}

#[derive(Serialize, Deserialize)]
struct WrittenLevel<T> {
    keys: Vec<T>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    queries: Vec<Deferred>,
}

/// The form of rows that this code writes.
const FORM: u32 = 1;

impl Stale {
    /// The keys of this level.
    pub(crate) fn level(&mut self, level: usize) -> &mut Level {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Level::default);
        }
        &mut self.levels[level]
    }

    pub(crate) fn is_empty(&self) -> bool {
        (self.levels.iter()).all(|level| level.keys.is_empty() && level.queries.is_empty())
    }

    /// How many keys are known.
    pub(crate) fn len(&self) -> usize {
        self.levels.iter().map(|level| level.keys.len()).sum()
    }

    pub(crate) fn levels(&self) -> &[Level] {
        &self.levels
    }

    pub(crate) fn levels_mut(&mut self) -> &mut [Level] {
        &mut self.levels
    }

    /// Where it is a row of several that one commit wrote.
    pub(crate) fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    /// Whether something in it is derived from what an earlier row of its commit has.
    pub(crate) fn follows(&self) -> bool {
        self.part.is_some() && self.levels.iter().skip(1).any(|level| !level.is_empty())
    }

    /// The first level that has something in it.
    pub(crate) fn lowest(&self) -> Option<usize> {
        self.levels.iter().position(|level| !level.is_empty())
    }

    pub(crate) fn into_levels(self) -> Vec<Level> {
        self.levels
    }

    /// The known keys, of all levels.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let keys = |level| Level::keys(level);
        self.levels.iter().flat_map(keys)
    }

    /// The data sets of all but the first keys, so many; one may come more than once.
    pub(crate) fn accessors_beyond(&self, room: usize) -> impl Iterator<Item = &str> {
        let keys = self.levels.iter().flat_map(|level| level.keys.iter());
        keys.skip(room).map(|key| key.accessor())
    }

    /// Leaves each key once.
    pub(crate) fn deduplicate(&mut self) {
        for level in &mut self.levels {
            level.deduplicate();
        }
    }

    /// As rows of the outbox, each of at most 2,000 keys.
    pub(crate) fn rows(&self) -> Vec<String> {
        if self.len() <= ROW {
            return vec![self.text()];
        }
        let has_bases = self.levels.iter().filter(|level| !level.is_empty()).count() > 1;
        let of = has_bases.then(|| Prefix::random().to_string());
        let part = |nth| {
            Some(Part {
                of: of.clone()?,
                nth,
            })
        };
        let chunks = 0..self.len().div_ceil(ROW);
        chunks
            .map(|nth| self.row(nth * ROW..(nth + 1) * ROW, part(nth)))
            .collect()
    }

    /// As one row of the outbox.
    pub(crate) fn text(&self) -> String {
        self.row(0..usize::MAX, self.part.clone())
    }

    /// Those keys, counted over all levels; queries go into the last row, so that what they are derived from is in no
    /// later one.
    fn row(&self, range: std::ops::Range<usize>, part: Option<Part>) -> String {
        let is_last = range.end >= self.len();
        let mut seen = 0;
        let levels = self.levels.iter().map(|level| {
            let start = seen;
            seen += level.keys.len();
            let from = range.start.clamp(start, seen) - start;
            let to = range.end.clamp(start, seen) - start;
            WrittenLevel {
                keys: (from..to).map(|nth| level.keys.get(nth).as_str()).collect(),
                queries: match is_last {
                    true => level.queries.clone(),
                    false => Vec::new(),
                },
            }
        });
        let written = Written {
            v: FORM,
            levels: levels.collect(),
            part,
        };
        serde_json::to_string(&written).expect("texts and lists of texts are JSON")
    }

    /// What a row says.
    pub(crate) fn of_row(text: &str) -> Result<Self> {
        let unreadable = |problem: String| {
            Error::new(
                ErrorKind::Codec,
                format!(
                    "a row of the outbox can't be read: {problem}; it is left for another version of this program"
                ),
            )
        };
        let written: Written<String> =
            serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if written.v != FORM {
            return Err(unreadable(format!("it has the form {}", written.v)));
        }
        let mut stale = Self {
            part: written.part,
            ..Self::default()
        };
        for (index, level) in written.levels.into_iter().enumerate() {
            let into = stale.level(index);
            for key in &level.keys {
                into.keys.push_raw(key)?;
            }
            into.queries = level.queries;
        }
        Ok(stale)
    }

    pub(crate) fn copy(&self) -> Self {
        let mut copy = Self::default();
        for (index, level) in self.levels.iter().enumerate() {
            let into = copy.level(index);
            into.add(&level.keys);
            into.queries.clone_from(&level.queries);
        }
        copy
    }

    /// For finding what of others is in this.
    pub(crate) fn index(&self) -> Index<'_> {
        let levels = self.levels.iter().map(|level| IndexOfLevel {
            keys: level.keys.iter().map(|key| key.as_bytes()).collect(),
            queries: level.queries.iter().collect(),
        });
        Index(levels.collect())
    }

    /// What of this is also in the other one.
    pub(crate) fn within(&self, other: &Index<'_>) -> Self {
        let mut common = Self {
            part: self.part.clone(),
            ..Self::default()
        };
        for (index, (ours, theirs)) in self.levels.iter().zip(&other.0).enumerate() {
            let positions = ours.keys.iter().enumerate();
            let positions = positions.filter(|(_, key)| theirs.keys.contains(key.as_bytes()));
            let into = common.level(index);
            into.add(&ours.keys.select(positions.map(|(position, _)| position)));
            let queries = ours.queries.iter();
            let queries = queries.filter(|query| theirs.queries.contains(query));
            into.queries.extend(queries.cloned());
        }
        common
    }

    /// Forgets all but the first keys, so many; queries stay.
    pub(crate) fn truncate(&mut self, mut room: usize) {
        for level in &mut self.levels {
            level.keys.truncate(room);
            room -= level.keys.len();
        }
    }

    /// Adds all of another one.
    pub(crate) fn merge(&mut self, other: Self) {
        for (index, level) in other.levels.into_iter().enumerate() {
            let into = self.level(index);
            into.extend(level);
        }
    }
}

impl Level {
    pub(crate) fn add(&mut self, keys: &Keys) {
        self.keys.append(keys);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.add(&other.keys);
        other
            .queries
            .into_iter()
            .for_each(|query| self.defer(query));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.queries.is_empty()
    }

    pub(crate) fn defer(&mut self, deferred: Deferred) {
        if !self.queries.contains(&deferred) {
            self.queries.push(deferred);
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.as_str())
    }

    fn deduplicate(&mut self) {
        if self.keys.len() < 2 {
            return;
        }
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        order.sort_unstable_by_key(|&nth| self.keys.get(nth).as_bytes());
        order.dedup_by_key(|&mut nth| self.keys.get(nth).as_bytes());
        if order.len() < self.keys.len() {
            self.keys = self.keys.select(order);
        }
    }
}
