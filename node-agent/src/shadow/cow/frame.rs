//! What lies on the stack while calls are made for a process, so that it survives its tracer's death.
//!
//! When a tracer dies, the kernel lets its processes go as they are at that moment: with the registers of a call
//! that is not theirs. So every call is made with the stack pointer at a signal frame, as a handler would have
//! it: the call returns into the signal return, and that loads the registers (`rt_sigreturn`,
//! arch/x86/kernel/signal_64.c). The primary's frame holds what it was stopped with. The copy is made with a
//! frame of its own, which makes it exit: nobody would be there to repair and freeze it.
//!
//! From high to low, below the 128 bytes that a function may use under its stack pointer: extended state, the
//! frame that resumes, the frame that exits, scratch memory for the calls.

use super::ptrace::Registers;
use super::site::CallSite;

/// What a function may use below its stack pointer (System V ABI, AMD64, 3.2.2).
const RED_ZONE_BYTES: u64 = 128;
/// Frame without the signal's description, which the signal return does not read; rounded up.
const FRAME_BYTES: u64 = 512;
/// For the arguments of calls.
pub(super) const SCRATCH_BYTES: u64 = 256;
/// `XSAVE` areas are aligned to this.
const ALIGNMENT: u64 = 64;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// Where in the legacy area software may write; the kernel puts the mask of saved features there.
const SOFTWARE_BYTES_AT: usize = 464;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`
const CONTEXT_FLAGS: u64 = 0x7;
/// Not a value that `sigaltstack` takes: the signal return leaves the alternate stack as it is.
const NO_ALTERNATE_STACK: u64 = 0x10;

/// The frames, and where they belong.
pub(super) struct Frames {
    /// Address of the first of `bytes`.
    pub bottom: u64,
    /// What to write there.
    pub bytes: Vec<u8>,
    /// Stack pointer with which the process finds its way back.
    pub resume: u64,
    /// Stack pointer with which it exits.
    pub exit: u64,
    /// Memory for the arguments of calls, [`SCRATCH_BYTES`] long.
    pub scratch: u64,
}

impl Frames {
    /// Lays them out below the stack pointer in `stopped`. `again` and `mask` are what the process is to go on
    /// with.
    pub(super) fn new(again: &Registers, mask: u64, extended_state: &[u8], site: CallSite) -> Self {
        let state = signal_form(extended_state);
        let top = again.rsp - RED_ZONE_BYTES;
        let state_at = (top - state.len() as u64) & !(ALIGNMENT - 1);
        let resume = state_at - FRAME_BYTES;
        let exit = resume - FRAME_BYTES;
        let scratch = exit - SCRATCH_BYTES;
        let mut bytes = vec![0; usize::try_from(top - scratch).unwrap_or_default()];
        let mut put = |address: u64, what: &[u8]| {
            let at = usize::try_from(address - scratch).unwrap_or_default();
            bytes[at..at + what.len()].copy_from_slice(what);
        };
        put(state_at, &state);
        put(resume, &frame(again, mask, state_at, site));
        put(exit, &frame(&exiting(again, site), u64::MAX, 0, site));
        Self { bottom: scratch, bytes, resume, exit, scratch }
    }
}

fn exiting(registers: &Registers, site: CallSite) -> Registers {
    let status = 0;
    let call = libc::SYS_exit_group.cast_unsigned();
    Registers { rip: site.call, rax: call, rdi: status, ..*registers }
}

/// `struct rt_sigframe`: return address, then `struct ucontext` with `struct sigcontext_64` in it.
fn frame(registers: &Registers, mask: u64, state_at: u64, site: CallSite) -> Vec<u8> {
    let r = registers;
    let segments = (r.cs & 0xffff) | ((r.ss & 0xffff) << 48);
    let head = [site.signal_return, CONTEXT_FLAGS, 0, 0, NO_ALTERNATE_STACK, 0];
    let general = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp, r.rip, r.eflags, segments,
    ];
    let (error, trap, old_mask, fault_address) = (0, 0, 0, 0);
    let tail = [error, trap, old_mask, fault_address, state_at];
    let reserved = [0; 8];
    let words = head.iter().chain(&general).chain(&tail).chain(&reserved).chain(std::iter::once(&mask));
    words.flat_map(|word| word.to_ne_bytes()).collect()
}

/// Extended state as a signal frame has it: its size and features marked at both ends
/// (`struct _fpx_sw_bytes`).
fn signal_form(state: &[u8]) -> Vec<u8> {
    let mut form = state.to_vec();
    if let (Ok(size), Some(room)) = (u32::try_from(state.len()), form.get_mut(SOFTWARE_BYTES_AT..512)) {
        let features: [u8; 8] = state[SOFTWARE_BYTES_AT..][..8].try_into().unwrap_or_default();
        room.fill(0);
        room[..4].copy_from_slice(&MAGIC1.to_ne_bytes());
        room[4..8].copy_from_slice(&(size + 4).to_ne_bytes());
        room[8..16].copy_from_slice(&features);
        room[16..20].copy_from_slice(&size.to_ne_bytes());
    }
    form.extend(MAGIC2.to_ne_bytes());
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: CallSite = CallSite { call: 0x1111, signal_return: 0x2222 };

    fn registers() -> Registers {
        // SAFETY: all zeroes is a value of this plain C structure.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        registers.rsp = 0x7fff_0000_1238;
        registers.rip = 0x4444;
        registers.r8 = 8;
        registers
    }

    fn word(frames: &Frames, address: u64) -> u64 {
        let at = usize::try_from(address - frames.bottom).unwrap();
        u64::from_ne_bytes(frames.bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_c_librarys_structures_agree() {
        let at = |field: usize| (field + 8) as u64;
        let frames = Frames::new(&registers(), 0xabcd, &[0; 832], SITE);
        let context = at(std::mem::offset_of!(libc::ucontext_t, uc_mcontext));
        assert_eq!(word(&frames, frames.resume), 0x2222);
        assert_eq!(word(&frames, frames.resume + context), 8);
        assert_eq!(word(&frames, frames.resume + context + 8 * libc::REG_RIP as u64), 0x4444);
        assert_eq!(word(&frames, frames.resume + context + 8 * libc::REG_RSP as u64), 0x7fff_0000_1238);
        assert_eq!(
            word(&frames, frames.resume + at(std::mem::offset_of!(libc::ucontext_t, uc_sigmask))),
            0xabcd
        );
        let state_at = word(&frames, frames.resume + context + 8 * (libc::REG_CR2 as u64 + 1));
        assert_eq!(state_at % ALIGNMENT, 0);
        let magic2 = usize::try_from(state_at + 832 - frames.bottom).unwrap();
        assert_eq!(frames.bytes[magic2..magic2 + 4], MAGIC2.to_ne_bytes());
    }

    #[test]
    fn nothing_above_the_red_zone_is_touched() {
        let frames = Frames::new(&registers(), 0, &[0; 2696], SITE);
        assert!(frames.bottom + frames.bytes.len() as u64 <= registers().rsp - RED_ZONE_BYTES);
        assert_eq!(word(&frames, frames.exit + 8 * (6 + 16)), 0x1111);
    }
}
