//! The Kubernetes vertical pod autoscaler's recommender for memory, with its constants (autoscaler repository,
//! `vertical-pod-autoscaler/pkg/recommender`): a histogram of peaks in buckets that grow by 5 % from 10 MB
//! to 1 TB, weights that halve every 24 h, the 90th percentile as the end of its bucket, 15 % on top, at
//! least 250 MiB; a kill counts as a sample of what was used plus 100 MiB or 20 %, whichever is more.

use super::{Asked, RUNS_LEAST, Recipe, request};
use crate::backtest::trace::Task;
use std::collections::HashMap;

const FIRST_BUCKET_BYTES: f64 = 1e7;
const GROWTH: f64 = 1.05;
const MOST_BYTES: f64 = 1e12;
const HALF_LIFE_MS: f64 = 86_400_000.0;
const SHARE: f64 = 0.9;
const MARGIN: f64 = 1.15;
const LEAST_BYTES: f64 = 250.0 * 1_048_576.0;
const OOM_LEAST_BYTES: f64 = 100.0 * 1_048_576.0;
const OOM_RATIO: f64 = 1.2;

#[derive(Default)]
struct Histogram {
    /// Weight per bucket, relative to the moment `since_ms`.
    weights: Vec<f64>,
    since_ms: f64,
    runs: usize,
}

/// Bucket `n` begins at `first × (growth^n − 1) ÷ (growth − 1)`.
fn bucket(bytes: f64) -> usize {
    let bytes = bytes.clamp(0.0, MOST_BYTES);
    if bytes < FIRST_BUCKET_BYTES {
        return 0;
    }
    (bytes * (GROWTH - 1.0) / FIRST_BUCKET_BYTES + 1.0).log(GROWTH).floor() as usize
}

fn bucket_start(bucket: usize) -> f64 {
    FIRST_BUCKET_BYTES * (GROWTH.powi(bucket as i32) - 1.0) / (GROWTH - 1.0)
}

impl Histogram {
    fn add(&mut self, bytes: f64, at_ms: f64) {
        if self.weights.is_empty() {
            self.since_ms = at_ms;
        }
        let bucket = bucket(bytes);
        if self.weights.len() <= bucket {
            self.weights.resize(bucket + 1, 0.0);
        }
        let mut halvings = (at_ms - self.since_ms) / HALF_LIFE_MS;
        if halvings > 100.0 {
            // Weights grow with time instead of the old ones shrinking; before they overflow, shift.
            self.weights.iter_mut().for_each(|weight| *weight *= (-halvings).exp2());
            self.since_ms = at_ms;
            halvings = 0.0;
        }
        self.weights[bucket] += halvings.exp2();
    }

    fn percentile(&self, share: f64) -> f64 {
        let total: f64 = self.weights.iter().sum();
        let mut sum = 0.0;
        for (bucket, weight) in self.weights.iter().enumerate() {
            sum += weight;
            if sum >= share * total {
                return bucket_start(bucket + 1);
            }
        }
        0.0
    }
}

pub(super) struct Vpa {
    host_bytes: f64,
    known: HashMap<String, Histogram>,
}

impl Vpa {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes, known: HashMap::new() }
    }
}

/// When a task ended, or failed: good to a retry's length, which the half-life of a day does not feel.
fn ended_ms(task: &Task) -> f64 {
    task.start_ms as f64 + task.duration_s * 1e3
}

impl Recipe for Vpa {
    fn name(&self) -> &str {
        "VPA histogram"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        match self.known.get(&task.task_type) {
            Some(known) if known.runs >= RUNS_LEAST => {
                let bytes = (known.percentile(SHARE) * MARGIN).max(LEAST_BYTES);
                Asked { bytes, cold: false }
            }
            _ => Asked { bytes: request(task, self.host_bytes), cold: true },
        }
    }

    fn retry(&mut self, task: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        let sample = (reserved + OOM_LEAST_BYTES).max(reserved * OOM_RATIO);
        let known = self.known.entry(task.task_type.clone()).or_default();
        known.add(sample, ended_ms(task));
        // A pod is not evicted to be sized again at once: it restarts with the sample as its request.
        sample
    }

    fn finished(&mut self, task: &Task, _: usize) {
        let known = self.known.entry(task.task_type.clone()).or_default();
        known.add(task.memory_peak_bytes, ended_ms(task));
        known.runs += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_end_of_its_bucket() {
        let mut histogram = Histogram::default();
        (0..10).for_each(|_| histogram.add(5e6, 0.0));
        assert!((histogram.percentile(0.9) - FIRST_BUCKET_BYTES).abs() < 1.0);
        assert_eq!(bucket(1e12), 174);
    }

    #[test]
    fn a_day_halves_a_weight() {
        let mut histogram = Histogram::default();
        histogram.add(5e6, 0.0);
        histogram.add(5e9, HALF_LIFE_MS);
        let weights: Vec<_> = histogram.weights.iter().copied().filter(|w| *w > 0.0).collect();
        assert_eq!(weights, [1.0, 2.0]);
        histogram.add(5e6, HALF_LIFE_MS * 300.0);
        assert!(histogram.weights.iter().all(|w| w.is_finite()));
    }
}
