//! The 95th percentile of all peaks so far, doubled after a failure: the percentile predictor of Witt, Wagner
//! and Leser, "Feedback-Based Resource Allocation for Batch Scheduling of Scientific Workflows" (HPCS 2019).

use super::{Asked, RUNS_LEAST, Recipe, request};
use crate::backtest::trace::Task;
use std::collections::HashMap;

const SHARE: f64 = 0.95;

pub(super) struct Percentile {
    host_bytes: f64,
    /// Per kind of task: sorted peaks, bytes.
    known: HashMap<String, Vec<f64>>,
}

impl Percentile {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes, known: HashMap::new() }
    }
}

/// Linear interpolation between closest ranks.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = share * last as f64;
    let lower = place.floor() as usize;
    let upper = (lower + 1).min(last);
    sorted[lower] + (sorted[upper] - sorted[lower]) * (place - lower as f64)
}

impl Recipe for Percentile {
    fn name(&self) -> &str {
        "p95"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        match self.known.get(&task.task_type) {
            Some(sorted) if sorted.len() >= RUNS_LEAST => {
                Asked { bytes: percentile(sorted, SHARE), cold: false }
            }
            _ => Asked { bytes: request(task, self.host_bytes), cold: true },
        }
    }

    fn retry(&mut self, _: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        reserved * 2.0
    }

    fn finished(&mut self, task: &Task, _: usize) {
        let sorted = self.known.entry(task.task_type.clone()).or_default();
        let place = sorted.partition_point(|peak| *peak < task.memory_peak_bytes);
        sorted.insert(place, task.memory_peak_bytes);
    }
}
