//! What became of predictions, of runs that ended and of those that go on: what bounds are calibrated with, and what a
//! run of a task that has not ended says about its length.

use super::history::features_of;
use super::write::resource_name;
use crate::fingerprint::key::TaskKey;
use crate::host;
use crate::predict::calibration::{OUTCOMES_MAX, Outcome, calibrates};
use crate::predict::{Observation, Resource};
use rusqlite::{Connection, Result, params};
use std::sync::LazyLock;

/// Runs of one task that go on and are looked at.
const PEERS_MAX: usize = 64;

/// The names of calibrated resources, as a list in SQL.
static CALIBRATED: LazyLock<String> = LazyLock::new(|| {
    let names = Resource::ALL.into_iter().filter(|resource| calibrates(*resource));
    names.map(|resource| format!("'{}'", resource_name(resource))).collect::<Vec<_>>().join(", ")
});

/// Of runs that ended by themselves. The values are those of table `observation`.
static ENDED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT p.resource, p.expected, p.width, p.risk, p.samples,
                CASE p.resource WHEN '{}' THEN o.duration_s ELSE o.cpu_cores_mean END
         FROM (SELECT run_id, duration_s, cpu_cores_mean FROM observation WHERE worth = 'sample'
               ORDER BY run_id DESC LIMIT {OUTCOMES_MAX}) o
         CROSS JOIN prediction p ON p.run_id = o.run_id AND p.resource IN ({})
         WHERE p.width IS NOT NULL AND p.level <> 'host' ORDER BY o.run_id DESC",
        resource_name(Resource::DurationS),
        *CALIBRATED
    )
});

/// Of runs that go on: how long they have.
static UNENDED: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT p.resource, p.expected, p.width, p.risk, p.samples, (? - r.started_at_ms) / 1e3
         FROM run r CROSS JOIN prediction p ON p.run_id = r.id AND p.resource = '{}'
         WHERE r.state = 'running' AND p.width IS NOT NULL AND p.level <> 'host' ORDER BY r.id DESC LIMIT {OUTCOMES_MAX}",
        resource_name(Resource::DurationS)
    )
});

/// What became of the newest predictions, first of runs that ended and then of those that go on.
pub(super) fn read(db: &Connection) -> Result<Vec<Outcome>> {
    let outcome = |row: &rusqlite::Row<'_>, ended| {
        let name = row.get_ref(0)?.as_str()?;
        let resource = Resource::ALL.into_iter().find(|resource| resource_name(*resource) == name);
        let (Some(resource), Some(actual)) = (resource, row.get(5)?) else { return Ok(None) };
        let (expected, width, risk) = (row.get(1)?, row.get(2)?, row.get(3)?);
        let samples = usize::try_from(row.get::<_, i64>(4)?).unwrap_or(0);
        Ok(Some(Outcome { resource, expected, width, risk, samples, actual, ended }))
    };
    let mut ended = db.prepare_cached(&ENDED)?;
    let ended = ended.query_map([], |row| outcome(row, true))?;
    let mut unended = db.prepare_cached(&UNENDED)?;
    let unended = unended.query_map([host::now_ms()], |row| outcome(row, false))?;
    ended.chain(unended).filter_map(Result::transpose).collect()
}

/// Runs of a task that go on, with how long they have.
pub(super) fn running(db: &Connection, key: &TaskKey) -> Result<Vec<Observation>> {
    let sql = format!(
        "SELECT r.id, (?1 - r.started_at_ms) / 1e3
         FROM run r CROSS JOIN task t ON t.id = r.task_id
         WHERE r.state = 'running' AND t.task_type = ?2 AND t.uid = ?3 ORDER BY r.id DESC LIMIT {PEERS_MAX}"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let runs = statement.query_map(params![host::now_ms(), key.task_type, key.uid], |row| {
        let mut run = Observation { features: features_of(db, row.get(0)?)?, ..Observation::default() };
        run.values[Resource::DurationS as usize] = row.get(1)?;
        Ok(run)
    })?;
    runs.collect()
}
