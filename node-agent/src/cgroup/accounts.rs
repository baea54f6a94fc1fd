//! The kernel's own accounts of a run's cgroup: a second source beside the probes, and the only one for
//! memory. A file that this host lacks leaves `None`.

use super::{RunCgroup, keyed};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
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
    /// The charge without pages of files that have not been used lately.
    pub working_set_bytes: Option<u64>,
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
    /// How long tasks could not run because of that.
    pub throttled_ns: Option<u64>,
}

/// The accounts that are looked at often, kept open: two reads tell CPU time and memory.
#[derive(Debug)]
pub struct Watch {
    cpu: Option<File>,
    memory: Option<File>,
    charge: Option<File>,
    pressure: Option<File>,
    quota: Option<File>,
    /// Keys of anonymous, shared and inactive file memory in `memory`.
    memory_keys: [&'static str; 3],
}

/// Longest account that is read; `memory.stat` has about 2 KiB.
const ACCOUNT_BYTES_MAX: usize = 8192;

impl Watch {
    /// CPU time; the other accounts stay `None`.
    pub fn cpu(&self) -> Accounts {
        cpu_of(&self.cpu.as_ref().and_then(reread).unwrap_or_default())
    }

    /// Memory in use: anonymous and shared, and the working set; the other accounts stay `None`.
    pub fn memory(&self) -> Accounts {
        let stat = self.memory.as_ref().and_then(reread).unwrap_or_default();
        memory_of(&stat, self.charge.as_ref().and_then(reread).as_deref(), self.memory_keys)
    }
}

/// CPU time from `cpu.stat` of v2.
fn cpu_of(stat: &str) -> Accounts {
    let nanoseconds = |key| keyed(stat, key).map(nanoseconds);
    Accounts {
        cpu_ns: nanoseconds("usage_usec"),
        cpu_user_ns: nanoseconds("user_usec"),
        cpu_system_ns: nanoseconds("system_usec"),
        ..Accounts::default()
    }
}

/// Memory from `memory.stat` and the charge, by the keys of anonymous, shared and inactive file memory.
fn memory_of(stat: &str, charge: Option<&str>, keys: [&str; 3]) -> Accounts {
    let [anonymous, shared, inactive] = keys.map(|key| keyed(stat, key));
    let charge = charge.and_then(|text| text.trim().parse::<u64>().ok());
    Accounts {
        memory_bytes: anonymous.map(|anonymous| anonymous.saturating_add(shared.unwrap_or(0))),
        working_set_bytes: charge.zip(inactive).map(|(charge, inactive)| charge.saturating_sub(inactive)),
        ..Accounts::default()
    }
}

fn nanoseconds(us: u64) -> u64 {
    us.saturating_mul(1000)
}

/// What tells whether a task's limits are right: see [`Watch::held_back`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldBack {
    /// Memory charged now, page cache included.
    pub charged_bytes: Option<u64>,
    /// Time in which some task waited for memory (`memory.pressure`, `some`), microseconds in all.
    pub stalled_us: Option<u64>,
    /// CPU quota periods with something to run.
    pub quota_periods: Option<u64>,
    /// Of those, periods in which the quota ran out.
    pub quota_periods_throttled: Option<u64>,
}

impl Watch {
    /// What holds the task back. The pressure is that of the v2 cgroup, also where memory is on v1: the kernel
    /// books stalls by it wherever they come from (`psi_memstall_enter`, kernel/sched/psi.c).
    pub fn held_back(&self) -> HeldBack {
        let read = |file: &Option<File>| file.as_ref().and_then(reread);
        let quota = read(&self.quota).unwrap_or_default();
        HeldBack {
            charged_bytes: read(&self.charge).and_then(|text| text.trim().parse().ok()),
            stalled_us: read(&self.pressure).and_then(|text| stalled_us(&text)),
            quota_periods: keyed(&quota, "nr_periods"),
            quota_periods_throttled: keyed(&quota, "nr_throttled"),
        }
    }
}

/// The total of a pressure file's line `some avg10=… total=…`.
fn stalled_us(pressure: &str) -> Option<u64> {
    let some = pressure.lines().find(|line| line.starts_with("some "))?;
    some.rsplit_once("total=")?.1.trim().parse().ok()
}

/// The present text of an account.
fn reread(file: &File) -> Option<String> {
    let mut text = [0; ACCOUNT_BYTES_MAX];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

impl RunCgroup {
    /// Opens what is to be looked at often.
    pub fn watch(&self) -> Watch {
        let (memory, memory_keys) = match self.v1("memory") {
            Some(v1) => (v1, ["total_rss", "total_shmem", "total_inactive_file"]),
            None => (self.v2(), ["anon", "shmem", "inactive_file"]),
        };
        let charge = if self.v1("memory").is_some() { "memory.usage_in_bytes" } else { "memory.current" };
        let open = |path: PathBuf| File::open(path).ok();
        Watch {
            cpu: open(self.v2().join("cpu.stat")),
            charge: open(memory.join(charge)),
            memory: open(memory.join("memory.stat")),
            memory_keys,
            pressure: open(self.v2().join("memory.pressure")),
            quota: open(self.v1("cpu").unwrap_or_else(|| self.v2()).join("cpu.stat")),
        }
    }

    /// Reads all the accounts.
    pub fn accounts(&self) -> Accounts {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let of = |controller: &str, v1_name: &str, v2_name: &str| match self.v1(controller) {
            Some(v1) => read(v1.join(v1_name)),
            None => read(self.v2().join(v2_name)),
        };
        let peak = of("memory", "memory.max_usage_in_bytes", "memory.peak");
        let oom = of("memory", "memory.oom_control", "memory.events");
        let pids = of("pids", "pids.events", "pids.events");
        let quota = of("cpu", "cpu.stat", "cpu.stat").unwrap_or_default();
        let watch = self.watch();
        let memory = watch.memory();
        Accounts {
            throttled_ns: keyed(&quota, "throttled_time")
                .or(keyed(&quota, "throttled_usec").map(nanoseconds)),
            memory_charged_peak_bytes: peak.and_then(|text| text.trim().parse().ok()),
            oom_kills: oom.and_then(|text| keyed(&text, "oom_kill")),
            pids_max_hits: pids.and_then(|text| keyed(&text, "max")),
            quota_periods: keyed(&quota, "nr_periods"),
            quota_periods_throttled: keyed(&quota, "nr_throttled"),
            memory_bytes: memory.memory_bytes,
            working_set_bytes: memory.working_set_bytes,
            ..watch.cpu()
        }
    }

    /// `memory.events`, whose changes wake a poll for priority data: a task that meets `memory.high` is noticed
    /// at once. `None` where memory is on v1, whose soft limit holds nobody up.
    pub fn memory_events(&self) -> Option<File> {
        self.hierarchies().home("memory").filter(|home| *home == super::Home::V2)?;
        File::open(self.v2().join("memory.events")).ok()
    }

    /// Where memory is accounted, in words for the coverage of a run.
    pub fn memory_source(&self) -> Option<String> {
        self.hierarchies().home("memory").map(|home| format!("cgroup {home} memory"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::prelude::*;

    #[test]
    fn stalls_are_the_total_of_some() {
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=49074\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(stalled_us(text), Some(49_074));
        assert_eq!(stalled_us(""), None);
    }

    const KEYS: &[&str] =
        &["usage_usec", "user_usec", "anon", "shmem", "inactive_file", "oom_kill", "some", "total=", "max"];

    proptest! {
        #[test]
        fn hostile_accounts(text in hostile::keyed_lines(KEYS)) {
            _ = stalled_us(&text);
            let cpu = cpu_of(&text);
            prop_assert!(cpu.cpu_ns.is_some() || keyed(&text, "usage_usec").is_none());
            _ = memory_of(&text, Some(&text), ["anon", "shmem", "inactive_file"]);
        }
    }
}
