//! What may still grow after the warm-up: the mean of the last quarter of the looks against that of the first. Slopes
//! are those of a straight line through all of them (least squares).

use crate::sample::{MEASURES, Sample};
use std::fmt;

/// How much each of [`MEASURES`] may grow: in its own unit, or as a share of what it was, whichever is more.
const ALLOWED: [(f64, f64); MEASURES.len()] = [
    (2048.0, 0.05),
    (8.0, 0.0),
    (2.0, 0.0),
    (4.0, 0.0),
    (1024.0, 0.05),
    (8.0, 0.0),
    (2.0, 0.0),
    (4.0, 0.0),
    (4.0, 0.0),
    (8.0, 0.0),
    (1024.0, 0.05),
];

struct Line {
    name: &'static str,
    first: f64,
    last: f64,
    per_hour: f64,
    allowed: f64,
}

impl Line {
    fn is_bounded(&self) -> bool {
        self.last - self.first <= self.allowed
    }
}

/// See the head of this file.
pub(crate) struct Verdict(Vec<Line>);

impl Verdict {
    pub(crate) fn of(samples: &[Sample]) -> Self {
        let quarter = (samples.len() / 4).max(1);
        let line = |index: usize| {
            let mean = |part: &[Sample]| {
                part.iter().map(|sample| sample.values[index]).sum::<f64>() / part.len().max(1) as f64
            };
            let first = mean(&samples[..quarter.min(samples.len())]);
            let last = mean(&samples[samples.len().saturating_sub(quarter)..]);
            let (more, share) = ALLOWED[index];
            let points = samples.iter().map(|sample| (sample.at_s / 3600.0, sample.values[index]));
            let (per_hour, allowed) = (slope(&points.collect::<Vec<_>>()), more.max(first * share));
            Line { name: MEASURES[index], first, last, per_hour, allowed }
        };
        Self((0..MEASURES.len()).map(line).collect())
    }

    pub(crate) fn is_bounded(&self) -> bool {
        self.0.iter().all(Line::is_bounded)
    }
}

fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (mean_x, mean_y) = (
        points.iter().map(|point| point.0).sum::<f64>() / count,
        points.iter().map(|point| point.1).sum::<f64>() / count,
    );
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let both: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    if spread > 0.0 { both / spread } else { 0.0 }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<30}{:>12}{:>12}{:>14}{:>12}", "", "first", "last", "slope / h", "may grow")?;
        for line in &self.0 {
            let Line { name, first, last, per_hour, allowed } = line;
            let verdict = if line.is_bounded() { "" } else { "  GROWS" };
            writeln!(f, "{name:<30}{first:>12.1}{last:>12.1}{per_hour:>14.1}{allowed:>12.1}{verdict}")?;
        }
        Ok(())
    }
}
