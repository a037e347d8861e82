//! Figures as pictures: a bar chart per case, in SVG.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::cases::Case;
use crate::measure::{Figures, Row};
use crate::outcome::Outcome;
use crate::subjects::Side;

const WIDTH: u32 = 880;
const LEFT: i32 = 268;
const RIGHT: i32 = 96;
const TOP: i32 = 78;
const BOTTOM: i32 = 44;
const BAR: i32 = 20;
const STEP: i32 = 32;
/// Around the picture.
const MARGIN: i32 = 24;

const INK: RGBColor = RGBColor(33, 37, 41);
const FAINT: RGBColor = RGBColor(134, 142, 150);
const GRID: RGBColor = RGBColor(233, 236, 239);
const RAW: RGBColor = RGBColor(173, 181, 189);
const LARDER: RGBColor = RGBColor(232, 89, 12);
const PEER: RGBColor = RGBColor(116, 143, 188);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a chart's bars say.
struct Measure {
    unit: &'static str,
    better: &'static str,
    of: fn(&Figures) -> f64,
}

/// Writes the outcome's chart into the folder, named for its case.
pub fn draw(outcome: &Outcome, rounds: usize, folder: &Path) -> Result<()> {
    let path = folder.join(format!("{}.svg", outcome.case.name()));
    let bars: Vec<_> = outcome
        .rows
        .iter()
        .filter_map(|row| Some((row, row.figures.as_ref().ok()?)))
        .collect();
    let height = TOP + BOTTOM + STEP * i32::try_from(bars.len())?;
    let root = SVGBackend::new(&path, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    paint(&root, outcome, &bars, rounds)
        .and_then(|()| root.present().map_err(Into::into))
        .with_context(|| format!("drawing {}", path.display()))
}

fn paint(
    root: &Area<'_>,
    outcome: &Outcome,
    bars: &[(&Row, &Figures)],
    rounds: usize,
) -> Result<()> {
    let measure = measure(outcome.case);
    root.fill(&WHITE)?;
    let title = outcome.case.title(outcome.value);
    text(
        root,
        &title,
        (MARGIN, 22),
        19,
        INK,
        HPos::Left,
        FontStyle::Bold,
    )?;
    let below = format!(
        "{}, {}; median of {rounds} {}",
        measure.unit,
        measure.better,
        if rounds == 1 { "round" } else { "rounds" }
    );
    text(
        root,
        &below,
        (MARGIN, 50),
        13,
        FAINT,
        HPos::Left,
        FontStyle::Normal,
    )?;

    let values: Vec<_> = bars
        .iter()
        .map(|(_, figures)| (measure.of)(figures))
        .collect();
    let scale = Scale::over(&values);
    let bottom = TOP + STEP * i32::try_from(bars.len())?;
    for tick in scale.ticks() {
        let x = scale.x(tick);
        root.draw(&PathElement::new([(x, TOP - 4), (x, bottom)], GRID))?;
        text(
            root,
            &number(tick),
            (x, bottom + 14),
            12,
            FAINT,
            HPos::Center,
            FontStyle::Normal,
        )?;
    }
    for (place, ((row, _), value)) in bars.iter().zip(values).enumerate() {
        bar(root, row, value, TOP + STEP * i32::try_from(place)?, &scale)?;
    }
    root.draw(&PathElement::new([(LEFT, TOP - 4), (LEFT, bottom)], FAINT))?;
    Ok(())
}

fn measure(case: Case) -> Measure {
    match case {
        Case::Singles(_) | Case::RedisSingles(_) => Measure {
            unit: "thousand gets per second",
            better: "more is better",
            of: |figures| figures.per_second / 1e3,
        },
        Case::Neighbour(_) => Measure {
            unit: "p99 of the single gets in microseconds",
            better: "less is better",
            of: |figures| figures.p99,
        },
        Case::Stopped(_) => Measure {
            unit: "p99 in microseconds per call",
            better: "less is better",
            of: |figures| figures.p99,
        },
        Case::Bulk(_)
        | Case::Accessor(_)
        | Case::Fill(_)
        | Case::Delete(_)
        | Case::Pool(_)
        | Case::RedisBulk(_)
        | Case::RedisCluster(_) => Measure {
            unit: "microseconds per call",
            better: "less is better",
            of: |figures| figures.p50,
        },
    }
}

fn bar(root: &Area<'_>, row: &Row, value: f64, top: i32, scale: &Scale) -> Result<()> {
    let middle = top + STEP / 2;
    let (upper, lower) = (middle - BAR / 2, middle + BAR / 2);
    let end = scale.x(value);
    let (color, style) = match row.side {
        Side::Raw => (RAW, FontStyle::Normal),
        Side::Larder => (LARDER, FontStyle::Bold),
        Side::Peer => (PEER, FontStyle::Normal),
    };
    text(
        root,
        row.subject,
        (LEFT - 12, middle),
        14,
        INK,
        HPos::Right,
        style,
    )?;
    root.draw(&Rectangle::new(
        [(LEFT, upper), (end, lower)],
        color.filled(),
    ))?;
    if value > scale.end {
        // A bar too long for the picture is broken, so that the others stay readable.
        for x in [end - 26, end - 18] {
            let stroke = [
                (x, lower + 1),
                (x + 6, upper - 1),
                (x + 10, upper - 1),
                (x + 4, lower + 1),
            ];
            root.draw(&Polygon::new(stroke, WHITE.filled()))?;
        }
    }
    text(
        root,
        &number(value),
        (end + 8, middle),
        13,
        INK,
        HPos::Left,
        style,
    )
}

/// From figures to pixels.
struct Scale {
    /// The largest figure that is drawn in proportion.
    end: f64,
    /// From one grid line to the next.
    step: f64,
}

impl Scale {
    /// A scale on which most of these have room; what is far beyond the rest has not.
    fn over(values: &[f64]) -> Self {
        /// So much longer than the median is far beyond.
        const FAR: f64 = 5.0;
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0);
        let near = sorted.into_iter().filter(|value| *value <= FAR * median);
        let largest = near.fold(f64::MIN_POSITIVE, f64::max);
        let rough = largest / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * power);
        let step = steps
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        Self { end: largest, step }
    }

    fn x(&self, value: f64) -> i32 {
        let room = f64::from(WIDTH as i32 - LEFT - RIGHT);
        LEFT + (value.min(self.end) / self.end * room).round() as i32
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = (self.end / self.step + 1e-9).floor() as u32;
        (0..=count).map(|tick| f64::from(tick) * self.step)
    }
}

fn text(
    root: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    color: RGBColor,
    anchor: HPos,
    style: FontStyle,
) -> Result<()> {
    let style = TextStyle::from(("Helvetica, Arial, sans-serif", size, style).into_font())
        .color(&color)
        .pos(Pos::new(anchor, VPos::Center));
    root.draw(&Text::new(text, at, style))?;
    Ok(())
}

/// Three digits or more, thousands apart.
fn number(value: f64) -> String {
    let text = match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    };
    match text.len() {
        4.. if !text.contains('.') => {
            let (thousands, rest) = text.split_at(text.len() - 3);
            format!("{thousands}\u{202f}{rest}")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_figures_dont_squeeze_the_others() {
        let scale = Scale::over(&[900.0, 1_000.0, 2_400.0, 80_000.0]);
        assert_eq!((scale.end, scale.step), (2_400.0, 500.0));
        assert_eq!(scale.x(80_000.0), scale.x(2_400.0));
        assert_eq!(scale.ticks().count(), 5);
    }

    #[test]
    fn numbers_are_short_and_readable() {
        let numbers = [0.0, 3.25, 42.4, 999.6, 12_345.0].map(number);
        assert_eq!(numbers, ["0", "3.2", "42", "1\u{202f}000", "12\u{202f}345"]);
    }
}
