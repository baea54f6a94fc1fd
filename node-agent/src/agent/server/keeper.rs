//! A small process that outlives a killed agent for a moment and takes the reclaim targets off its tasks.
//!
//! On cgroup v2 a task above its `memory.high` all but stands still, and nobody would raise it any more: the job
//! would wait for the next agent. So the agent forks a keeper before it does anything else. The keeper waits for
//! its end of a pipe to close, which the kernel sees to however the agent dies, and then lifts `memory.high` of
//! every run. Limits by hand and those of the policy `strict` are other files, and stay.
//!
//! Where memory is on v1 there is no keeper: a soft limit holds nobody up.

use crate::cgroup::{Hierarchies, Home, RunCgroup};
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, fork, pipe2, setsid};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// The agent's end of the pipe: what it closes by dying.
pub(super) struct Keeper {
    _alive: OwnedFd,
}

/// Starts the keeper of the runs below `parent`, where one is needed.
///
/// Must be called while the process has one thread: the keeper is a copy of it.
pub(super) fn start(parent: &Path) -> Option<Keeper> {
    let hierarchies = Hierarchies::detect().ok()?;
    if hierarchies.home("memory") != Some(Home::V2) {
        return None;
    }
    let (ended, alive) = pipe2(OFlag::O_CLOEXEC).ok()?;
    // SAFETY: there is one thread, so the copy may do what the original may; it ends by `_exit`.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => Some(Keeper { _alive: alive }),
        Ok(ForkResult::Child) => {
            drop(alive);
            keep(&ended, &hierarchies, parent);
            // SAFETY: ends this process without running anything of its parent's.
            unsafe { libc::_exit(0) }
        }
        Err(error) => {
            tracing::warn!("no keeper: tasks may stand still at memory.high if the agent is killed: {error}");
            None
        }
    }
}

fn keep(ended: &OwnedFd, hierarchies: &Hierarchies, parent: &Path) {
    // What ends the agent's process group or its session must not end this.
    _ = setsid();
    _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    close_all_but(ended.as_raw_fd());
    // SAFETY: a constant name, shorter than the kernel's 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"standin-keeper".as_ptr()) };
    // Nobody writes: the only thing that can happen is that the other end closes.
    while matches!(nix::unistd::read(ended, &mut [0; 1]), Ok(1) | Err(nix::errno::Errno::EINTR)) {}
    let_go(hierarchies, parent);
}

/// Takes the reclaim target off every run.
pub(super) fn let_go(hierarchies: &Hierarchies, parent: &Path) {
    let runs = std::fs::read_dir(hierarchies.unified.join(parent)).into_iter().flatten().flatten();
    for run in runs.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if let Some(cgroup) = RunCgroup::existing(hierarchies, &parent.join(run.file_name())) {
            cgroup.lift_high();
        }
    }
}

/// Whoever waits for the agent's output to end must not wait for the keeper.
fn close_all_but(kept: i32) {
    let kept = kept.cast_unsigned();
    // SAFETY: the copy uses none of these descriptors any more.
    unsafe {
        if kept > 0 {
            libc::syscall(libc::SYS_close_range, 0, kept - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, u32::MAX, 0);
    }
}
