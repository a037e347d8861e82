//! Key templates: `name:part:part`, where a part is a word, `{argument}`, `{argument:digest}` or `{argument:escaped}`.

use proc_macro2::Span;
use syn::{Error, Ident, LitStr, Result};

use super::signature::{Argument, Loader};

/// A template, and which argument each part is.
pub(super) struct Template {
    pub(super) text: LitStr,
    /// The first segment: the data set's name.
    pub(super) name: String,
    pub(super) parts: Vec<Part>,
}

/// One part of a key.
pub(super) enum Part {
    Word(String),
    Argument { name: Ident, format: Format },
}

/// How an argument is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// As its type does it, which isn't text.
    Own,
    Digest,
    Escaped,
}

impl Template {
    pub(super) fn parse(text: &LitStr, loader: &Loader) -> Result<Self> {
        let span = text.span();
        let value = text.value();
        if value.is_empty() {
            return Err(Error::new(
                span,
                format!(
                    "the key is empty: write its name and its parts, `key = \"{}\"`",
                    loader.suggested_key()
                ),
            ));
        }
        let mut segments = segments(&value, span)?.into_iter();
        let name = segments.next().unwrap_or_default();
        check_name(&name, loader, span)?;
        let parts: Vec<Part> = segments
            .map(|segment| Part::parse(&segment, loader, span))
            .collect::<Result<_>>()?;
        let template = Self {
            text: text.clone(),
            name,
            parts,
        };
        template.check_arguments(loader)?;
        Ok(template)
    }

    /// Stands for one with a mistake.
    pub(super) fn stub(loader: &Loader) -> Self {
        let parts = loader.shown().map(|argument| Part::Argument {
            name: argument.name.clone(),
            format: Format::Escaped,
        });
        Self {
            text: LitStr::new("", Span::call_site()),
            name: loader.name.to_string(),
            parts: parts.collect(),
        }
    }

    /// How this argument is written; `None` if it isn't.
    pub(super) fn format_of(&self, argument: &Argument) -> Option<Format> {
        self.parts.iter().find_map(|part| match part {
            Part::Argument { name, format } if *name == argument.name => Some(*format),
            _ => None,
        })
    }

    /// Every argument is in the key once, or skipped.
    fn check_arguments(&self, loader: &Loader) -> Result<()> {
        for argument in &loader.arguments {
            let name = &argument.name;
            let is_it =
                |part: &&Part| matches!(part, Part::Argument { name: other, .. } if other == name);
            let times = self.parts.iter().filter(is_it).count();
            let problem = match (times, argument.skipped) {
                (0, false) => format!(
                    "`{name}` isn't in the key, so that values of different `{name}` would be taken for each other: write \
                     `key = \"{}:{{{name}}}\"`, or `skip({name})` if it never shapes the value",
                    self.text.value()
                ),
                (1, false) | (0, true) => continue,
                (_, true) => {
                    format!("`{name}` is in the key and is skipped: take it out of one of them")
                }
                (_, false) => {
                    format!("`{name}` is in the key twice: once tells all of it")
                }
            };
            let span = match times {
                0 => name.span(),
                _ => self.text.span(),
            };
            return Err(Error::new(span, problem));
        }
        Ok(())
    }
}

impl Part {
    fn parse(segment: &str, loader: &Loader, span: Span) -> Result<Self> {
        let Some(inside) = segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        else {
            return word(segment, span);
        };
        let (name, format) = inside
            .split_once(':')
            .map_or((inside, None), |(name, format)| (name, Some(format)));
        let Some(argument) = loader.argument(name) else {
            return Err(Error::new(
                span,
                format!(
                    "`{{{name}}}` is no argument of `{}`; {}",
                    loader.name,
                    loader.known_arguments()
                ),
            ));
        };
        let format = match format {
            None => Format::Own,
            Some("digest") => Format::Digest,
            Some("escaped") => Format::Escaped,
            Some(other) => {
                return Err(Error::new(
                    span,
                    format!(
                        "`{other}` is no format: write `{{{name}}}`, `{{{name}:digest}}` for a text of any length, or \
                         `{{{name}:escaped}}` for a short one that should be readable in the key"
                    ),
                ));
            }
        };
        Ok(Self::Argument {
            name: argument.name.clone(),
            format,
        })
    }
}

/// A part that is the same in every key.
fn word(segment: &str, span: Span) -> Result<Part> {
    if segment.is_empty() {
        return Err(Error::new(
            span,
            "the key has an empty part: take one `:` out, or write a word between the two",
        ));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "._@+!=-".contains(c);
    if segment.contains(['{', '}']) {
        return Err(Error::new(
            span,
            format!(
                "`{segment}` is a word and an argument in one part: put a `:` between them, so that no two keys can read \
                 the same"
            ),
        ));
    }
    if let Some(c) = segment.chars().find(|&c| !legal(c)) {
        return Err(Error::new(
            span,
            format!(
                "a word in a key is made of A-Z a-z 0-9 . _ @ + ! = -, and `{segment}` has {c:?}"
            ),
        ));
    }
    Ok(Part::Word(segment.to_owned()))
}

/// The texts between the `:`s that aren't within braces.
fn segments(value: &str, span: Span) -> Result<Vec<String>> {
    let mut segments = vec![String::new()];
    let mut open = false;
    for c in value.chars() {
        match c {
            '{' if open => {
                return Err(Error::new(
                    span,
                    "a `{` within braces: close the first argument with `}`",
                ));
            }
            '{' => open = true,
            '}' if !open => {
                return Err(Error::new(
                    span,
                    "a `}` without its `{`: an argument is written `{name}`",
                ));
            }
            '}' => open = false,
            ':' if !open => {
                segments.push(String::new());
                continue;
            }
            _ => {}
        }
        segments.last_mut().expect("there is one").push(c);
    }
    if open {
        return Err(Error::new(
            span,
            "a `{` without its `}`: an argument is written `{name}`",
        ));
    }
    Ok(segments)
}

fn check_name(name: &str, loader: &Loader, span: Span) -> Result<()> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.len() <= 64 && !name.is_empty() && name.chars().all(legal) {
        return Ok(());
    }
    Err(Error::new(
        span,
        format!(
            "a key begins with the data set's name, 1 to 64 characters of A-Z a-z 0-9 . _ -, and no other data set's: \
             write `key = \"{}\"`, not `{name}`",
            loader.suggested_key()
        ),
    ))
}
