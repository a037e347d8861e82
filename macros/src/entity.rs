//! `#[derive(Entity)]`: the fields that data sets may watch, and in which of them two images differ.

use std::iter;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Data, DeriveInput, Error, Field, Fields, LitInt, LitStr, Result, Token, Visibility,
    parenthesized,
};

use crate::names::{camel_case, snake_case, text};
use crate::problems::Problems;

/// As many fields as a set of them has bits.
const MOST_FIELDS: usize = 128;

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    Ok(Entity::parse(&input)?.expand())
}

struct Entity<'a> {
    input: &'a DeriveInput,
    name: LitStr,
    fields: Vec<EntityField<'a>>,
    set_based: Vec<Ident>,
}

struct EntityField<'a> {
    field: &'a Field,
    name: &'a Ident,
    role: Role,
    schema: Option<LitInt>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Id,
    Watched,
    Skipped,
}

impl<'a> Entity<'a> {
    fn parse(input: &'a DeriveInput) -> Result<Self> {
        let named = match &input.data {
            Data::Struct(data) => match &data.fields {
                Fields::Named(fields) => Some(fields),
                _ => None,
            },
            _ => None,
        };
        let Some(named) = named else {
            let problem = "an entity is a row, whose columns have names: write `struct User { #[entity(id)] id: UserId, … }`";
            return Err(Error::new(input.ident.span(), problem));
        };
        let mut problems = Problems::default();
        if !input.generics.params.is_empty() {
            let problem =
                "an entity is one type, so that it has no parameters: own what it is made of";
            problems.add(Error::new_spanned(&input.generics, problem));
        }
        let said = problems
            .keep(said::<OfStruct>(&input.attrs))
            .unwrap_or_default();
        let fields = named.named.iter();
        let fields = fields.filter_map(|field| problems.keep(EntityField::parse(field)));
        let fields: Vec<EntityField<'a>> = fields.collect::<Vec<_>>();
        let mut entity = Self {
            input,
            name: LitStr::new(&snake_case(&input.ident), input.ident.span()),
            fields,
            set_based: Vec::new(),
        };
        for said in said {
            match said {
                OfStruct::Name(name) => entity.name = name,
                OfStruct::SetBased(fields) => entity.set_based.extend(fields),
            }
        }
        entity.check(&mut problems);
        problems.check()?;
        Ok(entity)
    }

    fn check(&self, problems: &mut Problems) {
        let name = self.name.value();
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(legal) {
            problems.at(
                self.name.span(),
                format!(
                    "an entity's name is 1 to 64 characters of A-Z a-z 0-9 . _ -, unlike `{name}`"
                ),
            );
        }
        if self.ids().next().is_none() {
            problems.at(
                self.input.ident.span(),
                "which field is the primary key? Write `#[entity(id)]` on it, or on each of several",
            );
        }
        if let Some(one_too_many) = self.watched().nth(MOST_FIELDS) {
            problems.at(
                one_too_many.name.span(),
                format!(
                    "an entity has at most {MOST_FIELDS} fields that can be watched: write `#[entity(skip)]` on those that \
                     nothing cached shows"
                ),
            );
        }
        for field in &self.set_based {
            if !self.watched().any(|watched| watched.name == field) {
                problems.at(
                    field.span(),
                    format!("`{field}` is no field that can be watched, so that it can't be changed without images"),
                );
            }
        }
    }

    fn ids(&self) -> impl Iterator<Item = &EntityField<'a>> {
        self.fields.iter().filter(|field| field.role == Role::Id)
    }

    fn watched(&self) -> impl Iterator<Item = &EntityField<'a>> {
        self.fields
            .iter()
            .filter(|field| field.role == Role::Watched)
    }

    fn expand(&self) -> TokenStream {
        let field_set = self.field_set();
        let entity = self.entity();
        quote!(#field_set #entity)
    }

    /// The type of its fields.
    fn field_type(&self) -> Ident {
        format_ident!("{}Field", self.input.ident.unraw())
    }

    fn field_set(&self) -> TokenStream {
        let (entity, visibility) = (&self.input.ident, &self.input.vis);
        let field_type = self.field_type();
        let doc = format!(" What of a [`{entity}`] can change.");
        let variants: Vec<Ident> = self.watched().map(|field| camel_case(field.name)).collect();
        let docs = self.watched().map(|field| field.doc(entity));
        let names = self.watched().map(|field| field.name.unraw().to_string());
        let name = match variants.is_empty() {
            true => quote!(match self {}),
            false => quote!(match self { #(Self::#variants => #names,)* }),
        };
        quote! {
            #[doc = #doc]
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            #visibility enum #field_type {
                #(#[doc = #docs] #variants,)*
            }

            #[automatically_derived]
            impl ::larder::FieldSet for #field_type {
                const ALL: &'static [Self] = &[#(Self::#variants),*];

                fn name(self) -> &'static str {
                    #name
                }
            }
        }
    }

    fn entity(&self) -> TokenStream {
        let (entity, name) = (&self.input.ident, &self.name);
        let field_type = self.field_type();
        let set_based = self.set_based();
        let ids: Vec<_> = self.ids().map(|id| (id.name, &id.field.ty)).collect();
        let clone = |id: &Ident| quote!(::core::clone::Clone::clone(&self.#id));
        let (id_type, id) = match &*ids {
            [(name, ty)] => (ty.to_token_stream(), clone(name)),
            several => {
                let types = several.iter().map(|(_, ty)| ty);
                let ids = several.iter().map(|(name, _)| clone(name));
                (quote!((#(#types),*)), quote!((#(#ids),*)))
            }
        };
        let differences = self.watched().map(|field| {
            let (name, variant) = (field.name, camel_case(field.name));
            let span = Span::call_site().located_at(field.field.ty.span());
            let differs =
                quote_spanned!(span=> !::core::cmp::PartialEq::eq(&self.#name, &other.#name));
            quote!((#field_type::#variant, #differs))
        });
        let other = match self.watched().next() {
            Some(_) => quote!(other),
            None => quote!(_),
        };
        let shape = self.shape();
        quote! {
            #[automatically_derived]
            impl ::larder::Entity for #entity {
                const NAME: &'static str = #name;
                #set_based
                type Id = #id_type;
                type Field = #field_type;

                fn id(&self) -> Self::Id {
                    #id
                }

                fn diff(&self, #other: &Self) -> ::larder::FieldBits {
                    ::larder::FieldBits::of::<#field_type>([#(#differences),*])
                }

                #shape
            }
        }
    }

    fn set_based(&self) -> Option<TokenStream> {
        let field_type = self.field_type();
        let variants = self.set_based.iter().map(camel_case);
        (!self.set_based.is_empty()).then(|| {
            quote! {
                const SET_BASED: ::larder::FieldBits =
                    ::larder::FieldBits::at([#(#field_type::#variants as usize),*]);
            }
        })
    }

    /// The declaration's own text, and the shapes of all fields.
    fn shape(&self) -> TokenStream {
        let fields = self.fields.iter().map(EntityField::declaration);
        let declaration: String = iter::once(serde_of(&self.input.attrs))
            .chain(fields)
            .collect();
        let shapes = self.fields.iter().map(|field| {
            let ty = &field.field.ty;
            match &field.schema {
                Some(schema) => quote!(::core::option::Option::Some(#schema)),
                None => quote!((&Probe::<#ty>(PhantomData)).shape()),
            }
        });
        quote! {
            fn shape() -> ::core::option::Option<u64> {
                #[allow(unused_imports)]
                use ::larder::private::{PhantomData, Probe, Shaped as _, Unshaped as _};
                ::larder::private::shape(#declaration, &[#(#shapes),*])
            }
        }
    }
}

impl<'a> EntityField<'a> {
    fn parse(field: &'a Field) -> Result<Self> {
        let mut parsed = Self {
            field,
            name: field.ident.as_ref().expect("the fields are named"),
            role: Role::Watched,
            schema: None,
        };
        for said in said::<OfField>(&field.attrs)? {
            let (role, word) = match said {
                OfField::Schema(schema) => {
                    parsed.schema = Some(schema);
                    continue;
                }
                OfField::Id(word) => (Role::Id, word),
                OfField::Skip(word) => (Role::Skipped, word),
            };
            if parsed.role != Role::Watched {
                let problem = "the primary key never changes, so that it is never compared: write `#[entity(id)]` alone";
                return Err(Error::new(word.span(), problem));
            }
            parsed.role = role;
        }
        Ok(parsed)
    }

    fn doc(&self, entity: &Ident) -> String {
        let name = self.name.unraw();
        match self.field.vis {
            // A link to what is private would be a broken one.
            Visibility::Inherited => format!(" `{name}`"),
            _ => format!(" [`{entity}::{name}`]"),
        }
    }

    /// What of its declaration its stored form follows from, beside its type's shape.
    fn declaration(&self) -> String {
        let serde = serde_of(&self.field.attrs);
        format!("{serde}{}:{},", self.name.unraw(), text(&self.field.ty))
    }
}

/// What is said to serde.
fn serde_of(attributes: &[Attribute]) -> String {
    let serde = attributes.iter();
    let serde = serde.filter(|attribute| attribute.path().is_ident("serde"));
    serde.map(text).collect()
}

/// What `#[entity(…)]` says of a struct.
enum OfStruct {
    Name(LitStr),
    SetBased(Punctuated<Ident, Token![,]>),
}

impl Parse for OfStruct {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let place = input.span();
        let known = "write `name = \"user\"` or `set_based(field, field)`";
        let word = input
            .parse::<Ident>()
            .map_err(|_| Error::new(place, known))?;
        if word == "name" {
            input.parse::<Token![=]>()?;
            return Ok(Self::Name(input.parse()?));
        }
        if word == "set_based" && input.peek(syn::token::Paren) {
            let inside;
            parenthesized!(inside in input);
            return Ok(Self::SetBased(Punctuated::parse_terminated(&inside)?));
        }
        Err(Error::new(
            word.span(),
            format!("unknown option `{word}` of an entity; {known}"),
        ))
    }
}

/// What `#[entity(…)]` says of a field.
enum OfField {
    Id(Ident),
    Skip(Ident),
    Schema(LitInt),
}

impl Parse for OfField {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let place = input.span();
        let known = "write `id`, `skip` (not compared), or `schema = 1`";
        let word = input
            .parse::<Ident>()
            .map_err(|_| Error::new(place, known))?;
        match &*word.to_string() {
            "id" => Ok(Self::Id(word)),
            "skip" => Ok(Self::Skip(word)),
            "schema" => {
                input.parse::<Token![=]>()?;
                Ok(Self::Schema(input.parse()?))
            }
            _ => Err(Error::new(
                word.span(),
                format!("unknown option `{word}` of a field; {known}"),
            )),
        }
    }
}

/// Everything that `#[entity(…)]` says here.
fn said<T: Parse>(attributes: &[Attribute]) -> Result<Vec<T>> {
    let mut all = Vec::new();
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("entity"))
    {
        all.extend(attribute.parse_args_with(Punctuated::<T, Token![,]>::parse_terminated)?);
    }
    Ok(all)
}
