//! The cgroup of one run: make it, put processes in, see whether any are left, kill, remove.

use super::handed::Handed;
use super::{CgroupError, Hierarchies};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Deepest level of cgroups below a run's own that removal walks into.
pub(super) const DEPTH_MAX: u32 = 16;

/// A run's cgroup: the v2 directory and its v1 twins. Dropping it leaves the directories alone.
#[derive(Clone, Debug)]
pub struct RunCgroup {
    pub(super) path: PathBuf,
    pub(super) id: u64,
    pub(super) hierarchies: Hierarchies,
    /// A container runtime made it.
    pub(super) handed: Option<Handed>,
}

impl RunCgroup {
    /// Makes `parent/name` in every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a directory can't be made; what was made before is removed again.
    pub fn create(hierarchies: &Hierarchies, parent: &Path, name: &str) -> Result<Self, CgroupError> {
        hierarchies.make_parent(parent)?;
        let path = parent.join(name);
        let mut cgroup = Self { path, id: 0, hierarchies: hierarchies.clone(), handed: None };
        for directory in cgroup.directories() {
            if let Err(source) = fs::create_dir(&directory) {
                _ = cgroup.remove();
                return Err(CgroupError::file("create", directory, source));
            }
        }
        cgroup.id = inode(&cgroup.v2())?;
        Ok(cgroup)
    }

    /// The cgroup at `path` below the cgroup root, if it is still there.
    pub fn existing(hierarchies: &Hierarchies, path: &Path) -> Option<Self> {
        let id = inode(&hierarchies.unified.join(path)).ok()?;
        Some(Self { path: path.to_owned(), id, hierarchies: hierarchies.clone(), handed: None })
    }

    /// The cgroup of this path and id, whether it is still there or not.
    pub fn known(hierarchies: &Hierarchies, path: &Path, id: u64) -> Self {
        Self { path: path.to_owned(), id, hierarchies: hierarchies.clone(), handed: None }
    }

    /// The v2 cgroup id: what the probes call this cgroup.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Path below the v2 root; the same in every hierarchy, but for a container's.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The v2 directory.
    pub fn v2(&self) -> PathBuf {
        self.hierarchies.unified.join(&self.path)
    }

    /// The v1 directory of `controller`, where that controller is on v1.
    pub(super) fn v1(&self, controller: &str) -> Option<PathBuf> {
        let root = self.hierarchies.v1.get(controller)?;
        match &self.handed {
            Some(handed) => handed.v1.get(controller).map(|path| root.join(path)),
            None => Some(root.join(&self.path)),
        }
    }

    /// Whether a container runtime made it.
    pub fn is_handed(&self) -> bool {
        self.handed.is_some()
    }

    pub(super) fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Every distinct directory that is ours, v2 first. `cpu` and `cpuacct` and the like may share one mount.
    fn directories(&self) -> Vec<PathBuf> {
        if let Some(handed) = &self.handed {
            return if handed.v2_is_ours { vec![self.v2()] } else { Vec::new() };
        }
        let mut directories = vec![self.v2()];
        for root in self.hierarchies.v1.values() {
            let directory = root.join(&self.path);
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        directories
    }

    /// The `cgroup.procs` files by which a process enters, opened for writing, v1 first: written from inside
    /// a new process they put it into every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::File`] if one can't be opened.
    pub fn entrances(&self) -> Result<Vec<File>, CgroupError> {
        let open = |directory: &PathBuf| {
            let path = directory.join("cgroup.procs");
            File::options().write(true).open(&path).map_err(|source| CgroupError::file("open", path, source))
        };
        self.directories().iter().rev().map(open).collect()
    }

    /// Moves a process with all its threads into the cgroup, in every hierarchy, the v2 one last: the probes
    /// count from the moment when the limits hold.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a hierarchy refuses; those before it keep the process.
    pub fn enter(&self, pid: i32) -> Result<(), CgroupError> {
        for directory in self.directories().iter().rev() {
            let path = directory.join("cgroup.procs");
            fs::write(&path, pid.to_string())
                .map_err(|source| CgroupError::file(format!("write {pid} to"), path, source))?;
        }
        Ok(())
    }

    /// Whether a process lives in it or below. A cgroup that is gone is empty.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.v2().join("cgroup.events"))
            .is_ok_and(|events| super::keyed(&events, "populated") == Some(1))
    }

    /// The processes in it and below.
    pub fn processes(&self) -> Vec<i32> {
        processes_below(&self.v2())
    }

    /// `cgroup.events`, whose changes wake a poll for priority data.
    ///
    /// # Errors
    /// [`CgroupError::File`] if it can't be opened.
    pub fn events(&self) -> Result<File, CgroupError> {
        let path = self.v2().join("cgroup.events");
        File::open(&path).map_err(|source| CgroupError::file("open", path, source))
    }

    /// Kills every process in it and below with SIGKILL: at once where the kernel can (5.14), else one by one.
    pub fn kill(&self) {
        if fs::write(self.v2().join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let procs = fs::read_to_string(self.v2().join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// Removes it in every hierarchy, with the empty cgroups that the task made below.
    ///
    /// # Errors
    /// [`CgroupError::File`] while processes still live in it, or are just leaving: try again later.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.directories().iter().try_for_each(|directory| remove_tree(directory, DEPTH_MAX))
    }
}

/// The processes in a cgroup and in those below it.
pub fn processes_below(directory: &Path) -> Vec<i32> {
    let mut processes = Vec::new();
    collect_processes(directory, DEPTH_MAX, &mut processes);
    processes
}

fn collect_processes(directory: &Path, depth: u32, processes: &mut Vec<i32>) {
    let own = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    processes.extend(own.lines().filter_map(|line| line.parse::<i32>().ok()));
    let children = fs::read_dir(directory).into_iter().flatten().flatten();
    for child in children.filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect_processes(&child.path(), depth - 1, processes);
    }
}

pub(super) fn remove_tree(directory: &Path, depth: u32) -> Result<(), CgroupError> {
    if depth > 0 {
        let children = fs::read_dir(directory).into_iter().flatten().flatten();
        for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            remove_tree(&child.path(), depth - 1)?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::file("remove", directory, error))
        }
        _ => Ok(()),
    }
}

/// On 64-bit kernels the inode number of a cgroup directory is its id (`kernfs_node.id`).
pub(super) fn inode(directory: &Path) -> Result<u64, CgroupError> {
    fs::metadata(directory)
        .map(|metadata| metadata.ino())
        .map_err(|source| CgroupError::file("look up", directory, source))
}
