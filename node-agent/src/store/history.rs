//! What predictions are made from: table `observation`, which a run enters when it ends.
//!
//! Which runs count is the column `worth`, from the view `run_actual`:
//! - `sample`: it exited with 0;
//! - `lower_bound`: it failed and had met its limit on memory or tasks, so whatever it used it would have
//!   used more;
//! - `stopped`: somebody ended it (SIGHUP, SIGINT, SIGTERM). These count only where the task has no run
//!   that exited with 0, as with services;
//! - `none`: it is running, lost, was never executed, or failed by itself, which says little about a good run.

use crate::fingerprint::key::TaskKey;
use crate::predict::{HISTORY_MAX, History, Observation};
use rusqlite::{Connection, Params, Result, Row, params};
use std::sync::LazyLock;

/// Of the users of one task type, only the most recently active count for the level "any user".
const TASK_USERS_MAX: usize = 32;

/// Columns of `observation` and of `run_actual` after the ids: `worth`, the flags, and the values in the
/// order of `Resource::ALL`.
pub(super) const COLUMNS: &str = "worth, memory_censored, cpu_censored, tasks_censored,
    memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s, io_write_bytes_per_s,
    network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s";

static OF_TASK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT run_id, {COLUMNS} FROM observation WHERE task_id = ? AND run_id > ?
         ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    )
});

static OF_HOST: LazyLock<String> = LazyLock::new(|| {
    format!("SELECT run_id, {COLUMNS} FROM observation ORDER BY run_id DESC LIMIT {HISTORY_MAX}")
});

/// The history at each level of back-off, newest first.
pub(super) fn read(db: &Connection, key: &TaskKey) -> Result<History> {
    let (own, task) = of_task_type(db, key)?;
    let host = newest(db, &OF_HOST, ())?;
    Ok(History { task_and_user: level(own), task: level(task), host: level(host) })
}

/// The newest runs of a task type: those of the user, and those of any user.
fn of_task_type(db: &Connection, key: &TaskKey) -> Result<(Vec<Run>, Vec<Run>)> {
    let (mut own, mut all) = (Vec::new(), Vec::new());
    for (task_id, uid) in users(db, key)? {
        // What is older than a full list is not read: many users together cost little more than one.
        let oldest = all.get(HISTORY_MAX - 1).map_or(0, |run: &Run| run.run_id);
        let runs = newest(db, &OF_TASK, (task_id, oldest))?;
        if uid == key.uid {
            own.clone_from(&runs);
        }
        all.extend(runs);
        all.sort_by_key(|run| std::cmp::Reverse(run.run_id));
        all.truncate(HISTORY_MAX);
    }
    Ok((own, all))
}

/// Rows of `task`, with the user asked for first, since all of its runs are wanted.
fn users(db: &Connection, key: &TaskKey) -> Result<Vec<(i64, u32)>> {
    db.prepare_cached(
        "SELECT id, uid FROM task WHERE task_type = ? ORDER BY uid = ? DESC, last_run_id DESC LIMIT ?",
    )?
    .query_map(params![key.task_type, key.uid, TASK_USERS_MAX as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
    .collect()
}

fn newest(db: &Connection, sql: &str, parameters: impl Params) -> Result<Vec<Run>> {
    db.prepare_cached(sql)?.query_map(parameters, run)?.collect()
}

fn level(runs: Vec<Run>) -> Vec<Observation> {
    let any_sample = runs.iter().any(|run| run.worth == Worth::Sample);
    runs.into_iter()
        .filter(|run| !(any_sample && run.worth == Worth::Stopped))
        .map(|run| run.observation)
        .collect()
}

#[derive(Clone)]
struct Run {
    run_id: i64,
    worth: Worth,
    observation: Observation,
}

#[derive(Clone, Copy, PartialEq)]
enum Worth {
    Sample,
    LowerBound,
    Stopped,
}

fn run(row: &Row<'_>) -> Result<Run> {
    let worth = match row.get_ref(1)?.as_str()? {
        "lower_bound" => Worth::LowerBound,
        "stopped" => Worth::Stopped,
        _ => Worth::Sample,
    };
    let (memory, cpu, tasks) = (row.get(2)?, row.get(3)?, row.get(4)?);
    let mut values = [None; 9];
    for (place, value) in values.iter_mut().enumerate() {
        *value = row.get(5 + place)?;
    }
    let censored = if worth == Worth::LowerBound {
        [true; 9]
    } else {
        [memory, cpu, cpu, false, false, false, false, tasks, false]
    };
    Ok(Run { run_id: row.get(0)?, worth, observation: Observation { values, censored } })
}
