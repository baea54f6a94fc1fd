//! Containers: a runtime's hook asks for the one that it has just made to be sized and measured. From then on it is
//! a task like others; its end shows by its first process.

use super::licenses::Uses;
use super::life::{self, Life, Record};
use super::queue::Entry;
use super::{Agent, Process};
use crate::agent::Plan;
use crate::agent::terms::{duration_ms, promise, terms};
use crate::fingerprint::key::{self, TaskKey};
use crate::host;
use crate::size::Limit;
use crate::store::event::Event;
use crate::store::record::Admission;
use crate::wire::{Container, Leftover, Started};
use std::rc::Rc;
use tokio::sync::oneshot;

/// Takes a container up. `Err` says why not; then it runs as if there were no agent.
pub(super) fn take_up(agent: &Rc<Agent>, uid: u32, container: &Container) -> Result<Started, String> {
    if uid != 0 {
        return Err("containers are taken up for root only".into());
    }
    let start = &container.start;
    let pid = start.pid.ok_or("the container has no process")?;
    let process = Process::open(pid).map_err(|error| format!("process {pid} can't be watched: {error}"))?;
    let key = TaskKey { task_type: key::clean(&start.task_type), uid };
    let features = key::of_run(start.features.clone());
    let terms = terms(&agent.config(), &key.task_type, start);
    let mut notes = Vec::new();
    let prediction = agent.predict(&key, &features).unwrap_or_else(|error| {
        notes.push(format!("no history: {error}"));
        Default::default()
    });
    let promise = promise(&prediction, &terms, terms.licenses.clone().unwrap_or_default(), &agent.config());
    let entry = Entry {
        task_type: key.task_type.clone(),
        uid,
        pid,
        priority: terms.priority,
        duration_ms: duration_ms(&prediction),
        since_uptime_ms: host::uptime_ms(),
        run: None,
        promise: promise.clone(),
    };
    let cgroup =
        agent.engine.borrow_mut().container((pid, &container.id)).map_err(|error| error.to_string())?;
    agent.give_up_other(cgroup.id());
    let task = {
        let mut engine = agent.engine.borrow_mut();
        let mut plan = engine.plan(prediction, terms.policy, terms.manual);
        keep_what_was_given(&mut plan, container);
        let mut task = engine.admit_container(plan, cgroup);
        task.start(&mut engine, 1);
        task.set_main(&mut engine, pid);
        task
    };
    // A runtime's hook can't wait: others may come later than they would.
    let admission = Admission { priority: terms.priority, waited_ms: 0, promise, overcommitted: false };
    let run = agent.new_run(&task, &process.id, &key, (start, &features), &admission);
    notes.extend(task.notes().iter().cloned());
    let started = Started {
        prediction: task.plan().prediction.clone(),
        limits: task.plan().limits.clone(),
        notes: notes.clone(),
    };
    let short_id: String = container.id.chars().take(12).collect();
    let life = Life {
        record: Record::begun(agent.begin(run)),
        user: host::user_name(uid),
        key,
        features,
        process,
        task,
        leftover: Leftover::Leave,
        notes,
        place: Some(agent.hold(entry, admission)),
        events: vec![Event::new("container", format!("container {short_id} is measured"))],
        licenses: Uses::default(),
    };
    // It executes when the runtime lets it; nobody waits for its report.
    let (tell, executed) = oneshot::channel();
    _ = tell.send(None);
    agent.spawn(life::lead(Rc::clone(agent), life, executed, oneshot::channel().0));
    Ok(started)
}

/// What the runtime was asked for wins over what is predicted.
fn keep_what_was_given(plan: &mut Plan, container: &Container) {
    plan.limits.0.retain(|(limit, _)| match limit {
        Limit::CpuWeight(_) => !container.has_cpu_weight,
        Limit::IoWeight(_) => !container.has_io_weight,
        Limit::MemoryHigh(_) | Limit::MemoryLow(_) => !container.has_memory_target,
        _ => true,
    });
}
