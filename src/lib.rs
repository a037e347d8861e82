#![doc = include_str!("../README.md")]

pub use larder_backends as backends;
pub use larder_backends::{BuilderExt, Registry};
#[cfg(feature = "memcached")]
pub use larder_backends::{BulkForm, Hashing, Memcached, MemcachedConfig};
#[cfg(feature = "memory")]
pub use larder_backends::{Memory, MemoryConfig};
#[cfg(feature = "conformance")]
pub use larder_core::conformance;
#[doc(hidden)]
pub use larder_core::private;
pub use larder_core::{
    AccessorStats, Answer, AnyKey, Backend, BackendExt, BackendStats, Backlog, Batch, Before,
    BoxError, Cache, CacheBuilder, CacheStats, CallStats, Change, Changing, Clock, Codec,
    CommitError, CommitFailure, Committed, Compression, Config, Dataset, Decide, DeployImmutable,
    DeployTier, Dictionary, Difference, Direct, Edit, Entity, Error, ErrorKind, Event, FieldBits,
    FieldSet, Flush, FlushError, FlushOn, FlushQuery, Form, Generation, HasCache, HitCheck,
    HitChecks, HitEvent, Immutable, KeyPart, KeyWriter, Keys, Latency, Lifetime, Listener,
    LiveGeneration, LoadError, LockRow, Missing, NoTier, Observed, Outbox, Pending, Plain, Plan,
    Pool, Prefix, Purge, PutOff, Reach, ReadEvent, Reader, ReaderOf, RecentFlush, Register,
    Registered, RequestTier, Result, Route, Row, RowId, Rows, Rt, Savepoint, ScopedReader, Seen,
    ServerCheck, ServerStats, Source, StaleHit, Tally, Tier, TierStats, TiersStats,
    TransactionError, Transactional, Tx, Uncached, Unstored, Weigh, WriteStats, contract, dataset,
    entry, get, get_many, link, plan, prime, refresh, uncached, warm,
};
#[cfg(feature = "macros")]
pub use larder_macros::{Entity, KeyPart, Reader, cached};
#[cfg(feature = "testing")]
pub use larder_testing as testing;
#[cfg(feature = "axum")]
pub use larder_tiers::NoRequest;
#[cfg(feature = "tiers")]
pub use larder_tiers::{Request, Tiers, TiersConfig};
#[cfg(feature = "tower")]
pub use larder_tiers::{RequestFuture, RequestLayer, RequestService};

/// The examples of the page on attributes run.
#[cfg(all(doctest, feature = "macros", feature = "memory", feature = "tiers"))]
#[doc = include_str!("../docs/attributes.md")]
enum Attributes {}

/// The examples of the page on tests run.
#[cfg(all(doctest, feature = "testing"))]
#[doc = include_str!("../docs/testing.md")]
enum Testing {}
