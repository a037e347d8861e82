//! What a person writes to have something cached.

use std::error::Error;
use std::hash::Hash;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Source, Tier};
use crate::contract::{KeyPart, KeyWriter};
use crate::entry::{Codec, Compression, owned_bytes};
use crate::write::FlushOn;

/// Any error, as conversions of stored forms give it.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A set of values that are cached alike: name, key, value, loader, lifetime.
///
/// Bulk is the primitive: the loader gets every key that is missing at once. It sees a connection and its keys,
/// nothing else, since what isn't in the key can't shape the value. Two data sets never share a name, even if they
/// return the same type: one that filters would serve, and store, other values than one that doesn't.
///
/// ```
/// # use std::convert::Infallible; use std::collections::HashMap; use std::sync::Arc; use std::time::Duration;
/// # #[derive(Clone)] struct Db; struct Conn; impl Conn { async fn users(&mut self, ids: &[u64]) -> Result<Vec<User>, Infallible> { Ok(vec![]) } }
/// # impl larder_core::Source for Db { type Conn = Conn; type Guard = Box<Conn>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<Conn>, Infallible> { Ok(Box::new(Conn)) } }
/// use larder_core::{Dataset, FlushOn, Lifetime, NoTier, Plain};
///
/// #[derive(Clone, serde::Serialize, serde::Deserialize)]
/// struct User { id: u64, name: String }
///
/// enum UserById {}
///
/// impl Dataset for UserById {
///     const NAME: &'static str = "user_by_id";
///     const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(7 * 24 * 3600));
///     type Source = Db;
///     type Key = u64;
///     type Value = User;
///     type Form = Plain;
///     type Tier = NoTier;
///     type Error = Infallible;
///
///     fn flush_on(plan: &mut FlushOn<Self>) {
///         plan.by_hand(); // or, with transactions, the entity that is shown: see `FlushOn`
///     }
///
///     async fn load(db: &mut Conn, ids: Vec<u64>) -> Result<Vec<(u64, User)>, Infallible> {
///         // SELECT … WHERE id IN (…): rows in any order, and none for an id that doesn't exist
///         Ok(db.users(&ids).await?.into_iter().map(|user| (user.id, user)).collect())
///     }
/// }
/// ```
pub trait Dataset: Sized + 'static {
    /// Names the accessor in keys, statistics and spans: 1 to 64 characters of `[A-Za-z0-9._-]`.
    const NAME: &'static str;

    /// How long an entry may be served.
    const LIFETIME: Lifetime;

    /// How long an absence may be served; the shorter of the TTL and a minute if not given.
    ///
    /// Whoever creates a row flushes its key, or readers may miss it this long.
    const ABSENT_TTL: Option<Duration> = None;

    /// Raise it when a value of the same type gets another meaning, or when what [`KeyPart`] or `flush_on` does changes
    /// behind the same types: older entries then are misses, and two versions of the code don't share any.
    const REVISION: u32 = 0;

    /// Names what [`write_key`](Self::write_key) does: two versions of the code in which it differs share no entries,
    /// since neither can name the other's keys.
    const KEY: &'static str = "";

    /// Whether entries outlive a deploy: the next version of the code finds them, if type, rule and
    /// [`REVISION`](Self::REVISION) are the same. It needs a source with an outbox, and a `REVISION` of at least 1, since
    /// a loader that means something else behind the same type is only told by that.
    const OUTLIVES_DEPLOYS: bool = false;

    /// Stands for the shape of the value where it can't be derived from serde (`flatten`, `untagged`, validating
    /// constructors); raise it with every change of the type.
    const SCHEMA: Option<u64> = None;

    /// How values become bytes.
    const CODEC: Codec = Codec::Postcard;

    /// Whether the bytes are compressed.
    const COMPRESSION: Compression = Compression::None;

    /// Larger values, in bytes before compression, are served and not stored.
    const MAX_VALUE: usize = 512 * 1024;

    /// How long the right to fill an entry lasts: longer than any load that should be stored.
    const LEASE: Duration = Duration::from_secs(10);

    /// A load that takes longer fails, since a hung query would hold its keys for ever.
    const LOAD_TIMEOUT: Duration = Duration::from_secs(30);

    /// How many loads of this data set run at once in one process.
    const MAX_LOADS: usize = 8;

    /// What a reader of many keys calls, for whoever finds them read one by one.
    #[doc(hidden)]
    const BULK: &'static str = "larder::get_many";

    /// Where loads come from.
    type Source: Source;
    /// The arguments.
    type Key: KeyPart + Clone + Eq + Hash + Send + Sync + 'static;
    /// What is cached. Readers get it as it is, or a share of it, as the tier says.
    type Value: Send + Sync + 'static;
    /// How a value is stored: [`Plain`], a type of one's own that converts, or not at all: [`Unstored`].
    type Form: Form<Self::Value>;
    /// Whether values stay decoded in the process: [`NoTier`](super::NoTier), [`RequestTier`](super::RequestTier) or
    /// [`DeployTier`](super::DeployTier).
    type Tier: Tier<Self::Value>;
    /// Why a load failed.
    type Error: Error + Send + Sync + From<<Self::Source as Source>::Error> + 'static;

    /// Writes the parts of a key: the key function. Two sets of arguments must write the same only if they are equal.
    ///
    /// By default each argument writes itself. Where that isn't enough (a text of any length that is digested, a word
    /// between two parts) say so here, and name the rule by [`KEY`](Self::KEY).
    fn write_key(key: &Self::Key, writer: &mut KeyWriter<'_>) {
        key.write(writer);
    }

    /// Declares what makes entries stale. Data that may change ([`Lifetime::Ttl`]) needs it: without a declaration the
    /// data set is refused.
    fn flush_on(plan: &mut FlushOn<Self>) {
        let _ = plan;
    }

    /// Loads the values of these keys, which are distinct and at least one.
    ///
    /// Rows come in any order; a key without a row is absent; a row that nobody asked for is ignored and counted.
    fn load(
        conn: &mut <Self::Source as Source>::Conn,
        keys: Vec<Self::Key>,
    ) -> impl Future<Output = Result<Rows<Self>, Self::Error>> + Send;
}

/// The arguments of a data set, as its key function writes them.
pub(crate) struct KeyOf<'k, D: Dataset>(pub(crate) &'k D::Key);

impl<D: Dataset> KeyPart for KeyOf<'_, D> {
    fn write(&self, key: &mut KeyWriter<'_>) {
        D::write_key(self.0, key);
    }
}

/// What the readers of a data set get: its value, or, where it has a tier, `Arc<Value>`.
pub type Answer<D> = <<D as Dataset>::Tier as Tier<<D as Dataset>::Value>>::Held;

/// What a loader answers: values with their keys, in any order.
pub type Rows<D> = Vec<(<D as Dataset>::Key, <D as Dataset>::Value)>;

/// How long entries may be served, and what keeps them right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// At most this long; whoever changes the data also flushes the key.
    Ttl(Duration),
    /// At most this long, and nobody flushes: up to this old is right.
    TtlOnly(Duration),
    /// For ever: the value of a key never changes. Absence isn't remembered, since it may end.
    Immutable,
}

impl Lifetime {
    /// How long a value may be served; `None` for ever.
    pub const fn ttl(self) -> Option<Duration> {
        match self {
            Self::Ttl(ttl) | Self::TtlOnly(ttl) => Some(ttl),
            Self::Immutable => None,
        }
    }
}

/// Marks a data set whose [`Dataset::LIFETIME`] is [`Lifetime::Immutable`], so that values in hand may be stored with
/// [`prime`](crate::prime).
#[diagnostic::on_unimplemented(
    message = "`{Self}` isn't marked `Immutable`, so values in hand can't be stored",
    note = "a value in hand may be older than a write; `warm` goes through the loader instead",
    note = "if a key's value never changes, set LIFETIME to Lifetime::Immutable and write `impl Immutable for {Self} {{}}`"
)]
pub trait Immutable: Dataset {}

/// How values are stored: the marshalling hooks.
///
/// [`Plain`] stores the value as serde writes it. A form of one's own stores something else (finished JSON, a slimmer
/// struct) and converts both ways; a conversion that fails costs a load, never an error to the caller.
///
/// ```
/// # use larder_core::{BoxError, Form};
/// #[derive(Clone)]
/// struct Page { url: String, html: String }
///
/// /// Stores the text alone: the address is in the key.
/// enum HtmlOnly {}
///
/// impl Form<Page> for HtmlOnly {
///     type Out<'a> = &'a str;
///     type In = String;
///
///     fn to_stored(page: &Page) -> Result<&str, BoxError> {
///         Ok(&page.html)
///     }
///
///     fn from_stored(html: String) -> Result<Page, BoxError> {
///         let url = html.lines().next().ok_or("a page without its first line")?.to_owned();
///         Ok(Page { url, html })
///     }
/// }
/// ```
pub trait Form<V>: 'static {
    #[doc(hidden)]
    const STORED: bool = true;
    /// Whether what is stored is the value itself.
    #[doc(hidden)]
    const PLAIN: bool = false;

    /// What is written; it may borrow from the value.
    type Out<'a>: Serialize
    where
        V: 'a;
    /// What is read.
    type In: DeserializeOwned;

    /// The stored form of this value.
    fn to_stored(value: &V) -> Result<Self::Out<'_>, BoxError>;

    /// The value of this stored form.
    fn from_stored(stored: Self::In) -> Result<V, BoxError>;

    /// About how many bytes a value takes in memory, with all that it owns: what a tier's budget counts.
    ///
    /// By default it is estimated from the stored form, which takes about as long as encoding it; what has none, isn't
    /// kept.
    fn bytes(value: &V) -> usize {
        let size = size_of::<V>();
        let owned = Self::to_stored(value).map_or(usize::MAX, |stored| owned_bytes(&stored, size));
        size.saturating_add(owned)
    }
}

/// The form of values that are stored as they are.
#[derive(Debug)]
pub enum Plain {}

impl<V: Serialize + DeserializeOwned + 'static> Form<V> for Plain {
    const PLAIN: bool = true;

    type Out<'a> = &'a V;
    type In = V;

    fn to_stored(value: &V) -> Result<&V, BoxError> {
        Ok(value)
    }

    fn from_stored(stored: V) -> Result<V, BoxError> {
        Ok(stored)
    }
}

/// The form of values that are never stored: they live in a tier alone.
///
/// For what has no serialized form, or is cheaper to load than to fetch. Their bytes can't be estimated from a stored
/// form, so the value says how many it takes.
///
/// ```
/// # use larder_core::Weigh;
/// struct SourceMap { tokens: Vec<(u32, u32)>, names: Vec<String> }
///
/// impl Weigh for SourceMap {
///     fn bytes(&self) -> usize {
///         size_of::<Self>()
///             + self.tokens.capacity() * size_of::<(u32, u32)>()
///             + self.names.iter().map(|name| size_of::<String>() + name.capacity()).sum::<usize>()
///     }
/// }
/// ```
#[derive(Debug)]
pub enum Unstored {}

/// A value that knows how many bytes it takes in memory, with all that it owns.
#[diagnostic::on_unimplemented(
    message = "`{Self}` doesn't say how many bytes it takes, so a tier can't bound it",
    note = "values of `type Form = Unstored` have no stored form to estimate it from: write `impl Weigh` for a type of \
            your own"
)]
pub trait Weigh {
    /// About how many bytes it takes.
    fn bytes(&self) -> usize;
}

impl<V: Weigh + 'static> Form<V> for Unstored {
    const STORED: bool = false;

    type Out<'a> = ();
    type In = ();

    fn to_stored(_: &V) -> Result<(), BoxError> {
        Err("values of this form are never stored".into())
    }

    fn from_stored((): ()) -> Result<V, BoxError> {
        Err("values of this form are never stored".into())
    }

    fn bytes(value: &V) -> usize {
        value.bytes()
    }
}
