//! An instance as the guard keeps it: its cgroup, its main process, the listeners held for it.

use crate::balance::{How, Role};
use crate::cgroup::{InstanceCgroup, processes_below};
use crate::host;
use crate::steer::{Address, Listener};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeSet, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What people see of an instance.
#[derive(Clone, Debug)]
pub(in crate::service) struct View {
    pub(in crate::service) slot: u32,
    /// Counts the instances of the service.
    pub(in crate::service) number: u64,
    /// `None` once it is over.
    pub(in crate::service) role: Option<Role>,
    pub(in crate::service) pid: i32,
    is_reaped: bool,
    pub(in crate::service) is_frozen: bool,
    pub(in crate::service) is_copy: bool,
    /// Milliseconds since 1970.
    pub(in crate::service) since_ms: i64,
    pub(in crate::service) addresses: Vec<Address>,
    pub(in crate::service) queue: u64,
    /// Where its processes are found; `None` where it has no cgroup.
    cgroup: Option<PathBuf>,
}

impl View {
    /// Its processes, as far as they are known. Files are read for it, which is not for the guard's thread.
    pub(in crate::service) fn pids(&self) -> Vec<i32> {
        processes(self.cgroup.as_deref(), self.pid, self.is_reaped)
    }
}

/// All processes of an instance where it has a cgroup, else the main one while it is there.
fn processes(cgroup: Option<&Path>, pid: i32, is_reaped: bool) -> Vec<i32> {
    match cgroup {
        Some(cgroup) => processes_below(cgroup),
        None if pid > 0 && !is_reaped => vec![pid],
        None => Vec::new(),
    }
}

/// Its main process.
pub(super) struct LiveProcess {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// See the head of this file.
pub(in crate::service) struct Live {
    pub(super) number: u64,
    /// `None` where no cgroup can be made: then it is its process group.
    pub(super) cgroup: Option<InstanceCgroup>,
    pub(super) process: Option<LiveProcess>,
    pub(super) listeners: Vec<Listener>,
    /// Its program was executed. Before, the process is a fork of the launcher, with all that is held here open.
    pub(super) is_executed: bool,
    /// Its end is known; the process may still be on its way out.
    pub(super) is_dead: bool,
    pub(super) is_reaped: bool,
    /// Whatever is left in its cgroup has been told to die.
    pub(super) is_killed: bool,
    /// Monotonic clock.
    pub(super) died_at_ns: Option<u64>,
    /// When it will be killed if it has not ended by itself.
    pub(super) deadline: Option<Instant>,
    pub(super) is_frozen: bool,
    /// It was forked off the primary: their listeners are the same sockets.
    pub(super) is_copy: bool,
    since_ms: i64,
}

/// Instances that a supervisor before this one has left.
pub(in crate::service) struct Left {
    /// The one that served; it may be dead.
    pub(in crate::service) primary: u32,
    pub(in crate::service) instances: Vec<(u32, Live)>,
}

impl Left {
    /// Slots of those that can take over.
    pub(super) fn shadows(&self) -> Vec<u32> {
        let others = self.instances.iter().filter(|(slot, live)| *slot != self.primary && !live.is_dead);
        others.map(|(slot, _)| *slot).collect()
    }
}

impl Live {
    /// One that was left, and lives or does not.
    pub(in crate::service) fn left(
        number: u64,
        cgroup: InstanceCgroup,
        pid: i32,
        pidfd: Option<OwnedFd>,
        is_frozen: bool,
    ) -> Self {
        let is_dead = pidfd.is_none();
        let process = pidfd.map(|pidfd| LiveProcess { pid, pidfd });
        let is_reaped = is_dead;
        Self { process, is_executed: true, is_dead, is_reaped, is_frozen, ..Self::new(number, Some(cgroup)) }
    }

    pub(super) fn new(number: u64, cgroup: Option<InstanceCgroup>) -> Self {
        Self {
            number,
            cgroup,
            process: None,
            listeners: Vec::new(),
            is_executed: false,
            is_dead: false,
            is_reaped: false,
            is_killed: false,
            died_at_ns: None,
            deadline: None,
            is_frozen: false,
            is_copy: false,
            since_ms: host::now_ms(),
        }
    }

    pub(super) fn born(&mut self, pid: i32, pidfd: OwnedFd, is_copy: bool) {
        (self.is_copy, self.is_frozen) = (is_copy, is_copy);
        self.process = Some(LiveProcess { pid, pidfd });
    }

    pub(super) fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }

    /// Since now it is something else.
    pub(super) fn mark(&mut self) {
        self.since_ms = host::now_ms();
    }

    pub(super) fn freeze(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            self.is_frozen = true;
            cgroup.freeze();
        }
    }

    pub(super) fn thaw(&mut self) {
        self.is_frozen = false;
        if let Some(cgroup) = &self.cgroup {
            cgroup.thaw();
        }
    }

    /// Kills all of its processes.
    pub(super) fn kill(&mut self) {
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            None if self.pid() > 0 => _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL),
            None => {}
        }
    }

    /// Whether any process of it is left.
    pub(super) fn is_populated(&self) -> bool {
        match &self.cgroup {
            Some(cgroup) => cgroup.is_populated(),
            None => self.pid() > 0 && killpg(Pid::from_raw(self.pid()), None).is_ok(),
        }
    }

    /// Its processes, as far as they are known.
    pub(super) fn pids(&self) -> Vec<i32> {
        let cgroup = self.cgroup.as_ref().map(InstanceCgroup::path);
        processes(cgroup, self.pid(), self.is_reaped)
    }

    /// CPU time that it has used; 0 where that is not known.
    pub(super) fn cpu_ns(&self) -> u64 {
        self.cgroup.as_ref().map_or(0, InstanceCgroup::cpu_ns)
    }

    pub(super) fn signal(&self, signal: i32) {
        if let Some(process) = &self.process
            && let Ok(signal) = Signal::try_from(signal)
            && !self.is_reaped
        {
            _ = nix::sys::signal::kill(Pid::from_raw(process.pid), signal);
        }
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> Vec<Address> {
        let unique: BTreeSet<Address> = self.listeners.iter().map(|listener| listener.address).collect();
        unique.into_iter().collect()
    }

    /// Connections that wait to be accepted.
    pub(super) fn queue(&self) -> u64 {
        self.listeners.iter().map(|listener| u64::from(listener.queue())).sum()
    }

    pub(super) fn known(&self) -> HashSet<u64> {
        self.listeners.iter().map(|listener| listener.cookie).collect()
    }

    /// How the main process has ended; collects it.
    pub(super) fn reap(&mut self) -> Option<How> {
        let pid = self.process.as_ref()?.pid;
        if self.is_reaped {
            return None;
        }
        let status = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
        let how = match status {
            Ok(WaitStatus::Exited(_, code)) => How(code << 8),
            Ok(WaitStatus::Signaled(_, signal, _)) => How(signal as i32),
            // Not our child: another one collects it, and keeps what it was told.
            Err(nix::errno::Errno::ECHILD) if self.has_ended() => How(libc::SIGKILL),
            _ => return None,
        };
        self.is_reaped = true;
        Some(how)
    }

    /// Whether the pidfd says so.
    pub(super) fn has_ended(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(process) = &self.process else { return false };
        let mut watched = [PollFd::new(process.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Whether the main process is stopped by a signal (not by the freezer, and not by a tracer).
    pub(super) fn is_stopped(&self) -> bool {
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let Some(process) = &self.process else { return false };
        matches!(waitid(Id::Pid(Pid::from_raw(process.pid)), flags), Ok(WaitStatus::Stopped(..)))
    }

    pub(super) fn view(&self, slot: u32, role: Option<Role>) -> View {
        View {
            slot,
            number: self.number,
            role,
            pid: self.pid(),
            is_reaped: self.is_reaped,
            is_frozen: self.is_frozen,
            is_copy: self.is_copy,
            since_ms: self.since_ms,
            addresses: self.addresses(),
            queue: self.queue(),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
        }
    }
}
