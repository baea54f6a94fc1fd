//! The engine, for one resource of one kind of task: several base models, each with the multiplier that would have
//! cost least on its own past errors, and of them the one that then would have cost least.
//!
//! - **Errors** are one step ahead: the ratio of what a run took to what a model had said before it. So a model
//!   that fits the past only after the fact gains nothing.
//! - **Cost** is what the user loses: unit × time reserved in vain, failed attempts included. Choosing among
//!   forecasters by decayed cost is what Autopilot does for services (Rzadca et al., EuroSys 2020, §3.2.3).
//! - **Weights**: a run counts [`DECAY`] of the run after it, and more the nearer its main feature is to that of
//!   the run at hand ([`LOCALITY`]): errors for small inputs say little about large ones.
//! - **Drift**: where the newest errors all lie beyond nearly all before them, the task has changed, and what was before
//!   counts [`BEFORE_CHANGE`].
//! - **Few runs** understate their own spread, so the multiplier has a margin of [`SPREAD_MARGIN`] standard
//!   deviations of the logarithms of the errors, divided by their number; the deviation is drawn towards
//!   [`SPREAD_PRIOR`].
//!
//! Nothing but rows is kept that could not be worked out from them again: a state is rebuilt by pushing them.

use super::base::{Base, Known, POWERS_OF_DECAY, Past, Row, TINY};
use super::residual::{self, LADDER_LEAST, Price, Residuals, Running, Weighted};

/// Most runs kept per task and resource.
pub const RING_MAX: usize = 256;
/// Weight of a run relative to the run after it.
pub const DECAY: f64 = 0.99;
/// Always added to a multiplier.
pub const MARGIN: f64 = 1.02;
/// See the head of this file.
pub const SPREAD_MARGIN: f64 = 3.5;
/// What the spread of errors is taken to be before there are any, in logarithms.
pub const SPREAD_PRIOR: f64 = 0.25;
/// How many runs that counts for.
pub const SPREAD_PRIOR_RUNS: f64 = 2.0;
/// The same for bounds that kill nothing.
pub const BOUND_SPREAD_PRIOR: f64 = 0.25;
/// See [`SPREAD_PRIOR_RUNS`].
pub const BOUND_PRIOR_RUNS: f64 = 2.0;
/// How many runs the model's own word counts for when it is corrected by the median of its errors.
pub const CORRECTION_PRIOR_RUNS: f64 = 2.0;
/// Largest logarithm of the spread's margin.
const SPREAD_MARGIN_MAX: f64 = 0.7;
/// Multiplier after one run, when there is no error to learn from.
pub const COLD: f64 = 3.0;
/// Difference in the logarithm of the main feature at which a run counts half.
pub const LOCALITY: f64 = 0.25;
/// What the farthest run still counts.
pub const FAR_WEIGHT: f64 = 0.005;
/// What a run from before a change of behaviour still counts.
pub const BEFORE_CHANGE: f64 = 0.02;
/// A lower bound (a run that met its limit) counts as this much more.
pub const CENSORED: f64 = 1.25;

/// What is optimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// A reservation whose excess is wasted and whose failure costs the attempt, and `per_failure` times need × time.
    Reserve {
        /// The user's dial between waste and kills.
        per_failure: f64,
    },
    /// A limit that grows in place by a factor while the task runs.
    Grow {
        /// The factor.
        step: f64,
        /// Price of one step, as a share of need × time.
        per_step: f64,
    },
    /// A quantile, with errors drawn towards none ([`CORRECTION_PRIOR_RUNS`]).
    Quantile(f64),
}

/// What a model would reserve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which model.
    pub base: Base,
    /// What it says the run needs.
    pub value: f64,
    /// What that is multiplied with.
    pub multiplier: f64,
    /// Expected cost of that for a run like this, by the past: unit × seconds.
    pub cost: f64,
    /// Share of past runs that it would have failed.
    pub failed_share: f64,
}

impl Candidate {
    /// What would be reserved.
    pub fn amount(&self) -> f64 {
        self.value * self.multiplier
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub(super) struct Learner {
    past: Past,
    models: Vec<(Base, Residuals)>,
    /// Place of the feature by which runs are near or far.
    main: Option<usize>,
}

impl Learner {
    pub(super) fn new(bases: &[Base], main: Option<usize>) -> Self {
        let models = bases.iter().map(|base| (*base, Residuals::default())).collect();
        Self { past: Past::default(), models, main }
    }

    pub(super) fn past(&self) -> &Past {
        &self.past
    }

    /// What it takes in memory, bytes.
    pub(super) fn bytes(&self) -> usize {
        let models = self.models.iter().map(|(_, residuals)| residuals.bytes()).sum::<usize>();
        self.past.bytes() + models + self.models.capacity() * size_of::<(Base, Residuals)>()
    }

    /// Takes in what a run took, `seconds` long.
    pub(super) fn push(&mut self, row: Row, seconds: f64) {
        let number = self.past.next_number();
        if self.past.len() > 0 {
            for (base, residuals) in &mut self.models {
                let value = self.past.value(*base, &row.known);
                residuals.push(number, row.y.max(TINY) / value, value * seconds);
            }
        }
        self.past.push(row);
    }

    /// What each model would reserve for a run, the cheapest first. `bounds` are what runs had when they met their
    /// limit that have not ended well since. Empty without history.
    pub(super) fn candidates(&self, known: &Known, bounds: &[f64], objective: Objective) -> Vec<Candidate> {
        if self.past.len() == 0 {
            return Vec::new();
        }
        let weights = self.weights(known);
        let mut all: Vec<_> = self
            .models
            .iter()
            .filter(|(base, _)| known.serves(*base))
            .map(|(base, residuals)| {
                let value = self.past.value(*base, known);
                let mut sorted = self.weighted(residuals, &weights);
                if !bounds.is_empty() {
                    residual::add_bounds(&mut sorted, bounds.iter().map(|bound| bound * CENSORED / value));
                }
                candidate(*base, value, &sorted, objective, residuals.changed_at().is_some())
            })
            .collect();
        // Stable: of equals the simpler model, which comes first.
        all.sort_by(|a, b| a.cost.total_cmp(&b.cost));
        all
    }

    /// Factor on `base`'s value that stays above with probability `share`. `running` are lower bounds: what runs have
    /// come to that have not ended, and what is known of them.
    pub(super) fn upper_factor(
        &self,
        base: Base,
        known: &Known,
        running: &[(Known, f64)],
        share: f64,
    ) -> Option<f64> {
        let (_, residuals) = self.models.iter().find(|(model, _)| *model == base)?;
        let sorted = self.weighted(residuals, &self.weights(known));
        let spread = residual::spread(&sorted, BOUND_SPREAD_PRIOR, BOUND_PRIOR_RUNS);
        let mut running: Vec<_> = running
            .iter()
            .map(|(theirs, y)| Running {
                ratio: y / self.past.value(base, theirs),
                weight: self.nearness(known, theirs),
            })
            .collect();
        residual::bound(&sorted, &mut running, share, spread)
    }

    /// What to reserve after `failed` did not do: the smallest of what would have sufficed for every run before and
    /// the largest need seen that is worth a retry, at least doubled.
    pub(super) fn ladder(&self, base: Base, value: f64, failed: f64, bounds: &[f64]) -> f64 {
        let largest = self.models.iter().find(|(model, _)| *model == base).and_then(|(_, r)| r.largest());
        let by_bound = bounds.iter().copied().reduce(f64::max).map(|bound| bound * CENSORED);
        let next =
            [largest.map(|largest| value * largest * MARGIN), Some(self.past.most() * MARGIN), by_bound]
                .into_iter()
                .flatten()
                .filter(|amount| *amount >= failed * WORTH_A_RETRY)
                .fold(f64::INFINITY, f64::min);
        if next.is_finite() { next.max(failed * LADDER_LEAST) } else { failed * LADDER_LEAST }
    }

    /// Weight of each kept run for the run at hand, by number from `first`.
    fn weights(&self, known: &Known) -> Vec<f64> {
        let next = self.past.next_number();
        let first = next - self.past.len() as u64;
        (first..next)
            .map(|number| {
                let near = self.past.row(number).map_or(1.0, |row| self.nearness(known, &row.known));
                near * POWERS_OF_DECAY[usize::try_from(next - 1 - number).unwrap_or(RING_MAX - 1)]
            })
            .collect()
    }

    /// How much one run says about another by their main feature: 1 where that is not known.
    fn nearness(&self, one: &Known, other: &Known) -> f64 {
        let log = |known: &Known| self.main.and_then(|place| known.log(place));
        let (Some(here), Some(there)) = (log(one), log(other)) else { return 1.0 };
        let distance = (here - there) / LOCALITY;
        FAR_WEIGHT + (1.0 - FAR_WEIGHT) / (1.0 + distance * distance)
    }

    fn weighted(&self, residuals: &Residuals, weights: &[f64]) -> Vec<Weighted> {
        let first = self.past.next_number() - self.past.len() as u64;
        let changed_at = residuals.changed_at().unwrap_or(0);
        residuals.weighted(|number| {
            let before_change = if number < changed_at { BEFORE_CHANGE } else { 1.0 };
            let place = number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
            place.and_then(|place| weights.get(place)).map_or(0.0, |weight| weight * before_change)
        })
    }
}

/// A largest need is worth a retry from this times what failed.
const WORTH_A_RETRY: f64 = 1.05;

fn candidate(base: Base, value: f64, sorted: &[Weighted], objective: Objective, changed: bool) -> Candidate {
    let margin = || {
        let spread = residual::spread(sorted, SPREAD_PRIOR, SPREAD_PRIOR_RUNS);
        let count = sorted.len().max(1) as f64;
        MARGIN * (SPREAD_MARGIN * spread / count).min(SPREAD_MARGIN_MAX).exp()
    };
    let choice = match objective {
        Objective::Reserve { per_failure } => {
            residual::cheapest(sorted, Price::Kill { per_failure }, margin())
        }
        Objective::Grow { step, per_step } => residual::cheapest(sorted, Price::Grow { step, per_step }, 1.0),
        Objective::Quantile(quantile) => {
            // After a change it is known that the model's own word does not hold.
            let prior_runs = if changed { 0.0 } else { CORRECTION_PRIOR_RUNS };
            residual::cheapest_drawn_to_one(sorted, Price::Pinball { quantile }, prior_runs)
        }
    };
    let cold = if matches!(objective, Objective::Quantile(_)) { 1.0 } else { COLD };
    let total: f64 = sorted.iter().map(|w| w.weight).sum();
    Candidate {
        base,
        value,
        multiplier: choice.map_or(cold, |choice| choice.multiplier),
        cost: choice.map_or(0.0, |choice| if total > 0.0 { choice.cost / total } else { 0.0 }),
        failed_share: choice.map_or(0.0, |choice| choice.share_above),
    }
}
