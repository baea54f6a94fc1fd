//! From a prediction to limits. Pure: in come a [`Prediction`], the policy, what the user demands and what
//! the host has; out go the [`Limits`] to write before the task starts.

use crate::predict::Prediction;
use serde::{Deserialize, Serialize};

/// How hard predicted limits are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Limits that cannot harm: reclaim targets and shares that follow the task up.
    #[default]
    Elastic,
    /// Hard limits at the predicted upper bound: a task beyond it is stopped or held back.
    Strict,
    /// Predict and record, limit nothing.
    Observe,
}

/// Limits that the user gave by hand. They always hold, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manual {
    /// Hard memory limit, bytes.
    pub memory_bytes: Option<u64>,
    /// CPU limit, cores.
    pub cpu_cores: Option<f64>,
}

/// What this host has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Online CPUs.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// Who asked for a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The prediction.
    Predicted,
    /// The user.
    Manual,
}

/// One limit, in the terms of cgroup v2; hosts with v1 controllers get the twin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `memory.max`, bytes (v1 `memory.limit_in_bytes`): beyond it the task is killed.
    MemoryMax(u64),
    /// `memory.high`, bytes (v1 `memory.soft_limit_in_bytes`): beyond it memory is reclaimed first here.
    MemoryHigh(u64),
    /// `cpu.max`, cores (v1 `cpu.cfs_quota_us`).
    CpuMax(f64),
    /// `cpu.weight`, 1–10000, 100 is normal (v1 `cpu.shares`).
    CpuWeight(u64),
    /// `pids.max`, tasks.
    PidsMax(u64),
}

/// The limits of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits(pub Vec<(Limit, Origin)>);

/// Memory headroom that a running elastic task keeps under its `memory.high`; see [`grow`].
pub const GROW_AT_SHARE: f64 = 0.9;

#[allow(unused_variables, reason = "body follows")]
/// The limits for a task about to start.
pub fn size(prediction: &Prediction, policy: Policy, manual: Manual, capacity: Capacity) -> Limits {
    Limits::default()
}
