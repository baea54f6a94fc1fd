//! The `ptrace(2)` requests that a copy needs, each as a function; the only file that calls `ptrace`.
//!
//! What kind of stop a process is in is asked of the process (`PTRACE_GETSIGINFO`), never of `waitid`: the
//! status of a stop is handed out once per process, and a thread of ours that waits for its children would take
//! it away.

use libc::c_uint;
use nix::unistd::Pid;
use std::io;
use std::ptr::{from_mut, from_ref};

/// General registers, as the kernel shows them.
pub(super) type Registers = libc::user_regs_struct;

const PTRACE_EVENT_CLONE: i32 = 3;
const PTRACE_EVENT_STOP: i32 = 128;
const PTRACE_O_TRACESYSGOOD: usize = 1;
const PTRACE_O_TRACECLONE: usize = 1 << PTRACE_EVENT_CLONE;
const PTRACE_O_EXITKILL: usize = 1 << 20;
const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;
/// Largest extended state that is read: AMX tiles are 8 KiB, all else below 3 KiB.
const EXTENDED_STATE_BYTES_MAX: usize = 16 * 1024;
/// Size of the kernel's signal set.
const SIGNAL_SET_BYTES: usize = 8;

/// Why a traced process stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the entry to or the exit of a system call.
    Call,
    /// It has made a process, which is traced too.
    Cloned,
    /// It was interrupted, or is new.
    Interrupted,
    /// Its whole process is stopped by a signal.
    Group,
    /// A signal is about to be delivered.
    Signal(i32),
}

fn request(request: c_uint, pid: Pid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: every caller passes an address and data that `request` takes, alive for the call.
    let result = unsafe { libc::ptrace(request, pid.as_raw(), address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches without stopping. The process survives this thread, whatever happens: no `EXITKILL`.
pub(super) fn seize(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD)
}

/// From now on what the process makes is traced too.
pub(super) fn follow_clone(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE)
}

/// From now on the process dies with this thread.
pub(super) fn bind_to_tracer(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)
}

/// Makes the process stop, or stop once more before it gets to user mode.
pub(super) fn interrupt(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, pid, 0, 0)
}

/// Lets the process go on to the next entry or exit of a system call, with the signal that it stopped for, or
/// without one: 0.
pub(super) fn resume_to_call(pid: Pid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, 0, signal.cast_unsigned() as usize)
}

/// Lets the process go on, with the signal that it stopped for, or without one: 0.
pub(super) fn resume(pid: Pid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, pid, 0, signal.cast_unsigned() as usize)
}

/// Lets go of the process.
pub(super) fn detach(pid: Pid) -> io::Result<()> {
    request(libc::PTRACE_DETACH, pid, 0, 0)
}

/// The stop that the process is in; `None` while it runs, and once it has ended.
pub(super) fn stop(pid: Pid) -> io::Result<Option<Stop>> {
    // SAFETY: all zeroes is a value of this plain C structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    match request(libc::PTRACE_GETSIGINFO, pid, 0, from_mut(&mut info).addr()) {
        Ok(()) => Ok(Some(classify(info.si_signo, info.si_code))),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `si_code` of a stop is the event in the second byte and the signal in the first, except where a signal is
/// about to be delivered: there it is the sender's (`ptrace_do_notify`, kernel/signal.c). Senders can't choose
/// codes above 0.
fn classify(signal: i32, code: i32) -> Stop {
    match (code >> 8, code & 0xff) {
        _ if code == libc::SIGTRAP | 0x80 => Stop::Call,
        (PTRACE_EVENT_CLONE, _) => Stop::Cloned,
        (PTRACE_EVENT_STOP, libc::SIGTRAP) => Stop::Interrupted,
        (PTRACE_EVENT_STOP, _) => Stop::Group,
        _ => Stop::Signal(signal),
    }
}

/// Whether a process at a [`Stop::Call`] is about to make the call.
pub(super) fn is_at_entry(pid: Pid) -> io::Result<bool> {
    const PTRACE_SYSCALL_INFO_ENTRY: u8 = 1;
    let mut operation = 0_u8;
    // The first byte of `struct ptrace_syscall_info`; only as much as there is room for is written.
    let (length, at) = (1, from_mut(&mut operation).addr());
    request(libc::PTRACE_GET_SYSCALL_INFO, pid, length, at)?;
    Ok(operation == PTRACE_SYSCALL_INFO_ENTRY)
}

/// The id, as this process sees it, of what was made at [`Stop::Cloned`].
pub(super) fn cloned(pid: Pid) -> io::Result<Pid> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, 0, from_mut(&mut message).addr())?;
    i32::try_from(message).map(Pid::from_raw).map_err(io::Error::other)
}

/// The general registers.
pub(super) fn registers(pid: Pid) -> io::Result<Registers> {
    // SAFETY: all zeroes is a value of this plain C structure.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    let length = size_of::<Registers>();
    let mut part = libc::iovec { iov_base: from_mut(&mut registers).cast(), iov_len: length };
    request(libc::PTRACE_GETREGSET, pid, NT_PRSTATUS, from_mut(&mut part).addr())?;
    Ok(registers)
}

/// Sets the general registers.
pub(super) fn set_registers(pid: Pid, registers: &Registers) -> io::Result<()> {
    let base = from_ref(registers).cast_mut().cast();
    let mut part = libc::iovec { iov_base: base, iov_len: size_of::<Registers>() };
    request(libc::PTRACE_SETREGSET, pid, NT_PRSTATUS, from_mut(&mut part).addr())
}

/// Floating point and vector registers in the layout of the `XSAVE` instruction.
pub(super) fn extended_state(pid: Pid) -> io::Result<Vec<u8>> {
    let mut state = vec![0; EXTENDED_STATE_BYTES_MAX];
    let mut part = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    request(libc::PTRACE_GETREGSET, pid, NT_X86_XSTATE, from_mut(&mut part).addr())?;
    state.truncate(part.iov_len);
    Ok(state)
}

/// The blocked signals; for a call that blocks others while it waits (`ppoll`), those outside of it.
pub(super) fn signal_mask(pid: Pid) -> io::Result<u64> {
    let mut mask = 0_u64;
    request(libc::PTRACE_GETSIGMASK, pid, SIGNAL_SET_BYTES, from_mut(&mut mask).addr())?;
    Ok(mask)
}

/// Sets the blocked signals. SIGKILL and SIGSTOP can't be blocked.
pub(super) fn set_signal_mask(pid: Pid, mask: u64) -> io::Result<()> {
    request(libc::PTRACE_SETSIGMASK, pid, SIGNAL_SET_BYTES, from_ref(&mask).addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        assert_eq!(classify(libc::SIGTRAP, libc::SIGTRAP | 0x80), Stop::Call);
        assert_eq!(classify(libc::SIGTRAP, libc::SIGTRAP | (3 << 8)), Stop::Cloned);
        assert_eq!(classify(libc::SIGTRAP, libc::SIGTRAP | (128 << 8)), Stop::Interrupted);
        assert_eq!(classify(libc::SIGTTIN, libc::SIGTTIN | (128 << 8)), Stop::Group);
        assert_eq!(classify(libc::SIGSTOP, 0), Stop::Signal(libc::SIGSTOP));
        assert_eq!(classify(libc::SIGTRAP, libc::SI_USER), Stop::Signal(libc::SIGTRAP));
        assert_eq!(classify(libc::SIGTERM, libc::SI_TKILL), Stop::Signal(libc::SIGTERM));
    }
}
