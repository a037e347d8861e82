#![doc = include_str!("../README.md")]

pub use larder_backends as backends;
pub use larder_backends::{BuilderExt, Registry};
#[cfg(feature = "memcached")]
pub use larder_backends::{BulkForm, Hashing, Memcached, MemcachedConfig};
#[cfg(feature = "memory")]
pub use larder_backends::{Memory, MemoryConfig};
#[cfg(feature = "conformance")]
pub use larder_core::conformance;
pub use larder_core::{
    AccessorStats, Answer, Backend, BackendExt, BackendStats, Batch, BoxError, Cache, CacheBuilder,
    CacheStats, CallStats, Changing, Codec, Compression, Config, Dataset, DeployImmutable,
    DeployTier, Dictionary, Direct, Error, ErrorKind, FlushError, Form, Generations, Immutable,
    KeyPart, KeyWriter, Keys, Latency, Lifetime, LoadError, Missing, NoTier, Observed, Plain, Pool,
    Prefix, Reach, Reader, ReaderOf, RequestTier, Result, Route, Rows, Rt, ScopedReader,
    ServerCheck, ServerStats, Source, Tally, Tier, TierStats, TiersStats, Unstored, Weigh,
    contract, entry, get, get_many, prime, refresh, uncached, warm,
};
#[cfg(feature = "axum")]
pub use larder_tiers::NoRequest;
#[cfg(feature = "tiers")]
pub use larder_tiers::{Request, Tiers, TiersConfig};
#[cfg(feature = "tower")]
pub use larder_tiers::{RequestFuture, RequestLayer, RequestService};
