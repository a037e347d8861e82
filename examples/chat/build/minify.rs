//! Makes one small script of several, and the source map that leads back.
//!
//! Blanks and comments go, and functions get short names. It knows JavaScript by its words, not by its grammar, which is
//! enough for the page's own scripts: a name is left alone where it might be that of a property. It doesn't follow
//! methods in shorthand (`{ name() { … } }`), labels, or numbers such as `1e-3`.

use std::collections::{BTreeSet, HashMap, HashSet};

use sourcemap::{SourceMap, SourceMapBuilder};

/// A script of several modules.
pub(crate) struct Bundle {
    /// What a browser runs.
    pub(crate) code: String,
    /// Where each word of it came from.
    pub(crate) map: SourceMap,
}

/// Puts modules, which are names with their texts, into one script.
///
/// # Panics
///
/// If a text, a template, a regular expression or a comment has no end.
pub(crate) fn bundle<'a>(modules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Bundle {
    let modules: Vec<(&str, &str)> = modules.into_iter().collect();
    let tokens: Vec<Vec<Token<'_>>> = modules.iter().map(|(_, text)| tokens(text)).collect();
    let short = short_names(&tokens);
    let mut code = Code::default();
    let mut map = SourceMapBuilder::new(None);
    for ((name, text), tokens) in modules.iter().zip(&tokens) {
        let source = map.add_source(name);
        map.set_source_contents(source, Some(text));
        for (at, token) in tokens.iter().enumerate() {
            match at.checked_sub(1).map(|before| &tokens[before]) {
                Some(before) => code.push(token.gap(before)),
                None if code.text.is_empty() => {}
                None => code.push("\n"),
            }
            let renamed = short.get(token.text).filter(|_| {
                let names_function = usage(tokens, at) == Usage::Variable;
                token.kind == Kind::Word && names_function
            });
            let original = renamed.map(|_| map.add_name(token.text));
            let (line, column) = (token.line, token.column);
            map.add_raw(
                code.line,
                code.column,
                line,
                column,
                Some(source),
                original,
                false,
            );
            code.push(renamed.map_or(token.text, String::as_str));
        }
    }
    Bundle {
        code: code.text,
        map: map.into_sourcemap(),
    }
}

/// What was written so far, and where that ends: columns count UTF-16 units, as source maps and browsers do.
#[derive(Default)]
struct Code {
    text: String,
    line: u32,
    column: u32,
}

impl Code {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        (self.line, self.column) = moved((self.line, self.column), text);
    }
}

/// The position behind this text, which begins at that one.
fn moved((mut line, mut column): (u32, u32), text: &str) -> (u32, u32) {
    for c in text.chars() {
        if c == '\n' {
            (line, column) = (line + 1, 0);
        } else {
            column += c.len_utf16() as u32;
        }
    }
    (line, column)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A name or a keyword.
    Word,
    Number,
    /// What is copied as it is: a text, a regular expression, a piece of a template.
    Literal,
    Sign,
}

/// A piece of a script, and where it was.
#[derive(Debug)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    line: u32,
    column: u32,
    /// The blanks and comments before it.
    blank: &'a str,
}

impl Token<'_> {
    /// What has to stand between this and the token before it.
    fn gap(&self, before: &Self) -> &'static str {
        let (last, first) = (before.text.chars().next_back(), self.text.chars().next());
        // A line's end may stand for a semicolon, unless what is beside it can't end or begin a statement.
        if self.blank.contains('\n') && before.may_end() && self.may_begin() {
            "\n"
        } else if last.is_some_and(is_word) && first.is_some_and(is_word)
            || !self.blank.is_empty() && last == first && matches!(last, Some('+' | '-' | '/'))
        {
            " "
        } else {
            ""
        }
    }

    fn may_end(&self) -> bool {
        self.kind != Kind::Sign || matches!(self.text, ")" | "]" | "}" | "++" | "--")
    }

    fn may_begin(&self) -> bool {
        self.kind != Kind::Sign
            || matches!(
                self.text,
                "(" | "[" | "{" | "+" | "-" | "++" | "--" | "!" | "/"
            )
    }

    /// Whether a `/` behind it divides, and doesn't begin a regular expression.
    fn is_operand(&self) -> bool {
        match self.kind {
            Kind::Word => !matches!(
                self.text,
                "return" | "typeof" | "case" | "in" | "of" | "await"
            ),
            Kind::Number | Kind::Literal => true,
            Kind::Sign => matches!(self.text, ")" | "]" | "}"),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// Signs of several characters; of two that begin alike, the longer first.
const SIGNS: [&str; 19] = [
    "...", "===", "!==", "**=", "??=", "&&=", "||=", "=>", "?.", "??", "&&", "||", "==", "!=",
    "<=", ">=", "++", "--", "**",
];

/// The tokens of a script.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens: Vec<Token<'_>> = Vec::new();
    // For each template that is open around here, how many braces are open inside its `${…}`.
    let mut templates: Vec<usize> = Vec::new();
    let (mut rest, mut place) = (code, (0, 0));
    loop {
        let (blank, begin) = rest.split_at(blank(rest));
        place = moved(place, blank);
        let Some(first) = begin.chars().next() else {
            return tokens;
        };
        let divides = tokens.last().is_some_and(Token::is_operand);
        let (kind, length) = match first {
            '`' => {
                let (length, is_open) = template(begin);
                templates.extend(is_open.then_some(0));
                (Kind::Literal, length)
            }
            '}' if templates.last() == Some(&0) => {
                let (length, is_open) = template(begin);
                if !is_open {
                    templates.pop();
                }
                (Kind::Literal, length)
            }
            '\'' | '"' => (Kind::Literal, quoted(begin, first)),
            '/' if !divides => (Kind::Literal, regex(begin)),
            '0'..='9' => (Kind::Number, span(begin, |c| is_word(c) || c == '.')),
            c if is_word(c) => (Kind::Word, span(begin, is_word)),
            c => {
                if let Some(braces) = templates.last_mut() {
                    *braces += usize::from(c == '{');
                    *braces -= usize::from(c == '}');
                }
                let sign = SIGNS.iter().find(|sign| begin.starts_with(**sign));
                (Kind::Sign, sign.map_or(c.len_utf8(), |sign| sign.len()))
            }
        };
        let (text, after) = begin.split_at(length);
        let (line, column) = place;
        tokens.push(Token {
            kind,
            text,
            line,
            column,
            blank,
        });
        (rest, place) = (after, moved(place, text));
    }
}

/// The length of the characters that this is true for.
fn span(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|c| !is_part(c)).unwrap_or(text.len())
}

/// The length of blanks and comments.
fn blank(text: &str) -> usize {
    let rest = text.trim_start();
    let at = text.len() - rest.len();
    let comment = match rest.get(..2) {
        Some("//") => span(rest, |c| c != '\n'),
        Some("/*") => rest.find("*/").expect("a comment has an end") + 2,
        _ => return at,
    };
    at + comment + blank(&rest[comment..])
}

/// The length of a text, which begins with its quote.
fn quoted(text: &str, quote: char) -> usize {
    let end = unescaped(text, |c| c == quote).expect("a text has an end");
    end + 1
}

/// The length of a piece of a template, which begins with a backtick or the brace of an expression's end; and whether it
/// ends where an expression begins.
fn template(text: &str) -> (usize, bool) {
    let mut from = 0;
    loop {
        let end =
            unescaped(&text[from..], |c| c == '`' || c == '$').expect("a template has an end");
        let end = from + end;
        match &text[end..] {
            rest if rest.starts_with("${") => return (end + 2, true),
            rest if rest.starts_with('`') => return (end + 1, false),
            _ => from = end,
        }
    }
}

/// The length of a regular expression, with its flags.
fn regex(text: &str) -> usize {
    let mut in_class = false;
    let end = unescaped(text, |c| {
        in_class = (in_class || c == '[') && c != ']';
        c == '/' && !in_class
    });
    let end = end.expect("a regular expression has an end") + 1;
    end + span(&text[end..], is_word)
}

/// Where behind its first character a text has such a character without a backslash.
fn unescaped(text: &str, mut is_it: impl FnMut(char) -> bool) -> Option<usize> {
    let mut escaped = false;
    let mut after_first = text.char_indices().skip(1);
    after_first.find_map(|(at, c)| {
        let plain = !std::mem::take(&mut escaped);
        escaped = plain && c == '\\';
        (plain && !escaped && is_it(c)).then_some(at)
    })
}

/// What a word may stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    Variable,
    /// After a dot, or before the colon of an object's field.
    Property,
    /// `{ word }` and `, word,` may be both at once.
    Unsure,
}

fn usage(tokens: &[Token<'_>], at: usize) -> Usage {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let before = at.checked_sub(1).map_or("", text);
    match (before, text(at + 1)) {
        ("." | "?.", _) | ("{" | ",", ":") => Usage::Property,
        ("{", "," | "}") | (",", "," | "}") => Usage::Unsure,
        _ => Usage::Variable,
    }
}

/// Short names for functions: each stands for one function in the whole script, and was no word in it before.
fn short_names<'a>(modules: &[Vec<Token<'a>>]) -> HashMap<&'a str, String> {
    let mut words: HashSet<&str> = ["do", "if", "in", "for", "let", "new", "try", "var"].into();
    let (mut functions, mut unsure) = (BTreeSet::new(), HashSet::new());
    for tokens in modules {
        for (at, token) in tokens.iter().enumerate() {
            if token.kind != Kind::Word {
                continue;
            }
            words.insert(token.text);
            if at > 0 && tokens[at - 1].text == "function" {
                functions.insert(token.text);
            }
            if usage(tokens, at) == Usage::Unsure {
                unsure.insert(token.text);
            }
        }
    }
    let free = (0..)
        .map(letters)
        .filter(|name| !words.contains(name.as_str()));
    functions
        .into_iter()
        .filter(|name| !unsure.contains(name))
        .zip(free)
        .collect()
}

/// `a` to `z`, then `aa`, `ba` and so on.
fn letters(mut number: usize) -> String {
    let mut name = String::new();
    loop {
        name.push(char::from(b'a' + (number % 26) as u8));
        match number / 26 {
            0 => return name,
            more => number = more - 1,
        }
    }
}
