//! Manifests: what a generation caches, and how it finds the keys.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByAccessor, PURGED, Uncached};
use crate::contract::{Pool, Prefix};
use crate::write::Purge;

/// What a generation caches, by accessor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    accessors: BTreeMap<String, Listed>,
}

/// One accessor of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// The fingerprint of what is stored.
    pub(crate) shape: String,
    /// How its keys are found: see `AccessorPlan::rule`.
    pub(crate) rule: String,
    /// The entities whose changes flush it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) entities: Vec<String>,
    /// Whether anything flushes it, so that every writer must know how.
    #[serde(default)]
    pub(crate) flushed: bool,
    /// How long what is old may be served, its own time and that of its bases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl_s: Option<u64>,
    /// With what its keys begin, if its entries outlive a deploy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lasting: Option<String>,
}

impl Manifest {
    pub(crate) fn list(&mut self, accessor: &str, listed: Listed) {
        self.accessors.insert(accessor.to_owned(), listed);
    }

    pub(super) fn accessors(&self) -> impl Iterator<Item = (&String, &Listed)> {
        self.accessors.iter()
    }

    pub(super) fn get(&self, accessor: &str) -> Option<&Listed> {
        self.accessors.get(accessor)
    }

    pub(super) fn accessors_mut(&mut self) -> impl Iterator<Item = (&String, &mut Listed)> {
        self.accessors.iter_mut()
    }

    /// The longest time for which anything of it may be served.
    pub(super) fn longest_ttl(&self) -> Option<Duration> {
        let flushed = self.accessors.values().filter(|listed| listed.flushed);
        flushed
            .filter_map(|listed| listed.ttl_s)
            .max()
            .map(Duration::from_secs)
    }

    /// A manifest that can't be read lists nothing, so that nothing is cached beside that generation.
    pub(super) fn of_text(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("names and texts are JSON")
    }

    /// Whether this lists every accessor of the other one.
    pub(super) fn has_all_of(&self, other: &Self) -> bool {
        other
            .accessors
            .keys()
            .all(|accessor| self.accessors.contains_key(accessor))
    }

    /// Why this accessor isn't cached beside a generation of this manifest.
    pub(super) fn objection(
        &self,
        accessor: &str,
        ours: &Listed,
        version: &str,
    ) -> Option<Uncached> {
        let version = || version.to_owned();
        match self.accessors.get(accessor) {
            _ if !ours.flushed => None,
            None => Some(Uncached::Missing { version: version() }),
            Some(theirs) if theirs.rule != ours.rule => {
                Some(Uncached::Differs { version: version() })
            }
            Some(_) => None,
        }
    }

    /// The accessors of the other one whose keys a writer of this manifest doesn't find.
    pub(super) fn cant_flush<'o>(&self, other: &'o Self) -> impl Iterator<Item = &'o str> {
        let flushed = other.accessors.iter().filter(|(_, theirs)| theirs.flushed);
        let unknown = flushed
            .filter(|(name, theirs)| self.get(name).is_none_or(|ours| ours.rule != theirs.rule));
        unknown.map(|(name, _)| name.as_str())
    }

    /// The accessors in this that the other one hasn't, by the entities that flush them.
    pub(super) fn lacking(&self, other: &Self) -> HashMap<String, Vec<String>> {
        let mut lacking: HashMap<String, Vec<String>> = HashMap::new();
        for (accessor, listed) in &self.accessors {
            if !other.accessors.contains_key(accessor) {
                for entity in &listed.entities {
                    lacking
                        .entry(entity.clone())
                        .or_default()
                        .push(accessor.clone());
                }
            }
        }
        lacking
    }

    /// The accessors whose keys don't begin with the generation's prefix: the present prefix of each, and the one before
    /// it while somebody may still read that.
    pub(super) fn prefixes(
        &self,
        generation: &str,
        pool: &Pool,
        purges: &[Purge],
    ) -> ByAccessor<Vec<Prefix>> {
        let mut prefixes = ByAccessor::default();
        for (accessor, listed) in &self.accessors {
            let base = listed.lasting.as_deref().unwrap_or(generation);
            let purge = purges.iter().find(|purge| purge.accessor == *accessor);
            let texts = match purge {
                None if listed.lasting.is_none() => continue,
                None => vec![base.to_owned()],
                Some(purge) => {
                    let former = match &purge.former {
                        Some(epoch) => within(base, epoch),
                        None => base.to_owned(),
                    };
                    match purge.age < PURGED {
                        true => vec![within(base, &purge.epoch), former],
                        false => vec![within(base, &purge.epoch)],
                    }
                }
            };
            let usable = texts.iter().filter_map(|text| Prefix::new(text).ok());
            let usable: Vec<Prefix> = usable.map(|prefix| prefix.for_pool(pool)).collect();
            if !usable.is_empty() {
                prefixes.insert(accessor.clone(), usable);
            }
        }
        prefixes
    }
}

/// What the keys of an epoch begin with.
fn within(base: &str, epoch: &str) -> String {
    Prefix::derived(&[base, epoch]).to_string()
}
