//! A process that has been forked, sits in its cgroup and waits to be let go: what every way of starting a
//! command as a child begins with. Nothing of the command has run yet, so it can still be looked at, named to
//! the probes, or given up.

use super::command::{Command, Prepared};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `include/uapi/linux/sched.h`; libc's own constant has the wrong width.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How a process ended, and what the kernel says it used (`wait4`).
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Status as `wait(2)` has it.
    pub status: i32,
    /// Resources of the process and of its children that it waited for.
    pub usage: libc::rusage,
}

/// Where a process is born.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The v2 directory; its parent's if `None`.
    pub cgroup: Option<&'a File>,
    /// Files of v1 hierarchies that it writes itself into before it executes.
    pub entrances: &'a [File],
    /// Descriptors that it finds as 3, 4, ….
    pub descriptors: &'a [OwnedFd],
}

/// The first number of [`Place::descriptors`] (`SD_LISTEN_FDS_START` of sd_listen_fds(3)).
const DESCRIPTORS_START: i32 = 3;

/// Most of them.
pub const DESCRIPTORS_MAX: usize = 16;

/// How close a process stays to the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bond {
    /// Of its process group, with its standard input; killed with it, as it would have been without standin.
    Job,
    /// In a process group of its own, so that the terminal's keys reach the launcher alone, and without
    /// standard input. It outlives the launcher, to be taken up by another.
    Service,
    /// The same, but killed with the launcher: nobody could take it up.
    BoundService,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    pidfd: OwnedFd,
    /// A byte lets the process go on.
    hold: OwnedFd,
    /// The process writes its `errno` here if it can't execute; it closes when it can.
    report: File,
}

impl Held {
    /// Forks the process that will be `command`.
    ///
    /// # Errors
    /// What `pipe2` and `clone3` say.
    pub fn fork(
        command: &Command,
        prepared: &Prepared,
        place: Place,
        original: &Dispositions,
        bond: Bond,
    ) -> Result<Self, StartError> {
        let (hold_read, hold) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (report, report_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let launcher = nix::unistd::getpid();
        match clone_into(place.cgroup)? {
            None => {
                // The copy of the parent's end must not keep the pipe open.
                drop(hold);
                let launcher = (bond != Bond::Service).then_some(launcher);
                let report = out_of_the_way(report_write.as_raw_fd(), place.descriptors);
                let errno = enter_and_execute(command, prepared, place, &hold_read, original, launcher, bond);
                // SAFETY: the descriptor is open and the buffer is 4 bytes; this child must not unwind.
                unsafe {
                    libc::write(report, (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            Some((pid, pidfd)) => Ok(Self { pid, pidfd, hold, report: report.into() }),
        }
    }

    /// Lets the process execute its command.
    ///
    /// # Errors
    /// [`StartError::Execute`] with what `execve` says; the process is gone then.
    pub fn release(&mut self) -> Result<(), StartError> {
        // Fails only if the process is gone, which its report or its status will tell.
        _ = nix::unistd::write(&self.hold, &[1]);
        let mut errno = [0; 4];
        if self.report.read_exact(&mut errno).is_err() {
            return Ok(());
        }
        _ = self.reap();
        Err(StartError::Execute(i32::from_ne_bytes(errno)))
    }

    /// Ends a process that was never released.
    pub fn abandon(&self) {
        _ = nix::sys::signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        _ = self.reap();
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable once it has ended.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Collects the process if it has ended.
    pub fn try_reap(&self) -> Option<Exit> {
        let mut watched = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if ended { self.reap().ok() } else { None }
    }

    /// Collects the ended process.
    ///
    /// # Errors
    /// What `wait4` says.
    pub fn reap(&self) -> io::Result<Exit> {
        wait(self.pid)
    }
}

/// Why a child did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No process could be made.
    #[error("failed to start a process: {0}")]
    Fork(#[from] Errno),
    /// The process could not execute the command: `errno`.
    #[error("failed to execute: {}", Errno::from_raw(*.0).desc())]
    Execute(i32),
}

/// In the child, before exec: no allocation, no lock, no unwinding. Returns the reason why exec failed.
fn enter_and_execute(
    command: &Command,
    prepared: &Prepared,
    place: Place,
    hold: &OwnedFd,
    original: &Dispositions,
    // Whose death is to be its own, if anybody's.
    launcher: Option<Pid>,
    bond: Bond,
) -> i32 {
    for entrance in place.entrances {
        // SAFETY: the descriptor is open and "0" (the calling process) is one byte long. A hierarchy that
        // refuses is one whose limits do not hold; the command runs all the same.
        unsafe { libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) };
    }
    // SAFETY: plain system calls.
    unsafe {
        if launcher.is_some() {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        if bond != Bond::Job {
            libc::setpgid(0, 0);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            libc::dup2(null, 0);
        }
    }
    let mut byte = [0];
    while nix::unistd::read(hold, &mut byte) == Err(Errno::EINTR) {}
    if byte != [1] || launcher.is_some_and(|launcher| nix::unistd::getppid() != launcher) {
        // It died before it let us go, or before the signal above was asked for.
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) };
    }
    original.restore();
    hand_over(place.descriptors);
    prepared.stamp();
    command.execute(prepared) as i32
}

/// A copy of a descriptor above those that will be handed over.
fn out_of_the_way(descriptor: i32, handed_over: &[OwnedFd]) -> i32 {
    let above = DESCRIPTORS_START + i32::try_from(handed_over.len()).unwrap_or(0);
    // SAFETY: plain system call.
    unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, above) }
}

/// Gives descriptors the numbers from [`DESCRIPTORS_START`] on. In two passes: a number may be another's source.
fn hand_over(descriptors: &[OwnedFd]) {
    let mut copies = [-1; DESCRIPTORS_MAX];
    for (copy, descriptor) in copies.iter_mut().zip(descriptors) {
        *copy = out_of_the_way(descriptor.as_raw_fd(), descriptors);
    }
    for (number, copy) in (DESCRIPTORS_START..).zip(copies).take(descriptors.len()) {
        // SAFETY: plain system call; the new number is not closed on exec.
        unsafe { libc::dup2(copy, number) };
    }
}

/// Forks, straight into `cgroup` where one is given and the kernel can (5.7). `None` in the child.
fn clone_into(cgroup: Option<&File>) -> Result<Option<(i32, OwnedFd)>, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut arguments = libc::clone_args {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: parent and child return here with separate memory. The
    // structure is complete and `pidfd` outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match Errno::result(result)? {
        0 => Ok(None),
        // SAFETY: the kernel has just opened this descriptor for us.
        pid => Ok(Some((i32::try_from(pid).unwrap_or(-1), unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

/// Collects a child.
pub(super) fn wait(pid: i32) -> io::Result<Exit> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for the call.
        match unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(Exit { status, usage }),
        }
    }
}

/// What the child must get back of the signal state that the launcher changes for itself.
#[derive(Debug)]
pub struct Dispositions {
    mask: SigSet,
    child_ignored: bool,
    pipe_default: bool,
}

impl Dispositions {
    /// Blocks the signals that this process will read (`handled`), and makes sure that children can be waited for (somebody may have
    /// started the launcher with SIGCHLD ignored) and that a reader who leaves does not kill the launcher.
    ///
    /// # Errors
    /// What `sigprocmask` says.
    pub fn take_over(handled: &SigSet) -> Result<Self, Errno> {
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(handled), Some(&mut mask))?;
        // SAFETY: only the dispositions of two signals of this process are set, to no handler.
        let (child, pipe) = unsafe {
            (libc::signal(libc::SIGCHLD, libc::SIG_DFL), libc::signal(libc::SIGPIPE, libc::SIG_IGN))
        };
        Ok(Self { mask, child_ignored: child == libc::SIG_IGN, pipe_default: pipe == libc::SIG_DFL })
    }

    /// Puts everything back. Only system calls, so it may run between fork and exec.
    pub fn restore(&self) {
        // SAFETY: as in `take_over`.
        unsafe {
            if self.child_ignored {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            }
            if self.pipe_default {
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            }
        }
        _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None);
    }
}
