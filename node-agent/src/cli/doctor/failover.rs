//! Which way of failover this host gets, and why not a better one.

use super::{Finding, State};
use crate::cgroup::{Hierarchies, InstanceCgroup};
use crate::probe::bpf_file_system;
use crate::steer::{self, Steering, Wanted};
use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::net::TcpListener;

const ABOUT: &str = "failover";

/// What stands in where connections can't be steered.
const INSTEAD: &str = "a service is started again when it dies, and clients are refused meanwhile, except on \
                       sockets that it is given (--listen)";

pub(super) fn findings() -> Vec<Finding> {
    if !nix::unistd::geteuid().is_root() {
        let why = format!("restart, not being root: {INSTEAD}");
        return vec![Finding::new(ABOUT, "mode", State::Absent, why)];
    }
    let mut findings = match try_steering() {
        Ok(steering) => vec![
            Finding::new(
                ABOUT,
                "mode",
                State::Ok,
                "steered: queued and half-open connections move inside the kernel",
            ),
            early_death(&steering),
        ],
        Err(why) => vec![Finding::new(ABOUT, "mode", State::Fails, format!("restart ({why}): {INSTEAD}"))],
    };
    findings.push(holding());
    findings.push(pins());
    findings
}

/// Loads the programs onto a cgroup made for it.
fn try_steering() -> Result<Steering, String> {
    let unified = Hierarchies::detect().map_err(|error| error.to_string())?.unified;
    let name = format!("standin-doctor-{}", std::process::id());
    let cgroup = InstanceCgroup::create(&unified, &name).map_err(|error| error.to_string())?;
    let steering = File::open(cgroup.path()).map_err(|error| error.to_string()).and_then(|directory| {
        let wanted = Wanted::default();
        Steering::load(&directory, cgroup.directory(), &wanted, None).map_err(|error| error.to_string())
    });
    _ = cgroup.remove();
    steering
}

fn early_death(steering: &Steering) -> Finding {
    match &steering.without_early_death {
        None => Finding::new(ABOUT, "death", State::Ok, "seen at once, before memory is torn down"),
        Some(why) => {
            let instead = "instead: by the pidfd, after its memory is gone (some 100 ms per GB)";
            Finding::new(ABOUT, "death", State::Absent, format!("{why}; {instead}"))
        }
    }
}

/// Whether another process's listener can be duplicated.
fn holding() -> Finding {
    let own = std::process::id().cast_signed();
    let held = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string()).and_then(|listener| {
        let found = steer::find(&[own], &HashSet::new()).map_err(|error| error.desc().to_owned());
        drop(listener);
        found
    });
    match held {
        Ok(found) if !found.is_empty() => Finding::new(
            ABOUT,
            "listeners",
            State::Ok,
            "held: hangs are told, and a queue outlives every instance",
        ),
        Ok(_) => Finding::new(ABOUT, "listeners", State::Fails, "can't be held: pidfd_getfd finds none"),
        Err(why) => {
            let detail = format!(
                "can't be held ({why}): no hang is told, and a restart without shadow loses the queue"
            );
            Finding::new(ABOUT, "listeners", State::Fails, detail)
        }
    }
}

fn pins() -> Finding {
    match bpf_file_system(None) {
        Ok(place) if fs::metadata(&place).is_ok() => {
            let detail =
                format!("pinned in {}: steering outlives a supervisor that is killed", place.display());
            Finding::new(ABOUT, "pins", State::Ok, detail)
        }
        Ok(_) | Err(_) => {
            let detail = "no BPF file system: steering ends with its supervisor, the service goes on";
            Finding::new(ABOUT, "pins", State::Absent, detail)
        }
    }
}
