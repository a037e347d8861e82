//! Counts the statements that read or write users or messages, as sqlx tells `tracing` of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many there were so far; those on larder's own tables aren't counted.
pub fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}

pub fn watch() {
    let subscriber = tracing_subscriber::registry().with(Statements);
    tracing::subscriber::set_global_default(subscriber).expect("nobody else sets it");
}

struct Statements;

impl<S: Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            event.record(&mut Statement(false));
        }
    }
}

/// Whether this one was counted.
struct Statement(bool);

impl Visit for Statement {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_text = ["summary", "db.statement"].contains(&field.name());
        let is_theirs = value.contains(" users ") || value.contains(" messages ");
        if is_text && !self.0 && is_theirs {
            self.0 = true;
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
