//! Writing limits: cgroup v2 files, or their v1 twins where the controller is on v1.
//!
//! `cgroups-rs` knows the files and their v1 names; the unit conversions between the two are here.

use super::{Home, RunCgroup};
use crate::size::{Limit, Limits, Origin};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::{MemController, SetMemory};
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::{Controller, MaxValue};
use std::path::PathBuf;

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
            Limit::CpuMax(cores) => {
                let quota_us = (cores * PERIOD_US as f64).round() as i64;
                self.cpu()?.set_cfs_quota_and_period(Some(quota_us.max(QUOTA_US_MIN)), Some(PERIOD_US))
            }
            Limit::CpuWeight(weight) => {
                let cpu = self.cpu()?;
                cpu.set_shares(if cpu.v2() { weight } else { shares(weight) })
            }
            Limit::PidsMax(tasks) => self.pids()?.set_pid_max(MaxValue::Value(signed(tasks))),
        };
        done.map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }

    /// Takes every limit off again, for processes that stay after their run has ended.
    pub fn lift_limits(&self) {
        if let Ok(memory) = self.memory() {
            _ = memory.set_limit(-1);
            if memory.v2() {
                _ = memory.set_mem(SetMemory { high: Some(MaxValue::Max), low: None, max: None, min: None });
            }
        }
        if let Ok(cpu) = self.cpu() {
            _ = cpu.set_cfs_quota(-1);
        }
        if let Ok(pids) = self.pids() {
            _ = pids.set_pid_max(MaxValue::Max);
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
            (Some(Home::V1), Some(root)) => Ok((root.join(self.path()), root.clone(), false)),
            (Some(Home::V2), _) => Ok((self.v2(), hierarchies.unified.clone(), true)),
            _ => Err(format!("this host has no {name} controller")),
        }
    }
}

/// v2 weight 1..=10000 around 100 as v1 shares 2..=262144 around 1024.
fn shares(weight: u64) -> u64 {
    (weight * 1024 / 100).clamp(2, 262_144)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
