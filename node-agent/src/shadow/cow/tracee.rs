//! A stopped process in which calls are made, and which is put back as it was.

use super::frame::{Frames, SCRATCH_BYTES};
use super::idle;
use super::inspect::{read_memory, write_memory};
use super::ptrace::{self, Registers, Stop};
use super::site::CallSite;
use super::{Busy, CowError, Steps};
use crate::host;
use nix::unistd::Pid;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Longest wait for a process to stop, and for a call to return. Making a process of 100 GB takes a second or
/// two; all else takes microseconds.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the wait for a stop only yields the CPU; later it sleeps in between.
const YIELD_TIME: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(20);

/// Calls are made with all signals blocked but those that can't be.
const ALL_SIGNALS: u64 = u64::MAX;

/// What a process is put back to.
#[derive(Clone)]
pub(super) struct Origin {
    registers: Registers,
    signal_mask: u64,
    memory: Vec<u8>,
    memory_at: u64,
}

/// A traced process that is stopped.
pub(super) struct Tracee<'a> {
    pid: Pid,
    pidfd: OwnedFd,
    steps: Steps<'a>,
    /// Where calls are made, with the stack pointer at a frame.
    base: Registers,
    scratch: u64,
    origin: Origin,
    /// SIGSTOP, the one signal that can't be blocked and does not kill, came in between.
    stop_came: Cell<bool>,
    made: Cell<Option<Pid>>,
    made_calls: Cell<bool>,
}

impl<'a> Tracee<'a> {
    /// Takes over a process that is at a [`Stop::Interrupted`], to go on with `registers`.
    pub(super) fn new(pid: Pid, pidfd: OwnedFd, registers: Registers, steps: Steps<'a>) -> io::Result<Self> {
        let signal_mask = ptrace::signal_mask(pid)?;
        let origin = Origin { registers, signal_mask, memory: Vec::new(), memory_at: 0 };
        Ok(Self {
            pid,
            pidfd,
            steps,
            base: registers,
            scratch: 0,
            origin,
            stop_came: Cell::new(false),
            made: Cell::new(None),
            made_calls: Cell::new(false),
        })
    }

    /// The copy that `self` has just made, at its first stop.
    pub(super) fn copy(&self, pid: Pid, pidfd: OwnedFd, exit_frame: u64) -> Self {
        let base = Registers { rsp: exit_frame, ..self.base };
        let (origin, made_calls) = (self.origin.clone(), Cell::new(true));
        let (steps, scratch) = (self.steps, self.scratch);
        Self {
            pid,
            pidfd,
            steps,
            base,
            scratch,
            origin,
            stop_came: Cell::new(false),
            made: Cell::new(None),
            made_calls,
        }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Refers to it.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Makes ready for calls: the frames on the stack, then the registers, then the signals. At any moment in
    /// between the process can be let go by the tracer's death.
    ///
    /// # Errors
    /// [`Busy::NoRoom`] where the memory below the stack pointer is not the process's.
    pub(super) fn prepare(&mut self, site: CallSite) -> Result<Frames, CowError> {
        let action = "prepare the process for calls";
        let state = ptrace::extended_state(self.pid).map_err(CowError::failed(action))?;
        let again = idle::from_the_beginning(&self.origin.registers);
        let frames = Frames::new(&again, self.origin.signal_mask, &state, site);
        self.origin.memory = read_memory(self.pid, frames.bottom, frames.bytes.len())
            .map_err(|_| CowError::Busy(Busy::NoRoom))?;
        self.origin.memory_at = frames.bottom;
        self.scratch = frames.scratch;
        self.base = Registers { rip: site.call, rsp: frames.resume, ..self.origin.registers };
        write_memory(self.pid, frames.bottom, &frames.bytes).map_err(|_| CowError::Busy(Busy::NoRoom))?;
        self.made_calls.set(true);
        self.steps.reached("frames written")?;
        self.set_call(libc::SYS_getpid, [0; 6])?;
        self.steps.reached("call set up")?;
        ptrace::set_signal_mask(self.pid, ALL_SIGNALS).map_err(CowError::failed(action))?;
        self.steps.reached("signals blocked")?;
        Ok(frames)
    }

    fn set_call(&self, number: i64, arguments: [u64; 6]) -> Result<(), CowError> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let rax = number.cast_unsigned();
        // No interrupted call: nothing for the kernel to take up again.
        let call = Registers { rax, orig_rax: u64::MAX, rdi, rsi, rdx, r10, r8, r9, ..self.base };
        ptrace::set_registers(self.pid, &call).map_err(CowError::failed("set the process's registers"))
    }

    /// Makes one call.
    ///
    /// # Errors
    /// [`CowError::Failed`] with the call's own error.
    pub(super) fn call(&self, name: &str, number: i64, arguments: [u64; 6]) -> Result<u64, CowError> {
        self.set_call(number, arguments)?;
        self.steps.reached("call")?;
        let failed = || CowError::failed(format!("make the call {name} in process {}", self.pid));
        // The stop at the call's entry, then the one at its exit.
        for step in ["call entered", "call returned"] {
            ptrace::resume_to_call(self.pid, 0).map_err(failed())?;
            while self.wait_in_call()? == Stop::Cloned {
                self.made.set(Some(ptrace::cloned(self.pid).map_err(failed())?));
                self.steps.reached("copy made")?;
                ptrace::resume_to_call(self.pid, 0).map_err(failed())?;
            }
            self.steps.reached(step)?;
        }
        let result = ptrace::registers(self.pid).map_err(failed())?.rax.cast_signed();
        match i32::try_from(-result) {
            Ok(errno @ 1..4096) => Err(failed()(io::Error::from_raw_os_error(errno))),
            _ => Ok(result.cast_unsigned()),
        }
    }

    /// The process that a call has made.
    pub(super) fn made(&self) -> Option<Pid> {
        self.made.get()
    }

    /// Waits for a stop that belongs to a call.
    fn wait_in_call(&self) -> Result<Stop, CowError> {
        match self.wait()? {
            stop @ (Stop::Call | Stop::Cloned) => Ok(stop),
            Stop::Signal(signal) => {
                self.stop_came.set(signal == libc::SIGSTOP);
                Err(CowError::Busy(Busy::Signal))
            }
            Stop::Interrupted | Stop::Group => Err(CowError::Busy(Busy::Signal)),
        }
    }

    /// Waits until the process stops.
    ///
    /// # Errors
    /// [`CowError::Ended`] where it ends instead; [`CowError::Failed`] after [`STOP_TIMEOUT`].
    pub(super) fn wait(&self) -> Result<Stop, CowError> {
        wait_for_stop(self.pid, self.pidfd.as_fd())
    }

    /// Memory for the arguments of calls.
    pub(super) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Writes arguments to the scratch memory.
    pub(super) fn put(&self, bytes: &[u8]) -> Result<(), CowError> {
        debug_assert!(bytes.len() as u64 <= SCRATCH_BYTES);
        write_memory(self.pid, self.scratch, bytes).map_err(CowError::failed("write arguments of a call"))
    }

    /// Reads what a call has written to the scratch memory.
    pub(super) fn take<const N: usize>(&self) -> Result<[u8; N], CowError> {
        let bytes =
            read_memory(self.pid, self.scratch, N).map_err(CowError::failed("read results of a call"))?;
        bytes.try_into().map_err(|_| CowError::Ended)
    }

    /// Puts the process back as it was stopped, wherever it is now, still traced. It goes on from there with the
    /// interrupted call, by the kernel's own rules: signals that have come in between count.
    ///
    /// The frames go last: until the registers are back, they are the way back.
    pub(super) fn settle(&self) -> Result<(), CowError> {
        if !self.made_calls.get() {
            return Ok(());
        }
        self.leave_call()?;
        let failed = || CowError::failed("put the process's registers back");
        ptrace::set_registers(self.pid, &self.origin.registers).map_err(failed())?;
        self.told("registers put back");
        ptrace::set_signal_mask(self.pid, self.origin.signal_mask).map_err(failed())?;
        self.told("signals put back");
        write_memory(self.pid, self.origin.memory_at, &self.origin.memory)
            .map_err(CowError::failed("put the process's stack back"))
    }

    /// Tells a step of putting back, which is not broken off.
    fn told(&self, step: &'static str) {
        _ = self.steps.reached(step);
    }

    /// Gets from a stop in a call to a [`Stop::Interrupted`], on whose way to user mode the kernel looks after
    /// signals and interrupted calls. A call that was only entered is left out.
    fn leave_call(&self) -> Result<(), CowError> {
        let failed = || CowError::failed("take the process out of a call");
        if ptrace::stop(self.pid).map_err(failed())?.is_none() {
            ptrace::interrupt(self.pid).map_err(failed())?;
            self.wait()?;
        }
        let here = ptrace::registers(self.pid).map_err(failed())?;
        ptrace::set_registers(self.pid, &Registers { orig_rax: u64::MAX, ..here }).map_err(failed())?;
        loop {
            // Anew: any stop takes a pending interruption away (`ptrace_stop`, kernel/signal.c).
            ptrace::interrupt(self.pid).map_err(failed())?;
            ptrace::resume(self.pid, 0).map_err(failed())?;
            match self.wait()? {
                Stop::Interrupted => {
                    self.told("call left");
                    return Ok(());
                }
                Stop::Signal(signal) => self.stop_came.set(signal == libc::SIGSTOP),
                Stop::Call | Stop::Cloned | Stop::Group => {}
            }
        }
    }

    /// Lets the process go, and stops it if that was kept from it.
    pub(super) fn detach(&self) -> Result<(), CowError> {
        ptrace::detach(self.pid).map_err(CowError::failed("let go of the process"))?;
        if self.stop_came.take() {
            _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::STOP);
        }
        Ok(())
    }
}

/// Waits until a traced process stops.
///
/// # Errors
/// [`CowError::Ended`] where it ends instead; [`CowError::Failed`] after [`STOP_TIMEOUT`].
pub(super) fn wait_for_stop(pid: Pid, pidfd: BorrowedFd) -> Result<Stop, CowError> {
    stop_within(pid, pidfd, STOP_TIMEOUT)?.ok_or_else(|| {
        let error = io::Error::from(io::ErrorKind::TimedOut);
        CowError::failed(format!("stop process {pid} ({}; is its cgroup frozen?)", what_it_does(pid)))(error)
    })
}

/// What a process does that does not stop: its state, and where it waits in the kernel.
fn what_it_does(pid: Pid) -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let state = host::task_state(&read("stat")).unwrap_or('?');
    let place = read("wchan");
    format!("state {state} in {}", if place.is_empty() { "an unknown place" } else { &place })
}

/// Waits until a traced process stops; `None` where it does not within `time`.
pub(super) fn stop_within(pid: Pid, pidfd: BorrowedFd, time: Duration) -> Result<Option<Stop>, CowError> {
    let start = Instant::now();
    loop {
        // Looked at before the stop: who comes late himself looks once more.
        let is_over = start.elapsed() > time;
        if let Some(stop) = ptrace::stop(pid).map_err(CowError::failed("ask for the process's stop"))? {
            return Ok(Some(stop));
        }
        if start.elapsed() < YIELD_TIME {
            std::thread::yield_now();
            continue;
        }
        if has_ended(pidfd) {
            return Err(CowError::Ended);
        }
        if is_over {
            return Ok(None);
        }
        std::thread::sleep(NAP);
    }
}

/// Whether a process has ended.
pub(super) fn has_ended(pidfd: BorrowedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
}
