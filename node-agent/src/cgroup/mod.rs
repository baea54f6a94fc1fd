//! Control groups: what this host mounts, one cgroup per run, its limits and its accounts.
//!
//! A run's cgroup is one directory `PARENT/run-…` in the v2 hierarchy, where the probes count and processes
//! are frozen and killed. On hybrid hosts, where controllers are bound to v1 hierarchies, the same directory
//! is made in those too, for limits and accounts. Only directories made here are ever written to.

mod accounts;
mod handed;
mod instance;
mod limits;
mod owner;
mod run_cgroup;

pub use accounts::{Accounts, HeldBack, Watch};
pub use instance::{InstanceCgroup, cgroup_of};
pub use limits::Applied;
pub use owner::name_of;
pub use run_cgroup::{RunCgroup, processes_below};

use procfs::process::Process;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup v2 mount, or `/proc` does not tell.
    #[error("no cgroup v2 hierarchy is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)")]
    NoUnified,
    /// A cgroup file refused.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried (`create`, `write 123 to`, …).
        action: String,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl CgroupError {
    fn file(action: impl Into<String>, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { action: action.into(), path: path.into(), source }
    }
}

/// The controllers that standin uses, by the kernel's names.
pub const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

/// How this host arranges its control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All controllers on v2.
    Unified,
    /// A v2 hierarchy beside v1 controllers.
    Hybrid,
}

/// The mounted hierarchies.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    /// Mount point of the v2 hierarchy.
    pub unified: PathBuf,
    /// Mounted with `favordynmods`: moving a process does not wait for an RCU grace period first, which takes
    /// some 10 ms when nothing was moved for a while (`cgroup_threadgroup_rwsem`, kernel/cgroup/cgroup.c).
    pub moves_are_quick: bool,
    /// Controllers of the v2 hierarchy.
    pub unified_controllers: Vec<String>,
    /// Mount points of those of [`CONTROLLERS`] that are on v1 (and `freezer`-like ones left out).
    pub v1: BTreeMap<&'static str, PathBuf>,
}

impl Hierarchies {
    /// Finds them in `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// [`CgroupError::NoUnified`] without a cgroup v2 mount.
    pub fn detect() -> Result<Self, CgroupError> {
        let mounts =
            Process::myself().and_then(|process| process.mountinfo()).map_err(|_| CgroupError::NoUnified)?;
        let mut unified = None;
        let mut v1 = BTreeMap::new();
        for mount in mounts {
            match mount.fs_type.as_str() {
                // A bind mount of a part shows a root other than "/".
                "cgroup2" if mount.root == "/" => {
                    let moves_are_quick = mount.super_options.contains_key("favordynmods");
                    unified.get_or_insert((mount.mount_point, moves_are_quick));
                }
                "cgroup" if mount.root == "/" => {
                    for controller in CONTROLLERS {
                        if mount.super_options.contains_key(controller) {
                            v1.entry(controller).or_insert_with(|| mount.mount_point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        let (unified, moves_are_quick) = unified.ok_or(CgroupError::NoUnified)?;
        let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
        let unified_controllers = controllers.split_whitespace().map(str::to_owned).collect();
        Ok(Self { unified, moves_are_quick, unified_controllers, v1 })
    }

    /// Which arrangement this is.
    pub fn mode(&self) -> Mode {
        if self.v1.is_empty() { Mode::Unified } else { Mode::Hybrid }
    }

    /// Where a controller of [`CONTROLLERS`] lives.
    pub fn home(&self, controller: &str) -> Option<Home> {
        if self.v1.contains_key(controller) {
            return Some(Home::V1);
        }
        let v2_name = if controller == "blkio" { "io" } else { controller };
        self.unified_controllers.iter().any(|name| name == v2_name).then_some(Home::V2)
    }

    /// Whether this process may make cgroups below `parent`, or make that. (The root's directory is closed even to its
    /// owner, but for CAP_DAC_OVERRIDE.)
    pub fn is_writable(&self, parent: &Path) -> bool {
        use nix::unistd::{AccessFlags, access};
        let path = self.unified.join(parent);
        let nearest = path.ancestors().find(|ancestor| ancestor.is_dir());
        nearest.is_some_and(|directory| access(directory, AccessFlags::W_OK).is_ok())
    }

    /// Makes `parent` (a relative path of plain names) in every hierarchy and turns on the v2 controllers for
    /// its children where that is possible; nothing if it is there.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a directory can't be made.
    pub fn make_parent(&self, parent: &Path) -> Result<(), CgroupError> {
        let paths = || std::iter::once(&self.unified).chain(self.v1.values()).map(|root| root.join(parent));
        if paths().all(|path| path.is_dir()) {
            return Ok(());
        }
        for path in paths() {
            fs::create_dir_all(&path).map_err(|source| CgroupError::file("create", path, source))?;
        }
        let mut directory = self.unified.clone();
        enable_controllers(&directory);
        for name in parent {
            directory.push(name);
            enable_controllers(&directory);
        }
        Ok(())
    }
}

/// Asks for each controller by itself: one that is refused (a v1 one, a threaded domain) leaves the others.
/// What is missing in the end shows when a limit is written.
fn enable_controllers(directory: &Path) {
    for controller in ["memory", "cpu", "pids", "io"] {
        let control = directory.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).unwrap_or_default();
        if !enabled.split_whitespace().any(|name| name == controller) {
            _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

/// Which hierarchy a controller is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A v1 hierarchy of its own.
    V1,
    /// The unified hierarchy.
    V2,
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// The value after `key ` in a flat keyed file (`cpu.stat`, `memory.stat`, `memory.events`).
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files_match_whole_keys() {
        let text = "anon 4096\nanon_thp 1\nshmem 7\n";
        assert_eq!(keyed(text, "anon"), Some(4096));
        assert_eq!(keyed(text, "shmem"), Some(7));
        assert_eq!(keyed(text, "shm"), None);
    }

    #[test]
    fn this_host_has_a_unified_hierarchy() {
        let hierarchies = Hierarchies::detect().unwrap();
        assert!(hierarchies.unified.join("cgroup.procs").exists());
    }
}
