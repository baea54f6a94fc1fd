//! The cgroup of one instance of a service: a child of its run's, on v2 only. It is what is frozen, thawed and
//! killed. The files for that are opened ahead, so that nothing has to be looked up when it is urgent.

use super::{CgroupError, keyed};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Pause between two looks at `cgroup.events`.
const LOOK: Duration = Duration::from_micros(100);

/// See the head of this file. Dropping it leaves the directory alone.
#[derive(Debug)]
pub struct InstanceCgroup {
    path: PathBuf,
    id: u64,
    directory: File,
    freeze: File,
    kill: File,
    events: File,
    cpu: File,
}

impl InstanceCgroup {
    /// Makes `name` below the cgroup of a run.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the kernel refuses (freezing needs Linux 5.2, killing 5.14).
    pub fn create(run: &Path, name: &str) -> Result<Self, CgroupError> {
        let path = run.join(name);
        fs::create_dir(&path).map_err(|source| CgroupError::file("create", &path, source))?;
        Self::open(&path).inspect_err(|_| _ = fs::remove_dir(&path))
    }

    /// The one that is there at `path`.
    ///
    /// # Errors
    /// [`CgroupError::File`] if it is not, or the kernel is too old.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let file = |name: &str, write: bool| {
            let path = path.join(name);
            let opened = File::options().read(!write).write(write).open(&path);
            opened.map_err(|source| CgroupError::file("open", path, source))
        };
        let directory = file("", false)?;
        let metadata = directory.metadata().map_err(|source| CgroupError::file("look up", path, source))?;
        Ok(Self {
            id: metadata.ino(),
            freeze: file("cgroup.freeze", true)?,
            kill: file("cgroup.kill", true)?,
            events: file("cgroup.events", false)?,
            cpu: file("cpu.stat", false)?,
            directory,
            path: path.to_owned(),
        })
    }

    /// The v2 cgroup id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, to be born in.
    pub fn directory(&self) -> &File {
        &self.directory
    }

    /// Stops all of its processes, wherever they are; they use no CPU until [`InstanceCgroup::thaw`].
    pub fn freeze(&self) {
        _ = (&self.freeze).write_all(b"1");
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        _ = (&self.freeze).write_all(b"0");
    }

    /// Kills them all, frozen or not.
    pub fn kill(&self) {
        _ = (&self.kill).write_all(b"1");
    }

    /// Whether all of them are stopped by [`InstanceCgroup::freeze`].
    pub fn is_frozen(&self) -> bool {
        self.event("frozen") == Some(1)
    }

    /// Whether any process is left in it.
    pub fn is_populated(&self) -> bool {
        self.event("populated") == Some(1)
    }

    fn event(&self, name: &str) -> Option<u64> {
        keyed(&reread(&self.events)?, name)
    }

    /// Waits until no process is left; `false` if some are after `patience`.
    pub fn wait_until_empty(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.is_populated() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// CPU time used by its processes so far.
    pub fn cpu_ns(&self) -> u64 {
        let used = reread(&self.cpu).and_then(|text| keyed(&text, "usage_usec"));
        used.unwrap_or(0) * 1000
    }

    /// Its processes, those in cgroups that they made below included.
    pub fn pids(&self) -> Vec<i32> {
        super::processes_below(&self.path)
    }

    /// Removes it, with empty cgroups below.
    ///
    /// # Errors
    /// [`CgroupError::File`] while processes still live in it, or are just leaving: try again later.
    pub fn remove(&self) -> Result<(), CgroupError> {
        super::run_cgroup::remove_tree(&self.path, super::run_cgroup::DEPTH_MAX)
    }
}

/// The content of a file of the kernel that was opened before.
fn reread(mut file: &File) -> Option<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The v2 cgroup that a process is in, as a directory below `unified`; `process` is a pid or `self`.
pub fn cgroup_of(unified: &Path, process: impl std::fmt::Display) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(unified.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;
    use std::process::Command;

    #[test]
    fn freezes_thaws_and_kills() {
        let Ok(hierarchies) = Hierarchies::detect() else { return crate::skip::skip("no cgroup v2") };
        let name = format!("standin-test-instance-{}", std::process::id());
        let Ok(cgroup) = InstanceCgroup::create(&hierarchies.unified, &name) else {
            return crate::skip::skip("no cgroup can be made here");
        };
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(cgroup.path().join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_eq!(cgroup.pids(), [child.id().cast_signed()]);
        cgroup.freeze();
        let until = Instant::now() + Duration::from_secs(10);
        while !cgroup.is_frozen() {
            assert!(Instant::now() < until, "it does not freeze");
        }
        let used = cgroup.cpu_ns();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(cgroup.cpu_ns(), used, "frozen");
        cgroup.thaw();
        while cgroup.cpu_ns() == used {
            assert!(Instant::now() < until, "it does not go on");
        }
        cgroup.kill();
        child.wait().unwrap();
        assert!(cgroup.wait_until_empty(Duration::from_secs(10)));
        cgroup.remove().unwrap();
    }
}
