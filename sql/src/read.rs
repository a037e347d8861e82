//! What both databases read and refuse alike.

use std::time::Duration;

use larder_core::{Edit, Error, ErrorKind, Generation, Purge, Registered};

/// A row of `larder_generation`: id, version, pool, holder, manifest, age and what is left of it.
pub(crate) type ListedGeneration<T> = (String, String, String, String, String, T, T);

/// A row of `larder_purge`: accessor, epoch, former epoch and age.
pub(crate) type ListedPurge<T> = (String, String, Option<String>, T);

/// What is registered, of a database whose times become durations like this.
pub(crate) fn registered<T>(
    generations: Vec<ListedGeneration<T>>,
    purges: Vec<ListedPurge<T>>,
    duration: impl Fn(T) -> Duration,
) -> Registered {
    let generation =
        |(id, version, pool, holder, manifest, age, left): ListedGeneration<T>| Generation {
            id,
            version,
            pool,
            holder,
            manifest,
            age: duration(age),
            left: duration(left),
        };
    let purge = |(accessor, epoch, former, age): ListedPurge<T>| Purge {
        accessor,
        epoch,
        former,
        age: duration(age),
    };
    Registered {
        generations: generations.into_iter().map(generation).collect(),
        purges: purges.into_iter().map(purge).collect(),
    }
}

/// Rows of the outbox that are counted. Every process counts them, and when there are millions the database has enough to
/// do.
pub(crate) const COUNTED: i64 = 100_000;

/// An edit of a newer larder-core.
pub(crate) fn unknown(edit: &Edit) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("larder-sqlx can't do {edit:?}; give it the version of larder-core"),
    )
}

/// A limit as SQL takes it.
pub(crate) fn count(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
