//! What the agent sees now, for whoever asks: [`Snapshot`]s and [`TaskDetail`]s.
//!
//! A task puts itself on the board when it begins, and says at each of its samples what it uses; so a snapshot needs
//! the mapped counters and a few small reads per task, and waits for nobody. It is good for [`GOOD_FOR`], however
//! many ask. A detail is worked out by the task itself, which has its course.

use super::Agent;
use super::life::Life;
use crate::agent::Engine;
use crate::agent::task::{Plan, Task};
use crate::cgroup::{HeldBack, Watch};
use crate::fingerprint::{Measured, Measures};
use crate::host::{self, OwnCost};
use crate::live::{
    AgentNow, HostNow, Kind, MemoryLimit, Predicted, Snapshot, StoreNow, TASKS_MAX, TaskDetail, TaskNow,
    Totals, cpu_limit_cores,
};
use crate::metrics::Seen;
use crate::probe::{Measure, Slot};
use crate::store::record::RunId;
use ebpf_probes::{Counters, Shared};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long a snapshot is handed out before another one is made.
const GOOD_FOR: Duration = Duration::from_millis(200);

/// How many may wait for the detail of one task.
const ASKERS_MAX: usize = 8;

/// Names of users that are remembered; all are forgotten when there are more.
const NAMES_MAX: usize = 1024;

/// Questions to a task.
pub(super) type Asked = mpsc::Receiver<oneshot::Sender<TaskDetail>>;

/// Names of users: looking one up reads files.
#[derive(Debug, Default)]
pub(super) struct UserNames(RefCell<HashMap<u32, String>>);

impl UserNames {
    pub(super) fn of(&self, uid: u32) -> String {
        let mut names = self.0.borrow_mut();
        if names.len() > NAMES_MAX {
            names.clear();
        }
        names.entry(uid).or_insert_with(|| host::user_name(uid)).clone()
    }
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Board {
    shown: RefCell<HashMap<u64, Shown>>,
    last: RefCell<Option<(Instant, Rc<All>)>>,
    names: UserNames,
    since_ms: Cell<Option<i64>>,
}

/// A snapshot of everybody's tasks, with their owners.
struct All {
    snapshot: Snapshot,
    tasks: Vec<(u32, TaskNow)>,
    took: Duration,
}

/// A task on the board.
struct Shown {
    uid: u32,
    /// What does not change, or was so at the last sample.
    task: TaskNow,
    watch: Arc<Watch>,
    slot: Option<Slot>,
    measures: Measures,
    /// What it had used when it came to this agent.
    before: Totals,
    ask: mpsc::Sender<oneshot::Sender<TaskDetail>>,
}

/// Takes a task off the board when this goes.
pub(super) struct OnBoard {
    agent: Rc<Agent>,
    id: u64,
}

impl OnBoard {
    /// Counts what the task has used among what is no longer under way, and tells its last totals.
    pub(super) fn end(self) -> Totals {
        // The rest is for the destructor.
        let shown = self.agent.board.shown.borrow();
        let engine = self.agent.engine.borrow();
        let last = shown.get(&self.id).map(|shown| shown.now(&engine)).unwrap_or_default();
        let before = shown.get(&self.id).map(|shown| shown.before).unwrap_or_default();
        let used = last.totals.since(&before);
        self.agent.tally.borrow_mut().used(&last.task_type, &last.user, &used);
        last.totals
    }
}

impl Drop for OnBoard {
    fn drop(&mut self) {
        self.agent.board.shown.borrow_mut().remove(&self.id);
    }
}

/// Puts a task on the board. It has to answer what it is asked.
pub(super) fn show(agent: &Rc<Agent>, life: &Life) -> (OnBoard, Asked) {
    let (ask, asked) = mpsc::channel(ASKERS_MAX);
    let (task, id) = (&life.task, life.task.cgroup().id());
    let elapsed_ms = i64::try_from(task.elapsed().as_millis()).unwrap_or(0);
    let shown = Shown {
        uid: life.key.uid,
        task: TaskNow {
            id,
            kind: Kind::Run,
            task_type: life.key.task_type.clone(),
            user: life.user.clone(),
            run_id: life.record.known_run().map(|run| run.0),
            pid: Some(life.process.id.pid),
            since_ms: host::now_ms() - elapsed_ms,
            predicted: Predicted::of(&task.plan().prediction),
            ..TaskNow::default()
        },
        watch: Arc::clone(task.watch()),
        slot: task.slot(),
        measures: task.measures().clone(),
        before: Totals::default(),
        ask,
    };
    let before = shown.now(&agent.engine.borrow()).totals;
    agent.board.shown.borrow_mut().insert(id, Shown { before, ..shown });
    agent.tally.borrow_mut().begun(&life.key.task_type, &life.user);
    agent.board.sampled(task, life.record.known_run());
    (OnBoard { agent: Rc::clone(agent), id }, asked)
}

/// What a task answers.
pub(super) fn detail(measured: Measured, plan: &Plan) -> TaskDetail {
    TaskDetail {
        fingerprint: measured.fingerprint,
        series: measured.series.points().to_vec(),
        coverage: measured.coverage,
        prediction: plan.prediction.clone(),
        limits: plan.limits.clone(),
    }
}

/// Counters that are real, and the accounts.
fn totals(
    counted: Option<(Counters, Shared)>,
    measures: &Measures,
    cpu_ns: Option<u64>,
    held: HeldBack,
) -> (Totals, Option<u64>) {
    let accounts = Totals {
        cpu_ns,
        memory_stalled_us: held.stalled_us,
        quota_periods: held.quota_periods,
        quota_periods_throttled: held.quota_periods_throttled,
        ..Totals::default()
    };
    let Some((counters, shared)) = counted else { return (accounts, None) };
    let of = |measure, value: u64| measures.has(measure).then_some(value);
    let totals = Totals {
        cpu_ns: cpu_ns.or_else(|| of(Measure::Cpu, counters.on_cpu_ns)),
        cpu_wait_ns: of(Measure::CpuWait, counters.wait_ns),
        read_bytes: of(Measure::Block, counters.block_read_bytes),
        write_bytes: of(Measure::Block, counters.block_write_bytes),
        received_bytes: of(Measure::SocketBytes, counters.tcp_received_bytes + counters.udp_received_bytes),
        sent_bytes: of(Measure::SocketBytes, counters.tcp_sent_bytes + counters.udp_sent_bytes),
        faults_major: of(Measure::Faults, counters.faults_major),
        oom_kills: of(Measure::OomKills, counters.oom_kills),
        service_ns: measures.has(Measure::Service).then_some(counters.tcp_service_ns),
        ..accounts
    };
    (totals, of(Measure::Tasks, u64::try_from(shared.tasks).unwrap_or(0)))
}

impl Shown {
    /// As it is now.
    fn now(&self, engine: &Engine) -> TaskNow {
        let counted = self.slot.and_then(|slot| engine.counted(slot));
        let clock_ns = host::monotonic_ns();
        let (cpu_ns, held) = (self.watch.cpu().cpu_ns, self.watch.held_back());
        let (totals, tasks) = totals(counted, &self.measures, cpu_ns, held);
        TaskNow { clock_ns, totals, tasks, ..self.task.clone() }
    }
}

impl Board {
    pub(super) fn names(&self) -> &UserNames {
        &self.names
    }

    /// What a task's last sample said.
    pub(super) fn sampled(&self, task: &Task, run: Option<RunId>) {
        let mut shown = self.shown.borrow_mut();
        let Some(Shown { task: known, .. }) = shown.get_mut(&task.cgroup().id()) else { return };
        known.run_id = run.map(|run| run.0);
        known.memory_bytes = Some(task.memory_bytes());
        known.memory_limit = MemoryLimit::of(&task.plan().limits);
        known.cpu_limit_cores = cpu_limit_cores(&task.plan().limits);
        known.is_idle = task.is_idle();
    }
}

impl Agent {
    /// What `viewer` may see: all for root, else the user's own tasks.
    pub(super) fn snapshot(&self, viewer: u32) -> Snapshot {
        let all = self.everything();
        let mine = all.tasks.iter().filter(|(uid, _)| viewer == 0 || viewer == *uid);
        let mut tasks: Vec<TaskNow> = mine.map(|(_, task)| task.clone()).collect();
        let tasks_left_out = tasks.len().saturating_sub(TASKS_MAX);
        if tasks_left_out > 0 {
            // What a task has used per time that it lives.
            let cores = |task: &TaskNow| {
                let lived_ms = (all.snapshot.at_ms - task.since_ms).max(1);
                task.totals.cpu_ns.unwrap_or(0) as f64 / lived_ms as f64
            };
            tasks.sort_by(|a, b| cores(b).total_cmp(&cores(a)));
            tasks.truncate(TASKS_MAX);
        }
        let free = self.engine.borrow().room().memory_bytes;
        let queue = self.queue.now(viewer, free, &self.board.names);
        Snapshot { tasks, tasks_left_out, queue, ..all.snapshot.clone() }
    }

    /// What the metrics are made from.
    pub(super) fn seen(&self) -> Seen {
        let all = self.everything();
        let shown = self.board.shown.borrow();
        let tally = self.tally.borrow();
        let runs = all.tasks.iter().filter(|(_, task)| task.kind == Kind::Run);
        let live = runs.filter_map(|(_, task)| Some((task, &shown.get(&task.id)?.before)));
        let tasks = if self.config().metrics.tasks_max == 0 { Vec::new() } else { tally.series(live) };
        let free = self.engine.borrow().room().memory_bytes;
        let queue = self.queue.now(0, free, &self.board.names);
        let oldest_ms = queue.waiting.iter().map(|entry| entry.since_ms).min();
        let longest_wait_s =
            oldest_ms.map_or(0.0, |since_ms| (host::now_ms() - since_ms).max(0) as f64 / 1e3);
        Seen {
            snapshot: Snapshot { queue, ..all.snapshot.clone() },
            tasks,
            overflowed: tally.overflowed(),
            accuracy: tally.accuracy().clone(),
            longest_wait_s,
            learnt_bytes: self.learnt.borrow().bytes(),
            took: all.took,
        }
    }

    /// Everything about a task that `viewer` may see; `None` if it is over.
    pub(super) async fn task_detail(&self, id: u64, viewer: u32) -> Option<TaskDetail> {
        let ask = {
            let shown = self.board.shown.borrow();
            shown.get(&id).filter(|shown| viewer == 0 || viewer == shown.uid).map(|shown| shown.ask.clone())
        };
        let Some(ask) = ask else { return self.detail_of_other(id, viewer) };
        let (answer, answered) = oneshot::channel();
        ask.send(answer).await.ok()?;
        answered.await.ok()
    }

    fn everything(&self) -> Rc<All> {
        if let Some((made, all)) = &*self.board.last.borrow()
            && made.elapsed() < GOOD_FOR
        {
            return Rc::clone(all);
        }
        let begun = Instant::now();
        let engine = self.engine.borrow();
        let shown = self.board.shown.borrow();
        let mut tasks: Vec<_> = shown.values().map(|shown| (shown.uid, shown.now(&engine))).collect();
        let others = self.others_now(&engine);
        let snapshot = Snapshot {
            at_ms: host::now_ms(),
            clock_ns: host::monotonic_ns(),
            host: HostNow::read(),
            agent: self.agent_now(&engine, others.len()),
            ..Snapshot::default()
        };
        tasks.extend(others);
        let all = Rc::new(All { snapshot, tasks, took: begun.elapsed() });
        *self.board.last.borrow_mut() = Some((Instant::now(), Rc::clone(&all)));
        all
    }

    fn agent_now(&self, engine: &Engine, host_cgroups: usize) -> AgentNow {
        let status = engine.probes().map(|probes| probes.status()).unwrap_or_default();
        let own = OwnCost::of_this_process(self.drain.get());
        let started_ms = || host::now_ms() - i64::try_from(own.elapsed_ms).unwrap_or(0);
        let since_ms = self.board.since_ms.get().unwrap_or_else(started_ms);
        self.board.since_ms.set(Some(since_ms));
        AgentNow {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            since_ms,
            running: self.active.get(),
            host_cgroups,
            recorded: self.recorded.get(),
            own,
            store: StoreNow {
                database_bytes: bytes_of(&self.database),
                log_bytes: bytes_of(Path::new(&format!("{}-wal", self.database.display()))),
                queued: self.writer.queued(),
                failures: self.writer.failures(),
            },
            probes: (status.iter().filter(|probe| probe.state.is_attached()).count(), status.len()),
            costs: self.budget.borrow().costs().to_vec(),
            lost: engine.lost_lately().to_vec(),
        }
    }
}

/// Size of a file; 0 if there is none.
fn bytes_of(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// A cgroup that somebody else made. Its CPU time is what the probes counted, as its account tells of all time.
pub(super) fn of_other(
    (id, name, user): (u64, &str, String),
    run: Option<RunId>,
    since_ms: i64,
    memory_bytes: Option<u64>,
    (counted, measures): (Option<(Counters, Shared)>, &Measures),
) -> TaskNow {
    let clock_ns = host::monotonic_ns();
    let (totals, tasks) = totals(counted, measures, None, HeldBack::default());
    TaskNow {
        id,
        kind: Kind::Cgroup,
        task_type: name.to_owned(),
        user,
        run_id: run.map(|run| run.0),
        since_ms,
        clock_ns,
        totals,
        memory_bytes,
        tasks,
        ..TaskNow::default()
    }
}
