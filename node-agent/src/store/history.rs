//! What predictions are made from: table `observation`, which a run enters when it ends.
//!
//! Which runs count is the column `worth`, from the view `run_actual`:
//! - `sample`: it exited with 0;
//! - `lower_bound`: it failed and had met its limit on memory or tasks, so whatever it used it would have
//!   used more;
//! - `stopped`: somebody ended it (SIGHUP, SIGINT, SIGTERM). These count only where the task has no run
//!   that exited with 0, as with services;
//! - `none`: it is running, lost, was never executed, or failed by itself, which says little about a good run.

use super::outcomes;
use super::read::collect;
use crate::fingerprint::key::{Feature, FeatureValue, TaskKey};
use crate::predict::{HISTORY_MAX, History, Observation, RESOURCES};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Result, Row, params};
use std::sync::LazyLock;

/// Of the users of one task type, only the most recently active count for the level "any user".
const TASK_USERS_MAX: usize = 32;

/// Columns of `observation` after the ids, as `run_actual` has them.
pub(super) const COLUMNS: &str = "worth, memory_censored, cpu_censored, tasks_censored,
    memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s, io_write_bytes_per_s,
    network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s,
    cpu_cores_p95_100ms, cpu_cores_p95_1s, io_read_ops_per_s, io_write_ops_per_s";

/// What is read of them: few columns, since their number is what a history costs. The values are in the
/// order of `Resource::ALL`. Limits are literals: SQLite prepares a statement anew whenever a bound limit is
/// bound again, which would take as long as reading.
fn select(of: &str) -> String {
    format!(
        "SELECT run_id, flags, memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s,
                io_write_bytes_per_s, network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s,
                cpu_cores_p95_100ms, cpu_cores_p95_1s, io_read_ops_per_s, io_write_ops_per_s
         FROM observation {of} ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    )
}

pub(super) static OF_TASK: LazyLock<String> = LazyLock::new(|| select("WHERE task_id = ? AND run_id > ?"));
static USERS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT id, uid FROM task WHERE task_type = ? ORDER BY uid = ? DESC, last_run_id DESC LIMIT {TASK_USERS_MAX}"
    )
});
/// The index alone answers it.
static RUNS_OF_TASK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT run_id FROM observation WHERE task_id = ? AND run_id > ? ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    )
});
static OF_HOST: LazyLock<String> = LazyLock::new(|| select(""));

/// The history at each level of back-off, newest first.
pub(super) fn read(db: &Connection, key: &TaskKey) -> Result<History> {
    let (History { task_and_user, task, .. }, _) = of_task(db, key)?;
    Ok(History { task_and_user, task, ..around(db, key, true)? })
}

/// What the runs of a task itself say, and which these are.
pub(super) fn of_task(db: &Connection, key: &TaskKey) -> Result<(History, RunsBehind)> {
    let (mut own, mut task) = of_users(db, key, &OF_TASK, run, |run| run.run_id)?;
    let ids = |runs: &[Run]| runs.iter().map(|run| run.run_id).collect();
    let behind = RunsBehind { own: ids(&own), task: ids(&task) };
    // What is known of runs by others matters only where there are none of this user.
    let speaks = if own.is_empty() { &mut task } else { &mut own };
    features(db, speaks)?;
    Ok((History { task_and_user: level(own), task: level(task), ..History::default() }, behind))
}

/// Which runs the two levels of a task are made of. A run is never changed once it is among them, nor is its number given
/// to another, so as long as these stay, so does what was learnt from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunsBehind {
    own: Vec<i64>,
    task: Vec<i64>,
}

impl RunsBehind {
    /// What it takes in memory beside itself, bytes.
    pub fn bytes(&self) -> usize {
        (self.own.capacity() + self.task.capacity()) * size_of::<i64>()
    }
}

/// Those of a task now.
pub(super) fn runs_behind(db: &Connection, key: &TaskKey) -> Result<RunsBehind> {
    let (own, task) = of_users(db, key, &RUNS_OF_TASK, |row| row.get(0), |run| *run)?;
    Ok(RunsBehind { own, task })
}

/// What predictions need beside what was learnt of the task: the runs of other tasks only `with_host`.
pub(super) fn around(db: &Connection, key: &TaskKey, with_host: bool) -> Result<History> {
    let host = if with_host { level(collect(db, &OF_HOST, (), run)?) } else { Vec::new() };
    let (running, outcomes) = (outcomes::running(db, key)?, outcomes::read(db)?);
    Ok(History { host, running, outcomes, ..History::default() })
}

/// What `sql` gives of the newest runs of a task type: of those of the user, and of those of any user.
fn of_users<T: Clone>(
    db: &Connection,
    key: &TaskKey,
    sql: &str,
    row: fn(&Row<'_>) -> Result<T>,
    run_id: fn(&T) -> i64,
) -> Result<(Vec<T>, Vec<T>)> {
    let (mut own, mut all) = (Vec::new(), Vec::new());
    for (task_id, uid) in users(db, key)? {
        // What is older than a full list is not read: many users together cost little more than one.
        let oldest = all.get(HISTORY_MAX - 1).map_or(0, run_id);
        let runs = collect(db, sql, (task_id, oldest), row)?;
        if uid == key.uid {
            own.clone_from(&runs);
        }
        all.extend(runs);
        all.sort_by_key(|run| std::cmp::Reverse(run_id(run)));
        all.truncate(HISTORY_MAX);
    }
    Ok((own, all))
}

/// Rows of `task`, with the user asked for first, since all of its runs are wanted.
fn users(db: &Connection, key: &TaskKey) -> Result<Vec<(i64, u32)>> {
    collect(db, &USERS, params![key.task_type, key.uid], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn features(db: &Connection, runs: &mut [Run]) -> Result<()> {
    runs.iter_mut().try_for_each(|run| {
        run.observation.features = features_of(db, run.run_id)?;
        Ok(())
    })
}

/// The features of a run. The host's name never varies here, so it is not read.
pub(super) fn features_of(db: &Connection, run_id: i64) -> Result<Vec<Feature>> {
    let mut statement = db.prepare_cached(FEATURES)?;
    let features = statement.query_map([run_id], |row| {
        let value = match row.get_ref(1)? {
            ValueRef::Real(number) => FeatureValue::Number(number),
            _ => FeatureValue::Category(row.get::<_, Option<String>>(2)?.unwrap_or_default()),
        };
        Ok(Feature { name: row.get(0)?, value })
    })?;
    features.collect()
}

const FEATURES: &str = "SELECT name, number, category FROM run_feature WHERE run_id = ? AND name <> 'host'";

fn level(runs: Vec<Run>) -> Vec<Observation> {
    let any_sample = runs.iter().any(|run| run.flags & (LOWER_BOUND | STOPPED) == 0);
    runs.into_iter()
        .filter(|run| !any_sample || run.flags & STOPPED == 0)
        .map(|run| run.observation)
        .collect()
}

#[derive(Clone)]
struct Run {
    run_id: i64,
    flags: i64,
    observation: Observation,
}

/// Bits of `observation.flags`.
const MEMORY: i64 = 1;
const CPU: i64 = 2;
const TASKS: i64 = 4;
const LOWER_BOUND: i64 = 8;
const STOPPED: i64 = 16;

/// `observation.flags` from the columns of `run_actual`.
pub(super) fn flags_sql() -> String {
    format!(
        "{MEMORY} * memory_censored + {CPU} * cpu_censored + {TASKS} * tasks_censored
         + {LOWER_BOUND} * (worth = 'lower_bound') + {STOPPED} * (worth = 'stopped')"
    )
}

fn run(row: &Row<'_>) -> Result<Run> {
    let flags: i64 = row.get(1)?;
    let mut values = [None; RESOURCES];
    for (place, value) in values.iter_mut().enumerate() {
        *value = match row.get_ref(2 + place)? {
            ValueRef::Real(number) => Some(number),
            ValueRef::Integer(number) => Some(number as f64),
            _ => None,
        };
    }
    Ok(Run {
        run_id: row.get(0)?,
        flags,
        observation: Observation { values, censored: censored(flags), features: Vec::new() },
    })
}

fn censored(flags: i64) -> [bool; RESOURCES] {
    let has = |flag| flags & flag != 0;
    if has(LOWER_BOUND) {
        return [true; RESOURCES];
    }
    let (memory, cpu, tasks) = (has(MEMORY), has(CPU), has(TASKS));
    [memory, cpu, cpu, false, false, false, false, tasks, false, cpu, cpu, false, false]
}
