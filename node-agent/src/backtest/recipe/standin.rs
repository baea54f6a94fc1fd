//! Our own prediction, fed only with what the replay tells.

use super::{Asked, RAISE, Recipe, request};
use crate::backtest::trace::Task;
use crate::predict::sizing::{Sizing, TooSmall};
use std::collections::HashMap;

/// What happens when a reservation is too small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// The task is killed and starts again with more.
    #[default]
    Kill,
    /// The limit grows in place, up to what the user asked for; beyond that the task is killed.
    Elastic,
}

/// A first run whose limit can grow begins with this share of what its user asked for.
const ELASTIC_COLD: f64 = 0.25;
/// See the head of this file.
pub struct Standin {
    retry: Retry,
    host_bytes: f64,
    known: HashMap<String, Sizing>,
}

impl Standin {
    /// Knows nothing yet.
    pub fn new(retry: Retry, host_bytes: f64) -> Self {
        Self { retry, host_bytes, known: HashMap::new() }
    }

    fn sizing(&mut self, task: &Task) -> &mut Sizing {
        let too_small = match self.retry {
            Retry::Kill => TooSmall::Kills,
            Retry::Elastic => TooSmall::Grows(RAISE),
        };
        self.known.entry(task.task_type.clone()).or_insert_with(|| Sizing::new(too_small))
    }
}

impl Recipe for Standin {
    fn name(&self) -> &str {
        match self.retry {
            Retry::Kill => "standin",
            Retry::Elastic => "standin, elastic",
        }
    }

    fn reserve(&mut self, task: &Task, _: usize) -> Asked {
        let asked = request(task, self.host_bytes);
        let sizing = self.sizing(task);
        match sizing.reserve_bytes(&task.features, asked) {
            Some(bytes) => Asked { bytes, cold: false },
            None if self.retry == Retry::Elastic => Asked { bytes: asked * ELASTIC_COLD, cold: true },
            None => Asked { bytes: asked, cold: true },
        }
    }

    fn retry(&mut self, task: &Task, place: usize, reserved: f64, failures: u32) -> f64 {
        let asked = request(task, self.host_bytes);
        let ladder = self.sizing(task).met_limit(place, &task.features, reserved);
        match ladder {
            Some(bytes) if failures < 2 => bytes,
            _ => (reserved * 2.0).max(asked),
        }
    }

    fn finished(&mut self, task: &Task, place: usize) {
        let (peak_bytes, seconds) = (task.memory_peak_bytes, task.duration_s);
        self.sizing(task).ended(place, &task.features, peak_bytes, seconds);
    }

    fn grows_to(&self, task: &Task, host_bytes: f64) -> Option<f64> {
        (self.retry == Retry::Elastic).then(|| task.memory_request_bytes.unwrap_or(host_bytes))
    }
}
