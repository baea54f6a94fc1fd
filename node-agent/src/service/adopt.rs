//! What a supervisor that was killed has left: its instances go on, and the pinned programs steer them. The
//! next `standin run` of the same name takes them up, with everything that can be known from the kernel: the
//! pinned maps tell the slots, the processes tell their cgroups.

use super::control::{self, Instance};
use super::guard::{Left, Live};
use super::places::{self, Place};
use crate::cgroup::{Hierarchies, InstanceCgroup, cgroup_of};
use crate::steer::{SteerError, Steering, unpin};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// An instance that was left.
pub struct Survivor {
    slot: u32,
    number: u64,
    /// Its main process.
    pub pid: i32,
    pidfd: OwnedFd,
    cgroup: InstanceCgroup,
    is_frozen: bool,
}

/// A service without a supervisor.
pub struct Found {
    pub(super) steering: Option<Steering>,
    /// The v2 directory below which its instances live.
    pub(super) run: PathBuf,
    /// Instances whose main process lives.
    pub survivors: Vec<Survivor>,
    /// The slot that serves.
    primary: u32,
}

/// The service of this place, if its supervisor is gone and an instance lives. Pins of one that has none left, or
/// of another version, are removed.
pub fn left(place: &Place) -> Option<Found> {
    found(&place.pins()?)
}

/// Removes the pins of all services that have neither a supervisor nor an instance any more.
pub(super) fn sweep(pins: &Path) {
    let services = pins.parent().and_then(|services| std::fs::read_dir(services).ok());
    let others = services.into_iter().flatten().flatten().map(|entry| entry.path());
    for other in others.filter(|other| !places::is_lent(other)) {
        // Looking at it is enough.
        drop(found(&other));
    }
}

fn found(pins: &Path) -> Option<Found> {
    let unified = Hierarchies::detect().ok()?.unified;
    let mut steering = match Steering::adopt(pins) {
        Ok(steering) => steering,
        // Its supervisor lives.
        Err(SteerError::Pin { .. }) => return None,
        // Another version's, which nobody can take up: what still runs of it is named as a stranger.
        Err(_) => {
            unpin(pins);
            return None;
        }
    };
    let watched = steering.watched();
    let survivors: Vec<Survivor> =
        watched.iter().filter_map(|(slot, pid)| survivor(&unified, *slot, *pid)).collect();
    let Some(run) = survivors.first().and_then(|first| Some(first.cgroup.path().parent()?.to_owned())) else {
        steering.unpin();
        return None;
    };
    let active = steering.switch().active();
    // The kernel side may have turned the traffic to a shadow, which nobody thawed.
    let turned = survivors.iter().any(|survivor| survivor.slot == active && survivor.is_frozen);
    let is_dead = |slot: &u32| survivors.iter().all(|survivor| survivor.slot != *slot);
    let primary =
        if turned { watched.iter().map(|(slot, _)| *slot).find(is_dead).unwrap_or(active) } else { active };
    Some(Found { steering: Some(steering), run, survivors, primary })
}

fn survivor(unified: &Path, slot: u32, pid: i32) -> Option<Survivor> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let path = cgroup_of(unified, pid)?;
    // Another process by the same number is in another cgroup.
    let number = path.file_name()?.to_str()?.strip_prefix('i')?.parse().ok()?;
    let cgroup = InstanceCgroup::open(&path).ok()?;
    let is_frozen = cgroup.is_frozen();
    Some(Survivor { slot, number, pid, pidfd, cgroup, is_frozen })
}

impl Survivor {
    /// As `ps` shows it.
    pub fn describe(&self) -> Instance {
        let memory = control::memory(&self.cgroup.pids());
        Instance {
            number: self.number,
            pid: self.pid,
            role: "left".into(),
            is_frozen: self.is_frozen,
            private_bytes: memory.private,
            shared_bytes: memory.shared,
            ..Instance::default()
        }
    }
}

impl Found {
    pub(super) fn last_number(&self) -> u64 {
        self.survivors.iter().map(|survivor| survivor.number).max().unwrap_or(0)
    }

    /// For people.
    pub fn describe(&self) -> String {
        let describe = |survivor: &Survivor| {
            let role = match survivor.slot == self.primary {
                true => "serves",
                false => "is a shadow",
            };
            format!("instance {} (pid {}) {role}", survivor.number, survivor.pid)
        };
        let mut words: Vec<String> = self.survivors.iter().map(describe).collect();
        if self.survivors.iter().all(|survivor| survivor.slot != self.primary) {
            words.push("the primary is gone".into());
        }
        words.join(", ")
    }

    /// Kills all that is left.
    pub fn kill(mut self) {
        for survivor in &self.survivors {
            survivor.cgroup.kill();
            survivor.cgroup.thaw();
        }
        if let Some(steering) = &mut self.steering {
            steering.unpin();
        }
    }

    /// For the guard. A primary that is gone stands there as a dead one, so that a failover follows.
    pub(super) fn into_left(self) -> Left {
        let Self { survivors, primary, run, .. } = self;
        let is_gone = survivors.iter().all(|survivor| survivor.slot != primary);
        let mut instances: Vec<(u32, Live)> = survivors
            .into_iter()
            .map(|survivor| {
                let Survivor { slot, number, pid, pidfd, cgroup, is_frozen } = survivor;
                (slot, Live::left(number, cgroup, pid, Some(pidfd), is_frozen))
            })
            .collect();
        // An empty cgroup stands for the one that is gone.
        if is_gone && let Ok(cgroup) = InstanceCgroup::create(&run, "gone") {
            instances.push((primary, Live::left(0, cgroup, 0, None, false)));
        }
        Left { primary, instances }
    }
}
