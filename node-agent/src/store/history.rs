//! What predictions are made from.
//!
//! Which runs count is the column `worth` of the view `run_actual`:
//! - `sample`: it exited with 0;
//! - `lower_bound`: it failed and had met its limit on memory or tasks, so whatever it used it would have
//!   used more;
//! - `stopped`: somebody ended it (SIGHUP, SIGINT, SIGTERM). These count only where the task has no run
//!   that exited with 0, as with services;
//! - `none`: it is running, lost, was never executed, or failed by itself, which says little about a good run.

use crate::fingerprint::key::TaskKey;
use crate::predict::{HISTORY_MAX, History, Observation};
use rusqlite::{Connection, Params, Result, Row};

/// Of the users of one task type, only the most recently active count for the level "any user".
const TASK_USERS_MAX: usize = 32;

/// Columns of `run_actual` in the order of `Resource::ALL`, after `worth` and the flags.
const COLUMNS: &str = "worth, memory_censored, cpu_censored, tasks_censored,
    memory_peak_bytes, cpu_cores_mean, cpu_cores_peak, io_read_bytes_per_s, io_write_bytes_per_s,
    network_received_bytes_per_s, network_sent_bytes_per_s, tasks_peak, duration_s";

/// The history at each level of back-off, newest first.
pub(super) fn read(db: &Connection, key: &TaskKey) -> Result<History> {
    let own = format!(
        "SELECT {COLUMNS} FROM run_actual
         WHERE task_id = (SELECT id FROM task WHERE task_type = ? AND uid = ?) AND worth <> 'none'
         ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    );
    // Ids first, from the index alone: only the rows that are wanted are read.
    let task = format!(
        "SELECT {COLUMNS} FROM run_actual
         WHERE run_id IN (
             SELECT r.id FROM (
                 SELECT t.id FROM task t WHERE t.task_type = ?
                 ORDER BY (SELECT max(run.id) FROM run WHERE run.task_id = t.id) DESC LIMIT {TASK_USERS_MAX}
             ) t JOIN run r ON r.id IN (
                 SELECT run.id FROM run WHERE run.task_id = t.id ORDER BY run.id DESC LIMIT {HISTORY_MAX}
             ) ORDER BY r.id DESC LIMIT {HISTORY_MAX}
         ) AND worth <> 'none'
         ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    );
    let host = format!(
        "SELECT {COLUMNS} FROM run_actual WHERE worth <> 'none' ORDER BY run_id DESC LIMIT {HISTORY_MAX}"
    );
    Ok(History {
        task_and_user: level(db, &own, (&key.task_type, key.uid))?,
        task: level(db, &task, (&key.task_type,))?,
        host: level(db, &host, ())?,
    })
}

fn level(db: &Connection, sql: &str, parameters: impl Params) -> Result<Vec<Observation>> {
    let runs: Vec<(Worth, Observation)> =
        db.prepare_cached(sql)?.query_map(parameters, observation)?.collect::<Result<_>>()?;
    let any_sample = runs.iter().any(|(worth, _)| *worth == Worth::Sample);
    Ok(runs
        .into_iter()
        .filter(|(worth, _)| !(any_sample && *worth == Worth::Stopped))
        .map(|(_, observation)| observation)
        .collect())
}

#[derive(PartialEq)]
enum Worth {
    Sample,
    LowerBound,
    Stopped,
}

fn observation(row: &Row<'_>) -> Result<(Worth, Observation)> {
    let worth = match row.get_ref(0)?.as_str()? {
        "lower_bound" => Worth::LowerBound,
        "stopped" => Worth::Stopped,
        _ => Worth::Sample,
    };
    let (memory, cpu, tasks) = (row.get(1)?, row.get(2)?, row.get(3)?);
    let mut values = [None; 9];
    for (place, value) in values.iter_mut().enumerate() {
        *value = row.get(4 + place)?;
    }
    let censored = if worth == Worth::LowerBound {
        [true; 9]
    } else {
        [memory, cpu, cpu, false, false, false, false, tasks, false]
    };
    Ok((worth, Observation { values, censored }))
}
