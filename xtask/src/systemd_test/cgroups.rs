//! Own cgroups for a systemd: one in every hierarchy that is mounted, removed with all below at the end.
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// How long what was killed may take to leave.
const EMPTY_MAX: Duration = Duration::from_secs(10);

pub(super) struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    pub(super) fn make(name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let places = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (place, kind) = (words.nth(1)?, words.next()?);
            matches!(kind, "cgroup" | "cgroup2").then(|| Path::new(place).join(name))
        });
        let made = Self(places.collect());
        ensure!(!made.0.is_empty(), "no cgroup hierarchy is mounted");
        for directory in &made.0 {
            fs::create_dir(directory).with_context(|| format!("failed to create {}", directory.display()))?;
            // A new cpuset has no CPUs, and nobody can enter it.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Some(parent), true) = (directory.parent(), directory.join(file).exists()) {
                    fs::write(directory.join(file), fs::read_to_string(parent.join(file))?)?;
                }
            }
        }
        Ok(made)
    }

    /// The files by which a process enters.
    pub(super) fn entrances(&self) -> Result<Vec<File>> {
        let open = |directory: &PathBuf| File::options().write(true).open(directory.join("cgroup.procs"));
        Ok(self.0.iter().map(open).collect::<io::Result<_>>()?)
    }
}

/// Has this process enter.
pub(super) fn enter(entrances: &[File]) -> io::Result<()> {
    entrances.iter().try_for_each(|mut entrance| entrance.write_all(b"0"))
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let until = Instant::now() + EMPTY_MAX;
        while self.0.iter().any(|directory| !remove(directory)) && Instant::now() < until {
            sleep(Duration::from_millis(20));
        }
    }
}

fn remove(directory: &Path) -> bool {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    fs::remove_dir(directory).is_ok() || !directory.exists()
}
