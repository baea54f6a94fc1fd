//! From a prediction to limits. Pure: in come a [`Prediction`], the policy, what the user demands and what
//! the host has; out go the [`Limits`] to write before the task starts.

use crate::host::Capacity;
use crate::predict::{Estimate, Level, Prediction, Resource};
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

/// Weight of a cgroup for which nobody sets one, and the largest there is (cgroup-v2.rst).
const CPU_WEIGHT_NORMAL: u64 = 100;
const CPU_WEIGHT_MAX: u64 = 10_000;

/// What a growing `memory.high` is raised to, as a multiple of what is used.
pub const GROW_FACTOR: f64 = 1.5;

/// Least predicted CPU limit, cores: below it a task hardly starts.
pub const CPU_MAX_LEAST_CORES: f64 = 0.1;

/// The limits for a task about to start.
///
/// - Limits given by hand always hold, are hard, and take the place of predicted ones of their kind.
/// - [`Policy::Elastic`]: a reclaim target at the upper bound of memory, and for tasks that are expected to
///   use more than one core a CPU weight of 100 per core. Nobody gets less weight than normal: a task that
///   needs more than it did must not starve.
/// - [`Policy::Strict`]: hard limits on memory, CPU and tasks at the upper bounds, each left out where the
///   host has no more than that anyway.
/// - Estimates of [`Level::Host`] limit nothing.
pub fn size(prediction: &Prediction, policy: Policy, manual: Manual, capacity: Capacity) -> Limits {
    let mut limits = by_hand(manual);
    let predicted = match policy {
        Policy::Observe => Vec::new(),
        Policy::Elastic => elastic(prediction, manual, capacity),
        Policy::Strict => strict(prediction, manual, capacity),
    };
    limits.extend(predicted.into_iter().map(|limit| (limit, Origin::Predicted)));
    Limits(limits)
}

fn by_hand(manual: Manual) -> Vec<(Limit, Origin)> {
    let memory = manual.memory_bytes.map(Limit::MemoryMax);
    // A quota that is no positive number cannot be written; the command line does not let it through.
    let cpu = manual.cpu_cores.filter(|cores| cores.is_finite() && *cores > 0.0).map(Limit::CpuMax);
    memory.into_iter().chain(cpu).map(|limit| (limit, Origin::Manual)).collect()
}

fn elastic(prediction: &Prediction, manual: Manual, capacity: Capacity) -> Vec<Limit> {
    // At or above the hard limit or the host's memory a reclaim target changes nothing.
    let ceiling = manual.memory_bytes.unwrap_or(u64::MAX).min(capacity.memory_bytes);
    let high = estimate(prediction, Resource::MemoryPeakBytes)
        .map(|memory| whole(memory.upper))
        .filter(|high| *high > 0 && *high < ceiling)
        .map(Limit::MemoryHigh);
    let weight = estimate(prediction, Resource::CpuCoresMean)
        .map(|cpu| whole((cpu.expected * 100.0).round()).min(CPU_WEIGHT_MAX))
        .filter(|weight| *weight > CPU_WEIGHT_NORMAL)
        .map(Limit::CpuWeight);
    high.into_iter().chain(weight).collect()
}

fn strict(prediction: &Prediction, manual: Manual, capacity: Capacity) -> Vec<Limit> {
    let memory = estimate(prediction, Resource::MemoryPeakBytes)
        .filter(|_| manual.memory_bytes.is_none())
        .map(|memory| whole(memory.upper))
        .filter(|max| *max > 0 && *max < capacity.memory_bytes)
        .map(Limit::MemoryMax);
    let cpu = estimate(prediction, Resource::CpuCoresPeak)
        .filter(|_| manual.cpu_cores.is_none())
        .map(|cpu| cpu.upper.max(CPU_MAX_LEAST_CORES))
        .filter(|cores| *cores < capacity.cpus as f64)
        .map(Limit::CpuMax);
    let tasks = estimate(prediction, Resource::TasksPeak)
        .map(|tasks| whole(tasks.upper * 1.5) + 16)
        .filter(|max| *max <= TASKS_MAX)
        .map(Limit::PidsMax);
    memory.into_iter().chain(cpu).chain(tasks).collect()
}

/// Most tasks that Linux allows (`PID_MAX_LIMIT`): the kernel refuses a larger `pids.max` as a number.
const TASKS_MAX: u64 = 4 << 20;

/// An estimate that may limit: one of this task, with a sane upper bound.
fn estimate(prediction: &Prediction, resource: Resource) -> Option<&Estimate> {
    prediction.estimate(resource).filter(|estimate| {
        estimate.level != Level::Host && estimate.upper.is_finite() && estimate.expected.is_finite()
    })
}

/// The next whole number up, within `0..=2^53`.
fn whole(number: f64) -> u64 {
    number.ceil().clamp(0.0, 9_007_199_254_740_992.0) as u64
}

/// The elastic watch: a larger `memory.high` for a task that uses more than [`GROW_AT_SHARE`] of it, at most
/// all of the host's memory. `None` if what it has is enough, or the host has no more. So `memory.high` never
/// stays under a working set that the host has room for.
pub fn grow(current_high_bytes: u64, used_bytes: u64, capacity: Capacity) -> Option<u64> {
    if used_bytes as f64 <= current_high_bytes as f64 * GROW_AT_SHARE {
        return None;
    }
    let wanted = whole(used_bytes as f64 * GROW_FACTOR).min(capacity.memory_bytes);
    (wanted > current_high_bytes).then_some(wanted)
}

#[cfg(test)]
mod tests;
