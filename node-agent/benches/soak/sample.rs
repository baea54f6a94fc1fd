//! One look at everything that could grow.

use crate::support::Sandbox;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is looked at, in the order in which it is shown.
pub(crate) const MEASURES: [&str; 11] = [
    "agent: resident, KiB",
    "agent: descriptors",
    "agent: threads",
    "agent: BPF objects held",
    "supervisor: resident, KiB",
    "supervisor: descriptors",
    "supervisor: threads",
    "supervisor: BPF objects held",
    "BPF objects pinned",
    "cgroups",
    "database, KiB",
];

/// See the head of this file.
pub(crate) struct Sample {
    /// Since the begin, seconds.
    pub(crate) at_s: f64,
    /// As [`MEASURES`].
    pub(crate) values: [f64; MEASURES.len()],
}

impl Sample {
    pub(crate) fn take(sandbox: &Sandbox, agent: u32, supervisor: u32, since: Duration) -> Self {
        let pins = entries(&sandbox.bpffs())
            + entries(Path::new("/run/standin/bpf/standin-services"))
            + entries(Path::new("/sys/fs/bpf/standin-services"));
        let size = |suffix: &str| {
            let mut path = sandbox.database().into_os_string();
            path.push(suffix);
            fs::metadata(path).map_or(0, |metadata| metadata.len())
        };
        let values = [
            resident_kib(agent),
            descriptors(agent, "").into(),
            threads(agent),
            descriptors(agent, "bpf").into(),
            resident_kib(supervisor),
            descriptors(supervisor, "").into(),
            threads(supervisor),
            descriptors(supervisor, "bpf").into(),
            pins.into(),
            entries_of_kind(&sandbox.cgroups(), true).into(),
            ((size("") + size("-wal")) / 1024) as f64,
        ];
        Self { at_s: since.as_secs_f64(), values }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5.0} s", self.at_s)?;
        MEASURES.iter().zip(self.values).try_for_each(|(name, value)| write!(f, "; {name} {value}"))
    }
}

fn field(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0.0)
}

fn resident_kib(pid: u32) -> f64 {
    field(pid, "VmRSS:")
}

fn threads(pid: u32) -> f64 {
    field(pid, "Threads:")
}

/// Open descriptors of what has `kind` in its name.
fn descriptors(pid: u32, kind: &str) -> u32 {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_kind = |path: PathBuf| fs::read_link(path).is_ok_and(|name| name.to_string_lossy().contains(kind));
    u32::try_from(open.filter(|entry| is_kind(entry.path())).count()).unwrap_or(u32::MAX)
}

/// Files below a directory.
fn entries(directory: &Path) -> u32 {
    entries_of_kind(directory, false)
}

fn entries_of_kind(directory: &Path, directories: bool) -> u32 {
    let found = fs::read_dir(directory).into_iter().flatten().flatten();
    found
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => u32::from(directories) + entries_of_kind(&entry.path(), directories),
            _ => u32::from(!directories),
        })
        .sum()
}
