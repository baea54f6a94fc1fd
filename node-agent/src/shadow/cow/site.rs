//! Where in a process's own code calls can be made for it: a `syscall` instruction with a `ret` behind it, and
//! the C library's signal return.
//!
//! The vDSO has `syscall` too, but nothing behind it that leads back. Here, a call that is made with a signal
//! frame on top of the stack returns into the signal return, which loads all registers from the frame: the
//! process finds its way back by itself, should its tracer die (see `frame`).

use super::inspect::{Mapping, read_memory};
use nix::unistd::Pid;

/// `syscall; ret`
const CALL: [u8; 3] = [0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`: `__restore_rt` of glibc and musl, what every signal handler returns to.
const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// Most code that is searched.
const SEARCH_BYTES_MAX: u64 = 64 << 20;

/// Addresses in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallSite {
    /// Of `syscall; ret`.
    pub call: u64,
    /// Of the signal return.
    pub signal_return: u64,
}

impl CallSite {
    /// Looks through the process's code, smallest mapping first (the dynamic loader has both).
    pub(super) fn find(pid: Pid, mappings: &[Mapping]) -> Option<Self> {
        let mut code: Vec<_> = mappings.iter().filter(|mapping| mapping.is_plain_code()).collect();
        code.sort_by_key(|mapping| mapping.len());
        let (mut call, mut signal_return) = (None, None);
        let mut searched = 0;
        for mapping in code {
            searched += mapping.len();
            if searched > SEARCH_BYTES_MAX {
                return None;
            }
            let Ok(text) = read_memory(pid, mapping.start, usize::try_from(mapping.len()).ok()?) else {
                continue;
            };
            call = call.or_else(|| position(&text, &CALL).map(|at| mapping.start + at));
            signal_return =
                signal_return.or_else(|| position(&text, &SIGNAL_RETURN).map(|at| mapping.start + at));
            if let (Some(call), Some(signal_return)) = (call, signal_return) {
                return Some(Self { call, signal_return });
            }
        }
        None
    }

    /// Whether the code is still there.
    pub(super) fn is_valid(&self, pid: Pid) -> bool {
        let holds = |address, bytes: &[u8]| {
            read_memory(pid, address, bytes.len()).is_ok_and(|found| found.as_slice() == bytes)
        };
        holds(self.call, &CALL) && holds(self.signal_return, &SIGNAL_RETURN)
    }
}

fn position(text: &[u8], pattern: &[u8]) -> Option<u64> {
    text.windows(pattern.len()).position(|window| window == pattern).map(|at| at as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::cow::inspect;

    #[test]
    fn this_process_has_both() {
        let pid = Pid::this();
        let site = CallSite::find(pid, &inspect::mappings(pid).unwrap()).unwrap();
        assert!(site.is_valid(pid));
        assert!(!CallSite { call: site.call + 1, ..site }.is_valid(pid));
    }
}
