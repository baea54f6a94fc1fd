//! Stops a process where it waits for work, or is about to.

use super::idle;
use super::ptrace::{self, Registers, Stop};
use super::tracee::{stop_within, wait_for_stop};
use super::{Busy, CowError, Reason};
use nix::unistd::Pid;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How long a process at work is followed from call to call until it is about to wait. Each call costs it two
/// stops, some 20 µs.
const FOLLOW_TIME: Duration = Duration::from_millis(20);
/// Code segment of 64-bit programs (`__USER_CS`, arch/x86/include/asm/segment.h).
const CODE_SEGMENT_64: u64 = 0x33;
/// Marks calls of x32 programs (arch/x86/include/uapi/asm/unistd.h).
const X32_CALL: u64 = 0x4000_0000;

/// Stops the process, which is traced from then on, and says with which registers it is to go on.
///
/// # Errors
/// [`Busy::Works`] where it does not come to wait in time. On every error it goes on, and is not traced.
pub(super) fn where_it_waits(pid: Pid, pidfd: BorrowedFd) -> Result<Registers, CowError> {
    ptrace::seize(pid).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => CowError::Refused(Reason::TraceDenied),
        Some(libc::ESRCH) => CowError::Ended,
        _ => CowError::failed(format!("trace process {pid}"))(error),
    })?;
    let found = find(pid, pidfd);
    if found.is_err() {
        // One that runs is let go by the end of this thread.
        _ = ptrace::detach(pid);
    }
    found
}

fn find(pid: Pid, pidfd: BorrowedFd) -> Result<Registers, CowError> {
    let registers = interrupt(pid, pidfd)?;
    if idle::waits(&registers) {
        return Ok(registers);
    }
    if let Some(registers) = follow(pid, pidfd)? {
        return Ok(registers);
    }
    let registers = interrupt(pid, pidfd)?;
    if idle::waits(&registers) { Ok(registers) } else { Err(CowError::Busy(Busy::Works)) }
}

/// Brings the process to a [`Stop::Interrupted`], from which it would go on undisturbed.
fn interrupt(pid: Pid, pidfd: BorrowedFd) -> Result<Registers, CowError> {
    let failed = || CowError::failed(format!("stop process {pid}"));
    ptrace::interrupt(pid).map_err(failed())?;
    loop {
        let signal = match wait_for_stop(pid, pidfd)? {
            Stop::Interrupted => break,
            Stop::Group => return Err(Reason::Stopped.into()),
            Stop::Signal(signal) => signal,
            Stop::Call | Stop::Cloned => 0,
        };
        // Anew: any stop takes a pending interruption away (`ptrace_stop`, kernel/signal.c).
        ptrace::interrupt(pid).map_err(failed())?;
        ptrace::resume(pid, signal).map_err(failed())?;
    }
    let registers = idle::as_if_undisturbed(&ptrace::registers(pid).map_err(failed())?);
    ptrace::set_registers(pid, &registers).map_err(failed())?;
    let in_call = registers.orig_rax.cast_signed() >= 0;
    if registers.cs != CODE_SEGMENT_64 || (in_call && registers.orig_rax & X32_CALL != 0) {
        return Err(Reason::NotX86_64.into());
    }
    Ok(registers)
}

/// Follows the process from call to call. Where it is about to wait, it is kept from entering the call, and
/// stopped before it.
fn follow(pid: Pid, pidfd: BorrowedFd) -> Result<Option<Registers>, CowError> {
    let failed = || CowError::failed(format!("follow process {pid}"));
    let start = Instant::now();
    let mut signal = 0;
    loop {
        ptrace::resume_to_call(pid, signal).map_err(failed())?;
        let left = FOLLOW_TIME.saturating_sub(start.elapsed());
        signal = match stop_within(pid, pidfd, left)? {
            None => return Ok(None),
            Some(Stop::Group) => return Err(Reason::Stopped.into()),
            Some(Stop::Signal(signal)) => signal,
            Some(Stop::Call) if ptrace::is_at_entry(pid).map_err(failed())? => {
                let entering = ptrace::registers(pid).map_err(failed())?;
                if idle::is_about_to_wait(&entering) {
                    return before_call(pid, pidfd, &entering).map(Some);
                }
                0
            }
            Some(_) => 0,
        };
        if left.is_zero() {
            return Ok(None);
        }
    }
}

fn before_call(pid: Pid, pidfd: BorrowedFd, entering: &Registers) -> Result<Registers, CowError> {
    let before = idle::before_call(entering);
    // Without a number the call is left out, and the process is led back to its instruction.
    ptrace::set_registers(pid, &before).map_err(CowError::failed("keep the process from a call"))?;
    let registers = interrupt(pid, pidfd)?;
    // Otherwise a signal has led it elsewhere.
    if registers.rip == before.rip { Ok(registers) } else { Err(CowError::Busy(Busy::Signal)) }
}
