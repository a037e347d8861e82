//! Durations and sizes, spelled as in larder's configuration.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::{Error, Expr, ExprLit, Lit, LitStr, Result};

/// A `Duration`: of a text such as `"7d"`, or an expression of one's own.
pub(super) fn duration(option: &str, value: &Expr) -> Result<TokenStream> {
    let text = match literal(value) {
        Some(Lit::Str(text)) => text,
        Some(other) => {
            let problem = format!(
                "`{option}` needs a unit: write `{option} = \"30s\"`, `\"15m\"`, `\"12h\"`, `\"7d\"` or, say, `\"1h 30m\"`, \
                 or name a constant of type `Duration`"
            );
            return Err(Error::new_spanned(other, problem));
        }
        None => return Ok(value.to_token_stream()),
    };
    let duration = humantime::parse_duration(&text.value()).map_err(|_| {
        let problem = format!(
            "`{}` isn't a duration: write `{option} = \"30s\"`, `\"15m\"`, `\"12h\"`, `\"7d\"` or, say, `\"1h 30m\"`",
            text.value()
        );
        Error::new(text.span(), problem)
    })?;
    let span = Span::mixed_site().located_at(text.span());
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    Ok(match nanos {
        0 => quote_spanned!(span=> ::core::time::Duration::from_secs(#seconds)),
        _ => quote_spanned!(span=> ::core::time::Duration::new(#seconds, #nanos)),
    })
}

/// A number of bytes: of a text such as `"512KiB"`, or an expression of one's own.
pub(super) fn size(option: &str, value: &Expr) -> Result<TokenStream> {
    let Some(Lit::Str(text)) = literal(value) else {
        return Ok(value.to_token_stream());
    };
    let Some(bytes) = bytes(text) else {
        let problem = format!(
            "`{}` isn't a size: write `{option} = \"512KiB\"`, `\"2MiB\"`, `\"10MB\"`, or a number of bytes",
            text.value()
        );
        return Err(Error::new(text.span(), problem));
    };
    Ok(quote_spanned!(Span::mixed_site().located_at(text.span())=> #bytes))
}

fn bytes(text: &LitStr) -> Option<usize> {
    let text = text.value();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        _ => None,
    }
}
