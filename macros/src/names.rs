//! Names: one spelling made of another, and types as a person writes them.

use quote::ToTokens;
use syn::Ident;
use syn::ext::IdentExt as _;

/// `is_active` as `IsActive`, where it was.
pub(crate) fn camel_case(name: &Ident) -> Ident {
    let text = name.unraw().to_string();
    let words = text.split('_').filter(|word| !word.is_empty());
    let camel: String = words
        .flat_map(|word| {
            let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
            [first.to_uppercase(), rest.to_owned()]
        })
        .collect();
    Ident::new(&camel, name.span())
}

/// `UserGroup` as `user_group`.
pub(crate) fn snake_case(name: &Ident) -> String {
    let mut snake = String::new();
    for letter in name.unraw().to_string().chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

/// Tokens without the blanks that the compiler prints between all of them.
pub(crate) fn text(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let mut written = String::with_capacity(text.len());
    let mut words = text.split(' ').peekable();
    while let Some(word) = words.next() {
        written.push_str(word);
        let Some(next) = words.peek() else { break };
        let opens = ["::", "(", "<", "[", "&"];
        let closes = [":", ")", ">", "]", ",", "<", "(", ";"];
        let apart = match (word, *next) {
            (word, next) if word.ends_with([',', ';']) => !next.starts_with([')', '>']),
            (_, next) if closes.iter().any(|close| next.starts_with(close)) => false,
            (word, _) => !opens.iter().any(|open| word.ends_with(open)),
        };
        if apart {
            written.push(' ');
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_camel(name: &str, expected: &str) {
        let name: Ident = syn::parse_str(name).unwrap();
        assert_eq!(camel_case(&name).to_string(), expected);
    }

    #[test]
    fn fields_become_variants() {
        check_camel("id", "Id");
        check_camel("is_active", "IsActive");
        check_camel("r#type", "Type");
        check_camel("line_2", "Line2");
        check_camel("_hidden", "Hidden");
        check_camel("été", "Été");
    }

    #[track_caller]
    fn check_text(written: &str) {
        let ty: syn::Type = syn::parse_str(written).unwrap();
        assert_eq!(text(&ty), written);
    }

    #[test]
    fn types_are_shown_as_they_are_written() {
        check_text("&mut Conn");
        check_text("Result<Option<User>, sqlx::Error>");
        check_text("&'static str");
        check_text("Vec<(u64, [u8; 4])>");
        check_text("Option<Vec<u8>>");
        check_text("&[UserId]");
    }
}
