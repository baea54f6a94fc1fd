//! Whole pasts, in and out: what a replay reads of every run that ended well, and runs that were measured elsewhere.

use super::read::IS_CGROUP;
use super::record::{Ending, NewRun};
use super::{Store, StoreError, read};
use crate::fingerprint::Measured;
use crate::fingerprint::key::Feature;
use rusqlite::{Connection, Result};

/// A run that ended well, as far as a replay cares.
#[derive(Clone, Debug, PartialEq)]
pub struct PastRun {
    /// Kind of task.
    pub task_type: String,
    /// Whose.
    pub user: String,
    /// Start, milliseconds since the epoch.
    pub started_at_ms: i64,
    /// Wall time, seconds.
    pub duration_s: f64,
    /// Peak memory, bytes.
    pub memory_peak_bytes: f64,
    /// Mean cores in use.
    pub cpu_cores_mean: Option<f64>,
    /// Memory limit that the user gave by hand, bytes.
    pub memory_limit_bytes: Option<f64>,
    /// What was known before it started.
    pub features: Vec<Feature>,
}

/// A run measured elsewhere.
#[derive(Clone, Debug)]
pub struct ForeignRun {
    /// Its beginning.
    pub run: NewRun,
    /// Its end, milliseconds since the epoch.
    pub ended_at_ms: i64,
    /// What is known of it.
    pub measured: Measured,
}

/// Runs written in one transaction.
pub const PORTION: usize = 1000;

impl Store {
    /// Writes down runs that ended well elsewhere.
    ///
    /// # Errors
    /// As [`Store::begin_run`]. What was written before stays.
    pub fn import(&mut self, runs: &[ForeignRun]) -> Result<(), StoreError> {
        let ending = Ending { exit_code: Some(0), ..Ending::default() };
        for portion in runs.chunks(PORTION) {
            self.batch(|store| {
                for foreign in portion {
                    let id = store.begin_run(&foreign.run)?;
                    store.finish_run(id, foreign.ended_at_ms, &ending, &foreign.measured)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Every run that ended well and whose memory was measured, in the order of their start. Cgroups that others made are not
/// among them: nothing is ever reserved for those.
pub(super) fn read(db: &Connection) -> Result<Vec<PastRun>> {
    let sql = format!(
        "SELECT o.run_id, t.task_type, t.user, r.started_at_ms, o.duration_s, o.memory_peak_bytes,
                      o.cpu_cores_mean, m.value
               FROM observation o JOIN run r ON r.id = o.run_id JOIN task t ON t.id = o.task_id
               JOIN run_launch l ON l.run_id = o.run_id
               LEFT JOIN limit_applied m
                    ON m.run_id = o.run_id AND m.name = 'memory_max_bytes' AND m.origin = 'manual'
               WHERE NOT {IS_CGROUP} AND o.worth = 'sample' AND o.memory_peak_bytes IS NOT NULL AND o.duration_s IS NOT NULL
               ORDER BY r.started_at_ms, o.run_id"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let runs = statement.query_map([], |row| {
        let id = super::record::RunId(row.get(0)?);
        Ok(PastRun {
            task_type: row.get(1)?,
            user: row.get(2)?,
            started_at_ms: row.get(3)?,
            duration_s: row.get(4)?,
            memory_peak_bytes: row.get(5)?,
            cpu_cores_mean: row.get(6)?,
            memory_limit_bytes: row.get(7)?,
            features: read::features(db, id)?,
        })
    })?;
    runs.collect()
}
