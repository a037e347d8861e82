//! What was asked, as a table of 80 columns.

use std::fmt;

use super::Asked;
use crate::Op;

/// What is numbered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    Trips,
    Loads,
    Queries,
}

impl Counted {
    pub(super) fn noun(self, plural: &str) -> String {
        match self {
            Self::Trips => format!("trip{plural}"),
            Self::Loads => format!("load{plural}"),
            Self::Queries if plural.is_empty() => "query".to_owned(),
            Self::Queries => "queries".to_owned(),
        }
    }

    fn of(self, asked: &Asked) -> u64 {
        match (self, asked) {
            (Self::Trips, Asked::Call { trips, .. }) => *trips,
            (Self::Loads, Asked::Load { .. })
            | (
                Self::Queries,
                Asked::Query {
                    is_aside: false, ..
                },
            ) => 1,
            _ => 0,
        }
    }
}

/// Rows that are shown; a loop over more is told by its first ones.
const ROWS: usize = 60;

/// Columns for what was asked for.
const OF: usize = 34;

/// Columns for the answer.
const ANSWER: usize = 18;

/// A line.
struct Row {
    asked: String,
    of: String,
    keys: String,
    answer: String,
}

pub(super) fn write(f: &mut fmt::Formatter<'_>, asked: &[Asked], counted: Counted) -> fmt::Result {
    line(f, "#", "asked", "of", "keys", "answer")?;
    let mut number = 0;
    let rows = asked.iter().filter_map(|asked| Some((asked, row(asked)?)));
    let rows: Vec<(&Asked, Row)> = rows.collect();
    for (asked, row) in rows.iter().take(ROWS) {
        let count = counted.of(asked);
        number += count;
        let number = match count {
            0 => String::new(),
            _ => number.to_string(),
        };
        let Row {
            asked,
            of,
            keys,
            answer,
        } = row;
        line(f, &number, asked, of, keys, answer)?;
    }
    match rows.len().saturating_sub(ROWS) {
        0 => Ok(()),
        more => writeln!(f, "     … and {more} more"),
    }
}

fn line(
    f: &mut fmt::Formatter<'_>,
    number: &str,
    asked: &str,
    of: &str,
    keys: &str,
    answer: &str,
) -> fmt::Result {
    let (of, answer) = (shortened(of, OF), shortened(answer, ANSWER));
    let line = format!("{number:>3}  {asked:<13}  {of:<OF$}  {keys:>4}  {answer}");
    writeln!(f, "{}", line.trim_end())
}

fn row(asked: &Asked) -> Option<Row> {
    Some(match asked {
        Asked::Read {
            accessor,
            is_single,
            keys,
            tier_hits,
            hits,
            absent,
            misses,
            shared,
            ..
        } => Row {
            asked: if *is_single { "get" } else { "get_many" }.to_owned(),
            of: (*accessor).to_owned(),
            keys: keys.to_string(),
            answer: counts(&[
                (*tier_hits, "kept"),
                (*hits, "hit"),
                (*absent, "absent"),
                (*misses, "miss"),
                (*shared, "shared"),
            ]),
        },
        Asked::Load {
            accessor,
            keys,
            found,
        } => Row {
            asked: "load".to_owned(),
            of: (*accessor).to_owned(),
            keys: keys.to_string(),
            answer: match found {
                Some(found) => format!("{found} found"),
                None => "failed".to_owned(),
            },
        },
        Asked::Call {
            op,
            accessors,
            keys,
            trips,
            done,
            failed,
            ..
        } => Row {
            asked: match trips {
                1 => format!("trip: {op}"),
                trips => format!("{trips} trips: {op}"),
            },
            of: accessors.join(", "),
            keys: keys.to_string(),
            answer: {
                let done_word = match op {
                    Op::Get => "found",
                    Op::Fill | Op::Set => "stored",
                    Op::Release => "released",
                    Op::Delete => "deleted",
                };
                match failed {
                    0 => format!("{done} {done_word}"),
                    failed => format!("{done} {done_word}, {failed} failed"),
                }
            },
        },
        Asked::Query {
            text,
            rows,
            is_aside,
        } => Row {
            asked: if *is_aside { "(not counted)" } else { "query" }.to_owned(),
            of: text.clone(),
            keys: String::new(),
            answer: counts(&[(*rows, if *rows == 1 { "row" } else { "rows" })]),
        },
        // What its trips say already.
        Asked::Filled { .. } => return None,
        Asked::Flushed { keys, is_confirmed } => Row {
            asked: "flush".to_owned(),
            of: keys.join(", "),
            keys: keys.len().to_string(),
            answer: if *is_confirmed {
                "confirmed"
            } else {
                "unconfirmed"
            }
            .to_owned(),
        },
    })
}

/// Those that are there: `2 hit, 1 miss`.
fn counts(counts: &[(u64, &str)]) -> String {
    let some = counts.iter().filter(|(count, _)| *count > 0);
    let some: Vec<String> = some
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    some.join(", ")
}

/// At most so many characters.
pub(super) fn shortened(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(room - 1).collect();
    short.push('…');
    short
}
