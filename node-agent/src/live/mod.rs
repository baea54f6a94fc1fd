//! What an agent sees at one moment, as plain data: one record that it hands out, to a user only with what is the
//! user's. Counters in it only grow, so two records tell what happened between them (`rates`). `standin top` and the
//! metrics are made from nothing else.
//!
//! `host` reads what the kernel says about the whole host; tasks are read by the agent, which has their counters
//! mapped. Everything is bounded: [`TASKS_MAX`], [`WAITING_MAX`].

mod host;
pub mod rates;

pub use host::{HostNow, Pressure, Stall};

use crate::fingerprint::series::Point;
use crate::fingerprint::{Coverage, Fingerprint, Histogram};
use crate::host::OwnCost;
use crate::predict::{Level, Prediction, Resource};
use crate::probe::ProgramCost;
use crate::size::admission::{Promise, Total};
use crate::size::{Limit, Limits};
use crate::wire::QueueEntry;
use serde::{Deserialize, Serialize};

/// Most tasks in one record: it has to fit into a frame. The ones that use the most CPU are there.
pub const TASKS_MAX: usize = 1000;

/// Most waiting tasks in one record, the next ones to start.
pub const WAITING_MAX: usize = 200;

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// When, by a clock that never jumps (`CLOCK_MONOTONIC`), nanoseconds.
    pub clock_ns: u64,
    /// The host.
    pub host: HostNow,
    /// Tasks under way that the asker may see.
    pub tasks: Vec<TaskNow>,
    /// More tasks of the asker's than [`TASKS_MAX`].
    pub tasks_left_out: usize,
    /// Promises, and who waits.
    pub queue: QueueNow,
    /// The agent itself.
    pub agent: AgentNow,
}

/// What a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Started through standin.
    #[default]
    Run,
    /// A cgroup that somebody else made: a systemd unit, a container.
    Cgroup,
}

/// A task under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskNow {
    /// v2 id of its cgroup: unlike that of any other that lives.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Kind of task.
    pub task_type: String,
    /// Who runs it.
    pub user: String,
    /// Number of its run, once it is recorded.
    pub run_id: Option<i64>,
    /// Its main process, where it has one.
    pub pid: Option<i32>,
    /// When it started, milliseconds since 1970.
    pub since_ms: i64,
    /// When `totals` were read, `CLOCK_MONOTONIC`.
    pub clock_ns: u64,
    /// What it has used.
    pub totals: Totals,
    /// Anonymous and shared memory, bytes, at most a second old (of others' cgroups two).
    pub memory_bytes: Option<u64>,
    /// Processes and threads alive.
    pub tasks: Option<u64>,
    /// The memory limit that comes first, and whether it kills.
    pub memory_limit: Option<MemoryLimit>,
    /// CPU quota, cores.
    pub cpu_limit_cores: Option<f64>,
    /// What was predicted for it.
    pub predicted: Predicted,
    /// It has used no CPU for a minute.
    pub is_idle: bool,
}

/// A limit on memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// Bytes.
    pub bytes: u64,
    /// `memory.max`, beyond which the task is killed; else `memory.high`, beyond which it is held back.
    pub is_hard: bool,
}

/// What was predicted for a task from runs of its own kind; the host's mean is no prediction of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Peak of memory, bytes.
    pub memory_bytes: Option<Band>,
    /// Mean cores.
    pub cpu_cores: Option<Band>,
    /// Wall time, seconds.
    pub duration_s: Option<Band>,
}

/// The middle of what is expected, and the bound that is hardly exceeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Band {
    /// The middle.
    pub expected: f64,
    /// The bound.
    pub upper: f64,
}

/// Counters of a task since it started. What is not measured is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// CPU time.
    pub cpu_ns: Option<u64>,
    /// Time that its tasks were runnable and waited for a CPU.
    pub cpu_wait_ns: Option<u64>,
    /// Time in which some of its tasks waited for memory, microseconds.
    pub memory_stalled_us: Option<u64>,
    /// CPU quota periods with something to run.
    pub quota_periods: Option<u64>,
    /// Of those, periods in which the quota ran out.
    pub quota_periods_throttled: Option<u64>,
    /// Bytes of block reads.
    pub read_bytes: Option<u64>,
    /// Bytes of block writes.
    pub write_bytes: Option<u64>,
    /// TCP and UDP payload received.
    pub received_bytes: Option<u64>,
    /// TCP and UDP payload sent.
    pub sent_bytes: Option<u64>,
    /// Page faults that waited for I/O.
    pub faults_major: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Times from request to answer of its servers.
    pub service_ns: Option<Histogram>,
}

/// Promises, and who waits, as the asker may see them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueNow {
    /// What there is to promise.
    pub total: Total,
    /// What is promised.
    pub promised: Promise,
    /// Memory that tasks could have now, the reserve taken off, bytes.
    pub free_memory_bytes: u64,
    /// Tasks that hold a promise.
    pub running: usize,
    /// Tasks that wait, in their order: at most [`WAITING_MAX`].
    pub waiting: Vec<QueueEntry>,
    /// More that wait.
    pub waiting_left_out: usize,
}

/// What the agent costs, and what it misses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentNow {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When it started to measure, milliseconds since 1970.
    pub since_ms: i64,
    /// Tasks under way, those of other users too.
    pub running: usize,
    /// Cgroups of others that are measured.
    pub host_cgroups: usize,
    /// Runs recorded since it started.
    pub recorded: u64,
    /// CPU time, memory.
    pub own: OwnCost,
    /// Its database.
    pub store: StoreNow,
    /// Measures whose probes are attached, and all.
    pub probes: (usize, usize),
    /// What each BPF program cost when that was counted last.
    pub costs: Vec<ProgramCost>,
    /// What the probes lost since they were loaded: what it is, and how often.
    pub lost: Vec<(String, u64)>,
}

/// The database and its writer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreNow {
    /// Size of the database file, bytes.
    pub database_bytes: u64,
    /// Size of its log of changes (`-wal`), bytes.
    pub log_bytes: u64,
    /// Steps that wait to be written.
    pub queued: u64,
    /// Steps that could not be written, or found no room in the queue, since the start.
    pub failures: u64,
}

/// Everything about one task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskDetail {
    /// What was measured up to now, histograms included.
    pub fingerprint: Fingerprint,
    /// Its course.
    pub series: Vec<Point>,
    /// Where numbers come from.
    pub coverage: Coverage,
    /// What was predicted.
    pub prediction: Prediction,
    /// Limits in force.
    pub limits: Limits,
}

impl Predicted {
    /// What a prediction says about the very task.
    pub fn of(prediction: &Prediction) -> Self {
        let band = |resource| {
            let estimate = prediction.estimate(resource).filter(|estimate| estimate.level != Level::Host)?;
            Some(Band { expected: estimate.expected, upper: estimate.upper })
        };
        Self {
            memory_bytes: band(Resource::MemoryPeakBytes),
            cpu_cores: band(Resource::CpuCoresMean),
            duration_s: band(Resource::DurationS),
        }
    }
}

impl MemoryLimit {
    /// The lowest limit on memory among those in force.
    pub fn of(limits: &Limits) -> Option<Self> {
        let of_memory = limits.0.iter().filter_map(|(limit, _)| match *limit {
            Limit::MemoryMax(bytes) => Some(Self { bytes, is_hard: true }),
            Limit::MemoryHigh(bytes) => Some(Self { bytes, is_hard: false }),
            _ => None,
        });
        of_memory.min_by_key(|limit| limit.bytes)
    }
}

/// The CPU quota among limits, cores.
pub fn cpu_limit_cores(limits: &Limits) -> Option<f64> {
    limits.0.iter().find_map(|(limit, _)| match *limit {
        Limit::CpuMax(cores) => Some(cores),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Origin;
    use crate::wire::{FRAME_BYTES_MAX, Reply, encode};

    /// As long as anything in it may be.
    fn largest() -> Snapshot {
        let most = Some(u64::MAX);
        let band = Some(Band { expected: f64::MAX, upper: f64::MAX });
        let task = TaskNow {
            id: u64::MAX,
            kind: Kind::Cgroup,
            task_type: "x".repeat(128),
            user: "u".repeat(32),
            run_id: Some(i64::MAX),
            pid: Some(i32::MAX),
            since_ms: i64::MAX,
            clock_ns: u64::MAX,
            totals: Totals {
                cpu_ns: most,
                cpu_wait_ns: most,
                memory_stalled_us: most,
                quota_periods: most,
                quota_periods_throttled: most,
                read_bytes: most,
                write_bytes: most,
                received_bytes: most,
                sent_bytes: most,
                faults_major: most,
                oom_kills: most,
                service_ns: Some([u64::MAX; 32]),
            },
            memory_bytes: most,
            tasks: most,
            memory_limit: Some(MemoryLimit { bytes: u64::MAX, is_hard: true }),
            cpu_limit_cores: Some(1.0),
            predicted: Predicted { memory_bytes: band, cpu_cores: band, duration_s: band },
            is_idle: true,
        };
        let waiting = QueueEntry {
            task_type: Some("x".repeat(128)),
            user: "u".repeat(32),
            pid: i32::MAX,
            run_id: Some(i64::MAX),
            priority: 100,
            promise: Promise {
                memory_bytes: u64::MAX,
                cpu_cores: 1.0,
                licenses: (0..8).map(|n| (format!("{n:032}"), u32::MAX)).collect(),
            },
            memory_bytes: u64::MAX,
            since_ms: i64::MAX,
            expected_ms: Some(i64::MAX),
        };
        Snapshot {
            tasks: vec![task; TASKS_MAX],
            queue: QueueNow { waiting: vec![waiting; WAITING_MAX], ..QueueNow::default() },
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_largest_record_fits_into_a_frame() {
        let frame = encode(&Reply::Live(Box::new(largest()))).unwrap();
        assert!(frame.len() < FRAME_BYTES_MAX * 9 / 10, "{} bytes", frame.len());
    }

    #[test]
    fn the_limit_that_comes_first_counts() {
        let limits = Limits(vec![
            (Limit::MemoryMax(900), Origin::Manual),
            (Limit::MemoryHigh(700), Origin::Predicted),
            (Limit::CpuMax(1.5), Origin::Predicted),
        ]);
        assert_eq!(MemoryLimit::of(&limits), Some(MemoryLimit { bytes: 700, is_hard: false }));
        assert_eq!(cpu_limit_cores(&limits), Some(1.5));
        assert_eq!(MemoryLimit::of(&Limits::default()), None);
    }
}
