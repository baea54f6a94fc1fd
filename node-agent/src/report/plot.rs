//! Plots as SVG: axes with round ticks, bands, lines, dots, bars. In come numbers with their meaning, out goes one
//! `<svg>` that has a title and a description for those who can't see it, and takes its colours from the page.

use super::markup::escape;
use crate::printable::cut;
use crate::units::{format_bytes, format_count, format_duration, format_gb_hours, format_rate};
use std::fmt::Write;

/// Size of a plot over an axis of values, user units: half the width of the page.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 190.0;
/// Width of what has rows: all of the page.
const WIDE: f64 = 960.0;
/// Room for the axes.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Ticks of an axis, about.
const TICKS: f64 = 5.0;

/// What the numbers of an axis are, and so how they are written and rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    BytesPerS,
    Cores,
    Seconds,
    Count,
    GbHours,
    Percent,
}

impl Unit {
    pub(super) fn format(self, value: f64) -> String {
        match self {
            Self::Bytes => format_bytes(value),
            Self::BytesPerS => format_rate(value),
            Self::Cores => format!("{value:.2}"),
            Self::Seconds => format_duration(value),
            Self::Count => format_count(value.round() as u64),
            Self::GbHours => format_gb_hours(value),
            Self::Percent => format!("{value:.0} %"),
        }
    }

    /// What a round number is round in.
    fn scale(self, most: f64) -> f64 {
        let largest = |scales: &[f64]| scales.iter().copied().rfind(|scale| *scale <= most).unwrap_or(1.0);
        match self {
            Self::Bytes | Self::BytesPerS => {
                largest(&[1.0, 1024.0, 1_048_576.0, 1_073_741_824.0, 1_099_511_627_776.0])
            }
            Self::Seconds => largest(&[1e-9, 1e-6, 1e-3, 1.0, 60.0, 3600.0, 86_400.0]),
            _ => 1.0,
        }
    }

    /// Round values from 0 to at least `most`, evenly apart.
    fn ticks(self, most: f64) -> Vec<f64> {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let scale = self.scale(most);
        let rough = most / scale / TICKS;
        let power = 10_f64.powf(rough.log10().floor());
        let least = if self == Self::Count { 1.0 } else { 0.0 };
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power).max(least) * scale;
        let count = (most / step - 1e-9).ceil().clamp(1.0, 20.0) as u32;
        (0..=count).map(|place| f64::from(place) * step).collect()
    }
}

/// An axis of positions that have names: times, runs, edges of buckets.
pub(super) struct Across {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Across {
    /// Seconds from 0.
    pub(super) fn seconds(to: f64) -> Self {
        let ticks = Unit::Seconds.ticks(to).into_iter().filter(|tick| *tick <= to * 1.0001);
        Self { from: 0.0, to, ticks: ticks.map(|tick| (tick, format_duration(tick))).collect() }
    }
}

/// Something drawn. `class` names the colour (see `style.css`).
pub(super) enum Mark {
    /// Between two values at each place.
    Band(Vec<(f64, f64, f64)>),
    /// From point to point, or in steps.
    Line { class: &'static str, steps: bool, points: Vec<(f64, f64)> },
    /// Dots, each with a word for those who point at it.
    Dots { class: &'static str, points: Vec<(f64, f64, String)> },
    /// Crosses, likewise.
    Crosses { class: &'static str, points: Vec<(f64, f64, String)> },
    /// Columns from 0: left and right edge, height, a word.
    Columns { class: &'static str, columns: Vec<(f64, f64, f64, String)> },
}

/// A plot over one axis of values from 0.
pub(super) struct Plot<'a> {
    /// Unique on the page.
    pub(super) id: &'a str,
    /// What is drawn, as text.
    pub(super) title: &'a str,
    /// What there is to see, as text.
    pub(super) description: &'a str,
    pub(super) unit: Unit,
    pub(super) across: Across,
    pub(super) marks: Vec<Mark>,
}

impl Plot<'_> {
    /// The `<svg>`.
    pub(super) fn svg(&self) -> String {
        let ticks = self.unit.ticks(self.most());
        let top_value = ticks.last().copied().unwrap_or(1.0);
        let y = |value: f64| {
            let share = if value.is_finite() { (value / top_value).clamp(0.0, 1.0) } else { 0.0 };
            HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        };
        let mut svg = opening(self.id, self.title, self.description, WIDTH, HEIGHT);
        for tick in &ticks {
            let (at, label) = (y(*tick), escape(&self.unit.format(*tick)));
            let right = WIDTH - RIGHT;
            _ = write!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{label}</text>",
                LEFT - 8.0,
                at + 4.0
            );
        }
        svg += &x_ticks(&self.across, WIDTH, HEIGHT);
        for mark in &self.marks {
            self.draw(&mut svg, mark, &y);
        }
        svg + "</svg>\n"
    }

    fn most(&self) -> f64 {
        let values: Vec<f64> = self
            .marks
            .iter()
            .flat_map(|mark| -> Vec<f64> {
                match mark {
                    Mark::Band(points) => points.iter().map(|point| point.2).collect(),
                    Mark::Line { points, .. } => points.iter().map(|point| point.1).collect(),
                    Mark::Dots { points, .. } | Mark::Crosses { points, .. } => {
                        points.iter().map(|point| point.1).collect()
                    }
                    Mark::Columns { columns, .. } => columns.iter().map(|column| column.2).collect(),
                }
            })
            .collect();
        values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max)
    }

    fn draw(&self, svg: &mut String, mark: &Mark, y: &dyn Fn(f64) -> f64) {
        let x = |value: f64| place(&self.across, WIDTH, value);
        match mark {
            Mark::Band(points) => {
                let there = points.iter().map(|(at, _, high)| format!("{:.1},{:.1}", x(*at), y(*high)));
                let back = points.iter().rev().map(|(at, low, _)| format!("{:.1},{:.1}", x(*at), y(*low)));
                let points = there.chain(back).collect::<Vec<_>>().join(" ");
                _ = write!(svg, "<polygon class=\"band\" points=\"{points}\"/>");
            }
            Mark::Line { class, steps, points } => {
                let mut path = String::new();
                for (number, (at, value)) in points.iter().enumerate() {
                    _ = match (number, steps) {
                        (0, _) => write!(path, "M{:.1} {:.1}", x(*at), y(*value)),
                        (_, true) => write!(path, "H{:.1}V{:.1}", x(*at), y(*value)),
                        (_, false) => write!(path, "L{:.1} {:.1}", x(*at), y(*value)),
                    };
                }
                _ = write!(svg, "<path class=\"line {class}\" d=\"{path}\"/>");
            }
            Mark::Dots { class, points } => {
                for (at, value, word) in points {
                    let (x, y, word) = (x(*at), y(*value), escape(word));
                    _ = write!(
                        svg,
                        "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{word}</title></circle>"
                    );
                }
            }
            Mark::Crosses { class, points } => {
                for (at, value, word) in points {
                    _ = write!(svg, "{}", cross(class, x(*at), y(*value), word));
                }
            }
            Mark::Columns { class, columns } => {
                for (left, right, value, word) in columns {
                    let (left, right, top) = (x(*left) + 0.5, x(*right) - 0.5, y(*value));
                    let (width, height, word) =
                        ((right - left).max(0.5), HEIGHT - BOTTOM - top, escape(word));
                    _ = write!(
                        svg,
                        "<rect class=\"fill {class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" \
                         height=\"{height:.1}\"><title>{word}</title></rect>"
                    );
                }
            }
        }
    }
}

/// Where a value is across, inside the plot.
fn place(across: &Across, width: f64, value: f64) -> f64 {
    let span = across.to - across.from;
    let share = if span > 0.0 { (value - across.from) / span } else { 0.5 };
    LEFT + share.clamp(0.0, 1.0) * (width - LEFT - RIGHT)
}

fn opening(id: &str, title: &str, description: &str, width: f64, height: f64) -> String {
    let (id, title, description) = (escape(id), escape(title), escape(description));
    format!(
        "<svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {width} {height}\">\
         <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>"
    )
}

/// Width of a character of a label, about.
const CHARACTER: f64 = 6.6;

/// Ticks with their labels, as far as there is room for them.
fn x_ticks(across: &Across, width: f64, height: f64) -> String {
    let mut svg = String::new();
    let mut free_from = f64::NEG_INFINITY;
    for (at, label) in &across.ticks {
        let x = place(across, width, *at);
        let half = label.chars().count() as f64 * CHARACTER / 2.0;
        // Labels at the edges stay inside.
        let middle = x.clamp(LEFT.min(width - half), (width - half).max(half));
        let (top, base) = (height - BOTTOM, height - BOTTOM + 5.0);
        _ = write!(svg, "<path class=\"axis\" d=\"M{x:.1} {top}V{base}\"/>");
        if middle - half < free_from {
            continue;
        }
        free_from = middle + half + CHARACTER;
        _ = write!(
            svg,
            "<text class=\"tick\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            base + 14.0,
            escape(label)
        );
    }
    svg
}

fn cross(class: &str, x: f64, y: f64, word: &str) -> String {
    let word = escape(word);
    format!(
        "<path class=\"cross {class}\" d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\"><title>{word}</title></path>",
        x - 4.0,
        y - 4.0
    )
}

/// Columns of a name beside a timeline: what fits left of it in a wide font.
const NAME: usize = 10;

/// Height of a row of a timeline.
const ROW: f64 = 24.0;

/// Something on a timeline: from when to when, whether it ended badly, a word.
pub(super) struct Span {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) class: &'static str,
    pub(super) word: String,
}

/// A row of a timeline: spans, and moments as crosses.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) spans: Vec<Span>,
    pub(super) moments: Vec<(f64, String)>,
}

/// Rows over a common time.
pub(super) fn timeline(id: &str, title: &str, description: &str, across: &Across, rows: &[Row]) -> String {
    let height = TOP + BOTTOM + ROW * rows.len().max(1) as f64;
    let mut svg = opening(id, title, description, WIDE, height);
    svg += &x_ticks(across, WIDE, height);
    for (number, row) in rows.iter().enumerate() {
        let top = TOP + ROW * number as f64;
        let base = top + ROW - 4.0;
        let name = cut(&row.name, NAME);
        _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {base:.1}H{}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}<title>{}</title></text>",
            WIDE - RIGHT,
            LEFT - 8.0,
            base - 5.0,
            escape(&name),
            escape(&row.name)
        );
        for span in &row.spans {
            let (left, right) = (place(across, WIDE, span.from), place(across, WIDE, span.to));
            let width = (right - left).max(2.0);
            _ = write!(
                svg,
                "<rect class=\"fill {}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\">\
                 <title>{}</title></rect>",
                span.class,
                top + 9.0,
                ROW - 15.0,
                escape(&span.word)
            );
        }
        for (at, word) in &row.moments {
            svg += &cross("red", place(across, WIDE, *at), top + 4.0, word);
        }
    }
    svg + "</svg>\n"
}

/// Bars to the right, each of parts one behind the other: a name, its parts with their colours, what is written behind.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) parts: Vec<(&'static str, f64)>,
    pub(super) word: String,
}

/// Room for the names of bars.
const NAMES: f64 = 190.0;

/// Bars on one scale from 0.
pub(super) fn bars(id: &str, title: &str, description: &str, bars: &[Bar]) -> String {
    let height = TOP + ROW * bars.len() as f64 + 4.0;
    let most = bars.iter().map(|bar| bar.parts.iter().map(|part| part.1).sum::<f64>());
    let most = most.filter(|sum| sum.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let room = WIDE - NAMES - 110.0;
    let mut svg = opening(id, title, description, WIDE, height);
    for (number, bar) in bars.iter().enumerate() {
        let top = TOP + ROW * number as f64;
        let mut left = NAMES;
        _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            NAMES - 8.0,
            top + 14.0,
            escape(&bar.name)
        );
        for (class, value) in &bar.parts {
            let width = if value.is_finite() { value.max(0.0) / most * room } else { 0.0 };
            _ = write!(
                svg,
                "<rect class=\"fill {class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                top + 2.0,
                ROW - 8.0
            );
            left += width;
        }
        _ = write!(
            svg,
            "<text class=\"tick strong\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left + 6.0,
            top + 14.0,
            escape(&bar.word)
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_in_their_unit() {
        assert_eq!(Unit::Bytes.ticks(3.5 * 1_048_576.0).len(), 5);
        assert_eq!(Unit::Bytes.ticks(3.5 * 1_048_576.0)[1], 1_048_576.0);
        assert_eq!(Unit::Seconds.ticks(130.0)[1], 30.0);
        assert_eq!(Unit::Count.ticks(2.0), [0.0, 1.0, 2.0]);
        for most in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-12, 1e300] {
            let ticks = Unit::Cores.ticks(most);
            assert!((2..=21).contains(&ticks.len()) && ticks.iter().all(|tick| tick.is_finite()), "{most}");
        }
    }

    #[test]
    fn no_number_breaks_a_plot_and_no_text_leaves_it() {
        let hostile = "</title><script>alert(1)</script>";
        let numbers = [0.0, 1.0, f64::NAN, f64::INFINITY, -5.0, 1e300];
        let points = || numbers.iter().enumerate().map(|(i, value)| (i as f64, *value));
        let plot = Plot {
            id: "p",
            title: hostile,
            description: hostile,
            unit: Unit::Cores,
            across: Across { from: 0.0, to: 5.0, ticks: vec![(0.0, hostile.into())] },
            marks: vec![
                Mark::Band(points().map(|(x, y)| (x, 0.0, y)).collect()),
                Mark::Line { class: "blue", steps: true, points: points().collect() },
                Mark::Dots { class: "blue", points: points().map(|(x, y)| (x, y, hostile.into())).collect() },
                Mark::Crosses {
                    class: "red",
                    points: points().map(|(x, y)| (x, y, hostile.into())).collect(),
                },
                Mark::Columns {
                    class: "blue",
                    columns: points().map(|(x, y)| (x, x + 1.0, y, hostile.into())).collect(),
                },
            ],
        };
        let row = Row {
            name: hostile.into(),
            spans: vec![Span { from: 0.0, to: f64::NAN, class: "blue", word: hostile.into() }],
            moments: vec![(1.0, hostile.into())],
        };
        let bar = Bar { name: hostile.into(), parts: vec![("blue", f64::NAN)], word: hostile.into() };
        let across = Across { from: 0.0, to: 0.0, ticks: Vec::new() };
        let all = plot.svg()
            + &timeline("t", hostile, hostile, &across, &[row])
            + &bars("b", hostile, hostile, &[bar]);
        assert!(!all.contains("<script") && !all.contains("NaN") && !all.contains("inf"), "{all}");
        assert_eq!(all.matches("<svg").count(), all.matches("</svg>").count());
    }
}
