//! How runs came in: what they were promised, how long they waited for it, and their licences.

use super::columns::integer;
use super::record::{Admission, LicensesUsed, RunId};
use super::write::finite;
use crate::fingerprint::key::TaskKey;
use crate::predict::licenses::RUNS_MAX;
use crate::size::admission::{Licenses, Promise};
use rusqlite::{Connection, OptionalExtension, Result, params};
use std::collections::BTreeMap;

pub(super) fn write(db: &Connection, id: RunId, came_in: &Admission) -> Result<()> {
    db.prepare_cached("INSERT INTO run_admission VALUES (?, ?, ?, ?, ?, ?)")?.execute(params![
        id.0,
        came_in.priority,
        integer(came_in.waited_ms),
        integer(came_in.promise.memory_bytes),
        finite(came_in.promise.cpu_cores),
        came_in.overcommitted,
    ])?;
    let mut insert =
        db.prepare_cached("INSERT INTO run_license (run_id, license, taken) VALUES (?, ?, ?)")?;
    came_in
        .promise
        .licenses
        .iter()
        .try_for_each(|(name, taken)| insert.execute(params![id.0, name, taken]).map(|_| ()))
}

/// Keeps how a run used licences; what was kept before of the same pool is older.
pub(super) fn licenses_used(db: &Connection, id: RunId, licenses: &LicensesUsed) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO run_license (run_id, license, taken, used_peak, first_used_at_ms, waited_ms, held_ms)
         SELECT id, ?2, 0, ?3, ?4, ?5, ?6 FROM run WHERE id = ?1
         ON CONFLICT (run_id, license) DO UPDATE SET
             used_peak = max(ifnull(used_peak, 0), excluded.used_peak),
             first_used_at_ms = min(ifnull(first_used_at_ms, excluded.first_used_at_ms), excluded.first_used_at_ms),
             waited_ms = excluded.waited_ms, held_ms = excluded.held_ms",
    )?;
    licenses.iter().try_for_each(|(name, used)| {
        let waited_ms = used.waited_ms.map(integer);
        let values = params![id.0, name, used.peak, used.first_at_ms, waited_ms, integer(used.held_ms)];
        insert.execute(values).map(|_| ())
    })
}

/// How a run came in; `None` if no agent let it in.
pub(super) fn read(db: &Connection, id: RunId) -> Result<Option<Admission>> {
    let licenses = db
        .prepare_cached("SELECT license, taken FROM run_license WHERE run_id = ? AND taken > 0")?
        .query_map([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Licenses>>()?;
    db.prepare_cached("SELECT * FROM run_admission WHERE run_id = ?")?
        .query_row([id.0], |row| {
            Ok(Admission {
                priority: row.get("priority")?,
                waited_ms: row.get::<_, i64>("waited_ms")?.cast_unsigned(),
                promise: Promise {
                    memory_bytes: row.get::<_, i64>("promised_memory_bytes")?.cast_unsigned(),
                    cpu_cores: row.get("promised_cpu_cores")?,
                    licenses,
                },
                overcommitted: row.get("overcommitted")?,
            })
        })
        .optional()
}

/// The most licences of each pool that each of the newest runs of a task used at once, of those whose connections were
/// seen; 0 for one that used none of a pool.
pub(super) fn used(db: &Connection, key: &TaskKey) -> Result<BTreeMap<String, Vec<u32>>> {
    let runs: Vec<i64> = db
        .prepare_cached(
            "SELECT o.run_id FROM task t CROSS JOIN observation o ON o.task_id = t.id CROSS JOIN run r ON r.id = o.run_id
             WHERE t.task_type = ?1 AND t.uid = ?2 AND r.engine <> 'accounting' ORDER BY o.run_id DESC LIMIT ?3",
        )?
        .query_map(params![key.task_type, key.uid, RUNS_MAX as i64], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut used: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut of_run =
        db.prepare_cached("SELECT license, used_peak FROM run_license WHERE run_id = ? AND used_peak > 0")?;
    for (place, run) in runs.iter().enumerate() {
        let mut rows = of_run.query([run])?;
        while let Some(row) = rows.next()? {
            let of_runs = used.entry(row.get(0)?).or_insert_with(|| vec![0; runs.len()]);
            of_runs[place] = row.get(1)?;
        }
    }
    Ok(used)
}

/// The most licences that one of the newest runs of a task was seen to use.
pub(super) fn learned(db: &Connection, key: &TaskKey) -> Result<Licenses> {
    db.prepare_cached(
        "SELECT l.license, max(l.used_peak) FROM run_license l
         WHERE l.used_peak > 0 AND l.run_id IN (
             SELECT r.id FROM task t JOIN run r ON r.task_id = t.id
             WHERE t.task_type = ?1 AND t.uid = ?2 ORDER BY r.id DESC LIMIT ?3)
         GROUP BY l.license",
    )?
    .query_map(params![key.task_type, key.uid, RUNS_MAX as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
    .collect()
}
