//! What came out of a case, and how its rows compare.

use crate::cases::Case;
use crate::measure::{Figures, Row};
use crate::subjects::{Side, names};

/// A case that was run.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub case: Case,
    /// Bytes in a value.
    pub value: usize,
    /// One per subject that took part.
    pub rows: Vec<Row>,
}

impl Outcome {
    /// The figures of the subject with this name, if it took part and came through.
    pub fn figures(&self, subject: &str) -> Option<&Figures> {
        let row = self.rows.iter().find(|row| row.subject == subject)?;
        row.figures.as_ref().ok()
    }

    /// How long this row's calls took beside the raw socket's of the same form; `None` where there is no such limit.
    pub fn ratio_to_limit(&self, row: &Row) -> Option<f64> {
        if !self.case.is_batch() {
            return None;
        }
        let of_its_form = |limit: &&Row| limit.side == Side::Raw && limit.form == row.form;
        let limits = self.rows.iter().find(of_its_form);
        // Only fetches have a second form.
        let limit = limits.or_else(|| self.rows.iter().find(|row| row.side == Side::Raw))?;
        Some(row.figures.as_ref().ok()?.p50 / limit.figures.as_ref().ok()?.p50)
    }

    /// What `memcache::exp` achieved: its batch, or the faster of its pools.
    pub fn exp(&self) -> Option<&Figures> {
        [names::EXP, names::EXP_POOL, names::EXP_POOL_WIDE]
            .into_iter()
            .filter_map(|name| self.figures(name))
            .max_by(|one, other| one.per_second.total_cmp(&other.per_second))
    }
}
