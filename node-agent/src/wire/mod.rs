//! What the launcher and the agent say to each other over the unix socket.
//!
//! A conversation: the launcher sends [`Request::Start`], the agent answers [`Reply::Started`] once the
//! launcher's process (or the child it names) is in its cgroup with the limits set. The launcher then executes
//! the command in place; its end of the socket closes on exec, which tells the agent that the command runs.
//! Where exec fails it says [`Request::ExecFailed`] instead. A launcher that stays to see the end keeps the
//! connection and sends [`Request::Wait`], which is answered when the run has been recorded.

mod frame;

pub use frame::{FRAME_BYTES_MAX, HEADER_BYTES, WireError, body_length, decode, encode, receive, send};

use crate::fingerprint::Measured;
use crate::fingerprint::key::Feature;
use crate::host::OwnCost;
use crate::predict::Prediction;
use crate::probe::ProgramCost;
use crate::size::{Limits, Manual, Policy};
use crate::store::record::Ending;
use serde::{Deserialize, Serialize};

/// Version of everything in this module. Both sides must have the same: they come in one binary, and a
/// launcher that meets another version measures its task itself.
pub const PROTOCOL_VERSION: u16 = 1;

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
    /// What the agent is.
    Status(AgentStatus),
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
