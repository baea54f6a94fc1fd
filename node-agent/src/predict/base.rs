//! Base models: what a run needs by one simple rule, from the runs before it. None is safe alone; which one to
//! trust, and how far above it to reserve, is decided by cost (see [`super::learner`]).

use super::learner::{DECAY, RING_MAX};
use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

/// Neighbours of which the median is taken.
const NEIGHBOURS: usize = 5;
/// A line never leaves `LOWEST × smallest … HIGHEST × largest` of what was seen.
const LOWEST: f64 = 0.7;
const HIGHEST: f64 = 2.0;

/// A past run as the models see it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// What it took.
    pub(super) y: f64,
    /// What was known before it ran.
    pub(super) known: Known,
}

/// What is known of a run before it starts, by the places that the task's columns have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Known {
    /// Numbers and their logarithms; NaN where not known.
    x: Vec<(f64, f64)>,
    /// Categories; `None` where not known.
    words: Vec<Option<Arc<str>>>,
}

impl Known {
    pub(super) fn new(x: impl IntoIterator<Item = f64>, words: Vec<Option<Arc<str>>>) -> Self {
        Self { x: x.into_iter().map(|x| (x, logarithm(x))).collect(), words }
    }

    fn number(&self, place: usize) -> Option<f64> {
        self.x.get(place).map(|(x, _)| *x).filter(|x| x.is_finite())
    }

    /// Logarithm of the number at `place`.
    pub(super) fn log(&self, place: usize) -> Option<f64> {
        self.number(place).map(|_| self.x[place].1)
    }

    fn word(&self, place: usize) -> Option<&str> {
        self.words.get(place)?.as_deref()
    }

    /// Whether what `base` looks at is known.
    pub(super) fn serves(&self, base: Base) -> bool {
        match base {
            Base::Median => true,
            Base::Line(place) | Base::Power(place) | Base::Nearest(place) => self.number(place).is_some(),
            Base::SameWord(place) => self.word(place).is_some(),
        }
    }
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// Decayed median of the runs before.
    Median,
    /// A line over the feature of this place, by least squares.
    Line(usize),
    /// A power law over it: a line over logarithms.
    Power(usize),
    /// Median of the runs nearest to it in the logarithm.
    Nearest(usize),
    /// Median of runs with the same word in the category of this place.
    SameWord(usize),
}

/// Decayed sums of a least-squares line.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    w: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Sums {
    fn add(&mut self, x: f64, y: f64) {
        for sum in [&mut self.w, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy] {
            *sum *= DECAY;
        }
        self.w += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.xy += x * y;
    }

    /// The line at `x`; the mean where all x are one.
    fn at(&self, x: f64) -> Option<f64> {
        if self.w <= 0.0 {
            return None;
        }
        let (mean_x, mean_y) = (self.x / self.w, self.y / self.w);
        let spread = self.xx / self.w - mean_x * mean_x;
        if spread <= 1e-12 * (1.0 + mean_x * mean_x) {
            return Some(mean_y);
        }
        let slope = (self.xy / self.w - mean_x * mean_y) / spread;
        Some(mean_y + slope * (x - mean_x))
    }
}

/// The runs so far and what the models keep of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    rows: VecDeque<Row>,
    /// Number of the first row.
    first: u64,
    lines: Vec<Sums>,
    powers: Vec<Sums>,
    /// What was taken and by which run, by size.
    sorted: Vec<(f64, u64)>,
    median: f64,
    least: f64,
    most: f64,
}

impl Past {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// What it takes in memory, bytes; words that runs share count once per run, as what points to them does.
    pub(super) fn bytes(&self) -> usize {
        let known = |known: &Known| {
            known.x.capacity() * size_of::<(f64, f64)>()
                + known.words.capacity() * size_of::<Option<Arc<str>>>()
        };
        self.rows.capacity() * size_of::<Row>()
            + self.rows.iter().map(|row| known(&row.known)).sum::<usize>()
            + (self.lines.capacity() + self.powers.capacity()) * size_of::<Sums>()
            + self.sorted.capacity() * size_of::<(f64, u64)>()
    }

    /// Largest value of those kept.
    pub(super) fn most(&self) -> f64 {
        self.most
    }

    /// Number of the run that comes next.
    pub(super) fn next_number(&self) -> u64 {
        self.first + self.rows.len() as u64
    }

    /// The run of this number, if it is kept.
    pub(super) fn row(&self, number: u64) -> Option<&Row> {
        self.rows.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn push(&mut self, row: Row) {
        self.lines.resize(row.known.x.len().max(self.lines.len()), Sums::default());
        self.powers.resize(self.lines.len(), Sums::default());
        for (place, (x, log)) in row.known.x.iter().enumerate().filter(|(_, (x, _))| x.is_finite()) {
            self.lines[place].add(*x, row.y);
            self.powers[place].add(*log, row.y.max(TINY).ln());
        }
        if self.rows.len() >= RING_MAX {
            self.rows.pop_front();
            self.first += 1;
        }
        self.rows.push_back(row);
        self.keep_sorted();
    }

    /// Takes the newest row into the sorted values, and one that is no longer kept out.
    fn keep_sorted(&mut self) {
        let first = self.first;
        if self.sorted.len() >= RING_MAX {
            self.sorted.retain(|(_, number)| *number >= first);
        }
        let newest = self.next_number() - 1;
        let Some(y) = self.rows.back().map(|row| row.y) else { return };
        let place = self.sorted.partition_point(|(other, _)| *other < y);
        self.sorted.insert(place, (y, newest));
        let weight = |number: u64| POWERS_OF_DECAY[usize::try_from(newest - number).unwrap_or(RING_MAX - 1)];
        self.median = median(self.sorted.iter().map(|(y, number)| (*y, weight(*number))));
        self.least = self.sorted.first().map_or(0.0, |(y, _)| *y);
        self.most = self.sorted.last().map_or(0.0, |(y, _)| *y);
    }

    /// What `base` says for a run of which this is known; the median where it can't say.
    pub(super) fn value(&self, base: Base, known: &Known) -> f64 {
        let value = match base {
            Base::Median => None,
            Base::Line(place) => known.number(place).and_then(|x| self.lines.get(place)?.at(x)),
            Base::Power(place) => {
                known.log(place).and_then(|x| self.powers.get(place)?.at(x)).map(|log| log.min(100.0).exp())
            }
            Base::Nearest(place) => known.log(place).and_then(|x| self.nearest(place, x)),
            Base::SameWord(place) => known.word(place).and_then(|word| self.same_word(place, word)),
        };
        let value = value.filter(|value| value.is_finite()).unwrap_or(self.median);
        value.clamp(self.least * LOWEST, (self.most * HIGHEST).max(self.least * LOWEST)).max(TINY)
    }

    fn nearest(&self, place: usize, x: f64) -> Option<f64> {
        let mut nearest = [(f64::INFINITY, 0.0_f64); NEIGHBOURS];
        let mut count = 0;
        for row in &self.rows {
            let Some(other) = row.known.log(place) else { continue };
            let distance = (other - x).abs();
            count += 1;
            // Of equally near ones the newest count.
            let Some(slot) = nearest.iter().position(|(known, _)| distance <= *known) else { continue };
            nearest[slot..].rotate_right(1);
            nearest[slot] = (distance, row.y);
        }
        let count = count.min(NEIGHBOURS);
        let nearest = &mut nearest[..count];
        nearest.sort_by(|a, b| a.1.total_cmp(&b.1));
        (count > 0).then(|| median(nearest.iter().map(|(_, y)| (*y, 1.0))))
    }

    fn same_word(&self, place: usize, word: &str) -> Option<f64> {
        let newest = self.next_number().checked_sub(1)?;
        let same = self
            .sorted
            .iter()
            .filter(|(_, number)| self.row(*number).is_some_and(|row| row.known.word(place) == Some(word)));
        same.clone().next()?;
        let weight = |number: u64| POWERS_OF_DECAY[usize::try_from(newest - number).unwrap_or(RING_MAX - 1)];
        Some(median(same.map(|(y, number)| (*y, weight(*number)))))
    }
}

/// Below this a value counts as this: logarithms and ratios need more than zero.
pub(super) const TINY: f64 = 1e-6;

fn logarithm(x: f64) -> f64 {
    x.max(1.0).ln()
}

/// What a run counts by its age in runs.
pub(super) static POWERS_OF_DECAY: LazyLock<[f64; RING_MAX]> = LazyLock::new(|| {
    let mut weight = 1.0 / DECAY;
    [(); RING_MAX].map(|()| {
        weight *= DECAY;
        weight
    })
});

/// Median of sorted values with weights: between two of them where the halves are equal. 0 for none.
fn median(sorted: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let half = sorted.clone().map(|(_, weight)| weight).sum::<f64>() / 2.0;
    let mut sum = 0.0;
    let mut rest = sorted.peekable();
    while let Some((y, weight)) = rest.next() {
        sum += weight;
        if sum > half * (1.0 + 1e-9) {
            return y;
        }
        if sum >= half * (1.0 - 1e-9) {
            return rest.peek().map_or(y, |(next, _)| (y + next) / 2.0);
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(points: &[(f64, f64)]) -> Past {
        let mut past = Past::default();
        points.iter().for_each(|(x, y)| past.push(Row { y: *y, known: Known::new([*x], vec![]) }));
        past
    }

    fn at(past: &Past, base: Base, x: f64) -> f64 {
        past.value(base, &Known::new([x], vec![]))
    }

    #[test]
    fn a_line_finds_a_line_and_a_power_a_power() {
        let line: Vec<_> = (1..20).map(|n| (f64::from(n), 5.0 + 3.0 * f64::from(n))).collect();
        assert!((at(&past(&line), Base::Line(0), 10.5) - 36.5).abs() < 1e-6);
        let power: Vec<_> = (1..20).map(|n| (f64::from(n), 2.0 * f64::from(n).powi(2))).collect();
        assert!((at(&past(&power), Base::Power(0), 10.0) - 200.0).abs() < 1e-6);
    }

    #[test]
    fn no_line_leaves_what_was_seen_by_far() {
        let past = past(&[(1.0, 100.0), (2.0, 200.0)]);
        assert_eq!(at(&past, Base::Line(0), 1e12), 400.0);
        assert_eq!(at(&past, Base::Line(0), -1e12), 70.0);
        assert_eq!(at(&past, Base::Line(0), f64::NAN), at(&past, Base::Median, 0.0));
    }

    #[test]
    fn the_nearest_are_asked() {
        let mut points = vec![(1e3, 10.0); 5];
        points.extend(vec![(1e9, 90.0); 5]);
        assert_eq!(at(&past(&points), Base::Nearest(0), 2e3), 10.0);
        assert_eq!(at(&past(&points), Base::Nearest(0), 5e8), 90.0);
    }

    #[test]
    fn rows_are_found_by_number_while_kept() {
        let past = past(&vec![(1.0, 1.0); RING_MAX + 3]);
        assert_eq!((past.len(), past.next_number()), (RING_MAX, RING_MAX as u64 + 3));
        assert!(past.row(2).is_none() && past.row(3).is_some());
    }
}
