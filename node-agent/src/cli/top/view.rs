//! What there is to show of one moment: the present, from two of the agent's records, or the past, from the database.
//! Pure: everything was read before.

use crate::fingerprint::series::Point;
use crate::live::rates::{HostRates, Rates, State};
use crate::live::{AgentNow, HostNow, Kind, MemoryLimit, Predicted, QueueNow, Snapshot, TaskNow};
use crate::service::control::Status;
use crate::store::event::EventRow;
use crate::store::moment::MomentRun;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};

/// Values of a task's course that are kept for its little curve.
pub(super) const TRAIL_MAX: usize = 60;

/// The agent's own share of the CPU is a mean over at least so long: the kernel counts it in ticks of 10 ms.
const OWN_SPAN_NS: u64 = 10_000_000_000;

/// What a past moment's little curve covers, milliseconds, and a value of it.
pub(super) const PAST_SPAN_MS: i64 = 300_000;
const PAST_STEP_MS: i64 = PAST_SPAN_MS / 30;

/// One moment.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct View {
    /// Milliseconds since 1970.
    pub(super) at_ms: i64,
    /// From the agent; else from the database.
    pub(super) is_live: bool,
    pub(super) host: Option<Host>,
    #[serde(rename = "tasks")]
    pub(super) rows: Vec<Row>,
    #[serde(rename = "tasks_left_out")]
    pub(super) rows_left_out: usize,
    pub(super) services: Vec<Status>,
    pub(super) queue: Option<QueueNow>,
    pub(super) agent: Option<Agent>,
    /// What happened lately, newest first; of past moments only.
    pub(super) events: Vec<EventRow>,
    /// What people should know: why this is not all.
    pub(super) hint: Option<String>,
}

/// The host, and what its CPUs did.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Host {
    #[serde(flatten)]
    pub(super) now: HostNow,
    pub(super) rates: Option<HostRates>,
    /// Cores in use, oldest first.
    #[serde(skip)]
    pub(super) trail: Vec<f64>,
}

/// The agent, and its share of a CPU lately, in cores.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Agent {
    #[serde(flatten)]
    pub(super) now: AgentNow,
    pub(super) cpu_cores: f64,
}

/// A task.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    /// Live: its cgroup; past: its run.
    pub(super) id: u64,
    pub(super) kind: Kind,
    pub(super) task_type: String,
    pub(super) user: String,
    pub(super) run_id: Option<i64>,
    pub(super) pid: Option<i32>,
    pub(super) since_ms: i64,
    pub(super) state: State,
    #[serde(flatten)]
    pub(super) rates: Rates,
    pub(super) memory_bytes: Option<u64>,
    pub(super) memory_limit: Option<MemoryLimit>,
    pub(super) cpu_limit_cores: Option<f64>,
    pub(super) predicted: Predicted,
    pub(super) tasks: Option<u64>,
    /// Cores in use, oldest first.
    #[serde(skip)]
    pub(super) trail: Vec<f64>,
}

/// What is remembered of the records before.
#[derive(Debug, Default)]
pub(super) struct Trails {
    last: Option<Snapshot>,
    tasks: HashMap<u64, VecDeque<f64>>,
    host: VecDeque<f64>,
    own: VecDeque<(u64, u64)>,
}

fn push(trail: &mut VecDeque<f64>, value: f64) {
    if trail.len() == TRAIL_MAX {
        trail.pop_front();
    }
    trail.push_back(value);
}

impl Trails {
    /// The moment of a record. A record that the agent made before the last one (it hands one out for a while)
    /// changes nothing.
    pub(super) fn view(&mut self, now: Snapshot, services: Vec<Status>) -> View {
        let before = self.last.take().unwrap_or_default();
        let known: HashMap<u64, &TaskNow> = before.tasks.iter().map(|task| (task.id, task)).collect();
        let rows: Vec<Row> =
            now.tasks.iter().map(|task| self.row(known.get(&task.id).copied(), task)).collect();
        self.tasks.retain(|id, _| now.tasks.iter().any(|task| task.id == *id));
        let rates = HostRates::between(&before.host, &now.host).filter(|_| before.at_ms > 0);
        if let Some(rates) = rates {
            push(&mut self.host, rates.user_cores + rates.system_cores);
        }
        let view = View {
            at_ms: now.at_ms,
            is_live: true,
            host: Some(Host { now: now.host, rates, trail: self.host.iter().copied().collect() }),
            rows,
            rows_left_out: now.tasks_left_out,
            services,
            queue: Some(now.queue.clone()),
            agent: Some(Agent { cpu_cores: self.own_cores(&now), now: now.agent.clone() }),
            events: Vec::new(),
            hint: None,
        };
        self.last = Some(now);
        view
    }

    fn row(&mut self, before: Option<&TaskNow>, now: &TaskNow) -> Row {
        let rates = before.map(|before| Rates::between(before, now)).unwrap_or_default();
        let trail = self.tasks.entry(now.id).or_default();
        if let Some(cores) = rates.cpu_cores {
            push(trail, cores);
        }
        Row {
            id: now.id,
            kind: now.kind,
            task_type: now.task_type.clone(),
            user: now.user.clone(),
            run_id: now.run_id,
            pid: now.pid,
            since_ms: now.since_ms,
            state: rates.state(),
            rates,
            memory_bytes: now.memory_bytes,
            memory_limit: now.memory_limit,
            cpu_limit_cores: now.cpu_limit_cores,
            predicted: now.predicted,
            tasks: now.tasks,
            trail: trail.iter().copied().collect(),
        }
    }

    fn own_cores(&mut self, now: &Snapshot) -> f64 {
        let own = &now.agent.own;
        // Another agent.
        if self.own.back().is_some_and(|(_, cpu_ms)| *cpu_ms > own.cpu_ms) {
            self.own.clear();
        }
        self.own.push_back((now.clock_ns, own.cpu_ms));
        while self.own.get(1).is_some_and(|(at_ns, _)| now.clock_ns.saturating_sub(*at_ns) >= OWN_SPAN_NS) {
            self.own.pop_front();
        }
        match self.own.front() {
            Some((at_ns, cpu_ms)) if now.clock_ns.saturating_sub(*at_ns) >= OWN_SPAN_NS => {
                (own.cpu_ms - cpu_ms) as f64 * 1e6 / (now.clock_ns - at_ns) as f64
            }
            _ => own.cpu_ms as f64 / own.elapsed_ms.max(1) as f64,
        }
    }
}

/// A moment of the past.
pub(super) fn past(at_ms: i64, runs: Vec<MomentRun>, events: Vec<EventRow>) -> View {
    View {
        at_ms,
        rows: runs.into_iter().map(|run| past_row(run, at_ms)).collect(),
        events,
        ..View::default()
    }
}

fn past_row(run: MomentRun, at_ms: i64) -> Row {
    let elapsed_ms = u64::try_from(at_ms - run.started_at_ms).unwrap_or(0);
    let point = run.course.last();
    let rates = point.map_or_else(Rates::default, |point| Rates {
        cpu_cores: Some(point.cpu_cores),
        read_bytes_per_s: Some(point.read_bytes_per_s),
        write_bytes_per_s: Some(point.write_bytes_per_s),
        received_bytes_per_s: Some(point.received_bytes_per_s),
        sent_bytes_per_s: Some(point.sent_bytes_per_s),
        ..Rates::default()
    });
    Row {
        id: run.run_id.0.cast_unsigned(),
        kind: run.kind,
        task_type: run.task_type,
        user: run.user,
        run_id: Some(run.run_id.0),
        pid: run.pid,
        since_ms: run.started_at_ms,
        state: rates.state(),
        memory_bytes: point.map(|point| point.memory_bytes),
        rates,
        memory_limit: run.memory_limit,
        cpu_limit_cores: None,
        predicted: run.predicted,
        tasks: None,
        trail: steps(&run.course, elapsed_ms),
    }
}

/// A course at even steps up to a moment, by the stretch that each step falls into.
fn steps(course: &[Point], until_ms: u64) -> Vec<f64> {
    let step = PAST_STEP_MS.cast_unsigned();
    let begin = course.first().map_or(until_ms, |first| first.at_ms.saturating_sub(first.length_ms));
    let back = (0..PAST_SPAN_MS / PAST_STEP_MS).map(|n| until_ms.checked_sub(n.cast_unsigned() * step));
    let moments = back.take_while(|at| at.is_some_and(|at| at >= begin)).flatten();
    let value =
        |at| course.iter().find(|point| point.at_ms >= at).or(course.last()).map(|point| point.cpu_cores);
    let mut values: Vec<f64> = moments.filter_map(value).collect();
    values.reverse();
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Totals;
    use crate::store::record::RunId;

    fn record(seconds: u64, cpu_ms: u64) -> Snapshot {
        let totals = Totals { cpu_ns: Some(cpu_ms * 1_000_000), ..Totals::default() };
        let clock_ns = seconds * 1_000_000_000;
        let task = TaskNow { id: 7, task_type: "xz".into(), clock_ns, totals, ..TaskNow::default() };
        let mut snapshot = Snapshot { at_ms: 1, clock_ns, tasks: vec![task], ..Snapshot::default() };
        (snapshot.agent.own.cpu_ms, snapshot.agent.own.elapsed_ms) = (seconds * 20, 100_000);
        snapshot
    }

    #[test]
    fn the_first_look_has_no_rates_and_the_second_has() {
        let mut trails = Trails::default();
        assert_eq!(trails.view(record(1, 100), Vec::new()).rows[0].rates, Rates::default());
        let row = trails.view(record(3, 1100), Vec::new()).rows.remove(0);
        assert_eq!((row.rates.cpu_cores, row.state), (Some(0.5), State::Running));
        for second in 4..200 {
            assert!(trails.view(record(second, 0), Vec::new()).rows[0].trail.len() <= TRAIL_MAX);
        }
        trails.view(Snapshot::default(), Vec::new());
        assert!(trails.tasks.is_empty(), "what ended is forgotten");
    }

    #[test]
    fn the_agents_share_is_a_mean_over_some_seconds() {
        let mut trails = Trails::default();
        let cores: Vec<f64> = (1..=12)
            .map(|second| trails.view(record(second, 0), Vec::new()).agent.unwrap().cpu_cores)
            .collect();
        assert!((cores[0] - 0.0002).abs() < 1e-9, "of its life: {cores:?}");
        assert!((cores[11] - 0.02).abs() < 1e-9, "20 ms a second: {cores:?}");
    }

    #[test]
    fn a_past_moment_shows_the_stretch_that_it_is_in() {
        let point = |at_ms, cpu_cores| Point { at_ms, length_ms: 10_000, cpu_cores, ..Point::default() };
        let run = MomentRun {
            run_id: RunId(3),
            task_type: "xz".into(),
            user: "root".into(),
            kind: Kind::Run,
            pid: None,
            started_at_ms: 100_000,
            ended_at_ms: None,
            predicted: Predicted::default(),
            memory_limit: None,
            course: vec![point(10_000, 1.0), point(20_000, 2.0), point(30_000, 3.0)],
        };
        let view = past(125_000, vec![run], Vec::new());
        assert_eq!(view.rows[0].rates.cpu_cores, Some(3.0));
        assert_eq!(view.rows[0].trail, [1.0, 2.0, 3.0]);
        assert!(!view.is_live);
    }
}
