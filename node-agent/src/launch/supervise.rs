//! A command run as a child, for as long as the launcher has to stay: born in its cgroup, signals passed on,
//! its end passed on too.
//!
//! The child keeps the launcher's process group, terminal, descriptors and signal dispositions. Signals that
//! the terminal sends reach both; those that somebody sends to the launcher alone are forwarded. Where the
//! child stops (Ctrl-Z, reading from the background), the launcher stops after it, so that the shell sees a
//! stopped job once the job has put the terminal in order, and not before.

use super::command::Command;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Signals that are passed on to the child when they were sent to the launcher by a process.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTSTP,
];

/// Pause between two looks whether a stopped child goes on.
const STOPPED_LOOK: Duration = Duration::from_millis(20);

/// How long a child may take to go on by itself after the launcher was continued, before it is told to.
const CONTINUE_WAIT_MS: u32 = 20;

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

/// A child: held before it executes the command until [`Child::release`].
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    signals: SignalFd,
    /// A byte lets the child go on.
    hold: OwnedFd,
    /// The child writes its `errno` here if it can't execute; it closes when it can.
    report: File,
    original: Dispositions,
}

impl Child {
    /// Forks the process that will be `command`. `cgroup` is the v2 directory that it is born in; it writes
    /// itself into the `entrances` (v1 hierarchies) before it executes.
    ///
    /// # Errors
    /// What `clone3` says.
    pub fn fork(command: &Command, cgroup: Option<&File>, entrances: &[File]) -> Result<Self, StartError> {
        let prepared = command.prepare();
        let original = Dispositions::take_over()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&handled(), flags)?;
        let (hold_read, hold) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (report, report_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let launcher = nix::unistd::getpid();
        match clone_into(cgroup)? {
            None => {
                // The copy of the parent's end must not keep the pipe open.
                drop(hold);
                let errno = enter_and_execute(command, &prepared, entrances, &hold_read, &original, launcher);
                // SAFETY: the descriptor is open and the buffer is 4 bytes; this child must not unwind.
                unsafe {
                    libc::write(report_write.as_raw_fd(), (&raw const errno).cast(), 4);
                    libc::_exit(127)
                }
            }
            Some((pid, pidfd)) => Ok(Self { pid, pidfd, signals, hold, report: report.into(), original }),
        }
    }

    /// Lets the child execute its command.
    ///
    /// # Errors
    /// [`StartError::Execute`] with what `execve` says; the child is gone then.
    pub fn release(&mut self) -> Result<(), StartError> {
        // Fails only if the child is gone, which its report or its status will tell.
        _ = nix::unistd::write(&self.hold, &[1]);
        let mut errno = [0; 4];
        if self.report.read_exact(&mut errno).is_err() {
            return Ok(());
        }
        _ = wait(self.pid);
        self.original.restore();
        Err(StartError::Execute(i32::from_ne_bytes(errno)))
    }

    /// Ends a child that was never released.
    pub fn abandon(self) {
        _ = nix::sys::signal::kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        _ = wait(self.pid);
        self.original.restore();
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for at most `timeout`, forwarding signals. `true` once the child has ended.
    pub fn wait_for(&self, timeout: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut watched = [
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        _ = poll(&mut watched, timeout);
        let ended = watched[0].any() == Some(true);
        self.forward();
        ended
    }

    /// The signal by which somebody wants the launcher to end, while its child is held.
    pub fn told_to_end(&self) -> Option<Signal> {
        let ends = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];
        while let Ok(Some(info)) = self.signals.read_signal() {
            if let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed())
                && ends.contains(&signal)
            {
                return Some(signal);
            }
        }
        None
    }

    /// Passes on what was sent to the launcher. What the kernel sent (the terminal's keys) went to the child
    /// as well: it shares the process group.
    fn forward(&self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGCHLD as u32 {
                self.stop_along();
            } else if info.ssi_code <= 0
                && let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed())
            {
                _ = nix::sys::signal::kill(Pid::from_raw(self.pid), signal);
            }
        }
    }

    /// Stops as the child has stopped, if somebody can see it: there is a terminal. Comes back when this process
    /// is continued, and sees to it that the child is too; or when the child goes on by other means.
    fn stop_along(&self) {
        let Some(signal) = self.stopped_by() else { return };
        if File::open("/dev/tty").is_err() {
            return;
        }
        let waker = wake_when_it_goes_on(self.pid);
        let stop = SigSet::from_iter([signal]);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), None);
        // Raised while blocked: the terminal's own SIGTSTP may be pending too, and the two must be one stop.
        _ = nix::sys::signal::raise(signal);
        _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&stop), None);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled()), None);
        if let Some(waker) = waker {
            _ = nix::sys::signal::kill(waker, Signal::SIGKILL);
            _ = wait(waker.as_raw());
        }
        // A shell continues the whole group; only who names the launcher alone leaves the child stopped.
        for _ in 0..CONTINUE_WAIT_MS {
            if !is_stopped(self.pid) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        _ = nix::sys::signal::kill(Pid::from_raw(self.pid), Signal::SIGCONT);
    }

    /// The signal that has just stopped the child, told once per stop.
    fn stopped_by(&self) -> Option<Signal> {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(Pid::from_raw(self.pid)), flags) {
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            _ => None,
        }
    }

    /// Collects the ended child.
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
    prepared: &super::command::Prepared,
    entrances: &[File],
    hold: &OwnedFd,
    original: &Dispositions,
    launcher: Pid,
) -> i32 {
    for entrance in entrances {
        // SAFETY: the descriptor is open and "0" (the calling process) is one byte long. A hierarchy that
        // refuses is one whose limits do not hold; the command runs all the same.
        unsafe { libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) };
    }
    // A launcher that is killed takes its job along, as it would have without standin.
    // SAFETY: plain system call.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut byte = [0];
    while nix::unistd::read(hold, &mut byte) == Err(Errno::EINTR) {}
    if byte != [1] || nix::unistd::getppid() != launcher {
        // It died before it let us go, or before the signal above was asked for.
        // SAFETY: ends this process without running anything of its parent's.
        unsafe { libc::_exit(127) };
    }
    original.restore();
    command.execute(prepared) as i32
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

fn wait(pid: i32) -> io::Result<Exit> {
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

/// What the launcher reads from its signal descriptor.
fn handled() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Whether a process is stopped, by a signal or a tracer.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// A process that continues this one, which is about to stop, once the process `pid` goes on: nobody else
/// would, if the job is continued from within.
fn wake_when_it_goes_on(pid: i32) -> Option<Pid> {
    let launcher = nix::unistd::getpid();
    // SAFETY: the launcher has one thread, so the copy may do what the original may. It ends by `_exit`.
    match unsafe { nix::unistd::fork() }.ok()? {
        nix::unistd::ForkResult::Parent { child } => Some(child),
        nix::unistd::ForkResult::Child => {
            _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
            // SAFETY: plain system call.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            while is_stopped(pid) && nix::unistd::getppid() == launcher {
                std::thread::sleep(STOPPED_LOOK);
            }
            if nix::unistd::getppid() == launcher {
                _ = nix::sys::signal::kill(launcher, Signal::SIGCONT);
            }
            // SAFETY: ends this process without running anything of its parent's.
            unsafe { libc::_exit(0) }
        }
    }
}

/// What the child must get back of the signal state that the launcher changes for itself.
#[derive(Debug)]
struct Dispositions {
    mask: SigSet,
    child_ignored: bool,
    pipe_default: bool,
}

impl Dispositions {
    /// Blocks the signals to forward, and makes sure that children can be waited for (somebody may have
    /// started the launcher with SIGCHLD ignored) and that a reader who leaves does not kill the launcher.
    fn take_over() -> Result<Self, Errno> {
        let mut mask = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled()), Some(&mut mask))?;
        // SAFETY: only the dispositions of two signals of this process are set, to no handler.
        let (child, pipe) = unsafe {
            (libc::signal(libc::SIGCHLD, libc::SIG_DFL), libc::signal(libc::SIGPIPE, libc::SIG_IGN))
        };
        Ok(Self { mask, child_ignored: child == libc::SIG_IGN, pipe_default: pipe == libc::SIG_DFL })
    }

    /// Puts everything back. Only system calls, so it may run between fork and exec.
    fn restore(&self) {
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

/// Ends this process as the job ended: with its exit code, or by the same signal (without a core dump of our
/// own; 128+N if the signal can't end us).
pub fn pass_on(status: i32) -> u8 {
    if libc::WIFEXITED(status) {
        return libc::WEXITSTATUS(status) as u8;
    }
    let signal = libc::WTERMSIG(status);
    // SAFETY: plain system calls on this process; the structures are complete.
    unsafe {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    u8::try_from(128 + signal).unwrap_or(255)
}
