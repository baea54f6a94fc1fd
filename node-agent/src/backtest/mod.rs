//! Replaying a past: what would each way of sizing memory have wasted, and whom would it have killed?
//!
//! **The protocol.** Tasks come in the order in which they started. A recipe is asked when a task starts and knows
//! only what had ended by then; it learns what a task took when the task ends, and that a reservation was too
//! small when the task fails (after `fail_at` of its run time). Then the recipe decides what to retry with. A
//! failed attempt wastes all that it reserved for as long as it ran; a good one what it reserved above the peak.
//! Nothing is trained beforehand. Start times stay as they were.

pub mod accuracy;
pub mod csv;
pub mod own;
pub mod plot;
pub mod recipe;
mod sacct;
pub mod trace;

use recipe::{Asked, Recipe};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use trace::{Task, Trace};

/// Attempts after which a task counts as failed for good.
pub const ATTEMPTS_MAX: u32 = 12;
/// Bytes × seconds in a GB·h (10^9 bytes).
const GB_HOUR: f64 = 3.6e12;
/// How a replay goes.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Share of its run time after which a task with too little memory fails.
    pub fail_at: f64,
    /// What no reservation exceeds, bytes, unless the user asked for more.
    pub host_bytes: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { fail_at: 1.0, host_bytes: 128e9 }
    }
}

/// What a recipe came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Name of the recipe.
    pub name: String,
    /// Reserved and not used, failed attempts included, GB·h.
    pub waste_gbh: f64,
    /// Of that, of tasks whose kind had no run that had ended when they started.
    pub cold_gbh: f64,
    /// Used, GB·h.
    pub used_gbh: f64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Tasks of which an attempt failed.
    pub failed_tasks: u64,
    /// Tasks that no attempt brought to an end.
    pub lost_tasks: u64,
    /// Tasks.
    pub tasks: u64,
    /// Core-hours of failed attempts.
    pub failed_core_hours: f64,
    /// Times that a limit grew in place.
    pub raises: u64,
    /// Waste as it added up: milliseconds since the first start, GB·h. At most [`COURSE_MAX`] points.
    #[serde(skip)]
    pub course: Vec<(i64, f64)>,
}

/// Points of a course.
pub const COURSE_MAX: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ends,
    Fails,
    Starts,
}

/// Replays a trace with one recipe.
pub fn replay(trace: &Trace, rules: Rules, recipe: &mut dyn Recipe) -> Outcome {
    replay_telling(trace, rules, recipe, &mut |_| {})
}

/// The same; `progress` hears how many tasks have started.
pub fn replay_telling(
    trace: &Trace,
    rules: Rules,
    recipe: &mut dyn Recipe,
    progress: &mut dyn FnMut(usize),
) -> Outcome {
    let mut replay = Replay::new(trace, rules);
    let mut started = 0;
    while let Some(Reverse((at_ms, event, task))) = replay.queue.pop() {
        if event == Event::Starts {
            started += 1;
            progress(started);
        }
        match event {
            Event::Starts => replay.starts(at_ms, task, recipe),
            Event::Fails => replay.fails(at_ms, task, recipe),
            Event::Ends => replay.ends(at_ms, task, recipe),
        }
    }
    replay.outcome.name = recipe.name().into();
    replay.outcome.course = thin(std::mem::take(&mut replay.outcome.course));
    replay.outcome
}

struct Replay<'a> {
    tasks: &'a [Task],
    rules: Rules,
    /// Earliest first; at one moment ends come before starts.
    queue: BinaryHeap<Reverse<(i64, Event, usize)>>,
    reserved: Vec<f64>,
    failures: Vec<u32>,
    cold: Vec<bool>,
    outcome: Outcome,
}

impl<'a> Replay<'a> {
    fn new(trace: &'a Trace, rules: Rules) -> Self {
        let tasks = &trace.tasks;
        let queue = tasks.iter().enumerate().map(|(i, task)| Reverse((task.start_ms, Event::Starts, i)));
        let used_gbh = tasks.iter().map(|task| task.memory_peak_bytes * task.duration_s / GB_HOUR).sum();
        Self {
            tasks,
            rules,
            queue: queue.collect(),
            reserved: vec![0.0; tasks.len()],
            failures: vec![0; tasks.len()],
            cold: vec![false; tasks.len()],
            outcome: Outcome { used_gbh, tasks: tasks.len() as u64, ..Outcome::default() },
        }
    }

    fn starts(&mut self, at_ms: i64, place: usize, recipe: &mut dyn Recipe) {
        let task = &self.tasks[place];
        let Asked { bytes, cold } = recipe.reserve(task, place);
        self.cold[place] = cold;
        self.attempt(at_ms, place, bytes, recipe);
    }

    fn attempt(&mut self, at_ms: i64, place: usize, bytes: f64, recipe: &dyn Recipe) {
        let task = &self.tasks[place];
        let most = self.rules.host_bytes.max(task.memory_request_bytes.unwrap_or(0.0));
        let mut bytes = if bytes.is_finite() { bytes.clamp(1.0, most) } else { most };
        if let Some(room) = recipe.grows_to(task, most) {
            while bytes < task.memory_peak_bytes && bytes < room {
                bytes = (bytes * recipe::RAISE).min(room);
                self.outcome.raises += 1;
            }
        }
        self.reserved[place] = bytes;
        let (share, event) = if bytes >= task.memory_peak_bytes {
            (1.0, Event::Ends)
        } else {
            (self.rules.fail_at, Event::Fails)
        };
        let ran_until_ms = at_ms + (task.duration_s * 1e3 * share) as i64;
        let told_at_ms =
            if event == Event::Ends { ran_until_ms.max(task.end_ms.unwrap_or(0)) } else { ran_until_ms };
        self.queue.push(Reverse((told_at_ms, event, place)));
    }

    fn fails(&mut self, at_ms: i64, place: usize, recipe: &mut dyn Recipe) {
        let task = &self.tasks[place];
        let reserved = self.reserved[place];
        self.waste(at_ms, place, reserved * task.duration_s * self.rules.fail_at / GB_HOUR);
        self.outcome.failed_core_hours +=
            task.cpu_cores_mean.unwrap_or(0.0) * task.duration_s * self.rules.fail_at / 3600.0;
        self.outcome.failed_attempts += 1;
        self.outcome.failed_tasks += u64::from(self.failures[place] == 0);
        self.failures[place] += 1;
        if self.failures[place] >= ATTEMPTS_MAX {
            self.outcome.lost_tasks += 1;
            return;
        }
        let next = recipe.retry(task, place, reserved, self.failures[place]);
        self.attempt(at_ms, place, next.max(reserved * 1.01), recipe);
    }

    fn ends(&mut self, at_ms: i64, place: usize, recipe: &mut dyn Recipe) {
        let task = &self.tasks[place];
        self.waste(at_ms, place, (self.reserved[place] - task.memory_peak_bytes) * task.duration_s / GB_HOUR);
        recipe.finished(task, place);
    }

    fn waste(&mut self, at_ms: i64, place: usize, gbh: f64) {
        self.outcome.waste_gbh += gbh;
        if self.cold[place] {
            self.outcome.cold_gbh += gbh;
        }
        let since = at_ms - self.tasks.first().map_or(0, |first| first.start_ms);
        self.outcome.course.push((since, self.outcome.waste_gbh));
    }
}

fn thin(course: Vec<(i64, f64)>) -> Vec<(i64, f64)> {
    let every = course.len().div_ceil(COURSE_MAX).max(1);
    let last = course.last().copied();
    let mut thinned: Vec<_> = course.into_iter().step_by(every).collect();
    if let Some(last) = last.filter(|last| thinned.last() != Some(last)) {
        thinned.push(last);
    }
    thinned
}
