//! Figures as text: tables for people, JSON lines for programs.

use std::fmt;

use serde::Serialize;

use crate::cases::Case;
use crate::measure::{Figures, Row};
use crate::outcome::Outcome;

/// A table whose first column is text and whose others are figures.
#[derive(Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// An empty table with this header.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        Self(vec![header.map(str::to_owned).to_vec()])
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for (number, row) in self.0.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                match column {
                    0 => line.push_str(&format!("  {cell:width$}")),
                    _ => line.push_str(&format!("  {cell:>width$}")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
            if number == 0 {
                let columns = (0..row.len()).map(|column| "-".repeat(width(column)));
                writeln!(f, "  {}", columns.collect::<Vec<_>>().join("  "))?;
            }
        }
        Ok(())
    }
}

/// A case's outcome as a table under its title, with what went wrong below.
pub fn text(outcome: &Outcome) -> String {
    let Outcome { case, value, rows } = outcome;
    let mut text = format!("{}: {}\n\n", case.name(), case.title(*value));
    let table = match case {
        Case::Singles(_) | Case::RedisSingles(_) => singles(outcome),
        Case::Neighbour(_) => neighbours(outcome),
        Case::Stopped(_) => stopped(outcome),
        Case::Bulk(_)
        | Case::Accessor(_)
        | Case::Fill(_)
        | Case::Delete(_)
        | Case::Pool(_)
        | Case::RedisBulk(_)
        | Case::RedisCluster(_) => batches(outcome),
    };
    text.push_str(&table.to_string());
    for row in rows {
        if let Err(reason) = &row.figures {
            text.push_str(&format!("  {} dropped out: {reason}\n", row.subject));
        }
        if let Some((count, first)) = &row.failed {
            text.push_str(&format!(
                "  {}: {count} calls failed, first with: {first}\n",
                row.subject
            ));
        }
    }
    text
}

fn batches(outcome: &Outcome) -> Table {
    let exp = outcome.exp();
    let mut table = Table::new([
        "subject", "us/call", "/limit", "/exp", "kkeys/s", "CPU us", "/exp",
    ]);
    for (row, figures) in measured(outcome) {
        table.row([
            row.subject.to_owned(),
            format!("{:.0}", figures.p50),
            ratio(outcome.ratio_to_limit(row)),
            ratio(exp.map(|exp| figures.p50 / exp.p50)),
            format!("{:.0}", kilokeys(outcome, figures)),
            format!("{:.0}", figures.cpu),
            ratio(exp.map(|exp| figures.cpu / exp.cpu)),
        ]);
    }
    table
}

fn singles(outcome: &Outcome) -> Table {
    let exp = outcome.exp();
    let mut table = Table::new([
        "subject",
        "kops/s",
        "/exp",
        "p50 us",
        "p99 us",
        "/exp",
        "CPU us/op",
    ]);
    for (row, figures) in measured(outcome) {
        table.row([
            row.subject.to_owned(),
            format!("{:.1}", figures.per_second / 1e3),
            ratio(exp.map(|exp| figures.per_second / exp.per_second)),
            format!("{:.0}", figures.p50),
            format!("{:.0}", figures.p99),
            ratio(exp.map(|exp| figures.p99 / exp.p99)),
            format!("{:.2}", figures.cpu),
        ]);
    }
    table
}

fn neighbours(outcome: &Outcome) -> Table {
    let mut table = Table::new(["subject", "p50 us", "p99 us", "bulks/s"]);
    for (row, figures) in measured(outcome) {
        table.row([
            row.subject.to_owned(),
            format!("{:.0}", figures.p50),
            format!("{:.0}", figures.p99),
            format!("{:.0}", figures.per_second),
        ]);
    }
    table
}

fn stopped(outcome: &Outcome) -> Table {
    let mut table = Table::new(["", "calls", "p50 us", "p99 us", "max us", "paid a deadline"]);
    for (row, figures) in measured(outcome) {
        table.row([
            row.subject.to_owned(),
            figures.calls.to_string(),
            format!("{:.0}", figures.p50),
            format!("{:.0}", figures.p99),
            format!("{:.0}", figures.max),
            figures.late.to_string(),
        ]);
    }
    table
}

fn measured(outcome: &Outcome) -> impl Iterator<Item = (&Row, &Figures)> {
    let rows = outcome.rows.iter();
    rows.filter_map(|row| Some((row, row.figures.as_ref().ok()?)))
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Thousands of keys a second; beside bulks, of the bulks.
fn kilokeys(outcome: &Outcome, figures: &Figures) -> f64 {
    let keys = match outcome.case {
        Case::Neighbour(bulk) => bulk,
        case => case.keys(),
    };
    match outcome.case.is_batch() {
        // By the median, as the column beside it.
        true => keys as f64 * 1e3 / figures.p50,
        false => keys as f64 * figures.per_second / 1e3,
    }
}

/// A row as a JSON object. A subject that dropped out has no line.
#[derive(Serialize)]
struct Line<'a> {
    case: &'a str,
    subject: &'a str,
    median_us: f64,
    /// `null` where there is no raw limit to compare with.
    ratio_to_limit: Option<f64>,
    kkeys_per_s: f64,
    cpu_us: f64,
    /// Only where calls overlap.
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_us: Option<f64>,
    /// Only where a server is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paid_a_deadline: Option<usize>,
}

/// A case's outcome, an object a line.
pub fn json(outcome: &Outcome) -> String {
    let case = outcome.case.name();
    let is_stopped = matches!(outcome.case, Case::Stopped(_));
    let thousandths = |figure: f64| (figure * 1e3).round() / 1e3;
    let mut lines = String::new();
    for (row, figures) in measured(outcome) {
        let line = Line {
            case: &case,
            subject: row.subject,
            median_us: thousandths(figures.p50),
            ratio_to_limit: outcome.ratio_to_limit(row).map(thousandths),
            kkeys_per_s: thousandths(kilokeys(outcome, figures)),
            cpu_us: thousandths(figures.cpu),
            p99_us: (!outcome.case.is_batch()).then(|| thousandths(figures.p99)),
            max_us: is_stopped.then(|| thousandths(figures.max)),
            paid_a_deadline: is_stopped.then_some(figures.late),
        };
        lines.push_str(&serde_json::to_string(&line).expect("figures and names are JSON"));
        lines.push('\n');
    }
    lines
}
