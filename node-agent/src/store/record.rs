//! What is written about a run, at its start and at its end.

use crate::fingerprint::Measured;
use crate::fingerprint::key::{Feature, TaskKey};
use crate::host::ProcessId;
use crate::predict::Prediction;
use crate::size::admission::Promise;
use crate::size::{Limits, Policy};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Row id of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(pub i64);

/// Who measures a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The agent.
    Agent,
    /// The launcher itself, as root.
    Embedded,
    /// The launcher itself without privileges: the kernel's own accounts only.
    Accounting,
}

/// Everything known when a run starts.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Task and user id.
    pub key: TaskKey,
    /// Name of the user, or the number where there is no name.
    pub user: String,
    /// The command line, as UTF-8 with replacement characters.
    pub command: Vec<String>,
    /// Working directory.
    pub directory: String,
    /// Start, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// Who measures it.
    pub engine: Engine,
    /// The process that will close the run; when it is gone the run is lost.
    pub owner: ProcessId,
    /// The main process of the task, once it is known.
    pub main: Option<ProcessId>,
    /// Path of its cgroup below the cgroup root (`standin/run-…`), and the v2 id.
    pub cgroup: Option<(String, u64)>,
    /// Policy in force.
    pub policy: Policy,
    /// What was known about its inputs.
    pub features: Vec<Feature>,
    /// What was predicted.
    pub prediction: Prediction,
    /// What was limited.
    pub limits: Limits,
    /// How it came in; `None` without an agent.
    pub admission: Option<Admission>,
}

/// How a run came in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Admission {
    /// Who waits less.
    pub priority: i32,
    /// How long it waited, milliseconds.
    pub waited_ms: u64,
    /// What it was promised.
    pub promise: Promise,
    /// It was started although the host had no room for its promise.
    pub overcommitted: bool,
}

/// How a run used the licences of one pool: its connections to the pool's server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LicenseUse {
    /// Most connections at once.
    pub peak: u32,
    /// When the first was asked for, milliseconds since the epoch.
    pub first_at_ms: i64,
    /// Time from asking for a connection to the first bytes of the server, summed over connections; `None` if nobody
    /// saw it.
    pub waited_ms: Option<u64>,
    /// How long they were open, in all.
    pub held_ms: u64,
}

/// How a run used licences, by pool.
pub type LicensesUsed = BTreeMap<String, LicenseUse>;

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Exit code of the main process, if it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended the main process, if one did.
    pub signal: Option<i32>,
    /// The command could not be executed: `errno`. Such a run is no sample.
    pub exec_errno: Option<i32>,
    /// A process of the task was killed because it met its memory limit (or, without limit, the host was full).
    pub out_of_memory: bool,
    /// The task met its limit on tasks.
    pub out_of_tasks: bool,
    /// The CPU quota held it back in a good share of periods.
    pub throttled: bool,
}

/// A run that is not closed.
#[derive(Clone, Debug)]
pub struct OpenRun {
    /// Row id.
    pub id: RunId,
    /// Task and user id.
    pub key: TaskKey,
    /// Name of the user.
    pub user: String,
    /// Who measures it.
    pub engine: Engine,
    /// Policy in force.
    pub policy: Policy,
    /// The process that was to close it.
    pub owner: ProcessId,
    /// Its main process, if it was known.
    pub main: Option<ProcessId>,
    /// Path of its cgroup below the cgroup root, and the v2 id.
    pub cgroup: Option<(String, u64)>,
    /// Start, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// What was limited when it started.
    pub limits: Limits,
    /// How it came in.
    pub admission: Option<Admission>,
    /// The last checkpoint.
    pub measured: Measured,
}

/// The traffic of a service was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFailover {
    /// Name of the service.
    pub service: String,
    /// Who runs it.
    pub uid: u32,
    /// When it began, milliseconds since the epoch.
    pub at_ms: i64,
    /// `died`, `hang`, `unready`, `slow` or `asked`.
    pub cause: String,
    /// In words.
    pub evidence: String,
    /// The instance that had served, if it was still known.
    pub from_instance: Option<i64>,
    /// Its main process.
    pub from_pid: Option<i32>,
    /// The instance that serves since.
    pub to_instance: i64,
    /// Its main process.
    pub to_pid: i32,
    /// What was done, and how many microseconds after `at_ms`.
    pub steps: Vec<(String, u64)>,
    /// Connections that waited to be accepted.
    pub queued: u64,
    /// Connections that were moved, half-open ones included.
    pub migrated: u64,
    /// Connections that the old one had accepted and not finished; `None` if it could not be asked.
    pub open: Option<u64>,
}
