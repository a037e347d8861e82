//! What larder is to reach, as ratios of one run.

use std::fmt;

use crate::cases::Case;
use crate::measure::Figures;
use crate::outcome::Outcome;
use crate::report::Table;
use crate::subjects::names;

/// A ratio and its bound.
#[derive(Debug)]
pub struct Target {
    what: &'static str,
    case: Case,
    /// `None` if what it compares wasn't run, or failed.
    ratio: Option<f64>,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};

/// Every target, with what these outcomes say of it.
pub fn all(outcomes: &[Outcome]) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut add = |what, case, ratio: fn(&Outcome) -> Option<f64>, bound| {
        let outcome = outcomes.iter().find(|outcome| outcome.case == case);
        let ratio = outcome.and_then(ratio);
        targets.push(Target {
            what,
            case,
            ratio,
            bound,
        });
    };

    let bulk = Case::Bulk(1_000);
    add(
        "time, meta / raw limit, meta",
        bulk,
        |outcome| time(outcome, names::LARDER_META, names::RAW_META),
        AtMost(1.2),
    );
    add(
        "time, get / raw limit, get",
        bulk,
        |outcome| time(outcome, names::LARDER_GET, names::RAW_GET),
        AtMost(1.2),
    );
    add(
        "time, meta / memcache exp",
        bulk,
        |outcome| time(outcome, names::LARDER_META, names::EXP),
        AtMost(0.75),
    );
    add(
        "time, get / memcache exp",
        bulk,
        |outcome| time(outcome, names::LARDER_GET, names::EXP),
        AtMost(0.55),
    );
    add(
        "client CPU, meta / memcache exp",
        bulk,
        |outcome| cpu(outcome, names::LARDER_META, names::EXP),
        AtMost(0.25),
    );
    add(
        "client CPU, get / memcache exp",
        bulk,
        |outcome| cpu(outcome, names::LARDER_GET, names::EXP),
        AtMost(0.25),
    );

    let accessor = Case::Accessor(1_000);
    add(
        "time, meta / (raw limit + bare decode)",
        accessor,
        |outcome| time(outcome, names::ACCESSOR_META, names::RAW_DECODE_META),
        AtMost(1.25),
    );
    add(
        "time, get / (raw limit + bare decode)",
        accessor,
        |outcome| time(outcome, names::ACCESSOR_GET, names::RAW_DECODE_GET),
        AtMost(1.25),
    );

    let redis = Case::RedisBulk(1_000);
    add(
        "time / raw limit, MGET",
        redis,
        |outcome| time(outcome, names::LARDER_REDIS, names::RAW_MGET),
        AtMost(1.35),
    );

    let cluster = Case::RedisCluster(1_000);
    add(
        "time / raw limit, GET to three nodes",
        cluster,
        |outcome| time(outcome, names::LARDER_CLUSTER, names::RAW_GETS),
        AtMost(1.25),
    );

    for (tasks, one, two) in [(64, 2.5, 3.0), (512, 5.0, 6.0)] {
        let singles = Case::Singles(tasks);
        add(
            "throughput, 1 connection / memcache exp",
            singles,
            |outcome| throughput(outcome, names::LARDER_META),
            AtLeast(one),
        );
        add(
            "throughput, 2 connections / memcache exp",
            singles,
            |outcome| throughput(outcome, names::LARDER_TWO),
            AtLeast(two),
        );
    }
    let singles = Case::Singles(64);
    add(
        "p99, 1 connection / memcache exp",
        singles,
        |outcome| p99(outcome, names::LARDER_META),
        AtMost(0.4),
    );
    add(
        "p99, 2 connections / memcache exp",
        singles,
        |outcome| p99(outcome, names::LARDER_TWO),
        AtMost(0.4),
    );
    for tasks in [1, 8] {
        add(
            "throughput, 2 connections / plain connections",
            Case::Singles(tasks),
            |outcome| {
                let (ours, plain) = both(outcome, names::LARDER_TWO, names::PLAIN)?;
                Some(ours.per_second / plain.per_second)
            },
            AtLeast(0.9),
        );
    }

    add(
        "time / raw limit, ms q",
        Case::Fill(1_000),
        |outcome| time(outcome, names::LARDER_META, names::RAW_META),
        AtMost(1.25),
    );
    targets
}

fn both<'o>(outcome: &'o Outcome, one: &str, other: &str) -> Option<(&'o Figures, &'o Figures)> {
    Some((outcome.figures(one)?, outcome.figures(other)?))
}

fn time(outcome: &Outcome, ours: &str, theirs: &str) -> Option<f64> {
    let (ours, theirs) = both(outcome, ours, theirs)?;
    Some(ours.p50 / theirs.p50)
}

fn cpu(outcome: &Outcome, ours: &str, theirs: &str) -> Option<f64> {
    let (ours, theirs) = both(outcome, ours, theirs)?;
    Some(ours.cpu / theirs.cpu)
}

fn throughput(outcome: &Outcome, ours: &str) -> Option<f64> {
    Some(outcome.figures(ours)?.per_second / outcome.exp()?.per_second)
}

fn p99(outcome: &Outcome, ours: &str) -> Option<f64> {
    Some(outcome.figures(ours)?.p99 / outcome.exp()?.p99)
}

impl Target {
    /// Whether it is met; `None` if it can't be said.
    fn is_met(&self) -> Option<bool> {
        let ratio = self.ratio?;
        Some(match self.bound {
            AtMost(bound) => ratio <= bound,
            AtLeast(bound) => ratio >= bound,
        })
    }
}

/// The targets as a table.
pub fn table(targets: &[Target]) -> Table {
    let mut table = Table::new(["target", "case", "bound", "measured", ""]);
    for target in targets {
        table.row([
            target.what.to_owned(),
            target.case.name(),
            target.bound.to_string(),
            target
                .ratio
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
            match target.is_met() {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not run",
            }
            .to_owned(),
        ]);
    }
    table
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtMost(bound) => write!(f, "<= {bound:.2}"),
            AtLeast(bound) => write!(f, ">= {bound:.2}"),
        }
    }
}
