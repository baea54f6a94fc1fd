//! One resource: from past values to an expected value, an upper bound, and the reason in words.
//!
//! - **Expected** is the median of the samples, each weighing [`DECAY`] per newer run.
//! - **Upper** is the conformal upper bound of the same samples (see [`super::quantile`]) times a margin
//!   that shrinks with their number, from 2 for one sample to [`MARGIN_LEAST`]; memory gets
//!   [`MEMORY_EXTRA_BYTES`] on top and is never below [`MEMORY_LEAST_BYTES`].
//! - **Censored** values (the run was stopped or held back at its limit) are lower bounds, never samples:
//!   the upper bound is at least [`CENSORED_MARGIN`] times the largest of the last [`CENSORED_AGE_MAX`] runs,
//!   or [`CENSORED_AGAIN_MARGIN`] times where the newest two met it, so that few runs are lost on the way up.
//!   With nothing but censored values the largest stands for one sample.
//! - **Back-off**: the first of (type, user) and (type) with a sample; then the first of them with a censored
//!   value; then the host.

use super::quantile::{self, Weighted};
use super::{Estimate, History, Level, Observation, Resource};
use crate::units::{format_bytes, format_duration, format_rate};
use std::fmt;

/// Weight of a run relative to the run after it.
pub const DECAY: f64 = 0.97;
/// Margin on the upper bound with many samples.
pub const MARGIN_LEAST: f64 = 1.1;
/// Absolute margin on memory: halves the failures at no cost in waste on the traces we studied.
pub const MEMORY_EXTRA_BYTES: f64 = (32 << 20) as f64;
/// Least upper bound for memory.
pub const MEMORY_LEAST_BYTES: f64 = (128 << 20) as f64;
/// What a run that met its limit at `y` needs next time: at least this times `y`.
pub const CENSORED_MARGIN: f64 = 1.25;
/// The same when that did not do: the two newest runs both met their limit.
pub const CENSORED_AGAIN_MARGIN: f64 = 2.0;
/// Runs after which a censored value is forgotten.
pub const CENSORED_AGE_MAX: usize = 32;
/// Used where the asked risk is no number.
const RISK_DEFAULT: f64 = 0.05;
/// Values above this, in any unit, are nonsense and not used; so no product here can overflow.
const VALUE_MAX: f64 = 1e18;

/// What one level knows about one resource.
struct Evidence {
    level: Level,
    /// Sorted by value.
    samples: Vec<Weighted>,
    /// Largest recent lower bound.
    bound: Option<f64>,
    /// What the next run may need, as a multiple of `bound`.
    bound_margin: f64,
}

/// The estimate for `resource`, or `None` if no level knows anything.
pub(super) fn estimate(history: &History, resource: Resource, risk: f64) -> Option<Estimate> {
    let own = evidence(&history.task_and_user, Level::TaskAndUser, resource);
    if own.usable() {
        return Some(own.estimate(resource, risk));
    }
    let task = evidence(&history.task, Level::Task, resource);
    if task.usable() {
        return Some(task.estimate(resource, risk));
    }
    if let Some(bounded) = [own, task].iter_mut().find(|level| level.bound.is_some()) {
        return bounded.estimate_of_bound(resource, risk);
    }
    let mut host = evidence(&history.host, Level::Host, resource);
    // That another kind of task met its limit says nothing about this one.
    host.bound = None;
    host.usable().then(|| host.estimate(resource, risk))
}

fn evidence(runs: &[Observation], level: Level, resource: Resource) -> Evidence {
    let place = resource as usize;
    let mut weight = 1.0;
    let mut bound = None;
    let mut newest_censored = 0;
    let mut samples = Vec::with_capacity(runs.len().min(super::HISTORY_MAX));
    for (age, run) in runs.iter().take(super::HISTORY_MAX).enumerate() {
        // The range also sorts out NaN.
        let value = run.values[place].filter(|value| (0.0..=VALUE_MAX).contains(value));
        match value {
            Some(value) if !run.censored[place] => samples.push(Weighted { value, weight }),
            Some(value) if age < CENSORED_AGE_MAX => {
                newest_censored += usize::from(samples.is_empty());
                bound = Some(bound.map_or(value, |bound: f64| bound.max(value)));
            }
            _ => {}
        }
        weight *= DECAY;
    }
    quantile::sort(&mut samples);
    Evidence {
        level,
        samples,
        bound,
        bound_margin: if newest_censored < 2 { CENSORED_MARGIN } else { CENSORED_AGAIN_MARGIN },
    }
}

impl Evidence {
    fn usable(&self) -> bool {
        !self.samples.is_empty()
    }

    fn estimate(&self, resource: Resource, risk: f64) -> Estimate {
        let count = self.samples.len();
        let risk = if risk.is_finite() { risk.clamp(0.001, 0.5) } else { RISK_DEFAULT };
        let quantile = quantile::upper_bound(&self.samples, 1.0 - risk);
        let margin = margin(count);
        let censored = self.bound.map_or(0.0, |bound| bound * self.bound_margin);
        let measured = if resource == Resource::MemoryPeakBytes {
            quantile * margin + MEMORY_EXTRA_BYTES
        } else {
            quantile * margin
        };
        let mut upper = measured.max(censored);
        if resource == Resource::MemoryPeakBytes {
            upper = upper.max(MEMORY_LEAST_BYTES);
        }
        let reason = Reason {
            resource,
            level: self.level,
            count,
            quantile,
            percent: (1.0 - risk) * 100.0,
            margin,
            censored: self.bound.filter(|_| censored > measured),
            censored_margin: self.bound_margin,
            least: upper > measured.max(censored),
        };
        Estimate {
            resource,
            expected: quantile::quantile(&self.samples, 0.5),
            upper,
            risk,
            samples: count,
            level: self.level,
            reason: reason.to_string(),
        }
    }

    /// No run ended on its own terms: the largest lower bound is all there is, and counts as one sample.
    fn estimate_of_bound(&mut self, resource: Resource, risk: f64) -> Option<Estimate> {
        let value = self.bound?;
        self.samples = vec![Weighted { value, weight: 1.0 }];
        let mut estimate = self.estimate(resource, risk);
        estimate.reason = format!(
            "no run ended without meeting a limit; the largest was stopped or held back at {}, which counts \
             as one sample: {}",
            amount(resource, value),
            estimate.reason
        );
        Some(estimate)
    }
}

/// 2 for one sample, 1.42 for two, 1.15 for seven, falling to [`MARGIN_LEAST`].
fn margin(samples: usize) -> f64 {
    MARGIN_LEAST + (2.0 - MARGIN_LEAST) * (samples.max(1) as f64).powf(-1.5)
}

/// What an upper bound is made of; its text is [`Estimate::reason`].
struct Reason {
    resource: Resource,
    level: Level,
    count: usize,
    quantile: f64,
    percent: f64,
    margin: f64,
    censored: Option<f64>,
    censored_margin: f64,
    least: bool,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = match self.count {
            1 => "the one run".to_owned(),
            count => format!("the last {count} runs"),
        };
        let whose = match self.level {
            Level::TaskAndUser => "of this task by this user",
            Level::Task => "of this task by any user",
            Level::Host => "of any task here (none of this task yet)",
        };
        let value = amount(self.resource, self.quantile);
        write!(f, "p{:.0} of {runs} {whose} was {value}", self.percent)?;
        let samples = if self.count == 1 { "sample" } else { "samples" };
        write!(f, "; +{:.0} % for {} {samples}", (self.margin - 1.0) * 100.0, self.count)?;
        if self.resource == Resource::MemoryPeakBytes {
            write!(f, ", +{}", format_bytes(MEMORY_EXTRA_BYTES))?;
        }
        if let Some(bound) = self.censored {
            let bound = amount(self.resource, bound);
            let margin = self.censored_margin;
            write!(f, "; raised to {margin}× because a run met its limit at {bound}")?;
        }
        if self.least {
            write!(f, "; raised to the least bound, {}", format_bytes(MEMORY_LEAST_BYTES))?;
        }
        Ok(())
    }
}

/// A value of `resource` with its unit.
fn amount(resource: Resource, value: f64) -> String {
    match resource {
        Resource::MemoryPeakBytes => format_bytes(value),
        Resource::CpuCoresMean | Resource::CpuCoresPeak => format!("{value:.2} cores"),
        Resource::IoReadBytesPerS
        | Resource::IoWriteBytesPerS
        | Resource::NetworkReceivedBytesPerS
        | Resource::NetworkSentBytesPerS => format_rate(value),
        Resource::TasksPeak => format!("{value:.0} tasks"),
        Resource::DurationS => format_duration(value),
    }
}
