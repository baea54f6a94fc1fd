//! The host at one moment, as `/proc` tells it: CPU ticks, memory, load, and pressure where the kernel has it
//! (PSI, Linux 4.20; `Documentation/accounting/psi.rst`).

use crate::host::{self, CpuTicks};
use procfs::Current;
use serde::{Deserialize, Serialize};

/// The host. What `/proc` does not tell is `None`, or 0 for what every kernel tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostNow {
    /// Online CPUs.
    pub cpus: usize,
    /// What they did since boot.
    pub ticks: CpuTicks,
    /// Memory, bytes.
    pub memory_total_bytes: u64,
    /// Memory that a new task could have without swapping, bytes.
    pub memory_available_bytes: u64,
    /// Tasks that ran or wanted to, means over 1, 5 and 15 minutes.
    pub load: Option<[f32; 3]>,
    /// Who waited for what.
    pub pressure: Pressure,
}

/// Pressure stall information of the host; `None` where the kernel has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    /// For a CPU.
    pub cpu: Option<Stall>,
    /// For memory.
    pub memory: Option<Stall>,
    /// For I/O.
    pub io: Option<Stall>,
}

/// Time in which tasks waited for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Share of the last 10 s in which some task waited, 0 to 1.
    pub some_10s: f32,
    /// Time in which some task waited, since boot, microseconds.
    pub some_us: u64,
    /// Time in which all tasks waited, since boot, microseconds; 0 where the kernel does not tell.
    pub full_us: u64,
}

impl Stall {
    /// From a pressure file: lines `some avg10=0.00 avg60=… avg300=… total=…` and `full …`.
    fn of(text: &str) -> Option<Self> {
        let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let field = |line: &str, name: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned)
        };
        let some = line("some ")?;
        let total = |line: &str| field(line, "total=").and_then(|text| text.parse().ok());
        Some(Self {
            some_10s: field(some, "avg10=")?.parse::<f32>().ok()? / 100.0,
            some_us: total(some)?,
            full_us: line("full ").and_then(total).unwrap_or(0),
        })
    }
}

impl HostNow {
    /// What `/proc` says now.
    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let stall = |resource: &str| Stall::of(&text(&format!("/proc/pressure/{resource}")));
        let memory = procfs::Meminfo::current().ok();
        let load = procfs::LoadAverage::current().ok();
        Self {
            cpus: host::cpus(),
            ticks: CpuTicks::now().unwrap_or_default(),
            memory_total_bytes: memory.as_ref().map_or(0, |memory| memory.mem_total),
            memory_available_bytes: memory.and_then(|memory| memory.mem_available).unwrap_or(0),
            load: load.map(|load| [load.one, load.five, load.fifteen]),
            pressure: Pressure { cpu: stall("cpu"), memory: stall("memory"), io: stall("io") },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_has_shares_and_totals() {
        let text = "some avg10=12.50 avg60=0.00 avg300=0.00 total=49074\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(Stall::of(text), Some(Stall { some_10s: 0.125, some_us: 49_074, full_us: 7 }));
        assert_eq!(Stall::of("some avg10=0.00 avg60=0.00 avg300=0.00 total=3\n").unwrap().full_us, 0);
        assert_eq!(Stall::of(""), None);
    }

    #[test]
    fn this_host_has_memory_and_processors() {
        let now = HostNow::read();
        assert!(now.cpus > 0 && now.ticks.all() > 0, "{now:?}");
        assert!(now.memory_total_bytes >= now.memory_available_bytes, "{now:?}");
    }
}
