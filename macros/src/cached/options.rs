//! The options of `#[cached(…)]`, as they are written.

use proc_macro2::{Span, TokenStream};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{Error, Expr, Ident, LitInt, LitStr, Path, Result, Token, Type, parenthesized};

use super::plan::Watch;
use super::units;
use crate::problems::Problems;

/// Every option, and how it is written.
const KNOWN: &[(&str, &str)] = &[
    ("absent_ttl", "absent_ttl = \"30s\""),
    ("base", "base = other_accessor"),
    ("by", "by = |value| value.id"),
    ("by_hand", "by_hand"),
    ("codec", "codec = rmp"),
    ("compress", "compress"),
    (
        "flush_on",
        "flush_on(Entity { field } => |entity| entity.id)",
    ),
    ("form", "form = StoredForm"),
    ("immutable", "immutable"),
    ("key", "key = \"name:{argument}\""),
    ("lease", "lease = \"10s\""),
    ("load_timeout", "load_timeout = \"30s\""),
    ("many", "many"),
    ("max_loads", "max_loads = 8"),
    ("max_value", "max_value = \"512KiB\""),
    ("outlives_deploys", "outlives_deploys"),
    ("revision", "revision = 1"),
    ("schema", "schema = 1"),
    ("skip", "skip(argument)"),
    ("source", "source = Db"),
    ("tier", "tier = request"),
    ("ttl", "ttl = \"7d\""),
    ("ttl_only", "ttl_only = \"10m\""),
];

/// What the attribute says.
#[derive(Default)]
pub(super) struct Options {
    pub(super) many: Option<Ident>,
    pub(super) source: Option<Type>,
    pub(super) key: Option<LitStr>,
    pub(super) by: Option<Expr>,
    pub(super) ttl: Option<Told>,
    pub(super) ttl_only: Option<Told>,
    pub(super) immutable: Option<Ident>,
    pub(super) absent_ttl: Option<Told>,
    pub(super) flush_on: Vec<Watch>,
    pub(super) base: Vec<Path>,
    pub(super) by_hand: Option<Ident>,
    pub(super) tier: Option<Choice<Tier>>,
    pub(super) codec: Option<Choice<&'static str>>,
    pub(super) compress: Option<Ident>,
    pub(super) form: Option<Type>,
    pub(super) schema: Option<LitInt>,
    pub(super) revision: Option<LitInt>,
    pub(super) outlives_deploys: Option<Ident>,
    pub(super) max_value: Option<Told>,
    pub(super) lease: Option<Told>,
    pub(super) load_timeout: Option<Told>,
    pub(super) max_loads: Option<Expr>,
    pub(super) skip: Vec<Ident>,
}

/// A duration or a size, and the option that told it.
pub(super) struct Told {
    pub(super) option: Ident,
    pub(super) value: TokenStream,
}

/// One of a few words.
pub(super) struct Choice<T> {
    pub(super) word: Ident,
    pub(super) chosen: T,
}

/// Where values stay decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    Request,
    Deploy,
}

const TIERS: &[(&str, Tier)] = &[("request", Tier::Request), ("deploy", Tier::Deploy)];

const CODECS: &[(&str, &str)] = &[
    ("postcard", "Postcard"),
    ("rmp", "Rmp"),
    ("json", "Json"),
    ("bincode", "Bincode"),
];

/// Passes over what can't be understood, so that the mistakes behind it are told too.
fn skip_to_comma(input: ParseStream<'_>) -> Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}

fn comma(input: ParseStream<'_>) -> Result<()> {
    let place = input.span();
    let comma = input.parse::<Token![,]>();
    comma.map_err(|_| {
        Error::new(
            place,
            "options are separated by commas: write a `,` before this",
        )
    })?;
    Ok(())
}

impl Options {
    /// The options that can be understood.
    pub(super) fn parse(input: ParseStream<'_>, problems: &mut Problems) -> Result<Self> {
        let mut options = Self::default();
        while !input.is_empty() {
            if problems.keep(options.option(input)).is_none() {
                skip_to_comma(input)?;
            }
            if !input.is_empty() && problems.keep(comma(input)).is_none() {
                skip_to_comma(input)?;
                input.parse::<Option<Token![,]>>()?;
            }
        }
        Ok(options)
    }

    fn option(&mut self, input: ParseStream<'_>) -> Result<()> {
        let place = input.span();
        let option: Ident = input.parse().map_err(|_| {
            Error::new(
                place,
                format!("an option begins with its name: {}", known()),
            )
        })?;
        let name = option.to_string();
        let Some((_, form)) = KNOWN.iter().find(|(known, _)| *known == name) else {
            let problem = format!("unknown option `{name}`; {}", known());
            return Err(Error::new(option.span(), problem));
        };
        let written = Written {
            input,
            option,
            form,
        };
        match &*name {
            "many" => written.flag(&mut self.many),
            "source" => written.value(&mut self.source),
            "key" => written.value(&mut self.key),
            "by" => written.value(&mut self.by),
            "ttl" => written.told(&mut self.ttl, units::duration),
            "ttl_only" => written.told(&mut self.ttl_only, units::duration),
            "immutable" => written.flag(&mut self.immutable),
            "absent_ttl" => written.told(&mut self.absent_ttl, units::duration),
            "flush_on" => written.list(&mut self.flush_on),
            "base" => written.one_more(&mut self.base),
            "by_hand" => written.flag(&mut self.by_hand),
            "tier" => written.choice(&mut self.tier, TIERS),
            "codec" => written.choice(&mut self.codec, CODECS),
            "compress" => written.flag(&mut self.compress),
            "form" => written.value(&mut self.form),
            "schema" => written.value(&mut self.schema),
            "revision" => written.value(&mut self.revision),
            "outlives_deploys" => written.flag(&mut self.outlives_deploys),
            "max_value" => written.told(&mut self.max_value, units::size),
            "lease" => written.told(&mut self.lease, units::duration),
            "load_timeout" => written.told(&mut self.load_timeout, units::duration),
            "max_loads" => written.value(&mut self.max_loads),
            _ => written.list(&mut self.skip),
        }
    }

    /// The text of the key.
    pub(super) fn key(&self) -> Result<&LitStr> {
        self.key.as_ref().ok_or_else(|| {
            let problem = "what is the key? Write `key = \"name:{argument}\"`, with every argument of the function";
            Error::new(Span::call_site(), problem)
        })
    }

    /// The tier, if values stay decoded somewhere.
    pub(super) fn tier(&self) -> Option<Tier> {
        self.tier.as_ref().map(|tier| tier.chosen)
    }
}

fn known() -> String {
    let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
    format!("known options: {}", names.join(", "))
}

/// An option whose name was read, in front of its value.
struct Written<'a> {
    input: ParseStream<'a>,
    option: Ident,
    form: &'static str,
}

impl Written<'_> {
    /// An option without a value.
    fn flag(&self, slot: &mut Option<Ident>) -> Result<()> {
        if !self.input.is_empty() && !self.input.peek(Token![,]) {
            return Err(self.misspelt(self.input.span()));
        }
        self.once(slot, self.option.clone())
    }

    /// `option = value`.
    fn value<T: Parse>(&self, slot: &mut Option<T>) -> Result<()> {
        self.once(slot, self.parse()?)
    }

    /// `option = value`, any number of times.
    fn one_more<T: Parse>(&self, all: &mut Vec<T>) -> Result<()> {
        all.push(self.parse()?);
        Ok(())
    }

    /// `option = value`, where the value has a unit.
    fn told(
        &self,
        slot: &mut Option<Told>,
        read: fn(&str, &Expr) -> Result<TokenStream>,
    ) -> Result<()> {
        let option = self.option.clone();
        let value = read(&option.to_string(), &self.parse()?)?;
        self.once(slot, Told { option, value })
    }

    /// `option = word`.
    fn choice<T: Copy>(&self, slot: &mut Option<Choice<T>>, words: &[(&str, T)]) -> Result<()> {
        let word: Ident = self.parse()?;
        let Some((_, chosen)) = words.iter().find(|(known, _)| word == known) else {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let option = &self.option;
            let problem = format!(
                "unknown {option} `{word}`; write `{option} = {}`",
                known.join(&format!("`, or `{option} = "))
            );
            return Err(Error::new(word.span(), problem));
        };
        let chosen = *chosen;
        self.once(slot, Choice { word, chosen })
    }

    /// `option(one, another)`, any number of times.
    fn list<T: Parse>(&self, all: &mut Vec<T>) -> Result<()> {
        if !self.input.peek(syn::token::Paren) {
            return Err(self.misspelt(self.input.span()));
        }
        let inside;
        parenthesized!(inside in self.input);
        if inside.is_empty() {
            return Err(self.misspelt(self.option.span()));
        }
        let listed = Punctuated::<T, Token![,]>::parse_terminated(&inside);
        // What is left of a mistake isn't another one.
        inside.parse::<TokenStream>()?;
        all.extend(listed?);
        Ok(())
    }

    fn parse<T: Parse>(&self) -> Result<T> {
        let value = self.input.parse::<Token![=]>();
        let value = value.and_then(|_| self.input.parse());
        value.map_err(|error| self.misspelt(error.span()))
    }

    fn once<T>(&self, slot: &mut Option<T>, value: T) -> Result<()> {
        if slot.replace(value).is_some() {
            let problem = format!("`{}` is there twice: leave one out", self.option);
            return Err(Error::new(self.option.span(), problem));
        }
        Ok(())
    }

    fn misspelt(&self, place: Span) -> Error {
        Error::new(place, format!("write `{}`", self.form))
    }
}
