//! The attributes and derives of larder: what is cached as functions, entities and keys as types.
//!
//! Use them through the façade crate `larder`, where they stand beside the traits that they implement; what they expand
//! to names that crate. Here are entry points, parsing and expansion; what an expansion does is ordinary code, in
//! `larder-core`. `docs/attributes.md` has every option and a whole expansion.

mod cached;
mod entity;
mod key_part;
mod names;
mod problems;
mod reader;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Caches what an asynchronous function loads: the function becomes an accessor, and the data set behind it a type of the
/// same name.
///
/// The function as it is written is the loader. It takes a connection of its source and its arguments, and is called
/// with what the store hasn't. Callers give a reader in place of the connection, and get `LoadError<E>` in place of `E`.
///
/// ```
/// # use larder::{BuilderExt as _, Cache, Config, Source};
/// # use std::convert::Infallible;
/// # #[derive(Clone)] struct Db; struct Conn;
/// # impl Source for Db { type Conn = Conn; type Guard = Box<Conn>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<Conn>, Infallible> { Ok(Box::new(Conn)) } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = Cache::builder(Db).config(Config::new("memory://")?).build().await?;
/// /// What the weather will be in a town.
/// #[larder::cached(source = Db, key = "forecast:{town:escaped}:{days}", ttl_only = "10m")]
/// async fn forecast(db: &mut Conn, town: &str, days: u8) -> Result<String, Infallible> {
///     Ok(format!("sun over {town}, for {days} days"))
/// }
///
/// assert_eq!(forecast(&cache, "Riga", 3).await?, "sun over Riga, for 3 days"); // loaded
/// assert_eq!(forecast(&cache, "Riga", 3).await?, "sun over Riga, for 3 days"); // from the store
/// assert_eq!(forecast::refresh(&cache, "Riga", 3).await?, "sun over Riga, for 3 days"); // loaded again
/// # Ok(()) }
/// ```
///
/// With `many` its last argument lists ids, and callers get a `Batch`: one exchange with the store, one call of the loader
/// for what is missing.
///
/// ```
/// # use larder::{BuilderExt as _, Cache, Config, Source};
/// # use std::convert::Infallible;
/// # #[derive(Clone)] struct Db; struct Conn;
/// # impl Source for Db { type Conn = Conn; type Guard = Box<Conn>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<Conn>, Infallible> { Ok(Box::new(Conn)) } }
/// # #[derive(Clone, serde::Serialize, serde::Deserialize, larder::Entity)]
/// # struct User { #[entity(id)] id: u64, name: String }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = Cache::builder(Db).config(Config::new("memory://")?).build().await?;
/// #[larder::cached(many, source = Db, key = "user:{ids}", by = |user| user.id, ttl = "7d", flush_on(User { .. } => id))]
/// async fn users(db: &mut Conn, ids: &[u64]) -> Result<Vec<User>, Infallible> {
///     // SELECT … WHERE id = ANY($1): rows in any order, none for an id that doesn't exist
/// #   Ok(ids.iter().filter(|id| **id != 9).map(|&id| User { id, name: "Ada".into() }).collect())
/// }
///
/// let found = users(&cache, [7, 9, 7]).await?;
/// assert_eq!(found.missing().collect::<Vec<_>>(), [&9]);
/// assert!(users::one(&cache, 7).await?.is_some());
/// # Ok(()) }
/// ```
///
/// Options: `source`, `key`; one of `ttl`, `ttl_only` and `immutable`; `flush_on`, `by_hand`, `base`; `many`, `by`, `skip`;
/// `absent_ttl`, `tier`, `form`, `codec`, `compress`, `schema`, `revision`, `outlives_deploys`, `max_value`, `lease`,
/// `load_timeout`, `max_loads`. What each says, and a whole expansion, is in
/// `docs/attributes.md`.
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    cached::expand(options.into(), function.into()).into()
}

/// Makes a struct an entity: what the application writes, and which of its fields a write changed.
///
/// It makes a type of its fields, `UserField` for `User`, for data sets that watch some of them. `#[entity(id)]` is the
/// primary key, several are its tuple; `#[entity(skip)]` fields aren't compared; `#[entity(schema = 1)]` stands for the shape
/// of a type from which it can't be derived. On the struct, `#[entity(name = "…")]` and `#[entity(set_based(field, …))]`.
///
/// ```
/// use larder::{Entity, FieldBits};
///
/// #[derive(Clone, Entity)]
/// struct User {
///     #[entity(id)]
///     id: u64,
///     email: String,
///     is_active: bool,
/// }
///
/// let before = User { id: 7, email: "ada@example.com".into(), is_active: true };
/// let after = User { is_active: false, ..before.clone() };
/// assert_eq!(before.diff(&after), FieldBits::from([UserField::IsActive]));
/// ```
#[proc_macro_derive(Entity, attributes(entity))]
pub fn entity(input: TokenStream) -> TokenStream {
    derive(parse_macro_input!(input), entity::expand)
}

/// Makes a type a part of keys: a struct writes its fields, an enum without data the word of its variant.
///
/// A field that is text says what becomes of it: `#[key(digest)]` for texts that people choose, `#[key(escaped)]` for short
/// ones.
///
/// ```
/// use larder::{KeyPart, Keys, Prefix};
///
/// #[derive(KeyPart)]
/// struct UserId(u64);
///
/// #[derive(KeyPart)]
/// struct Label(#[key(escaped)] &'static str);
///
/// let mut keys = Keys::new();
/// keys.push(Prefix::new("v1")?, "label", &(UserId(7), Label("a b")))?;
/// assert_eq!(keys.get(0).as_str(), "v1/label:7:a%20b");
/// # Ok::<(), larder::Error>(())
/// ```
#[proc_macro_derive(KeyPart, attributes(key))]
pub fn key_part(input: TokenStream) -> TokenStream {
    derive(parse_macro_input!(input), key_part::expand)
}

/// Makes the application's own state a reader, and the way to the cache for what flushes by hand: a struct with one field
/// `Cache<S>` or `Request<S>`, or one such field that is marked `#[reader]`.
///
/// `#[reader(axum)]` on the struct also makes axum's handlers take that field from the state.
///
/// ```
/// # use larder::{BuilderExt as _, Cache, Config, Source};
/// # use std::convert::Infallible;
/// # #[derive(Clone)] struct Db; struct Conn;
/// # impl Source for Db { type Conn = Conn; type Guard = Box<Conn>; type Error = Infallible;
/// #   async fn acquire(&self) -> Result<Box<Conn>, Infallible> { Ok(Box::new(Conn)) } }
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = Cache::builder(Db).config(Config::new("memory://")?).build().await?;
/// # #[larder::cached(source = Db, key = "visits", ttl = "10m", by_hand)]
/// # async fn visits(_db: &mut Conn) -> Result<u64, Infallible> { Ok(17) }
/// #[derive(larder::Reader)]
/// struct App {
///     cache: Cache<Db>,
///     title: String,
/// }
///
/// let app = App { cache, title: "Weather".into() };
/// assert_eq!(visits(&app).await?, 17);
/// visits::flush(&app).await?;
/// # Ok(()) }
/// ```
#[proc_macro_derive(Reader, attributes(reader))]
pub fn reader(input: TokenStream) -> TokenStream {
    derive(parse_macro_input!(input), reader::expand)
}

fn derive(
    input: DeriveInput,
    expand: fn(DeriveInput) -> syn::Result<proc_macro2::TokenStream>,
) -> TokenStream {
    expand(input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
