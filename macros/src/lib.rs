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
#[proc_macro_attribute]
pub fn cached(options: TokenStream, function: TokenStream) -> TokenStream {
    cached::expand(options.into(), function.into()).into()
}

/// Makes a struct an entity: what the application writes, and which of its fields a write changed.
#[proc_macro_derive(Entity, attributes(entity))]
pub fn entity(input: TokenStream) -> TokenStream {
    derive(parse_macro_input!(input), entity::expand)
}

/// Makes a type a part of keys.
#[proc_macro_derive(KeyPart, attributes(key))]
pub fn key_part(input: TokenStream) -> TokenStream {
    derive(parse_macro_input!(input), key_part::expand)
}

/// Makes the application's own state a reader, and the way to the cache for what flushes by hand.
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
