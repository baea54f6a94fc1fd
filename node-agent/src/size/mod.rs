//! From a prediction to limits. Pure: in come a [`Prediction`], the policy, what the user demands and what
//! the host has; out go the [`Limits`] to write before the task starts.

pub mod admission;
pub mod elastic;

use crate::fingerprint::demand::Quota;
use crate::host::Capacity;
use crate::predict::{Estimate, Level, Prediction, Resource};
use elastic::{Bounds, Following};
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

/// What the user demands of the limits, on the command line or in the configuration. It holds whatever the
/// policy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manual {
    /// Hard memory limit, bytes.
    pub memory_bytes: Option<u64>,
    /// CPU limit, cores.
    pub cpu_cores: Option<f64>,
    /// Limit on tasks.
    pub tasks: Option<u64>,
    /// Limit on reads from each disk, bytes per second.
    pub io_read_bytes_per_s: Option<u64>,
    /// Limit on writes to each disk, bytes per second.
    pub io_write_bytes_per_s: Option<u64>,
    /// Memory that the task is promised at least, bytes: no predicted limit goes below it.
    pub memory_floor_bytes: Option<u64>,
    /// Cores that the task is promised at least.
    pub cpu_floor_cores: Option<f64>,
    /// Whether [`Policy::Elastic`] sets a CPU quota that follows the task. A weight does without the pauses.
    pub cpu_quota: Option<bool>,
}

impl Manual {
    /// Whether a limit is among it.
    pub fn has_limits(&self) -> bool {
        !by_hand(*self).is_empty()
    }
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
    /// `memory.low`, bytes (v1 has none): up to this, memory is reclaimed elsewhere first.
    MemoryLow(u64),
    /// `cpu.max`, cores (v1 `cpu.cfs_quota_us`).
    CpuMax(f64),
    /// `cpu.max.burst`, cores times the period (v1 `cpu.cfs_burst_us`): unused quota that is kept for later.
    CpuBurst(f64),
    /// `cpu.weight`, 1–10000, 100 is normal (v1 `cpu.shares`).
    CpuWeight(u64),
    /// `pids.max`, tasks.
    PidsMax(u64),
    /// `io.weight`, 1–10000, 100 is normal (v1 `blkio.bfq.weight`).
    IoWeight(u64),
    /// `io.max rbps` on every disk, bytes per second (v1 `blkio.throttle.read_bps_device`).
    IoReadMax(u64),
    /// `io.max wbps` on every disk, bytes per second (v1 `blkio.throttle.write_bps_device`).
    IoWriteMax(u64),
}

/// The limits of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits(pub Vec<(Limit, Origin)>);

/// Weight of a cgroup for which nobody sets one, and the largest there is (cgroup-v2.rst).
const WEIGHT_NORMAL: u64 = 100;
const WEIGHT_MAX: u64 = 10_000;

/// Expected traffic for which a task gets a normal I/O weight once more, bytes per second.
const IO_WEIGHT_STEP: f64 = (100 << 20) as f64;

/// Least predicted CPU limit, cores: below it a task hardly starts.
pub const CPU_MAX_LEAST_CORES: f64 = 0.1;

/// The limits for a task about to start.
///
/// - Limits given by hand always hold, are hard, and take the place of predicted ones of their kind.
/// - [`Policy::Elastic`]: a reclaim target at the upper bound of memory, which follows the task ([`elastic`]);
///   what it is expected to use is protected; for tasks that are expected to use more than one core a CPU weight
///   of 100 per core, for those with much I/O a larger I/O weight. Nobody gets less weight than normal: a task
///   that needs more than it did must not starve.
/// - [`Policy::Strict`]: hard limits on memory, CPU and tasks at the upper bounds, each left out where the
///   host has no more than that anyway. I/O is not limited: what is predicted are means, and a limit there
///   would cut every peak.
/// - Estimates of [`Level::Host`] limit nothing.
pub fn size(prediction: &Prediction, policy: Policy, manual: Manual, capacity: Capacity) -> Limits {
    let mut limits = by_hand(manual);
    let predicted = match policy {
        Policy::Observe => Vec::new(),
        Policy::Elastic => self::predicted(prediction, manual, capacity),
        Policy::Strict => strict(prediction, manual, capacity),
    };
    limits.extend(predicted.into_iter().map(|limit| (limit, Origin::Predicted)));
    Limits(limits)
}

/// The limits of a run that follow it, as they are now: those that [`Policy::Elastic`] set.
pub fn following(limits: &Limits, policy: Policy, manual: Manual, capacity: Capacity) -> Following {
    if policy != Policy::Elastic {
        return Following::default();
    }
    let predicted = || limits.0.iter().filter(|(_, origin)| *origin == Origin::Predicted);
    let memory = predicted().find_map(|(limit, _)| match limit {
        Limit::MemoryHigh(bytes) => Some((*bytes, memory_bounds(manual, capacity))),
        _ => None,
    });
    let cpu = predicted().find_map(|(limit, _)| match limit {
        Limit::CpuMax(cores) => Some((*cores, cpu_bounds(manual, capacity))),
        _ => None,
    });
    Following::new(memory, cpu)
}

/// At or above the hard limit or the host's memory a reclaim target changes nothing.
fn memory_bounds(manual: Manual, capacity: Capacity) -> Bounds {
    let ceiling = manual.memory_bytes.unwrap_or(u64::MAX).min(capacity.memory_bytes);
    Bounds { floor: manual.memory_floor_bytes.unwrap_or(0).min(ceiling) as f64, ceiling: ceiling as f64 }
}

fn cpu_bounds(manual: Manual, capacity: Capacity) -> Bounds {
    let ceiling = capacity.cpus as f64;
    Bounds { floor: manual.cpu_floor_cores.unwrap_or(0.0).clamp(CPU_MAX_LEAST_CORES, ceiling), ceiling }
}

fn by_hand(manual: Manual) -> Vec<(Limit, Origin)> {
    // A quota that is no positive number cannot be written; the command line does not let it through.
    let cpu_cores = manual.cpu_cores.filter(|cores| cores.is_finite() && *cores > 0.0);
    let limits = [
        manual.memory_bytes.map(Limit::MemoryMax),
        cpu_cores.map(Limit::CpuMax),
        manual.tasks.map(|tasks| Limit::PidsMax(tasks.min(TASKS_MAX))),
        manual.io_read_bytes_per_s.map(Limit::IoReadMax),
        manual.io_write_bytes_per_s.map(Limit::IoWriteMax),
    ];
    limits.into_iter().flatten().map(|limit| (limit, Origin::Manual)).collect()
}

fn predicted(prediction: &Prediction, manual: Manual, capacity: Capacity) -> Vec<Limit> {
    let bounds = memory_bounds(manual, capacity);
    let memory = estimate(prediction, Resource::MemoryPeakBytes);
    let high = memory.map(|memory| whole(memory.upper.max(bounds.floor)));
    let high = high.filter(|high| *high > 0 && (*high as f64) < bounds.ceiling);
    let low = memory.map_or(0.0, |memory| memory.expected).max(bounds.floor).min(bounds.ceiling);
    let cores = estimate(prediction, Resource::CpuCoresMean).map_or(0.0, |cpu| cpu.expected);
    let cores = cores.max(manual.cpu_floor_cores.unwrap_or(0.0));
    let quota = if manual.cpu_quota == Some(true) { quota(prediction, manual, capacity) } else { Vec::new() };
    let of = |resource| estimate(prediction, resource).map_or(0.0, |rate| rate.expected);
    let traffic = of(Resource::IoReadBytesPerS) + of(Resource::IoWriteBytesPerS);
    let protected = Some(whole(low)).filter(|low| *low > 0).map(Limit::MemoryLow);
    let weight = more_than_normal(cores * WEIGHT_NORMAL as f64).map(Limit::CpuWeight);
    let io_weight = more_than_normal(traffic / IO_WEIGHT_STEP * WEIGHT_NORMAL as f64).map(Limit::IoWeight);
    let first = [high.map(Limit::MemoryHigh), protected, weight].into_iter().flatten();
    first.chain(quota).chain(io_weight).collect()
}

fn more_than_normal(weight: f64) -> Option<u64> {
    Some(whole(weight.round()).min(WEIGHT_MAX)).filter(|weight| *weight > WEIGHT_NORMAL)
}

/// The predicted CPU limit and what may be saved up of it, where the host has more and none was given by hand: from the
/// demand per 100 ms and per second; where that was never measured, from the peak.
fn quota(prediction: &Prediction, manual: Manual, capacity: Capacity) -> Vec<Limit> {
    let bounds = cpu_bounds(manual, capacity);
    let upper = |resource| estimate(prediction, resource).map(|cpu| cpu.upper);
    let demand = upper(Resource::CpuCoresP95Of100Ms).zip(upper(Resource::CpuCoresP95Of1S));
    let (cores, burst) = match (demand, upper(Resource::CpuCoresPeak)) {
        (Some((in_period, in_second)), _) => {
            let mean = estimate(prediction, Resource::CpuCoresMean).map_or(0.0, |mean| mean.expected);
            let quota = Quota::of(in_period, in_second, mean);
            (quota.cores, quota.burst_cores())
        }
        (None, Some(peak)) => (peak, f64::INFINITY),
        (None, None) => return Vec::new(),
    };
    let cores = cores.max(bounds.floor);
    if manual.cpu_cores.is_some() || cores.is_nan() || cores >= bounds.ceiling {
        return Vec::new();
    }
    // The kernel refuses a burst above the quota.
    let burst = Some(burst.min(cores)).filter(|burst| *burst > 0.0);
    [Some(Limit::CpuMax(cores)), burst.map(Limit::CpuBurst)].into_iter().flatten().collect()
}

fn strict(prediction: &Prediction, manual: Manual, capacity: Capacity) -> Vec<Limit> {
    let bounds = memory_bounds(manual, capacity);
    let memory = estimate(prediction, Resource::MemoryPeakBytes)
        .filter(|_| manual.memory_bytes.is_none())
        .map(|memory| whole(memory.upper.max(bounds.floor)))
        .filter(|max| *max > 0 && *max < capacity.memory_bytes)
        .map(Limit::MemoryMax);
    let quota = quota(prediction, manual, capacity);
    let tasks = estimate(prediction, Resource::TasksPeak)
        .filter(|_| manual.tasks.is_none())
        .map(|tasks| whole(tasks.upper * 1.5) + 16)
        .filter(|max| *max <= TASKS_MAX)
        .map(Limit::PidsMax);
    memory.into_iter().chain(quota).chain(tasks).collect()
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

#[cfg(test)]
mod tests;
