//! Runs that another agent began: those whose tasks still go on are led on, those that ended while no agent was
//! there are closed. Pinned probes have counted both to this moment, and have kept how the latter ended.

use super::Process;
use super::licenses::Uses;
use super::life::{Life, Record};
use crate::agent::task::elapsed_at;
use crate::agent::{Engine, Task, recover};
use crate::cgroup::RunCgroup;
use crate::host::{self, ProcessId};
use crate::store::Store;
use crate::store::event::Event;
use crate::store::record::{Admission, Engine as EngineKind, OpenRun};
use crate::wire::Leftover;
use ebpf_probes::ProcessExit;
use std::path::Path;
use std::time::Duration;

/// The lives of runs whose tasks go on, and the runs of cgroups that others made, which have no main process.
type TakenUp = (Vec<(Life, Admission)>, Vec<OpenRun>);

/// Takes up the runs whose tasks still go on and closes the others.
pub(super) fn runs(engine: &mut Engine, store: &mut Store) -> anyhow::Result<TakenUp> {
    let mut open = store.open_runs()?;
    open.retain(|run| !run.owner.is_alive());
    // All at once, as the first look at the ends of processes drops those that nobody waits for.
    for main in open.iter().filter_map(|run| run.main.as_ref()) {
        engine.watch_exit(None, main.pid);
    }
    let (mut lives, mut of_others, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for run in open {
        let slot = cgroup_of(engine, &run).and_then(|cgroup| engine.slot_of(&cgroup));
        if let (None, EngineKind::Agent, Some(slot)) = (&run.main, run.engine, slot) {
            if recover::was_open(store.adopt(run.id, &ProcessId::current()))? {
                kept.push(slot);
                of_others.push(run);
            }
            continue;
        }
        match take_up(engine, &run) {
            Some(life) => {
                // If it is over for somebody else it is led on all the same: its cgroup has to be given back.
                recover::was_open(store.adopt(run.id, &ProcessId::current()))?;
                tracing::info!("run {} goes on: process {}", run.id.0, life.process.id.pid);
                lives.push((life, run.admission.unwrap_or_default()));
            }
            None => close(engine, store, run)?,
        }
    }
    kept.extend(lives.iter().filter_map(|(life, _)| life.task.slot()));
    engine.untrack_others(&kept);
    Ok((lives, of_others))
}

fn cgroup_of(engine: &Engine, run: &OpenRun) -> Option<RunCgroup> {
    let (path, id) = run.cgroup.as_ref()?;
    let cgroup =
        RunCgroup::existing(engine.hierarchies(), Path::new(path)).filter(|cgroup| cgroup.id() == *id)?;
    match run.main.as_ref().filter(|main| main.is_alive()) {
        Some(main) => Some(cgroup.where_process_is(main.pid, engine.parent())),
        None => Some(cgroup),
    }
}

/// The life of a run, if its main process and cgroup are still there.
fn take_up(engine: &mut Engine, run: &OpenRun) -> Option<Life> {
    let main = run.main.as_ref().filter(|_| recover::is_going_on(run))?;
    let cgroup = cgroup_of(engine, run)?;
    let process = Process::open(main.pid).ok()?;
    let task = Task::adopt(engine, cgroup, run);
    task.set_main(engine, main.pid);
    Some(Life {
        record: Record::known(run.id),
        key: run.key.clone(),
        features: Vec::new(),
        user: host::user_name(run.key.uid),
        process,
        task,
        leftover: Leftover::Leave,
        notes: Vec::new(),
        place: None,
        events: Vec::new(),
        licenses: Uses::default(),
    })
}

/// Closes a run that ended while no agent was there: with its numbers and its status where pinned probes have
/// them, as lost otherwise.
fn close(engine: &mut Engine, store: &mut Store, run: OpenRun) -> anyhow::Result<()> {
    let message = "ended while no agent was there: cgroup, limits and licences are free again";
    store.log(&Event::new("released", message).task(&run.key.task_type).run(run.id))?;
    let exit = run.main.as_ref().and_then(|main| engine.take_exit(main.pid));
    let cgroup = cgroup_of(engine, &run).filter(|cgroup| engine.slot_of(cgroup).is_some());
    match (exit, cgroup) {
        (Some(exit), Some(cgroup)) if exit.cgroup == cgroup.id() => {
            finish(engine, store, &run, cgroup, &exit)?;
            tracing::info!("run {} ended while no agent was there", run.id.0);
        }
        _ => {
            tracing::info!("run {} is lost: it ended while no agent was there", run.id.0);
            recover::close(store, run, Some(engine.hierarchies()))?;
        }
    }
    Ok(())
}

fn finish(
    engine: &mut Engine,
    store: &mut Store,
    run: &OpenRun,
    cgroup: RunCgroup,
    exit: &ProcessExit,
) -> anyhow::Result<()> {
    let since = Duration::from_nanos(host::since_boot_ns().saturating_sub(exit.at_ns));
    let ended_at_ms = host::now_ms() - i64::try_from(since.as_millis()).unwrap_or(0);
    let mut task = Task::adopt(engine, cgroup, run);
    task.settle(engine);
    task.ended_after(elapsed_at(run, exit.at_ns, ended_at_ms));
    let (measured, ending) = task.finish(engine, Some(exit.status), Leftover::Leave);
    recover::was_open(store.finish_run(run.id, ended_at_ms, &ending, &measured))?;
    Ok(())
}
