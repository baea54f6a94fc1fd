//! CPU demand per window of time, fed by `sched` at the end of every stretch on a CPU. How it is kept is told
//! in [`ebpf_probes::demand`].
//!
//! | | |
//! |---|---|
//! | hook | none of its own |
//! | maps | `COUNTERS` (a share per CPU), `DEMAND[slot]` |
//! | cost | within a window two comparisons and an addition; once per window and CPU some 20 atomic additions |
//! | floor | as `sched`, with `CONFIG_SCHED_INFO` |
use core::{
    arch::asm,
    intrinsics::{AtomicOrdering, atomic_cxchg},
};

use ebpf_probes::{
    Counters,
    demand::{WINDOW_NS, Words, pack, settle, settle_whole, unpack},
};

use crate::maps;

/// Most windows that one stretch is divided among; the oldest ones of a longer stretch (above 1.28 s)
/// are settled as a whole.
const WINDOWS_MAX: u64 = 128;

/// Adds a stretch on this CPU, from `start` to `end` on the scheduler's clock.
#[inline(always)]
pub(crate) fn book(counters: &mut Counters, slot: u32, start: u64, end: u64) {
    let window = counters.window_start_ns;
    if start >= window && end < window + WINDOW_NS {
        counters.window += end - start;
    } else {
        enter(counters, slot, start, end);
    }
}

/// The stretch ends in another window than the last one did.
#[inline(never)]
fn enter(counters: &mut Counters, slot: u32, start: u64, end: u64) {
    let (mut window, mut at) = (start / WINDOW_NS, start);
    let windows = end / WINDOW_NS - window;
    let Some(demand) = maps::demand(slot) else { return };
    let words = Shared(demand.cast());
    if windows > WINDOWS_MAX {
        window += windows - WINDOWS_MAX;
        at += (windows - WINDOWS_MAX) * WINDOW_NS;
        settle_whole(&words, windows - WINDOWS_MAX);
    }
    // Taken, not only read: user space settles what lies here for long.
    // SAFETY: a field of a map value.
    let share = unsafe { maps::exchange(&raw mut counters.window, 0) };
    let (mut held, mut ns) = unpack(share);
    for _ in 0..=WINDOWS_MAX + 1 {
        if held != window & 0xffff_ffff {
            // What is less than a microsecond goes along to the next window.
            if ns >= 1000 {
                settle_in_slot(slot, held, ns / 1000);
            }
            ns %= 1000;
            held = window & 0xffff_ffff;
        }
        let border = (window + 1) * WINDOW_NS;
        if end < border {
            ns += end - at;
            break;
        }
        ns += border - at;
        at = border;
        window += 1;
    }
    counters.window_start_ns = window * WINDOW_NS;
    counters.window = pack(window, ns);
}

/// A function of its own for the verifier, which then looks at it once and not for every round of the loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle_in_slot(slot: u32, window: u64, us: u64) -> u32 {
    match maps::demand(slot) {
        Some(demand) => settle(&Shared(demand.cast()), window, us),
        None => return 1,
    }
    0
}

/// A value of `DEMAND`.
struct Shared(*mut u64);

impl Words for Shared {
    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        // SAFETY: `word` is inside the value; the verifier checks it.
        unsafe { core::ptr::read_volatile(self.0.add(word)) }
    }

    #[inline(always)]
    fn fetch_add(&self, word: usize, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { maps::fetch_add(self.0.add(word), value) }
    }

    #[inline(always)]
    fn exchange(&self, word: usize, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: as above.
        let (seen, replaced) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
                self.0.add(word),
                old,
                new,
            )
        };
        if replaced { Ok(()) } else { Err(seen) }
    }

    #[inline(always)]
    fn bounded(&self, mut bucket: usize) -> usize {
        // The compiler knows the bound and leaves a mask out; the verifier does not follow its reasons.
        // SAFETY: an operation on a register.
        unsafe { asm!("{bucket} &= 127", bucket = inout(reg) bucket) };
        bucket
    }

    #[inline(always)]
    fn raise(&self, word: usize, value: u64) {
        // SAFETY: as above.
        unsafe { maps::raise_to(self.0.add(word), value) }
    }
}
