//! The function under the attribute: what it is called with, and what it answers.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned as _;
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, Pat, PatType, PathArguments, Result,
    ReturnType, Signature, Type, TypePath, TypeReference, Visibility,
};

use super::options::Options;
use crate::names::text;
use crate::problems::Problems;

/// Arguments that a key has room for: as many as a tuple that is a part of keys.
const MOST_ARGUMENTS: usize = 8;

/// A function, its body as it was written: whether that is complete is the compiler's to say, and an editor's to ask.
pub(super) struct Function {
    pub(super) attributes: Vec<Attribute>,
    pub(super) visibility: Visibility,
    pub(super) signature: Signature,
    pub(super) body: TokenTree,
}

/// What a function is as a loader.
pub(super) struct Loader {
    pub(super) name: Ident,
    pub(super) connection: Type,
    /// All but the connection; of a bulk loader the last is the list of ids.
    pub(super) arguments: Vec<Argument>,
    /// The type of one id, if it loads many at once.
    pub(super) id: Option<Type>,
    pub(super) answer: Answer,
}

/// An argument that the loader gets of each key.
pub(super) struct Argument {
    pub(super) name: Ident,
    /// As it is written; of a list of ids, the type of one.
    pub(super) ty: Type,
    /// As a key holds it.
    pub(super) owned: TokenStream,
    /// Whether the loader takes it by reference.
    pub(super) lent: bool,
    pub(super) skipped: bool,
}

/// What a loader answers.
pub(super) struct Answer {
    /// The value, of one key.
    pub(super) value: TokenStream,
    pub(super) error: TokenStream,
    /// Whether there may be none.
    pub(super) optional: bool,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let visibility: Visibility = input.parse()?;
        let signature: Signature = input.parse().map_err(|error| {
            let problem = "`#[larder::cached]` stands on a free asynchronous function: \
                           `async fn name(db: &mut Conn, …) -> Result<Option<Value>, Error> { … }`";
            Error::new(error.span(), problem)
        })?;
        let body: TokenTree = input.parse()?;
        match &body {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {}
            other => {
                let problem = format!(
                    "`{}` has no body: write how it loads its values, `{{ /* SELECT … */ }}`",
                    signature.ident
                );
                return Err(Error::new(other.span(), problem));
            }
        }
        Ok(Self {
            attributes,
            visibility,
            signature,
            body,
        })
    }
}

impl Function {
    /// The function as a loader, as these options would have it.
    pub(super) fn loader(&self, options: &Options) -> Result<Loader> {
        let signature = &self.signature;
        self.check_kind()?;
        let mut inputs = signature.inputs.iter().filter_map(|input| match input {
            FnArg::Typed(input) => Some(input),
            FnArg::Receiver(_) => None,
        });
        let connection = connection(signature, inputs.next())?;
        let mut problems = Problems::default();
        let mut arguments: Vec<Argument> = inputs
            .filter_map(|input| problems.keep(Argument::parse(input)))
            .collect();
        let id = options.many.as_ref().and_then(|_| {
            let list = arguments.last_mut();
            problems.keep(list_of_ids(signature, list))
        });
        let answer = problems.keep(Answer::parse(signature, options));
        for skipped in &options.skip {
            match arguments
                .iter_mut()
                .find(|argument| argument.name == *skipped)
            {
                Some(argument) => argument.skipped = true,
                None => problems.at(
                    skipped.span(),
                    format!(
                        "`skip({skipped})` names no argument of `{}`",
                        signature.ident
                    ),
                ),
            }
        }
        if let Some(one_too_many) = arguments.get(MOST_ARGUMENTS) {
            let problem = format!(
                "a key has at most {MOST_ARGUMENTS} arguments: put some that belong together into a struct with \
                 `#[derive(Clone, PartialEq, Eq, Hash, larder::KeyPart)]`"
            );
            problems.at(one_too_many.name.span(), problem);
        }
        problems.check()?;
        Ok(Loader {
            name: signature.ident.clone(),
            connection,
            arguments,
            id,
            answer: answer.expect("what is missing is a problem"),
        })
    }

    /// A free function, asynchronous, without parameters of the compiler's.
    fn check_kind(&self) -> Result<()> {
        let signature = &self.signature;
        let name = &signature.ident;
        if let Some(receiver) = signature.receiver() {
            let problem = format!(
                "`#[larder::cached]` stands on a free function, since the data set behind it is a type, which an `impl` \
                 block can't hold; a loader sees a connection and its arguments, nothing else. Outside of the block, write:\
                 \n\n    {}",
                self.as_free_function()
            );
            return Err(Error::new_spanned(receiver, problem));
        }
        let mut problems = Problems::default();
        if signature.asyncness.is_none() {
            problems.at(
                signature.fn_token.span(),
                format!("a loader is asynchronous: write `async fn {name}`"),
            );
        }
        let odd = [
            signature.constness.map(|token| token.span()),
            signature.unsafety.map(|token| token.span()),
            signature.abi.as_ref().map(|abi| abi.span()),
            signature.variadic.as_ref().map(|token| token.span()),
        ];
        for span in odd.into_iter().flatten() {
            problems.at(
                span,
                format!("a loader is a plain function: write `async fn {name}(…)`"),
            );
        }
        for parameter in &signature.generics.params {
            let problem = match parameter {
                syn::GenericParam::Lifetime(_) => format!(
                    "a loader has no lifetimes of its own, since keys own what they are made of: leave them out, as in \
                     `{name}(db: &mut Conn, name: &str)`"
                ),
                _ => format!(
                    "a data set is one set of values, so that a loader isn't generic: write a function for each type, which \
                     may call `{name}` for what they share"
                ),
            };
            problems.add(Error::new_spanned(parameter, problem));
        }
        problems.check()
    }

    /// What a method would be as a free function.
    fn as_free_function(&self) -> String {
        let inputs = self.signature.inputs.iter();
        let inputs: Vec<String> = inputs
            .filter_map(|input| match input {
                FnArg::Typed(input) => Some(format!("{}: {}", text(&input.pat), text(&input.ty))),
                FnArg::Receiver(_) => None,
            })
            .collect();
        let takes_connection = inputs
            .first()
            .is_some_and(|first| first.contains(": &mut "));
        let connection = (!takes_connection).then(|| "db: &mut Conn".to_owned());
        let inputs: Vec<String> = connection.into_iter().chain(inputs).collect();
        let answer = match &self.signature.output {
            ReturnType::Default => "Result<Option<Value>, Error>".to_owned(),
            ReturnType::Type(_, ty) => text(ty),
        };
        let visibility = match &self.visibility {
            Visibility::Inherited => String::new(),
            visibility => format!("{} ", text(visibility)),
        };
        let name = &self.signature.ident;
        format!(
            "{visibility}async fn {name}({}) -> {answer}",
            inputs.join(", ")
        )
    }
}

/// The type of the first argument, through which everything is loaded.
fn connection(signature: &Signature, first: Option<&PatType>) -> Result<Type> {
    let is_lent = |input: &&PatType| {
        matches!(
            &*input.ty,
            Type::Reference(TypeReference {
                mutability: Some(_),
                ..
            })
        )
    };
    if let Some(input) = first.filter(is_lent) {
        return Ok((*input.ty).clone());
    }
    let problem = format!(
        "the first argument of a loader is a connection of its source: write `{}(db: &mut Conn{})`",
        signature.ident,
        if signature.inputs.is_empty() {
            ""
        } else {
            ", …"
        }
    );
    Err(match first {
        Some(input) => Error::new_spanned(input, problem),
        None => Error::new(signature.ident.span(), problem),
    })
}

/// The type of one id, of which the last argument lists many.
fn list_of_ids(signature: &Signature, last: Option<&mut Argument>) -> Result<Type> {
    let name = &signature.ident;
    let Some(last) = last else {
        let problem = format!(
            "with `many` the last argument lists the ids: write `{name}(db: &mut Conn, ids: &[Id])`"
        );
        return Err(Error::new(name.span(), problem));
    };
    let (id, lent) = match &last.ty {
        Type::Reference(TypeReference {
            elem,
            mutability: None,
            ..
        }) => match &**elem {
            Type::Slice(slice) => (Some((*slice.elem).clone()), true),
            _ => (None, true),
        },
        other => (last_generic(other, "Vec"), false),
    };
    let Some(id) = id else {
        let problem = format!(
            "with `many` the last argument lists the ids: write `{0}: &[{1}]`, or leave `many` out",
            last.name,
            text(&last.ty).trim_start_matches('&')
        );
        return Err(Error::new_spanned(&last.ty, problem));
    };
    if borrows(&id) {
        let problem =
            "ids are kept while they are loaded, so that they own their texts: write `&[String]`";
        return Err(Error::new_spanned(&id, problem));
    }
    last.owned = id.to_token_stream();
    last.lent = lent;
    last.ty = id.clone();
    Ok(id)
}

/// The first generic argument of a path that ends in this name.
fn last_generic(ty: &Type, name: &str) -> Option<Type> {
    generics(ty, |last| last == name)?.first().cloned()
}

/// The generic arguments of a path that ends in such a name.
fn generics(ty: &Type, is_it: impl Fn(&Ident) -> bool) -> Option<Vec<Type>> {
    let Type::Path(TypePath { qself: None, path }) = ty else {
        return None;
    };
    let last = path.segments.last().filter(|last| is_it(&last.ident))?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty.clone()),
        _ => None,
    });
    Some(types.collect())
}

/// Whether something in a type is borrowed.
fn borrows(ty: &Type) -> bool {
    fn any(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Punct(punct) => matches!(punct.as_char(), '&' | '\''),
            TokenTree::Group(group) => any(group.stream()),
            _ => false,
        })
    }
    any(ty.to_token_stream())
}

impl Argument {
    fn parse(input: &PatType) -> Result<Self> {
        let name = match &*input.pat {
            Pat::Ident(pattern) if pattern.by_ref.is_none() && pattern.subpat.is_none() => {
                pattern.ident.clone()
            }
            pattern => {
                let problem = format!(
                    "an argument is known by its name, which the key is made of: write `name: {}`, and take it apart in \
                     the body",
                    text(&input.ty)
                );
                return Err(Error::new_spanned(pattern, problem));
            }
        };
        let (lent, whole) = match &*input.ty {
            Type::Reference(reference) if reference.mutability.is_some() => {
                let problem = format!(
                    "a loader changes nothing of its caller's, and `{name}` is part of the key: write `{name}: &{}`",
                    text(&reference.elem)
                );
                return Err(Error::new_spanned(&input.ty, problem));
            }
            Type::Reference(TypeReference {
                lifetime: Some(lifetime),
                elem,
                ..
            }) if lifetime.ident != "_" => {
                let problem = format!(
                    "keys own what they are made of, and lend it to the loader for one call: write `{name}: &{}`",
                    text(elem)
                );
                return Err(Error::new_spanned(lifetime, problem));
            }
            Type::Reference(reference) => (true, &*reference.elem),
            other => (false, other),
        };
        if let Type::ImplTrait(_) = whole {
            let problem =
                format!("a key is of one type: write the type of `{name}` in place of `impl …`");
            return Err(Error::new_spanned(whole, problem));
        }
        if borrows(whole) {
            let problem = format!(
                "keys own what they are made of, and `{name}` borrows from within: write an owned type, such as \
                 `Option<String>`, or a reference to one"
            );
            return Err(Error::new_spanned(&input.ty, problem));
        }
        let owned = match lent {
            true if is_str(whole) => quote_spanned!(whole.span()=> ::std::string::String),
            true => quote_spanned!(whole.span()=> <#whole as ::std::borrow::ToOwned>::Owned),
            false => whole.to_token_stream(),
        };
        Ok(Self {
            name,
            ty: (*input.ty).clone(),
            owned,
            lent,
            skipped: false,
        })
    }
}

fn is_str(ty: &Type) -> bool {
    matches!(ty, Type::Path(path) if path.path.is_ident("str"))
}

impl Answer {
    fn parse(signature: &Signature, options: &Options) -> Result<Self> {
        let name = &signature.ident;
        let wanted = match options.many {
            Some(_) => "Result<Vec<Value>, Error>",
            None => "Result<Option<Value>, Error>",
        };
        let ReturnType::Type(_, result) = &signature.output else {
            let problem =
                format!("a loader answers a result: write `async fn {name}(…) -> {wanted}`");
            return Err(Error::new(signature.paren_token.span.close(), problem));
        };
        // An alias is known by its name: `sqlx::Result<…>`, `DbResult<…>`.
        let is_result = |name: &Ident| name.to_string().ends_with("Result");
        let types = generics(result, is_result).unwrap_or_default();
        let Some(ok) = types.first() else {
            let problem = format!(
                "a loader answers a result that says what of: write `{wanted}`, or an alias whose name \
                 ends in `Result`, such as `sqlx::Result<…>`"
            );
            return Err(Error::new_spanned(result, problem));
        };
        let error = match types.get(1) {
            Some(error) => error.to_token_stream(),
            None => quote!(<#result as ::larder::private::Outcome>::Error),
        };
        let of = |value: &dyn ToTokens, optional| Self {
            value: value.to_token_stream(),
            error,
            optional,
        };
        if options.many.is_none() {
            return Ok(match last_generic(ok, "Option") {
                Some(value) => of(&value, true),
                None => of(ok, false),
            });
        }
        let row = last_generic(ok, "Vec").ok_or_else(|| {
            let problem = format!(
                "with `many` a loader answers the rows that it found: write `{wanted}` and `by = |value| value.id`, or \
                 `Result<Vec<(Id, Value)>, Error>`"
            );
            Error::new_spanned(ok, problem)
        })?;
        match (&options.by, &row) {
            (Some(_), _) => Ok(of(&row, true)),
            (None, Type::Tuple(pair)) if pair.elems.len() == 2 => Ok(of(&pair.elems[1], true)),
            (None, _) => {
                let problem = format!(
                    "which id is each value of? Write `by = |value| value.id` in the attribute, or answer \
                     `Vec<(Id, {})>`",
                    text(&row)
                );
                Err(Error::new_spanned(ok, problem))
            }
        }
    }
}

impl Loader {
    /// The argument of this name.
    pub(super) fn argument(&self, name: &str) -> Option<&Argument> {
        self.arguments
            .iter()
            .find(|argument| argument.name.unraw() == name)
    }

    /// The arguments that keys tell apart.
    pub(super) fn shown(&self) -> impl Iterator<Item = &Argument> {
        self.arguments.iter().filter(|argument| !argument.skipped)
    }

    /// The arguments beside the list of ids: all of them, if there is none.
    pub(super) fn shared(&self) -> &[Argument] {
        let ids = usize::from(self.id.is_some());
        &self.arguments[..self.arguments.len() - ids]
    }

    /// A key of all arguments, as somebody who hasn't thought of one would begin.
    pub(super) fn suggested_key(&self) -> String {
        let parts = self.shown().map(|argument| match argument.is_text() {
            true => format!(":{{{}:digest}}", argument.name.unraw()),
            false => format!(":{{{}}}", argument.name.unraw()),
        });
        format!("{}{}", self.name.unraw(), parts.collect::<String>())
    }

    /// What to say to somebody who has named another argument.
    pub(super) fn known_arguments(&self) -> String {
        let names: Vec<String> = self
            .arguments
            .iter()
            .map(|argument| format!("`{{{}}}`", argument.name.unraw()))
            .collect();
        match names.len() {
            0 => "it has none beside the connection".to_owned(),
            _ => format!("it has {}", names.join(", ")),
        }
    }
}

impl Argument {
    /// Whether it is text, as far as names of types tell.
    fn is_text(&self) -> bool {
        ["str", "String"].contains(&text(&self.ty).trim_start_matches('&'))
    }
}
