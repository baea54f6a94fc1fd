//! Cgroups that others made: measured like tasks and recorded as runs under the name that their path tells, from the
//! moment that they are made until they are removed; of one that lives for long, a run every `agent.host_record_s`.
//! Nothing of them is ever written to.
//!
//! There are at most `agent.host_cgroups` at once; when there is no room for another one, the one that used the CPU
//! the longest ago makes room. What is there when the agent starts is looked for once; later ones are told by the
//! kernel.

use super::Agent;
use super::life::Record;
use super::live;
use crate::agent::Engine;
use crate::agent::task::Plan;
use crate::cgroup::{Accounts, RunCgroup, Watch, name_of};
use crate::fingerprint::key::{TaskKey, hour_of_week};
use crate::fingerprint::{Collector, Measured, Sample};
use crate::host::{self, ProcessId};
use crate::live::{TaskDetail, TaskNow};
use crate::predict::Prediction;
use crate::probe::{CgroupChange, Slot};
use crate::size::{Limits, Policy};
use crate::store::record::{Ending, Engine as EngineKind, NewRun, OpenRun};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Deepest level of cgroups that are looked for at the start.
const DEPTH_MAX: usize = 16;

/// Pause between two samples of a cgroup that uses the CPU.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);

/// A cgroup of others.
struct Watched {
    cgroup: RunCgroup,
    watch: Watch,
    slot: Slot,
    name: String,
    uid: u32,
    collector: Collector,
    began_ns: u64,
    /// What its accounts said when this record of it began; nothing for the first.
    before: Option<Accounts>,
    cpu_ns: u64,
    active: Instant,
    sampled: Instant,
    recorded: Instant,
    /// There is a row once it has used the CPU.
    record: Option<Record>,
}

/// All of them, by v2 id.
#[derive(Default)]
pub(super) struct Others(HashMap<u64, Watched>);

impl Others {
    /// Begins to watch all but `tasks`, containers that have been taken up. `open` are the rows of an agent before this one
    /// whose cgroups have been counted on.
    pub(super) fn start(engine: &mut Engine, most: u32, open: Vec<OpenRun>, tasks: &[u64]) -> Self {
        let mut all = Self::default();
        if most == 0 || engine.watch_host().is_err() {
            return all;
        }
        // The other half is for tasks.
        let most = (most as usize).min(engine.slots_max() / 2);
        let mut known: HashMap<u64, OpenRun> =
            open.into_iter().filter_map(|run| Some((run.cgroup.as_ref()?.1, run))).collect();
        let mut paths = Vec::new();
        find(&engine.hierarchies().unified.clone(), Path::new(""), engine.parent(), DEPTH_MAX, &mut paths);
        for path in paths {
            let Some(cgroup) = RunCgroup::existing(engine.hierarchies(), &path) else { continue };
            let before = known.remove(&cgroup.id());
            if all.0.len() < most && !tasks.contains(&cgroup.id()) {
                all.take_in(engine, cgroup, None, host::since_boot_ns(), before);
            }
        }
        engine.lend_to_host(most - all.0.len());
        all
    }

    fn take_in(
        &mut self,
        engine: &mut Engine,
        cgroup: RunCgroup,
        slot: Option<Slot>,
        began_ns: u64,
        before: Option<OpenRun>,
    ) {
        let counted = slot.or_else(|| engine.slot_of(&cgroup));
        let Some(slot) = counted.or_else(|| engine.track(&cgroup, &mut Vec::new())) else { return };
        let (measures, coverage) = engine.coverage(&cgroup, true);
        let measured = before.as_ref().map_or_else(Measured::default, |run| run.measured.clone());
        let ago = before.as_ref().map(|run| u64::try_from(host::now_ms() - run.started_at_ms).unwrap_or(0));
        let now = Instant::now();
        let path = cgroup.path().to_owned();
        let watched = Watched {
            watch: cgroup.watch(),
            name: name_of(&path),
            uid: std::fs::metadata(cgroup.v2()).map_or(0, |metadata| metadata.uid()),
            collector: Collector::resume(measures, coverage, measured),
            began_ns: ago.map_or(began_ns, |ms| host::since_boot_ns().saturating_sub(ms * 1_000_000)),
            before: None,
            cpu_ns: 0,
            active: now,
            sampled: now,
            recorded: now,
            record: before.map(|run| Record::known(run.id)),
            cgroup,
            slot,
        };
        self.0.insert(watched.cgroup.id(), watched);
    }

    /// The one that has been idle for the longest.
    fn idlest(&self) -> Option<u64> {
        self.0.iter().min_by_key(|(_, watched)| watched.active).map(|(id, _)| *id)
    }
}

/// Every cgroup below `path` but those below `own`.
fn find(root: &Path, path: &Path, own: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(root.join(path)).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let child = path.join(entry.file_name());
        if child == own {
            continue;
        }
        if depth > 0 {
            find(root, &child, own, depth - 1, found);
        }
        found.push(child);
    }
}

/// What was added to accounts. A peak can't be told.
fn since(now: Accounts, before: &Accounts) -> Accounts {
    let added = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before.unwrap_or(0)));
    Accounts {
        memory_charged_peak_bytes: None,
        oom_kills: added(now.oom_kills, before.oom_kills),
        throttled_ns: added(now.throttled_ns, before.throttled_ns),
        ..now
    }
}

impl Watched {
    fn elapsed_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.began_ns)
    }

    fn new_run(&self) -> NewRun {
        let since_ms = i64::try_from(self.elapsed_ns(host::since_boot_ns()) / 1_000_000).unwrap_or(0);
        let started_at_ms = host::now_ms() - since_ms;
        NewRun {
            key: TaskKey { task_type: self.name.clone(), uid: self.uid },
            user: host::user_name(self.uid),
            command: Vec::new(),
            directory: String::new(),
            started_at_ms,
            engine: EngineKind::Agent,
            owner: ProcessId::current(),
            main: None,
            cgroup: Some((self.cgroup.path().display().to_string(), self.cgroup.id())),
            policy: Policy::Observe,
            features: vec![hour_of_week(started_at_ms)],
            prediction: Prediction::default(),
            limits: Limits::default(),
            admission: None,
        }
    }

    /// Everything that the probes know, and the accounts while there are any.
    fn measure(&mut self, engine: &Engine, now_ns: u64) {
        let accounts = self.cgroup.accounts();
        let accounts = if accounts.cpu_ns.is_some() { accounts } else { self.collector.last().accounts };
        // An account tells of all time, also of that before it was looked at.
        let accounts = Accounts { cpu_ns: None, cpu_user_ns: None, cpu_system_ns: None, ..accounts };
        let accounts = self.before.as_ref().map_or(accounts, |before| since(accounts, before));
        let elapsed_ns = self.elapsed_ns(now_ns);
        self.collector.sample(Sample { elapsed_ns, counted: engine.counted(self.slot), accounts });
        self.collector.demand(engine.demand(self.slot));
    }
}

impl Agent {
    /// To be called about once a second.
    pub(super) fn keep_others(self: &Rc<Self>) {
        if self.config().agent.host_cgroups == 0 {
            return;
        }
        self.hear_of_others();
        self.sample_others();
        self.record_old();
    }

    /// One of them becomes the cgroup of a task of ours. There was nothing but its runtime in it yet, which makes no run.
    pub(super) fn give_up_other(self: &Rc<Self>, id: u64) {
        // That it was made may not have been heard of yet.
        self.hear_of_others();
        let Some(mut watched) = self.others.borrow_mut().0.remove(&id) else { return };
        if watched.record.is_some() {
            self.record_other(&mut watched, host::since_boot_ns());
        }
        self.engine.borrow_mut().untrack_host(watched.slot, true);
    }

    fn hear_of_others(self: &Rc<Self>) {
        let mut changes = Vec::new();
        self.engine.borrow_mut().drain_cgroups(|change| changes.push(change));
        for change in changes {
            match change {
                CgroupChange::Made { cgroup, path, slot, at_ns } => self.made(cgroup, &path, slot, at_ns),
                CgroupChange::Removed { cgroup, at_ns } => self.removed(cgroup, at_ns, true),
            }
        }
    }

    fn made(self: &Rc<Self>, id: u64, path: &str, slot: Option<Slot>, at_ns: u64) {
        let is_own = Path::new(path).starts_with(self.engine.borrow().parent());
        let cgroup = RunCgroup::known(self.engine.borrow().hierarchies(), Path::new(path), id);
        if is_own {
            if let Some(slot) = slot {
                self.engine.borrow_mut().untrack_host(slot, true);
            }
            return;
        }
        let room = slot.is_some() || self.make_room();
        if room {
            self.others.borrow_mut().take_in(&mut self.engine.borrow_mut(), cgroup, slot, at_ns, None);
        }
    }

    /// Ends the watch over the idlest cgroup.
    fn make_room(self: &Rc<Self>) -> bool {
        let idlest = self.others.borrow().idlest();
        idlest.inspect(|id| self.removed(*id, host::since_boot_ns(), false)).is_some()
    }

    /// It is gone, or has to make room: what is known of it is recorded.
    fn removed(self: &Rc<Self>, id: u64, at_ns: u64, lend: bool) {
        let Some(mut watched) = self.others.borrow_mut().0.remove(&id) else { return };
        self.record_other(&mut watched, at_ns);
        self.engine.borrow_mut().untrack_host(watched.slot, lend);
    }

    /// Records those that have been measured for long, and begins anew with them.
    fn record_old(self: &Rc<Self>) {
        let every_ns = self.config.borrow().agent.host_record_s * 1_000_000_000;
        let now_ns = host::since_boot_ns();
        let mut others = self.others.borrow_mut();
        let is_old = |one: &&mut Watched| one.record.is_some() && one.elapsed_ns(now_ns) >= every_ns;
        for watched in others.0.values_mut().filter(|_| every_ns > 0).filter(is_old) {
            let next = self.engine.borrow_mut().begin_anew(watched.slot);
            // There may be a free slot next time.
            let Some(next) = next else { continue };
            self.record_other(watched, now_ns);
            let mut engine = self.engine.borrow_mut();
            engine.end_before(watched.slot, next);
            let (measures, coverage) = engine.coverage(&watched.cgroup, true);
            watched.collector = Collector::new(measures, coverage);
            watched.before = Some(watched.cgroup.accounts());
            (watched.slot, watched.began_ns, watched.cpu_ns) = (next, now_ns, 0);
        }
    }

    /// What is known of a cgroup becomes a finished run.
    fn record_other(self: &Rc<Self>, watched: &mut Watched, at_ns: u64) {
        watched.measure(&self.engine.borrow(), at_ns);
        watched.collector.peers(self.engine.borrow().peers(watched.slot));
        let measured = watched.collector.measured();
        if measured.fingerprint.cpu_ns.unwrap_or(0) == 0 {
            return;
        }
        let record = watched.record.take().unwrap_or_else(|| Record::begun(self.begin(watched.new_run())));
        let name = watched.name.clone();
        let since_ms = i64::try_from(host::since_boot_ns().saturating_sub(at_ns) / 1_000_000).unwrap_or(0);
        let ended_at_ms = host::now_ms() - since_ms;
        let agent = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let ended = match record.settled().await {
                Ok(run) => agent.finish(run, ended_at_ms, Ending::default(), measured).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!("{name} is not recorded: {error}");
            }
        });
    }

    /// All of them that have used the CPU, with their owners, as they are now.
    pub(super) fn others_now(&self, engine: &Engine) -> Vec<(u32, TaskNow)> {
        let (now_ns, now_ms) = (host::since_boot_ns(), host::now_ms());
        let others = self.others.borrow();
        let busy = others.0.values().filter(|watched| watched.record.is_some());
        busy.map(|watched| {
            let lived_ms = i64::try_from(watched.elapsed_ns(now_ns) / 1_000_000).unwrap_or(0);
            let named = (watched.cgroup.id(), watched.name.as_str(), self.board.names().of(watched.uid));
            let run = watched.record.as_ref().and_then(Record::known_run);
            let memory_bytes = watched.collector.last().accounts.memory_bytes;
            let counted = (engine.counted(watched.slot), watched.collector.measures());
            (watched.uid, live::of_other(named, run, now_ms - lived_ms, memory_bytes, counted))
        })
        .collect()
    }

    /// Everything about one of them that `viewer` may see.
    pub(super) fn detail_of_other(&self, id: u64, viewer: u32) -> Option<TaskDetail> {
        let engine = self.engine.borrow();
        let mut others = self.others.borrow_mut();
        let watched = others.0.get_mut(&id).filter(|watched| viewer == 0 || viewer == watched.uid)?;
        watched.measure(&engine, host::since_boot_ns());
        Some(live::detail(watched.collector.measured(), &Plan::default()))
    }

    /// Samples those that have used the CPU since the last time.
    fn sample_others(&self) {
        let (engine, mut others) = (self.engine.borrow(), self.others.borrow_mut());
        let (now, now_ns) = (Instant::now(), host::since_boot_ns());
        let checkpoint_every = Duration::from_secs(self.config().agent.checkpoint_s);
        for watched in others.0.values_mut().filter(|one| now.duration_since(one.sampled) >= SAMPLE_EVERY) {
            let Some((counters, shared)) = engine.counted(watched.slot) else { continue };
            if counters.on_cpu_ns == watched.cpu_ns {
                continue;
            }
            (watched.cpu_ns, watched.active, watched.sampled) = (counters.on_cpu_ns, now, now);
            let accounts = watched.watch.memory();
            let elapsed_ns = watched.elapsed_ns(now_ns);
            watched.collector.sample(Sample { elapsed_ns, counted: Some((counters, shared)), accounts });
            if watched.record.is_none() {
                watched.record = Some(Record::begun(self.begin(watched.new_run())));
            }
            if now.duration_since(watched.recorded) >= checkpoint_every {
                watched.recorded = now;
                watched.measure(&engine, now_ns);
                if let Some(run) = watched.record.as_mut().and_then(Record::now) {
                    self.writer.checkpoint(run, watched.collector.measured());
                }
            }
        }
    }

    /// Records how far all have come; they are counted on.
    pub(super) fn checkpoint_others(&self) {
        let engine = self.engine.borrow();
        for watched in self.others.borrow_mut().0.values_mut() {
            if let Some(run) = watched.record.as_mut().and_then(Record::now) {
                watched.measure(&engine, host::since_boot_ns());
                self.writer.checkpoint(run, watched.collector.measured());
            }
        }
    }
}
