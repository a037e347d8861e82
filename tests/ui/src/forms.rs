//! Every form of the attributes, where the strictest lints are errors: what is expanded warns of nothing, and whoever
//! documents what they write has documented what is made of it.

#![deny(warnings, missing_docs, missing_debug_implementations, unreachable_pub)]
#![deny(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::use_self,
    clippy::future_not_send
)]

use std::convert::Infallible;

use larder::{
    Cache, DeployImmutable, Entity, FlushQuery, KeyPart, Reader, Request, Unstored, Weigh,
};
use serde::{Deserialize, Serialize};

use crate::{Conn, Db};

/// A person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KeyPart)]
pub struct PersonId(pub u64);

/// Where mail goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KeyPart)]
pub struct Email(#[key(digest)] pub String);

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
pub enum Colour {
    /// As a rose.
    Red,
    /// As grass.
    Green,
}

/// A place in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, KeyPart)]
pub struct Span<T> {
    /// Where it begins.
    pub from: T,
    /// Where it ends.
    pub to: T,
}

/// A person, with what others see of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Entity)]
#[entity(name = "person", set_based(height))]
pub struct Person {
    /// Who it is.
    #[entity(id)]
    pub id: PersonId,
    /// Where mail goes.
    pub email: Email,
    /// Whether they may log in.
    pub is_active: bool,
    /// In metres.
    pub height: f64,
    #[entity(skip)]
    seen: u64,
}

/// That somebody likes a colour.
#[derive(Clone, Debug, Entity)]
pub(crate) struct Likes {
    #[entity(id)]
    who: PersonId,
    #[entity(id)]
    colour: u8,
}

/// The person with an address.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(source = Db, key = "person:{email}", ttl = "7d", flush_on(Person { email, is_active } => |person| person.email.clone()))]
pub async fn person_by_email(db: &mut Conn, email: &Email) -> Result<Option<Person>, Infallible> {
    let _ = (db, email);
    Ok(None)
}

/// How many there are.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(source = Db, key = "count", ttl_only = "10m")]
#[must_use = "it took a while"]
pub async fn count(_db: &mut Conn) -> Result<u64, Infallible> {
    Ok(0)
}

/// A colour's share.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(
    source = Db,
    key = "share:{colour}:of:{name:escaped}:{note:digest}:{span}:{times}",
    ttl = "1h 30m",
    absent_ttl = "500ms",
    by_hand,
    base = count,
    compress,
    schema = 1,
    revision = 1,
    max_value = "64KiB",
    lease = "3s",
    load_timeout = "1m",
    max_loads = 2,
    skip(hint, locale),
)]
#[expect(clippy::too_many_arguments, reason = "it shows them all")]
pub async fn share(
    db: &mut Conn,
    colour: Colour,
    name: &str,
    note: String,
    hint: u8,
    span: Span<u8>,
    locale: &str,
    mut times: u64,
) -> Result<Option<f64>, Infallible> {
    let _ = (db, colour, name, note, hint, span, locale);
    times += 1;
    Ok((times > 1).then_some(0.5))
}

/// People by id.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(many, source = Db, key = "people:{ids}", by = |person| person.id, ttl = "1d", flush_on(Person { .. } => id))]
pub async fn people(db: &mut Conn, ids: &[PersonId]) -> Result<Vec<Person>, Infallible> {
    let _ = (db, ids);
    Ok(Vec::new())
}

/// Names of a realm's people, kept for a request.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(
    many, source = Db, key = "names:{realm}:{language:escaped}:{ids}", ttl = "1d", tier = request,
    flush_on(
        Person {} => |person| (0, "en".to_owned(), person.id),
        Person { email } => query |person| NamesOf(person.id),
        Likes { .. } => |likes| (0, likes.colour.to_string(), likes.who),
    ),
)]
pub async fn names(
    db: &mut Conn,
    realm: u32,
    language: &str,
    ids: Vec<PersonId>,
) -> Result<Vec<(PersonId, String)>, Infallible> {
    let _ = (db, realm, language);
    Ok(ids.into_iter().map(|id| (id, id.0.to_string())).collect())
}

/// Every name of a person.
#[derive(Debug, Serialize, Deserialize)]
pub struct NamesOf(PersonId);

impl FlushQuery<names> for NamesOf {
    const NAME: &'static str = "names";

    async fn keys(
        &self,
        _: &mut Conn,
        _: Option<&(u32, String, PersonId)>,
        _: usize,
    ) -> Result<Vec<(u32, String, PersonId)>, Infallible> {
        Ok(Vec::new())
    }
}

/// What is built once.
#[derive(Debug)]
pub struct Map(u8);

impl DeployImmutable for Map {}

impl Weigh for Map {
    fn bytes(&self) -> usize {
        self.0.into()
    }
}

/// A map, kept by the process.
///
/// # Errors
///
/// Those of the database.
#[larder::cached(source = Db, key = "map_form:{id}", immutable, tier = deploy, form = Unstored)]
pub async fn map(_db: &mut Conn, id: u8) -> Result<Map, Infallible> {
    Ok(Map(id))
}

#[larder::cached(source = Db, key = "private", immutable)]
async fn private(_db: &mut Conn) -> Result<Option<u64>, Infallible> {
    Ok(None)
}

#[larder::cached(source = Db, key = "within_crate:{id}", ttl = "1d", by_hand)]
#[cfg(not(doctest))]
pub(crate) async fn within_crate(_db: &mut Conn, id: u64) -> Result<u64, Infallible> {
    Ok(id)
}

/// The application's own state.
#[derive(Clone, Debug, Reader)]
#[reader(axum)]
pub struct App {
    /// The cache.
    pub cache: Cache<Db>,
}

/// What a handler has at hand.
#[derive(Debug, Reader)]
pub struct Visit {
    #[reader]
    request: Request<Db>,
    /// The cache, past the request.
    pub cache: Cache<Db>,
}

/// Begins one.
#[must_use]
pub fn visit(app: &App) -> Visit {
    Visit {
        request: Request::begin(&app.cache),
        cache: app.cache.clone(),
    }
}

/// Asks what nobody else asks.
///
/// # Errors
///
/// Those of the database.
pub async fn ask(visit: &Visit) -> Result<u64, larder::LoadError<Infallible>> {
    let within = within_crate(visit, 7).await?;
    Ok(private(visit).await?.unwrap_or(within))
}
