//! How bounds on this host turned out, and by how much the next ones have to be wider or narrower.
//!
//! Few runs of a task say little about what the next one may be wrong by; but how far the bounds of *other* tasks held,
//! with as few runs behind them, does. So the errors of all predictions made here are put on one scale, `z = ln(actual ÷
//! expected) ÷ ln(bound ÷ expected)`, where 1 is a run that met its bound, and the next bound goes where the conformal
//! quantile of these is. (Pooling scaled errors: normalised conformal prediction, Papadopoulos et al. 2002; following them
//! in the order of arrival: Gibbs and Candès 2021.)
//!
//! Runs that have not ended count as what they are at least. Without them bounds were too low whenever many tasks
//! start at once: those that end first are the short ones.

use super::residual::{Running, Weighted, bound};
use super::{Estimate, Level, Resource};
use serde::{Deserialize, Serialize};

/// Most outcomes that are looked at, of those that ended and of those that have not.
pub const OUTCOMES_MAX: usize = 256;
/// An outcome counts this much of the one after it.
const DECAY: f64 = 0.99;
/// Difference in the logarithm of the number of samples behind it at which an outcome counts half.
const LOCALITY: f64 = 0.7;
/// As if so many bounds had turned out as asked.
const PRIOR: f64 = 20.0;
/// What a bound's width is multiplied with at least and at most.
const NARROWEST: f64 = 0.2;
const WIDEST: f64 = 2.0;
/// Least and largest width of a bound, as a logarithm.
const WIDTH_MIN: f64 = 0.02;
const WIDTH_MAX: f64 = 5.0;
/// Scale of what lies above the largest `z`.
const TAIL: f64 = 0.25;

/// What became of one prediction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of what.
    pub resource: Resource,
    /// What was expected.
    pub expected: f64,
    /// `ln(bound ÷ expected)` before calibration.
    pub width: f64,
    /// Risk that was asked for.
    pub risk: f64,
    /// Runs behind it.
    pub samples: usize,
    /// What it was, or has come to.
    pub actual: f64,
    /// It has ended.
    pub ended: bool,
}

/// Resources whose bounds are calibrated: nothing is stopped at them, and what they were wrong by can be seen.
pub fn calibrates(resource: Resource) -> bool {
    matches!(resource, Resource::DurationS | Resource::CpuCoresMean)
}

impl Outcome {
    /// What a prediction has come to; `None` where it says nothing about bounds.
    pub fn of(estimate: &Estimate, actual: f64, ended: bool) -> Option<Self> {
        let width = estimate.width.filter(|_| estimate.level != Level::Host)?;
        let Estimate { resource, expected, risk, samples, .. } = *estimate;
        Some(Self { resource, expected, width, risk, samples, actual, ended })
    }

    /// The error in units of the width.
    fn z(&self) -> Option<f64> {
        let z = (self.actual / self.expected).ln() / self.width.clamp(WIDTH_MIN, WIDTH_MAX);
        (self.actual > 0.0 && self.expected > 0.0 && z.is_finite()).then_some(z.clamp(-Z_MAX, Z_MAX))
    }
}

/// Largest `z` that counts as such.
const Z_MAX: f64 = 50.0;

/// The width of a bound, as a logarithm; `None` where there is none to speak of.
pub(super) fn width(expected: f64, upper: f64) -> Option<f64> {
    let width = (upper / expected).ln();
    (expected > 0.0 && width.is_finite()).then_some(width.clamp(WIDTH_MIN, WIDTH_MAX))
}

/// What the width of a bound with `samples` runs behind it has to be multiplied with. `outcomes`, the newest first, may
/// be of any resource.
pub(super) fn factor(outcomes: &[Outcome], resource: Resource, samples: usize) -> f64 {
    let own = || outcomes.iter().filter(|outcome| outcome.resource == resource);
    let nearness = |outcome: &Outcome| {
        let distance = (outcome.samples.max(1) as f64 / samples.max(1) as f64).ln() / LOCALITY;
        1.0 / (1.0 + distance * distance)
    };
    let risks = own().map(|outcome| outcome.risk);
    let Some(risk) = risks.into_iter().find(|risk| (0.001..=0.5).contains(risk)) else { return 1.0 };
    let error = |z: f64, weight: f64| Weighted { ratio: z.exp(), log: z, price: weight, weight };
    let mut age = 1.0;
    let ended = own().filter(|outcome| outcome.ended).take(OUTCOMES_MAX).filter_map(|outcome| {
        age *= DECAY;
        Some(error(outcome.z()?, nearness(outcome) * age / DECAY))
    });
    let mut errors: Vec<_> = ended.collect();
    errors.extend([error(0.0, PRIOR * (1.0 - risk)), error(1.0, PRIOR * risk)]);
    errors.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    let unended = own().filter(|outcome| !outcome.ended).take(OUTCOMES_MAX);
    let mut running: Vec<_> = unended
        .filter_map(|outcome| Some(Running { ratio: outcome.z()?.exp(), weight: nearness(outcome) }))
        .collect();
    let z = bound(&errors, &mut running, 1.0 - risk, TAIL).map_or(1.0, f64::ln);
    if z.is_finite() { z.clamp(NARROWEST, WIDEST) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(actual: f64, samples: usize, ended: bool) -> Outcome {
        Outcome {
            resource: Resource::DurationS,
            expected: 100.0,
            width: 2_f64.ln(),
            risk: 0.05,
            samples,
            actual,
            ended,
        }
    }

    fn of(outcomes: &[Outcome], samples: usize) -> f64 {
        factor(outcomes, Resource::DurationS, samples)
    }

    #[test]
    fn without_outcomes_a_bound_stays_as_it_is() {
        assert_eq!(of(&[], 10), 1.0);
        assert_eq!(factor(&[outcome(9e9, 10, true); 50], Resource::CpuCoresMean, 10), 1.0);
    }

    #[test]
    fn bounds_that_are_never_met_become_narrower_and_those_that_are_wider() {
        let narrower = of(&[outcome(101.0, 10, true); 200], 10);
        assert!(narrower < 0.5, "{narrower}");
        let wider = of(&[outcome(300.0, 10, true); 200], 10);
        assert!(wider > 1.5, "{wider}");
        // Bounds with few runs behind them did not hold, those with many did.
        let outcomes = [vec![outcome(101.0, 300, true); 200], vec![outcome(300.0, 3, true); 30]].concat();
        assert!(of(&outcomes, 3) > 1.5 && of(&outcomes, 300) < 1.0, "{}", of(&outcomes, 300));
    }

    #[test]
    fn what_still_runs_beyond_its_bound_counts() {
        let mut outcomes = vec![outcome(101.0, 10, true); 100];
        let before = of(&outcomes, 10);
        outcomes.extend([outcome(250.0, 10, false); 20]);
        assert!(of(&outcomes, 10) > before);
        // One that has only begun says nothing.
        let mut outcomes = vec![outcome(101.0, 10, true); 100];
        outcomes.extend([outcome(1.0, 10, false); 20]);
        assert_eq!(of(&outcomes, 10), before);
    }

    #[test]
    fn nonsense_changes_nothing_for_the_worse() {
        for actual in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            let factor = of(&[outcome(actual, 10, true), outcome(actual, 10, false)], 10);
            assert!((NARROWEST..=WIDEST).contains(&factor), "{factor}");
        }
    }
}
