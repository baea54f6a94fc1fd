//! What a process that is no more has left behind: runs still marked as running, and cgroups.

use super::engine::owner_of;
use crate::cgroup::{CgroupError, Hierarchies, RunCgroup};
use crate::host;
use crate::service::lent_pins;
use crate::steer::unpin;
use crate::store::record::Engine as EngineKind;
use crate::store::record::OpenRun;
use crate::store::{Store, StoreError};
use std::path::Path;

/// Removes empty cgroups below `parent` whose maker is dead.
pub(super) fn sweep_cgroups(hierarchies: &Hierarchies, parent: &Path) {
    let entries = std::fs::read_dir(hierarchies.unified.join(parent)).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(owner_of) else {
            continue;
        };
        if is_process(owner) {
            continue;
        }
        if let Some(cgroup) = RunCgroup::existing(hierarchies, &parent.join(&name))
            && !cgroup.is_populated()
        {
            _ = remove(&cgroup);
        }
    }
}

/// Whether there is a process of this number.
pub(super) fn is_process(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Removes the cgroup of a run, and the steering that was lent to it if it was a service.
///
/// # Errors
/// [`CgroupError`] while processes still live in it.
pub(super) fn remove(cgroup: &RunCgroup) -> Result<(), CgroupError> {
    cgroup.remove()?;
    lent_pins(cgroup.path()).into_iter().for_each(|pins| unpin(&pins));
    Ok(())
}

/// Closes runs that nobody will close: their launcher is dead, or they were an agent's whose task has ended
/// since. What the cgroup still tells is kept.
///
/// # Errors
/// [`StoreError`].
pub(super) fn close_lost_runs(
    store: &mut Store,
    hierarchies: Option<&Hierarchies>,
) -> Result<(), StoreError> {
    for run in store.open_runs()? {
        let waits_for_agent = run.engine == EngineKind::Agent && is_going_on(&run);
        if !run.owner.is_alive() && !waits_for_agent {
            close(store, run, hierarchies)?;
        }
    }
    Ok(())
}

/// Whether a run was open until now. A starting agent and launchers without one recover at the same time: what one has
/// closed is no failure for the other.
///
/// # Errors
/// All others of `written`.
pub(super) fn was_open(written: Result<(), StoreError>) -> Result<bool, StoreError> {
    match written {
        Err(StoreError::NotRunning { .. }) => Ok(false),
        written => written.map(|()| true),
    }
}

/// Whether the main process of a run still lives.
pub(super) fn is_going_on(run: &OpenRun) -> bool {
    run.main.as_ref().is_some_and(host::ProcessId::is_alive)
}

/// Closes one run as lost, with what its cgroup still tells; nothing is written if somebody else has closed it.
pub(super) fn close(
    store: &mut Store,
    run: OpenRun,
    hierarchies: Option<&Hierarchies>,
) -> Result<(), StoreError> {
    let cgroup = run.cgroup.as_ref().and_then(|(path, id)| {
        RunCgroup::existing(hierarchies?, Path::new(path)).filter(|cgroup| cgroup.id() == *id)
    });
    if let Some(cgroup) = cgroup {
        let accounts = cgroup.accounts();
        let mut measured = run.measured;
        let fingerprint = &mut measured.fingerprint;
        fingerprint.cpu_ns = fingerprint.cpu_ns.max(accounts.cpu_ns);
        fingerprint.cpu_user_ns = fingerprint.cpu_user_ns.max(accounts.cpu_user_ns);
        fingerprint.cpu_system_ns = fingerprint.cpu_system_ns.max(accounts.cpu_system_ns);
        fingerprint.memory_charged_peak_bytes =
            fingerprint.memory_charged_peak_bytes.max(accounts.memory_charged_peak_bytes);
        was_open(store.checkpoint(run.id, &measured))?;
        cgroup.lift_limits();
        _ = remove(&cgroup);
    }
    was_open(store.close_lost(run.id, host::now_ms())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_run;

    #[test]
    fn what_another_has_closed_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Store::open(&directory.path().join("standin.db")).unwrap().store;
        let (mut agent, mut launcher) = (open(), open());
        agent.begin_run(&new_run("sort", 0)).unwrap();
        let found = agent.open_runs().unwrap().remove(0);
        close_lost_runs(&mut launcher, None).unwrap();
        assert!(agent.open_runs().unwrap().is_empty());
        close(&mut agent, found, None).unwrap();
    }
}
