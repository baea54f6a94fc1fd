//! Where a service lives: the cgroup of its run, and who measures it.

use crate::cgroup::{Hierarchies, own_cgroup};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

/// The cgroup of the run, and what has to happen while it goes on.
pub trait Home {
    /// The v2 directory of the run; `None` where no cgroup can be made.
    fn cgroup(&self) -> Option<PathBuf>;

    /// Files of v1 hierarchies that instances write themselves into.
    fn entrances(&self) -> &[File];

    /// Measures; gives the pause until the next time.
    fn measure(&mut self) -> Duration;
}

/// The agent measures, and the launcher is in the run's cgroup already.
#[derive(Debug)]
pub struct Lodged {
    cgroup: Option<PathBuf>,
}

impl Lodged {
    /// In the cgroup that this process is in.
    pub fn here() -> Self {
        let unified = Hierarchies::detect().ok().map(|hierarchies| hierarchies.unified);
        Self { cgroup: unified.and_then(|unified| own_cgroup(&unified)) }
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
}
