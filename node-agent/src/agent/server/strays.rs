//! Tasks that run in a cgroup of ours and have no row: the record of a run is written behind its start, and the agent
//! was killed in between. They get a row now, with what the kernel still tells of them.

use crate::agent::engine::owner_of;
use crate::agent::{Engine, recover};
use crate::cgroup::RunCgroup;
use crate::fingerprint::key::{self, TaskKey};
use crate::host::{self, ProcessId};
use crate::size::{Limits, Policy};
use crate::store::event::{Event, Severity};
use crate::store::record::{Engine as EngineKind, NewRun, RunId};
use crate::store::{Reader, Store, StoreError};
use crate::wire::COMMAND_BYTES_MAX;
use procfs::process::Process;
use std::ffi::OsString;

/// Gives each of them a row.
pub(super) fn record(engine: &Engine, store: &mut Store, policy: Policy) -> Result<(), StoreError> {
    let unified = engine.hierarchies().unified.join(engine.parent());
    let runs = std::fs::read_dir(unified).into_iter().flatten().flatten();
    for name in runs.map(|entry| entry.file_name()) {
        let is_ours = name.to_str().and_then(owner_of).is_some_and(|owner| !recover::is_process(owner));
        let path = engine.parent().join(&name);
        let Some(cgroup) = RunCgroup::existing(engine.hierarchies(), &path).filter(|_| is_ours) else {
            continue;
        };
        // Those of a run that has ended are what its main process left behind.
        if Reader::open(store.path())?.run_of_cgroup(&path.display().to_string())?.is_none()
            && let Some(run) = stray(&cgroup, policy)
        {
            let id = store.begin_run(&run)?;
            tell(store, &run, id)?;
        }
    }
    Ok(())
}

/// What there is to say of the oldest process in a cgroup.
fn stray(cgroup: &RunCgroup, policy: Policy) -> Option<NewRun> {
    let ids = cgroup.processes().into_iter().filter_map(ProcessId::of);
    let main = ids.min_by_key(|id| id.start_ticks)?;
    let process = Process::new(main.pid).ok()?;
    // A launcher that has not become its command measures it itself by now.
    if process.exe().ok()? == std::env::current_exe().ok()? {
        return None;
    }
    let uid = process.status().ok()?.ruid;
    let mut room = COMMAND_BYTES_MAX;
    let command: Vec<String> = process
        .cmdline()
        .ok()?
        .into_iter()
        .take_while(|word| {
            let fits = word.len() < room;
            room = room.saturating_sub(word.len() + 1);
            fits
        })
        .collect();
    let argv: Vec<OsString> = command.iter().map(OsString::from).collect();
    let age = main.age_at(host::since_boot_ns()).unwrap_or_default();
    Some(NewRun {
        key: TaskKey { task_type: key::task_type(&argv), uid },
        user: host::user_name(uid),
        command,
        directory: process.cwd().map(|directory| directory.display().to_string()).unwrap_or_default(),
        started_at_ms: host::now_ms() - i64::try_from(age.as_millis()).unwrap_or(0),
        engine: EngineKind::Agent,
        // Taken up with the other runs of agents that are gone.
        owner: ProcessId { pid: 0, start_ticks: 0, boot_id: String::new() },
        main: Some(main),
        cgroup: Some((cgroup.path().display().to_string(), cgroup.id())),
        policy,
        features: key::of_run(Vec::new()),
        prediction: Default::default(),
        limits: Limits::default(),
        admission: None,
    })
}

fn tell(store: &mut Store, run: &NewRun, id: RunId) -> Result<(), StoreError> {
    let message =
        "its agent was killed as it started: it is recorded by what its process tells, without its name";
    tracing::warn!("run {}: {message}", id.0);
    let event = Event::new("found", message).severity(Severity::Warning).task(&run.key.task_type).run(id);
    store.log(&event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;
    use std::path::Path;

    #[test]
    fn the_oldest_process_is_the_run() {
        let Ok(hierarchies) = Hierarchies::detect() else { return crate::skip::skip("no cgroup v2") };
        let parent = format!("standin-stray-{}", std::process::id());
        let Ok(cgroup) = RunCgroup::create(&hierarchies, Path::new(&parent), "run-1-1-1") else {
            return crate::skip::skip("no cgroup can be made here");
        };
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        cgroup.enter(child.id().cast_signed()).unwrap();
        // The parent goes on while the kernel still lays out the program's memory, arguments last.
        let arguments = format!("/proc/{}/cmdline", child.id());
        while std::fs::read(&arguments).unwrap().is_empty() {}
        let run = stray(&cgroup, Policy::Elastic).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        while cgroup.is_populated() {}
        cgroup.remove().unwrap();
        RunCgroup::existing(&hierarchies, Path::new(&parent)).unwrap().remove().unwrap();
        assert_eq!((run.key.task_type.as_str(), run.command.join(" ").as_str()), ("sleep", "sleep 100"));
        assert_eq!(run.main.map(|main| main.pid), Some(child.id().cast_signed()));
    }
}
