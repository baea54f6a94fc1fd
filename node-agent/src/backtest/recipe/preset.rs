//! What the user asked for.

use super::{Asked, Recipe, request};
use crate::backtest::trace::Task;

pub(super) struct Preset {
    host_bytes: f64,
}

impl Preset {
    pub(super) fn new(host_bytes: f64) -> Self {
        Self { host_bytes }
    }
}

impl Recipe for Preset {
    fn name(&self) -> &str {
        "user's preset"
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        Asked { bytes: request(task, self.host_bytes), cold: false }
    }

    fn retry(&mut self, _: &Task, _: usize, reserved: f64, _: u32) -> f64 {
        reserved * 2.0
    }

    fn finished(&mut self, _: &Task, _: usize) {}
}
