//! Services of users who may not load programs: the agent gives the run's cgroup into their hands, and the
//! descriptors of its steering. From then on the launcher needs no agent to fail over.

use crate::cgroup::Hierarchies;
use crate::service::{WARMING, lent_pins_to_be};
use crate::steer::{self, Steering, Wanted};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Uid, chown};
use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What the owner of a cgroup must be able to write, and nothing that limits it (`Delegation` in
/// Documentation/admin-guide/cgroup-v2.rst).
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

/// Most services at once that steering is lent to, and most of one user: each has programs that see the ends of all
/// processes of the host.
const LENT_MAX: usize = 256;
const LENT_TO_USER_MAX: usize = 32;

/// Most cgroups that the owner of a run may make below it, and how deep: who empties it walks through them all.
const DESCENDANTS_MAX: u32 = 256;
const DEPTH_MAX: u32 = 8;

/// Makes the steering of the run in `cgroup`, for its owner.
///
/// # Errors
/// For people: what the kernel refuses.
pub(super) fn prepare(cgroup: &Path, owner: u32, wanted: &Wanted) -> Result<Vec<OwnedFd>, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let unified = Hierarchies::detect().map_err(|error| words(&error))?.unified;
    let run = unified.join(cgroup);
    let (all, own) = lent(run.parent().unwrap_or(&run), owner);
    if all >= LENT_MAX || own >= LENT_TO_USER_MAX {
        return Err(format!(
            "steering is lent to {own} services of yours, {all} in all: the limit is {LENT_TO_USER_MAX} and {LENT_MAX}"
        ));
    }
    let pins = lent_pins_to_be(cgroup).ok_or("no BPF file system can be mounted")?;
    let warming = run.join(WARMING);
    fs::create_dir(&warming).map_err(|error| words(&error))?;
    let bounds = [("cgroup.max.descendants", DESCENDANTS_MAX), ("cgroup.max.depth", DEPTH_MAX)];
    for (file, most) in bounds {
        fs::write(run.join(file), most.to_string()).map_err(|error| words(&error))?;
    }
    give(&run, &DELEGATED, owner).map_err(|error| words(&error))?;
    let entries = fs::read_dir(&warming).map_err(|error| words(&error))?.flatten();
    let names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    give(&warming, &names.iter().map(String::as_str).collect::<Vec<_>>(), owner)
        .map_err(|error| words(&error))?;
    let open = |path: &Path| File::open(path).map_err(|error| words(&error));
    Steering::load(&open(&run)?, &open(&warming)?, wanted, Some(&pins)).map_err(|error| words(&error))?;
    steer::lend(&pins).map_err(|error| words(&error))
}

/// How many runs below `parent` have steering lent: all, and those of `owner`.
fn lent(parent: &Path, owner: u32) -> (usize, usize) {
    let runs = fs::read_dir(parent).into_iter().flatten().flatten();
    let owners = runs.filter_map(|run| run.path().join(WARMING).metadata().ok()).map(|warming| warming.uid());
    owners.fold((0, 0), |(all, own), uid| (all + 1, own + usize::from(uid == owner)))
}

fn give(directory: &Path, files: &[&str], owner: u32) -> nix::Result<()> {
    chown(directory, Some(Uid::from_raw(owner)), None)?;
    files.iter().try_for_each(|file| chown(&directory.join(file), Some(Uid::from_raw(owner)), None))
}

/// Hands descriptors over, with one byte, as the kernel wants it.
pub(super) async fn hand_over(stream: &UnixStream, descriptors: &[OwnedFd]) -> std::io::Result<()> {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let send = || {
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&[1])], &rights, MsgFlags::empty(), None)?;
        Ok(())
    };
    stream.async_io(Interest::WRITABLE, send).await
}
