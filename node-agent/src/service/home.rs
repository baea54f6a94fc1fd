//! Where a service lives: the cgroup of its run, and who measures it.

use crate::cgroup::InstanceCgroup;
use crate::steer::{Steering, Wanted};
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

    /// Steering that somebody else has loaded for this service, with the cgroup of its warming; `None` if the
    /// supervisor is to load it.
    fn steering(&mut self, _wanted: &Wanted) -> Option<Result<(Steering, InstanceCgroup), String>> {
        None
    }
}
