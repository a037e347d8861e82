//! Changes: what one write did to one entity.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Entity, FieldBits};

/// An image of an entity that was read under a row lock, in the transaction that holds it.
///
/// Only the guard makes one, by [`Tx::lock`](crate::Tx::lock): a before image that was read without the lock may be older
/// than another write, whose key then nobody flushes. It stands for its lock: a change that is said by it in another
/// transaction, or after the savepoint was undone in which it was read, is refused at the commit.
#[derive(Debug)]
pub struct Before<T> {
    image: T,
    lock: LockId,
}

/// Names the lock of a row, in all caches of the process; later ones are greater.
pub(super) type LockId = u64;

/// Names one more lock.
pub(super) fn next_lock() -> LockId {
    static LOCKS: AtomicU64 = AtomicU64::new(0);
    LOCKS.fetch_add(1, Ordering::Relaxed)
}

impl<T> Before<T> {
    pub(super) fn new(image: T, lock: LockId) -> Self {
        Self { image, lock }
    }

    /// The image, for those who change it in place; it stands for nothing any more.
    pub fn into_inner(self) -> T {
        self.image
    }
}

impl<T> Deref for Before<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.image
    }
}

/// What one write did: the images before and after it, or the ids of the rows it touched.
///
/// Of an update both images are asked for their keys: a user whose address changed is flushed under both.
pub struct Change<'a, T: Entity> {
    pub(super) what: What<'a, T>,
    pub(super) fields: FieldBits,
    /// Under which its image before was read, if it has to be one of the transaction's.
    pub(super) lock: Option<LockId>,
}

pub(super) enum What<'a, T: Entity> {
    Images {
        before: Option<&'a T>,
        after: Option<&'a T>,
    },
    Rows(Vec<T::Id>),
}

impl<'a, T: Entity> Change<'a, T> {
    /// A row was created; all of its fields count as changed.
    pub fn create(after: &'a T) -> Self {
        Self::images(None, Some(after), FieldBits::ALL)
    }

    /// A row was changed.
    pub fn update(before: &'a Before<T>, after: &'a T) -> Self {
        Self {
            lock: Some(before.lock),
            ..Self::update_unlocked(before, after)
        }
    }

    /// A row was changed, and its image before that wasn't read under its lock.
    ///
    /// Right only if nobody else can change the row meanwhile. Otherwise a key it had in between stays in the cache
    /// until its TTL, without any failure: see [`Before`].
    pub fn update_unlocked(before: &'a T, after: &'a T) -> Self {
        Self::images(Some(before), Some(after), before.diff(after))
    }

    /// A row was deleted; all of its fields count as changed.
    pub fn delete(before: &'a Before<T>) -> Self {
        Self {
            lock: Some(before.lock),
            ..Self::delete_unlocked(before)
        }
    }

    /// A row was deleted, and its image wasn't read under its lock: see [`Change::update_unlocked`].
    pub fn delete_unlocked(before: &'a T) -> Self {
        Self::images(Some(before), None, FieldBits::ALL)
    }

    /// Whether there was no row before.
    pub(super) fn is_creation(&self) -> bool {
        matches!(self.what, What::Images { before: None, .. })
    }

    /// Whether a whole row came or went.
    pub(super) fn is_whole(&self) -> bool {
        matches!(
            self.what,
            What::Images { before: None, .. } | What::Images { after: None, .. }
        )
    }

    fn images(before: Option<&'a T>, after: Option<&'a T>, fields: FieldBits) -> Self {
        Self {
            what: What::Images { before, after },
            fields,
            lock: None,
        }
    }
}

impl<T: Entity> Change<'static, T> {
    /// These fields of many rows were changed by one statement, and there are no images.
    ///
    /// Allowed for fields in [`Entity::SET_BASED`], whose watchers are keyed by the primary key alone; the commit is
    /// refused otherwise.
    pub fn rows(ids: impl IntoIterator<Item = T::Id>, fields: impl Into<FieldBits>) -> Self {
        Self {
            what: What::Rows(ids.into_iter().collect()),
            fields: fields.into(),
            lock: None,
        }
    }
}

impl<T: Entity> fmt::Debug for Change<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("entity", &T::NAME)
            .field("fields", &self.fields.names::<T::Field>())
            .finish_non_exhaustive()
    }
}
