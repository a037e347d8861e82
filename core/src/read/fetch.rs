//! The way of one read: ask the store, open what it has, load what it hasn't.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use smallvec::SmallVec;
use tracing::{Instrument as _, Span};

use super::accessor::{Accessor, Opened};
use super::flight::{Terms, Ticket};
use super::listener::{AskedOf, HitOf};
use super::load::{self, Order};
use super::memo::{self, Memo};
use super::{
    Answer, Batch, Cache, Changing, Dataset, DeployImmutable, DeployTier, Event, Form, HitEvent,
    Immutable, KeyOf, Lifetime, LoadError, ReadEvent, Reader, ReaderOf, Route, Source, Tier,
    gather,
};
use crate::contract::{
    Error, GetOptions, Key, Keys, Lease, Lookup, Result, Set, Token, WriteOptions,
};
use crate::generation::Reading;
use crate::{Instant, Mechanism};

/// Keys that are leased, loaded and filled together. On a full small server the placeholders of more would evict each
/// other before they are filled.
const WINDOW: usize = 2_000;

/// How long a loser of a lease waits before it looks again, and how often.
const POLLS: [Duration; 5] = [
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(8),
    Duration::from_millis(16),
    Duration::from_millis(32),
];

/// A lease is taken over when it is older than this, and than twice what all but one in a hundred loads take.
const OLD_LEASE: Duration = Duration::from_secs(2);

/// How long warming waits after a failure, beside the pause that its builds make.
const WARM_AGAIN: Duration = Duration::from_secs(1);

/// Stands for the lease where there are none: what is stored under it is immutable.
const UNFENCED: Token = Token {
    token: [0; 2],
    origin: 0,
};

/// The value of this key: from the store, or else loaded and stored. `None` if it has no row.
///
/// One trip on a hit, none if the data set has a tier that keeps the value; on a miss the load and one fill, which the
/// caller doesn't wait for. Trouble with the store costs a load, never an error. Dropping the future leaves a load that
/// is under way to its end.
///
/// # Errors
///
/// Those of the load: see [`LoadError`].
///
/// ```
/// # use larder_core::{Cache, Dataset, Direct, LoadError, Source};
/// # async fn show<S: Source, UserById: Dataset<Source = S, Key = u64, Tier = larder_core::NoTier, Value: Clone>>(cache: Cache<S>, mut transaction: Box<S::Conn>) -> Result<(), LoadError<UserById::Error>> where S::Conn: Sized {
/// let user = larder_core::get::<UserById>(&cache, &7).await?;
///
/// // Inside a transaction: past the cache, so that its own writes are seen and nothing is filled.
/// let user = larder_core::get::<UserById>(Direct(&mut *transaction), &7).await?;
/// # Ok(()) }
/// ```
pub async fn get<'a, D: Dataset>(
    reader: impl ReaderOf<'a, D::Source, D::Tier>,
    key: &D::Key,
) -> Result<Option<Answer<D>>, LoadError<D::Error>> {
    read_one::<D>(reader, key, Way::Through).await
}

/// The values of these keys: one exchange with the store per server, one call of the loader for what it hasn't, one
/// fill.
///
/// Keys may repeat; each is asked for once. Of a batch that misses more than 2,000 keys, these are loaded 2,000 at a
/// time.
///
/// # Errors
///
/// Those of the loads: one that fails, fails the call.
///
/// ```
/// # use larder_core::{Cache, Dataset, LoadError, Source};
/// # async fn show<S: Source, Messages: Dataset<Source = S, Key = u64, Tier = larder_core::NoTier, Value: Clone>>(cache: Cache<S>) -> Result<(), LoadError<Messages::Error>> {
/// let ids = [7, 9, 7];
/// let messages = larder_core::get_many::<Messages>(&cache, ids).await?;
/// for (id, message) in messages.iter() {
///     // 7, 9, 7, as asked; `None` for an id without a row
/// }
/// # Ok(()) }
/// ```
pub async fn get_many<'a, D: Dataset>(
    reader: impl ReaderOf<'a, D::Source, D::Tier>,
    keys: impl IntoIterator<Item = impl Borrow<D::Key>> + Send,
) -> Result<Batch<D::Key, Answer<D>>, LoadError<D::Error>> {
    let mut batch = Batch::of(keys.into_iter());
    match reader.route() {
        _ if batch.is_empty() => {}
        Route::Cached(cache) => read_many::<D>(cache, &mut batch).await?,
        Route::Direct(conn) => load_directly::<D>(conn, &mut batch).await?,
    }
    Ok(batch)
}

/// The value of this key as the source has it now; neither the store nor a tier is asked or filled.
///
/// # Errors
///
/// Those of the load.
pub async fn uncached<'a, D: Dataset<Tier: Changing>>(
    reader: impl ReaderOf<'a, D::Source, D::Tier>,
    key: &D::Key,
) -> Result<Option<Answer<D>>, LoadError<D::Error>> {
    read_one::<D>(reader, key, Way::Past).await
}

/// Loads the value of this key again, and stores it in place of the one that is there.
///
/// The fill is fenced like any other: if the key is flushed meanwhile, it is lost. What a request keeps of the key is
/// replaced too. It doesn't compile for the deploy tier, whose values never change.
///
/// # Errors
///
/// Those of the load.
pub async fn refresh<'a, D: Dataset<Tier: Changing>>(
    reader: impl ReaderOf<'a, D::Source, D::Tier>,
    key: &D::Key,
) -> Result<Option<Answer<D>>, LoadError<D::Error>> {
    read_one::<D>(reader, key, Way::Refresh).await
}

pub(super) async fn read_many<D: Dataset>(
    cache: &Cache<D::Source>,
    asked: &mut impl Asked<D>,
) -> Result<(), LoadError<D::Error>> {
    let Some(memo) = Memo::recall::<D>(cache, asked, Way::Through) else {
        tell_kept::<D>(cache, asked);
        return Ok(());
    };
    let span = tracing::debug_span!(
        "larder.get_many",
        accessor = D::NAME,
        keys = asked.len(),
        hits = tracing::field::Empty
    );
    Fetch::<D, _>::new(cache, asked, memo, span.clone())
        .run(Way::Through)
        .instrument(span)
        .await
}

pub(super) async fn read_one<'a, D: Dataset>(
    reader: impl Reader<'a, D::Source>,
    key: &D::Key,
    way: Way,
) -> Result<Option<Answer<D>>, LoadError<D::Error>> {
    let mut one = One::<D> { key, value: None };
    match reader.route() {
        Route::Cached(cache) => {
            if way == Way::Through {
                if let Some(value) = memo::kept::<D>(cache, key) {
                    tell_kept::<D>(cache, &one);
                    return Ok(value);
                }
                if let Some(gathering) = &cache.gathering
                    && !load::is_nested()
                    && let Some(answer) = gather::get::<D>(cache, gathering, key).await
                {
                    return answer;
                }
            }
            let memo = Memo::recall::<D>(cache, &mut one, way);
            if memo.is_none() {
                tell_kept::<D>(cache, &one);
            }
            if let Some(memo) = memo {
                let span = match way {
                    Way::Through => tracing::debug_span!(
                        "larder.get",
                        accessor = D::NAME,
                        hits = tracing::field::Empty
                    ),
                    Way::Past | Way::Refresh => Span::none(),
                };
                Fetch::<D, _>::new(cache, &mut one, memo, span.clone())
                    .run(way)
                    .instrument(span)
                    .await?;
            }
        }
        Route::Direct(conn) => load_directly::<D>(conn, &mut one).await?,
    }
    Ok(one.value)
}

/// Tells the listeners of a read that the tier answered.
fn tell_kept<D: Dataset>(cache: &Cache<D::Source>, asked: &impl Asked<D>) {
    if !cache.shared.is_heard() {
        return;
    }
    let keys = asked.len() as u64;
    cache.shared.tell(&Event::Read(ReadEvent {
        accessor: D::NAME,
        is_single: asked.is_single(),
        bulk: D::BULK,
        keys,
        tier_hits: keys,
        hits: 0,
        absent: 0,
        misses: 0,
        shared: 0,
        asked: &AskedOf::<D, _>(asked, PhantomData),
    }));
}

/// Has the values of these keys built, in a task that doesn't keep the cache alive.
pub(super) fn warm_apart<D>(cache: &Cache<D::Source>, mut keys: Vec<D::Key>)
where
    D: Dataset<Tier = DeployTier, Value: DeployImmutable>,
{
    let (rt, closing) = (cache.shared.rt, cache.shared.closing.clone());
    let shared = Arc::downgrade(&cache.shared);
    let warm = async move {
        while let Some(shared) = shared.upgrade() {
            let cache = Cache {
                shared,
                tally: None,
                scope: None,
                gathering: None,
            };
            // One by one, so that none waits for another, or fails with it.
            let mut failed = Vec::new();
            for key in keys {
                match get::<D>(&cache, &key).await {
                    Ok(_) => {}
                    Err(LoadError::Closed { .. }) => return,
                    Err(error) => {
                        tracing::warn!(accessor = D::NAME, %error, "warming failed, and is tried again");
                        failed.push(key);
                    }
                }
            }
            if failed.is_empty() {
                return;
            }
            keys = failed;
            drop(cache);
            rt.sleep(WARM_AGAIN).await;
        }
    };
    let until_closed = async move {
        closing.run_until_cancelled(warm).await;
    };
    drop(rt.spawn_apart(until_closed));
}

/// Has the store hold the values of these keys, through the loader: 2,000 keys at a time, one load at once.
///
/// What the deploy tier has already isn't asked for; for what only it keeps, see
/// [`CacheBuilder::warm`](super::CacheBuilder::warm).
///
/// # Errors
///
/// Those of the loads; the keys before the one that failed are stored.
pub async fn warm<D: Dataset>(
    cache: &Cache<D::Source>,
    keys: impl IntoIterator<Item = impl Borrow<D::Key>> + Send,
) -> Result<(), LoadError<D::Error>> {
    // Not for a request, which may have kept what the store has lost.
    let cache = cache.without_scope();
    let keys: Vec<D::Key> = keys.into_iter().map(|key| key.borrow().clone()).collect();
    for chunk in keys.chunks(WINDOW) {
        read_many::<D>(&cache, &mut Batch::of(chunk.iter())).await?;
    }
    Ok(())
}

/// Stores values in hand, without a load: for immutable data sets only, whose values can't be too old.
///
/// For the others it doesn't compile: a value in hand was read before any lease, so that storing it could undo a
/// write. Use [`warm`].
///
/// ```compile_fail,E0277
/// # use std::{convert::Infallible, time::Duration}; use larder_core::*;
/// # #[derive(Clone)] struct Db; impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
/// # enum Names {} impl Dataset for Names { const NAME: &'static str = "n"; const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(9));
/// #   type Source = Db; type Key = u64; type Value = String; type Form = Plain; type Tier = NoTier; type Error = Infallible;
/// #   async fn load(_: &mut (), _: Vec<u64>) -> Result<Vec<(u64, String)>, Infallible> { Ok(vec![]) } }
/// async fn remember(cache: &Cache<Db>) -> Result<(), Error> {
///     prime::<Names>(cache, [(7, "Ada".to_owned())]).await // Names::LIFETIME is Lifetime::Ttl(…)
/// }
/// ```
///
/// # Errors
///
/// The first value or server that failed; the others are stored.
pub async fn prime<D: Immutable>(
    cache: &Cache<D::Source>,
    values: impl IntoIterator<Item = (D::Key, D::Value), IntoIter: Send> + Send,
) -> Result<(), Error> {
    const {
        assert!(
            matches!(D::LIFETIME, Lifetime::Immutable),
            "this data set is marked `Immutable`, but its LIFETIME isn't"
        );
        assert!(
            D::Form::STORED,
            "values of `type Form = Unstored` aren't stored, so there is nothing to prime"
        );
    }
    let accessor = cache.accessor::<D>();
    if let Err(problem) = &accessor.marshaller {
        return Err(problem.clone());
    }
    let options = WriteOptions::trips(accessor.counters.trips(cache.tally.as_deref()));
    let (now, prefix) = (cache.shared.rt.wall(), cache.prefix_of::<D>());
    let mut first_error = None;
    let mut values = values.into_iter().peekable();
    while values.peek().is_some() {
        let mut wire = Keys::new();
        let mut sets = Vec::new();
        let mut entries = BytesMut::new();
        for (key, value) in values.by_ref().take(WINDOW) {
            let sealed = wire
                .push(prefix, D::NAME, &KeyOf::<D>(&key))
                .and_then(|()| {
                    let key = wire.get(wire.len() - 1);
                    accessor.seal(
                        key,
                        Some(&D::Tier::hold(value)),
                        now,
                        Duration::ZERO,
                        &mut entries,
                    )
                });
            match sealed {
                Ok(()) => sets.push(Set::new(entries.split().freeze())),
                Err(error) => {
                    first_error.get_or_insert(error);
                    wire.truncate(sets.len());
                }
            }
        }
        let backend = &cache.shared.backend;
        for answer in backend.set_immutable_many(&wire, sets, &options).await {
            if let Err(error) = answer {
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Loads on the caller's own connection, past the cache.
async fn load_directly<D: Dataset>(
    conn: &mut <D::Source as Source>::Conn,
    asked: &mut impl Asked<D>,
) -> Result<(), LoadError<D::Error>> {
    let keys = (0..asked.len()).map(|index| asked.key(index).clone());
    let rows = D::load(conn, keys.collect()).await;
    for (key, value) in rows.map_err(|error| LoadError::Loader(Arc::new(error)))? {
        if let Some(index) = asked.index(&key) {
            asked.set(index, Some(D::Tier::hold(value)));
        }
    }
    Ok(())
}

/// The distinct keys that were asked for, and room for their values.
pub(super) trait Asked<D: Dataset>: Send + Sync {
    /// Whether one key was asked for, and not a batch of them.
    fn is_single(&self) -> bool;
    fn len(&self) -> usize;
    fn key(&self, index: usize) -> &D::Key;
    fn index(&self, key: &D::Key) -> Option<usize>;
    fn value(&self, index: usize) -> Option<&Answer<D>>;
    fn set(&mut self, index: usize, value: Option<Answer<D>>);
}

/// One key, without the map that a batch needs.
struct One<'k, D: Dataset> {
    key: &'k D::Key,
    value: Option<Answer<D>>,
}

impl<D: Dataset> Asked<D> for One<'_, D> {
    fn is_single(&self) -> bool {
        true
    }

    fn len(&self) -> usize {
        1
    }

    fn key(&self, _: usize) -> &D::Key {
        self.key
    }

    fn index(&self, key: &D::Key) -> Option<usize> {
        (key == self.key).then_some(0)
    }

    fn value(&self, _: usize) -> Option<&Answer<D>> {
        self.value.as_ref()
    }

    fn set(&mut self, _: usize, value: Option<Answer<D>>) {
        self.value = value;
    }
}

impl<D: Dataset> Asked<D> for Batch<D::Key, Answer<D>> {
    fn is_single(&self) -> bool {
        false
    }

    fn len(&self) -> usize {
        self.values.len()
    }

    fn key(&self, index: usize) -> &D::Key {
        let (key, _) = self
            .values
            .get_index(index)
            .expect("the index is below len");
        key
    }

    fn index(&self, key: &D::Key) -> Option<usize> {
        self.values.get_index_of(key)
    }

    fn value(&self, index: usize) -> Option<&Answer<D>> {
        self.values[index].as_ref()
    }

    fn set(&mut self, index: usize, value: Option<Answer<D>>) {
        self.values[index] = value;
    }
}

/// Positions among the distinct keys; inline for a single one.
pub(super) type Positions = SmallVec<[usize; 1]>;

/// How a read goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From the store, or else loaded and stored.
    Through,
    /// Loaded, and not stored.
    Past,
    /// Loaded, and stored in place of what is there.
    Refresh,
}

/// One read on its way.
///
/// Every key is in exactly one of these places: answered, awaited from somebody else's load (`followed`), to be loaded
/// (`missed`), held by somebody else's lease (`busy`), or not asked for with a lease yet (`later`).
struct Fetch<'f, D: Dataset, A: Asked<D>> {
    cache: &'f Cache<D::Source>,
    accessor: Lent<'f, D>,
    asked: &'f mut A,
    /// The tier in front of this read.
    memo: Memo<'f>,
    /// Under which prefix, and until when.
    reading: Reading,
    span: Span,
    /// Whether a loader asks, which shares nothing with others.
    nested: bool,
    /// The one key is there and good, and is loaded again.
    replaces: bool,
    /// The wire keys of `positions`.
    wire: Keys,
    /// Which distinct key each wire key is.
    positions: Positions,
    missed: Vec<Missed>,
    followed: Vec<(usize, Ticket<D>)>,
    /// Indices of wire keys.
    busy: Positions,
    /// Indices of wire keys.
    later: Positions,
    started: Instant,
    /// The wall clock when the latest exchange began to be answered.
    wall: Option<SystemTime>,
    hits: u64,
    absent: u64,
    misses: u64,
    shared: u64,
    bytes: u64,
}

/// What the reads of a data set share: lent by the cache where that was built with it, so that hits on many cores don't
/// all count in one place.
enum Lent<'c, D: Dataset> {
    Registered(&'c Accessor<D>),
    Other(Arc<Accessor<D>>),
}

impl<'c, D: Dataset> Lent<'c, D> {
    fn by(cache: &'c Cache<D::Source>) -> Self {
        match cache.registered() {
            Some(registered) => Self::Registered(registered),
            None => Self::Other(cache.accessor()),
        }
    }
}

impl<D: Dataset> Deref for Lent<'_, D> {
    type Target = Accessor<D>;

    fn deref(&self) -> &Accessor<D> {
        match self {
            Self::Registered(registered) => registered,
            Self::Other(other) => other,
        }
    }
}

/// A key to be loaded: which distinct key it is, and the lease with its wire key, if its value may be stored.
struct Missed {
    position: usize,
    lease: Option<(usize, Lease)>,
}

impl<'f, D: Dataset, A: Asked<D>> Fetch<'f, D, A> {
    fn new(cache: &'f Cache<D::Source>, asked: &'f mut A, memo: Memo<'f>, span: Span) -> Self {
        Self {
            accessor: Lent::by(cache),
            reading: cache.shared.generations.reading(D::NAME),
            cache,
            asked,
            memo,
            span,
            nested: load::is_nested(),
            replaces: false,
            wire: Keys::new(),
            positions: Positions::new(),
            missed: Vec::new(),
            followed: Vec::new(),
            busy: Positions::new(),
            later: Positions::new(),
            started: cache.shared.rt.now(),
            wall: None,
            hits: 0,
            absent: 0,
            misses: 0,
            shared: 0,
            bytes: 0,
        }
    }

    async fn run(mut self, way: Way) -> Result<(), LoadError<D::Error>> {
        let outcome = self.answer_all(way).await;
        self.count(self.cache.shared.rt.now() - self.started);
        outcome
    }

    async fn answer_all(&mut self, way: Way) -> Result<(), LoadError<D::Error>> {
        if load::is_recursive::<D>(self.cache, self.keys()) {
            return Err(LoadError::Recursive { accessor: D::NAME });
        }
        let bypassed = way == Way::Past
            || !self.reading.through
            || (self.nested && load::is_undeclared::<D>())
            || self.cache.is_bypassed_for(&*self.accessor);
        if way == Way::Refresh && D::Form::STORED && !bypassed {
            for position in 0..self.asked.len() {
                self.address(position);
            }
            self.look_at_tokens().await;
        } else {
            for nth in 0..self.memo.distrusted().len() {
                self.miss(self.memo.distrusted()[nth], None);
            }
            if bypassed {
                self.bypass();
            } else {
                self.follow_or_address(way);
                self.look_up_all().await;
            }
        }
        self.finish().await?;
        self.memo
            .keep(self.cache, &*self.accessor, &mut *self.asked, way);
        Ok(())
    }

    fn keys(&self) -> impl Iterator<Item = &D::Key> {
        (0..self.asked.len()).map(|position| self.asked.key(position))
    }

    /// Has everything loaded that the tier hasn't, and nothing stored.
    fn bypass(&mut self) {
        let count = self.memo.left(self.asked.len());
        self.accessor.counters.bypassed.add(count as u64);
        for nth in 0..count {
            self.miss(self.memo.position(nth), None);
        }
    }

    /// Has everything loaded, under the tokens of what is stored.
    async fn look_at_tokens(&mut self) {
        let wire = std::mem::take(&mut self.wire);
        self.ask(&wire, WINDOW, |fetch, index, lookup| {
            let position = fetch.positions[index];
            let lease = match lookup {
                Ok(Lookup::Hit { token, .. }) => {
                    fetch.replaces = true;
                    Some(Lease::new(token, fetch.now()))
                }
                Ok(Lookup::Miss { lease }) => lease,
                Ok(Lookup::Busy { token, .. }) => {
                    if fetch.follow_token(position, token) {
                        return;
                    }
                    None
                }
                Err(_) => None,
            };
            fetch.miss(position, lease.map(|lease| (index, lease)));
        })
        .await;
        self.wire = wire;
    }

    /// Joins loads that are under way, and makes wire keys of the rest; what isn't stored is loaded.
    fn follow_or_address(&mut self, way: Way) {
        let count = self.memo.left(self.asked.len());
        if D::Form::STORED {
            self.wire = Keys::with_capacity(count);
            self.positions.reserve(count);
        }
        let shared = &self.cache.shared;
        let holds_some =
            !shared.writes.undelivered.is_empty() && !shared.without(Mechanism::PendingBypass);
        let terms = Terms {
            prefix: self.reading.prefix,
            late: shared.without(Mechanism::JoinCutoff),
        };
        for nth in 0..count {
            let position = self.memo.position(nth);
            let addressed = self.wire.len();
            if holds_some && D::Form::STORED {
                // While its flush isn't confirmed, a fill that was stored is no proof of being new.
                self.address(position);
                if self.wire.len() == addressed {
                    continue;
                }
            }
            let alone = self.nested || way == Way::Refresh;
            let running = match alone {
                true => None,
                false => self.accessor.flights.join(self.asked.key(position), terms),
            };
            match running {
                Some(ticket) => {
                    self.wire.truncate(addressed);
                    self.positions.truncate(addressed);
                    self.followed.push((position, ticket));
                }
                None if self.wire.len() > addressed => {}
                None if D::Form::STORED => self.address(position),
                None => self.miss(position, None),
            }
        }
    }

    /// Makes the wire key of this distinct key; what can't be a key is loaded uncached.
    fn address(&mut self, position: usize) {
        let prefix = self.reading.prefix;
        let arguments = KeyOf::<D>(self.asked.key(position));
        match self.wire.push(prefix, D::NAME, &arguments) {
            Ok(()) if self.is_held(self.wire.len() - 1) => {
                self.wire.truncate(self.wire.len() - 1);
                self.accessor.counters.held.add(1);
                self.miss(position, None);
            }
            Ok(()) => self.positions.push(position),
            Err(error) => {
                self.accessor.counters.bypassed.add(1);
                if self.accessor.warned.unkeyable.first() {
                    tracing::warn!(accessor = D::NAME, %error, "a value is loaded uncached, since its arguments can't be a key");
                }
                self.miss(position, None);
            }
        }
    }

    /// Whether a flush of this wire key isn't confirmed, so that what the store has of it may be old.
    fn is_held(&self, index: usize) -> bool {
        let shared = &self.cache.shared;
        let undelivered = &shared.writes.undelivered;
        !undelivered.is_empty()
            && undelivered.holds(self.wire.get(index).without_prefix())
            && !shared.without(Mechanism::PendingBypass)
    }

    /// Waits for the load of this key that holds this lease, if it is ours to wait for.
    fn follow_token(&mut self, position: usize, token: Token) -> bool {
        if self.nested {
            return false;
        }
        let key = self.asked.key(position);
        let Some(ticket) = self.accessor.flights.join_by_token(key, token) else {
            return false;
        };
        self.followed.push((position, ticket));
        true
    }

    fn miss(&mut self, position: usize, lease: Option<(usize, Lease)>) {
        self.misses += 1;
        self.missed.push(Missed { position, lease });
    }

    /// Looks all wire keys up in one exchange, and asks for leases on the first window of them.
    async fn look_up_all(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let wire = std::mem::take(&mut self.wire);
        self.ask(&wire, WINDOW, |fetch, index, lookup| {
            if index >= WINDOW && matches!(lookup, Ok(Lookup::Miss { .. })) {
                fetch.later.push(index);
            } else {
                fetch.sort(wire.get(index), index, lookup);
            }
        })
        .await;
        self.wire = wire;
        if !self.stands() {
            self.take_back(0..self.positions.len());
        }
    }

    /// Looks these wire keys up again, each with a lease.
    async fn look_up(&mut self, indices: Positions) {
        let wire = self.wire.select(indices.iter().copied());
        self.ask(&wire, wire.len(), |fetch, nth, lookup| {
            fetch.sort(wire.get(nth), indices[nth], lookup);
        })
        .await;
        if !self.stands() {
            self.take_back(indices);
        }
    }

    /// Whether the generation's registration lasted until the answers were there.
    fn stands(&self) -> bool {
        let shared = &self.cache.shared;
        self.reading.stands(&shared.rt) || shared.without(Mechanism::Registration)
    }

    /// Has loaded what an exchange answered from these wire keys: others may have stopped flushing them meanwhile.
    #[cold]
    fn take_back(&mut self, exchange: impl IntoIterator<Item = usize>) {
        let open = self.busy.iter().chain(&self.later);
        let mut open: HashSet<usize> = open.map(|&index| self.positions[index]).collect();
        open.extend(self.missed.iter().map(|missed| missed.position));
        open.extend(self.followed.iter().map(|(position, _)| *position));
        for index in exchange {
            let position = self.positions[index];
            if open.insert(position) {
                self.accessor.counters.held.add(1);
                self.asked.set(position, None);
                self.miss(position, None);
            }
        }
    }

    /// Asks the store, and hands over what it says as it comes, so that entries are opened while others are on their way.
    async fn ask(
        &mut self,
        wire: &Keys,
        lease_at_most: usize,
        mut found: impl FnMut(&mut Self, usize, Result<Lookup>) + Send,
    ) {
        let trips = self.accessor.counters.trips(self.cache.tally.as_deref());
        let options = match self.accessor.fenced {
            true => GetOptions::lease(D::LEASE).lease_at_most(lease_at_most),
            false => GetOptions::look(),
        };
        let options = options.trips(trips);
        self.wall = None;
        let backend = &self.cache.shared.backend;
        let found = &mut |index, lookup| found(self, index, lookup);
        backend.get_each(wire, &options, found).await;
    }

    /// The time by which entries are judged: one look at the clock for all of an exchange.
    fn now(&mut self) -> SystemTime {
        let rt = self.cache.shared.rt;
        *self.wall.get_or_insert_with(|| rt.wall())
    }

    /// Puts one wire key into the place that its look-up says.
    fn sort(&mut self, key: Key<'_>, index: usize, lookup: Result<Lookup>) {
        let position = self.positions[index];
        match lookup {
            Ok(Lookup::Hit { .. }) if self.was_away(key) => {
                self.accessor.counters.held.add(1);
                self.miss(position, None);
            }
            Ok(Lookup::Hit { value, token }) => self.sort_hit(key, index, &value, token),
            Ok(Lookup::Miss { lease }) => {
                let lease = match self.accessor.fenced {
                    true => lease,
                    false => Some(Lease::new(UNFENCED, self.now())),
                };
                self.miss(position, lease.map(|lease| (index, lease)));
            }
            Ok(Lookup::Busy { age, token }) => self.sort_busy(index, age, token),
            Err(error) => {
                self.accessor.counters.failed.add(1);
                self.cache.shared.was_away(&error, key);
                tracing::debug!(accessor = D::NAME, %error, "a look-up failed");
                self.miss(position, None);
            }
        }
    }

    /// Whether the server of this key was away, and it isn't known yet what was to be flushed there.
    fn was_away(&self, key: Key<'_>) -> bool {
        let shared = &self.cache.shared;
        let undelivered = &shared.writes.undelivered;
        undelivered.holds_servers() && undelivered.holds_server(shared.backend.server_of(key))
    }

    fn sort_hit(&mut self, key: Key<'_>, index: usize, entry: &[u8], token: Token) {
        let position = self.positions[index];
        let now = self.now();
        self.bytes += entry.len() as u64;
        match self.accessor.open(key, entry, now) {
            Opened::Value(value) => {
                self.hits += 1;
                let value = D::Tier::hold(value);
                self.memo
                    .keep_stored(self.cache, &*self.accessor, key, &value);
                self.tell_hit(key, position, Some(&value));
                self.asked.set(position, Some(value));
            }
            Opened::Absent => {
                self.absent += 1;
                self.tell_hit(key, position, None);
                self.asked.set(position, None);
            }
            Opened::Rejected => {
                // Somebody here may be replacing it already.
                if !self.follow_token(position, token) {
                    self.miss(position, Some((index, Lease::new(token, now))));
                }
            }
            Opened::FromAnotherTime => self.miss(position, None),
        }
    }

    fn tell_hit(&self, key: Key<'_>, position: usize, value: Option<&Answer<D>>) {
        let shared = &self.cache.shared;
        if shared.is_heard() {
            shared.tell(&Event::Hit(HitEvent {
                accessor: D::NAME,
                key,
                cache: self.cache,
                hit: &HitOf::<D> {
                    accessor: &self.accessor,
                    key: self.asked.key(position),
                    value,
                },
            }));
        }
    }

    fn sort_busy(&mut self, index: usize, age: Duration, token: Token) {
        let position = self.positions[index];
        self.accessor.counters.busy.add(1);
        if self.follow_token(position, token) {
            // Its load is waited for.
        } else if age > OLD_LEASE && age > self.accessor.counters.load_latency.quantile(0.99) * 2 {
            self.accessor.counters.taken_over.add(1);
            let lease = Lease::new(token, self.now());
            self.miss(position, Some((index, lease)));
        } else {
            self.busy.push(index);
        }
    }

    /// Empties every place: loads what is missed, window by window, polls what is busy, and waits for what others load.
    async fn finish(&mut self) -> Result<(), LoadError<D::Error>> {
        let mut polls = POLLS.iter();
        let mut shared_in_vain = false;
        loop {
            if !self.missed.is_empty() {
                self.load().await?;
            } else if !self.later.is_empty() {
                let count = WINDOW.min(self.later.len());
                let window = self.later.drain(..count).collect();
                self.look_up(window).await;
            } else if !self.busy.is_empty() {
                let busy = std::mem::take(&mut self.busy);
                match polls.next() {
                    Some(poll) => {
                        let rt = self.cache.shared.rt;
                        rt.sleep(poll.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                        self.look_up(busy).await;
                    }
                    None => {
                        for index in busy {
                            self.miss(self.positions[index], None);
                        }
                    }
                }
            } else if !self.followed.is_empty() {
                self.follow(shared_in_vain).await?;
                shared_in_vain = true;
            } else {
                return Ok(());
            }
        }
    }

    /// Loads what was missed, in one call of the loader, and waits for the values.
    async fn load(&mut self) -> Result<(), LoadError<D::Error>> {
        self.join_waiting_loads();
        if self.missed.is_empty() {
            return Ok(());
        }
        // Once it holds a token, `close` waits for it.
        let _token = self.cache.shared.tasks.token();
        if self.cache.is_closed() && !self.nested {
            return Err(LoadError::Closed { accessor: D::NAME });
        }
        let missed = std::mem::take(&mut self.missed);
        let leased = missed
            .iter()
            .filter_map(|missed| Some(missed.lease.as_ref()?.0));
        let wire = self.wire.select(leased);
        let (positions, leases): (Vec<usize>, Vec<Option<Lease>>) = missed
            .into_iter()
            .map(|missed| (missed.position, missed.lease.map(|(_, lease)| lease)))
            .unzip();
        let keys = positions
            .iter()
            .map(|&position| self.asked.key(position).clone())
            .collect();
        let order = Order {
            keys,
            leases,
            wire,
            replaces: self.replaces,
        };
        let load = load::start(
            self.cache,
            &self.cache.accessor::<D>(),
            self.reading.prefix,
            order,
        );
        for (position, value) in positions.into_iter().zip(load.lead().await?) {
            self.asked.set(position, value);
        }
        Ok(())
    }

    /// Follows, for what was missed without a lease, the loads that others have waiting: while this call looked, a herd
    /// of calls for the same key may have found no lease either.
    fn join_waiting_loads(&mut self) {
        if self.nested {
            return;
        }
        let Self {
            missed,
            followed,
            accessor,
            asked,
            misses,
            ..
        } = self;
        missed.retain(|missed| {
            let waiting = match missed.lease {
                Some(_) => None,
                None => accessor.flights.join_waiting(asked.key(missed.position)),
            };
            match waiting {
                Some(ticket) => {
                    *misses -= 1;
                    followed.push((missed.position, ticket));
                    false
                }
                None => true,
            }
        });
    }

    /// Waits for the loads of others. What can't be shared after all is looked up, or, the second time, loaded.
    async fn follow(&mut self, load_at_once: bool) -> Result<(), LoadError<D::Error>> {
        let mut again = Positions::new();
        for (position, ticket) in std::mem::take(&mut self.followed) {
            match ticket.value().await {
                Some(value) => {
                    self.shared += 1;
                    self.asked.set(position, value?);
                }
                None if load_at_once || !D::Form::STORED => self.miss(position, None),
                None => {
                    let before = self.positions.len();
                    self.address(position);
                    again.extend(before..self.positions.len());
                }
            }
        }
        if !again.is_empty() {
            self.look_up(again).await;
        }
        Ok(())
    }

    fn count(&self, took: Duration) {
        let counters = &self.accessor.counters;
        let keys = (self.memo.left(self.asked.len()) + self.memo.distrusted().len()) as u64;
        counters.keys.add(keys);
        for (counter, count) in [
            (&counters.hits, self.hits),
            (&counters.absent, self.absent),
            (&counters.misses, self.misses),
            (&counters.shared, self.shared),
            (&counters.read_bytes, self.bytes),
        ] {
            if count > 0 {
                counter.add(count);
            }
        }
        counters.read_latency.record(took);
        if let Some(tally) = &self.cache.tally {
            tally.count_reads(keys, self.hits, self.absent, self.misses, self.shared);
            tally.count_read_time(took);
        }
        self.span.record("hits", self.hits);
        let shared = &self.cache.shared;
        if shared.is_heard() {
            let all = self.asked.len() as u64;
            shared.tell(&Event::Read(ReadEvent {
                accessor: D::NAME,
                is_single: self.asked.is_single(),
                bulk: D::BULK,
                keys: all,
                tier_hits: all - keys,
                hits: self.hits,
                absent: self.absent,
                misses: self.misses,
                shared: self.shared,
                asked: &AskedOf::<D, _>(&*self.asked, PhantomData),
            }));
        }
    }
}

/// A caller who leaves between winning leases and loading gives them back, or readers elsewhere would wait for nobody.
impl<D: Dataset, A: Asked<D>> Drop for Fetch<'_, D, A> {
    fn drop(&mut self) {
        if self.missed.iter().all(|missed| missed.lease.is_none()) || !self.accessor.fenced {
            return;
        }
        let mut wire = Keys::new();
        let mut leases = Vec::new();
        for Missed { position, lease } in std::mem::take(&mut self.missed) {
            // The wire keys are gone with the exchange that was left.
            if let Some((_, lease)) = lease.filter(|_| !self.replaces)
                && let arguments = KeyOf::<D>(self.asked.key(position))
                && let Ok(()) = wire.push(self.reading.prefix, D::NAME, &arguments)
            {
                leases.push(lease);
            }
        }
        let shared = Arc::clone(&self.cache.shared);
        let options =
            WriteOptions::trips(self.accessor.counters.trips(self.cache.tally.as_deref()));
        let release = async move {
            shared.backend.release_many(&wire, leases, &options).await;
        };
        let tasks = &self.cache.shared.tasks;
        let rt = self.cache.shared.rt;
        rt.spawn_if_running(tasks.track_future(release));
    }
}
