//! The source map of the page's script: parsed once, by the first who needs it, and then kept by the process.

use std::collections::HashMap;

use larder::{DeployImmutable, Unstored, Weigh};
use serde::Serialize;
use sourcemap::{RawToken, SourceMap};
use tokio::task::spawn_blocking;

use crate::db::{Conn, Db};
use crate::release::{SCRIPT, SCRIPT_MAP};

/// The source map of this release's script: there is one, so that its key is nothing.
///
/// Parsing it takes a thousand times as long as asking it, and no write can change it: it is kept decoded, and never in
/// the store, where fetching and decoding it would cost the same again. Of the database it needs nothing; a source and a
/// cache of its own would be more to read than this saves.
#[larder::cached(source = Db, key = "script_map", immutable, tier = deploy, form = Unstored)]
pub async fn script_map(_: &mut Conn) -> sqlx::Result<Symbols> {
    // Other requests want the thread for the milliseconds that this takes.
    let parsed = spawn_blocking(|| Symbols::new(SCRIPT_MAP, SCRIPT)).await;
    let parsed = parsed.map_err(|error| sqlx::Error::Decode(error.into()))?;
    parsed.map_err(|error| sqlx::Error::Decode(error.into()))
}

/// What the places and names of a script were in its sources.
#[derive(Debug)]
pub struct Symbols {
    map: SourceMap,
    /// The functions' own names by their short ones, which are unique in the script.
    functions: HashMap<Box<str>, Box<str>>,
}

/// It is made of two files that are parts of the program.
impl DeployImmutable for Symbols {}

/// A place in a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Origin<'a> {
    /// The source.
    pub source: &'a str,
    /// The line, from 1 on.
    pub line: u32,
    /// The column, from 1 on.
    pub column: u32,
    /// The line's text, without the blanks around it.
    pub code: &'a str,
}

impl Symbols {
    fn new(map: &[u8], script: &str) -> sourcemap::Result<Self> {
        let map = SourceMap::from_slice(map)?;
        let lines: Vec<&str> = script.lines().collect();
        let functions = map.tokens().filter_map(|token| {
            let line = lines.get(token.get_dst_line() as usize)?;
            let short = word_at(line, token.get_dst_col());
            Some((short.into(), token.get_name()?.into()))
        });
        Ok(Self {
            functions: functions.collect(),
            map,
        })
    }

    /// Where in the sources this place of the script comes from; lines and columns begin with 1.
    pub fn origin(&self, line: u32, column: u32) -> Option<Origin<'_>> {
        let (line, column) = (line.checked_sub(1)?, column.checked_sub(1)?);
        let token = self.map.lookup_token(line, column)?;
        // What is behind the last line would else be taken for its end.
        if token.get_dst_line() != line {
            return None;
        }
        let source = self.map.get_source_view(token.get_src_id())?;
        Some(Origin {
            source: token.get_source()?,
            line: token.get_src_line() + 1,
            column: token.get_src_col() + 1,
            code: source.get_line(token.get_src_line())?.trim(),
        })
    }

    /// What a browser calls a function, such as `async q` or `q/<`, with the function's own name.
    pub fn function(&self, called: &str) -> String {
        let words = called.split_inclusive(|c| !is_word(c));
        words.fold(String::new(), |named, part| {
            let word = part.trim_end_matches(|c| !is_word(c));
            let own = self.functions.get(word).map_or(word, |own| own);
            named + own + &part[word.len()..]
        })
    }
}

impl Weigh for Symbols {
    fn bytes(&self) -> usize {
        let map = &self.map;
        let shared = |text: &str| size_of::<Box<str>>() + 2 * size_of::<usize>() + text.len();
        let contents = map.source_contents().flatten();
        size_of::<Self>()
            + map.get_token_count() as usize * size_of::<RawToken>()
            + map
                .sources()
                .chain(map.names())
                .chain(contents)
                .map(shared)
                .sum::<usize>()
            + self
                .functions
                .iter()
                .map(|(short, own)| shared(short) + shared(own))
                .sum::<usize>()
    }
}

/// The word at this column, which counts UTF-16 units.
fn word_at(line: &str, column: u32) -> &str {
    let mut units = 0;
    let rest = line.trim_start_matches(|c: char| {
        units += c.len_utf16();
        units <= column as usize
    });
    rest.split(|c| !is_word(c)).next().unwrap_or_default()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::{SCRIPT, SCRIPT_MAP};

    fn symbols() -> Symbols {
        Symbols::new(SCRIPT_MAP, SCRIPT).expect("the map is one")
    }

    /// Where this text is in the script, or in a source; both count from 1 on.
    #[track_caller]
    fn find(text: &str, wanted: &str) -> (u32, u32) {
        let before = text.split_once(wanted).expect("it is there").0;
        let line = before.rsplit('\n').next().unwrap();
        let column = line.encode_utf16().count() as u32 + 1;
        (before.matches('\n').count() as u32 + 1, column)
    }

    #[test]
    fn places_lead_to_their_sources() {
        let app = include_str!("../page/app.js");
        let symbols = symbols();
        for text in ["use strict", "older", "person-name", " › ", " µs"] {
            // Texts are copied as they are, behind a quote that is mapped.
            let (line, column) = find(SCRIPT, text);
            let origin = symbols.origin(line, column).unwrap();
            let expected = find(app, text);
            assert_eq!((origin.line, origin.column + 1), expected, "{text}");
            assert_eq!(origin.source, "page/app.js");
            assert!(origin.code.contains(text), "{text} in {}", origin.code);
        }
    }

    #[test]
    fn functions_get_their_names_back() {
        let symbols = symbols();
        for own in ["openPerson", "part7step3", "emojiOf"] {
            let (short, _) = symbols
                .functions
                .iter()
                .find(|(_, name)| &***name == own)
                .unwrap();
            assert!(short.len() < own.len() && SCRIPT.contains(&format!("function {short}(")));
            for (called, expected) in [
                (short.to_string(), own.to_owned()),
                (format!("async {short}"), format!("async {own}")),
                (format!("{short}/<"), format!("{own}/<")),
            ] {
                assert_eq!(symbols.function(&called), expected);
            }
        }
        for called in ["", "HTMLButtonElement.<anonymous>", "Ünbekannt!"] {
            assert_eq!(symbols.function(called), called);
        }
    }

    #[test]
    fn places_outside_the_script_have_no_origin() {
        let symbols = symbols();
        let last = SCRIPT.lines().count() as u32;
        for (line, column) in [(0, 1), (1, 0), (last + 1, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(symbols.origin(line, column), None, "{line}:{column}");
        }
        assert!(
            symbols.origin(last, u32::MAX).is_some(),
            "the end of a line belongs to it"
        );
    }

    #[test]
    fn the_map_is_weighed_with_all_it_owns() {
        let bytes = symbols().bytes();
        // Its file has each token in about six characters; here it is a struct.
        assert!(
            (SCRIPT_MAP.len()..5 * SCRIPT_MAP.len()).contains(&bytes),
            "{bytes}"
        );
    }
}
