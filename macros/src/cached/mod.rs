//! `#[cached]`: from an asynchronous function to an accessor with its data set.

mod check;
mod expand;
mod options;
mod plan;
mod signature;
mod template;
mod units;

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::Parser as _;

use crate::problems::Problems;
use options::Options;
use signature::Function;
use template::Template;

/// What the attribute expands to.
///
/// With mistakes it is what the compiler shows, and beside it as much of the accessor as can be made, so that those who
/// call it aren't told that it is missing, and an editor knows it while it is being written.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let function = match syn::parse2::<Function>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            let error = error.into_compile_error();
            return quote!(#error #item);
        }
    };
    let mut problems = Problems::default();
    let accessor = accessor(options, &function, &mut problems);
    let accessor = accessor.unwrap_or_else(|| expand::stub(&function));
    let problems = problems.shown();
    quote!(#problems #accessor)
}

fn accessor(
    options: TokenStream,
    function: &Function,
    problems: &mut Problems,
) -> Option<TokenStream> {
    let options =
        (|input: syn::parse::ParseStream<'_>| Options::parse(input, problems)).parse2(options);
    let options = problems.keep(options)?;
    let loader = problems.keep(function.loader(&options))?;
    if problems.is_empty() {
        // What wasn't understood may be what seems to be missing.
        check::options(&options, &loader, problems);
    }
    let template = options.key().and_then(|key| Template::parse(key, &loader));
    let template = problems
        .keep(template)
        .unwrap_or_else(|| Template::stub(&loader));
    let accessor = expand::Accessor {
        source: options.source.as_ref()?,
        options: &options,
        function,
        loader: &loader,
        template: &template,
    };
    Some(accessor.expand())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page that shows an expansion shows what is expanded.
    #[test]
    fn the_expansion_is_as_the_page_shows_it() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/attributes.md");
        let page = std::fs::read_to_string(page).expect("the page is there");
        let (_, rest) = page
            .split_once("## What it expands to")
            .expect("the page has such a part");
        let mut blocks = rest.split("```rust,ignore\n").skip(1);
        let mut block = || {
            let block = blocks
                .next()
                .expect("there are a function and its expansion");
            block.split("```").next().unwrap_or_default().to_owned()
        };
        let (written, shown) = (block(), block());
        let item: syn::ItemFn = syn::parse_str(&written).expect("it is a function");
        let options = &item.attrs[0]
            .meta
            .require_list()
            .expect("it has options")
            .tokens;
        let function = syn::ItemFn {
            attrs: item.attrs[1..].to_vec(),
            ..item.clone()
        };
        let expansion = expand(options.clone(), quote!(#function));
        let expansion = shortened(&expansion.to_string());
        let expansion = syn::parse_str(&expansion).expect("an expansion is made of items");
        let expansion = prettyplease::unparse(&expansion);
        assert_eq!(shown, expansion, "write this into the page:\n{expansion}");
    }

    /// Without the paths of what everybody knows.
    fn shortened(expansion: &str) -> String {
        let known = [
            "Result",
            "Option",
            "Clone",
            "Send",
            "Borrow",
            "IntoIterator",
            "Vec",
            "ToOwned",
            "Duration",
        ];
        let homes = [
            "core :: result",
            "core :: option",
            "core :: clone",
            "core :: marker",
            "core :: borrow",
            "core :: iter",
            "core :: time",
            "std :: vec",
            "std :: borrow",
        ];
        let mut text = expansion.replace(":: larder ::", "larder ::");
        for home in homes {
            for name in known {
                text = text.replace(&format!(":: {home} :: {name}"), name);
            }
        }
        text
    }
}
