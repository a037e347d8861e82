//! `/api/client-errors`: where in the sources an error of the page was.

use std::fmt;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::answer::{ApiError, Valid, answer};
use super::visit::Visit;
use crate::App;
use crate::data::{Origin, Symbols, script_map};
use crate::release::SCRIPT_NAME;
use crate::stack::{Site, Stack};

/// The longest body: a trace of the browsers that tell the most.
pub(super) const LONGEST_BODY: usize = 64 << 10;

/// The most lines of a trace, and the longest of them, in bytes.
const MOST_LINES: usize = 200;
const LONGEST_LINE: usize = 1_000;

/// The body of a report.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    stack: String,
}

impl Report {
    fn stack(&self) -> Result<Stack<'_>, ApiError> {
        let (lines, longest) = self.stack.lines().fold((0, 0), |(lines, longest), line| {
            (lines + 1, line.len().max(longest))
        });
        if lines > MOST_LINES || longest > LONGEST_LINE {
            return Err(ApiError::bad(format!(
                "stack takes {MOST_LINES} lines of at most {LONGEST_LINE} bytes; it has {lines}, the longest of {longest}"
            )));
        }
        Stack::parse(&self.stack).ok_or_else(|| {
            ApiError::bad("stack has no frame; it takes what a browser's `error.stack` says")
        })
    }
}

/// A frame as it is answered: what was sent, and, if it is the script's, where that was in the sources.
#[derive(Serialize)]
struct Found<'a> {
    raw: &'a str,
    #[serde(flatten)]
    place: Option<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    function: String,
    #[serde(flatten)]
    origin: Origin<'a>,
}

impl<'a> Place<'a> {
    /// Frames of other scripts, and of other releases, have no place in these sources.
    fn of(site: &Site<'_>, symbols: &'a Symbols) -> Option<Self> {
        let (_, file) = site.url.rsplit_once('/')?;
        Some(Self {
            origin: symbols
                .origin(site.line, site.column)
                .filter(|_| file == SCRIPT_NAME)?,
            function: symbols.function(site.function),
        })
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin {
            source,
            line,
            column,
            ..
        } = self.origin;
        write!(f, "{:?} at {source}:{line}:{column}", self.function)
    }
}

/// `POST /api/client-errors`
///
/// The source map comes from the deploy tier: the first report of a process waits until it is parsed, which the answer
/// shows as `map`, and no other does. It is read with the cache, since a request's tier has no part in it.
pub(super) async fn report(
    State(app): State<App>,
    visit: Visit,
    Valid(Json(report)): Valid<Json<Report>>,
) -> Result<Response, ApiError> {
    let stack = report.stack()?;
    let symbols = visit.map(script_map(&app)).await?;
    let frames: Vec<Found<'_>> = stack
        .frames
        .iter()
        .map(|frame| Found {
            raw: frame.raw,
            place: frame
                .site
                .as_ref()
                .and_then(|site| Place::of(site, &symbols)),
        })
        .collect();
    let innermost = frames.iter().find_map(|frame| frame.place.as_ref());
    // As debugging shows it, what a visitor sends can't look like lines of the log.
    warn!(error = ?stack.message, place = innermost.map(tracing::field::display), "a page failed");
    #[derive(Serialize)]
    struct Answer<'a> {
        message: &'a str,
        frames: Vec<Found<'a>>,
    }
    let answered = Answer {
        message: &stack.message,
        frames,
    };
    Ok(answer(StatusCode::OK, &answered))
}
