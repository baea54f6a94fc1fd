//! CPU demand per window of time: how much CPU all tasks of a cgroup used together in each 10 ms, 100 ms and
//! 1 s. What is kept, and the one algorithm that programs and user space use to add to it.
//!
//! A CPU gathers its share of the 10 ms window that it is in ([`super::Counters::window`]), without locks.
//! When it enters another one, the share is *settled*: added, for each scale, to the cell of its window in a
//! ring of recent windows that all CPUs share, and the window moves from the bucket of what it was to the
//! bucket of what it is now. So a window never has to be closed, and CPUs may settle in any order. A share
//! that comes after its cell was taken by a later window counts as a window of its own, and in
//! [`Scale::late`]. Windows without any CPU use are not seen here: who knows the length of the whole run
//! knows how many there were.
//!
//! Windows are those of the scheduler's clock (`rq_clock`), the same on all CPUs.

/// Length of the finest windows.
pub const WINDOW_NS: u64 = 10_000_000;

/// How many scales there are.
pub const SCALES: usize = 3;

/// Finest windows per window of each scale: 10 ms, 100 ms, 1 s.
pub const SCALE_WINDOWS: [u64; SCALES] = [1, 10, 100];

/// Recent windows that are kept of each scale; powers of two. A share that is settled within 5.12 s is exact.
pub const RECENT: [usize; SCALES] = [512, 64, 16];

/// Cells of all rings.
pub const RECENT_ALL: usize = RECENT[0] + RECENT[1] + RECENT[2];

/// Where the ring of each scale begins.
const RECENT_STARTS: [usize; SCALES] = [0, RECENT[0], RECENT[0] + RECENT[1]];

/// Buckets of the histograms, see [`bucket`].
pub const DEMAND_BUCKETS: usize = 128;

/// In a cell of the finest ring: bits for microseconds (4.19 s of CPU in 10 ms: 419 CPUs), above them 10 bits
/// for the number of CPUs that settled, above those the low half of the window's number.
const MICROSECONDS_BITS: u32 = 22;

/// Sums of one scale.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Windows in which CPU was used.
    pub busy: u64,
    /// CPU time in all of them, microseconds.
    pub cpu_us: u64,
    /// Sum over windows of (thousandths of a core)².
    pub squares: u64,
    /// Most CPU time in a window, microseconds.
    pub peak_us: u64,
    /// Most CPUs that a window saw it on; only for the finest scale.
    pub cpus_peak: u64,
    /// Shares that came too late to be added to their window.
    pub late: u64,
    /// Windows by [`bucket`].
    pub counts: [u64; DEMAND_BUCKETS],
}

/// Entry `slot` of the map `DEMAND`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Rings of recent windows, the finest first: number of the window (low 32 bits) above what was used.
    pub recent: [u64; RECENT_ALL],
    /// Sums, the finest scale first.
    pub scales: [Scale; SCALES],
}

impl Default for Scale {
    fn default() -> Self {
        Self {
            busy: 0,
            cpu_us: 0,
            squares: 0,
            peak_us: 0,
            cpus_peak: 0,
            late: 0,
            counts: [0; DEMAND_BUCKETS],
        }
    }
}

const WORD: usize = 8;
const SCALE_WORDS: usize = size_of::<Scale>() / WORD;
const SCALES_START: usize = RECENT_ALL;

/// Words of a [`Demand`].
pub const DEMAND_WORDS: usize = size_of::<Demand>() / WORD;

/// How many bits a value loses before it is put into a bucket: what is left has 10 bits for one core.
const SHIFTS: [u32; SCALES] = [4, 7, 10];

/// The bucket of `us` microseconds of CPU in a window: eight to every doubling, so that a bucket is at most
/// an eighth wide. The last one also holds everything above it (some 200 cores).
#[inline(always)]
pub fn bucket(scale: usize, us: u64) -> usize {
    let value = us >> SHIFTS[scale];
    if value < 8 {
        return value as usize;
    }
    if value >> 18 != 0 {
        return DEMAND_BUCKETS - 1;
    }
    let mut exponent = 3;
    let mut rest = value >> 3;
    if rest >= 1 << 8 {
        rest >>= 8;
        exponent += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        exponent += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        exponent += 2;
    }
    if rest >= 1 << 1 {
        exponent += 1;
    }
    let sub = (value >> (exponent - 3)) & 7;
    (8 * (exponent - 2) + sub as usize) & (DEMAND_BUCKETS - 1)
}

/// Least CPU time, microseconds, that belongs into a bucket. For `bucket` = [`DEMAND_BUCKETS`] the end of the
/// last one.
pub const fn bucket_lower_us(scale: usize, bucket: usize) -> u64 {
    let value = if bucket < 16 { bucket as u64 } else { (8 + bucket as u64 % 8) << (bucket / 8 - 1) };
    value << SHIFTS[scale]
}

/// The words of a [`Demand`] that others change at the same time.
pub trait Words {
    /// Reads a word.
    fn load(&self, word: usize) -> u64;
    /// Adds, wrapping, and gives what was there before.
    fn fetch_add(&self, word: usize, value: u64) -> u64;
    /// Replaces `old`; gives what is there if that is something else.
    fn exchange(&self, word: usize, old: u64, new: u64) -> Result<(), u64>;
    /// Raises a maximum.
    fn raise(&self, word: usize, value: u64);
    /// [`bucket`], in a way that a verifier can see that it is one.
    #[inline(always)]
    fn bucket(&self, scale: usize, us: u64) -> usize {
        bucket(scale, us)
    }
}

/// Packs a share: the number of its window above its nanoseconds.
#[inline(always)]
pub const fn pack(window: u64, ns: u64) -> u64 {
    window << 32 | ns
}

/// Number of the window (low 32 bits) and nanoseconds of a packed share.
#[inline(always)]
pub const fn unpack(share: u64) -> (u64, u64) {
    (share >> 32, share & 0xffff_ffff)
}

/// Adds `us` microseconds that one CPU used in the finest window `window`.
#[inline(always)]
pub fn settle(words: &impl Words, window: u64, us: u64) {
    settle_at::<0>(words, window, us);
    settle_at::<1>(words, window, us);
    settle_at::<2>(words, window, us);
}

#[inline(always)]
fn settle_at<const SCALE: usize>(words: &impl Words, finest: u64, us: u64) {
    let window = finest / SCALE_WINDOWS[SCALE];
    let cell = RECENT_STARTS[SCALE] + (window as usize & (RECENT[SCALE] - 1));
    let share = if SCALE == 0 { us | 1 << MICROSECONDS_BITS } else { us };
    let before = add_to_cell(words, cell, window as u32, share);
    let field = |offset: usize| SCALES_START + SCALE * SCALE_WORDS + offset / WORD;
    if before.is_none() {
        words.fetch_add(field(core::mem::offset_of!(Scale, late)), 1);
    }
    let before = before.unwrap_or(0);
    if SCALE == 0 {
        let cpus = (before >> MICROSECONDS_BITS) + 1;
        words.raise(field(core::mem::offset_of!(Scale, cpus_peak)), cpus);
    }
    let before = if SCALE == 0 { before & ((1 << MICROSECONDS_BITS) - 1) } else { before };
    let after = before + us;
    words.fetch_add(field(core::mem::offset_of!(Scale, cpu_us)), us);
    words.raise(field(core::mem::offset_of!(Scale, peak_us)), after);
    let share = |us: u64| us / (10 * SCALE_WINDOWS[SCALE]);
    let squares = (share(after) * share(after)).wrapping_sub(share(before) * share(before));
    words.fetch_add(field(core::mem::offset_of!(Scale, squares)), squares);
    let counts = field(core::mem::offset_of!(Scale, counts));
    let (from, to) = (words.bucket(SCALE, before), words.bucket(SCALE, after));
    if before == 0 {
        words.fetch_add(field(core::mem::offset_of!(Scale, busy)), 1);
        words.fetch_add(counts + to, 1);
    } else if from != to {
        words.fetch_add(counts + from, 1u64.wrapping_neg());
        words.fetch_add(counts + to, 1);
    }
}

/// Adds finest windows in which one CPU did nothing else, without looking what others did in them: they count
/// as windows of their own, and in [`Scale::late`].
#[inline(always)]
pub fn settle_whole(words: &impl Words, windows: u64) {
    settle_whole_at::<0>(words, windows);
    settle_whole_at::<1>(words, windows);
    settle_whole_at::<2>(words, windows);
}

#[inline(always)]
fn settle_whole_at<const SCALE: usize>(words: &impl Words, finest: u64) {
    let field = |offset: usize| SCALES_START + SCALE * SCALE_WORDS + offset / WORD;
    let windows = finest / SCALE_WINDOWS[SCALE];
    let length_us = WINDOW_NS / 1000 * SCALE_WINDOWS[SCALE];
    words.fetch_add(field(core::mem::offset_of!(Scale, busy)), windows);
    words.fetch_add(field(core::mem::offset_of!(Scale, late)), windows);
    words.fetch_add(field(core::mem::offset_of!(Scale, cpu_us)), windows * length_us);
    words.fetch_add(field(core::mem::offset_of!(Scale, squares)), windows * 1_000_000);
    words.fetch_add(field(core::mem::offset_of!(Scale, counts)) + bucket(SCALE, length_us), windows);
    if windows > 0 {
        words.raise(field(core::mem::offset_of!(Scale, peak_us)), length_us);
    }
}

/// Adds to the cell of a window; gives what was used in it before, or nothing if the cell belongs to a later
/// window by now.
#[inline(always)]
fn add_to_cell(words: &impl Words, cell: usize, window: u32, share: u64) -> Option<u64> {
    let mut seen = words.load(cell);
    let is_older = |seen: u64| seen == 0 || (window.wrapping_sub((seen >> 32) as u32) as i32) > 0;
    if is_older(seen) {
        match words.exchange(cell, seen, pack(window.into(), share)) {
            Ok(()) => return Some(0),
            Err(now) => seen = now,
        }
    }
    ((seen >> 32) as u32 == window).then(|| words.fetch_add(cell, share) & 0xffff_ffff)
}

const _: () = {
    assert!(size_of::<Scale>() == WORD * (6 + DEMAND_BUCKETS));
    assert!(size_of::<Demand>() == WORD * (RECENT_ALL + SCALES * SCALE_WORDS));
};
