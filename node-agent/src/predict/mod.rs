//! What a task will need, from what it and its like needed before. Pure: in comes a [`History`], out goes a
//! [`Prediction`]; no clock, no database, no host.

pub mod base;
pub mod calibration;
pub mod columns;
mod estimate;
pub mod explain;
pub mod learner;
pub mod learnt;
pub mod licenses;
mod residual;
pub mod seasonal;
pub mod sizing;
#[cfg(test)]
mod tests;

use crate::fingerprint::key::Feature;
pub use estimate::{CENSORED_AGAIN, CENSORED_AGE_MAX, MEMORY_EXTRA_BYTES, MEMORY_LEAST_BYTES, PER_FAILURE};
pub use learnt::Learnt;
use serde::{Deserialize, Serialize};

/// What is predicted. The names are those of the column `resource` in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Peak memory, bytes (`Fingerprint::memory_peak_bytes`).
    MemoryPeakBytes,
    /// Mean number of cores over the run.
    CpuCoresMean,
    /// Most cores over a sampling interval.
    CpuCoresPeak,
    /// Mean read rate from storage, bytes per second.
    IoReadBytesPerS,
    /// Mean write rate to storage, bytes per second.
    IoWriteBytesPerS,
    /// Mean network payload received, bytes per second.
    NetworkReceivedBytesPerS,
    /// Mean network payload sent, bytes per second.
    NetworkSentBytesPerS,
    /// Most tasks (processes and threads) at once.
    TasksPeak,
    /// Wall time, seconds.
    DurationS,
    /// Cores that are enough for 95 % of the run's windows of 100 ms, which are the kernel's quota periods.
    #[serde(rename = "cpu_cores_p95_100ms")]
    CpuCoresP95Of100Ms,
    /// Cores that are enough for 95 % of its seconds.
    #[serde(rename = "cpu_cores_p95_1s")]
    CpuCoresP95Of1S,
    /// Mean rate of block reads, operations per second.
    IoReadOpsPerS,
    /// Mean rate of block writes, operations per second.
    IoWriteOpsPerS,
}

/// How many there are.
pub const RESOURCES: usize = 13;

impl Resource {
    /// All of them, in the order of [`Observation::values`].
    pub const ALL: [Self; RESOURCES] = [
        Self::MemoryPeakBytes,
        Self::CpuCoresMean,
        Self::CpuCoresPeak,
        Self::IoReadBytesPerS,
        Self::IoWriteBytesPerS,
        Self::NetworkReceivedBytesPerS,
        Self::NetworkSentBytesPerS,
        Self::TasksPeak,
        Self::DurationS,
        Self::CpuCoresP95Of100Ms,
        Self::CpuCoresP95Of1S,
        Self::IoReadOpsPerS,
        Self::IoWriteOpsPerS,
    ];
}

/// One past run, as far as prediction cares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Value per resource in the order of [`Resource::ALL`]; `None` where it was not measured.
    pub values: [Option<f64>; RESOURCES],
    /// Per resource: the run was stopped or held back by its limit, so the value is only a lower bound.
    pub censored: [bool; RESOURCES],
    /// What was known before it started.
    pub features: Vec<Feature>,
}

impl Observation {
    /// The same with nothing but `resource`.
    pub fn only(mut self, resource: Resource) -> Self {
        for (place, value) in self.values.iter_mut().enumerate() {
            *value = value.filter(|_| place == resource as usize);
        }
        self
    }
}

/// Past runs at each level of back-off, newest first, each at most [`HISTORY_MAX`] long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Same task type, same user.
    pub task_and_user: Vec<Observation>,
    /// Same task type, any user.
    pub task: Vec<Observation>,
    /// Any task on this host.
    pub host: Vec<Observation>,
    /// Runs of this task by this user that have not ended: what they have come to so far.
    pub running: Vec<Observation>,
    /// What became of predictions made on this host, the newest first.
    pub outcomes: Vec<calibration::Outcome>,
}

/// Most runs that one level of a [`History`] holds.
pub const HISTORY_MAX: usize = 256;

/// Where the samples behind an estimate came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Same task type, same user.
    TaskAndUser,
    /// Same task type, any user.
    Task,
    /// Any task on this host: told to people, never used for limits.
    Host,
}

/// What one resource is expected to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Which resource, and so which unit.
    pub resource: Resource,
    /// The middle of what is expected.
    pub expected: f64,
    /// Bound that a run exceeds with a probability of about `risk`.
    pub upper: f64,
    /// See `upper`: in (0, 1).
    pub risk: f64,
    /// Runs behind it.
    pub samples: usize,
    /// Where they came from.
    pub level: Level,
    /// `ln(upper ÷ expected)` before it was calibrated; `None` where it is not.
    #[serde(default)]
    pub width: Option<f64>,
    /// The reason, in words, for people.
    pub reason: String,
}

/// What a task will need: at most one estimate per resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// In the order of [`Resource::ALL`]; resources without any history are absent.
    pub estimates: Vec<Estimate>,
}

impl Prediction {
    /// The estimate for `resource`.
    pub fn estimate(&self, resource: Resource) -> Option<&Estimate> {
        self.estimates.iter().find(|estimate| estimate.resource == resource)
    }
}

/// What a run with these features of a task with this history will need. `risk` in (0, 1) is the accepted
/// probability that a run exceeds an upper bound; it is brought into 0.001–0.5. Values that are not finite
/// or are negative are left out, so every estimate is finite and not negative.
pub fn predict(history: &History, features: &[Feature], risk: f64) -> Prediction {
    Learnt::of(history).predict(history, features, risk)
}
