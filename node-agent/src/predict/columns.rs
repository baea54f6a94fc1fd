//! Which features of a task are looked at: out of all that its runs had, the few that its needs go with.
//!
//! A number counts by the correlation of its logarithm with that of the need; a category if it splits the runs
//! into groups of some size. Everything else is left out before the models see it, so that what a prediction
//! costs is bounded, and a feature that never varies costs nothing.

use super::base::{Base, Known};
use crate::fingerprint::key::{Feature, FeatureValue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most numbers looked at.
pub const NUMBERS_MAX: usize = 3;
/// Most categories looked at.
pub const WORDS_MAX: usize = 2;
/// Runs from which the hour of the day is a category.
const HOURS_FROM_RUNS: usize = 48;
/// Most features of a run that are looked through.
const FEATURES_MAX: usize = 64;

/// The columns of one resource of one task, most telling first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// Names of numbers, and how far their logarithm and that of the need go together: −1 to 1.
    pub numbers: Vec<(String, f64)>,
    /// Names of categories.
    pub words: Vec<String>,
}

/// Sums for a correlation of logarithms.
#[derive(Default)]
struct Together {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

impl Together {
    fn add(&mut self, x: f64, y: f64) {
        self.n += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.yy += y * y;
        self.xy += x * y;
    }

    /// Pearson's; `None` where the x never vary. 0 where the y do not.
    fn correlation(&self) -> Option<f64> {
        let vx = self.xx - self.x * self.x / self.n;
        let vy = self.yy - self.y * self.y / self.n;
        if vx <= 1e-9 * (1.0 + self.xx) {
            return None;
        }
        let r = (self.xy - self.x * self.y / self.n) / (vx * vy).sqrt();
        Some(if r.is_finite() { r.clamp(-1.0, 1.0) } else { 0.0 })
    }
}

impl Columns {
    /// Chooses from runs: their features and needs.
    pub(super) fn choose<'a>(runs: impl Iterator<Item = (&'a [Feature], f64)>) -> Self {
        let mut numbers: BTreeMap<&str, Together> = BTreeMap::new();
        let mut words: BTreeMap<&str, BTreeSet<Arc<str>>> = BTreeMap::new();
        let mut count = 0;
        for (features, y) in runs {
            count += 1;
            for feature in features.iter().take(FEATURES_MAX) {
                if let Some(word) = word(feature) {
                    words.entry(&feature.name).or_default().insert(word);
                } else if let FeatureValue::Number(x) = &feature.value
                    && x.is_finite()
                {
                    numbers.entry(&feature.name).or_default().add(x.max(1.0).ln(), y.max(1e-6).ln());
                }
            }
        }
        let mut numbers: Vec<_> = numbers
            .into_iter()
            .filter_map(|(name, together)| Some((name.to_owned(), together.correlation()?)))
            .collect();
        numbers.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        numbers.truncate(NUMBERS_MAX);
        let splits = |name: &str, groups: usize| {
            groups > 1 && groups * 3 <= count && (name != HOUR || count >= HOURS_FROM_RUNS)
        };
        let words = words.into_iter().filter(|(name, groups)| splits(name, groups.len()));
        let words = words.map(|(name, _)| name.to_owned()).take(WORDS_MAX).collect();
        Self { numbers, words }
    }

    /// The models that these columns allow, the simplest first.
    pub(super) fn bases(&self) -> Vec<Base> {
        let of_number = |place| [Base::Line(place), Base::Power(place), Base::Nearest(place)];
        std::iter::once(Base::Median)
            .chain((0..self.words.len()).map(Base::SameWord))
            .chain((0..self.numbers.len()).flat_map(of_number))
            .collect()
    }

    /// What they take in memory, bytes.
    pub(super) fn bytes(&self) -> usize {
        let names = self.numbers.iter().map(|(name, _)| name).chain(&self.words);
        self.numbers.capacity() * size_of::<(String, f64)>()
            + self.words.capacity() * size_of::<String>()
            + names.map(String::capacity).sum::<usize>()
    }

    /// The number by which runs are near or far.
    pub(super) fn main(&self) -> Option<usize> {
        self.numbers.first().map(|_| 0)
    }

    /// What is known of a run, in the order of the columns.
    pub(super) fn known(&self, features: &[Feature]) -> Known {
        let features = &features[..features.len().min(FEATURES_MAX)];
        let find = |name: &str| features.iter().find(|feature| feature.name == name);
        let numbers = self.numbers.iter().map(|(name, _)| match find(name).map(|feature| &feature.value) {
            Some(FeatureValue::Number(x)) if *x >= 0.0 => *x,
            _ => f64::NAN,
        });
        let words = self.words.iter().map(|name| find(name).and_then(word)).collect();
        Known::new(numbers, words)
    }

    /// The feature that a model looks at.
    pub fn name(&self, base: Base) -> Option<&str> {
        match base {
            Base::Median => None,
            Base::Line(place) | Base::Power(place) | Base::Nearest(place) => {
                self.numbers.get(place).map(|(name, _)| name.as_str())
            }
            Base::SameWord(place) => self.words.get(place).map(String::as_str),
        }
    }
}

/// Of this one the hour of the day is the category.
const HOUR: &str = "hour_of_week";

fn word(feature: &Feature) -> Option<Arc<str>> {
    match &feature.value {
        FeatureValue::Category(word) => Some(Arc::from(word.as_str())),
        FeatureValue::Number(hour) if feature.name == HOUR => {
            Some(Arc::from(format!("{} h", hour.rem_euclid(24.0).floor()).as_str()))
        }
        FeatureValue::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str, x: f64) -> Feature {
        Feature { name: name.into(), value: FeatureValue::Number(x) }
    }

    #[test]
    fn what_goes_with_the_need_comes_first_and_what_never_varies_not_at_all() {
        let runs: Vec<_> = (1..40)
            .map(|n| {
                let x = f64::from(n);
                let mut features = vec![
                    number("noise", f64::from(n * 7 % 11)),
                    number("same", 5.0),
                    number("rows", x * 1e3),
                ];
                let host = Feature { name: "host".into(), value: FeatureValue::Category("h".into()) };
                features.push(host);
                (features, 100.0 + x * 50.0)
            })
            .collect();
        let columns = Columns::choose(runs.iter().map(|(features, y)| (features.as_slice(), *y)));
        assert_eq!(columns.numbers[0].0, "rows");
        assert!(columns.numbers[0].1 > 0.9);
        assert!(columns.numbers.iter().all(|(name, _)| name != "same"));
        assert!(columns.words.is_empty(), "one host tells nothing");
    }
}
