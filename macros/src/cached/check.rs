//! Options that contradict each other, or leave out what nobody else can know.

use proc_macro2::Span;

use super::options::{Options, Tier};
use super::signature::Loader;
use crate::problems::Problems;

/// What is wrong with these options of this loader.
pub(super) fn options(options: &Options, loader: &Loader, problems: &mut Problems) {
    if options.source.is_none() {
        problems.at(
            Span::call_site(),
            "where is it loaded from? Write `source = Db`, the type that hands out its connections",
        );
    }
    lifetime(options, problems);
    absence(options, loader, problems);
    tier(options, problems);
    if let (Some(by), None) = (&options.by, &options.many) {
        problems.add(syn::Error::new_spanned(
            by,
            "`by` tells of each of many values which id it has: write `many` too, or leave it out",
        ));
    }
    let has_revision = options
        .revision
        .as_ref()
        .is_some_and(|revision| revision.base10_digits() != "0");
    if let (Some(option), false) = (&options.outlives_deploys, has_revision) {
        problems.at(
            option.span(),
            "the next version of the code would serve what this one stored, and only a revision tells it that the loader \
             means something else: write `revision = 1`, and raise it then",
        );
    }
}

fn lifetime(options: &Options, problems: &mut Problems) {
    let ttl = options.ttl.as_ref().map(|ttl| &ttl.option);
    let ttl_only = options.ttl_only.as_ref().map(|ttl| &ttl.option);
    let lifetimes = [ttl, ttl_only, options.immutable.as_ref()];
    let mut lifetimes = lifetimes.into_iter().flatten();
    let Some(lifetime) = lifetimes.next() else {
        problems.at(
            Span::call_site(),
            "how long may a value be served? Write `ttl = \"7d\"` for what is flushed when it changes, `ttl_only = \"10m\"` \
             where values that old are right, or `immutable` for what never changes",
        );
        return;
    };
    for other in lifetimes {
        problems.at(
            other.span(),
            format!("a value has one lifetime: `{lifetime}` or `{other}`"),
        );
    }
    let flushed = options
        .flush_on
        .first()
        .map(|watch| watch.span())
        .or_else(|| Some(options.by_hand.as_ref()?.span()));
    match (lifetime == "ttl", flushed) {
        (true, None) => problems.at(
            lifetime.span(),
            "nothing says what makes these values stale: write `flush_on(Entity { field } => |entity| key)`, `by_hand` if \
             the application flushes them itself, or `ttl_only` in place of `ttl` if values that old are right",
        ),
        (false, Some(span)) => problems.at(
            span,
            format!("`{lifetime}` is for data that nobody flushes: write `ttl` in its place, or leave this out"),
        ),
        _ => {}
    }
}

fn absence(options: &Options, loader: &Loader, problems: &mut Problems) {
    let Some(absent) = &options.absent_ttl else {
        return;
    };
    if let Some(immutable) = &options.immutable {
        problems.at(
            absent.option.span(),
            format!("`{immutable}` data never remembers that a row is absent, since it may come: leave `absent_ttl` out"),
        );
    } else if !loader.answer.optional {
        problems.at(
            absent.option.span(),
            format!(
                "`{}` answers a value for every key, so that none is absent: answer `Option<…>`, or leave `absent_ttl` out",
                loader.name
            ),
        );
    }
}

fn tier(options: &Options, problems: &mut Problems) {
    if let Some(tier) = &options.tier
        && tier.chosen == Tier::Deploy
        && options.immutable.is_none()
    {
        problems.at(
            tier.word.span(),
            "processes keep values of the deploy tier until they end: write `immutable` in place of a TTL, or \
             `tier = request` for what may change",
        );
    }
}
