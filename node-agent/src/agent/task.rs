//! One task under measurement: sampled while it runs, its limits kept following it, summed up when it ends,
//! and released.

use super::engine::Engine;
use super::follow::{self, Follow, Followed};
use crate::cgroup::{Accounts, RunCgroup, Watch};
use crate::fingerprint::{Collector, Coverage, Measured, Measures, Sample};
use crate::host::{self, Capacity};
use crate::predict::Prediction;
use crate::probe::Slot;
use crate::size::{self, Limit, Limits, Manual, Origin, Policy};
use crate::store::record::{Ending, OpenRun};
use crate::wire::Leftover;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A quota that ran out in more than this share of its periods held the task back.
const THROTTLED_SHARE: f64 = 0.05;

/// How long the last burst of an ended process may take to be booked: it is still leaving its CPU.
const LAST_BURST_WAIT: Duration = Duration::from_millis(20);
const LAST_BURST_PAUSE: Duration = Duration::from_micros(200);

/// A task that used no CPU for so long idles.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// What was decided for a task before it starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What it is expected to need.
    pub prediction: Prediction,
    /// What it gets.
    pub limits: Limits,
    /// How hard that is.
    pub policy: Policy,
    /// What the user demands.
    pub manual: Manual,
}

/// How long a run has gone on that another agent began. The clock of the wall may have been set meanwhile: it is
/// believed as far as the run is not shorter than was recorded, nor longer than its main process lives.
pub(super) fn elapsed_at(run: &OpenRun, since_boot_ns: u64, now_ms: i64) -> Duration {
    let recorded = Duration::from_nanos(run.measured.fingerprint.duration_ns);
    let by_clock = u64::try_from(now_ms.saturating_sub(run.started_at_ms)).unwrap_or(0);
    let age = run.main.as_ref().and_then(|main| main.age_at(since_boot_ns));
    let waited = Duration::from_millis(run.admission.as_ref().map_or(0, |admission| admission.waited_ms));
    // A tick of the process's start is a hundredth of a second.
    let most = age.map_or(Duration::MAX, |age| age.saturating_sub(waited) + Duration::from_millis(20));
    Duration::from_millis(by_clock).clamp(recorded.min(most), most)
}

/// See the head of this file.
#[derive(Debug)]
pub struct Task {
    cgroup: RunCgroup,
    watch: Arc<Watch>,
    slot: Option<Slot>,
    plan: Plan,
    notes: Vec<String>,
    collector: Collector,
    follow: Follow,
    started: Instant,
    /// When it last used CPU.
    active_at: Instant,
    /// Elapsed time before this agent took the run up.
    elapsed_before: Duration,
    /// What the probes had lost when it began.
    lost_before: Vec<(String, u64)>,
}

impl Task {
    pub(super) fn new(
        cgroup: RunCgroup,
        slot: Option<Slot>,
        plan: Plan,
        notes: Vec<String>,
        (measures, coverage): (Measures, Coverage),
        capacity: Capacity,
        lost_before: &[(String, u64)],
    ) -> Self {
        let collector = Collector::new(measures, coverage);
        let (watch, started) = (Arc::new(cgroup.watch()), Instant::now());
        let follow = Follow::new(size::following(&plan.limits, plan.policy, plan.manual, capacity));
        let lost_before = lost_before.to_vec();
        Self {
            cgroup,
            watch,
            slot,
            plan,
            notes,
            collector,
            follow,
            started,
            active_at: started,
            elapsed_before: Duration::ZERO,
            lost_before,
        }
    }

    /// A run that another agent began. Pinned probes have counted it all the time; where there are none, new ones
    /// go on from that agent's last record, and counts since then are missing.
    pub(super) fn adopt(engine: &mut Engine, cgroup: RunCgroup, run: &OpenRun) -> Self {
        let mut notes = Vec::new();
        let counted = engine.slot_of(&cgroup);
        let slot = counted.or_else(|| engine.track_from(&cgroup, &run.measured.fingerprint, &mut notes));
        let (measures, mut coverage) = engine.coverage(&cgroup, slot.is_some());
        if counted.is_none() {
            if let Some(slot) = slot {
                let tasks = std::fs::read_to_string(cgroup.v2().join("cgroup.threads")).unwrap_or_default();
                engine.set_tasks(slot, i64::try_from(tasks.lines().count()).unwrap_or(i64::MAX));
            }
            for source in coverage.0.iter_mut().filter(|source| source.measure != "memory") {
                source.note = Some("the agent was restarted: counts while it was down are missing".into());
            }
        }
        let manual = manual_of(&run.limits);
        let mut task = Self {
            follow: Follow::new(size::following(&run.limits, run.policy, manual, engine.capacity())),
            collector: Collector::resume(measures, coverage, run.measured.clone()),
            watch: Arc::new(cgroup.watch()),
            cgroup,
            slot,
            plan: Plan {
                prediction: Prediction::default(),
                limits: run.limits.clone(),
                policy: run.policy,
                manual,
            },
            notes,
            started: Instant::now(),
            lost_before: engine.lost(),
            active_at: Instant::now(),
            elapsed_before: elapsed_at(run, host::since_boot_ns(), host::now_ms()),
        };
        let sample = task.look(engine);
        task.collector.start_at(sample);
        task.take_limits_up(sample.accounts.memory_bytes.unwrap_or(0));
        task
    }

    /// Nobody followed the task for a while, and its reclaim target may have been lifted: it gets one again,
    /// above what is in use.
    fn take_limits_up(&mut self, used_bytes: u64) {
        for (limit, origin) in &mut self.plan.limits.0 {
            if let (Limit::MemoryHigh(bytes), Origin::Predicted) = (&mut *limit, *origin) {
                *bytes = (*bytes).max((used_bytes as f64 * size::elastic::GROW_FACTOR) as u64);
                _ = self.cgroup.write(*limit);
            }
        }
    }

    /// Its place in the probes' maps.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// The run ended at `elapsed`, and not now.
    pub(super) fn ended_after(&mut self, elapsed: Duration) {
        self.elapsed_before = elapsed;
        self.started = Instant::now();
    }

    /// The accounts that are looked at often.
    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// What is measured of it.
    pub(super) fn measures(&self) -> &Measures {
        self.collector.measures()
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &RunCgroup {
        &self.cgroup
    }

    /// What was decided for it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Memory in use at the last sample, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.collector.last().accounts.memory_bytes.unwrap_or(0)
    }

    /// Whether it has used no CPU for a while.
    pub fn is_idle(&self) -> bool {
        self.active_at.elapsed() >= IDLE_AFTER
    }

    /// What people should know about it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Time since it started.
    pub fn elapsed(&self) -> Duration {
        self.elapsed_before + self.started.elapsed()
    }

    /// How long to wait until the next [`Task::sample`].
    pub fn interval(&self) -> Duration {
        let interval = Collector::interval(self.elapsed());
        if self.follow.is_idle() { interval } else { interval.min(follow::LOOK_MAX) }
    }

    /// Takes the reclaim target off, for when nobody follows the task any more.
    pub fn let_go(&self) {
        if !self.follow.is_idle() {
            self.cgroup.lift_high();
        }
    }

    /// The task starts now: `tasks` processes are in its cgroup already, which no fork will tell of.
    pub fn start(&mut self, engine: &mut Engine, tasks: i64) {
        if let Some(slot) = self.slot {
            engine.set_tasks(slot, tasks);
        }
        self.started = Instant::now();
    }

    /// Names the main process, so that the probes report its end.
    pub fn set_main(&self, engine: &mut Engine, pid: i32) {
        engine.watch_exit(self.slot, pid);
    }

    /// Everything there is to see.
    fn look(&self, engine: &Engine) -> Sample {
        Sample {
            elapsed_ns: u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX),
            counted: self.slot.and_then(|slot| engine.counted(slot)),
            accounts: self.cgroup.accounts(),
        }
    }

    /// What changes all the time. A task that used no CPU since the last sample has changed nothing.
    fn glance(&self, engine: &Engine) -> Sample {
        let last = self.collector.last();
        let cpu = self.watch.cpu();
        let is_idle = cpu.cpu_ns.is_some() && cpu.cpu_ns == last.accounts.cpu_ns;
        let memory = if is_idle { last.accounts } else { self.watch.memory() };
        let (memory_bytes, working_set_bytes) = (memory.memory_bytes, memory.working_set_bytes);
        Sample {
            elapsed_ns: u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX),
            counted: self.slot.and_then(|slot| engine.counted(slot)),
            accounts: Accounts { memory_bytes, working_set_bytes, ..cpu },
        }
    }

    /// Measures, and has the limits follow. What changed is for the event log.
    pub fn sample(&mut self, engine: &Engine) -> Vec<Followed> {
        let sample = self.glance(engine);
        if sample.accounts.cpu_ns != self.collector.last().accounts.cpu_ns {
            self.active_at = Instant::now();
        }
        let (used, cpu_ns) = (sample.accounts.memory_bytes, sample.accounts.cpu_ns);
        let followed = self.follow.look(
            (self.elapsed(), used.unwrap_or(0), cpu_ns.unwrap_or(0)),
            (&self.cgroup, &*self.watch),
            || engine.room(),
            &mut self.plan.limits,
        );
        if self.follow.was_held() && !self.notes.iter().any(|note| note == follow::WAS_HELD) {
            self.notes.push(follow::WAS_HELD.into());
        }
        self.collector.sample(sample);
        followed
    }

    /// What has been measured up to now.
    pub fn measured(&mut self, engine: &Engine) -> Measured {
        let sample = self.look(engine);
        self.collector.sample(sample);
        self.collector.demand(self.slot.and_then(|slot| engine.demand(slot)));
        self.collector.measured()
    }

    /// Whether every burst of the task's ended processes is counted.
    pub fn is_settled(&self, engine: &Engine) -> bool {
        !self.slot.is_some_and(|slot| engine.is_on_cpu(slot))
    }

    /// Waits, blocking and briefly, until the last burst is counted.
    pub fn settle(&self, engine: &Engine) {
        let patience = Instant::now() + LAST_BURST_WAIT;
        while !self.is_settled(engine) && Instant::now() < patience {
            std::thread::sleep(LAST_BURST_PAUSE);
        }
    }

    /// The measurement, and what of the ending shows in the accounts. `status` is that of the main process
    /// where it is known. Gives back everything the task held; processes that are still there are treated
    /// as `leftover` says.
    pub fn finish(
        mut self,
        engine: &mut Engine,
        status: Option<i32>,
        leftover: Leftover,
    ) -> (Measured, Ending) {
        let sample = self.look(engine);
        let accounts = sample.accounts;
        let limited = |of: fn(&Limit) -> bool| self.plan.limits.0.iter().any(|(limit, _)| of(limit));
        let throttled = match (accounts.quota_periods, accounts.quota_periods_throttled) {
            (Some(periods), Some(throttled)) if periods > 0 => {
                throttled as f64 / periods as f64 > THROTTLED_SHARE
            }
            _ => false,
        };
        self.collector.demand(self.slot.and_then(|slot| engine.demand(slot)));
        self.collector.peers(self.slot.and_then(|slot| engine.peers(slot)));
        let mut measured = self.collector.finish(sample);
        if self.slot.is_some() {
            measured.coverage.0.extend(engine.shortcomings(self.started, &self.lost_before));
        }
        let exited = status.filter(|&status| libc::WIFEXITED(status));
        let signaled = status.filter(|&status| libc::WIFSIGNALED(status));
        let ending = Ending {
            exit_code: exited.map(|status| libc::WEXITSTATUS(status)),
            signal: signaled.map(|status| libc::WTERMSIG(status)),
            exec_errno: None,
            out_of_memory: measured.fingerprint.oom_kills.is_some_and(|kills| kills > 0),
            out_of_tasks: limited(|limit| matches!(limit, Limit::PidsMax(_)))
                && accounts.pids_max_hits.is_some_and(|hits| hits > 0),
            throttled: limited(|limit| matches!(limit, Limit::CpuMax(_))) && throttled,
        };
        if leftover == Leftover::Kill {
            self.cgroup.kill();
        }
        if self.cgroup.is_populated() && leftover == Leftover::Leave {
            self.cgroup.lift_limits();
        }
        engine.release(self.cgroup, self.slot);
        (measured, ending)
    }
}

/// What the user had demanded of a run, as far as its limits tell.
fn manual_of(limits: &Limits) -> Manual {
    let by_hand = limits.0.iter().filter(|(_, origin)| *origin == Origin::Manual);
    by_hand.fold(Manual::default(), |manual, (limit, _)| match *limit {
        Limit::MemoryMax(bytes) => Manual { memory_bytes: Some(bytes), ..manual },
        Limit::CpuMax(cores) => Manual { cpu_cores: Some(cores), ..manual },
        Limit::PidsMax(tasks) => Manual { tasks: Some(tasks), ..manual },
        _ => manual,
    })
}
