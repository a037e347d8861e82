//! Which tier a data set has, and so what its readers get and who may ask.
//!
//! Two kinds of values may stay decoded in the process: those of one request, and those that can't change while the
//! running code runs. A data set chooses by [`Dataset::Tier`](super::Dataset::Tier); everything else follows from the
//! types. Why nothing else gets in is in `docs/architecture.md`.

use std::fmt;
use std::sync::Arc;

use super::SharedValue;

mod sealed {
    #[diagnostic::on_unimplemented(
        message = "`{Self}` can't be made a tier",
        label = "isn't one of larder's tiers",
        note = "there are `NoTier`, `RequestTier` (values live for one request) and `DeployTier` (values that can't change \
                while this code runs); what else is kept in a process may be old, since no write elsewhere reaches it"
    )]
    pub trait Sealed {}
    impl Sealed for super::NoTier {}
    impl Sealed for super::RequestTier {}
    impl Sealed for super::DeployTier {}
}

/// The tier of a data set: [`NoTier`], [`RequestTier`] or [`DeployTier`].
///
/// There are no others: data that changes and is shared between requests has no place in process memory, since a write
/// elsewhere can't reach it before it is read again.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be the tier of values of type `{V}`",
    note = "a data set's `type Tier` is `NoTier`, `RequestTier` (values live for one request) or `DeployTier` (values \
            that can't change while this code runs)"
)]
pub trait Tier<V>: sealed::Sealed + Send + Sync + 'static {
    /// What readers get: the value itself, or a share of it.
    type Held: Clone + Send + Sync + 'static;

    #[doc(hidden)]
    const KIND: TierKind;

    #[doc(hidden)]
    fn hold(value: V) -> Self::Held;

    #[doc(hidden)]
    fn value(held: &Self::Held) -> &V;

    #[doc(hidden)]
    fn share(held: &Self::Held) -> Option<SharedValue>;

    #[doc(hidden)]
    fn recall(shared: SharedValue) -> Option<Self::Held>;
}

/// Which of the tiers one is.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierKind {
    /// See [`NoTier`].
    None,
    /// See [`RequestTier`].
    Request,
    /// See [`DeployTier`].
    Deploy,
}

/// Values are in the store alone; each reader gets its own.
#[derive(Debug)]
pub enum NoTier {}

/// Values are kept for the rest of the request that read them, and shared by its readers: they get `Arc<Value>`.
///
/// Such a data set is read with a [`ScopedReader`](super::ScopedReader): a request, or a transaction's connection. Within
/// a request a key is as fresh as its first read, whatever its TTL.
#[derive(Debug)]
pub enum RequestTier {}

/// Values are built once per process and kept as long as it runs: readers get `Arc<Value>`.
///
/// For what is expensive to build and can't change while this code runs: a source map, compiled templates. The value's
/// type says so by [`DeployImmutable`], and the data set's [`LIFETIME`](super::Dataset::LIFETIME) is
/// [`Lifetime::Immutable`](super::Lifetime::Immutable).
///
/// A data set of this tier that is stored as well is shared with every process of the prefix, so that each release needs a
/// prefix of its own. A loader that itself reads another value of this tier shares no build, so that two loaders that need
/// the same one at once build it twice.
#[derive(Debug)]
pub enum DeployTier {}

impl<V: Clone + Send + Sync + 'static> Tier<V> for NoTier {
    type Held = V;

    const KIND: TierKind = TierKind::None;

    fn hold(value: V) -> V {
        value
    }

    fn value(held: &V) -> &V {
        held
    }

    fn share(_: &V) -> Option<SharedValue> {
        None
    }

    fn recall(_: SharedValue) -> Option<V> {
        None
    }
}

// Twice, and not by a macro: the compiler shows these impls to who has chosen the wrong tier.
impl<V: Send + Sync + 'static> Tier<V> for RequestTier {
    type Held = Arc<V>;

    const KIND: TierKind = TierKind::Request;

    fn hold(value: V) -> Arc<V> {
        Arc::new(value)
    }

    fn value(held: &Arc<V>) -> &V {
        held
    }

    fn share(held: &Arc<V>) -> Option<SharedValue> {
        let shared: SharedValue = Arc::<V>::clone(held);
        Some(shared)
    }

    fn recall(shared: SharedValue) -> Option<Arc<V>> {
        shared.downcast().ok()
    }
}

impl<V: DeployImmutable> Tier<V> for DeployTier {
    type Held = Arc<V>;

    const KIND: TierKind = TierKind::Deploy;

    fn hold(value: V) -> Arc<V> {
        Arc::new(value)
    }

    fn value(held: &Arc<V>) -> &V {
        held
    }

    fn share(held: &Arc<V>) -> Option<SharedValue> {
        let shared: SharedValue = Arc::<V>::clone(held);
        Some(shared)
    }

    fn recall(shared: SharedValue) -> Option<Arc<V>> {
        shared.downcast().ok()
    }
}

/// Marks a type whose values can't change while the running code runs, so that they may be kept in the process.
///
/// Implement it on purpose, for one type, by name: what is read from files that are deployed with the program, or
/// computed from its constants. What a user, an operator or another process can change isn't such a type, however rarely
/// it changes: a process that keeps it never learns of the write.
///
/// ```
/// struct SourceMap { /* … */ }
///
/// /// The file is part of the release.
/// impl larder_core::DeployImmutable for SourceMap {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` isn't marked `DeployImmutable`, so the process can't keep its values",
    label = "may change while this code runs",
    note = "if another process or a user can change it, use `RequestTier` (kept for one request) or `NoTier` (in the store)",
    note = "if it can't change while this code runs, wrap it in a type of its own and write `impl DeployImmutable for …`"
)]
pub trait DeployImmutable: Send + Sync + 'static {}

/// The tiers whose data may change, and so can be flushed, refreshed and read past the cache: all but [`DeployTier`].
#[diagnostic::on_unimplemented(
    message = "data of the tier `{Self}` never changes while this code runs, so it can't be flushed, refreshed or read anew",
    label = "this data set has `type Tier = {Self}`",
    note = "processes keep such values until they end; if the data can change, its tier is `RequestTier` or `NoTier`"
)]
pub trait Changing: sealed::Sealed {}

impl Changing for NoTier {}
impl Changing for RequestTier {}

impl fmt::Display for TierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Request => "request",
            Self::Deploy => "deploy",
        })
    }
}
