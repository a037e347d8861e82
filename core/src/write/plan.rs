//! Flush plans: which keys a change of an entity makes stale.
//!
//! Each data set declares what it shows, in [`Dataset::flush_on`]; the plan of an entity is what all of them declared.
//! Data sets that are named in [`dataset!`](crate::dataset) are collected when the program is linked.

use std::any::{Any, TypeId, type_name};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::change::What;
use super::stale::{Deferred, Stale};
use super::{Change, Entity, FieldBits};
use crate::contract::{Error, ErrorKind, Keys, Result};
use crate::read::{Accessor, Accessors, AnyAccessor, KeyOf, Setting};
use crate::{Cache, Dataset, Lifetime, Source};

/// What makes the entries of a data set stale: its part of the flush plans.
///
/// ```
/// # use std::{convert::Infallible, time::Duration}; use larder_core::*;
/// # #[derive(Clone)] struct Db; impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
/// # #[derive(Clone, serde::Serialize, serde::Deserialize)] struct User { id: u64, email: String, name: String }
/// # #[derive(Clone, Copy, Debug, PartialEq, Eq)] enum UserField { Email, Name }
/// # impl FieldSet for UserField { const ALL: &'static [Self] = &[Self::Email, Self::Name]; fn name(self) -> &'static str { "…" } }
/// # impl Entity for User { const NAME: &'static str = "user"; type Id = u64; type Field = UserField;
/// #   fn id(&self) -> u64 { self.id } fn diff(&self, _: &Self) -> FieldBits { FieldBits::ALL } }
/// # enum UserByEmail {} impl Dataset for UserByEmail { const NAME: &'static str = "user_by_email"; const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(9));
/// #   type Source = Db; type Key = String; type Value = User; type Form = Plain; type Tier = NoTier; type Error = Infallible;
/// fn flush_on(plan: &mut FlushOn<Self>) {
///     // Both images are asked: of a user who moved, the old address and the new one.
///     plan.entity([UserField::Email, UserField::Name], |user: &User| [user.email.clone()]);
/// }
/// #   async fn load(_: &mut (), _: Vec<String>) -> Result<Vec<(String, User)>, Infallible> { Ok(vec![]) } }
/// ```
pub struct FlushOn<D: Dataset> {
    plan: AccessorPlan,
    own: Vec<HasKey<D>>,
}

/// Whether a loaded value's plan has this key.
type HasKey<D> = Box<dyn Fn(&<D as Dataset>::Value, &<D as Dataset>::Key) -> bool + Send + Sync>;

/// What one data set declared, without its types.
pub(crate) struct AccessorPlan {
    accessor: &'static str,
    by_hand: bool,
    bases: Vec<&'static str>,
    watches: Vec<AnyWatch>,
    /// The shape of the values, if they are the entity that is watched.
    shape_of_values: Option<fn() -> Option<u64>>,
    /// `Arc<dyn AnyQuery<D::Source>>` by name.
    queries: Vec<(&'static str, Arc<dyn Any + Send + Sync>)>,
}

/// One declaration, without its types.
struct AnyWatch {
    entity: TypeId,
    entity_name: &'static str,
    set_based: FieldBits,
    fields: FieldBits,
    field_names: Vec<&'static str>,
    created: bool,
    way: Way,
    /// The `Watch<T>`.
    watch: Arc<dyn Any + Send + Sync>,
}

/// How the keys are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Images,
    Id,
    Query(&'static str),
}

struct Watch<T: Entity> {
    fields: FieldBits,
    created: bool,
    keys: KeysOf<T>,
}

/// Hands over the keys of an image, or of a primary key.
type Touch<I> = Box<dyn Fn(&I, &mut Touched<'_>) + Send + Sync>;

/// The arguments of a query, as JSON.
type Arguments<T> = Box<dyn Fn(&T) -> Result<String> + Send + Sync>;

enum KeysOf<T: Entity> {
    Images(Touch<T>),
    Id(Touch<T::Id>),
    Query {
        name: &'static str,
        arguments: Arguments<T>,
    },
}

/// Takes the keys of one accessor that a change touches.
struct Touched<'t> {
    accessor: &'t dyn AnyAccessor,
    keys: &'t mut Keys,
}

impl Touched<'_> {
    fn add<D: Dataset>(&mut self, key: &D::Key) {
        let accessor: &dyn Any = self.accessor;
        if let Some(accessor) = accessor.downcast_ref::<Accessor<D>>() {
            accessor.flights.detach(std::slice::from_ref(key));
        }
        // What can't be a key was never stored.
        let _ = self.keys.push_logical(D::NAME, &KeyOf::<D>(key));
    }
}

/// Keys that only the database knows: all subscribers of a stream, when each one's list shows its name.
///
/// It is asked after the commit, on a connection of its own, so that what others committed meanwhile is seen; and again
/// by whoever delivers the flush after a crash, so the arguments are kept as JSON.
pub trait FlushQuery<D: Dataset>: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Names it within its data set.
    const NAME: &'static str;

    /// At most `limit` keys, in an order of their own, beginning behind `after`. Fewer than `limit` are the last.
    fn keys(
        &self,
        conn: &mut <D::Source as Source>::Conn,
        after: Option<&D::Key>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<D::Key>, D::Error>> + Send;
}

/// Where a query's next page begins: the `D::Key` behind which it does.
pub(crate) type Cursor = Option<Box<dyn Any + Send>>;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A [`FlushQuery`] without its types.
pub(crate) trait AnyQuery<S: Source>: Send + Sync {
    /// Some keys, and where the next ones begin, if there are any.
    fn page<'a>(
        &'a self,
        conn: &'a mut S::Conn,
        arguments: &'a str,
        after: Cursor,
    ) -> Boxed<'a, Result<(Keys, Cursor)>>;
}

/// Keys that are asked for at once.
const PAGE: usize = 2_000;

struct QueryOf<D, Q>(PhantomData<fn() -> (D, Q)>);

impl<D: Dataset, Q: FlushQuery<D>> AnyQuery<D::Source> for QueryOf<D, Q> {
    fn page<'a>(
        &'a self,
        conn: &'a mut <D::Source as Source>::Conn,
        arguments: &'a str,
        after: Cursor,
    ) -> Boxed<'a, Result<(Keys, Cursor)>> {
        Box::pin(async move {
            let fails = |kind: ErrorKind, error: Box<dyn std::error::Error + Send + Sync>| {
                let message = format!("the query `{}` for keys of `{}` failed", Q::NAME, D::NAME);
                Error::with_source(kind, message, error)
            };
            let query: Q = serde_json::from_str(arguments)
                .map_err(|error| fails(ErrorKind::Codec, error.into()))?;
            let after = after.and_then(|after| after.downcast::<D::Key>().ok());
            let found = query.keys(conn, after.as_deref(), PAGE).await;
            let found = found.map_err(|error| fails(ErrorKind::Unavailable, error.into()))?;
            if after.is_some() && found.last() == after.as_deref() {
                let problem = "it answers keys that come before `after` again";
                return Err(fails(ErrorKind::Config, problem.into()));
            }
            let mut keys = Keys::with_capacity(found.len());
            for key in &found {
                let _ = keys.push_logical(D::NAME, &KeyOf::<D>(key));
            }
            let is_last = found.len() < PAGE;
            let next = found.into_iter().next_back().filter(|_| !is_last);
            Ok((keys, next.map(|key| Box::new(key) as _)))
        })
    }
}

impl<D: Dataset> FlushOn<D> {
    /// What this data set declares.
    pub(crate) fn declared() -> Self {
        let mut plan = Self {
            plan: AccessorPlan {
                accessor: D::NAME,
                by_hand: false,
                bases: Vec::new(),
                watches: Vec::new(),
                shape_of_values: None,
                queries: Vec::new(),
            },
            own: Vec::new(),
        };
        D::flush_on(&mut plan);
        plan
    }

    /// Flushes these keys of an image whenever one of these fields changed, and when a row is created or deleted: with
    /// [`FieldBits::NONE`], only then.
    pub fn entity<T, K>(
        &mut self,
        fields: impl Into<FieldBits>,
        keys: impl Fn(&T) -> K + Clone + Send + Sync + 'static,
    ) -> &mut Self
    where
        T: Entity,
        K: IntoIterator<Item = D::Key>,
    {
        self.images(fields.into(), true, keys)
    }

    /// The same for rows that are there before anybody asks for them, so that their creation flushes nothing.
    ///
    /// The data set must not remember absence: `ABSENT_TTL` is zero.
    pub fn existing<T, K>(
        &mut self,
        fields: impl Into<FieldBits>,
        keys: impl Fn(&T) -> K + Clone + Send + Sync + 'static,
    ) -> &mut Self
    where
        T: Entity,
        K: IntoIterator<Item = D::Key>,
    {
        self.images(fields.into(), false, keys)
    }

    fn images<T, K>(
        &mut self,
        fields: FieldBits,
        created: bool,
        keys: impl Fn(&T) -> K + Clone + Send + Sync + 'static,
    ) -> &mut Self
    where
        T: Entity,
        K: IntoIterator<Item = D::Key>,
    {
        let own = keys.clone();
        self.fills_only::<T>(move |image, key| own(image).into_iter().any(|own| own == *key));
        let touch = move |image: &T, touched: &mut Touched<'_>| {
            for key in keys(image) {
                touched.add::<D>(&key);
            }
        };
        self.watch::<T>(
            fields,
            created,
            Way::Images,
            KeysOf::Images(Box::new(touch)),
        )
    }

    /// Flushes the key that follows from the primary key alone whenever one of these fields changed, and when a row is
    /// created or deleted. Such fields may be in [`Entity::SET_BASED`].
    pub fn id<T: Entity>(
        &mut self,
        fields: impl Into<FieldBits>,
        key: impl Fn(&T::Id) -> D::Key + Clone + Send + Sync + 'static,
    ) -> &mut Self {
        let own = key.clone();
        self.fills_only::<T>(move |image, asked| own(&image.id()) == *asked);
        let touch = move |id: &T::Id, touched: &mut Touched<'_>| touched.add::<D>(&key(id));
        self.watch::<T>(fields.into(), true, Way::Id, KeysOf::Id(Box::new(touch)))
    }

    /// Flushes the keys that a query finds, after the commit, whenever one of these fields changed, and when a row is
    /// created or deleted.
    pub fn query<T: Entity, Q: FlushQuery<D>>(
        &mut self,
        fields: impl Into<FieldBits>,
        of: impl Fn(&T) -> Q + Send + Sync + 'static,
    ) -> &mut Self {
        let query: Arc<dyn AnyQuery<D::Source>> = Arc::new(QueryOf::<D, Q>(PhantomData));
        self.plan.queries.push((Q::NAME, Arc::new(query)));
        let arguments = move |image: &T| {
            serde_json::to_string(&of(image)).map_err(|error| {
                let message = format!(
                    "the arguments of the query `{}` for keys of `{}` can't be written as JSON",
                    Q::NAME,
                    D::NAME
                );
                Error::with_source(ErrorKind::Codec, message, error)
            })
        };
        let keys = KeysOf::Query {
            name: Q::NAME,
            arguments: Box::new(arguments),
        };
        self.watch::<T>(fields.into(), true, Way::Query(Q::NAME), keys)
    }

    /// Says that this data set's loader reads that one through the cache: whatever flushes both, flushes that one first,
    /// and this one once it is confirmed.
    ///
    /// A loader's read of a data set that isn't its base goes to the source.
    pub fn base<B: Dataset<Source = D::Source>>(&mut self) -> &mut Self {
        self.plan.bases.push(B::NAME);
        self
    }

    /// Says that the application flushes this data set itself, by [`Cache::flush`](crate::Cache::flush): for sources
    /// without transactions.
    pub fn by_hand(&mut self) -> &mut Self {
        self.plan.by_hand = true;
        self
    }

    fn watch<T: Entity>(
        &mut self,
        fields: FieldBits,
        created: bool,
        way: Way,
        keys: KeysOf<T>,
    ) -> &mut Self {
        let watch = Watch::<T> {
            fields,
            created,
            keys,
        };
        self.plan.watches.push(AnyWatch {
            entity: TypeId::of::<T>(),
            entity_name: T::NAME,
            set_based: T::SET_BASED,
            fields,
            field_names: fields.names::<T::Field>(),
            created,
            way,
            watch: Arc::new(watch),
        });
        self
    }

    /// Where the entity is what the data set loads, its values are filled only under keys that this would flush.
    fn fills_only<T: Entity>(&mut self, has: impl Fn(&T, &D::Key) -> bool + Send + Sync + 'static) {
        if TypeId::of::<T>() == TypeId::of::<D::Value>() {
            self.plan.shape_of_values = Some(T::shape);
            self.own.push(Box::new(move |value, key| {
                let value: &dyn Any = value;
                value
                    .downcast_ref::<T>()
                    .is_some_and(|image| has(image, key))
            }));
        }
    }

    pub(crate) fn into_parts(self) -> (AccessorPlan, OwnKeys<D>) {
        (self.plan, OwnKeys(self.own))
    }
}

impl<D: Dataset> fmt::Debug for FlushOn<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlushOn")
            .field("accessor", &D::NAME)
            .finish_non_exhaustive()
    }
}

/// Tells under which keys a loaded value may be filled.
pub(crate) struct OwnKeys<D: Dataset>(Vec<HasKey<D>>);

impl<D: Dataset> OwnKeys<D> {
    /// Whether a change of this value would flush this key, as far as the plan can tell.
    pub(crate) fn have(&self, value: &D::Value, key: &D::Key) -> bool {
        self.0.is_empty() || self.0.iter().any(|has| has(value, key))
    }
}

impl AccessorPlan {
    /// Whether some change of an entity flushes it.
    pub(crate) fn watches_something(&self) -> bool {
        !self.watches.is_empty()
    }

    /// The shape of values that are an entity, as the entity tells it.
    pub(crate) fn shape_of_values(&self) -> Option<u64> {
        self.shape_of_values?()
    }

    /// What makes this plan impossible for a data set of this lifetime, which remembers absence or doesn't.
    pub(crate) fn problem(&self, lifetime: Lifetime, remembers_absence: bool) -> Option<String> {
        let flushed = self.by_hand || !self.watches.is_empty();
        match lifetime {
            Lifetime::Ttl(_) if !flushed => {
                return Some(
                    "may change, and nothing says what makes it stale; declare it in `flush_on`, or let it be \
                     Lifetime::TtlOnly if values up to its TTL old are right"
                        .into(),
                );
            }
            Lifetime::TtlOnly(_) | Lifetime::Immutable if !self.watches.is_empty() => {
                return Some(
                    "is flushed by what its `flush_on` declares, so its LIFETIME is Lifetime::Ttl"
                        .into(),
                );
            }
            _ => {}
        }
        if remembers_absence
            && !self.watches.is_empty()
            && !self.by_hand
            && !self.watches.iter().any(|watch| watch.created)
        {
            return Some(
                "remembers that a row is absent, and no creation flushes that; watch the entity with \
                 `plan.entity`, or set `const ABSENT_TTL: Option<Duration> = Some(Duration::ZERO)`"
                    .into(),
            );
        }
        let needs_images = self
            .watches
            .iter()
            .find(|watch| watch.way != Way::Id && watch.set_based.intersects(watch.fields));
        if let Some(watch) = needs_images {
            return Some(format!(
                "needs images of `{}` to find its keys, and {} may be changed without images (`SET_BASED`); key it by \
                 the primary key with `plan.id`, or take the fields out of SET_BASED",
                watch.entity_name,
                watch.field_names.join(", ")
            ));
        }
        let mut names = HashSet::new();
        let twice = self.queries.iter().find(|(name, _)| !names.insert(*name));
        twice.map(|(name, _)| format!("has two queries of the NAME `{name}`"))
    }

    /// Whether its loader may read that one through the cache.
    pub(crate) fn has_base(&self, accessor: &str) -> bool {
        self.bases.contains(&accessor)
    }

    /// The entities whose changes flush it.
    pub(crate) fn entities(&self) -> impl Iterator<Item = &'static str> {
        self.watches.iter().map(|watch| watch.entity_name)
    }

    /// A text that is equal for two versions of the code exactly if each finds the other's keys, as far as types and
    /// declarations tell; what a function's code does, `REVISION` stands for.
    pub(crate) fn rule<D: Dataset>(&self) -> String {
        let mut lines: Vec<String> = (self.watches.iter())
            .map(|watch| format!("on {watch}"))
            .chain(self.bases.iter().map(|base| format!("base {base}")))
            .chain(self.by_hand.then(|| "by hand".to_owned()))
            .collect();
        lines.sort();
        let text = format!(
            "{}\n{}{}\n{}\n{}",
            D::NAME,
            type_name::<D::Key>(),
            D::KEY,
            D::REVISION,
            lines.join("\n")
        );
        URL_SAFE_NO_PAD.encode(&blake3::hash(text.as_bytes()).as_bytes()[..12])
    }
}

impl fmt::Display for AnyWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = match self.fields {
            FieldBits::ALL => "any field".to_owned(),
            FieldBits::NONE => "no field".to_owned(),
            _ => self.field_names.join(", "),
        };
        write!(f, "{}: {fields}", self.entity_name)?;
        f.write_str(match self.created {
            true => "; created, deleted",
            false => "; deleted",
        })?;
        match self.way {
            Way::Images => f.write_str("; keys of both images"),
            Way::Id => f.write_str("; the key of its id"),
            Way::Query(name) => write!(f, "; keys of the query `{name}`, after the commit"),
        }
    }
}

/// All plans of one cache.
pub(crate) struct Plans<S: Source> {
    by_entity: HashMap<TypeId, EntityPlan>,
    /// Which type an entity's name stands for.
    entities: HashMap<&'static str, TypeId>,
    queries: HashMap<(&'static str, &'static str), Arc<dyn AnyQuery<S>>>,
    levels: HashMap<&'static str, usize>,
    /// How long what is old of a data set may be served: what is derived may be built from its base just before that
    /// expires.
    lives: HashMap<&'static str, Duration>,
}

/// Which images of an update are asked for their keys.
#[derive(Clone, Copy)]
pub(crate) enum Images {
    Both,
    /// Only the one after, as only a test asks.
    After,
}

/// What a change touches of one accessor.
pub(crate) enum Touching<'k> {
    Keys(&'k Keys),
    /// What a query will find, after the commit.
    Unknown,
}

/// The data sets that watch one entity.
type EntityPlan = Vec<(Arc<dyn AnyAccessor>, Arc<dyn Any + Send + Sync>)>;

impl<S: Source> Plans<S> {
    /// The plans of what is registered; an error if bases are missing or go round in a circle.
    pub(crate) fn new<'a>(
        accessors: impl Iterator<Item = &'a Arc<dyn AnyAccessor>>,
    ) -> Result<Self> {
        let mut plans = Self {
            by_entity: HashMap::new(),
            entities: HashMap::new(),
            queries: HashMap::new(),
            levels: HashMap::new(),
            lives: HashMap::new(),
        };
        let mut bases: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
        for accessor in accessors {
            let plan = accessor.plan();
            if let Some(ttl) = accessor.ttl() {
                plans.lives.insert(plan.accessor, ttl);
            }
            for watch in &plan.watches {
                let named = plans.entities.entry(watch.entity_name);
                if *named.or_insert(watch.entity) != watch.entity {
                    return Err(two_types(watch.entity_name));
                }
                let entity = plans.by_entity.entry(watch.entity).or_default();
                entity.push((Arc::clone(accessor), Arc::clone(&watch.watch)));
            }
            for (name, query) in &plan.queries {
                if let Some(query) = query.downcast_ref::<Arc<dyn AnyQuery<S>>>() {
                    let place = (plan.accessor, *name);
                    plans.queries.insert(place, Arc::clone(query));
                }
            }
            bases.insert(plan.accessor, plan.bases.clone());
        }
        plans.levels = levels(&bases)?;
        plans.outlive(bases);
        Ok(plans)
    }

    /// Adds to the life of each data set that of its bases.
    fn outlive(&mut self, bases: BTreeMap<&'static str, Vec<&'static str>>) {
        let mut bases: Vec<_> = bases.into_iter().collect();
        bases.sort_by_key(|(accessor, _)| self.level(accessor));
        for (accessor, bases) in bases {
            let of_bases = bases.iter().filter_map(|base| self.lives.get(base)).max();
            let of_bases = of_bases.copied().unwrap_or_default();
            if let Some(life) = self.lives.get_mut(accessor) {
                *life += of_bases;
            }
        }
    }

    /// Adds what a change makes stale; what it touches of each accessor is also handed to `own`.
    pub(crate) fn touch<T: Entity>(
        &self,
        change: &Change<'_, T>,
        images: Images,
        stale: &mut Stale,
        mut own: impl FnMut(&dyn AnyAccessor, Touching<'_>),
    ) -> Result<()> {
        if let What::Rows(_) = change.what
            && !T::SET_BASED.contains(change.fields)
        {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "rows of `{}` were changed without images in {}, which its SET_BASED doesn't have; add the fields \
                     there, or give the images",
                    T::NAME,
                    change.fields.names::<T::Field>().join(", ")
                ),
            ));
        }
        let Some(watchers) = self.by_entity.get(&TypeId::of::<T>()) else {
            return match self.entities.contains_key(T::NAME) {
                true => Err(two_types(T::NAME)),
                false => Ok(()),
            };
        };
        for (accessor, watch) in watchers {
            let watch: &Watch<T> = watch.downcast_ref().expect("watches are kept by entity");
            let is_watched = change.is_whole() || watch.fields.intersects(change.fields);
            if !is_watched || (change.is_creation() && !watch.created) {
                continue;
            }
            let level = stale.level(self.level(accessor.name()));
            let mut keys = Keys::new();
            let mut touched = Touched {
                accessor: &**accessor,
                keys: &mut keys,
            };
            let images = match change.what {
                What::Images { before, after } => match images {
                    Images::After if after.is_some() => [None, after],
                    Images::Both | Images::After => [before, after],
                },
                What::Rows(_) => [None, None],
            };
            let images = images.into_iter().flatten();
            match (&change.what, &watch.keys) {
                (What::Images { .. }, KeysOf::Images(keys)) => {
                    images.for_each(|image| keys(image, &mut touched));
                }
                (What::Images { .. }, KeysOf::Id(key)) => {
                    images.for_each(|image| key(&image.id(), &mut touched));
                }
                (What::Rows(ids), KeysOf::Id(key)) => {
                    ids.iter().for_each(|id| key(id, &mut touched));
                }
                (What::Images { .. }, KeysOf::Query { name, arguments }) => {
                    for image in images {
                        level.defer(Deferred {
                            accessor: accessor.name().to_owned(),
                            query: (*name).to_owned(),
                            arguments: arguments(image)?,
                        });
                    }
                    own(&**accessor, Touching::Unknown);
                }
                // Refused when the cache was built.
                (What::Rows(_), KeysOf::Images(_) | KeysOf::Query { .. }) => {}
            }
            if !keys.is_empty() {
                own(&**accessor, Touching::Keys(&keys));
                level.add(&keys);
            }
        }
        Ok(())
    }

    /// How many bases of bases an accessor has: it is flushed after all that have fewer.
    pub(crate) fn level(&self, accessor: &str) -> usize {
        self.levels.get(accessor).copied().unwrap_or(0)
    }

    /// How long what is old of this data set may be served; `None` if it never changes.
    pub(crate) fn life(&self, accessor: &str) -> Option<Duration> {
        self.lives.get(accessor).copied()
    }

    /// After this long, nothing is served that was filled before, or built from that.
    pub(crate) fn longest_life(&self) -> Duration {
        self.lives.values().max().copied().unwrap_or_default()
    }

    /// The query that this was deferred for, if this program has it.
    pub(crate) fn query(&self, deferred: &Deferred) -> Option<&Arc<dyn AnyQuery<S>>> {
        let place = (&*deferred.accessor, &*deferred.query);
        let found = self.queries.iter().find(|(known, _)| **known == place);
        found.map(|(_, query)| query)
    }
}

fn two_types(entity: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!(
            "two types are the entity `{entity}`, and what watches one isn't flushed by changes of the other; give the \
             other a NAME of its own, or write and watch one type"
        ),
    )
}

fn levels(
    bases: &BTreeMap<&'static str, Vec<&'static str>>,
) -> Result<HashMap<&'static str, usize>> {
    let refuse = |problem: String| Err(Error::new(ErrorKind::Config, problem));
    for (accessor, bases_of) in bases {
        if let Some(missing) = bases_of.iter().find(|base| !bases.contains_key(*base)) {
            return refuse(format!(
                "data set `{accessor}` has the base `{missing}`, which isn't registered; name it in `larder::dataset!`"
            ));
        }
    }
    let mut levels: HashMap<&'static str, usize> = bases.keys().map(|name| (*name, 0)).collect();
    // Each round puts every accessor above its bases; without a circle, as many rounds as there are accessors do.
    for _ in 0..=bases.len() {
        let mut moved = None;
        for (accessor, bases_of) in bases {
            let above = bases_of
                .iter()
                .map(|base| levels[base] + 1)
                .max()
                .unwrap_or(0);
            if levels[accessor] < above {
                levels.insert(accessor, above);
                moved = Some(*accessor);
            }
        }
        match moved {
            None => return Ok(levels),
            Some(_) => continue,
        }
    }
    let highest = levels.iter().max_by_key(|(_, level)| **level);
    refuse(format!(
        "the bases of data set `{}` lead back to itself",
        highest.map_or("", |(name, _)| name)
    ))
}

/// One data set that a program was linked with: what [`dataset!`](crate::dataset) makes.
#[derive(Clone, Copy)]
pub struct Linked {
    pub(crate) name: &'static str,
    pub(crate) source: fn() -> TypeId,
    pub(crate) register: Register,
    plan: fn() -> AccessorPlan,
}

/// Makes the accessor of one data set.
pub(crate) type Register = fn(&mut Accessors, &Setting<'_>) -> Arc<dyn AnyAccessor>;

impl Linked {
    /// The link of this data set.
    pub const fn of<D: Dataset>() -> Self {
        Self {
            name: D::NAME,
            source: TypeId::of::<D::Source>,
            register: |accessors, setting| accessors.add::<D>(setting, &Accessors::default()),
            plan: || FlushOn::<D>::declared().into_parts().0,
        }
    }
}

impl fmt::Debug for Linked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Linked").field(&self.name).finish()
    }
}

/// The data sets this program was linked with.
#[linkme::distributed_slice]
pub static LINKED: [Linked];

/// Makes data sets known to every cache of their source: registered when it is built, and part of the flush plans.
///
/// ```
/// # mod data { use std::{convert::Infallible, time::Duration}; use larder_core::*;
/// # #[derive(Clone)] pub struct Db; impl Source for Db { type Conn = (); type Guard = Box<()>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<()>, Infallible> { Ok(Box::new(())) } }
/// # pub enum Names {} impl Dataset for Names { const NAME: &'static str = "n"; const LIFETIME: Lifetime = Lifetime::TtlOnly(Duration::from_secs(9));
/// #   type Source = Db; type Key = u64; type Value = String; type Form = Plain; type Tier = NoTier; type Error = Infallible;
/// #   async fn load(_: &mut (), _: Vec<u64>) -> Result<Vec<(u64, String)>, Infallible> { Ok(vec![]) } }
/// larder_core::dataset!(Names);
/// # }
/// ```
///
/// A crate that a program never names isn't linked, nor are its data sets: see [`link!`](crate::link).
#[macro_export]
macro_rules! dataset {
    ($($dataset:ty),+ $(,)?) => {$(
        const _: () = {
            #[$crate::private::linkme::distributed_slice($crate::private::LINKED)]
            #[linkme(crate = $crate::private::linkme)]
            static LINK: $crate::private::Linked = $crate::private::Linked::of::<$dataset>();
        };
    )+};
}

/// Names crates whose data sets a program needs, though it uses nothing else of them: a worker that writes what a web
/// server caches.
///
/// ```ignore
/// larder::link!(my_caches);
/// ```
#[macro_export]
macro_rules! link {
    ($($crate_name:ident),+ $(,)?) => {$(
        use $crate_name as _;
    )+};
}

/// The flush plan of this entity, as all linked data sets declare it.
///
/// It prints as one line per declaration: for a test that compares it with a file, so that a change of it is looked at.
/// [`Cache::plan`] is that of one cache.
pub fn plan<T: Entity>() -> Plan {
    let mut plan = Plan::of::<T>();
    for linked in LINKED {
        plan.add::<T>(&(linked.plan)());
    }
    plan.sorted()
}

impl<S: Source> Cache<S> {
    /// The flush plan of this entity, as the data sets that this cache was built with declare it: those that are linked, and
    /// those that were registered by hand.
    pub fn plan<T: Entity>(&self) -> Plan {
        let mut plan = Plan::of::<T>();
        self.shared
            .each_accessor(|accessor| plan.add::<T>(accessor.plan()));
        plan.sorted()
    }
}

/// A flush plan, to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    entity: &'static str,
    lines: Vec<Line>,
}

/// What one data set declares of the entity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    accessor: &'static str,
    text: String,
    fields: FieldBits,
}

impl Plan {
    fn of<T: Entity>() -> Self {
        Self {
            entity: T::NAME,
            lines: Vec::new(),
        }
    }

    fn add<T: Entity>(&mut self, plan: &AccessorPlan) {
        let watches = plan.watches.iter();
        let own = watches.filter(|watch| watch.entity == TypeId::of::<T>());
        self.lines.extend(own.map(|watch| Line {
            accessor: plan.accessor,
            text: watch.to_string(),
            fields: watch.fields,
        }));
    }

    fn sorted(mut self) -> Self {
        self.lines.sort();
        self
    }

    /// The data sets in it, in order; one may be there more than once.
    pub fn accessors(&self) -> impl Iterator<Item = &'static str> {
        self.lines.iter().map(|line| line.accessor)
    }

    /// The data sets that watch one of these fields.
    pub fn watching(&self, fields: impl Into<FieldBits>) -> impl Iterator<Item = &'static str> {
        let fields = fields.into();
        let watching = self
            .lines
            .iter()
            .filter(move |line| line.fields.intersects(fields));
        watching.map(|line| line.accessor)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return writeln!(f, "{}: nothing cached watches it", self.entity);
        }
        for Line { accessor, text, .. } in &self.lines {
            writeln!(f, "{accessor} on {text}")?;
        }
        Ok(())
    }
}
