//! The statements of the database, as sqlx tells them by `tracing` events.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::record::Asked;
use super::scope::Mark;

/// What statements have that aren't the service's: larder's own name a table or a savepoint of its, or say whose they are;
/// sqlx's set a connection up, or ask for the types of a database. When there are such, the test can't tell.
const ASIDE: [&str; 4] = ["larder_", "/* larder */", "PRAGMA ", "pg_catalog.pg_type"];

/// How statements begin that open and end transactions. sqlx tells of some of them, on some databases.
const TRANSACTION: [&str; 5] = ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"];

/// Hands each statement to those in whose spans it was executed.
#[derive(Debug)]
pub(crate) struct Queries;

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Queries {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut statement = Statement::default();
        let Some(scope) = context.event_scope(event) else {
            return;
        };
        for span in scope {
            if let Some(Mark::Capture(record)) = span.extensions().get::<Mark>() {
                if statement.is_unread() {
                    event.record(&mut statement);
                }
                record.add(statement.asked());
            }
        }
    }
}

/// The fields of an event of sqlx: a summary, the text where it is longer, and how many rows it answered or changed.
#[derive(Default)]
struct Statement {
    summary: String,
    text: String,
    returned: u64,
    affected: u64,
}

impl Statement {
    fn is_unread(&self) -> bool {
        self.summary.is_empty()
    }

    fn asked(&self) -> Asked {
        let text = match self.text.trim() {
            "" => &self.summary,
            text => text,
        };
        Asked::Query {
            is_aside: is_aside(text),
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            rows: self.returned.max(self.affected),
        }
    }
}

fn is_aside(text: &str) -> bool {
    let word = text.split_whitespace().next().unwrap_or_default();
    TRANSACTION.contains(&word) || ASIDE.iter().any(|theirs| text.contains(theirs))
}

impl Visit for Statement {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "rows_returned" => self.returned = value,
            "rows_affected" => self.affected = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.text),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
