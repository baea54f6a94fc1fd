//! The first allocation that wastes least on the past, and the largest seen for the second: Tovar et al., "A Job
//! Sizing Strategy for High-Throughput Scientific Workflows" (TPDS 2018). Of all peaks seen, that `a` which
//! makes `a·E[t] + a_max·E[t; peak > a]` smallest. After a failure the largest peak seen, then doubled.

use super::{Asked, RUNS_LEAST, Recipe, request};
use crate::backtest::trace::Task;
use std::collections::HashMap;

pub(super) struct Tovar {
    host_bytes: f64,
    /// Per kind of task: peak, bytes, and time, seconds, sorted by peak.
    known: HashMap<String, Vec<(f64, f64)>>,
}

impl Tovar {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes, known: HashMap::new() }
    }
}

fn first_allocation(sorted: &[(f64, f64)]) -> f64 {
    let Some((most, _)) = sorted.last() else { return 0.0 };
    let total: f64 = sorted.iter().map(|(_, seconds)| seconds).sum();
    let mut below = 0.0;
    let mut best = (f64::INFINITY, *most);
    for (peak, seconds) in sorted {
        below += seconds;
        let cost = peak * total + most * (total - below).max(0.0);
        if cost < best.0 {
            best = (cost, *peak);
        }
    }
    best.1
}

impl Recipe for Tovar {
    fn name(&self) -> &str {
        "Tovar"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        match self.known.get(&task.task_type) {
            Some(sorted) if sorted.len() >= RUNS_LEAST => {
                Asked { bytes: first_allocation(sorted), cold: false }
            }
            _ => Asked { bytes: request(task, self.host_bytes), cold: true },
        }
    }

    fn retry(&mut self, task: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        let known = self.known.get(&task.task_type).and_then(|sorted| sorted.last());
        match known {
            Some((most, _)) if *most > reserved => *most,
            _ => reserved * 2.0,
        }
    }

    fn finished(&mut self, task: &Task, _: usize) {
        let sorted = self.known.entry(task.task_type.clone()).or_default();
        let place = sorted.partition_point(|(peak, _)| *peak < task.memory_peak_bytes);
        sorted.insert(place, (task.memory_peak_bytes, task.duration_s.max(1.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_giants_are_left_to_the_second_attempt() {
        let mut sorted = vec![(1.0, 1.0); 99];
        sorted.push((10.0, 1.0));
        assert_eq!(first_allocation(&sorted), 1.0);
        assert_eq!(first_allocation(&[(9.0, 1.0), (10.0, 1.0)]), 10.0);
    }
}
