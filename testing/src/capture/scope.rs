//! Whose work this is: marks on `tracing` spans, found by whoever works within them.
//!
//! A span goes wherever the work goes: into the loads, fills and commits that larder has in tasks of their own, and into
//! whatever a test instruments itself. So the kit needs neither an argument nor a handle of its own to be told.

use std::sync::Arc;

use tracing::subscriber::set_global_default;
use tracing::{Level, Metadata, Span};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::queries::Queries;
use super::record::Record;
use crate::audit::Deleted;

/// The target of the kit's own spans.
const SPANS: &str = "larder::testing";

/// The target of sqlx's statements.
const STATEMENTS: &str = "sqlx::query";

/// What a span says of the work within it.
#[derive(Clone)]
pub(crate) enum Mark {
    /// It is counted here.
    Capture(Arc<Record>),
    /// Its look-ups find nothing.
    Empty,
    /// An audit listens.
    Audit(Arc<dyn Deleted>),
}

/// The layer that the kit needs in the program's `tracing` subscriber, where there is one.
///
/// Nothing has to be done in a test program that sets no subscriber: the kit then sets its own as the default. Where one is
/// set (to print what happens, say) it needs this layer, since spans are how the kit tells whose work is whose.
///
/// ```
/// use tracing_subscriber::layer::SubscriberExt as _;
/// use tracing_subscriber::util::SubscriberInitExt as _;
///
/// tracing_subscriber::registry()
///     .with(larder_testing::layer())
///     // .with(tracing_subscriber::fmt::layer().with_test_writer())
///     .init();
/// ```
///
/// It takes no notice of anything but the kit's spans and sqlx's statements. A filter on all layers, such as an
/// `EnvFilter` that is one itself, has to let those pass: `larder::testing` at level error, `sqlx::query` at debug. A
/// filter on another layer alone doesn't matter.
pub fn layer<S>() -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'s> LookupSpan<'s>,
{
    Queries.with_filter(filter_fn(concerns_us))
}

fn concerns_us(metadata: &Metadata<'_>) -> bool {
    match metadata.is_span() {
        true => metadata.target() == SPANS,
        false => metadata.target() == STATEMENTS,
    }
}

/// Opens a span with this mark, below the one the caller is in.
///
/// # Panics
///
/// If a subscriber without the kit's layer, or one that filters its spans, takes them.
#[track_caller]
pub(crate) fn open(mark: Mark) -> Span {
    // Who comes second finds it set, by us or by the program: which of them, is seen by the layer below.
    let _ = set_global_default(Registry::default().with(layer()));
    let span = tracing::error_span!(target: SPANS, "test");
    let marked = span.with_subscriber(|(id, dispatch)| {
        dispatch.downcast_ref::<Queries>()?;
        let registry = dispatch.downcast_ref::<Registry>()?;
        registry.span(id)?.extensions_mut().insert(mark);
        Some(())
    });
    if marked.flatten().is_none() {
        panic!(
            "the program's `tracing` subscriber hasn't the layer of larder's test kit, or a filter keeps its spans from it; \
             add `larder::testing::layer()` to it, and let `larder::testing=error,sqlx::query=debug` pass"
        );
    }
    span
}

/// Whether sqlx's statements are heard here.
pub(crate) fn hears_statements() -> bool {
    tracing::enabled!(target: STATEMENTS, Level::DEBUG)
}

/// Shows the marks of the spans that the caller is in, the innermost first.
pub(crate) fn each(mut see: impl FnMut(&Mark)) {
    Span::current().with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        for span in registry.span(id)?.scope() {
            if let Some(mark) = span.extensions().get::<Mark>() {
                see(mark);
            }
        }
        Some(())
    });
}

/// Those who count the caller's work.
pub(crate) fn records() -> Vec<Arc<Record>> {
    let mut records = Vec::new();
    each(|mark| {
        if let Mark::Capture(record) = mark {
            records.push(Arc::clone(record));
        }
    });
    records
}

/// The audits that listen to the caller.
pub(crate) fn audits() -> Vec<Arc<dyn Deleted>> {
    let mut audits = Vec::new();
    each(|mark| {
        if let Mark::Audit(audit) = mark {
            audits.push(Arc::clone(audit));
        }
    });
    audits
}

/// Whether the caller's look-ups find nothing.
pub(crate) fn is_empty() -> bool {
    let mut is_empty = false;
    each(|mark| is_empty |= matches!(mark, Mark::Empty));
    is_empty
}
