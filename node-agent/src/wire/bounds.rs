//! What a request may hold. A request is written by whoever is at the other end of the socket, so everything in it that
//! is kept, counted with or put into a path is bounded here, once, before anything is done with it.

use super::{COMMAND_BYTES_MAX, Container, Request, Start};
use crate::size::Manual;
use crate::size::admission::{Licenses, PRIORITY_BOUND};
use crate::steer::{PORTS_MAX, Wanted};
use crate::store::record::NewFailover;

/// Longest working directory that is kept, bytes: `PATH_MAX` of limits.h.
const DIRECTORY_BYTES_MAX: usize = 4096;

/// Longest name: of a service, a pool of licences, a container.
const NAME_BYTES_MAX: usize = 256;

/// Most pools that one task may ask licences of.
const POOLS_MAX: usize = 64;

/// Longest evidence of a failover, bytes, and most steps in one.
const EVIDENCE_BYTES_MAX: usize = 1024;
const STEPS_MAX: usize = 32;

/// Causes of failovers (`failover.cause` in `schema/README.md`).
const CAUSES: [&str; 5] = ["died", "hang", "unready", "slow", "asked"];

/// Most cores and bytes that anything is limited to or promised: beyond every host, and far from overflow.
const CORES_MAX: f64 = 1e6;
const BYTES_MAX: u64 = 1 << 60;

impl Request {
    /// Whether everything in it is within its bounds.
    ///
    /// # Errors
    /// What is not, in words.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Start(start) => start.check(),
            Self::Container(container) => container.check(),
            Self::Steer(wanted) => check_ports(wanted),
            Self::FailedOver(failover) => check_failover(failover),
            Self::ExecFailed(_) | Self::Wait | Self::Status | Self::Queue | Self::History => Ok(()),
            Self::Live | Self::LiveTask(_) => Ok(()),
        }
    }
}

fn at_most(what: &str, found: usize, most: usize) -> Result<(), String> {
    if found <= most { Ok(()) } else { Err(format!("{what} of {found}; the limit is {most}")) }
}

impl Start {
    fn check(&self) -> Result<(), String> {
        if self.pid.is_some_and(|pid| pid <= 0) {
            return Err("a process id is above 0".into());
        }
        let command = self.command.iter().map(|word| word.len() + 1).sum();
        at_most("a command line", command, COMMAND_BYTES_MAX + 1)?;
        at_most("a working directory", self.directory.len(), DIRECTORY_BYTES_MAX)?;
        check_manual(&self.manual)?;
        check_licenses(&self.admission.licenses)?;
        match self.admission.priority {
            Some(priority) if !(-PRIORITY_BOUND..=PRIORITY_BOUND).contains(&priority) => {
                Err(format!("a priority is between -{PRIORITY_BOUND} and {PRIORITY_BOUND}"))
            }
            _ => Ok(()),
        }
    }
}

/// Numbers that can be counted with: none that is no number, below 0 or without end.
fn check_manual(manual: &Manual) -> Result<(), String> {
    let cores = [manual.cpu_cores, manual.cpu_floor_cores];
    if cores.into_iter().flatten().any(|cores| !(0.0..=CORES_MAX).contains(&cores)) {
        return Err(format!("cores are between 0 and {CORES_MAX}"));
    }
    let counts = [
        manual.memory_bytes,
        manual.memory_floor_bytes,
        manual.tasks,
        manual.io_read_bytes_per_s,
        manual.io_write_bytes_per_s,
    ];
    if counts.into_iter().flatten().any(|count| count > BYTES_MAX) {
        return Err(format!("a limit is at most {BYTES_MAX}"));
    }
    Ok(())
}

fn check_licenses(licenses: &Licenses) -> Result<(), String> {
    at_most("a number of pools", licenses.len(), POOLS_MAX)?;
    licenses.keys().try_for_each(|name| at_most("the name of a pool", name.len(), NAME_BYTES_MAX))
}

impl Container {
    fn check(&self) -> Result<(), String> {
        self.start.check()?;
        at_most("the name of a container", self.id.len(), NAME_BYTES_MAX)?;
        // Cgroups are looked for by it: one that is part of other names would be found in theirs.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        if self.id.is_empty() || !self.id.bytes().all(is_plain) {
            return Err("the name of a container is letters, digits, _, +, - and .".into());
        }
        Ok(())
    }
}

fn check_ports(wanted: &Wanted) -> Result<(), String> {
    at_most("a number of ports", wanted.ports.len(), PORTS_MAX)
}

fn check_failover(failover: &NewFailover) -> Result<(), String> {
    at_most("the name of a service", failover.service.len(), NAME_BYTES_MAX)?;
    at_most("the evidence", failover.evidence.len(), EVIDENCE_BYTES_MAX)?;
    at_most("a number of steps", failover.steps.len(), STEPS_MAX)?;
    failover
        .steps
        .iter()
        .try_for_each(|(step, _)| at_most("the name of a step", step.len(), NAME_BYTES_MAX))?;
    if !CAUSES.contains(&failover.cause.as_str()) {
        return Err(format!("a failover is caused by one of: {}", CAUSES.join(", ")));
    }
    Ok(())
}
