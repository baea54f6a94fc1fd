//! The act: judge, stop, fork, let the primary go, repair the copy, freeze it.

use super::descriptor::{self, Kind};
use super::inspect::{self, Holdings, Mapping, Standing};
use super::ptrace;
use super::repair::{self, Snapshot};
use super::site::CallSite;
use super::tracee::{Tracee, has_ended};
use super::{Busy, Copy, CowError, OnStep, Reason, Steps, park, refusal, stop};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// `PR_GET_TID_ADDRESS` (include/uapi/linux/prctl.h)
const PR_GET_TID_ADDRESS: u64 = 40;
/// How long a copy that is given up may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Does it on a thread that ends with it: what the thread still traces then, the kernel lets go.
pub(super) fn on_own_thread(primary: Pid, into: &Path, on_step: &mut OnStep) -> Result<Copy, CowError> {
    let work = || {
        let on_step = RefCell::new(on_step);
        fork_frozen(primary, into, Steps(&|step| (on_step.borrow_mut())(step)))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("shadow-copy".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(CowError::failed("start a thread"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn fork_frozen(primary: Pid, into: &Path, steps: Steps) -> Result<Copy, CowError> {
    park::check(into)?;
    let pidfd = open(primary)?;
    let copy = judge(primary).and_then(|judged| make_copy(primary, &judged, into, steps));
    // Whatever was in the way of a process that has ended: this is why.
    copy.map_err(|error| if has_ended(pidfd.as_fd()) { CowError::Ended } else { error })
}

fn open(pid: Pid) -> Result<OwnedFd, CowError> {
    let id = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(CowError::Ended)?;
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => Err(CowError::Ended),
        opened => opened.map_err(CowError::failed(format!("open process {pid}"))),
    }
}

/// What was found of a primary that can be copied.
struct Judged {
    site: CallSite,
    kinds: Vec<(i32, Kind)>,
    parent: Pid,
}

/// Judges the process without touching it.
fn judge(primary: Pid) -> Result<Judged, CowError> {
    let mut standing = Standing::read(primary)?;
    // Found among the holdings, with the descriptor.
    standing.range_locks = 0;
    standing.frozen = inspect::is_frozen(primary);
    refusal::judge_standing(&standing, 0)?;
    let holdings = Holdings::read(primary)?;
    refusal::judge_holdings(&holdings)?;
    let site = CallSite::find(primary, &holdings.mappings).ok_or(Reason::NoCallSite)?;
    Ok(Judged { site, kinds: holdings.descriptors, parent: Pid::from_raw(standing.parent) })
}

fn make_copy(pid: Pid, judged: &Judged, into: &Path, steps: Steps) -> Result<Copy, CowError> {
    let pidfd = open(pid)?;
    let waiting = stop::where_it_waits(pid, pidfd.as_fd())?;
    let start = Instant::now();
    // Declared first to be dropped last: the primary goes on before the copy is ended.
    let mut unfinished = Unfinished(None);
    let tracee =
        Tracee::new(pid, pidfd, waiting, steps).map_err(CowError::failed("read the process's registers"))?;
    let mut primary = Stopped { tracee, still: true };
    steps.reached("stopped")?;
    let (snapshot, mappings) = judge_stopped(pid, judged)?;
    let made = fork(&mut primary.tracee, judged.site, snapshot);
    unfinished.0 = primary.tracee.made().and_then(|pid| open(pid).ok());
    let made = made?;
    let copy = primary.tracee.copy(made.pid, open(made.pid)?, made.exit_frame);
    copy.wait()?;
    ptrace::bind_to_tracer(made.pid).map_err(CowError::failed("bind the copy to its tracer"))?;
    let kinds = descriptor::kinds(made.pid)?;
    let connections = repair::close_what_is_made_anew(&copy, pid, &kinds)?;
    primary.let_go()?;
    let pause = start.elapsed();
    steps.reached("primary let go")?;
    judge_copy(made.pid, judged, &kinds, &mappings)?;
    let repairs = repair::repair(&copy, &connections, &made.snapshot)?;
    copy.settle()?;
    park::park(made.pid, into)?;
    steps.reached("copy parked")?;
    copy.detach()?;
    steps.reached("copy let go")?;
    park::wait_until_frozen(into)?;
    let pidfd = unfinished.0.take().ok_or(CowError::Ended)?;
    Ok(Copy { pid: made.pid, pidfd, parent: judged.parent, pause, repairs })
}

/// A primary that stands still: let go in the end, as it was, come what may.
struct Stopped<'a> {
    tracee: Tracee<'a>,
    still: bool,
}

impl Stopped<'_> {
    fn let_go(mut self) -> Result<(), CowError> {
        self.still = false;
        self.tracee.settle()?;
        self.tracee.detach()
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.still {
            // Without success the end of this thread lets it go, and its stack leads it back.
            _ = self.tracee.settle().and_then(|()| self.tracee.detach());
        }
    }
}

/// A copy that is ended, unless it is taken out.
struct Unfinished(Option<OwnedFd>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(pidfd) = &self.0 else { return };
        _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        let start = Instant::now();
        while !has_ended(pidfd.as_fd()) && start.elapsed() < END_TIMEOUT {
            std::thread::sleep(Duration::from_micros(100));
        }
        // As its tracer: after this its parent is told. As its parent: it is gone.
        _ = rustix::process::waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
}

/// Judges the process again, now that it can't change, and reads what the copy is made anew from.
fn judge_stopped(pid: Pid, judged: &Judged) -> Result<(Snapshot, Vec<Mapping>), CowError> {
    let standing = Standing::read(pid)?;
    refusal::judge_standing(&standing, nix::unistd::gettid().as_raw())?;
    if standing.pending_deliverable != 0 {
        return Err(CowError::Busy(Busy::Signal));
    }
    let objects = descriptor::objects(pid, &judged.kinds).map_err(|_| CowError::Busy(Busy::Changed))?;
    if !judged.site.is_valid(pid) {
        return Err(CowError::Busy(Busy::Changed));
    }
    let robust_list = robust_list(pid).map_err(CowError::failed("read the list of robust mutexes"))?;
    Ok((Snapshot { objects, robust_list, parent_death_signal: 0 }, inspect::mappings(pid)?))
}

fn robust_list(pid: Pid) -> io::Result<(u64, u64)> {
    let (mut head, mut length) = (0_u64, 0_u64);
    let pid = pid.as_raw();
    // SAFETY: both pointers are to 64-bit integers of ours: a pointer and a size on x86_64.
    let result = unsafe { libc::syscall(libc::SYS_get_robust_list, pid, &raw mut head, &raw mut length) };
    if result == 0 { Ok((head, length)) } else { Err(io::Error::last_os_error()) }
}

/// A copy that was just made, stopped.
struct Made {
    pid: Pid,
    exit_frame: u64,
    snapshot: Snapshot,
}

/// Asks the process for what `/proc` does not tell, and makes it fork.
fn fork(primary: &mut Tracee, site: CallSite, mut snapshot: Snapshot) -> Result<Made, CowError> {
    let frames = primary.prepare(site)?;
    let scratch = primary.scratch();
    let prctl = |option: u64| primary.call("prctl", libc::SYS_prctl, [option, scratch, 0, 0, 0, 0]);
    if prctl(libc::PR_GET_DUMPABLE as u64)? != 1 {
        return Err(Reason::NotDumpable.into());
    }
    refuse_interval_timers(primary)?;
    primary.put(&[0; 8])?;
    prctl(libc::PR_GET_PDEATHSIG as u64)?;
    snapshot.parent_death_signal = u64::from_ne_bytes(primary.take()?);
    prctl(PR_GET_TID_ADDRESS)?;
    // The C library keeps the thread's id there: mutexes are owned by it.
    let tid_at = u64::from_ne_bytes(primary.take()?);
    let tid_flags = if tid_at == 0 { 0 } else { libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID };
    let flags = u64::from((libc::CLONE_PARENT | tid_flags).cast_unsigned());
    let arguments = [flags, frames.exit, 0, tid_at, 0, 0];
    ptrace::follow_clone(primary.pid()).map_err(CowError::failed("follow the fork"))?;
    primary.call("clone", libc::SYS_clone, arguments)?;
    Ok(Made { pid: primary.made().ok_or(CowError::Ended)?, exit_frame: frames.exit, snapshot })
}

fn refuse_interval_timers(primary: &Tracee) -> Result<(), CowError> {
    for which in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        let which = u64::from(which.cast_unsigned());
        primary.call("getitimer", libc::SYS_getitimer, [which, primary.scratch(), 0, 0, 0, 0])?;
        if primary.take::<32>()? != [0; 32] {
            return Err(Reason::IntervalTimer.into());
        }
    }
    Ok(())
}

/// Judges the stopped copy. It has what the primary had when it stood still, so this is about what could have
/// changed between the first look and the stop.
fn judge_copy(
    copy: Pid,
    judged: &Judged,
    kinds: &[(i32, Kind)],
    mappings: &[Mapping],
) -> Result<(), CowError> {
    let holdings = Holdings::read(copy)?;
    refusal::judge_holdings(&holdings)?;
    refusal::judge_inheritance(mappings, &holdings.mappings)?;
    if objects_in(kinds) == objects_in(&judged.kinds) { Ok(()) } else { Err(CowError::Busy(Busy::Changed)) }
}

/// The descriptors that the snapshot was made of.
fn objects_in(kinds: &[(i32, Kind)]) -> Vec<&(i32, Kind)> {
    let is_object = |kind: &Kind| matches!(kind, Kind::Epoll | Kind::Event | Kind::Timer);
    kinds.iter().filter(|(_, kind)| is_object(kind)).collect()
}
