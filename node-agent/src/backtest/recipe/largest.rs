//! The largest so far and a tenth more; doubled after a failure.

use super::{Asked, RUNS_LEAST, Recipe, request};
use crate::backtest::trace::Task;
use std::collections::HashMap;

const MARGIN: f64 = 1.1;

pub(super) struct Largest {
    host_bytes: f64,
    /// Per kind of task: runs and the largest peak, bytes.
    known: HashMap<String, (usize, f64)>,
}

impl Largest {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes, known: HashMap::new() }
    }
}

impl Recipe for Largest {
    fn name(&self) -> &str {
        "max so far × 1.1"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        match self.known.get(&task.task_type) {
            Some((runs, most)) if *runs >= RUNS_LEAST => Asked { bytes: most * MARGIN, cold: false },
            _ => Asked { bytes: request(task, self.host_bytes), cold: true },
        }
    }

    fn retry(&mut self, task: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        _ = task;
        reserved * 2.0
    }

    fn finished(&mut self, task: &Task, _: usize) {
        let (runs, most) = self.known.entry(task.task_type.clone()).or_default();
        *runs += 1;
        *most = most.max(task.memory_peak_bytes);
    }
}
