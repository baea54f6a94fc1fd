//! What the launcher and the agent say to each other over the unix socket.
//!
//! A conversation: the launcher sends [`Request::Start`]; while the task has to wait the agent answers
//! [`Reply::Waiting`], again and again; then [`Reply::Started`] once the
//! launcher's process (or the child it names) is in its cgroup with the limits set. The launcher then executes
//! the command in place; its end of the socket closes on exec, which tells the agent that the command runs.
//! Where exec fails it says [`Request::ExecFailed`] instead. A launcher that stays to see the end keeps the
//! connection and sends [`Request::Wait`], which is answered when the run has been recorded.

mod bounds;
mod descriptors;
mod frame;

pub use descriptors::receive_descriptors;
pub use frame::{
    FRAME_BYTES_MAX, HEADER_BYTES, REQUEST_BYTES_MAX, WireError, body_length, decode, encode, receive, send,
};

use crate::fingerprint::Measured;
use crate::fingerprint::key::Feature;
use crate::host::OwnCost;
use crate::live::{Snapshot, TaskDetail};
use crate::predict::Prediction;
use crate::probe::ProgramCost;
use crate::size::admission::{Licenses, Promise, Total, WhenFull};
use crate::size::{Limits, Manual, Policy};
use crate::steer::Wanted;
use crate::store::record::{Ending, NewFailover};
use serde::{Deserialize, Serialize};

/// Version of everything in this module. Both sides must have the same: they come in one binary, and a
/// launcher that meets another version measures its task itself.
pub const PROTOCOL_VERSION: u16 = 3;

/// Longest command line that is sent for the record, bytes; what is over is cut off.
pub const COMMAND_BYTES_MAX: usize = 64 * 1024;

/// From launcher to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Take a process into a new run.
    Start(Box<Start>),
    /// The command of the run started on this connection could not be executed: `errno`.
    ExecFailed(i32),
    /// The command of the run started on this connection runs: answer when it has been recorded.
    Wait,
    /// What the agent is.
    Status,
    /// What is promised, and who waits.
    Queue,
    /// The run started on this connection is a service: steer its connections. Answered by [`Reply::Lent`] and then
    /// one byte with the descriptors.
    Steer(Wanted),
    /// The traffic of a service of the caller's was moved: record it.
    FailedOver(Box<NewFailover>),
    /// Take up a container whose first process a runtime has made, before it executes anything.
    Container(Box<Container>),
    /// The caller's own part of the database. Answered by [`Reply::Lent`] and then one byte with a descriptor, of a
    /// file in memory that is a database.
    History,
    /// What the agent sees now.
    Live,
    /// Everything about the task of this cgroup (`TaskNow::id`).
    LiveTask(u64),
}

/// A container about to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// What the runtime calls it.
    pub id: String,
    /// What would be asked for it as a task; its first process is `start.pid`.
    pub start: Start,
    /// The runtime was asked for a CPU weight: none is predicted.
    pub has_cpu_weight: bool,
    /// Likewise for an I/O weight.
    pub has_io_weight: bool,
    /// Likewise for `memory.high` or `memory.low`, or their v1 twin.
    pub has_memory_target: bool,
}

/// A task about to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The process to take in: a child of the caller, or the caller itself if `None`.
    pub pid: Option<i32>,
    /// Kind of task.
    pub task_type: String,
    /// The command line, for people; at most [`COMMAND_BYTES_MAX`].
    pub command: Vec<String>,
    /// Working directory.
    pub directory: String,
    /// What is known about the inputs.
    pub features: Vec<Feature>,
    /// How hard limits are; `None` leaves it to the agent's configuration.
    pub policy: Option<Policy>,
    /// Limits by hand.
    pub manual: Manual,
    /// What becomes of processes that outlive the main one.
    pub leftover: Leftover,
    /// What it asks of the queue.
    pub admission: Asked,
}

/// What a task asks of the queue. What is not said is left to the agent's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// What happens when the host has no room.
    pub when_full: Option<WhenFull>,
    /// How long it waits at most.
    pub wait_max_ms: Option<u64>,
    /// Who waits less.
    pub priority: Option<i32>,
    /// Licences, where it names any; 0 takes none, whatever past runs used.
    pub licenses: Licenses,
    /// When it came, milliseconds since the epoch: its place in the queue of an agent that was started again.
    pub since_ms: i64,
}

/// When a run ends, and what becomes of processes that are still there then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftover {
    /// The run ends with its main process; others are left alone, without limits.
    #[default]
    Leave,
    /// The run ends with its main process; others are killed.
    Kill,
    /// The run ends when its last process does.
    Wait,
}

/// From agent to launcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The calling process is in its cgroup: go.
    Started(Box<Started>),
    /// The run asked for has been recorded.
    Finished(Box<Finished>),
    /// The task waits for its turn; said again while it does.
    Waiting(Waiting),
    /// The task may not start: there is no room, and it does not wait or has waited long enough; or it asked for
    /// what it can't have.
    Denied(String),
    /// What the agent is.
    Status(AgentStatus),
    /// What is promised, and who waits.
    Queue(Box<QueueStatus>),
    /// The descriptors asked for follow.
    Lent,
    /// It is done.
    Done,
    /// What the agent sees now, of the asker's tasks; all for root.
    Live(Box<Snapshot>),
    /// Everything about one task.
    LiveTask(Box<TaskDetail>),
    /// The request can't be done; the reason is for people.
    Refused(String),
}

/// The answer to [`Request::Start`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// What is expected of it.
    pub prediction: Prediction,
    /// Limits in force.
    pub limits: Limits,
    /// What people should know (a limit that was refused).
    pub notes: Vec<String>,
}

/// A run that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Its number in the database; `None` if it could not be recorded.
    pub run: Option<i64>,
    /// Kind of task.
    pub task_type: String,
    /// Who ran it.
    pub user: String,
    /// How it ended.
    pub ending: Ending,
    /// What was measured.
    pub measured: Measured,
    /// What had been predicted.
    pub prediction: Prediction,
    /// Limits that were in force.
    pub limits: Limits,
    /// What people should know.
    pub notes: Vec<String>,
}

/// The answer to [`Request::Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Database that it writes.
    pub database: String,
    /// Runs under way.
    pub running: usize,
    /// Runs recorded since it started.
    pub recorded: u64,
    /// Probes: name, and the hook or why it is not attached.
    pub probes: Vec<(String, Result<String, String>)>,
    /// What the probes lost: what it is, and how often.
    pub lost: Vec<(String, u64)>,
    /// What the BPF programs cost when it was counted last, the dearest first.
    pub costs: Vec<ProgramCost>,
    /// What the agent itself costs.
    pub own: OwnCost,
}

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many come before it.
    pub ahead: usize,
    /// How long it will probably take; `None` where that is not known.
    pub expected_ms: Option<i64>,
    /// What it lacks, in words.
    pub lacks: String,
}

/// The answer to [`Request::Queue`]. Others' tasks have no names for ordinary users.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// What there is to promise.
    pub total: Total,
    /// What is promised.
    pub promised: Promise,
    /// Memory that tasks could have now without swapping, the reserve taken off, bytes.
    pub free_memory_bytes: u64,
    /// Tasks under way, the oldest first.
    pub running: Vec<QueueEntry>,
    /// Tasks that wait, in their order.
    pub waiting: Vec<QueueEntry>,
}

/// A task in the ledger or in the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// Kind of task; `None` if it is another user's.
    pub task_type: Option<String>,
    /// Who runs it.
    pub user: String,
    /// Its process, or the launcher that waits.
    pub pid: i32,
    /// Number of its run, once it is recorded.
    pub run_id: Option<i64>,
    /// Who waits less.
    pub priority: i32,
    /// What it is promised.
    pub promise: Promise,
    /// Memory that counts for it now, bytes.
    pub memory_bytes: u64,
    /// When it came or started, milliseconds since the epoch.
    pub since_ms: i64,
    /// How long it will probably run or wait from now, milliseconds; negative where it is late.
    pub expected_ms: Option<i64>,
}
