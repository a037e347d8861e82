//! The seam to the in-process tiers: what core asks of them, and what they answer.
//!
//! A tier keeps values by scope: one request, or the running code. Core decides which values may be kept and when a key
//! must be dropped; a tier decides how long they stay, and how many bytes all of them may take.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::contract::{Key, Keys};

/// A value that a tier keeps, whatever its type.
pub type SharedValue = Arc<dyn Any + Send + Sync>;

/// What keeps decoded values for a while: the life of one request, or that of the running code.
///
/// Nothing here waits: a scope answers from memory. Keys are whole: with their prefix, and whatever their digests hide.
pub trait Scope: fmt::Debug + Send + Sync + 'static {
    /// The value that is kept under this key, or a mark under which the caller may put the one that it reads.
    ///
    /// Taken before the read begins, so that the scope can tell whether the key was dropped since.
    fn get(&self, key: Key<'_>) -> Recall;

    /// Keeps a value, which takes so many bytes in memory; `None` is the absence of a row.
    ///
    /// It isn't kept if its key was dropped since the mark was taken, if it is too large, or if the scope has ended.
    fn put(&self, key: Key<'_>, mark: Mark, value: Option<SharedValue>, bytes: usize) -> Kept;

    /// Drops what is kept under these keys, and refuses what was read before: their data changed.
    fn forget(&self, keys: &Keys);

    /// Does the same, and sends every later read of these keys in this scope past the store: a flush of theirs wasn't
    /// confirmed, so that the store may still have what is old.
    fn distrust(&self, keys: &Keys);

    /// Ends it: nothing can be got from it or put into it any more, and what it keeps is removed soon.
    fn end(&self);
}

/// What a scope has of a key.
#[derive(Clone, Debug)]
pub enum Recall<V = SharedValue> {
    /// This value, or that there is none.
    Kept(Option<V>),
    /// Nothing: who reads it may put it under this mark.
    Unknown(Mark),
    /// Nothing, and the store isn't to be trusted with it: see [`Scope::distrust`].
    Distrusted,
}

/// When a read began, as its scope counts drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub u64);

/// What became of a value that was put.
#[derive(Clone, Debug)]
pub enum Kept {
    /// It is kept.
    Kept,
    /// This one is kept, which another read of the scope put before. Who put this one answers with that, or a key would
    /// be read once new and then old again.
    Other(Option<SharedValue>),
    /// Its key was dropped since its read began, or the scope has ended.
    TooLate,
    /// There is no room for it.
    NoRoom,
}

/// Others are equal if they are the very same value.
impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Other(Some(one)), Self::Other(Some(other))) => Arc::ptr_eq(one, other),
            (Self::Other(one), Self::Other(other)) => one.is_none() && other.is_none(),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// What makes the scopes of a cache, within one budget: its in-process tiers.
pub trait Scopes: fmt::Debug + Send + Sync + 'static {
    /// A scope that lives as long as one request. One that is never used costs next to nothing.
    fn request(&self) -> Arc<dyn Scope>;

    /// A scope that lives as long as the cache that asks for it.
    fn deploy(&self) -> Arc<dyn Scope>;

    /// Sets so many bytes aside, until the answer is dropped, for a value that the cache handle keeps itself; `None` if
    /// there is no room for them.
    fn reserve(&self, bytes: usize) -> Option<Box<dyn Any + Send + Sync>>;

    /// Plain numbers about what is kept now.
    fn stats(&self) -> TiersStats;
}

/// Plain numbers about the in-process tiers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct TiersStats {
    /// The bytes that both tiers together may take.
    pub budget: u64,
    /// What requests in flight keep.
    pub request: TierStats,
    /// What the running code keeps.
    pub deploy: TierStats,
}

/// Plain numbers about one in-process tier.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct TierStats {
    /// Values, and absences, that are kept now.
    pub entries: u64,
    /// The bytes that they take.
    pub bytes: u64,
    /// Keys that this cache's readers got from the tier.
    pub hits: u64,
    /// Keys that this cache's readers asked the tier for in vain.
    pub misses: u64,
    /// Values that weren't kept, since there was no room for them.
    pub refused: u64,
    /// Values that gave way to others before their scope ended.
    pub evicted: u64,
}
