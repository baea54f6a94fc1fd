//! The home of a service where there is an agent: it measures the run, and the launcher is in the run's cgroup. For
//! launchers that may not load programs it has the steering as well.

use super::home::Home;
use super::supervisor::WARMING;
use crate::cgroup::{Hierarchies, InstanceCgroup, cgroup_of};
use crate::steer::{Steering, Wanted};
use crate::wire::{self, Reply, Request};
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// See the head of this file.
#[derive(Debug)]
pub struct Lodged {
    agent: UnixStream,
    cgroup: Option<PathBuf>,
}

impl Lodged {
    /// In the cgroup that `agent` has moved this process into.
    pub fn with(agent: UnixStream) -> Self {
        let unified = Hierarchies::detect().ok().map(|hierarchies| hierarchies.unified);
        Self { agent, cgroup: unified.and_then(|unified| cgroup_of(&unified, "self")) }
    }

    fn borrow(&mut self, wanted: &Wanted) -> Result<(Steering, InstanceCgroup), String> {
        let asked = wire::send(&mut self.agent, &Request::Steer(wanted.clone()));
        match asked.and_then(|()| wire::receive(&mut self.agent)) {
            Ok(Reply::Lent) => {}
            Ok(Reply::Refused(why)) => return Err(why),
            Ok(_) => return Err("the agent answered something else".into()),
            Err(error) => return Err(error.to_string()),
        }
        let descriptors = wire::receive_descriptors(&self.agent).map_err(|error| error.to_string())?;
        let steering = Steering::lent(descriptors).map_err(|error| error.to_string())?;
        let run = self.cgroup.clone().ok_or("no cgroup")?;
        let warming = InstanceCgroup::open(&run.join(WARMING)).map_err(|error| error.to_string())?;
        Ok((steering, warming))
    }
}

impl Home for Lodged {
    fn cgroup(&self) -> Option<PathBuf> {
        self.cgroup.clone()
    }

    fn entrances(&self) -> &[File] {
        &[]
    }

    fn measure(&mut self) -> Duration {
        Duration::from_secs(3600)
    }

    fn steering(&mut self, wanted: &Wanted) -> Option<Result<(Steering, InstanceCgroup), String>> {
        // Root loads its own, which outlives launcher and agent.
        (!nix::unistd::geteuid().is_root()).then(|| self.borrow(wanted))
    }
}
