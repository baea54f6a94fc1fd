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
    demand::{SCALES, WINDOW_NS, Words, bucket, pack, settle, settle_whole, unpack},
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
        enter(slot, maps::this_cpu(), start, end);
    }
}

/// The stretch ends in another window than the last one did. Like [`settle_in_slot`] a global function, which the
/// verifier looks at once and not again for every way to its caller.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn enter(slot: u32, cpu: u32, start: u64, end: u64) -> u32 {
    let Some(counters) = maps::counters(slot, cpu) else { return 1 };
    // SAFETY: a map value, of which only this CPU writes, with interrupts off.
    let counters = unsafe { &mut *counters };
    let (first, last) = (start / WINDOW_NS, end / WINDOW_NS);
    // Taken, not only read: user space settles what lies here for long.
    // SAFETY: a field of a map value.
    let share = unsafe { maps::exchange(&raw mut counters.window, 0) };
    let (held, mut ns) = unpack(share);
    if held != first & 0xffff_ffff {
        ns = settle_share(slot, held, ns);
    }
    if last > first {
        ns = settle_share(slot, first, ns + (first + 1) * WINDOW_NS - start);
        settle_between(slot, first + 1, last);
        ns += end - last * WINDOW_NS;
    } else {
        ns += end - start;
    }
    counters.window_start_ns = last * WINDOW_NS;
    counters.window = pack(last, ns);
    0
}

/// Settles a share; gives what is less than a microsecond, which goes along to the next window.
#[inline(always)]
fn settle_share(slot: u32, window: u64, ns: u64) -> u64 {
    if ns >= 1000 {
        settle_in_slot(slot, window, ns / 1000);
    }
    ns % 1000
}

/// Settles the windows from `window` to before `end`, in all of which this CPU did nothing else.
#[inline(always)]
fn settle_between(slot: u32, mut window: u64, end: u64) {
    let windows = end.wrapping_sub(window);
    if windows > WINDOWS_MAX {
        if let Some(demand) = maps::demand(slot) {
            settle_whole(&Shared(demand.cast()), windows - WINDOWS_MAX);
        }
        window += windows - WINDOWS_MAX;
    }
    for _ in 0..WINDOWS_MAX {
        if window >= end {
            break;
        }
        settle_in_slot(slot, window, WINDOW_NS / 1000);
        window += 1;
    }
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

/// [`bucket`], with all its branches, once for the verifier.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn demand_bucket(scale: u64, us: u64) -> u32 {
    bucket((scale as usize).min(SCALES - 1), us) as u32
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
    fn bucket(&self, scale: usize, us: u64) -> usize {
        let mut bucket = demand_bucket(scale as u64, us) as usize;
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
