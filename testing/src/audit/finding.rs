//! What an audit finds, and how it says it.

use std::fmt;

use larder_core::Difference;

/// Something that is wrong with the flushes of an entity.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The entity.
    pub entity: &'static str,
    /// The field that was written, `creation` or `deletion`; empty for what concerns all of them.
    pub step: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Problem {
    /// A key is served as it was before the write.
    Stale {
        /// The data set.
        accessor: &'static str,
        /// The key, without prefix.
        key: String,
        /// Where its value differs.
        differences: Vec<Difference>,
        /// What the flush plan has of the data set; nothing if it doesn't watch the entity.
        plan: Vec<String>,
    },
    /// The same, since the flush went out while the source had the old value, which a reader then put back.
    FlushedBeforeCommit {
        /// The data set.
        accessor: &'static str,
        /// The key, without prefix.
        key: String,
        /// Where its value differs.
        differences: Vec<Difference>,
    },
    /// Nobody writes this field, so nothing is known of it.
    NoWriter,
    /// The flush plan has a data set that nothing read, so nothing is known of it.
    NeverRead {
        /// The data set.
        accessor: &'static str,
        /// What the flush plan has of it.
        plan: Vec<String>,
    },
    /// No read was heard of whose values could be compared, so that nothing is known of anything.
    NothingRead,
    /// The write changed nothing that was read.
    NothingChanged {
        /// Whether it flushed something even so.
        has_flushed: bool,
    },
    /// The write panicked.
    WriterFailed {
        /// What it said.
        said: String,
    },
    /// A flush wasn't confirmed.
    Unconfirmed {
        /// Its keys.
        keys: Vec<String>,
    },
    /// A value isn't cached at all, so that each read of it is a load.
    NotCached {
        /// The data set.
        accessor: &'static str,
        /// The key, without prefix.
        key: String,
    },
    /// A key couldn't be read.
    Unreadable {
        /// The data set.
        accessor: &'static str,
        /// The key, without prefix.
        key: String,
        /// Why.
        said: String,
    },
}

impl Finding {
    pub(super) fn of(entity: &'static str, step: &str, problem: Problem) -> Self {
        Self {
            entity,
            step: step.to_owned(),
            problem,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.step {
            "" => write!(f, "{}: ", self.entity)?,
            step => write!(f, "{}, {step}: ", self.entity)?,
        }
        match &self.problem {
            Problem::Stale {
                accessor,
                key,
                differences,
                plan,
            } => {
                writeln!(f, "`{accessor}` is stale at {key}")?;
                show(f, differences)?;
                show_plan(f, accessor, plan)
            }
            Problem::FlushedBeforeCommit {
                accessor,
                key,
                differences,
            } => {
                writeln!(
                    f,
                    "the flush of `{accessor}` went out before the commit, so that a reader put {key} back as it was"
                )?;
                show(f, differences)
            }
            Problem::NoWriter => writeln!(
                f,
                "nothing writes it; give the audit a writer, or say that it never happens"
            ),
            Problem::NeverRead { accessor, plan } => {
                writeln!(
                    f,
                    "nothing reads `{accessor}`; add it to the reads of the audit"
                )?;
                show_plan(f, accessor, plan)
            }
            Problem::NothingRead => writeln!(
                f,
                "nothing was read whose values could be compared: give the audit the service's reads, and see that the \
                 cache is a TestCache, or built with `recorded`, and the reads are done in the test's own task"
            ),
            Problem::NothingChanged { has_flushed: true } => writeln!(
                f,
                "it flushed, and nothing that was read is another than before: was it committed?"
            ),
            Problem::NothingChanged { has_flushed: false } => writeln!(
                f,
                "nothing that was read is another than before: does it write the row that the reads show?"
            ),
            Problem::WriterFailed { said } => writeln!(f, "the writer failed: {said}"),
            Problem::Unconfirmed { keys } => {
                writeln!(f, "the flush of {} wasn't confirmed", keys.join(", "))
            }
            Problem::NotCached { accessor, key } => writeln!(
                f,
                "`{accessor}` doesn't cache {key}, so every read of it is a load: is the key another one than its plan has?"
            ),
            Problem::Unreadable {
                accessor,
                key,
                said,
            } => writeln!(f, "`{accessor}` can't be read at {key}: {said}"),
        }
    }
}

fn show(f: &mut fmt::Formatter<'_>, differences: &[Difference]) -> fmt::Result {
    let mut differences = differences.iter();
    differences.try_for_each(|difference| writeln!(f, "  {difference}"))
}

fn show_plan(f: &mut fmt::Formatter<'_>, accessor: &str, plan: &[String]) -> fmt::Result {
    if plan.is_empty() {
        return writeln!(f, "  the plan has nothing of `{accessor}`");
    }
    plan.iter()
        .try_for_each(|line| writeln!(f, "  the plan: {line}"))
}
