//! Writing limits: cgroup v2 files, or their v1 twins where the controller is on v1.
//!
//! `cgroups-rs` knows the files and their v1 names; the unit conversions between the two are here.

use super::{Hierarchies, Home, RunCgroup};
use crate::size::{Limit, Limits, Origin};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::{MemController, SetMemory};
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Controller, MaxValue};
use std::fs;
use std::path::{Path, PathBuf};

/// Quota period, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Smallest quota that the kernel takes, microseconds (`min_cfs_quota_period` in kernel/sched/core.c).
const QUOTA_US_MIN: i64 = 1_000;

/// What became of one limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The limit.
    pub limit: Limit,
    /// Who asked for it.
    pub origin: Origin,
    /// `None` if the kernel took it, else why not.
    pub refused: Option<String>,
}

impl Hierarchies {
    /// Whether this host has a file for a limit of the cgroups below `parent`.
    pub fn can_set(&self, limit: Limit, parent: &Path) -> bool {
        let home = |controller| self.home(controller);
        match limit {
            Limit::MemoryLow(_) => home("memory") == Some(Home::V2),
            Limit::MemoryMax(_) | Limit::MemoryHigh(_) => home("memory").is_some(),
            Limit::CpuMax(_) | Limit::CpuBurst(_) | Limit::CpuWeight(_) => home("cpu").is_some(),
            Limit::PidsMax(_) => home("pids").is_some(),
            // Weights need a scheduler of requests that knows them: bfq, or iocost on v2.
            Limit::IoWeight(_) => match home("blkio") {
                Some(Home::V1) => {
                    self.v1.get("blkio").is_some_and(|root| root.join("blkio.bfq.weight").exists())
                }
                Some(Home::V2) => self.unified.join(parent).join("io.weight").exists(),
                None => false,
            },
            Limit::IoReadMax(_) | Limit::IoWriteMax(_) => home("blkio").is_some(),
        }
    }
}

impl RunCgroup {
    /// Writes every limit; one that the host can't set or the kernel refuses is told, not fatal.
    pub fn apply(&self, limits: &Limits) -> Vec<Applied> {
        let write =
            |&(limit, origin): &(Limit, Origin)| Applied { limit, origin, refused: self.write(limit).err() };
        limits.0.iter().map(write).collect()
    }

    /// Writes one limit. `Err` says why it could not be set.
    pub fn write(&self, limit: Limit) -> Result<(), String> {
        let done = match limit {
            Limit::MemoryMax(bytes) => self.memory()?.set_limit(signed(bytes)),
            Limit::MemoryHigh(bytes) => {
                let memory = self.memory()?;
                if memory.v2() {
                    let high = Some(MaxValue::Value(signed(bytes)));
                    memory.set_mem(SetMemory { high, low: None, max: None, min: None })
                } else {
                    memory.set_soft_limit(signed(bytes))
                }
            }
            Limit::MemoryLow(bytes) => {
                let low = Some(MaxValue::Value(signed(bytes)));
                self.memory()?.set_mem(SetMemory { low, high: None, max: None, min: None })
            }
            Limit::CpuMax(cores) => {
                self.cpu()?.set_cfs_quota_and_period(Some(quota_us(cores)), Some(PERIOD_US))
            }
            Limit::CpuWeight(weight) => {
                let cpu = self.cpu()?;
                cpu.set_shares(if cpu.v2() { weight } else { shares(weight) })
            }
            Limit::PidsMax(tasks) => self.pids()?.set_pid_max(MaxValue::Value(signed(tasks))),
            Limit::CpuBurst(cores) => {
                return self.put("cpu", "cpu.cfs_burst_us", "cpu.max.burst", &quota_us(cores).to_string());
            }
            Limit::IoWeight(weight) => {
                // blkio.bfq.weight goes to 1000.
                let weight = if self.v1("blkio").is_some() { weight.min(1000) } else { weight };
                return self.put("blkio", "blkio.bfq.weight", "io.weight", &weight.to_string());
            }
            Limit::IoReadMax(rate) => return self.throttle("read", "rbps", rate),
            Limit::IoWriteMax(rate) => return self.throttle("write", "wbps", rate),
        };
        done.map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }

    /// Limits the traffic of one direction with every disk.
    fn throttle(&self, direction: &str, key: &str, bytes_per_s: u64) -> Result<(), String> {
        let v1_name = format!("blkio.throttle.{direction}_bps_device");
        let is_v1 = self.v1("blkio").is_some();
        let disks = disks();
        if disks.is_empty() {
            return Err("this host has no disk to limit".into());
        }
        disks.iter().try_for_each(|disk| {
            let key = if is_v1 { "" } else { &format!("{key}=") };
            self.put("blkio", &v1_name, "io.max", &format!("{disk} {key}{bytes_per_s}"))
        })
    }

    /// Writes a file that `cgroups-rs` does not know.
    fn put(&self, controller: &str, v1_name: &str, v2_name: &str, value: &str) -> Result<(), String> {
        let (directory, _, v2) = self.controller(controller)?;
        let path = directory.join(if v2 { v2_name } else { v1_name });
        fs::write(&path, value)
            .map_err(|error| format!("failed to write {value} to {}: {error}", path.display()))
    }

    /// Takes every limit off again, for processes that stay after their run has ended.
    pub fn lift_limits(&self) {
        self.lift_high();
        if self.is_handed() {
            // The others may be the runtime's.
            return;
        }
        if let Ok(memory) = self.memory() {
            _ = memory.set_limit(-1);
        }
        if let Ok(cpu) = self.cpu() {
            _ = cpu.set_cfs_quota(-1);
        }
        if let Ok(pids) = self.pids() {
            _ = pids.set_pid_max(MaxValue::Max);
        }
        for disk in disks() {
            for direction in ["read", "write"] {
                let v1_name = format!("blkio.throttle.{direction}_bps_device");
                let none = if self.v1("blkio").is_some() { "0" } else { "rbps=max wbps=max" };
                _ = self.put("blkio", &v1_name, "io.max", &format!("{disk} {none}"));
            }
        }
    }

    /// Has the kernel take back up to `bytes` of its memory (v1: all of its page cache); returns how many it gave.
    /// Waits while the kernel does it.
    pub fn reclaim(&self, bytes: u64) -> u64 {
        let watch = self.watch();
        let charged = || watch.held_back().charged_bytes.unwrap_or(0);
        let before = charged();
        // It gives EAGAIN when it took back less than was asked for, which is no failure here.
        _ = self.put("memory", "memory.force_empty", "memory.reclaim", &bytes.to_string());
        before.saturating_sub(charged())
    }

    /// Takes off the reclaim target: nobody will raise it any more. On v1 it holds nobody back.
    pub fn lift_high(&self) {
        if let Ok(memory) = self.memory()
            && memory.v2()
        {
            _ = memory.set_mem(SetMemory { high: Some(MaxValue::Max), low: None, max: None, min: None });
        }
    }

    fn memory(&self) -> Result<MemController, String> {
        self.controller("memory").map(|(path, root, v2)| MemController::new(path, root, v2))
    }

    fn cpu(&self) -> Result<CpuController, String> {
        self.controller("cpu").map(|(path, root, v2)| CpuController::new(path, root, v2))
    }

    fn pids(&self) -> Result<PidController, String> {
        self.controller("pids").map(|(path, root, v2)| PidController::new(path, root, v2))
    }

    /// Directory of the run, root of the hierarchy, and whether that is v2, for one controller.
    fn controller(&self, name: &str) -> Result<(PathBuf, PathBuf, bool), String> {
        let hierarchies = self.hierarchies();
        match (hierarchies.home(name), hierarchies.v1.get(name)) {
            (Some(Home::V1), Some(root)) => {
                let path = self.v1(name).ok_or_else(|| format!("it is in no {name} cgroup"))?;
                Ok((path, root.clone(), false))
            }
            (Some(Home::V2), _) => Ok((self.v2(), hierarchies.unified.clone(), true)),
            _ => Err(format!("this host has no {name} controller")),
        }
    }
}

/// The host's disks as `MAJOR:MINOR`: whole ones, not what is made of memory or of files.
fn disks() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let is_disk =
        |name: &str| !["loop", "ram", "zram", "dm-", "md"].iter().any(|kind| name.starts_with(kind));
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_disk))
        .filter_map(|entry| fs::read_to_string(entry.path().join("dev")).ok())
        .map(|number| number.trim().to_owned())
        .collect()
}

fn quota_us(cores: f64) -> i64 {
    ((cores * PERIOD_US as f64).round() as i64).max(QUOTA_US_MIN)
}

/// v2 weight 1..=10000 around 100 as v1 shares 2..=262144 around 1024.
fn shares(weight: u64) -> u64 {
    (weight * 1024 / 100).clamp(2, 262_144)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn shares_are_weights_around_the_normal() {
        assert_eq!([1, 100, 10_000].map(shares), [10, 1024, 102_400]);
        assert_eq!(quota_us(1.5), 150_000);
        assert_eq!(quota_us(0.000_1), QUOTA_US_MIN);
    }

    #[test]
    fn page_cache_is_taken_back() {
        let hierarchies = Hierarchies::detect().unwrap();
        if !nix::unistd::geteuid().is_root() || hierarchies.home("memory").is_none() {
            return crate::skip::skip("needs root and a memory controller");
        }
        let parent = PathBuf::from(format!("standin-reclaim-{}", std::process::id()));
        let cgroup = RunCgroup::create(&hierarchies, &parent, "run-1").unwrap();
        // Beside the sources: /tmp may be memory itself.
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/reclaim-{}", std::process::id()));
        let script =
            "read go; dd if=/dev/zero of=\"$0\" bs=1M count=20 conv=fsync 2>/dev/null; echo done; read end";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cgroup.enter(child.id().cast_signed()).unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"go\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let freed = cgroup.reclaim(64 << 20);
        drop(input);
        child.wait().unwrap();
        _ = fs::remove_file(&file);
        for directory in [&cgroup, &RunCgroup::existing(&hierarchies, &parent).unwrap()] {
            while directory.remove().is_err() {}
        }
        assert!(freed > 10 << 20, "{freed}");
    }
}
