//! What measuring needs of the host: cgroups and probes, found once, used by every task.

use super::all_tasks::AllTasks;
use super::recover;
use super::task::{Plan, Task};
use crate::cgroup::{Applied, CgroupError, Hierarchies, RunCgroup};
use crate::config::{Config, Share};
use crate::fingerprint::{Coverage, Fingerprint, Measures, PEERS_MAX, Peer, Source};
use crate::host::{self, Capacity, ProcessId};
use crate::predict::Prediction;
use crate::probe::{CgroupChange, Instance, Measure, Options, Probes, Slot, State};
use crate::size::elastic::Room;
use crate::size::{Limits, Manual, Origin, Policy, size};
use ebpf_probes::ProcessExit;
use ebpf_probes::demand::{SCALES, Scale};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Cgroup under which runs get theirs.
    pub cgroup_parent: PathBuf,
    /// Whether BPF programs are loaded.
    pub probes: bool,
    /// Most tasks measured at once.
    pub tasks_max: u32,
    /// Memory that is kept free of tasks.
    pub reserve: Share,
    /// Whether the probes are to outlive this process.
    pub pinned: bool,
    /// BPF file system for that, where it is not the usual one.
    pub bpffs: Option<PathBuf>,
}

impl EngineOptions {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let agent = &config.agent;
        let cgroup_parent = agent.cgroup_parent.clone().into();
        Self {
            cgroup_parent,
            probes: agent.probes,
            tasks_max: agent.tasks_max,
            reserve: config.host.reserve_memory,
            pinned: false,
            bpffs: agent.bpffs.clone(),
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Engine {
    hierarchies: Hierarchies,
    parent: PathBuf,
    probes: Result<Probes, String>,
    /// The place of pinned probes, held while this lives.
    instance: Option<Instance>,
    capacity: Capacity,
    all_tasks: AllTasks,
    /// Main processes whose exit is waited for, and the exit once it is known.
    exits: HashMap<u32, Option<ProcessExit>>,
    created: u64,
    identity: ProcessId,
    /// What the probes had lost about a second ago.
    lost: Vec<(String, u64)>,
    /// Probes that were given up, and when.
    shed: Vec<(String, Instant)>,
    /// Cgroups of runs that ended before their last process did.
    released: Vec<(RunCgroup, Option<Slot>)>,
}

impl Engine {
    /// Finds the cgroup hierarchies and loads the probes. Without probes the kernel's accounts still serve.
    ///
    /// # Errors
    /// [`CgroupError`] if no cgroup can be made here: then there is nothing to measure by.
    pub fn new(options: &EngineOptions) -> Result<Self, CgroupError> {
        let hierarchies = Hierarchies::detect()?;
        let run_level = u32::try_from(options.cgroup_parent.components().count() + 1).unwrap_or(u32::MAX);
        let instance = (options.probes && options.pinned).then(|| take_instance(options)).flatten();
        let wanted = Options { tasks_max: options.tasks_max, run_level };
        let probes = match (&instance, options.probes) {
            (_, false) => Err("switched off by agent.probes in the configuration".into()),
            (Some(instance), true) => {
                Probes::load_pinned(&wanted, instance).map_err(|error| error.to_string())
            }
            (None, true) => Probes::load(&wanted).map_err(|error| error.to_string()),
        };
        let capacity = host::capacity();
        let all_tasks = AllTasks::new(&hierarchies, &options.cgroup_parent, options.reserve, capacity);
        Ok(Self {
            all_tasks,
            hierarchies,
            parent: options.cgroup_parent.clone(),
            probes,
            instance,
            capacity,
            exits: HashMap::new(),
            created: 0,
            identity: ProcessId::current(),
            lost: Vec::new(),
            shed: Vec::new(),
            released: Vec::new(),
        })
    }

    /// The probes, or why there are none.
    pub fn probes(&self) -> Result<&Probes, &str> {
        self.probes.as_ref().map_err(String::as_str)
    }

    /// Takes a probe back that was given up.
    pub(super) fn restore(&mut self, probe: &str) -> Result<(), String> {
        self.probes.as_mut().map_or(Ok(()), |probes| probes.restore(probe))
    }

    /// What the probes lost so far: what it is, and how often.
    pub fn lost(&self) -> Vec<(String, u64)> {
        self.probes.as_ref().map(Probes::lost).unwrap_or_default()
    }

    /// The same as it was about a second ago: costs nothing.
    pub(super) fn lost_lately(&self) -> &[(String, u64)] {
        &self.lost
    }

    /// The cgroup hierarchies.
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Cgroup under which runs get theirs.
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// Decides what a task gets.
    pub fn plan(&self, prediction: Prediction, policy: Policy, manual: Manual) -> Plan {
        let mut limits = size(&prediction, policy, manual, self.capacity);
        // What the host has no file for was asked for by nobody.
        limits.0.retain(|(limit, origin)| {
            *origin == Origin::Manual || self.hierarchies.can_set(*limit, &self.parent)
        });
        Plan { prediction, limits, policy, manual }
    }

    /// What the host can still give.
    pub fn room(&self) -> Room {
        self.all_tasks.room()
    }

    /// Has what is protected for each task hold against the rest of the host. For now and then.
    pub fn protect_tasks(&self) {
        self.all_tasks.protect();
    }

    /// What this host has.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Makes the cgroup of a new task, tracks it and sets its limits. Nothing is in it yet.
    ///
    /// # Errors
    /// [`CgroupError`] if the cgroup can't be made. A limit or a probe that is refused becomes a note.
    pub fn admit(&mut self, plan: Plan) -> Result<Task, CgroupError> {
        self.created += 1;
        let name = run_name(&self.identity, self.created);
        let cgroup = RunCgroup::create(&self.hierarchies, &self.parent, &name)?;
        let mut notes = Vec::new();
        let slot = self.track(&cgroup, &mut notes);
        notes.extend(refusals(&cgroup.apply(&plan.limits)));
        let measured = self.coverage(&cgroup, slot.is_some());
        Ok(Task::new(cgroup, slot, plan, notes, measured, self.capacity, &self.lost))
    }

    /// The cgroup of a container: its process, and the runtime's name for it.
    ///
    /// # Errors
    /// [`CgroupError`] if it is gone, or can't be counted and watched.
    pub fn container(&mut self, container: (i32, &str)) -> Result<RunCgroup, CgroupError> {
        self.created += 1;
        let name = run_name(&self.identity, self.created);
        RunCgroup::handed(&self.hierarchies, container, &self.parent, &name)
    }

    /// Takes up a container that a runtime has just made. Its own limits stay as the runtime set them.
    pub fn admit_container(&mut self, plan: Plan, cgroup: RunCgroup) -> Task {
        let mut notes = Vec::new();
        let slot = self.track(&cgroup, &mut notes);
        if cgroup.level() != self.parent.components().count() + 1 {
            notes.push(
                "what it puts into cgroups below its own is not counted: that is not at the level of runs"
                    .into(),
            );
        }
        let predicted = plan.limits.0.iter().filter(|(_, origin)| *origin == Origin::Predicted);
        let predicted = Limits(predicted.copied().collect());
        notes.extend(refusals(&cgroup.apply(&predicted)));
        let measured = self.coverage(&cgroup, slot.is_some());
        Task::new(cgroup, slot, plan, notes, measured, self.capacity, &self.lost)
    }

    pub(super) fn track(&mut self, cgroup: &RunCgroup, notes: &mut Vec<String>) -> Option<Slot> {
        let probes = self.probes.as_mut().ok()?;
        probes.track(cgroup.id()).map_err(|error| notes.push(format!("not measured by probes: {error}"))).ok()
    }

    /// Tracks a cgroup on from what was counted of it before.
    pub(super) fn track_from(
        &mut self,
        cgroup: &RunCgroup,
        before: &Fingerprint,
        notes: &mut Vec<String>,
    ) -> Option<Slot> {
        let probes = self.probes.as_mut().ok()?;
        let (reading, demand) = before.as_counted();
        probes
            .track_from(cgroup.id(), &reading, demand.as_ref())
            .map_err(|error| notes.push(format!("not measured by probes: {error}")))
            .ok()
    }

    /// The slot that pinned probes have counted a cgroup in all the time.
    pub(super) fn slot_of(&self, cgroup: &RunCgroup) -> Option<Slot> {
        self.probes.as_ref().ok()?.slot_of(cgroup.id())
    }

    /// Ends counting for all cgroups but those in `kept`: nobody will ask for them.
    pub(super) fn untrack_others(&mut self, kept: &[Slot]) {
        let Ok(probes) = self.probes.as_mut() else { return };
        for (slot, _) in probes.slots() {
            if !kept.contains(&slot) {
                probes.untrack(slot);
            }
        }
    }

    /// Has cgroups that others make told of.
    pub(super) fn watch_host(&mut self) -> Result<(), String> {
        let probes = self.probes.as_mut().map_err(|why| why.clone())?;
        probes.watch_host(std::process::id()).map_err(|error| error.to_string())
    }

    /// Has up to `slots` of them counted from their first moment.
    pub(super) fn lend_to_host(&mut self, slots: usize) {
        if let Ok(probes) = self.probes.as_mut()
            && let Err(error) = probes.lend_to_host(slots)
        {
            tracing::warn!("cgroups of others are counted late: {error}");
        }
    }

    /// How many cgroups can be counted at once.
    pub(super) fn slots_max(&self) -> usize {
        self.probes.as_ref().map_or(0, |probes| probes.slots_max() as usize)
    }

    /// What became of those.
    pub(super) fn drain_cgroups(&mut self, each: impl FnMut(CgroupChange)) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.drain_cgroups(each);
        }
    }

    /// Goes on counting for one of them in another slot, from zero. The one before is to be untracked.
    pub(super) fn begin_anew(&mut self, slot: Slot) -> Option<Slot> {
        self.probes.as_mut().ok()?.begin_anew(slot).ok()
    }

    /// Ends counting in the slot before, after [`Engine::begin_anew`].
    pub(super) fn end_before(&mut self, slot: Slot, next: Slot) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.pass_connections(slot, next);
            probes.untrack(slot);
        }
    }

    /// Ends counting for one of them. Its slot is for the next one that the kernel side sees, or, where that had
    /// none, for the one that it is freed for.
    pub(super) fn untrack_host(&mut self, slot: Slot, lend: bool) {
        match self.probes.as_mut() {
            Ok(probes) if lend => probes.untrack_host(slot),
            Ok(probes) => probes.untrack(slot),
            Err(_) => {}
        }
    }

    /// Removes what is pinned, so that nothing counts when this process has ended.
    pub fn unpin(&mut self) {
        if let Some(Err(error)) = self.instance.as_ref().map(Instance::remove) {
            tracing::warn!("pinned probes not removed: {error}");
        }
    }

    /// Which numbers of a task are real, and where they come from.
    pub(super) fn coverage(&self, cgroup: &RunCgroup, tracked: bool) -> (Measures, Coverage) {
        let mut sources =
            vec![Source { measure: "memory".into(), source: cgroup.memory_source(), note: None }];
        let mut measures = Measures::default();
        match &self.probes {
            Ok(probes) if tracked => {
                for probe in probes.status() {
                    let (source, note) = match &probe.state {
                        State::Attached { hook } => (Some(hook.clone()), None),
                        State::Unavailable { why, .. } => (fallback(probe.measure), Some(why.clone())),
                    };
                    if probe.state.is_attached() {
                        measures.0.push(probe.measure);
                    }
                    sources.push(Source { measure: probe.measures.into(), source, note });
                }
            }
            Ok(_) => sources.push(unprobed("the probes had no room for this task; raise agent.tasks_max")),
            Err(why) => sources.push(unprobed(why)),
        }
        (measures, Coverage(sources))
    }

    /// The counters of a slot.
    pub(super) fn counted(&self, slot: Slot) -> Option<(ebpf_probes::Counters, ebpf_probes::Shared)> {
        self.probes.as_ref().ok().map(|probes| {
            let reading = probes.read(slot);
            (reading.counters, reading.shared)
        })
    }

    /// CPU demand of a slot.
    pub(super) fn demand(&self, slot: Slot) -> Option<[Scale; SCALES]> {
        self.probes.as_ref().ok().map(|probes| probes.demand(slot))
    }

    /// With whom the tasks of a slot exchanged the most bytes, at most [`PEERS_MAX`]; `None` where connections are
    /// not seen.
    pub(super) fn peers(&self, slot: Slot) -> Option<Vec<Peer>> {
        let mut peers = self.all_peers(slot)?;
        peers.truncate(PEERS_MAX);
        Some(peers)
    }

    /// All whom the tasks of a slot talked to; `None` where connections are not seen.
    pub(super) fn all_peers(&self, slot: Slot) -> Option<Vec<Peer>> {
        let probes = self.probes.as_ref().ok().filter(|probes| probes.has(Measure::Connections))?;
        Some(probes.peers(slot))
    }

    /// What is to be done about once a second.
    pub fn settle_stale(&mut self) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.settle_stale();
            self.lost = probes.lost();
        }
    }

    /// Gives a probe up; runs under way will tell.
    pub(super) fn shed(&mut self, probe: &str, why: &str) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.shed(probe, why);
            self.shed.retain(|(other, _)| other != probe);
            self.shed.push((probe.to_owned(), Instant::now()));
        }
    }

    /// What is to be said about a run since `started`: what the probes lost meanwhile, and which measures were
    /// given up for a while.
    pub(super) fn shortcomings(&self, started: Instant, lost_before: &[(String, u64)]) -> Vec<Source> {
        let Ok(probes) = &self.probes else { return Vec::new() };
        let before = |what: &str| lost_before.iter().find(|(other, _)| other == what).map_or(0, |(_, n)| *n);
        let lost = probes.lost().into_iter().filter_map(|(what, count)| {
            let count = count.checked_sub(before(&what)).filter(|count| *count > 0)?;
            let note = format!("lost {count} times on this host while the run went on");
            Some(Source { measure: what, source: None, note: Some(note) })
        });
        let given_up = self.shed.iter().filter(|(_, at)| *at >= started).map(|(probe, _)| Source {
            measure: format!("all of probe {probe}"),
            source: None,
            note: Some(
                "given up for a part of the run, as it cost too much: its numbers are lower bounds".into(),
            ),
        });
        lost.chain(given_up).collect()
    }

    /// Whether a burst of this slot is still being run, so that its counters are not complete.
    pub(super) fn is_on_cpu(&self, slot: Slot) -> bool {
        self.probes.as_ref().is_ok_and(|probes| probes.is_on_cpu(slot))
    }

    /// Tells the probes how many tasks were in the cgroup when counting began.
    pub(super) fn set_tasks(&mut self, slot: Slot, tasks: i64) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.set_tasks(slot, tasks);
        }
    }

    /// Remember how the process `pid`, the main one of a slot, ends. In a pid namespace the kernel's events call it by
    /// another number, and another process by this one.
    pub(super) fn watch_exit(&mut self, slot: Option<Slot>, pid: i32) {
        if host::has_the_kernels_pids() {
            self.exits.insert(pid.cast_unsigned(), None);
        }
        if let (Ok(probes), Some(slot)) = (&mut self.probes, slot) {
            probes.set_main(slot, pid.cast_unsigned());
        }
    }

    /// How the process `pid` ended, if the probes saw it; it is forgotten then.
    pub fn take_exit(&mut self, pid: i32) -> Option<ProcessExit> {
        self.drain_exits();
        self.exits.remove(&pid.cast_unsigned()).flatten()
    }

    /// Whether the probes have seen the process `pid` end.
    pub(super) fn has_seen_end(&mut self, pid: i32) -> bool {
        self.drain_exits();
        self.exits.get(&pid.cast_unsigned()).is_some_and(Option::is_some)
    }

    /// Empties the ring buffer of exits.
    pub fn drain_exits(&mut self) {
        if let Ok(probes) = self.probes.as_mut() {
            probes.drain_exits(|exit| {
                if let Some(known) = self.exits.get_mut(&exit.pid) {
                    *known = Some(exit);
                }
            });
        }
    }

    /// Gives back what a task held. A cgroup that processes still live in is kept, with its slot (the kernel
    /// side may still count for it), until [`Engine::sweep`] finds it empty.
    pub(super) fn release(&mut self, cgroup: RunCgroup, slot: Option<Slot>) {
        self.released.push((cgroup, slot));
        self.sweep();
    }

    /// Whether processes still live in a released cgroup.
    pub fn has_leftovers(&self) -> bool {
        self.released.iter().any(|(cgroup, _)| cgroup.is_populated())
    }

    /// Removes released cgroups that have become empty. `true` if none is left.
    pub fn sweep(&mut self) -> bool {
        let probes = &mut self.probes;
        self.released.retain(|(cgroup, slot)| {
            if cgroup.is_populated() || recover::remove(cgroup).is_err() {
                return true;
            }
            if let (Ok(probes), Some(slot)) = (probes.as_mut(), *slot) {
                probes.untrack(slot);
            }
            false
        });
        self.released.is_empty()
    }
}

/// The place where probes are pinned, or none where that is not possible.
fn take_instance(options: &EngineOptions) -> Option<Instance> {
    let name = options.cgroup_parent.display().to_string();
    Instance::take(options.bpffs.as_deref(), &name)
        .inspect_err(|error| {
            tracing::warn!("probes are not pinned, so counting ends with this agent: {error}");
        })
        .ok()
}

/// The limits that could not be set, in words.
fn refusals(applied: &[Applied]) -> Vec<String> {
    let refused = applied.iter().filter_map(|applied| {
        let why = applied.refused.as_ref()?;
        Some(format!("limit {:?} not set: {why}", applied.limit))
    });
    refused.collect()
}

/// What stands in for a measure whose probe is missing.
fn fallback(measure: Measure) -> Option<String> {
    match measure {
        Measure::Cpu => Some("cgroup cpu.stat".into()),
        Measure::OomKills => Some("cgroup memory events".into()),
        _ => None,
    }
}

/// All probes are missing: CPU time still comes from the cgroup.
fn unprobed(why: &str) -> Source {
    Source {
        measure: "CPU time".into(),
        source: fallback(Measure::Cpu),
        note: Some(format!("no probes: {why}")),
    }
}

/// Name of a run's cgroup, never used before on this boot: it tells which process made it, so that those of
/// dead ones can be found.
fn run_name(owner: &ProcessId, number: u64) -> String {
    format!("run-{}-{}-{number}", owner.pid, owner.start_ticks)
}

/// The process that made the cgroup of this name.
pub(super) fn owner_of(name: &str) -> Option<i32> {
    name.strip_prefix("run-")?.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_names_its_maker() {
        let owner = ProcessId { pid: 42, start_ticks: 1000, boot_id: String::new() };
        assert_eq!(owner_of(&run_name(&owner, 7)), Some(42));
        assert_eq!(owner_of("run-x-1"), None);
        assert_eq!(owner_of("system.slice"), None);
    }
}
