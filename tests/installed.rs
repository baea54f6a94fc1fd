//! What an installed package promises, under a real systemd: the service, the jobs, containers, the limits, the
//! failover, the way out. `cargo xtask systemd-test` and `cargo xtask vm-test` install the package somewhere and run this
//! there, the part `removal` last; elsewhere there is nothing to test.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "support/bundle.rs"]
mod bundle;
#[path = "installed/containers.rs"]
mod containers;
#[path = "installed/failover.rs"]
mod failover;
#[path = "installed/host.rs"]
mod host;
#[path = "installed/jobs.rs"]
mod jobs;
#[path = "installed/limits.rs"]
mod limits;
#[path = "installed/power_cut.rs"]
mod power_cut;
#[path = "installed/removal.rs"]
mod removal;
#[path = "installed/service.rs"]
mod service;
#[path = "support/skip.rs"]
mod skip;
