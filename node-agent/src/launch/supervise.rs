//! A command run as a child, for as long as the launcher has to stay: born in its cgroup, signals passed on,
//! its end passed on too.
//!
//! The child keeps the launcher's process group, terminal, descriptors and signal dispositions. Signals that
//! the terminal sends reach both; those that somebody sends to the launcher alone are forwarded. Where the
//! child stops (Ctrl-Z, reading from the background), the launcher stops after it, so that the shell sees a
//! stopped job once the job has put the terminal in order, and not before.

use super::command::Command;
use super::held::{self, Bond, Dispositions, Exit, Held, Place, StartError};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
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

/// A child: held before it executes the command until [`Child::release`].
#[derive(Debug)]
pub struct Child {
    process: Held,
    signals: SignalFd,
    original: Dispositions,
}

impl Child {
    /// Forks the process that will be `command`. `cgroup` is the v2 directory that it is born in; it writes
    /// itself into the `entrances` (v1 hierarchies) before it executes.
    ///
    /// # Errors
    /// What `clone3` says.
    pub fn fork(command: &Command, cgroup: Option<&File>, entrances: &[File]) -> Result<Self, StartError> {
        let original = Dispositions::take_over(&handled())?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&handled(), flags)?;
        let place = Place { cgroup, entrances, descriptors: &[] };
        let process = Held::fork(command, &command.prepare(), place, &original, Bond::Job)?;
        Ok(Self { process, signals, original })
    }

    /// Lets the child execute its command.
    ///
    /// # Errors
    /// [`StartError::Execute`] with what `execve` says; the child is gone then.
    pub fn release(&mut self) -> Result<(), StartError> {
        self.process.release().inspect_err(|_| self.original.restore())
    }

    /// Ends a child that was never released.
    pub fn abandon(self) {
        self.process.abandon();
        self.original.restore();
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits for at most `timeout`, forwarding signals. `true` once the child has ended.
    pub fn wait_for(&self, timeout: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut watched = [
            PollFd::new(self.process.pidfd().as_fd(), PollFlags::POLLIN),
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
                _ = nix::sys::signal::kill(Pid::from_raw(self.pid()), signal);
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
        let waker = wake_when_it_goes_on(self.pid());
        let stop = SigSet::from_iter([signal]);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), None);
        // Raised while blocked: the terminal's own SIGTSTP may be pending too, and the two must be one stop.
        _ = nix::sys::signal::raise(signal);
        _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&stop), None);
        _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&handled()), None);
        if let Some(waker) = waker {
            _ = nix::sys::signal::kill(waker, Signal::SIGKILL);
            _ = held::wait(waker.as_raw());
        }
        // A shell continues the whole group; only who names the launcher alone leaves the child stopped.
        for _ in 0..CONTINUE_WAIT_MS {
            if !is_stopped(self.pid()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        _ = nix::sys::signal::kill(Pid::from_raw(self.pid()), Signal::SIGCONT);
    }

    /// The signal that has just stopped the child, told once per stop.
    fn stopped_by(&self) -> Option<Signal> {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(Pid::from_raw(self.pid())), flags) {
            Ok(WaitStatus::Stopped(_, signal)) => Some(signal),
            _ => None,
        }
    }

    /// Collects the ended child.
    ///
    /// # Errors
    /// What `wait4` says.
    pub fn reap(&self) -> io::Result<Exit> {
        self.process.reap()
    }
}

/// What the launcher reads from its signal descriptor.
fn handled() -> SigSet {
    FORWARDED.into_iter().chain([Signal::SIGCHLD]).collect()
}

/// Whether a process is stopped, by a signal or a tracer.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    matches!(crate::host::task_state(&stat), Some('T' | 't'))
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
