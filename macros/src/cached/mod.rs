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
    check::options(&options, &loader, problems);
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
