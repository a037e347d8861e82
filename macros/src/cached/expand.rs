//! What the attribute expands to: the data set as a type, its loader, and the functions that ask it.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{Attribute, Meta, Type};

use super::options::{Options, Tier, Told};
use super::signature::{Argument, Function, Loader};
use super::template::{Format, Part, Template};

/// An accessor that nothing is wrong with.
pub(super) struct Accessor<'a> {
    pub(super) source: &'a Type,
    pub(super) options: &'a Options,
    pub(super) function: &'a Function,
    pub(super) loader: &'a Loader,
    pub(super) template: &'a Template,
}

/// The span of what no one wrote: its variables meet none of the user's.
fn here() -> Span {
    Span::mixed_site()
}

/// Tokens that no one wrote.
macro_rules! ours {
    ($($tokens:tt)*) => { quote_spanned!(here()=> $($tokens)*) };
}

/// Tokens that no one wrote, about something that is written there.
macro_rules! ours_at {
    ($place:expr=> $($tokens:tt)*) => {{
        let span = here().located_at($place);
        quote_spanned!(span=> $($tokens)*)
    }};
}

/// What stands for an accessor with mistakes, so that nothing else seems to be missing: both of its names.
pub(super) fn stub(function: &Function) -> TokenStream {
    let Function {
        attributes,
        visibility,
        signature,
        body,
    } = function;
    let name = &signature.ident;
    // In an `impl` block there is no place for it.
    let companion = signature.receiver().is_none().then(|| {
        quote! {
            #[allow(non_camel_case_types, dead_code, missing_docs, missing_debug_implementations)]
            #visibility enum #name {}
        }
    });
    quote! {
        #companion
        #(#attributes)*
        #[allow(dead_code)]
        #visibility #signature #body
    }
}

impl Accessor<'_> {
    pub(super) fn expand(&self) -> TokenStream {
        let name = &self.loader.name;
        let configured = self.configured();
        let companion = self.companion();
        let data_set = self.data_set();
        let accessor = self.accessor();
        let functions = self.functions();
        let demands = self.demands();
        let immutable = self.options.immutable.as_ref().map(|_| {
            ours! {
                #(#configured)*
                impl ::larder::Immutable for #name {}
            }
        });
        ours! {
            #companion
            #(#configured)*
            #data_set
            #immutable
            #accessor
            #(#configured)*
            #functions
            #(#configured)*
            const _: () = {
                #demands
                ::larder::dataset!(#name);
            };
        }
    }

    /// The type that names the data set.
    fn companion(&self) -> TokenStream {
        let Self {
            loader, template, ..
        } = self;
        let (name, visibility) = (&loader.name, &self.function.visibility);
        let configured = self.configured();
        let doc = format!(
            " The data set behind [`{name}`](fn@{name}), whose keys are `{}`.",
            template.text.value()
        );
        ours! {
            #(#configured)*
            #[doc = #doc]
            #[allow(non_camel_case_types)]
            #[derive(Debug)]
            #visibility enum #name {}
        }
    }

    /// Its declaration, as a person would write it.
    fn data_set(&self) -> TokenStream {
        let Self {
            options,
            loader,
            template,
            ..
        } = self;
        let name = &loader.name;
        let (data_set, key) = (&template.name, template.text.value());
        let constants = self.constants();
        let source = self.source;
        let key_type = loader.key_type();
        let (value, error) = (&loader.answer.value, &loader.answer.error);
        let form = match &options.form {
            Some(form) => form.to_token_stream(),
            None => ours!(::larder::Plain),
        };
        let tier = self.tier();
        let write_key = self.write_key();
        let flush_on = self.flush_on();
        let load = self.load();
        ours! {
            impl ::larder::Dataset for #name {
                const NAME: &'static str = #data_set;
                const KEY: &'static str = #key;
                #constants
                type Source = #source;
                type Key = #key_type;
                type Value = #value;
                type Form = #form;
                type Tier = #tier;
                type Error = #error;
                #write_key
                #flush_on
                #load
            }
        }
    }

    /// What the options say beside its types.
    fn constants(&self) -> TokenStream {
        let options = self.options;
        let lifetime = match (&options.ttl, &options.ttl_only) {
            (Some(Told { value, .. }), _) => ours!(::larder::Lifetime::Ttl(#value)),
            (None, Some(Told { value, .. })) => ours!(::larder::Lifetime::TtlOnly(#value)),
            (None, None) => ours!(::larder::Lifetime::Immutable),
        };
        let absent_ttl = match &options.absent_ttl {
            Some(Told { value, .. }) => Some(ours!(#value)),
            // Its answer is a value for every key.
            None if !self.loader.answer.optional => Some(ours!(::core::time::Duration::ZERO)),
            None => None,
        };
        let absent_ttl = absent_ttl.map(|ttl| ours!(::core::option::Option::Some(#ttl)));
        let told = |told: &Option<Told>| told.as_ref().map(|told| told.value.clone());
        let codec = options.codec.as_ref().map(|codec| {
            let variant = Ident::new(codec.chosen, here().located_at(codec.word.span()));
            ours!(::larder::Codec::#variant)
        });
        let compression = options.compress.as_ref();
        let compression = compression.map(|_| ours!(::larder::Compression::Zstd));
        let schema = options.schema.as_ref();
        let schema = schema.map(|schema| ours!(::core::option::Option::Some(#schema)));
        let constants = [
            ("LIFETIME", ours!(::larder::Lifetime), Some(lifetime)),
            (
                "ABSENT_TTL",
                ours!(::core::option::Option<::core::time::Duration>),
                absent_ttl,
            ),
            (
                "REVISION",
                ours!(u32),
                options.revision.as_ref().map(|revision| ours!(#revision)),
            ),
            (
                "OUTLIVES_DEPLOYS",
                ours!(bool),
                options.outlives_deploys.as_ref().map(|_| ours!(true)),
            ),
            ("SCHEMA", ours!(::core::option::Option<u64>), schema),
            ("CODEC", ours!(::larder::Codec), codec),
            ("COMPRESSION", ours!(::larder::Compression), compression),
            ("MAX_VALUE", ours!(usize), told(&options.max_value)),
            ("LEASE", ours!(::core::time::Duration), told(&options.lease)),
            (
                "LOAD_TIMEOUT",
                ours!(::core::time::Duration),
                told(&options.load_timeout),
            ),
            (
                "MAX_LOADS",
                ours!(usize),
                options.max_loads.as_ref().map(|loads| ours!(#loads)),
            ),
            ("BULK", ours!(&'static str), self.bulk()),
        ];
        let constants = constants.into_iter().filter_map(|(name, ty, value)| {
            let name = Ident::new(name, here());
            value.map(|value| ours!(const #name: #ty = #value;))
        });
        constants.collect()
    }

    /// What reads many keys at once, where that is the function itself.
    fn bulk(&self) -> Option<TokenStream> {
        let name = self.loader.name.to_string();
        self.loader.id.as_ref().map(|_| ours!(#name))
    }

    /// The key function, as the template says it.
    fn write_key(&self) -> TokenStream {
        let pattern = tuple(self.loader.arguments.iter().map(|argument| {
            let name = &argument.name;
            match argument.skipped {
                true => ours!(_),
                false => ours!(#name),
            }
        }));
        let parts = self.template.parts.iter().map(|part| match part {
            Part::Word(word) => ours!(writer.word(#word);),
            Part::Argument {
                name,
                format: Format::Digest,
            } => ours!(writer.digest_of(#name);),
            Part::Argument { name, .. } => ours!(::larder::KeyPart::write(#name, writer);),
        });
        let writer = match self.template.parts.is_empty() {
            true => ours!(_),
            false => ours!(writer),
        };
        ours! {
            fn write_key(#pattern: &Self::Key, #writer: &mut ::larder::KeyWriter<'_>) {
                #(#parts)*
            }
        }
    }

    /// What makes it stale, if anything does.
    fn flush_on(&self) -> Option<TokenStream> {
        let options = self.options;
        let plan = Ident::new("plan", here());
        let watches = options
            .flush_on
            .iter()
            .map(|watch| watch.expand(self.loader, &plan));
        let bases = options
            .base
            .iter()
            .map(|base| ours!(#plan.base::<#base>();));
        let by_hand = options.by_hand.iter().map(|_| ours!(#plan.by_hand();));
        let lines: Vec<TokenStream> = watches.chain(bases).chain(by_hand).collect();
        (!lines.is_empty()).then(|| {
            ours! {
                fn flush_on(#plan: &mut ::larder::FlushOn<Self>) {
                    #(#lines)*
                }
            }
        })
    }

    /// The function as it was written, and how it is called with what is missing.
    fn load(&self) -> TokenStream {
        let Self {
            loader, function, ..
        } = self;
        let connection = &loader.connection;
        let original = self.original();
        let conn = Ident::new("conn", here().located_at(function.signature.inputs.span()));
        let rows = match &loader.id {
            None => self.load_each(&conn),
            Some(_) if loader.shared().is_empty() => self.load_all(&conn),
            Some(_) => self.load_groups(&conn),
        };
        ours! {
            async fn load(
                #conn: #connection,
                keys: ::std::vec::Vec<Self::Key>,
            ) -> ::core::result::Result<::larder::Rows<Self>, Self::Error> {
                #original
                #rows
            }
        }
    }

    /// One call for each key.
    fn load_each(&self, conn: &Ident) -> TokenStream {
        let loader = self.loader;
        let name = &loader.name;
        let pattern = tuple(loader.arguments.iter().map(|argument| {
            let local = loader.local(argument);
            argument.within_key(ours!(#local))
        }));
        let arguments = loader.arguments.iter().map(|argument| {
            let local = loader.local(argument);
            match argument.lent {
                true => ours!(&#local),
                false => ours!(#local),
            }
        });
        let push = match loader.answer.optional {
            true => ours!(rows.extend(found.map(|value| (key, value)));),
            false => ours!(rows.push((key, found));),
        };
        ours! {
            let mut rows = ::std::vec::Vec::with_capacity(keys.len());
            for key in keys {
                let #pattern = ::core::clone::Clone::clone(&key);
                let found = #name(#conn #(, #arguments)*).await?;
                #push
            }
            ::core::result::Result::Ok(rows)
        }
    }

    /// One call for all ids, which are the keys.
    fn load_all(&self, conn: &Ident) -> TokenStream {
        let (name, id) = (&self.loader.name, &self.loader.id);
        let keys = match self.lends_ids() {
            true => ours!(&keys),
            false => ours!(keys),
        };
        match &self.options.by {
            None => ours!(#name(#conn, #keys).await),
            Some(by) => ours! {
                let found = #name(#conn, #keys).await?;
                ::core::result::Result::Ok(::larder::private::by::<_, #id>(found, #by).collect())
            },
        }
    }

    /// One call for all ids that share their other arguments.
    fn load_groups(&self, conn: &Ident) -> TokenStream {
        let loader = self.loader;
        let (name, id) = (&loader.name, &loader.id);
        let locals = loader.shared().iter();
        let locals: Vec<Ident> = locals.map(|argument| loader.local(argument)).collect();
        let shared = || loader.shared().iter().zip(&locals);
        let patterns = shared().map(|(argument, local)| argument.within_key(ours!(#local)));
        let arguments = shared().map(|(argument, local)| match argument.lent {
            true => ours!(&#local),
            false => ours!(::core::clone::Clone::clone(&#local)),
        });
        let again = shared().map(|(argument, local)| {
            argument.within_key(ours!(::core::clone::Clone::clone(&#local)))
        });
        let ids = match self.lends_ids() {
            true => ours!(&ids),
            false => ours!(ids),
        };
        let found = match &self.options.by {
            None => ours!(found),
            Some(by) => ours!(::larder::private::by::<_, #id>(found, #by)),
        };
        ours! {
            let mut rows = ::std::vec::Vec::with_capacity(keys.len());
            let groups = ::larder::private::groups(keys, |(#(#locals,)* id)| ((#(#locals,)*), id));
            for ((#(#patterns,)*), ids) in groups {
                let found = #name(#conn, #(#arguments,)* #ids).await?;
                let found = #found.into_iter();
                rows.extend(found.map(|(id, value)| ((#(#again,)* id), value)));
            }
            ::core::result::Result::Ok(rows)
        }
    }

    fn lends_ids(&self) -> bool {
        let ids = self.loader.arguments.last();
        ids.is_some_and(|ids| ids.lent)
    }

    /// The function under the attribute, for the data set alone.
    fn original(&self) -> TokenStream {
        let Function {
            attributes,
            signature,
            body,
            ..
        } = self.function;
        let lints = attributes.iter().filter(|attribute| is_lint(attribute));
        ours! {
            #(#lints)*
            #[allow(clippy::unused_async)]
            #signature #body
        }
    }

    /// The function that callers see.
    fn accessor(&self) -> TokenStream {
        let Self {
            loader, function, ..
        } = self;
        let Function {
            attributes,
            visibility,
            signature,
            ..
        } = function;
        let attributes = attributes.iter().map(for_callers);
        let (asyncness, fn_token, name) = (&signature.asyncness, &signature.fn_token, &loader.name);
        let (reader, parameters) = (self.reader(), self.parameters(true, &self.ids()));
        let error = self.error();
        let (answer, body) = match &loader.id {
            None => self.get("get", &ours!(#name)),
            Some(id) => {
                let (answer, ids) = (self.value(), self.name_of_ids());
                let answer = ours!(::larder::Batch<#id, #answer>);
                let body = match loader.shared() {
                    [] => ours!(::larder::get_many::<#name>(reader, #ids).await),
                    _ => {
                        let keys = self.keys_of_ids(true);
                        ours! {
                            let found = ::larder::get_many::<#name>(reader, #keys).await?;
                            ::core::result::Result::Ok(found.map_keys(|(.., id)| id))
                        }
                    }
                };
                (answer, body)
            }
        };
        ours! {
            #(#attributes)*
            #visibility #asyncness #fn_token #name(
                #reader
                #(, #parameters)*
            ) -> ::core::result::Result<#answer, #error> {
                #body
            }
        }
    }

    /// What else there is to do with the data set.
    fn functions(&self) -> TokenStream {
        let Self {
            loader, options, ..
        } = self;
        let (name, visibility) = (&loader.name, &self.function.visibility);
        let (source, error) = (self.source, self.error());
        let key = self.key();
        let one = loader.id.as_ref().map(|_| {
            self.reads_one(
                "one",
                "get",
                " The value of one id, whose entry is the same as when it is asked for among others.",
            )
        });
        let changing = (options.tier() != Some(Tier::Deploy)).then(|| {
            let flush = self.flush();
            let uncached = self.reads_one(
                "uncached",
                "uncached",
                " The value as the source has it now; neither the store nor a tier is asked or filled.",
            );
            let refresh = self.reads_one(
                "refresh",
                "refresh",
                " Loads the value again, and stores it in place of the one that is there.",
            );
            ours!(#flush #uncached #refresh)
        });
        let prime = options.immutable.as_ref().map(|_| {
            ours! {
                /// Stores values in hand, without a load.
                #visibility async fn prime(
                    cache: &impl ::larder::HasCache<#source>,
                    values: impl ::core::iter::IntoIterator<
                        Item = (<Self as ::larder::Dataset>::Key, <Self as ::larder::Dataset>::Value),
                        IntoIter: ::core::marker::Send,
                    > + ::core::marker::Send,
                ) -> ::core::result::Result<(), ::larder::Error> {
                    ::larder::prime::<Self>(::larder::HasCache::cache(cache), values).await
                }
            }
        });
        let lints = self.function.attributes.iter();
        let lints = lints
            .filter(|attribute| is_lint(attribute))
            .map(for_callers);
        ours! {
            #(#lints)*
            impl #name {
                #key
                #one
                #changing
                /// Has the store hold the values of these keys, through the loader.
                #visibility async fn warm(
                    cache: &impl ::larder::HasCache<#source>,
                    keys: impl ::core::iter::IntoIterator<
                        Item = impl ::core::borrow::Borrow<<Self as ::larder::Dataset>::Key>,
                    > + ::core::marker::Send,
                ) -> ::core::result::Result<(), #error> {
                    ::larder::warm::<Self>(::larder::HasCache::cache(cache), keys).await
                }
                #prime
            }
        }
    }

    /// `fn key`.
    fn key(&self) -> TokenStream {
        let visibility = &self.function.visibility;
        let id = self.loader.id.as_ref();
        let id = id.map(|id| ours!(id: impl ::core::borrow::Borrow<#id>));
        let parameters = self.parameters(false, &id);
        let key = (!self.loader.arguments.is_empty()).then(|| self.key_of_one(false));
        ours! {
            /// The key of these arguments.
            #[must_use]
            #visibility fn key(#(#parameters),*) -> <Self as ::larder::Dataset>::Key {
                #key
            }
        }
    }

    /// `fn flush`.
    fn flush(&self) -> TokenStream {
        let loader = self.loader;
        let (visibility, source) = (&self.function.visibility, self.source);
        let parameters = self.parameters(false, &self.ids());
        let (whose, keys) = match (&loader.id, loader.shared()) {
            (None, _) => {
                let key = self.key_of_one(false);
                ("entry of these arguments", ours!([#key]))
            }
            (Some(_), []) => {
                let ids = self.name_of_ids();
                ("entries of these ids", ours!(#ids))
            }
            (Some(_), _) => ("entries of these ids", self.keys_of_ids(false)),
        };
        let doc = format!(
            " Deletes the {whose}: call it after a write was committed, where no transaction says what it changed."
        );
        ours! {
            #[doc = #doc]
            #visibility async fn flush(
                cache: &impl ::larder::HasCache<#source>
                #(, #parameters)*
            ) -> ::core::result::Result<(), ::larder::FlushError> {
                ::larder::HasCache::cache(cache).flush::<Self>(#keys).await
            }
        }
    }

    /// A function that asks for one key.
    fn reads_one(&self, name: &str, way: &str, doc: &str) -> TokenStream {
        let visibility = &self.function.visibility;
        let name = Ident::new(name, here());
        let id = self.loader.id.as_ref();
        let id = id.map(|id| ours!(id: impl ::core::borrow::Borrow<#id> + ::core::marker::Send));
        let (reader, parameters) = (self.reader(), self.parameters(true, &id));
        let error = self.error();
        let (answer, body) = self.get(way, &ours!(Self));
        ours! {
            #[doc = #doc]
            #visibility async fn #name(
                #reader
                #(, #parameters)*
            ) -> ::core::result::Result<#answer, #error> {
                #body
            }
        }
    }

    /// What a read of one key answers, and how.
    fn get(&self, way: &str, data_set: &TokenStream) -> (TokenStream, TokenStream) {
        let way = Ident::new(way, here());
        let (value, key) = (self.value(), self.key_of_one(true));
        let get = ours!(::larder::#way::<#data_set>(reader, &#key).await);
        match self.loader.answer.optional {
            true => (ours!(::core::option::Option<#value>), get),
            false => (value, ours!(#get.map(::larder::private::always))),
        }
    }

    /// The key of a function's parameters, which have what is skipped or don't.
    fn key_of_one(&self, skipped: bool) -> TokenStream {
        let parts = self.loader.shared().iter().map(|argument| {
            let name = &argument.name;
            match (argument.skipped, argument.lent) {
                (true, _) if !skipped => argument.stand_in(),
                (_, true) => argument.within_key(ours!(::std::borrow::ToOwned::to_owned(#name))),
                (_, false) => argument.within_key(ours!(#name)),
            }
        });
        let id = self.loader.id.as_ref();
        tuple(parts.chain(id.map(|_| ours!(::larder::private::id(id)))))
    }

    /// The keys of a function's ids, with its other parameters.
    fn keys_of_ids(&self, skipped: bool) -> TokenStream {
        let parts = self.loader.shared().iter().map(|argument| {
            let name = &argument.name;
            match (argument.skipped, argument.lent) {
                (true, _) if !skipped => argument.stand_in(),
                (_, true) => argument.within_key(ours!(::std::borrow::ToOwned::to_owned(#name))),
                (_, false) => argument.within_key(ours!(::core::clone::Clone::clone(&#name))),
            }
        });
        let (id, ids) = (&self.loader.id, self.name_of_ids());
        ours!(::larder::private::keys(#ids, |id: #id| (#(#parts,)* id)))
    }

    /// The parameters of a function, without the list of ids, in whose place there is this.
    fn parameters(&self, skipped: bool, ids: &Option<TokenStream>) -> Vec<TokenStream> {
        let shared = self.loader.shared().iter();
        let shared = shared.filter(|argument| skipped || !argument.skipped);
        let shared = shared.map(|Argument { name, ty, .. }| ours!(#name: #ty));
        shared.chain(ids.clone()).collect()
    }

    /// The parameter that lists ids, if there is one.
    fn ids(&self) -> Option<TokenStream> {
        let id = self.loader.id.as_ref()?;
        let name = self.name_of_ids();
        Some(ours! {
            #name: impl ::core::iter::IntoIterator<
                Item = impl ::core::borrow::Borrow<#id>,
            > + ::core::marker::Send
        })
    }

    fn name_of_ids(&self) -> Option<&Ident> {
        let ids = self.loader.id.as_ref().and(self.loader.arguments.last());
        ids.map(|ids| &ids.name)
    }

    fn reader(&self) -> TokenStream {
        let (source, tier) = (self.source, self.tier());
        ours!(reader: impl ::larder::ReaderOf<'_, #source, #tier>)
    }

    fn tier(&self) -> TokenStream {
        match self.options.tier() {
            None => ours!(::larder::NoTier),
            Some(Tier::Request) => ours!(::larder::RequestTier),
            Some(Tier::Deploy) => ours!(::larder::DeployTier),
        }
    }

    /// What readers get of a value.
    fn value(&self) -> TokenStream {
        let value = &self.loader.answer.value;
        match self.options.tier() {
            None => value.clone(),
            Some(_) => ours!(::std::sync::Arc<#value>),
        }
    }

    fn error(&self) -> TokenStream {
        let error = &self.loader.answer.error;
        ours!(::larder::LoadError<#error>)
    }

    /// What only the compiler knows of the arguments' types.
    fn demands(&self) -> TokenStream {
        let demands = self.loader.arguments.iter().filter_map(|argument| {
            let Argument { name, owned, .. } = argument;
            (self.template.format_of(argument)? == Format::Own).then(|| {
                let problem = format!(
                    "`{name}` is text: write `{{{name}:digest}}` in the key, or `{{{name}:escaped}}` if it is always short"
                );
                ours_at! {argument.ty.span()=>
                    ::larder::private::demand(!<#owned as ::larder::KeyPart>::TEXT, #problem);
                }
            })
        });
        demands.collect()
    }

    /// On which configurations all of it depends.
    fn configured(&self) -> Vec<&Attribute> {
        let attributes = self.function.attributes.iter();
        attributes
            .filter(|attribute| attribute.path().is_ident("cfg"))
            .collect()
    }
}

impl Argument {
    /// What stands for it where nobody gives it: it is skipped, and shapes nothing.
    fn stand_in(&self) -> TokenStream {
        ours_at!(self.ty.span()=> ::core::default::Default::default())
    }

    /// This value of it, as a key holds it.
    fn within_key(&self, value: TokenStream) -> TokenStream {
        match self.skipped {
            true => ours!(::larder::private::Skipped(#value)),
            false => value,
        }
    }

    /// The type that a key has for it.
    fn type_in_key(&self) -> TokenStream {
        let owned = &self.owned;
        match self.skipped {
            true => ours!(::larder::private::Skipped<#owned>),
            false => owned.clone(),
        }
    }
}

impl Loader {
    fn key_type(&self) -> TokenStream {
        tuple(self.arguments.iter().map(Argument::type_in_key))
    }

    /// The variable that holds an argument where the loader is called: by its own name, unless that is the loader's, which
    /// would then be called no more.
    fn local(&self, argument: &Argument) -> Ident {
        let name = &argument.name;
        match *name == self.name {
            true => format_ident!("{}_", name.unraw(), span = here()),
            false => name.clone(),
        }
    }

    /// Where keys have arguments that nothing written tells: the type of the rest, and what makes it a key.
    pub(super) fn whole_key(&self) -> Option<(TokenStream, TokenStream)> {
        if self.shown().count() == self.arguments.len() {
            return None;
        }
        let rest = tuple(self.shown().map(|argument| argument.owned.clone()));
        let names = tuple(self.shown().map(|argument| argument.name.to_token_stream()));
        let key = tuple(
            self.arguments
                .iter()
                .map(|argument| match argument.skipped {
                    true => argument.stand_in(),
                    false => argument.name.to_token_stream(),
                }),
        );
        Some((rest, ours!(|#names| #key)))
    }
}

/// None, one, or a tuple of several: the form of a key.
fn tuple(parts: impl Iterator<Item = TokenStream>) -> TokenStream {
    let parts: Vec<TokenStream> = parts.collect();
    match &*parts {
        [one] => one.clone(),
        several => ours!((#(#several),*)),
    }
}

/// Whether an attribute is about what the compiler warns of.
fn is_lint(attribute: &Attribute) -> bool {
    let lints = ["allow", "expect", "warn", "deny", "forbid"];
    lints.iter().any(|lint| attribute.path().is_ident(lint))
}

/// An attribute as the function that callers see has it: what is expected of the body needn't be so there.
fn for_callers(attribute: &Attribute) -> TokenStream {
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("expect") => {
            let lints = &list.tokens;
            ours!(#[allow(#lints)])
        }
        _ => attribute.to_token_stream(),
    }
}
