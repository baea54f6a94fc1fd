//! Programs, links and maps that outlive the process: pinned in a BPF file system, so that counting goes on
//! while no agent is there, and the next agent takes up what is there without losing a count.
//!
//! `BPFFS/standin/INSTANCE/VERSION/` holds a file per map and, as `link-PROGRAM`, per attached program.
//! `INSTANCE` is the agent's cgroup parent: two agents with different parents do not meet. `VERSION` is a hash of
//! everything that decides what the maps mean: the object, the kernel's offsets, the number of slots. What
//! another version left is removed, which ends its counting. A lock on the directory of the instance keeps a
//! second agent with the same parent from taking the first one's.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use rustix::fs::FlockOperation;

use super::Found;

/// Where a BPF file system is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// Where an agent mounts one of its own if there is none.
const OWN_BPFFS: &str = "/run/standin/bpf";

const LINK_PREFIX: &str = "link-";

/// A directory of an agent's own in a BPF file system, until it is dropped: what is pinned in it stays.
#[derive(Debug)]
pub struct Instance {
    path: PathBuf,
    /// Holds the lock.
    _directory: File,
}

impl Instance {
    /// Takes the directory of an instance, which it makes where needed. `bpffs` is a mount point of a BPF file
    /// system, or where one is mounted if it is none; by default `/sys/fs/bpf`, else `/run/standin/bpf`.
    ///
    /// # Errors
    /// If nothing can be mounted or made there, or another process holds the instance.
    pub fn take(bpffs: Option<&Path>, name: &str) -> io::Result<Self> {
        let root = bpf_file_system(bpffs)?;
        // Names in this file system may hold no dot (`bpf_lookup`, kernel/bpf/inode.c).
        let path = root.join("standin").join(name.replace(['/', '.'], "%"));
        // A BPF file system may be open to all, as it is where nobody said otherwise.
        crate::trust::check_directory(&root.join("standin"))?;
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        crate::trust::check_directory(&path)?;
        let directory = lock_directory(&path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another agent holds {}: its cgroup_parent is the same", path.display()),
            ),
            _ => error,
        })?;
        Ok(Self { path, _directory: directory })
    }

    /// The place of a version; what is left of others is removed.
    pub(super) fn version(&self, identity: &[&[u8]]) -> io::Result<Pins> {
        let mut hasher = DefaultHasher::new();
        identity.hash(&mut hasher);
        let name = format!("{:016x}", hasher.finish());
        let mut replaced = false;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() != *name {
                fs::remove_dir_all(entry.path())?;
                replaced = true;
            }
        }
        let directory = self.path.join(name);
        let found = match (directory.exists(), replaced) {
            (true, _) => Found::TakenUp,
            (false, true) => Found::Replaced,
            (false, false) => Found::Nothing,
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        Ok(Pins { directory, found })
    }

    /// Removes everything, so that nothing counts once this process has ended.
    pub fn remove(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            fs::remove_dir_all(entry?.path())?;
        }
        fs::remove_dir(&self.path)
    }
}

/// The pinned things of one version.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    found: Found,
}

impl Pins {
    /// What was there before.
    pub(super) fn found(&self) -> Found {
        self.found
    }

    /// Where a map is or will be pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the link of an attached program is or will be pinned.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{LINK_PREFIX}{program}"))
    }
}

/// Locks a directory of pins, for as long as the file is open.
///
/// # Errors
/// `WouldBlock` if another process holds it, or what the file system says.
pub(crate) fn lock_directory(path: &Path) -> io::Result<File> {
    let directory = File::open(path)?;
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
    Ok(directory)
}

/// Where a BPF file system is mounted: at `wanted`, where one is mounted if there is none; else where one is by
/// convention, or one of our own.
///
/// # Errors
/// What `mount(2)` says.
pub(crate) fn bpf_file_system(wanted: Option<&Path>) -> io::Result<PathBuf> {
    match wanted {
        Some(path) => mounted(path),
        None if is_bpffs(Path::new(BPFFS)) => Ok(PathBuf::from(BPFFS)),
        None => mounted(Path::new(OWN_BPFFS)),
    }
}

/// The same, if there is one.
pub(crate) fn find_bpf_file_system() -> Option<PathBuf> {
    [BPFFS, OWN_BPFFS].map(PathBuf::from).into_iter().find(|path| is_bpffs(path))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts a BPF file system at `path` unless there is one.
fn mounted(path: &Path) -> io::Result<PathBuf> {
    if !is_bpffs(path) {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?;
    }
    Ok(path.to_owned())
}
