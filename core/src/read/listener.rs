//! What a cache does, told as it happens: for kits that test services, and for checks in production.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::accessor::Accessor;
use super::again::Again;
use super::fetch::Asked;
use super::{Answer, AnyKey, Cache, Dataset, Lifetime, Seen, Source};
use crate::contract::{ErrorKind, Key, Keys};

/// Is told what a cache does: see [`CacheBuilder::listener`](crate::CacheBuilder::listener).
///
/// ```
/// use larder_core::{Event, Listener, Source};
///
/// /// Prints every read of one key, of which many in a row should have been a bulk read.
/// #[derive(Debug)]
/// struct Singles;
///
/// impl<S: Source> Listener<S> for Singles {
///     fn hear(&self, event: &Event<'_, S>) {
///         if let Event::Read(read) = event
///             && read.is_single
///         {
///             println!("one key of {}", read.accessor);
///         }
///     }
/// }
/// ```
pub trait Listener<S: Source>: fmt::Debug + Send + Sync + 'static {
    /// Something happened. It is told where it happened, in the task and the span of who caused it, which goes on when
    /// this returns: what takes long is done elsewhere.
    fn hear(&self, event: &Event<'_, S>);
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'e, S: Source> {
    /// A call was answered, or failed.
    Read(ReadEvent<'e, S>),
    /// The store has the value of a key, or its absence, which is about to be given to the reader.
    Hit(HitEvent<'e, S>),
    /// A load was started, in a task of its own.
    LoadStarted {
        /// The data set.
        accessor: &'static str,
        /// How many keys it is to load.
        keys: usize,
    },
    /// The loader answered, or failed.
    Loaded {
        /// The data set.
        accessor: &'static str,
        /// How many keys it was asked for.
        keys: usize,
        /// How many of them have a row; `None` if it failed.
        found: Option<usize>,
        /// From the connection to the last row.
        took: Duration,
    },
    /// A load is over, its fill included.
    LoadSettled {
        /// The data set.
        accessor: &'static str,
        /// How many of its values and absences the store took.
        filled: usize,
    },
    /// Keys are about to be deleted, since the data under them changed.
    Flush {
        /// They, without prefix.
        keys: &'e Keys,
    },
    /// Keys were deleted in every generation, or not everywhere.
    Flushed {
        /// They, without prefix.
        keys: &'e Keys,
        /// Why the first that wasn't deleted everywhere wasn't.
        failed: Option<ErrorKind>,
    },
}

/// A call that was answered, or failed.
#[non_exhaustive]
pub struct ReadEvent<'e, S: Source> {
    /// The data set.
    pub accessor: &'static str,
    /// Whether it was for one key, and not a bulk read.
    pub is_single: bool,
    /// What reads many of them at once: `larder::get_many`, or the function of this data set that does.
    pub bulk: &'static str,
    /// Distinct keys that were asked for.
    pub keys: u64,
    /// Of these, those that a tier had.
    pub tier_hits: u64,
    /// Those whose value the store had.
    pub hits: u64,
    /// Those whose absence the store had.
    pub absent: u64,
    /// Those that were loaded.
    pub misses: u64,
    /// Those that were taken from somebody else's load.
    pub shared: u64,
    pub(super) asked: &'e dyn AnyAsked<S>,
}

impl<S: Source> ReadEvent<'_, S> {
    /// The keys, to be read again later: none of data that never changes, or isn't stored.
    pub fn keys_again(&self) -> Vec<Box<dyn AnyKey<S>>> {
        self.asked.keys_again()
    }
}

impl<S: Source> fmt::Debug for ReadEvent<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadEvent")
            .field("accessor", &self.accessor)
            .field("is_single", &self.is_single)
            .field("keys", &self.keys)
            .field("tier_hits", &self.tier_hits)
            .field("hits", &self.hits)
            .field("absent", &self.absent)
            .field("misses", &self.misses)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// What was asked for, without its types.
pub(super) trait AnyAsked<S: Source> {
    fn keys_again(&self) -> Vec<Box<dyn AnyKey<S>>>;
}

/// What was asked for of one data set.
pub(super) struct AskedOf<'a, D, A>(pub(super) &'a A, pub(super) PhantomData<fn() -> D>);

impl<D: Dataset, A: Asked<D>> AnyAsked<D::Source> for AskedOf<'_, D, A> {
    fn keys_again(&self) -> Vec<Box<dyn AnyKey<D::Source>>> {
        let positions = 0..self.0.len();
        let again = positions.filter_map(|position| Again::<D>::of(self.0.key(position)));
        again.map(|key| Box::new(key) as _).collect()
    }
}

/// A hit, about to be given to its reader.
#[non_exhaustive]
pub struct HitEvent<'e, S: Source> {
    /// The data set.
    pub accessor: &'static str,
    /// The key, with its prefix.
    pub key: Key<'e>,
    /// The cache it is read through.
    pub cache: &'e Cache<S>,
    pub(super) hit: &'e dyn AnyHit<S>,
}

impl<S: Source> HitEvent<'_, S> {
    /// The key, to be read again later, and what the reader is given; `None` of data that never changes, or that may be old
    /// up to its TTL, since neither says anything by differing.
    ///
    /// It takes about as long as encoding the value.
    pub fn again(&self) -> Option<(Box<dyn AnyKey<S>>, Seen)> {
        self.hit.again()
    }
}

impl<S: Source> fmt::Debug for HitEvent<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HitEvent")
            .field("accessor", &self.accessor)
            .finish_non_exhaustive()
    }
}

/// A hit, without its types.
pub(super) trait AnyHit<S: Source> {
    fn again(&self) -> Option<(Box<dyn AnyKey<S>>, Seen)>;
}

/// A hit of one data set.
pub(super) struct HitOf<'h, D: Dataset> {
    pub(super) accessor: &'h Accessor<D>,
    pub(super) key: &'h D::Key,
    pub(super) value: Option<&'h Answer<D>>,
}

impl<D: Dataset> AnyHit<D::Source> for HitOf<'_, D> {
    fn again(&self) -> Option<(Box<dyn AnyKey<D::Source>>, Seen)> {
        if matches!(D::LIFETIME, Lifetime::TtlOnly(_)) {
            return None;
        }
        let key = Again::<D>::of(self.key)?;
        Some((Box::new(key), Seen::of::<D>(self.accessor, self.value)))
    }
}
