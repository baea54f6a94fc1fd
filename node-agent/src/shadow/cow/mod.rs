//! Forked shadows (`--shadow=cow`): a frozen copy of a running, unmodified, single-threaded server process.
//!
//! The primary is stopped with `ptrace` for the time of a fork, while it waits for work, and made to fork. It
//! goes on at once; the copy, which shares the primary's memory until one of them writes, is repaired (see
//! `repair`), put into a cgroup of its own, frozen there, and let go. The primary's listeners are the copy's
//! too, the same sockets: when the primary has died, the thawed copy serves what is queued.
//!
//! A copy is a snapshot. It repeats the primary's random numbers (not the kernel's), has its buffers, and knows
//! nothing of what came later. What can't be copied safely is refused, with the [`Reason`]. The copy has a
//! process id of its own, and a program that remembers its own does not bear that: asyncio up to Python 3.11 is
//! refused for it. A program that only prints it (nginx's `$pid`, names of files made at the start) goes on
//! with the primary's. Library code that looks for forks by `getpid()` or `pthread_atfork` sees the first and
//! not the second.
//!
//! The copy is a sibling of the primary: the parent of the one is the parent of the other, gets SIGCHLD for it
//! and has to wait for it.
//!
//! **Whatever happens to the tracer, the primary goes on**, and an unfinished copy ends: see `frame`.
//!
//! Only on x86_64: elsewhere [`CowError::Unsupported`].

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "used by what needs x86_64"))]

mod descriptor;
#[cfg(target_arch = "x86_64")]
mod frame;
#[cfg(target_arch = "x86_64")]
mod idle;
mod inspect;
#[cfg(target_arch = "x86_64")]
mod make;
#[cfg(target_arch = "x86_64")]
mod park;
#[cfg(target_arch = "x86_64")]
mod ptrace;
mod refusal;
#[cfg(target_arch = "x86_64")]
mod repair;
#[cfg(target_arch = "x86_64")]
mod site;
mod socket;
#[cfg(target_arch = "x86_64")]
mod stop;
#[cfg(target_arch = "x86_64")]
mod tracee;
mod unix_peer;

pub use refusal::Reason;

use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// A frozen copy. Dropping this leaves it as it is.
#[derive(Debug)]
pub struct Copy {
    /// Its process id.
    pub pid: Pid,
    /// Refers to it, whoever gets its id later.
    pub pidfd: OwnedFd,
    /// Who has to wait for it once it has ended: the primary's parent.
    pub parent: Pid,
    /// How long the primary stood still, from when it was found to wait.
    pub pause: Duration,
    /// What was made anew in the copy.
    pub repairs: Repairs,
}

/// What a copy does not share with the primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Connected sockets, which look closed to the copy.
    pub connections: usize,
    /// epoll instances, event counters and timers.
    pub objects: usize,
}

/// Why there is no copy. In every case the primary goes on undisturbed.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// The process is of a kind that can't be copied safely.
    #[error("the process can't be copied: {0}")]
    Refused(#[from] Reason),
    /// Not at this moment. Trying again later helps.
    #[error("the process can't be copied now: {0}")]
    Busy(Busy),
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// Only x86_64 is supported.
    #[error("copies of running processes are made on x86_64 only; use shadows that are started")]
    Unsupported,
    /// Something that should work did not.
    #[error("failed to {action}: {source}")]
    Failed {
        /// What was tried.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl CowError {
    fn failed<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Failed { action: action.into(), source: source.into() }
    }
}

/// Why a copy has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The process does not wait for work.
    Works,
    /// A signal came in.
    Signal,
    /// There is no room on the stack that the process waits on.
    NoRoom,
    /// It opened or closed something meanwhile.
    Changed,
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Works => "it is at work",
            Self::Signal => "a signal came in",
            Self::NoRoom => "its stack has no room",
            Self::Changed => "it opened or closed a descriptor meanwhile",
        })
    }
}

/// Who is told of each step, and may break off.
type OnStep<'a> = dyn FnMut(&'static str) -> io::Result<()> + Send + 'a;

/// The steps of a copy, as they are told.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Steps<'a>(&'a dyn Fn(&'static str) -> io::Result<()>);

#[cfg(target_arch = "x86_64")]
impl Steps<'_> {
    fn reached(self, step: &'static str) -> Result<(), CowError> {
        (self.0)(step).map_err(CowError::failed(format!("go on after: {step}")))
    }
}

/// Makes `primary` fork, and leaves the copy frozen in the cgroup `into`, a directory of the v2 hierarchy.
///
/// The work is done on a thread of its own (`ptrace` is by thread), for which the caller waits: some
/// milliseconds, of which the primary stands still for [`Copy::pause`]. That grows with the primary's memory: a
/// fork copies the page tables (17 µs/MB with small pages), and with its connections, each of which is looked at.
/// While it runs, whoever waits for `primary` in another
/// thread of this process (`waitid`) may see its stops (`CLD_TRAPPED`), and must not take them for its end.
///
/// A primary at work is copied when it is about to wait next, for which it has some milliseconds.
///
/// `into` should be empty: all of it is frozen, and stays so. In v1 hierarchies the copy stays in the primary's
/// cgroups.
///
/// # Errors
/// [`CowError`]; in every case the primary goes on, and no copy is left.
pub fn fork_frozen(primary: Pid, into: &Path) -> Result<Copy, CowError> {
    fork_frozen_by_steps(primary, into, &mut |_| Ok(()))
}

/// Like [`fork_frozen`], and tells each step; an error from `on_step` breaks off, as a failure at that point would.
///
/// # Errors
/// Those of [`fork_frozen`], and what `on_step` says.
pub fn fork_frozen_by_steps(primary: Pid, into: &Path, on_step: &mut OnStep) -> Result<Copy, CowError> {
    #[cfg(target_arch = "x86_64")]
    return make::on_own_thread(primary, into, on_step);
    #[cfg(not(target_arch = "x86_64"))]
    {
        _ = (primary, into, on_step);
        Err(CowError::Unsupported)
    }
}
