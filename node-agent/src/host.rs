//! Facts about this host and its processes that several modules need: capacity, boot, identity of a process.

use serde::{Deserialize, Serialize};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A process, unambiguously: a pid alone is used again, pid and start time within a boot are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start of the process in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl ProcessId {
    /// The identity of a running process; `None` if there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat()).ok()?;
        Some(Self { pid, start_ticks: stat.starttime, boot_id: boot_id() })
    }

    /// The calling process.
    pub fn current() -> Self {
        let pid = std::process::id().cast_signed();
        Self::of(pid).unwrap_or_else(|| Self { pid, start_ticks: 0, boot_id: boot_id() })
    }

    /// How long ago it started, at a moment of `CLOCK_BOOTTIME`; `None` in another boot.
    pub fn age_at(&self, since_boot_ns: u64) -> Option<Duration> {
        let ticks = procfs::ticks_per_second().max(1);
        let started_ns = u128::from(self.start_ticks) * 1_000_000_000 / u128::from(ticks);
        let age = u128::from(since_boot_ns).saturating_sub(started_ns);
        (self.boot_id == boot_id()).then(|| Duration::from_nanos(u64::try_from(age).unwrap_or(u64::MAX)))
    }

    /// Whether that very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        let Ok(stat) = procfs::process::Process::new(self.pid).and_then(|process| process.stat()) else {
            return false;
        };
        stat.starttime == self.start_ticks && stat.state != 'Z' && self.boot_id == boot_id()
    }
}

/// Identifies this boot; empty where `/proc` does not tell.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// What this host has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Online CPUs.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// What this host has. CPUs that the scheduler may not give us still count.
pub fn capacity() -> Capacity {
    use procfs::Current;
    let memory_bytes = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    Capacity { cpus: cpus(), memory_bytes }
}

/// Whether processes have the same numbers here as in the kernel's own events: not in a pid namespace that was made.
pub fn has_the_kernels_pids() -> bool {
    // PROC_PID_INIT_INO of include/linux/proc_ns.h.
    const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;
    static IN_THE_FIRST: LazyLock<bool> = LazyLock::new(|| {
        let namespace = std::fs::metadata("/proc/self/ns/pid").ok();
        namespace.is_none_or(|namespace| std::os::unix::fs::MetadataExt::ino(&namespace) == FIRST_NAMESPACE)
    });
    *IN_THE_FIRST
}

/// Has all threads take memory from the same two places: glibc gives each thread one of its own, which keeps the most
/// that this thread ever held (mallopt(3), `M_ARENA_MAX`). For processes that stay; to be called first.
pub(crate) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Online CPUs, at least 1.
pub fn cpus() -> usize {
    // SAFETY: sysconf only reads a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Name of the host.
pub fn name() -> String {
    nix::unistd::gethostname()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|_| "localhost".into())
}

/// Name of a user, or the number where there is none.
pub fn user_name(uid: u32) -> String {
    nix::unistd::User::from_uid(uid.into()).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Now, milliseconds since the epoch; 0 if the clock is before it.
pub fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Nanoseconds since boot, time asleep included: `CLOCK_BOOTTIME`.
pub fn since_boot_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Boottime)
}

/// Milliseconds since boot: a time that nobody sets.
pub fn uptime_ms() -> i64 {
    i64::try_from(since_boot_ns() / 1_000_000).unwrap_or(i64::MAX)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Monotonic)
}

fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// What a process of standin itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnCost {
    /// CPU time since it started, milliseconds.
    pub cpu_ms: u64,
    /// Time since it started, milliseconds.
    pub elapsed_ms: u64,
    /// Resident set, bytes.
    pub rss_bytes: u64,
    /// How long the last look at the probes' ring and shares took, microseconds; once a second.
    pub drain_us: u64,
}

impl OwnCost {
    /// Of this process.
    pub fn of_this_process(drain: Duration) -> Self {
        let stat = procfs::process::Process::myself().and_then(|process| process.stat()).ok();
        let ticks = procfs::ticks_per_second().max(1);
        let started_ms = stat.as_ref().map_or(0, |stat| stat.starttime * 1000 / ticks);
        Self {
            cpu_ms: stat.as_ref().map_or(0, |stat| (stat.utime + stat.stime) * 1000 / ticks),
            elapsed_ms: (since_boot_ns() / 1_000_000).saturating_sub(started_ms),
            rss_bytes: stat.as_ref().map_or(0, |stat| stat.rss * page_bytes()),
            drain_us: u64::try_from(drain.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// Hour of the week by local time: 0 is Sunday 00:00–00:59, 167 is Saturday 23:00–23:59.
pub fn hour_of_week() -> i32 {
    hour_of_week_at(now_ms())
}

/// The same of a moment, milliseconds since the epoch.
pub fn hour_of_week_at(at_ms: i64) -> i32 {
    let seconds = at_ms.div_euclid(1000);
    // SAFETY: all-zero is a valid tm, and both pointers are valid for the call.
    let local = unsafe {
        let mut local: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut local);
        local
    };
    (local.tm_wday * 24 + local.tm_hour).clamp(0, 167)
}

/// The state in a `stat` file of a process or thread (field 3, behind the name, which may hold anything): `R`, `S`,
/// `D`, `T`, ….
pub fn task_state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

/// Size of a page of memory, bytes.
pub fn page_bytes() -> u64 {
    procfs::page_size()
}

/// Memory that a new task could have without swapping, bytes; 0 where `/proc` does not tell.
pub fn memory_available_bytes() -> u64 {
    use procfs::Current;
    procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available).unwrap_or(0)
}

/// CPU time of all CPUs since boot, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTicks {
    /// In user mode.
    pub user: u64,
    /// In the kernel, interrupts included.
    pub system: u64,
    /// Nothing to do, waits for I/O included.
    pub idle: u64,
    /// Taken away by the hypervisor.
    pub stolen: u64,
}

impl CpuTicks {
    /// As they are now; `None` where `/proc` does not tell.
    pub fn now() -> Option<Self> {
        Self::of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        [self.system, self.idle, self.stolen].into_iter().fold(self.user, u64::saturating_add)
    }

    /// From the first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
    fn of(text: &str) -> Option<Self> {
        let ticks = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks: Vec<u64> = ticks.map_while(|tick| tick.parse().ok()).collect();
        let [user, nice, system, idle, waiting, irq, softirq, stolen] = ticks.try_into().ok()?;
        let user = user.saturating_add(nice);
        let system = system.saturating_add(irq).saturating_add(softirq);
        Some(Self { user, system, idle: idle.saturating_add(waiting), stolen })
    }
}

/// How much of the host's CPUs idles: shares between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle(CpuTicks);

impl Idle {
    /// Cores that idled since the last look; 0 at the first one.
    pub fn cores(&mut self) -> f64 {
        let now = CpuTicks::now().unwrap_or(self.0);
        let before = std::mem::replace(&mut self.0, now);
        let (idle, all) = (now.idle.saturating_sub(before.idle), now.all().saturating_sub(before.all()));
        if before.all() == 0 || all == 0 { 0.0 } else { idle as f64 / all as f64 * cpus() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    #[test]
    fn idle_is_what_no_one_used() {
        let ticks = CpuTicks::of("cpu  100 1 50 800 50 2 3 4 0 0\ncpu0 1 2 3\n").unwrap();
        assert_eq!(ticks, CpuTicks { user: 101, system: 55, idle: 850, stolen: 4 });
        assert_eq!(ticks.all(), 1010);
        assert_eq!(CpuTicks::of("cpu  1 2\n"), None);
        let mut looked = Idle::default();
        assert_eq!(looked.cores(), 0.0, "one look tells nothing");
        assert!((0.0..=cpus() as f64).contains(&looked.cores()));
    }

    proptest! {
        #[test]
        fn hostile_stat(text in hostile::keyed_lines(&["cpu", "cpu0", "7 (a) b) ", "7 (x) R 1", "cpu  1 2 3"])) {
            _ = task_state(&text);
            if let Some(ticks) = CpuTicks::of(&text) {
                prop_assert!(ticks.idle <= ticks.all());
            }
        }
    }
}
