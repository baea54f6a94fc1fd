//! A service: a command that must not stop serving, with warm shadows that take over.
//!
//! The launcher stays as the supervisor of its service, and no agent is needed for it: instances are its
//! children, and an agent that dies takes nothing along. Two threads: the *guard* (`guard`) sees and acts within
//! microseconds, the *supervisor* (this thread) starts instances, brings them up (`bring_up`), probes them
//! (`probe`), answers `ps`, `failover` and `stop` (`control`) and records.
//!
//! Cgroups: an instance has one of its own below that of the run; commands that warm one run in `warm` beside
//! them, so that their connections can be told apart.

pub mod adopt;
mod bring_up;
pub mod control;
mod fork;
mod guard;
mod health;
mod home;
mod lodged;
mod places;
pub mod probe;
mod record;
mod sockets;
mod supervisor;

pub use home::Home;
pub use lodged::Lodged;
pub use places::{Place as ControlPlace, control_directory};
pub(crate) use places::{lent_pins, lent_pins_to_be};
pub use record::Recorder;
pub(crate) use supervisor::WARMING;
pub use supervisor::{ServiceError, supervise};

use crate::balance::Rules;
use probe::Probe;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

/// How a shadow comes to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShadowKind {
    /// The command is started once more, and frozen when it is warm.
    #[default]
    Spawned,
    /// The primary is made to fork; the copy shares its memory.
    Forked,
}

/// What the user wants of a service.
#[derive(Clone, Debug)]
pub struct Options {
    /// By which it is known to `ps`, `failover` and `stop`.
    pub name: String,
    /// Least and most shadows.
    pub shadows: (usize, usize),
    /// How they come to be.
    pub kind: ShadowKind,
    /// A forked shadow is made anew after so long.
    pub refresh: Duration,
    /// What must succeed before an instance serves, and while it does.
    pub ready_probe: Option<Probe>,
    /// How often, and for how long, the primary is probed.
    pub probe_interval: Duration,
    /// See above.
    pub probe_timeout: Duration,
    /// Run once per shadow, with its connections going to that shadow.
    pub warm_with: Option<OsString>,
    /// The ports that are the service's; whatever it listens on if empty.
    pub ports: Vec<u16>,
    /// Sockets that the service is given (`LISTEN_FDS`), instead of binding its own.
    pub listen: Vec<SocketAddr>,
    /// The service says when it is ready (`READY=1` to `NOTIFY_SOCKET`).
    pub notify: bool,
    /// A primary that mostly takes longer to answer is too slow.
    pub latency_max: Option<Duration>,
    /// How failures are dealt with.
    pub rules: Rules,
    /// How long a shadow may take to get ready.
    pub start_timeout: Option<Duration>,
    /// How long an instance that is told to stop may take before it is killed.
    pub stop_timeout: Duration,
    /// How long an instance may take to finish what it has accepted when a failover was asked for.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: String::new(),
            shadows: (1, 1),
            kind: ShadowKind::Spawned,
            refresh: Duration::from_secs(300),
            ready_probe: None,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(2),
            warm_with: None,
            ports: Vec::new(),
            listen: Vec::new(),
            notify: false,
            latency_max: None,
            rules: Rules::default(),
            start_timeout: None,
            stop_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
        }
    }
}
