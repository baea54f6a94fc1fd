//! From the database to everything that the page shows. Bounded: see the constants.

use crate::backtest::recipe::{self, Retry};
use crate::backtest::trace::Trace;
use crate::backtest::{Outcome, Rules, own, replay};
use crate::fingerprint::character::Character;
use crate::fingerprint::key::TaskKey;
use crate::host;
use crate::live::Kind;
use crate::predict::explain::{Explanation, explain};
use crate::predict::{Prediction, predict};
use crate::store::event::{EventRow, Filter, Severity};
use crate::store::failover::FailoverRow;
use crate::store::read::{AccuracyRow, AccuracySummary, RunDetail, RunRow, TaskRow};
use crate::store::{Reader, StoreError};

/// Tasks that have a section of their own on the page of a host: the latest.
pub(super) const TASKS_MAX: usize = 12;
/// Runs of a task that are drawn: the newest.
pub(super) const RUNS_MAX: usize = 200;
/// Runs on the timeline of a host: the newest.
pub(super) const TIMELINE_MAX: usize = 500;
/// Failovers that are drawn: the newest.
pub(super) const FAILOVERS_MAX: usize = 200;
/// Warnings and errors that are listed: the newest.
pub(super) const EVENTS_MAX: usize = 50;
/// Steps of limits that are drawn over one run.
const STEPS_MAX: usize = 1000;
/// Runs that are replayed for the comparison with presets: the newest.
pub(super) const REPLAYED_MAX: usize = 20_000;

/// What the page is about.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// One kind of task, or all of the host.
    pub task: Option<&'a str>,
    /// Probability of exceeding a predicted bound.
    pub risk: f64,
    /// What no reservation exceeds, bytes.
    pub host_bytes: f64,
}

/// Everything that the page shows.
#[derive(Debug)]
pub struct Report {
    /// Name of the host.
    pub host: String,
    /// When it was made, milliseconds since 1970.
    pub at_ms: i64,
    /// The kind of task it is about; all where there is none.
    pub scope: Option<String>,
    /// A row per task and user.
    pub tasks: Vec<TaskRow>,
    /// Cgroups of others that were measured as well, and are not among them.
    pub cgroups_left_out: usize,
    /// The newest runs, newest first.
    pub runs: Vec<RunRow>,
    /// Tasks with a section of their own, the latest first.
    pub parts: Vec<TaskPart>,
    /// How good predictions were.
    pub accuracy: Vec<AccuracySummary>,
    /// The newest failovers, newest first.
    pub failovers: Vec<FailoverRow>,
    /// What went wrong, newest first.
    pub events: Vec<EventRow>,
    /// What each way of sizing memory would have wasted.
    pub outcomes: Vec<Outcome>,
    /// The same of those runs alone whose user had asked for an amount; empty where there are none.
    pub with_request: Vec<Outcome>,
    /// What a run without a request reserves, bytes.
    pub host_bytes: f64,
}

/// One kind of task.
#[derive(Debug)]
pub struct TaskPart {
    /// Its name.
    pub name: String,
    /// Its newest runs, newest first.
    pub runs: Vec<RunRow>,
    /// What was predicted for them.
    pub predicted: Vec<AccuracyRow>,
    /// Its last good run, else its last.
    pub last: Option<RunDetail>,
    /// What that run is like.
    pub character: Option<Character>,
    /// What the next like that is expected to need.
    pub next: Prediction,
    /// How limits followed that run, oldest first.
    pub steps: Vec<EventRow>,
}

/// Reads everything; `None` where the task that is asked for never ran, or no task did. `progress` hears how many
/// steps of how many are done.
///
/// # Errors
/// When the database can't be read.
pub fn gather(
    reader: &Reader,
    scope: Scope<'_>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Option<Report>, StoreError> {
    let wanted = |row: &TaskRow| scope.task.is_none_or(|task| row.task_type == task);
    let mut tasks: Vec<_> = reader.tasks()?.into_iter().filter(wanted).collect();
    if tasks.is_empty() {
        return Ok(None);
    }
    let known = tasks.len();
    // What others run is told of where it is all there is, or asked for by name.
    let is_of_others = tasks.iter().all(|row| row.kind == Kind::Cgroup);
    tasks.retain(|row| is_of_others || row.kind == Kind::Run);
    let runs = match scope.task {
        None if !is_of_others => reader.runs_started(TIMELINE_MAX)?,
        task => reader.runs(task, TIMELINE_MAX)?,
    };
    let mut names: Vec<&str> = Vec::new();
    for row in &tasks {
        if !names.contains(&row.task_type.as_str()) {
            names.push(&row.task_type);
        }
    }
    names.truncate(TASKS_MAX);
    // A part for each task, and one for the replay.
    let steps = names.len() + 1;
    let mut parts = Vec::new();
    for (done, name) in names.iter().enumerate() {
        progress(done, steps);
        parts.push(part(reader, name, scope.risk)?);
    }
    progress(steps - 1, steps);
    let (outcomes, with_request) = compared(reader, scope)?;
    progress(steps, steps);
    let severe =
        Filter { severity: Severity::Warning, task_type: scope.task.map(str::to_owned), ..Filter::default() };
    Ok(Some(Report {
        host: host::name(),
        at_ms: host::now_ms(),
        scope: scope.task.map(str::to_owned),
        cgroups_left_out: known - tasks.len(),
        runs,
        accuracy: reader.accuracy_summary(scope.task)?,
        failovers: reader.failovers(scope.task, FAILOVERS_MAX)?,
        events: reader.events(&severe, EVENTS_MAX)?,
        tasks,
        parts,
        outcomes,
        with_request,
        host_bytes: scope.host_bytes,
    }))
}

fn part(reader: &Reader, name: &str, risk: f64) -> Result<TaskPart, StoreError> {
    let runs = reader.runs(Some(name), RUNS_MAX)?;
    let last = runs.iter().find(|run| run.state == "finished").or(runs.first());
    let last = last.map(|run| reader.run(run.run_id)).transpose()?.flatten();
    let predicted = reader.accuracy(Some(name), RUNS_MAX * crate::predict::Resource::ALL.len())?;
    let (mut character, mut next, mut steps) = (None, Prediction::default(), Vec::new());
    if let Some(run) = &last {
        let key = TaskKey { task_type: name.to_owned(), uid: run.run.uid };
        let history = reader.history(&key)?;
        let explanation = explain(&history, &run.features);
        let growth = explanation.as_ref().and_then(Explanation::growth);
        character = Some(Character::new(&run.fingerprint, &run.series, growth));
        next = predict(&history, &run.features, risk);
        let of_run = Filter { run: Some(run.run.run_id.0), ..Filter::default() };
        steps = reader.events(&of_run, STEPS_MAX)?;
        steps.reverse();
    }
    Ok(TaskPart { name: name.to_owned(), runs, predicted, last, character, next, steps })
}

/// The past of these tasks, replayed with every way of sizing memory: all of it, and the runs with a request.
fn compared(reader: &Reader, scope: Scope<'_>) -> Result<(Vec<Outcome>, Vec<Outcome>), StoreError> {
    let past = reader.past()?;
    let wanted = |task: &str| scope.task.is_none_or(|name| name == task);
    let mut past: Vec<_> = past.into_iter().filter(|run| wanted(&run.task_type)).collect();
    past.drain(..past.len().saturating_sub(REPLAYED_MAX));
    let trace = own::history(&past);
    let tasks = trace.tasks.iter().filter(|task| task.memory_request_bytes.is_some()).cloned().collect();
    let asked = Trace { tasks, ..Trace::default() };
    Ok((each_way(&trace, scope.host_bytes), each_way(&asked, scope.host_bytes)))
}

/// What every way of sizing comes to, the user's preset first and standin last.
fn each_way(trace: &Trace, host_bytes: f64) -> Vec<Outcome> {
    if trace.tasks.is_empty() {
        return Vec::new();
    }
    let rules = Rules { host_bytes, ..Rules::default() };
    let mut recipes = recipe::all(Retry::Kill, host_bytes);
    recipes.iter_mut().map(|recipe| replay(trace, rules, recipe.as_mut())).collect()
}
