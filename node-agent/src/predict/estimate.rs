//! One resource: from past runs to an expected value, an upper bound, and the reason in words.
//!
//! - **Expected** is what the model says that had the least absolute error on this task's past, times the median of
//!   its own errors, drawn towards 1 where they are few.
//! - **Upper**, of memory, is the cheapest reservation (see [`super::learner`]) with [`MEMORY_EXTRA_BYTES`] on top and
//!   at least [`MEMORY_LEAST_BYTES`]: memory is what a wrong bound kills for, so it is priced. Of everything else
//!   it is the bound of the same model's errors at `1 − risk`; of run time and mean cores it is then calibrated by how
//!   such bounds held on this host ([`super::calibration`]).
//! - **Censored** values (the run was stopped or held back at its limit) are lower bounds, never samples: the upper
//!   bound is at least [`CENSORED`] times the largest since which no larger run ended well, or twice where the
//!   newest two met it.
//! - **Back-off**: the first of (type, user) and (type) with a sample; then the first of them with a censored
//!   value; then the host, for telling only.

use super::base::{Base, Known};
use super::columns::Columns;
use super::learner::{CENSORED, Candidate, Learner, Objective};
use super::{Estimate, History, Level, Observation, Resource, calibration, seasonal};
use crate::fingerprint::key::Feature;
use crate::units::{format_bytes, format_duration, format_rate};

/// Absolute margin on memory: halves the failures at no cost in waste on the traces studied.
pub const MEMORY_EXTRA_BYTES: f64 = (32 << 20) as f64;
/// Up to so many runs are few: see [`Evidence::largest_of_few`].
const FEW_RUNS: usize = 3;

/// Least upper bound for memory.
pub const MEMORY_LEAST_BYTES: f64 = (128 << 20) as f64;
/// Price of a killed run, as a multiple of its memory × time.
pub const PER_FAILURE: f64 = 2.0;
/// What a run needs that met its limit when the one before had met its own.
pub const CENSORED_AGAIN: f64 = 2.0;
/// Runs after which a censored value is forgotten.
pub const CENSORED_AGE_MAX: usize = 32;
/// Runs looked at where no memory is at stake: what is older counts half of the newest or less, and looking takes time
/// before every start.
const RUNS_MAX: usize = 64;
/// Runs looked at for memory.
const MEMORY_RUNS_MAX: usize = 128;
/// No bound by errors goes beyond this times the largest seen.
const BEYOND_SEEN: f64 = 8.0;
/// Runs that go on and are looked at.
const RUNNING_MAX: usize = 64;
/// Used where the asked risk is no number.
const RISK_DEFAULT: f64 = 0.05;
/// Values above this, in any unit, are nonsense and not used; so no product here can overflow.
const VALUE_MAX: f64 = 1e18;
/// What one run leaves to be expected of the next at most, as a factor, where no memory is at stake.
const COLD_UPPER: f64 = 2.0;

/// What one level knows about one resource.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    pub(super) level: Level,
    pub(super) columns: Columns,
    pub(super) learner: Learner,
    /// Largest recent lower bound.
    bound: Option<f64>,
    /// What the next run may need, as a multiple of `bound`.
    bound_margin: f64,
    /// Where the newest runs are hours of something that goes on, these.
    hours: Vec<(u32, f64)>,
}

/// The level that speaks for `resource`, `None` if none knows anything.
pub(super) fn evidence(history: &History, resource: Resource) -> Option<Evidence> {
    of_task(history, resource).or_else(|| of_host(history, resource))
}

/// What runs of the task itself say.
pub(super) fn of_task(history: &History, resource: Resource) -> Option<Evidence> {
    let own = Evidence::of(&history.task_and_user, Level::TaskAndUser, resource);
    if own.samples() > 0 {
        return Some(own);
    }
    let task = Evidence::of(&history.task, Level::Task, resource);
    if task.samples() > 0 {
        return Some(task);
    }
    [own, task].into_iter().find(|level| level.bound.is_some())
}

/// What runs of other tasks say.
pub(super) fn of_host(history: &History, resource: Resource) -> Option<Evidence> {
    let mut host = Evidence::of(&history.host, Level::Host, resource);
    // That another kind of task met its limit says nothing about this one.
    host.bound = None;
    (host.samples() > 0).then_some(host)
}

/// The value of a run if it can be one; the range also sorts out NaN.
pub(super) fn value(run: &Observation, resource: Resource) -> Option<f64> {
    run.values[resource as usize].filter(|value| (0.0..=VALUE_MAX).contains(value))
}

impl Evidence {
    fn of(runs: &[Observation], level: Level, resource: Resource) -> Self {
        let hours = match (level, resource) {
            (Level::Host, _) | (_, Resource::DurationS) => Vec::new(),
            _ => seasonal::hours(runs, resource),
        };
        let most = if resource == Resource::MemoryPeakBytes { MEMORY_RUNS_MAX } else { RUNS_MAX };
        let runs = &runs[..runs.len().min(most)];
        let place = resource as usize;
        let samples = || {
            let sound = runs.iter().rev().filter(|run| !run.censored[place]);
            sound.filter_map(|run| Some((run, value(run, resource)?)))
        };
        // Other kinds of tasks have features of the same names, but they mean other things.
        let columns = match level {
            Level::Host => Columns::default(),
            _ => Columns::choose(samples().map(|(run, y)| (run.features.as_slice(), y))),
        };
        let mut learner = Learner::new(&columns.bases(), columns.main());
        for (run, y) in samples() {
            let seconds = value(run, Resource::DurationS).unwrap_or(1.0).max(1.0);
            let seconds = if resource == Resource::MemoryPeakBytes { seconds } else { 1.0 };
            let y = y.max(negligible(resource));
            learner.push(super::base::Row { y, known: columns.known(&run.features) }, seconds);
        }
        let (bound, bound_margin) = lower_bound(runs, resource);
        Self { level, columns, learner, bound, bound_margin, hours }
    }

    pub(super) fn samples(&self) -> usize {
        self.learner.past().len()
    }

    /// What it takes in memory beside itself, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.columns.bytes() + self.learner.bytes() + self.hours.capacity() * size_of::<(u32, f64)>()
    }

    /// What a run with these features will need. Of `history` what goes on and what became of predictions is looked at.
    pub(super) fn estimate(
        &self,
        features: &[Feature],
        history: &History,
        resource: Resource,
        risk: f64,
    ) -> Estimate {
        let risk = if risk.is_finite() { risk.clamp(0.001, 0.5) } else { RISK_DEFAULT };
        if let (0, Some(bound)) = (self.samples(), self.bound) {
            // No run ended on its own terms: the largest lower bound is all there is, and counts as one sample.
            let mut one = self.clone();
            one.learner.push(super::base::Row { y: bound, known: self.columns.known(&[]) }, 1.0);
            return one.speak(features, history, resource, risk, true);
        }
        self.speak(features, history, resource, risk, false)
    }

    fn speak(
        &self,
        features: &[Feature],
        history: &History,
        resource: Resource,
        risk: f64,
        only_bounds: bool,
    ) -> Estimate {
        let known = self.columns.known(features);
        let middle = self.learner.candidates(&known, &[], Objective::Quantile(0.5)).first().copied();
        let (upper, model) = match resource {
            Resource::MemoryPeakBytes => self.reservation(features),
            _ => {
                let spent = if self.is_calibrated(resource) { 1.0 } else { RISK_SPENT };
                let running = self.running(&history.running, resource);
                self.bound_of_errors(features, middle, &running, 1.0 - risk * spent)
            }
        };
        let censored = self.bound.map_or(0.0, |bound| bound * self.bound_margin);
        let least = if resource == Resource::MemoryPeakBytes { MEMORY_LEAST_BYTES } else { 0.0 };
        let expected = middle.map_or(0.0, |middle| self.middle(&middle));
        let expected = if expected <= negligible(resource) * 1.001 { 0.0 } else { expected };
        if let Some(estimate) = self.next_hour(features, resource, risk) {
            return estimate;
        }
        let mut reason = self.reason(resource, model, only_bounds, (upper, censored, least));
        let mut upper = upper.max(censored).max(least).max(expected).max(self.largest_of_few(resource));
        let width = calibration::width(expected, upper).filter(|_| self.is_calibrated(resource));
        if let Some(width) = width {
            let factor = calibration::factor(&history.outcomes, resource, self.samples());
            let most = self.learner.past().most() * BEYOND_SEEN;
            upper = (expected * (width * factor).exp()).min(most).max(expected).max(censored);
            reason += &calibrated(factor);
        }
        Estimate {
            resource,
            expected,
            upper,
            risk,
            samples: self.samples(),
            level: self.level,
            width,
            reason,
        }
    }

    /// What is expected. Two or three runs have shown once or twice how wrong a model is, which is no reason to correct
    /// it: of two runs, the second half as long, the third would be expected to be half as long again.
    fn middle(&self, model: &Candidate) -> f64 {
        if self.samples() > FEW_RUNS { model.amount() } else { model.value }
    }

    /// Two or three runs, of which one did without what another needed, are no reason to bound a peak, a count
    /// or a rate below what was seen: a hard limit may follow from it. 0 where there are more.
    fn largest_of_few(&self, resource: Resource) -> f64 {
        use Resource::{CpuCoresMean, DurationS, MemoryPeakBytes};
        let is_judged_by_cost = matches!(resource, MemoryPeakBytes | CpuCoresMean | DurationS);
        if is_judged_by_cost || self.samples() > FEW_RUNS {
            return 0.0;
        }
        Some(self.learner.past().most()).filter(|most| *most > negligible(resource)).unwrap_or(0.0)
    }

    /// The cheapest reservation of memory.
    fn reservation(&self, features: &[Feature]) -> (f64, Option<Candidate>) {
        let best = self.reservations(features).first().copied();
        (best.map_or(0.0, |best| best.amount() + MEMORY_EXTRA_BYTES), best)
    }

    /// Every model's reservation of memory, the cheapest first.
    pub(super) fn reservations(&self, features: &[Feature]) -> Vec<Candidate> {
        let objective = Objective::Reserve { per_failure: PER_FAILURE };
        self.learner.candidates(&self.columns.known(features), &[], objective)
    }

    /// Where the runs are hours of something that goes on, the next hour.
    fn next_hour(&self, features: &[Feature], resource: Resource, risk: f64) -> Option<Estimate> {
        if self.bound.is_some() {
            return None;
        }
        let hours = seasonal::series(&self.hours, features);
        let middle = seasonal::next_hour(&hours, 0.5)?;
        let bound = seasonal::next_hour(&hours, 1.0 - risk)?;
        let reason = format!(
            "{} ×{:.2} for the next hour, by the last {} hours of {}",
            bound.model.words(),
            bound.multiplier,
            hours.len(),
            if self.level == Level::TaskAndUser { "this user" } else { "any user" }
        );
        let upper = bound.value.max(middle.value);
        let (expected, samples, level) = (middle.value, hours.len(), self.level);
        Some(Estimate { resource, expected, upper, risk, samples, level, width: None, reason })
    }

    fn is_calibrated(&self, resource: Resource) -> bool {
        self.level != Level::Host && calibration::calibrates(resource)
    }

    /// What runs have come to that go on. Only time grows for as long as a run does.
    fn running(&self, running: &[Observation], resource: Resource) -> Vec<(Known, f64)> {
        if resource != Resource::DurationS || self.level == Level::Host {
            return Vec::new();
        }
        let so_far = running.iter().take(RUNNING_MAX).filter_map(|run| Some((run, value(run, resource)?)));
        so_far.map(|(run, value)| (self.columns.known(&run.features), value)).collect()
    }

    fn bound_of_errors(
        &self,
        features: &[Feature],
        middle: Option<Candidate>,
        running: &[(Known, f64)],
        share: f64,
    ) -> (f64, Option<Candidate>) {
        let Some(mut model) = middle else { return (0.0, None) };
        let factor = self.learner.upper_factor(model.base, &self.columns.known(features), running, share);
        let most = self.learner.past().most() * BEYOND_SEEN / model.value;
        model.multiplier = factor.unwrap_or(COLD_UPPER).min(most).max(model.multiplier);
        (model.amount(), Some(model))
    }

    fn reason(
        &self,
        resource: Resource,
        model: Option<Candidate>,
        only_bounds: bool,
        (upper, censored, least): (f64, f64, f64),
    ) -> String {
        let mut text = String::new();
        let bound = self.bound.map_or_else(String::new, |bound| amount(resource, bound));
        if only_bounds {
            text += &format!(
                "no run ended without meeting a limit; the largest was stopped or held back at {bound}, which \
                 counts as one sample: "
            );
        }
        if let Some(model) = model {
            text += &format!(
                "{} {} is {}; ×{:.2} {}",
                self.words(model.base),
                self.whose(),
                told(resource, model.value),
                model.multiplier,
                if self.samples() < 2 { "for 1 sample" } else { why(resource) }
            );
        }
        if resource == Resource::MemoryPeakBytes {
            text += &format!(", +{}", format_bytes(MEMORY_EXTRA_BYTES));
        }
        if censored > upper {
            text += &format!("; raised to {}× because a run met its limit at {bound}", self.bound_margin);
        }
        if least > upper.max(censored) {
            text += &format!("; raised to the least bound, {}", format_bytes(least));
        }
        text
    }

    fn whose(&self) -> String {
        let runs = match self.samples() {
            1 => "the one run".to_owned(),
            count => format!("the last {count} runs"),
        };
        let whose = match self.level {
            Level::TaskAndUser => "of this task by this user",
            Level::Task => "of this task by any user",
            Level::Host => "of any task here (none of this task yet)",
        };
        format!("of {runs} {whose}")
    }

    /// A model in words.
    pub(super) fn words(&self, base: Base) -> String {
        let name = self.columns.name(base).unwrap_or("?");
        match base {
            Base::Median => "the median".into(),
            Base::Line(_) => format!("the line over {name}"),
            Base::Power(_) => format!("the power law over {name}"),
            Base::Nearest(_) => format!("the median of the 5 nearest by {name}"),
            Base::SameWord(_) => format!("the median for the same {name}"),
        }
    }
}

/// In words, where a bound is not left as it is.
fn calibrated(factor: f64) -> String {
    match factor {
        factor if factor > 1.02 => {
            format!("; {:.0} % wider, by how bounds here held", (factor - 1.0) * 100.0)
        }
        factor if factor < 0.98 => {
            format!("; {:.0} % narrower, by how bounds here held", (1.0 - factor) * 100.0)
        }
        _ => String::new(),
    }
}

/// The share of the asked risk that is spent by rank where nothing tells how bounds held: the rest is for what changes
/// between runs, which ranks do not know of.
const RISK_SPENT: f64 = 0.4;

fn why(resource: Resource) -> &'static str {
    match resource {
        Resource::MemoryPeakBytes => "would have cost least",
        _ => "covers what it was wrong by",
    }
}

/// What counts as nothing: below it ratios would say much about little.
fn negligible(resource: Resource) -> f64 {
    match resource {
        Resource::MemoryPeakBytes => 4096.0,
        Resource::CpuCoresMean
        | Resource::CpuCoresPeak
        | Resource::CpuCoresP95Of100Ms
        | Resource::CpuCoresP95Of1S
        | Resource::DurationS => 1e-3,
        Resource::IoReadOpsPerS | Resource::IoWriteOpsPerS => 1.0,
        Resource::TasksPeak => 0.5,
        Resource::IoReadBytesPerS
        | Resource::IoWriteBytesPerS
        | Resource::NetworkReceivedBytesPerS
        | Resource::NetworkSentBytesPerS => 1024.0,
    }
}

/// The largest of the recent lower bounds that no run since has ended well above, and the margin on it.
fn lower_bound(runs: &[Observation], resource: Resource) -> (Option<f64>, f64) {
    let place = resource as usize;
    let mut bound: Option<f64> = None;
    let mut most: f64 = 0.0;
    let mut newest_censored = 0;
    let mut any_sample = false;
    for run in runs.iter().take(CENSORED_AGE_MAX) {
        let Some(value) = value(run, resource) else { continue };
        if !run.censored[place] {
            any_sample = true;
            most = most.max(value);
        } else if value >= most {
            newest_censored += usize::from(!any_sample);
            bound = Some(bound.map_or(value, |bound| bound.max(value)));
        }
    }
    (bound, if newest_censored < 2 { CENSORED } else { CENSORED_AGAIN })
}

/// What a model says: nothing is taken for the least that counts.
fn told(resource: Resource, value: f64) -> String {
    let nothing = if value <= negligible(resource) * 1.001 { "next to nothing, taken for " } else { "" };
    format!("{nothing}{}", amount(resource, value))
}

/// A value of `resource` with its unit.
pub(super) fn amount(resource: Resource, value: f64) -> String {
    match resource {
        Resource::MemoryPeakBytes => format_bytes(value),
        Resource::CpuCoresMean
        | Resource::CpuCoresPeak
        | Resource::CpuCoresP95Of100Ms
        | Resource::CpuCoresP95Of1S => format!("{value:.2} cores"),
        Resource::IoReadOpsPerS | Resource::IoWriteOpsPerS => format!("{value:.1} requests/s"),
        Resource::IoReadBytesPerS
        | Resource::IoWriteBytesPerS
        | Resource::NetworkReceivedBytesPerS
        | Resource::NetworkSentBytesPerS => format_rate(value),
        Resource::TasksPeak => format!("{value:.0} tasks"),
        Resource::DurationS => format_duration(value),
    }
}
