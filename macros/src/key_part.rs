//! `#[derive(KeyPart)]`: a type as a part of keys, made of its own parts.

use proc_macro2::{Group, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens as _, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Data, DataEnum, DataStruct, DeriveInput, Error, Field, Generics, Lifetime, Member,
    Result, parse_quote,
};

use crate::names::text;
use crate::problems::Problems;

pub(crate) fn expand(input: DeriveInput) -> Result<TokenStream> {
    match &input.data {
        Data::Struct(data) => of_struct(&input, data),
        Data::Enum(data) => of_enum(&input, data),
        Data::Union(_) => {
            let problem = "a union doesn't say which of its fields counts: implement `larder::KeyPart` by hand";
            Err(Error::new(input.ident.span(), problem))
        }
    }
}

/// Each field is a part.
fn of_struct(input: &DeriveInput, data: &DataStruct) -> Result<TokenStream> {
    let mut problems = Problems::default();
    let members = data.fields.members().zip(&data.fields);
    let parts: Vec<Part<'_>> = members
        .filter_map(|(member, field)| problems.keep(Part::parse(member, field, &input.generics)))
        .collect();
    problems.check()?;
    let writes = parts.iter().map(Part::write);
    let demands: Vec<TokenStream> = parts.iter().filter_map(Part::demand).collect();
    let demands = (!demands.is_empty()).then(|| quote!(const _: () = { #(#demands)* };));
    let texts: Vec<TokenStream> = parts.iter().filter_map(Part::may_be_text).collect();
    let text = (!texts.is_empty()).then(|| quote!(const TEXT: bool = #(#texts)||*;));
    let key = match parts.is_empty() {
        true => quote!(_),
        false => quote!(key),
    };
    Ok(implement(
        input,
        quote! {
            #text

            fn write(&self, #key: &mut ::larder::KeyWriter<'_>) {
                #(#writes)*
            }
        },
        demands,
    ))
}

/// Each variant is a word.
fn of_enum(input: &DeriveInput, data: &DataEnum) -> Result<TokenStream> {
    let mut problems = Problems::default();
    if data.variants.is_empty() {
        let problem = "an enum without variants has no values to tell apart";
        problems.at(input.ident.span(), problem);
    }
    let mut arms = Vec::new();
    for variant in &data.variants {
        let name = &variant.ident;
        if !variant.fields.is_empty() {
            let problem = format!(
                "`{name}` has data, and how two variants are told apart isn't for a derive to guess: implement \
                 `larder::KeyPart` by hand, `key.word(\"{name}\")` and then each field, or use an enum without data"
            );
            problems.add(Error::new_spanned(variant, problem));
        }
        let word = name.unraw().to_string();
        if !word.is_ascii() {
            let problem = format!(
                "`{word}` becomes a word in keys, which is ASCII: give the variant such a name"
            );
            problems.at(name.span(), problem);
        }
        arms.push(quote!(Self::#name => #word));
    }
    problems.check()?;
    Ok(implement(
        input,
        quote! {
            fn write(&self, key: &mut ::larder::KeyWriter<'_>) {
                key.word(match self { #(#arms,)* });
            }
        },
        None,
    ))
}

fn implement(
    input: &DeriveInput,
    members: TokenStream,
    demands: Option<TokenStream>,
) -> TokenStream {
    let name = &input.ident;
    let mut generics = input.generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(::larder::KeyPart));
    }
    let (implemented, arguments, bounds) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #implemented ::larder::KeyPart for #name #arguments #bounds {
            #members
        }

        #demands
    }
}

/// One field.
struct Part<'a> {
    member: Member,
    field: &'a Field,
    format: Format,
    /// Whether its type has a type or a constant of the struct's in it, so that nothing is known of it here.
    generic: bool,
    /// The struct's lifetimes.
    lifetimes: Vec<&'a Lifetime>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Own,
    Digest,
    Escaped,
}

impl<'a> Part<'a> {
    fn parse(member: Member, field: &'a Field, generics: &'a Generics) -> Result<Self> {
        let mut format = Format::Own;
        for attribute in &field.attrs {
            if attribute.path().is_ident("key") {
                format = parse_format(attribute)?;
            }
        }
        let types = generics.type_params().map(|parameter| &parameter.ident);
        let constants = generics.const_params().map(|parameter| &parameter.ident);
        let parameters: Vec<&Ident> = types.chain(constants).collect();
        Ok(Self {
            generic: names(field.ty.to_token_stream(), &parameters),
            lifetimes: generics
                .lifetimes()
                .map(|parameter| &parameter.lifetime)
                .collect(),
            member,
            field,
            format,
        })
    }

    fn write(&self) -> TokenStream {
        let member = &self.member;
        let span = Span::call_site().located_at(self.field.ty.span());
        match self.format {
            Format::Digest => quote!(key.digest_of(&self.#member);),
            Format::Own | Format::Escaped => {
                let write = quote_spanned!(span=> ::larder::KeyPart::write);
                quote!(#write(&self.#member, key);)
            }
        }
    }

    /// That it isn't text, unless it says what becomes of that.
    fn demand(&self) -> Option<TokenStream> {
        let ty = &self.field.ty;
        let problem = format!(
            "`{}` is text: write `#[key(digest)]` on this field, or `#[key(escaped)]` if it is always short",
            text(ty)
        );
        let span = Span::call_site().located_at(ty.span());
        (self.format == Format::Own && !self.generic).then(|| {
            // It is demanded outside of the `impl`, and what is text is text for any lifetime.
            let ty = with_static(ty.to_token_stream(), &self.lifetimes);
            quote_spanned!(span=> ::larder::private::demand(!<#ty as ::larder::KeyPart>::TEXT, #problem);)
        })
    }

    fn may_be_text(&self) -> Option<TokenStream> {
        let ty = &self.field.ty;
        (self.format == Format::Own && self.generic)
            .then(|| quote!(<#ty as ::larder::KeyPart>::TEXT))
    }
}

fn parse_format(attribute: &Attribute) -> Result<Format> {
    let known =
        "write `#[key(digest)]` for a text of any length, or `#[key(escaped)]` for a short one";
    let word: Ident = attribute
        .parse_args()
        .map_err(|error| Error::new(error.span(), known))?;
    match &*word.to_string() {
        "digest" => Ok(Format::Digest),
        "escaped" => Ok(Format::Escaped),
        _ => Err(Error::new(
            word.span(),
            format!("unknown format `{word}`; {known}"),
        )),
    }
}

/// These tokens with `'static` in place of these lifetimes.
fn with_static(tokens: TokenStream, lifetimes: &[&Lifetime]) -> TokenStream {
    let mut tokens = tokens.into_iter().peekable();
    let mut written = TokenStream::new();
    while let Some(token) = tokens.next() {
        let is_quote = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == '\'');
        written.extend([match token {
            TokenTree::Group(group) => {
                let inside = with_static(group.stream(), lifetimes);
                let mut new = Group::new(group.delimiter(), inside);
                new.set_span(group.span());
                TokenTree::Group(new)
            }
            token => token,
        }]);
        if is_quote && let Some(TokenTree::Ident(name)) = tokens.peek() {
            let is_one = lifetimes.iter().any(|lifetime| lifetime.ident == *name);
            if is_one {
                written.extend([TokenTree::Ident(Ident::new("static", name.span()))]);
                tokens.next();
            }
        }
    }
    written
}

/// Whether one of these names is in it.
fn names(tokens: TokenStream, parameters: &[&Ident]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(name) => parameters.contains(&&name),
        TokenTree::Group(group) => names(group.stream(), parameters),
        _ => false,
    })
}
