//! How good expected values and upper bounds are on a past: the same order and the same knowledge as in a replay.

use super::trace::{Task, Trace};
use crate::predict::calibration::{OUTCOMES_MAX, Outcome};
use crate::predict::{Estimate, HISTORY_MAX, History, Observation, RESOURCES, Resource, predict};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

/// Runs that a kind of task must have had before one of its predictions counts.
const RUNS_LEAST: usize = 2;

/// Errors of one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Predictions that counted.
    pub predictions: usize,
    /// Median of |expected − actual| ÷ actual, percent.
    pub median_error_percent: f64,
    /// Share of runs at or below the upper bound, percent.
    pub covered_percent: f64,
    /// The same of the later half of predictions.
    pub covered_late_percent: f64,
    /// Sum of upper bounds ÷ sum of what was used.
    pub upper_over_used: f64,
}

/// Predicts every task of a trace when it starts, from what had ended by then and what was running.
pub fn measure(trace: &Trace, resource: Resource, risk: f64) -> Accuracy {
    let tasks = &trace.tasks;
    let mut past = Known::default();
    let mut errors = Vec::new();
    let (mut covered, mut upper, mut used) = (Vec::new(), 0.0, 0.0);
    for (place, task) in tasks.iter().enumerate() {
        past.until(task.start_ms, tasks, resource);
        let history = past.history(task, tasks, resource);
        past.starts(place, task);
        let Some(actual) = actual(task, resource) else { continue };
        let prediction = predict(&history, &task.features, risk);
        let Some(estimate) = prediction.estimate(resource) else { continue };
        past.predicted.insert(place, estimate.clone());
        if history.task_and_user.len() < RUNS_LEAST {
            continue;
        }
        errors.push((estimate.expected - actual).abs() / actual * 100.0);
        covered.push(actual <= estimate.upper);
        upper += estimate.upper;
        used += actual;
    }
    errors.sort_by(f64::total_cmp);
    Accuracy {
        predictions: errors.len(),
        median_error_percent: errors.get(errors.len() / 2).copied().unwrap_or(0.0),
        covered_percent: percent(&covered),
        covered_late_percent: percent(&covered[covered.len() / 2..]),
        upper_over_used: if used > 0.0 { upper / used } else { 0.0 },
    }
}

fn percent(covered: &[bool]) -> f64 {
    100.0 * covered.iter().filter(|covered| **covered).count() as f64 / covered.len().max(1) as f64
}

/// What is known at a moment of a trace.
#[derive(Default)]
struct Known<'a> {
    /// Tasks that run, by when their end will be known.
    running: BinaryHeap<Reverse<(i64, usize)>>,
    past: HashMap<&'a str, VecDeque<Observation>>,
    predicted: HashMap<usize, Estimate>,
    /// Of predictions whose tasks have ended, the newest first.
    outcomes: VecDeque<Outcome>,
}

impl<'a> Known<'a> {
    fn starts(&mut self, place: usize, task: &Task) {
        let end_ms = task.end_ms.unwrap_or(task.start_ms + (task.duration_s * 1e3) as i64);
        self.running.push(Reverse((end_ms, place)));
    }

    /// Takes in what ended.
    fn until(&mut self, now_ms: i64, tasks: &'a [Task], resource: Resource) {
        while let Some(Reverse((_, place))) = self.running.peek().copied().filter(|end| end.0.0 <= now_ms) {
            self.running.pop();
            let known = self.past.entry(&tasks[place].task_type).or_default();
            known.push_front(observation(&tasks[place]).only(resource));
            known.truncate(HISTORY_MAX);
            let (estimate, actual) = (self.predicted.remove(&place), actual(&tasks[place], resource));
            let outcome = estimate.zip(actual).and_then(|(known, actual)| Outcome::of(&known, actual, true));
            self.outcomes.extend(outcome);
            self.outcomes.rotate_right(usize::from(outcome.is_some()));
            self.outcomes.truncate(OUTCOMES_MAX);
        }
    }

    fn history(&self, task: &Task, tasks: &[Task], resource: Resource) -> History {
        let so_far = |place: usize| (task.start_ms - tasks[place].start_ms) as f64 / 1e3;
        let places = || self.running.iter().map(|Reverse((_, place))| *place);
        let peers = places().filter(|place| tasks[*place].task_type == task.task_type);
        let unended = places().filter(|_| resource == Resource::DurationS);
        let unended = unended.filter_map(|place| {
            self.predicted.get(&place).and_then(|known| Outcome::of(known, so_far(place), false))
        });
        History {
            task_and_user: self.past.get(task.task_type.as_str()).into_iter().flatten().cloned().collect(),
            running: peers.map(|place| running(&tasks[place], so_far(place))).collect(),
            outcomes: self.outcomes.iter().copied().chain(unended).collect(),
            ..History::default()
        }
    }
}

fn running(task: &Task, seconds: f64) -> Observation {
    let mut run = Observation { features: task.features.clone(), ..Observation::default() };
    run.values[Resource::DurationS as usize] = Some(seconds);
    run
}

fn actual(task: &Task, resource: Resource) -> Option<f64> {
    observation(task).values[resource as usize].filter(|actual| *actual > 0.0)
}

/// A task as a past run.
pub fn observation(task: &Task) -> Observation {
    let mut values = [None; RESOURCES];
    let rate =
        |bytes: Option<f64>| bytes.filter(|_| task.duration_s > 0.0).map(|bytes| bytes / task.duration_s);
    values[Resource::MemoryPeakBytes as usize] = Some(task.memory_peak_bytes);
    values[Resource::CpuCoresMean as usize] = task.cpu_cores_mean;
    values[Resource::IoReadBytesPerS as usize] = rate(task.io_read_bytes);
    values[Resource::IoWriteBytesPerS as usize] = rate(task.io_write_bytes);
    values[Resource::DurationS as usize] = Some(task.duration_s);
    Observation { values, censored: [false; RESOURCES], features: task.features.clone() }
}
