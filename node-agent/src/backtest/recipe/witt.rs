//! Least squares over the size of the inputs, raised by the standard deviation of its errors, doubled after a
//! failure: the feedback-based linear regression of Witt, Wagner and Leser (HPCS 2019), with σ per kind of task. A
//! line through two points may say anything; so it never says less than the smallest nor more than twice the
//! largest peak seen.

use super::{Asked, RUNS_LEAST, Recipe, request};
use crate::backtest::trace::Task;
use crate::fingerprint::key::FeatureValue;
use std::collections::HashMap;

#[derive(Default)]
struct Known {
    points: Vec<(f64, f64)>,
    errors: Vec<f64>,
    least: f64,
    most: f64,
}

pub(super) struct WittLr {
    host_bytes: f64,
    known: HashMap<String, Known>,
}

impl WittLr {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes, known: HashMap::new() }
    }
}

/// Total size of the inputs, bytes; 0 where it is not known.
pub(super) fn input_bytes(task: &Task) -> f64 {
    let find = |feature: &&crate::fingerprint::key::Feature| feature.name == "input_bytes";
    match task.features.iter().find(find).map(|feature| &feature.value) {
        Some(FeatureValue::Number(bytes)) => *bytes,
        _ => 0.0,
    }
}

impl Known {
    fn line(&self, x: f64) -> f64 {
        let n = self.points.len() as f64;
        let mean_x = self.points.iter().map(|(x, _)| x).sum::<f64>() / n;
        let mean_y = self.points.iter().map(|(_, y)| y).sum::<f64>() / n;
        let spread: f64 = self.points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let common: f64 = self.points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let slope = if spread > 0.0 { common / spread } else { 0.0 };
        (mean_y + slope * (x - mean_x)).clamp(self.least, self.most * 2.0)
    }

    fn deviation(&self) -> f64 {
        let n = self.errors.len().max(1) as f64;
        let mean = self.errors.iter().sum::<f64>() / n;
        (self.errors.iter().map(|error| (error - mean).powi(2)).sum::<f64>() / n).sqrt()
    }
}

impl Recipe for WittLr {
    fn name(&self) -> &str {
        "Witt-LR"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        match self.known.get(&task.task_type) {
            Some(known) if known.points.len() >= RUNS_LEAST => {
                Asked { bytes: known.line(input_bytes(task)) + known.deviation(), cold: false }
            }
            _ => Asked { bytes: request(task, self.host_bytes), cold: true },
        }
    }

    fn retry(&mut self, _: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        reserved * 2.0
    }

    fn finished(&mut self, task: &Task, _: usize) {
        let (x, y) = (input_bytes(task), task.memory_peak_bytes);
        let known = self.known.entry(task.task_type.clone()).or_default();
        if known.points.len() >= RUNS_LEAST {
            known.errors.push(y - known.line(x));
        }
        known.least = if known.points.is_empty() { y } else { known.least.min(y) };
        known.most = known.most.max(y);
        known.points.push((x, y));
    }
}
