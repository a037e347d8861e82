//! The tier in front of a read: what it has is taken from it, and what is read is put into it.

use std::any::TypeId;

use super::accessor::{Accessor, Only};
use super::fetch::{Asked, Positions, Way};
use super::{
    Answer, Cache, Dataset, Kept, KeyOf, Mark, Recall, Scope, SharedValue, Tier, TierKind,
};
use crate::contract::{Key, Keys};
use crate::stats::AccessorCounters;

/// What a tier left for the store to answer.
#[derive(Default)]
pub(super) struct Memo<'f> {
    /// The keys that the tier hadn't, and where what is read of them is put; without a tier, nothing.
    open: Option<Open<'f>>,
}

struct Open<'f> {
    scope: &'f dyn Scope,
    /// The earliest mark of all keys.
    mark: Mark,
    /// The wire keys of `positions`.
    wire: Keys,
    positions: Positions,
    /// Keys that can't be wire keys, which no tier keeps.
    unkeyable: Positions,
    /// Keys whose flush wasn't confirmed: read past the store, and not kept.
    distrusted: Positions,
}

/// What the tier has of one key that is read through, `None` if it has to be asked for: the way of a hit, without all
/// that other reads take along.
pub(super) fn kept<D: Dataset>(
    cache: &Cache<D::Source>,
    key: &D::Key,
) -> Option<Option<Answer<D>>> {
    if D::Tier::KIND == TierKind::None {
        return None;
    }
    let accessor = cache.registered::<D>()?;
    let value = match accessor.only.get() {
        Some(only) => Some(only.value.clone()),
        None => {
            let mut wire = Keys::new();
            let arguments = KeyOf::<D>(key);
            wire.push(cache.prefix_of::<D>(), D::NAME, &arguments)
                .ok()?;
            match recall::<D>(cache.scope_of(accessor)?, wire.get(0)) {
                Recall::Kept(value) => value,
                Recall::Unknown(_) | Recall::Distrusted => return None,
            }
        }
    };
    count_hits(cache, &accessor.counters, 1);
    Some(value)
}

impl<'f> Memo<'f> {
    /// Takes from the tier what it has; `None` if that is all that was asked for.
    pub(super) fn recall<D: Dataset>(
        cache: &'f Cache<D::Source>,
        asked: &mut impl Asked<D>,
        way: Way,
    ) -> Option<Self> {
        if D::Tier::KIND == TierKind::None || way == Way::Past {
            return Some(Self::default());
        }
        match cache.registered::<D>() {
            Some(accessor) => Self::ask(cache, accessor, asked, way),
            None => Self::ask(cache, &cache.accessor::<D>(), asked, way),
        }
    }

    fn ask<D: Dataset>(
        cache: &'f Cache<D::Source>,
        accessor: &Accessor<D>,
        asked: &mut impl Asked<D>,
        way: Way,
    ) -> Option<Self> {
        if way == Way::Through
            && let Some(only) = accessor.only.get()
        {
            asked.set(0, Some(only.value.clone()));
            count_hits(cache, &accessor.counters, 1);
            return None;
        }
        let Some(scope) = cache.scope_of(accessor) else {
            return Some(Self::default());
        };
        let mut open = Open {
            scope,
            mark: Mark(u64::MAX),
            wire: Keys::new(),
            positions: Positions::new(),
            unkeyable: Positions::new(),
            distrusted: Positions::new(),
        };
        let prefix = cache.prefix_of::<D>();
        let mut hits = 0;
        for position in 0..asked.len() {
            let at = open.wire.len();
            if open
                .wire
                .push(prefix, D::NAME, &KeyOf::<D>(asked.key(position)))
                .is_err()
            {
                open.unkeyable.push(position);
                continue;
            }
            let recalled = match way {
                Way::Refresh => recall_nothing::<D>(scope, &open.wire),
                Way::Through | Way::Past => recall::<D>(scope, open.wire.get(at)),
            };
            match recalled {
                Recall::Kept(value) => {
                    asked.set(position, value);
                    hits += 1;
                    open.wire.truncate(at);
                }
                Recall::Unknown(mark) => {
                    open.positions.push(position);
                    open.mark = open.mark.min(mark);
                }
                Recall::Distrusted => {
                    open.distrusted.push(position);
                    open.wire.truncate(at);
                }
            }
        }
        if hits > 0 {
            count_hits(cache, &accessor.counters, hits);
        }
        if hits == asked.len() as u64 {
            return None;
        }
        let counters = &accessor.counters;
        if way == Way::Through {
            counters.tier_misses.add(open.positions.len() as u64);
        }
        if !open.distrusted.is_empty() {
            counters.tier_distrusted.add(open.distrusted.len() as u64);
        }
        Some(Self { open: Some(open) })
    }

    /// How many of the keys that were asked for are left to the store.
    pub(super) fn left(&self, asked: usize) -> usize {
        self.open
            .as_ref()
            .map_or(asked, |open| open.positions.len() + open.unkeyable.len())
    }

    /// Where the key is that is left as the nth.
    pub(super) fn position(&self, nth: usize) -> usize {
        let Some(open) = &self.open else { return nth };
        match open.positions.get(nth) {
            Some(position) => *position,
            None => open.unkeyable[nth - open.positions.len()],
        }
    }

    /// The positions of keys that are read past the store.
    pub(super) fn distrusted(&self) -> &[usize] {
        self.open.as_ref().map_or(&[], |open| &open.distrusted)
    }

    /// Puts what was read into the request's tier; what the deploy tier keeps, it has been given as it came.
    pub(super) fn keep<D: Dataset>(
        &self,
        cache: &Cache<D::Source>,
        accessor: &Accessor<D>,
        asked: &mut impl Asked<D>,
        way: Way,
    ) {
        let Some(open) = &self.open else { return };
        if D::Tier::KIND == TierKind::Deploy {
            return;
        }
        for (key, &position) in open.wire.iter().zip(&open.positions) {
            let value = asked.value(position);
            let Kept::Other(other) = put(cache, accessor, open.scope, key, open.mark, value) else {
                continue;
            };
            if way == Way::Refresh {
                // It may be what the store had before.
                open.scope.forget(&open.wire);
            } else if let Some(value) = adopt::<D>(other) {
                asked.set(position, value);
            }
        }
    }

    /// Puts into the deploy tier what the store had.
    pub(super) fn keep_stored<D: Dataset>(
        &self,
        cache: &Cache<D::Source>,
        accessor: &Accessor<D>,
        key: Key<'_>,
        value: &Answer<D>,
    ) {
        if let Some(open) = &self.open
            && D::Tier::KIND == TierKind::Deploy
        {
            put(cache, accessor, open.scope, key, open.mark, Some(value));
        }
    }
}

/// What a scope keeps, as the data set's readers get it; `None` if it is another data set's, of a cache that shares the
/// scope.
fn adopt<D: Dataset>(kept: Option<SharedValue>) -> Option<Option<Answer<D>>> {
    match kept {
        None => Some(None),
        Some(shared) => D::Tier::recall(shared).map(Some),
    }
}

/// What the scope has of this key, as the data set's readers get it.
pub(super) fn recall<D: Dataset>(scope: &dyn Scope, key: Key<'_>) -> Recall<Answer<D>> {
    match scope.get(key) {
        // The earliest mark there is, where it is another data set's.
        Recall::Kept(kept) => adopt::<D>(kept).map_or(Recall::Unknown(Mark(0)), Recall::Kept),
        Recall::Unknown(mark) => Recall::Unknown(mark),
        Recall::Distrusted => Recall::Distrusted,
    }
}

/// What the scope says of this one key once it has forgotten its value.
fn recall_nothing<D: Dataset>(scope: &dyn Scope, wire: &Keys) -> Recall<Answer<D>> {
    loop {
        scope.forget(wire);
        match recall::<D>(scope, wire.get(0)) {
            // Another read of the same request was quicker.
            Recall::Kept(_) => {}
            recalled => return recalled,
        }
    }
}

/// Puts one value, or its absence, into the tier of its data set.
pub(super) fn put<D: Dataset>(
    cache: &Cache<D::Source>,
    accessor: &Accessor<D>,
    scope: &dyn Scope,
    key: Key<'_>,
    mark: Mark,
    value: Option<&Answer<D>>,
) -> Kept {
    if D::Tier::KIND == TierKind::Deploy && value.is_none() {
        // What never changes may still come to be: its absence isn't remembered.
        return Kept::TooLate;
    }
    let bytes = value.map_or(0, Accessor::<D>::weigh);
    if let Some(value) = value
        && D::Tier::KIND == TierKind::Deploy
        && TypeId::of::<D::Key>() == TypeId::of::<()>()
        && keep_only(cache, accessor, value, bytes)
    {
        return Kept::Kept;
    }
    let shared: Option<SharedValue> = value.and_then(D::Tier::share);
    let kept = scope.put(key, mark, shared, bytes);
    match kept {
        Kept::Kept | Kept::Other(_) => {}
        Kept::TooLate => accessor.counters.tier_too_late.add(1),
        Kept::NoRoom => {
            accessor.counters.tier_refused.add(1);
            if D::Tier::KIND == TierKind::Deploy && accessor.warned.no_room.first() {
                tracing::warn!(
                    accessor = D::NAME,
                    bytes,
                    "a value of the deploy tier has no room in the tiers' budget, so that every read builds it; raise \
                     the budget"
                );
            }
        }
    }
    kept
}

/// Keeps the one value of a data set without arguments in its accessor, where no key leads to it; false if there is no
/// room for it.
fn keep_only<D: Dataset>(
    cache: &Cache<D::Source>,
    accessor: &Accessor<D>,
    value: &Answer<D>,
    bytes: usize,
) -> bool {
    if accessor.only.get().is_some() {
        return true;
    }
    let Some(reserved) = cache.tiers().and_then(|tiers| tiers.reserve(bytes)) else {
        return false;
    };
    // Of two that were built at once either is right, since they can't differ.
    let _ = accessor.only.set(Only {
        value: value.clone(),
        reserved,
    });
    true
}

fn count_hits<S: super::Source>(cache: &Cache<S>, counters: &AccessorCounters, hits: u64) {
    counters.count_tier_hits(hits);
    if let Some(tally) = &cache.tally {
        tally.count_tier_hits(hits);
    }
}
