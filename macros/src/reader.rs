//! `#[derive(Reader)]`: the application's own state as who asks.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Data, DeriveInput, Error, Field, GenericArgument, GenericParam, Ident, Lifetime, LifetimeParam,
    Member, PathArguments, Result, Type,
};

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        let problem =
            "a reader holds a cache: derive it on a struct with a field `cache: Cache<Db>`";
        return Err(Error::new(input.ident.span(), problem));
    };
    let gives_axum = asks_for_axum(&input)?;
    let mut held: Vec<Held<'_>> = Vec::new();
    for (member, field) in data.fields.members().zip(&data.fields) {
        held.extend(Held::parse(member, field)?);
    }
    let marked = held.iter().filter(|held| held.marked).count();
    if marked == 1 {
        held.retain(|held| held.marked);
    }
    let [held] = &*held else {
        return Err(which(&input, &held));
    };
    Ok(held.implement(&input, gives_axum))
}

/// What to say where there isn't exactly one way to read.
fn which(input: &DeriveInput, held: &[Held<'_>]) -> Error {
    let problem = match held {
        [] => format!(
            "`{}` has nothing to read with: add a field `cache: Cache<Db>` or `request: Request<Db>`, of a type of that name",
            input.ident
        ),
        _ => format!(
            "`{}` has several fields to read with: write `#[reader]` on one of them",
            input.ident
        ),
    };
    match held {
        [_, second, ..] => Error::new_spanned(&second.field.ty, problem),
        _ => Error::new(input.ident.span(), problem),
    }
}

/// A field that can be read with.
struct Held<'a> {
    member: Member,
    field: &'a Field,
    source: Type,
    /// Whether it is a request, which keeps values.
    scoped: bool,
    marked: bool,
}

impl<'a> Held<'a> {
    fn parse(member: Member, field: &'a Field) -> Result<Option<Self>> {
        let mark = field
            .attrs
            .iter()
            .find(|attribute| attribute.path().is_ident("reader"));
        if let Some(mark) = mark {
            mark.meta.require_path_only()?;
        }
        let found = source_of(&field.ty);
        match (found, mark) {
            (Some((source, scoped)), _) => Ok(Some(Self {
                member,
                field,
                source,
                scoped,
                marked: mark.is_some(),
            })),
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let problem = "what is read with is a `Cache<Db>` or a `Request<Db>`: write one of these names";
                Err(Error::new_spanned(&field.ty, problem))
            }
        }
    }

    fn implement(&self, input: &DeriveInput, gives_axum: bool) -> TokenStream {
        let (name, source, member) = (&input.ident, &self.source, &self.member);
        let ty = &self.field.ty;
        let (implemented, arguments, bounds) = input.generics.split_for_impl();
        let mut lent = input.generics.clone();
        let lifetime = Lifetime::new("'reader", proc_macro2::Span::mixed_site());
        lent.params.insert(
            0,
            GenericParam::Lifetime(LifetimeParam::new(lifetime.clone())),
        );
        let (implemented_lent, _, _) = lent.split_for_impl();
        let scoped = self.scoped.then(|| {
            quote! {
                #[automatically_derived]
                impl #implemented_lent ::larder::ScopedReader<#lifetime, #source> for &#lifetime #name #arguments #bounds {}
            }
        });
        let axum = gives_axum.then(|| {
            quote! {
                #[automatically_derived]
                impl #implemented ::larder::private::FromRef<#name #arguments> for #ty #bounds {
                    fn from_ref(state: &#name #arguments) -> Self {
                        ::core::clone::Clone::clone(&state.#member)
                    }
                }
            }
        });
        quote! {
            #[automatically_derived]
            impl #implemented_lent ::larder::Reader<#lifetime, #source> for &#lifetime #name #arguments #bounds {
                fn route(self) -> ::larder::Route<#lifetime, #source> {
                    ::larder::Reader::route(&self.#member)
                }
            }

            #scoped

            #[automatically_derived]
            impl #implemented ::larder::HasCache<#source> for #name #arguments #bounds {
                fn cache(&self) -> &::larder::Cache<#source> {
                    ::larder::HasCache::cache(&self.#member)
                }
            }

            #axum
        }
    }
}

/// The source of a `Cache<S>` or `Request<S>`, and whether it is the latter.
fn source_of(ty: &Type) -> Option<(Type, bool)> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    let scoped = match &*last.ident.to_string() {
        "Cache" => false,
        "Request" => true,
        _ => return None,
    };
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    match arguments.args.first()? {
        GenericArgument::Type(source) if arguments.args.len() == 1 => {
            Some((source.clone(), scoped))
        }
        _ => None,
    }
}

/// Whether the struct says `#[reader(axum)]`.
fn asks_for_axum(input: &DeriveInput) -> Result<bool> {
    let mut asks = false;
    for attribute in &input.attrs {
        if attribute.path().is_ident("reader") {
            let known = "write `#[reader(axum)]`, so that axum's handlers can take the cache as `State<Cache<Db>>`";
            let word: Ident = attribute
                .parse_args()
                .map_err(|_| Error::new_spanned(attribute, known))?;
            if word != "axum" {
                return Err(Error::new(
                    word.span(),
                    format!("unknown option `{word}`; {known}"),
                ));
            }
            asks = true;
        }
    }
    Ok(asks)
}
