//! How good expected values and upper bounds are on a past: the same order and the same knowledge as in a replay.

use super::trace::{Task, Trace};
use crate::predict::{HISTORY_MAX, History, Observation, Resource, predict};
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
    /// Sum of upper bounds ÷ sum of what was used.
    pub upper_over_used: f64,
}

/// Predicts every task of a trace when it starts, from what had ended by then.
pub fn measure(trace: &Trace, resource: Resource, risk: f64) -> Accuracy {
    let mut ends: BinaryHeap<Reverse<(i64, usize)>> = BinaryHeap::new();
    let mut past: HashMap<&str, VecDeque<Observation>> = HashMap::new();
    let mut errors = Vec::new();
    let (mut covered, mut upper, mut used) = (0_usize, 0.0, 0.0);
    for (place, task) in trace.tasks.iter().enumerate() {
        while let Some(Reverse((at_ms, ended))) = ends.peek().copied().filter(|end| end.0.0 <= task.start_ms)
        {
            ends.pop();
            _ = at_ms;
            let known = past.entry(&trace.tasks[ended].task_type).or_default();
            known.push_front(observation(&trace.tasks[ended]));
            known.truncate(HISTORY_MAX);
        }
        let end_ms = task.end_ms.unwrap_or(task.start_ms + (task.duration_s * 1e3) as i64);
        ends.push(Reverse((end_ms, place)));
        let Some(actual) = observation(task).values[resource as usize].filter(|actual| *actual > 0.0) else {
            continue;
        };
        let Some(known) = past.get(task.task_type.as_str()).filter(|known| known.len() >= RUNS_LEAST) else {
            continue;
        };
        let history = History { task_and_user: known.iter().cloned().collect(), ..History::default() };
        let prediction = predict(&history, &task.features, risk);
        let Some(estimate) = prediction.estimate(resource) else { continue };
        errors.push((estimate.expected - actual).abs() / actual * 100.0);
        covered += usize::from(actual <= estimate.upper);
        upper += estimate.upper;
        used += actual;
    }
    errors.sort_by(f64::total_cmp);
    Accuracy {
        predictions: errors.len(),
        median_error_percent: errors.get(errors.len() / 2).copied().unwrap_or(0.0),
        covered_percent: 100.0 * covered as f64 / errors.len().max(1) as f64,
        upper_over_used: if used > 0.0 { upper / used } else { 0.0 },
    }
}

/// A task as a past run.
pub fn observation(task: &Task) -> Observation {
    let mut values = [None; 9];
    let rate =
        |bytes: Option<f64>| bytes.filter(|_| task.duration_s > 0.0).map(|bytes| bytes / task.duration_s);
    values[Resource::MemoryPeakBytes as usize] = Some(task.memory_peak_bytes);
    values[Resource::CpuCoresMean as usize] = task.cpu_cores_mean;
    values[Resource::IoReadBytesPerS as usize] = rate(task.io_read_bytes);
    values[Resource::IoWriteBytesPerS as usize] = rate(task.io_write_bytes);
    values[Resource::DurationS as usize] = Some(task.duration_s);
    Observation { values, censored: [false; 9], features: task.features.clone() }
}
