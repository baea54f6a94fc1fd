//! Limits that follow a task. Pure: in come what the task does and what the host has left, out comes what to
//! change and why. Nothing here reads or writes a file.
//!
//! A limit starts at the predicted bound. It is raised before the task meets it, for as long as the host has
//! room; it comes back slowly when it is not needed, never below what the task used lately. Only a host
//! without room lets a task meet its limit, and that is said once each time it begins.
//!
//! The same rule serves memory (`memory.high`; v1 `memory.soft_limit_in_bytes`) and, where quotas are wanted,
//! CPU (`cpu.max`). What differs is when a task is *pressed*: it waits for memory, or its quota ran out.

use super::Limit;
use std::time::Duration;

/// A task that uses more than this share of its limit gets a larger one.
pub const GROW_AT_SHARE: f64 = 0.9;

/// What a limit is raised to, as a multiple of what is used.
pub const GROW_FACTOR: f64 = 1.5;

/// What the limit of a pressed task is raised to, as a multiple of the limit: what it uses says little then.
const PRESSED_FACTOR: f64 = 1.25;

/// A task is pressed when it waited for memory in more than this share of the time (PSI `some`), or when its
/// quota ran out in more than this share of the periods.
pub const STALLED_SHARE: f64 = 0.1;
/// See [`STALLED_SHARE`].
pub const THROTTLED_SHARE: f64 = 0.05;

/// Pause between two steps down, and how much of a limit is left by one.
const SHRINK_EVERY: Duration = Duration::from_secs(10);
const SHRINK_FACTOR: f64 = 0.9;

/// Least gain for which a limit is lowered: less is not worth a write.
const SHRINK_LEAST: f64 = 0.05;

/// What counts as lately: peaks are remembered for one to two of these.
const LATELY: Duration = Duration::from_secs(60);

/// What a task did since the last look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Time since the start of the run.
    pub at: Duration,
    /// Memory that cannot be had back without swap (anonymous and shared), bytes.
    pub used_bytes: u64,
    /// All memory that is charged, page cache included, bytes; 0 where it is not known.
    pub charged_bytes: u64,
    /// Share of the time in which some part of it waited for memory, 0–1.
    pub stalled_share: f64,
    /// Cores in use.
    pub cores: f64,
    /// Share of its quota periods in which the quota ran out, 0–1.
    pub throttled_share: f64,
}

/// What the host can still give beyond its reserve.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Room {
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// CPU, cores that idle.
    pub cpu_cores: f64,
}

/// Why a limit changes, or doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The task came near it.
    Near,
    /// The task was held back: it waited for memory, or its quota ran out.
    Pressed,
    /// The task has needed less for a while.
    Unneeded,
    /// The task needs more, and the host has no room.
    HostFull,
}

/// One change of a limit. For [`Why::HostFull`] `to` is what it may have, which may be what it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// What it was.
    pub from: Limit,
    /// What it shall be.
    pub to: Limit,
    /// Why.
    pub why: Why,
}

/// The limits of one task that follow it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Following {
    memory: Option<Follower>,
    cpu: Option<Follower>,
}

/// Where a limit may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// It is never lowered below this.
    pub floor: f64,
    /// It is never raised above this: a limit by hand, or all that the host has.
    pub ceiling: f64,
}

impl Following {
    /// Limits that start at `high_bytes` and `cpu_cores`; what is `None` does not follow.
    pub fn new(memory: Option<(u64, Bounds)>, cpu: Option<(f64, Bounds)>) -> Self {
        Self {
            memory: memory.map(|(high, bounds)| Follower::new(high as f64, bounds)),
            cpu: cpu.map(|(cores, bounds)| Follower::new(cores, bounds)),
        }
    }

    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu.is_none()
    }

    /// Whether the task meets a limit now because the host has no room.
    pub fn is_held(&self) -> bool {
        self.memory.iter().chain(&self.cpu).any(|follower| follower.is_held)
    }

    /// What has to change after what was seen.
    pub fn follow(&mut self, seen: &Seen, room: Room) -> Vec<Change> {
        let memory = self.memory.as_mut().and_then(|follower| {
            let (used, charged) = (seen.used_bytes as f64, seen.charged_bytes as f64);
            // Waiting for memory far below the limit is not the limit's doing.
            let at_limit = charged.max(used) > follower.limit * GROW_AT_SHARE;
            let is_pressed = seen.stalled_share > STALLED_SHARE && at_limit;
            let kept = used.max(charged);
            follower.step(seen.at, used, kept, is_pressed, room.memory_bytes as f64)
        });
        let cpu = self.cpu.as_mut().and_then(|follower| {
            let is_pressed = seen.throttled_share > THROTTLED_SHARE;
            follower.step(seen.at, seen.cores, seen.cores, is_pressed, room.cpu_cores)
        });
        let memory = memory.map(|step| step.change(|bytes| Limit::MemoryHigh(bytes.ceil() as u64)));
        let cpu = cpu.map(|step| step.change(Limit::CpuMax));
        memory.into_iter().chain(cpu).collect()
    }
}

/// One limit that follows one amount.
#[derive(Clone, Debug, PartialEq)]
struct Follower {
    limit: f64,
    /// Where it started: it does not come back below that.
    start: f64,
    bounds: Bounds,
    /// Most that was used in this stretch of [`LATELY`] and in the one before.
    peaks: [f64; 2],
    stretch: Duration,
    shrunk_at: Duration,
    is_held: bool,
}

struct Step {
    from: f64,
    to: f64,
    why: Why,
}

impl Step {
    fn change(&self, limit: impl Fn(f64) -> Limit) -> Change {
        Change { from: limit(self.from), to: limit(self.to), why: self.why }
    }
}

impl Follower {
    fn new(start: f64, bounds: Bounds) -> Self {
        let start = start.max(bounds.floor).min(bounds.ceiling);
        let (peaks, stretch, shrunk_at) = ([0.0; 2], Duration::ZERO, Duration::ZERO);
        Self { limit: start, start, bounds, peaks, stretch, shrunk_at, is_held: false }
    }

    /// `used` is what the task needs; the limit is not lowered below `kept`.
    fn step(&mut self, at: Duration, used: f64, kept: f64, is_pressed: bool, room: f64) -> Option<Step> {
        self.remember(at, used);
        let is_near = used > self.limit * GROW_AT_SHARE;
        if !is_near && !is_pressed {
            self.is_held = false;
            return self.shrink(at, kept);
        }
        self.shrunk_at = at;
        let pressed = if is_pressed { self.limit * PRESSED_FACTOR } else { 0.0 };
        let wanted = (used * GROW_FACTOR).max(pressed).min(self.bounds.ceiling);
        let to = wanted.min(self.limit.max(used) + room).max(self.limit);
        let from = self.limit;
        self.limit = to;
        // With the headroom that it asks for, or at a ceiling of its own, it is not the host that holds it.
        let was_held = std::mem::replace(&mut self.is_held, to < wanted && used > to * GROW_AT_SHARE);
        let why = match (is_pressed, self.is_held) {
            (_, true) if !was_held => Why::HostFull,
            (_, _) if to <= from => return None,
            (true, _) => Why::Pressed,
            (false, _) => Why::Near,
        };
        Some(Step { from, to, why })
    }

    fn shrink(&mut self, at: Duration, kept: f64) -> Option<Step> {
        if at < self.shrunk_at + SHRINK_EVERY {
            return None;
        }
        let lately = self.peaks[0].max(self.peaks[1]);
        let least = self.start.max(self.bounds.floor).max(lately.max(kept) * GROW_FACTOR);
        let to = (self.limit * SHRINK_FACTOR).max(least);
        if to > self.limit * (1.0 - SHRINK_LEAST) {
            return None;
        }
        let from = std::mem::replace(&mut self.limit, to);
        self.shrunk_at = at;
        Some(Step { from, to, why: Why::Unneeded })
    }

    fn remember(&mut self, at: Duration, used: f64) {
        if at >= self.stretch + LATELY {
            self.peaks = [0.0, if at < self.stretch + 2 * LATELY { self.peaks[0] } else { 0.0 }];
            self.stretch = at;
        }
        self.peaks[0] = self.peaks[0].max(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const PLENTY: Room = Room { memory_bytes: 64 * GIB, cpu_cores: 64.0 };
    const NONE: Room = Room { memory_bytes: 0, cpu_cores: 0.0 };

    fn memory(high: u64) -> Following {
        let bounds = Bounds { floor: 0.0, ceiling: (64 * GIB) as f64 };
        Following::new(Some((high, bounds)), None)
    }

    fn uses(at_s: u64, used_bytes: u64) -> Seen {
        Seen { at: Duration::from_secs(at_s), used_bytes, charged_bytes: used_bytes, ..Seen::default() }
    }

    fn high(change: &Change) -> u64 {
        match change.to {
            Limit::MemoryHigh(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_task_far_from_its_limit_is_left_alone() {
        assert_eq!(memory(GIB).follow(&uses(1, GIB / 2), PLENTY), []);
    }

    #[test]
    fn it_grows_before_the_task_meets_it() {
        let changes = memory(GIB).follow(&uses(1, GIB - 50 * MIB), PLENTY);
        assert_eq!(changes[0].why, Why::Near);
        assert_eq!(high(&changes[0]), (GIB - 50 * MIB) * 3 / 2);
    }

    #[test]
    fn a_full_host_holds_the_task_says_so_once_and_lets_go() {
        let mut following = memory(GIB);
        let held = following.follow(&uses(1, GIB), NONE);
        assert_eq!((held[0].why, high(&held[0])), (Why::HostFull, GIB));
        assert!(following.is_held());
        assert_eq!(following.follow(&uses(2, GIB), NONE), []);
        let grown = following.follow(&uses(3, GIB), PLENTY);
        assert_eq!((grown[0].why, following.is_held()), (Why::Near, false));
        following.follow(&uses(4, 2 * GIB), PLENTY);
        assert_eq!(
            following.follow(&uses(5, 3 * GIB), NONE)[0].why,
            Why::HostFull,
            "a new time is said anew"
        );
    }

    #[test]
    fn page_cache_alone_raises_nothing_unless_the_task_waits_for_it() {
        let cache = Seen { charged_bytes: GIB, ..uses(1, 100 * MIB) };
        assert_eq!(memory(GIB).follow(&cache, PLENTY), []);
        let thrashing = Seen { stalled_share: 0.5, ..cache };
        let changes = memory(GIB).follow(&thrashing, PLENTY);
        assert_eq!((changes[0].why, high(&changes[0])), (Why::Pressed, GIB * 5 / 4));
        // Waiting far below the limit is not the limit's doing.
        assert_eq!(memory(4 * GIB).follow(&thrashing, PLENTY), []);
    }

    #[test]
    fn it_comes_back_slowly_and_not_below_what_was_used_lately() {
        let mut following = memory(GIB);
        following.follow(&uses(1, 8 * GIB), PLENTY);
        let mut lowest = u64::MAX;
        for second in 2..55 {
            for change in following.follow(&uses(second, 100 * MIB), PLENTY) {
                lowest = lowest.min(high(&change));
            }
        }
        assert_eq!(lowest, u64::MAX, "its peak was lately");
        for second in 55..1000 {
            for change in following.follow(&uses(second, 100 * MIB), PLENTY) {
                let Limit::MemoryHigh(from) = change.from else { panic!() };
                assert!(high(&change) as f64 >= from as f64 * 0.89, "slowly: {change:?}");
                lowest = lowest.min(high(&change));
            }
        }
        assert!((GIB..GIB * 11 / 10).contains(&lowest), "back to where it started: {lowest}");
    }

    #[test]
    fn a_quota_follows_throttling_while_cores_idle() {
        let bounds = Bounds { floor: 0.1, ceiling: 8.0 };
        let mut following = Following::new(None, Some((1.0, bounds)));
        let throttled = Seen { cores: 1.0, throttled_share: 0.4, ..Seen::default() };
        let changes = following.follow(&throttled, Room { cpu_cores: 4.0, ..NONE });
        assert_eq!((changes[0].to, changes[0].why), (Limit::CpuMax(1.5), Why::Pressed));
        let mut busy = Following::new(None, Some((1.0, bounds)));
        assert_eq!(busy.follow(&throttled, NONE)[0].why, Why::HostFull);
    }

    /// A task that allocates `step` a second and stands still at its limit, as `memory.high` makes it.
    fn seconds_to_reach(goal: u64, start: u64, room: u64) -> Option<u64> {
        let (mut following, mut limit, mut used) = (memory(start), start, 0);
        for second in 0..200 {
            used = goal.min(limit).min(used + GIB);
            if used == goal {
                return Some(second);
            }
            let left = Room { memory_bytes: room.saturating_sub(used), cpu_cores: 0.0 };
            for change in following.follow(&uses(second, used), left) {
                limit = high(&change);
            }
        }
        None
    }

    #[test]
    fn no_live_lock_a_task_at_its_limit_gets_more_at_every_look() {
        assert!(seconds_to_reach(16 * GIB, 16 * MIB, 64 * GIB).unwrap() < 30);
        assert_eq!(seconds_to_reach(16 * GIB, 16 * MIB, 8 * GIB), None, "the host has no room");
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        (0_u64..10_000, 0_u64..100 * GIB, 0_u64..100 * GIB, 0.0..1.0, 0.0..64.0, 0.0..1.0).prop_map(
            |(second, used_bytes, cache, stalled_share, cores, throttled_share)| Seen {
                at: Duration::from_secs(second),
                used_bytes,
                charged_bytes: used_bytes + cache,
                stalled_share,
                cores,
                throttled_share,
            },
        )
    }

    proptest! {
        #[test]
        fn limits_stay_in_their_bounds_and_leave_headroom(
            start in 1_u64..64 * GIB, floor in 0_u64..8 * GIB, ceiling in 8 * GIB..64 * GIB,
            mut looks in prop::collection::vec((any_seen(), 0_u64..100 * GIB), 1..60),
        ) {
            looks.sort_by_key(|(seen, _)| seen.at);
            let bounds = Bounds { floor: floor as f64, ceiling: ceiling as f64 };
            let mut following = Following::new(Some((start, bounds)), Some((1.0, Bounds { floor: 0.1, ceiling: 8.0 })));
            let mut limit = start.clamp(floor, ceiling);
            for (seen, memory_bytes) in looks {
                let before = limit;
                let was_held = following.is_held();
                let changes = following.follow(&seen, Room { memory_bytes, cpu_cores: 1.0 });
                for change in &changes {
                    if let Limit::MemoryHigh(bytes) = change.to {
                        prop_assert_eq!(change.from, Limit::MemoryHigh(limit));
                        limit = bytes;
                    }
                    if let Limit::CpuMax(cores) = change.to {
                        prop_assert!((0.1..=8.0).contains(&cores));
                    }
                }
                prop_assert!((floor..=ceiling).contains(&limit));
                // Raised by no more than there is, and lowered only slowly and above what is charged.
                prop_assert!(limit <= before || limit <= before.max(seen.used_bytes) + memory_bytes + 1);
                if limit < before {
                    prop_assert!(limit as f64 >= before as f64 * SHRINK_FACTOR - 1.0);
                    prop_assert!(limit >= seen.charged_bytes.max(seen.used_bytes));
                }
                // Near its limit only at its ceiling, or on a full host, which is said.
                let is_near = seen.used_bytes as f64 > limit as f64 * GROW_AT_SHARE;
                if is_near && limit < ceiling {
                    prop_assert!(following.is_held());
                    prop_assert!(was_held || changes.iter().any(|change| change.why == Why::HostFull));
                    prop_assert!((memory_bytes as f64) < seen.used_bytes as f64 * (GROW_FACTOR - 1.0) + 1.0);
                }
            }
        }

        #[test]
        fn a_steady_task_has_steady_limits(start in MIB..8 * GIB, seen in any_seen()) {
            let mut following = memory(start);
            let steady = Seen { stalled_share: 0.0, charged_bytes: seen.used_bytes, ..seen };
            let changes = (0..2000)
                .flat_map(|second| {
                    let at = seen.at + Duration::from_secs(second);
                    following.follow(&Seen { at, ..steady }, PLENTY)
                })
                .count();
            // Up at once, and never down again below what is needed.
            prop_assert!(changes <= 1, "{changes} changes");
        }
    }
}
