//! Why memory is sized as it is: every candidate with what it would cost, and which features were found to matter.

use super::base::Base;
use super::estimate::{self, MEMORY_EXTRA_BYTES, MEMORY_LEAST_BYTES};
use super::{History, Level, Resource};
use crate::fingerprint::character::Growth;
use crate::fingerprint::key::Feature;
use serde::Serialize;

/// A way of sizing the run at hand.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// The model, in words.
    pub model: String,
    /// Name of the feature that it looks at.
    pub feature: Option<String>,
    /// What it says the run needs, bytes.
    pub value_bytes: f64,
    /// What that is multiplied with.
    pub multiplier: f64,
    /// What it would reserve, bytes.
    pub reserved_bytes: f64,
    /// What that is expected to cost by the past, retries and the price of failures included, beyond what is
    /// used: GB·h (10^9 bytes).
    pub expected_waste_gbh: f64,
    /// Share of past runs that it would have failed.
    pub failed_share: f64,
    /// It is the one that was chosen.
    pub chosen: bool,
}

/// A feature that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureWeight {
    /// Its name.
    pub name: String,
    /// How far its logarithm and that of the need go together, −1 to 1; `None` for a category.
    pub correlation: Option<f64>,
    /// The chosen model looks at it.
    pub used: bool,
}

/// The reasons behind a reservation of memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Whose runs they come from.
    pub level: Level,
    /// How many.
    pub samples: usize,
    /// The cheapest first.
    pub candidates: Vec<Candidate>,
    /// The most telling first.
    pub features: Vec<FeatureWeight>,
}

impl Explanation {
    /// The number that memory goes with, where sizing looks at one.
    pub fn growth(&self) -> Option<Growth<'_>> {
        let used = self.features.iter().find(|feature| feature.used)?;
        Some(Growth { feature: &used.name, correlation: used.correlation?, runs: self.samples })
    }
}

/// Why the memory of a run with these features is sized as it is; `None` where no run of this task is known.
pub fn explain(history: &History, features: &[Feature]) -> Option<Explanation> {
    let evidence = estimate::evidence(history, Resource::MemoryPeakBytes)?;
    if evidence.level == Level::Host || evidence.samples() == 0 {
        return None;
    }
    let columns = &evidence.columns;
    let name = |base: Base| columns.name(base).map(str::to_owned);
    let reservations = evidence.reservations(features);
    let used = reservations.first().and_then(|best| name(best.base));
    let candidates = reservations.iter().enumerate().map(|(place, candidate)| Candidate {
        model: evidence.words(candidate.base),
        feature: name(candidate.base),
        value_bytes: candidate.value,
        multiplier: candidate.multiplier,
        reserved_bytes: (candidate.amount() + MEMORY_EXTRA_BYTES).max(MEMORY_LEAST_BYTES),
        expected_waste_gbh: candidate.cost / 3.6e12,
        failed_share: candidate.failed_share,
        chosen: place == 0,
    });
    let numbers = columns.numbers.iter().map(|(name, r)| (name.clone(), Some(*r)));
    let words = columns.words.iter().map(|name| (name.clone(), None));
    let weigh = |(name, correlation): (String, Option<f64>)| {
        let used = used.as_ref() == Some(&name);
        FeatureWeight { name, correlation, used }
    };
    Some(Explanation {
        level: evidence.level,
        samples: evidence.samples(),
        candidates: candidates.collect(),
        features: numbers.chain(words).map(weigh).collect(),
    })
}
