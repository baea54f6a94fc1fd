//! Where a process may be copied: asleep in a call that waits for work, or about to make one. And how that call
//! is taken up again.
//!
//! A process that is interrupted in a call leaves it with a code for the kernel: take the call up again, with
//! what is left of its time, unless a signal is handled first (-ERESTARTSYS and its like,
//! include/linux/errno.h). The kernel acts on it when the process goes back to user mode, so registers that are
//! put back as they were make the call go on, in the copy too: what the kernel remembers of a timed wait
//! (`restart_block`) is part of what fork copies. Some calls say -EINTR instead; for those the code is changed
//! to -ERESTARTNOHAND, which is -EINTR where a signal is handled and the whole call again where none is.

use super::ptrace::Registers;

const ERESTARTSYS: i64 = 512;
const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Calls that a server waits in for work.
const WAITS: [i64; 19] = [
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_pause,
    libc::SYS_rt_sigtimedwait,
];

/// Calls that say -EINTR when they are interrupted before they have done anything, and can be made again.
const REPEATABLE: [i64; 18] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_io_getevents,
];

/// The registers to put back into a process that was interrupted with `registers`: the same, but for calls that
/// would show the interruption.
pub(super) fn as_if_undisturbed(registers: &Registers) -> Registers {
    let mut restored = *registers;
    let interrupted = registers.rax.cast_signed() == -i64::from(libc::EINTR);
    if interrupted && REPEATABLE.contains(&registers.orig_rax.cast_signed()) {
        restored.rax = (-ERESTARTNOHAND).cast_unsigned();
    }
    restored
}

/// Whether a process at the entry to a call is about to wait for work, for longer than a look: an event loop with
/// work left looks for more without waiting. Calls whose time is not in a register are left out.
pub(super) fn is_about_to_wait(entering: &Registers) -> bool {
    const NO_TIME: i32 = 0;
    // The lower half of a register, which is all that the call sees.
    let waits_for = |register: u64| register as i32 != NO_TIME;
    match entering.orig_rax.cast_signed() {
        libc::SYS_accept | libc::SYS_accept4 => true,
        libc::SYS_poll => waits_for(entering.rdx),
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => waits_for(entering.r10),
        _ => false,
    }
}

/// The registers of a process at the entry to a call, as they were before the call's instruction.
pub(super) fn before_call(entering: &Registers) -> Registers {
    let rip = entering.rip - SYSCALL_BYTES;
    Registers { rax: entering.orig_rax, rip, orig_rax: u64::MAX, ..*entering }
}

/// Whether the process was interrupted while it waited for work, and will take the call up again.
/// Expects registers out of [`as_if_undisturbed`].
pub(super) fn waits(registers: &Registers) -> bool {
    WAITS.contains(&registers.orig_rax.cast_signed()) && is_interrupted(registers)
}

fn is_interrupted(registers: &Registers) -> bool {
    let codes = [ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK];
    registers.orig_rax.cast_signed() >= 0 && codes.contains(&-registers.rax.cast_signed())
}

/// Registers that make the interrupted call from its beginning: where nobody is there to put the real ones back.
pub(super) fn from_the_beginning(registers: &Registers) -> Registers {
    let mut again = *registers;
    if is_interrupted(registers) {
        again.rax = registers.orig_rax;
        again.rip -= SYSCALL_BYTES;
    }
    again.orig_rax = u64::MAX;
    again
}

/// Length of the `syscall` instruction.
const SYSCALL_BYTES: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn in_call(call: i64, rax: i64) -> Registers {
        // SAFETY: all zeroes is a value of this plain C structure.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        registers.orig_rax = call.cast_unsigned();
        registers.rax = rax.cast_unsigned();
        registers.rip = 0x1000;
        registers
    }

    #[test]
    fn a_loop_with_work_left_is_not_about_to_wait() {
        let mut poll = in_call(libc::SYS_poll, -38);
        assert!(!is_about_to_wait(&poll));
        poll.rdx = 500;
        assert!(is_about_to_wait(&poll));
        // As compilers pass -1 in an int.
        poll.rdx = 0xffff_ffff;
        assert!(is_about_to_wait(&poll));
        assert!(is_about_to_wait(&in_call(libc::SYS_accept, -38)));
        assert!(!is_about_to_wait(&in_call(libc::SYS_read, -38)));
        let before = before_call(&poll);
        assert_eq!(
            (before.rax.cast_signed(), before.rip, before.orig_rax),
            (libc::SYS_poll, 0xffe, u64::MAX)
        );
    }

    #[test]
    fn a_wait_that_was_interrupted_is_idle_and_one_that_returned_is_not() {
        assert!(waits(&in_call(libc::SYS_poll, -516)));
        assert!(waits(&in_call(libc::SYS_accept4, -512)));
        assert!(!waits(&in_call(libc::SYS_poll, 1)));
        assert!(!waits(&in_call(libc::SYS_write, -512)));
        assert!(!waits(&in_call(-1, -512)));
    }

    #[test]
    fn a_call_that_would_show_the_interruption_is_repeated() {
        let epoll = as_if_undisturbed(&in_call(libc::SYS_epoll_wait, -4));
        assert_eq!(epoll.rax.cast_signed(), -514);
        assert!(waits(&epoll));
        // Closed all the same: not to be repeated.
        assert_eq!(as_if_undisturbed(&in_call(libc::SYS_close, -4)).rax.cast_signed(), -4);
        assert_eq!(as_if_undisturbed(&in_call(libc::SYS_epoll_wait, 3)).rax, 3);
    }

    #[test]
    fn a_call_made_again_starts_at_its_instruction() {
        let again = from_the_beginning(&in_call(libc::SYS_poll, -516));
        assert_eq!((again.rax.cast_signed(), again.rip), (libc::SYS_poll, 0xffe));
        let in_user_mode = from_the_beginning(&in_call(-1, 7));
        assert_eq!((in_user_mode.rax, in_user_mode.rip), (7, 0x1000));
    }
}
