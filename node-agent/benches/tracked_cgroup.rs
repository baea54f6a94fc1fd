//! A v2 cgroup of our own for what is measured, and the probes that count in it.

use anyhow::{Context, Result};
use standin::cgroup::Hierarchies;
use standin::probe::{Options, Probes};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Children of the root are tracked.
const LEVEL: u32 = 1;

/// Removed when dropped.
pub(crate) struct TrackedCgroup(PathBuf);

impl TrackedCgroup {
    pub(crate) fn new() -> Result<Self> {
        let path = Hierarchies::detect()?.unified.join(format!("standin-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the command begin its life in here.
    pub(crate) fn enclose(&self, command: &mut Command) -> Result<()> {
        let path = self.0.join("cgroup.procs");
        let mut entrance = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("failed to open {}", path.display()))?;
        // SAFETY: between fork and exec the child makes one system call, write, which is allowed there.
        unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
        Ok(())
    }

    /// Attaches all probes and has them count here, until the result is dropped.
    pub(crate) fn probes(&self) -> Result<Probes> {
        let mut probes = Probes::load(&Options { tasks_max: 8, run_level: LEVEL })?;
        probes.track(fs::metadata(&self.0)?.ino())?;
        Ok(probes)
    }
}

impl Drop for TrackedCgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("failed to remove {}: {error}", self.0.display());
        }
    }
}
