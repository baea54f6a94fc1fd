//! One task under measurement: sampled while it runs, grown when it needs more than was predicted, summed up
//! when it ends, and released.

use super::engine::Engine;
use crate::cgroup::{Accounts, RunCgroup, Watch};
use crate::fingerprint::{Collector, Coverage, Measured, Measures, Sample};
use crate::host;
use crate::predict::Prediction;
use crate::probe::Slot;
use crate::size::{self, Limit, Limits, Origin, Policy};
use crate::store::record::{Ending, OpenRun};
use crate::wire::Leftover;
use std::time::{Duration, Instant};

/// A quota that ran out in more than this share of its periods held the task back.
const THROTTLED_SHARE: f64 = 0.05;

/// How long the last burst of an ended process may take to be booked: it is still leaving its CPU.
const LAST_BURST_WAIT: Duration = Duration::from_millis(20);
const LAST_BURST_PAUSE: Duration = Duration::from_micros(200);

/// What was decided for a task before it starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What it is expected to need.
    pub prediction: Prediction,
    /// What it gets.
    pub limits: Limits,
    /// How hard that is.
    pub policy: Policy,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Task {
    cgroup: RunCgroup,
    watch: Watch,
    slot: Option<Slot>,
    plan: Plan,
    notes: Vec<String>,
    collector: Collector,
    started: Instant,
    /// Elapsed time before this agent took the run up.
    elapsed_before: Duration,
}

impl Task {
    pub(super) fn new(
        cgroup: RunCgroup,
        slot: Option<Slot>,
        plan: Plan,
        notes: Vec<String>,
        measures: Measures,
        coverage: Coverage,
    ) -> Self {
        let collector = Collector::new(measures, coverage);
        let (watch, started) = (cgroup.watch(), Instant::now());
        Self { cgroup, watch, slot, plan, notes, collector, started, elapsed_before: Duration::ZERO }
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
        let mut task = Self {
            collector: Collector::resume(measures, coverage, run.measured.clone()),
            watch: cgroup.watch(),
            cgroup,
            slot,
            plan: Plan { prediction: Prediction::default(), limits: run.limits.clone(), policy: run.policy },
            notes,
            started: Instant::now(),
            elapsed_before: Duration::from_millis(
                u64::try_from(host::now_ms() - run.started_at_ms).unwrap_or(0),
            ),
        };
        let sample = task.look(engine);
        task.collector.start_at(sample);
        task
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

    /// Its cgroup.
    pub fn cgroup(&self) -> &RunCgroup {
        &self.cgroup
    }

    /// What was decided for it.
    pub fn plan(&self) -> &Plan {
        &self.plan
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
        Collector::interval(self.elapsed())
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

    /// Measures, and raises a `memory.high` that the task comes near to.
    pub fn sample(&mut self, engine: &Engine) {
        let sample = self.glance(engine);
        if let Some(used) = sample.accounts.memory_bytes {
            self.grow(used, engine);
        }
        self.collector.sample(sample);
    }

    /// Keeps a predicted `memory.high` above what is in use: below the working set it would only make the
    /// task reclaim its own pages for ever.
    fn grow(&mut self, used_bytes: u64, engine: &Engine) {
        let high = self.plan.limits.0.iter_mut().find_map(|(limit, origin)| match (limit, origin) {
            (Limit::MemoryHigh(bytes), Origin::Predicted) => Some(bytes),
            _ => None,
        });
        let Some(high) = high else { return };
        if let Some(raised) = size::grow(*high, used_bytes, engine.capacity()) {
            *high = raised;
            _ = self.cgroup.write(Limit::MemoryHigh(raised));
        }
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
        let measured = self.collector.finish(sample);
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
