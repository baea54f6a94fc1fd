//! The kernel's own accounts of a run's cgroup: a second source beside the probes, and the only one for
//! memory. A file that this host lacks leaves `None`.

use super::{RunCgroup, keyed};
use std::fs;
use std::path::PathBuf;

/// One reading of the accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// CPU time (`cpu.stat usage_usec`), exact also between context switches.
    pub cpu_ns: Option<u64>,
    /// Of that, in user mode.
    pub cpu_user_ns: Option<u64>,
    /// Of that, in the kernel.
    pub cpu_system_ns: Option<u64>,
    /// Anonymous and shared memory now, children included.
    pub memory_bytes: Option<u64>,
    /// Highest charge ever, page cache included.
    pub memory_charged_peak_bytes: Option<u64>,
    /// Processes that the out-of-memory killer took.
    pub oom_kills: Option<u64>,
    /// How often a fork met `pids.max`.
    pub pids_max_hits: Option<u64>,
    /// CPU quota periods with something to run.
    pub quota_periods: Option<u64>,
    /// Of those, periods in which the quota ran out.
    pub quota_periods_throttled: Option<u64>,
}

impl RunCgroup {
    /// Reads the accounts.
    pub fn accounts(&self) -> Accounts {
        let v2 = self.v2();
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let read_v2 = |name: &str| read(v2.join(name));
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse().ok());

        let cpu = read_v2("cpu.stat").unwrap_or_default();
        let nanoseconds = |key| keyed(&cpu, key).map(|us| us * 1000);
        let quota = self
            .v1("cpu")
            .and_then(|directory| read(directory.join("cpu.stat")))
            .unwrap_or_else(|| cpu.clone());

        let memory_v1 = self.v1("memory");
        let (stat, peak, oom, anonymous, shared, kills) = match &memory_v1 {
            Some(v1) => (
                read(v1.join("memory.stat")),
                read(v1.join("memory.max_usage_in_bytes")),
                read(v1.join("memory.oom_control")),
                "total_rss",
                "total_shmem",
                "oom_kill",
            ),
            None => (
                read_v2("memory.stat"),
                read_v2("memory.peak"),
                read_v2("memory.events"),
                "anon",
                "shmem",
                "oom_kill",
            ),
        };
        let stat = stat.unwrap_or_default();
        let memory_bytes = keyed(&stat, anonymous).map(|bytes| bytes + keyed(&stat, shared).unwrap_or(0));

        let pids = self
            .v1("pids")
            .map_or_else(|| read_v2("pids.events"), |directory| read(directory.join("pids.events")));
        Accounts {
            cpu_ns: nanoseconds("usage_usec"),
            cpu_user_ns: nanoseconds("user_usec"),
            cpu_system_ns: nanoseconds("system_usec"),
            memory_bytes,
            memory_charged_peak_bytes: number(peak),
            oom_kills: oom.and_then(|text| keyed(&text, kills)),
            pids_max_hits: pids.and_then(|text| keyed(&text, "max")),
            quota_periods: keyed(&quota, "nr_periods"),
            quota_periods_throttled: keyed(&quota, "nr_throttled"),
        }
    }

    /// Where memory is accounted, in words for the coverage of a run.
    pub fn memory_source(&self) -> Option<String> {
        self.hierarchies().home("memory").map(|home| format!("cgroup {home} memory"))
    }
}
