//! `flush_on(Entity { field } => |entity| keys)`: what makes entries stale.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens as _, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{Error, Expr, Ident, Path, Result, Token, braced};

use super::signature::Loader;
use crate::names::{camel_case, text};

/// One entity, which of its fields matter, and the keys that a change of them makes stale.
pub(super) struct Watch {
    /// Whether rows are there before anybody asks, so that creating one flushes nothing.
    existing: Option<Ident>,
    entity: Path,
    fields: Fields,
    keys: Keys,
}

/// Which fields matter.
enum Fields {
    All,
    These(Vec<Ident>),
}

/// How the keys are found.
enum Keys {
    /// Asked of each image.
    Of(Expr),
    /// The primary key, or what follows from it.
    Id(Ident, Option<Expr>),
    /// What the database answers after the commit.
    Query(Ident, Expr),
}

const FORMS: &str = "write `Entity { field } => |entity| key`, `Entity { field } => id` where the key is the primary key, \
                     or `Entity { field } => query |entity| KeysOf { … }`";

impl Parse for Watch {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let word = input.fork().parse::<Ident>().ok();
        let existing = match word {
            Some(word)
                if word == "existing"
                    && !input.peek2(Token![::])
                    && !input.peek2(syn::token::Brace) =>
            {
                Some(input.parse::<Ident>()?)
            }
            _ => None,
        };
        let entity = Path::parse_mod_style(input)?;
        let fields = Fields::parse(&entity, input)?;
        let place = input.span();
        input
            .parse::<Token![=>]>()
            .map_err(|_| Error::new(place, format!("which keys does it flush? {FORMS}")))?;
        let keys = input.parse()?;
        let watch = Self {
            existing,
            entity,
            fields,
            keys,
        };
        match (&watch.existing, &watch.keys) {
            (Some(_), Keys::Id(word, _) | Keys::Query(word, _)) => {
                let problem = format!(
                    "`existing` goes with keys of images: write `existing {} {{ … }} => |entity| key`",
                    text(&watch.entity)
                );
                Err(Error::new(word.span(), problem))
            }
            _ => Ok(watch),
        }
    }
}

impl Fields {
    fn parse(entity: &Path, input: ParseStream<'_>) -> Result<Self> {
        if !input.peek(syn::token::Brace) {
            let entity = text(entity);
            let problem = format!(
                "which of its fields matter? Write `{entity} {{ name, email }}`, `{entity} {{ .. }}` for any, or \
                 `{entity} {{}}` for none, so that only its creation and deletion count"
            );
            return Err(Error::new(input.span(), problem));
        }
        let inside;
        braced!(inside in input);
        let fields = Self::parse_inside(&inside);
        inside.parse::<TokenStream>()?;
        fields
    }

    fn parse_inside(inside: ParseStream<'_>) -> Result<Self> {
        if inside.peek(Token![..]) {
            inside.parse::<Token![..]>()?;
            return match inside.is_empty() {
                true => Ok(Self::All),
                false => Err(inside.error("`..` is every field: leave the others out")),
            };
        }
        let fields = Punctuated::<Ident, Token![,]>::parse_terminated(inside).map_err(|error| {
            Error::new(error.span(), "fields are names, or `..` for any of them")
        })?;
        Ok(Self::These(fields.into_iter().collect()))
    }

    fn expand(&self, entity: &Path) -> TokenStream {
        let span = Span::mixed_site();
        let fields = match self {
            Self::All => return quote_spanned!(span=> ::larder::FieldBits::ALL),
            Self::These(fields) if fields.is_empty() => {
                return quote_spanned!(span=> ::larder::FieldBits::NONE);
            }
            Self::These(fields) => fields.iter().map(|field| {
                let variant = camel_case(field);
                let span = span.located_at(field.span());
                quote_spanned!(span=> <<#entity as ::larder::Entity>::Field>::#variant)
            }),
        };
        quote_spanned!(span=> [#(#fields),*])
    }
}

impl Parse for Keys {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let begins_closure = |input: ParseStream<'_>| {
            input.peek(Token![|]) || input.peek(Token![||]) || input.peek(Token![move])
        };
        let word = input.fork().parse::<Ident>().ok();
        match word {
            Some(word) if word == "query" => {
                let word = input.parse()?;
                let place = input.span();
                let closure = input
                    .parse()
                    .map_err(|_| Error::new(place, "write `query |entity| KeysOf { … }`"))?;
                Ok(Self::Query(word, closure))
            }
            Some(word) if word == "id" && !input.peek2(Token![::]) => {
                let word = input.parse()?;
                let closure = match begins_closure(input) {
                    true => Some(input.parse()?),
                    false => None,
                };
                Ok(Self::Id(word, closure))
            }
            _ => {
                let place = input.span();
                match input.parse::<Expr>() {
                    Ok(expression @ (Expr::Closure(_) | Expr::Path(_))) => Ok(Self::Of(expression)),
                    Ok(other) => Err(Error::new_spanned(
                        &other,
                        format!(
                            "the keys are asked of each image of a row: write `|entity| {}`",
                            text(&other)
                        ),
                    )),
                    Err(_) => Err(Error::new(place, FORMS)),
                }
            }
        }
    }
}

impl Watch {
    /// Where it is written.
    pub(super) fn span(&self) -> Span {
        self.entity.span()
    }

    /// The declaration to the plan, in `fn flush_on(plan)`.
    pub(super) fn expand(&self, loader: &Loader, plan: &Ident) -> TokenStream {
        let entity = &self.entity;
        let fields = self.fields.expand(entity);
        let span = Span::mixed_site().located_at(entity.span());
        match &self.keys {
            Keys::Of(of) => {
                let span = span.located_at(of.span());
                let method = Ident::new(
                    match self.existing {
                        Some(_) => "existing",
                        None => "entity",
                    },
                    span,
                );
                let keys = match loader.whole_key() {
                    None => quote_spanned! {span=>
                        ::larder::private::keys_of::<#entity, Self::Key, _>(#of)
                    },
                    Some((rest, whole)) => quote_spanned! {span=>
                        ::larder::private::keys_of_rest::<#entity, #rest, Self::Key, _>(#of, #whole)
                    },
                };
                quote_spanned!(span=> #plan.#method(#fields, #keys);)
            }
            Keys::Id(word, of) => {
                let of = match of {
                    Some(of) => of.to_token_stream(),
                    None => {
                        let span = Span::mixed_site().located_at(word.span());
                        quote_spanned!(span=> ::core::clone::Clone::clone)
                    }
                };
                let key = match loader.whole_key() {
                    None => of,
                    Some((rest, whole)) => quote_spanned! {span=>
                        ::larder::private::key_of_rest::<#entity, #rest, Self::Key>(#of, #whole)
                    },
                };
                quote_spanned!(span=> #plan.id::<#entity>(#fields, #key);)
            }
            Keys::Query(_, of) => quote_spanned!(span=> #plan.query::<#entity, _>(#fields, #of);),
        }
    }
}
