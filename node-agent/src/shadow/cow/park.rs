//! Puts a stopped copy into its cgroup, and waits until it is frozen there.

use super::CowError;
use nix::unistd::Pid;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait until the kernel has frozen a cgroup.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
const NAP: Duration = Duration::from_micros(50);

/// Whether `cgroup` can hold a frozen copy.
///
/// # Errors
/// [`CowError::Failed`] where it is no cgroup of the v2 hierarchy, or the root.
pub(super) fn check(cgroup: &Path) -> Result<(), CowError> {
    let action = format!("use {} (give a cgroup of the v2 hierarchy)", cgroup.display());
    fs::metadata(cgroup.join("cgroup.freeze")).map(drop).map_err(CowError::failed(action))
}

/// Moves the process, which the tracer keeps stopped, and freezes the cgroup: it takes effect when the tracer
/// lets go. No call can be made in the process from then on.
pub(super) fn park(pid: Pid, cgroup: &Path) -> Result<(), CowError> {
    write(&cgroup.join("cgroup.procs"), &pid.to_string())?;
    write(&cgroup.join("cgroup.freeze"), "1")
}

/// Waits until the kernel says that all of the cgroup is frozen.
pub(super) fn wait_until_frozen(cgroup: &Path) -> Result<(), CowError> {
    let path = cgroup.join("cgroup.events");
    let start = Instant::now();
    loop {
        let events = fs::read_to_string(&path);
        let events = events.map_err(CowError::failed(format!("read {}", path.display())))?;
        if events.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if start.elapsed() > FREEZE_TIMEOUT {
            let error = io::Error::from(io::ErrorKind::TimedOut);
            return Err(CowError::failed(format!("freeze {}", cgroup.display()))(error));
        }
        std::thread::sleep(NAP);
    }
}

fn write(path: &Path, text: &str) -> Result<(), CowError> {
    fs::write(path, text).map_err(CowError::failed(format!("write {text} to {}", path.display())))
}
