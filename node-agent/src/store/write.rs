//! The writes, each within a transaction of the caller. Those on a running run return whether there was one.

use super::columns::{self, integer, json};
use super::demand;
use super::peers;
use super::record::{Ending, Engine, NewRun, RunId};
use super::{admission, history};
use crate::fingerprint::key::{Feature, FeatureValue};
use crate::fingerprint::series::{Point, Series};
use crate::fingerprint::{Coverage, Fingerprint, Measured};
use crate::host::ProcessId;
use crate::predict::{Level, Prediction, Resource};
use crate::size::{Limit, Limits, Origin, Policy};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Result, params, params_from_iter};
use std::sync::LazyLock;

pub(super) fn begin(db: &Connection, run: &NewRun) -> Result<RunId> {
    let task = task_id(db, run)?;
    db.prepare_cached(
        "INSERT INTO run (task_id, state, started_at_ms, engine, policy) VALUES (?, 'running', ?, ?, ?)",
    )?
    .execute(params![task, run.started_at_ms, engine_name(run.engine), policy_name(run.policy)])?;
    let id = RunId(db.last_insert_rowid());
    launch(db, id, run)?;
    features(db, id, &run.features)?;
    prediction(db, id, &run.prediction)?;
    limits(db, id, &run.limits)?;
    if let Some(came_in) = &run.admission {
        admission::write(db, id, came_in)?;
    }
    Ok(id)
}

fn launch(db: &Connection, id: RunId, run: &NewRun) -> Result<()> {
    let main = run.main.as_ref();
    db.prepare_cached(
        "INSERT INTO run_launch (run_id, owner_pid, owner_start_ticks, owner_boot_id, main_pid, main_start_ticks,
                                 main_boot_id, cgroup_path, cgroup_id, directory, command)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        id.0,
        run.owner.pid,
        integer(run.owner.start_ticks),
        run.owner.boot_id,
        main.map(|main| main.pid),
        main.map(|main| integer(main.start_ticks)),
        main.map(|main| &main.boot_id),
        run.cgroup.as_ref().map(|(path, _)| path),
        run.cgroup.as_ref().map(|(_, id)| integer(*id)),
        run.directory,
        json(&run.command),
    ])
    .map(|_| ())
}

fn task_id(db: &Connection, run: &NewRun) -> Result<i64> {
    // The name of a user may change; the number is who it is.
    db.prepare_cached(
        "INSERT INTO task (task_type, uid, user) VALUES (?, ?, ?)
         ON CONFLICT (task_type, uid) DO UPDATE SET user = excluded.user RETURNING id",
    )?
    .query_row(params![run.key.task_type, run.key.uid, run.user], |row| row.get(0))
}

/// A feature given twice counts once: the last.
fn features(db: &Connection, id: RunId, features: &[Feature]) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR REPLACE INTO run_feature (run_id, name, number, category) VALUES (?, ?, ?, ?)",
    )?;
    for feature in features {
        let (number, category) = match &feature.value {
            FeatureValue::Number(number) if number.is_finite() => (Some(*number), None),
            FeatureValue::Number(number) => (None, Some(number.to_string())),
            FeatureValue::Category(word) => (None, Some(word.clone())),
        };
        insert.execute(params![id.0, feature.name, number, category])?;
    }
    Ok(())
}

fn prediction(db: &Connection, id: RunId, prediction: &Prediction) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR REPLACE INTO prediction (run_id, resource, expected, upper, risk, samples, level, width, reason)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    for estimate in &prediction.estimates {
        insert.execute(params![
            id.0,
            resource_name(estimate.resource),
            finite(estimate.expected),
            finite(estimate.upper),
            finite(estimate.risk),
            integer(estimate.samples as u64),
            level_name(estimate.level),
            estimate.width.filter(|width| width.is_finite()),
            estimate.reason,
        ])?;
    }
    Ok(())
}

/// Of two limits of one kind the one given by hand counts, which comes first.
fn limits(db: &Connection, id: RunId, limits: &Limits) -> Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO limit_applied (run_id, name, value, origin) VALUES (?, ?, ?, ?)",
    )?;
    for (limit, origin) in &limits.0 {
        let (name, value) = limit_parts(*limit);
        insert.execute(params![id.0, name, finite(value), origin_name(*origin)])?;
    }
    Ok(())
}

fn is_running(db: &Connection, id: RunId) -> Result<bool> {
    db.prepare_cached("SELECT 1 FROM run WHERE id = ? AND state = 'running'")?.exists([id.0])
}

fn has_main(db: &Connection, id: RunId) -> Result<bool> {
    db.prepare_cached("SELECT 1 FROM run_launch WHERE run_id = ? AND main_pid IS NOT NULL")?.exists([id.0])
}

pub(super) fn set_main(db: &Connection, id: RunId, main: &ProcessId) -> Result<bool> {
    if !is_running(db, id)? {
        return Ok(false);
    }
    db.prepare_cached(
        "UPDATE run_launch SET main_pid = ?, main_start_ticks = ?, main_boot_id = ? WHERE run_id = ?",
    )?
    .execute(params![main.pid, integer(main.start_ticks), main.boot_id, id.0])
    .map(|rows| rows == 1)
}

pub(super) fn adopt(db: &Connection, id: RunId, owner: &ProcessId) -> Result<bool> {
    if !is_running(db, id)? {
        return Ok(false);
    }
    db.prepare_cached(
        "UPDATE run_launch SET owner_pid = ?, owner_start_ticks = ?, owner_boot_id = ? WHERE run_id = ?",
    )?
    .execute(params![owner.pid, integer(owner.start_ticks), owner.boot_id, id.0])
    .map(|rows| rows == 1)
}

pub(super) fn close_lost(db: &Connection, id: RunId, ended_at_ms: i64) -> Result<bool> {
    db.prepare_cached("UPDATE run SET state = 'lost', ended_at_ms = ? WHERE id = ? AND state = 'running'")?
        .execute(params![ended_at_ms, id.0])
        .map(|rows| rows == 1)
}

pub(super) fn checkpoint(db: &Connection, id: RunId, measured: &Measured) -> Result<bool> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        format!("UPDATE run SET {} = ?, coverage_id = ? WHERE id = ?", columns::COLUMNS.join(" = ?, "))
    });
    if !is_running(db, id)? {
        return Ok(false);
    }
    let coverage = coverage_id(db, &measured.coverage)?;
    let values = columns::values(&measured.fingerprint)
        .into_iter()
        .chain([Value::Integer(coverage), Value::Integer(id.0)]);
    db.prepare_cached(&SQL)?.execute(params_from_iter(values))?;
    histograms(db, id, &measured.fingerprint)?;
    demand::write(db, id, measured.fingerprint.cpu_demand.as_ref())?;
    peers::write(db, id, measured.fingerprint.peers.as_deref())?;
    series(db, id, &measured.series)?;
    Ok(true)
}

/// The row that has this text, made if there is none. A trigger deletes it with the last run that has it.
fn coverage_id(db: &Connection, coverage: &Coverage) -> Result<i64> {
    let sources = json(coverage);
    let known = db
        .prepare_cached("SELECT id FROM coverage WHERE sources = ?")?
        .query_row([&sources], |row| row.get(0))
        .optional()?;
    if let Some(id) = known {
        return Ok(id);
    }
    db.prepare_cached("INSERT INTO coverage (sources) VALUES (?)")?.insert([&sources])
}

fn histograms(db: &Connection, id: RunId, fingerprint: &Fingerprint) -> Result<()> {
    db.prepare_cached("DELETE FROM run_histogram WHERE run_id = ?")?.execute([id.0])?;
    let mut insert =
        db.prepare_cached("INSERT INTO run_histogram (run_id, kind, counts) VALUES (?, ?, ?)")?;
    for (kind, counts) in columns::histograms(fingerprint) {
        if let Some(counts) = counts {
            insert.execute(params![id.0, kind, json(counts)])?;
        }
    }
    Ok(())
}

pub(super) fn finish(
    db: &Connection,
    id: RunId,
    ended_at_ms: i64,
    ending: &Ending,
    measured: &Measured,
) -> Result<bool> {
    if !checkpoint(db, id, measured)? {
        return Ok(false);
    }
    // A cgroup that others made has no main process and so no status.
    let well = match ending {
        Ending { exit_code: None, signal: None, exec_errno: None, .. } => !has_main(db, id)?,
        ending => ending.exit_code == Some(0) && ending.exec_errno.is_none() && ending.signal.is_none(),
    };
    db.prepare_cached(
        "UPDATE run SET state = ?, ended_at_ms = ?, exit_code = ?, signal = ?, exec_errno = ?,
                        out_of_memory = ?, out_of_tasks = ?, throttled = ? WHERE id = ?",
    )?
    .execute(params![
        if well { "finished" } else { "failed" },
        ended_at_ms,
        ending.exit_code,
        ending.signal,
        ending.exec_errno,
        ending.out_of_memory,
        ending.out_of_tasks,
        ending.throttled,
        id.0
    ])?;
    observation(db, id)?;
    Ok(true)
}

/// What predictions will see of a run that ended, if it is worth something.
fn observation(db: &Connection, id: RunId) -> Result<()> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let (columns, flags) = (history::COLUMNS, history::flags_sql());
        format!(
            "INSERT INTO observation (run_id, task_id, {columns}, flags)
             SELECT run_id, task_id, {columns}, {flags} FROM run_actual WHERE run_id = ? AND worth <> 'none'"
        )
    });
    db.prepare_cached(&SQL)?.execute([id.0]).map(|_| ())
}

/// Brings the stored series up to `series`. A series grows at its end, or neighbours merge: points before
/// the first difference stay as they are, so a checkpoint of a long run writes few rows.
fn series(db: &Connection, id: RunId, series: &Series) -> Result<()> {
    let stored: Vec<(u64, u64)> = db
        .prepare_cached("SELECT at_ms, length_ms FROM run_series WHERE run_id = ? ORDER BY at_ms")?
        .query_map([id.0], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        })?
        .collect::<Result<_>>()?;
    let points = series.points();
    let same = stored
        .iter()
        .zip(points)
        .take_while(|((at_ms, length_ms), point)| *at_ms == point.at_ms && *length_ms == point.length_ms)
        .count();
    if same < stored.len() {
        let kept_to = points[..same].last().map_or(-1, |point| integer(point.at_ms));
        db.prepare_cached("DELETE FROM run_series WHERE run_id = ? AND at_ms > ?")?
            .execute(params![id.0, kept_to])?;
    }
    points[same..].iter().try_for_each(|point| insert_point(db, id, point))
}

fn insert_point(db: &Connection, id: RunId, point: &Point) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO run_series VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?
        .execute(params![
            id.0,
            integer(point.at_ms),
            integer(point.length_ms),
            finite(point.cpu_cores),
            integer(point.memory_bytes),
            finite(point.read_bytes_per_s),
            finite(point.write_bytes_per_s),
            finite(point.received_bytes_per_s),
            finite(point.sent_bytes_per_s),
        ])
        .map(|_| ())
}

/// SQLite makes NULL of NaN, which these columns refuse: one odd number must not lose the whole row.
pub(super) fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

pub(super) fn engine_name(engine: Engine) -> &'static str {
    match engine {
        Engine::Agent => "agent",
        Engine::Embedded => "embedded",
        Engine::Accounting => "accounting",
    }
}

pub(super) fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Elastic => "elastic",
        Policy::Strict => "strict",
        Policy::Observe => "observe",
    }
}

pub(super) fn level_name(level: Level) -> &'static str {
    match level {
        Level::TaskAndUser => "task_and_user",
        Level::Task => "task",
        Level::Host => "host",
    }
}

pub(super) fn origin_name(origin: Origin) -> &'static str {
    match origin {
        Origin::Predicted => "predicted",
        Origin::Manual => "manual",
    }
}

/// The name of a resource in the database, and the columns of `run_actual`.
pub(super) fn resource_name(resource: Resource) -> &'static str {
    match resource {
        Resource::MemoryPeakBytes => "memory_peak_bytes",
        Resource::CpuCoresMean => "cpu_cores_mean",
        Resource::CpuCoresPeak => "cpu_cores_peak",
        Resource::IoReadBytesPerS => "io_read_bytes_per_s",
        Resource::IoWriteBytesPerS => "io_write_bytes_per_s",
        Resource::NetworkReceivedBytesPerS => "network_received_bytes_per_s",
        Resource::NetworkSentBytesPerS => "network_sent_bytes_per_s",
        Resource::TasksPeak => "tasks_peak",
        Resource::DurationS => "duration_s",
        Resource::CpuCoresP95Of100Ms => "cpu_cores_p95_100ms",
        Resource::CpuCoresP95Of1S => "cpu_cores_p95_1s",
        Resource::IoReadOpsPerS => "io_read_ops_per_s",
        Resource::IoWriteOpsPerS => "io_write_ops_per_s",
    }
}

pub(crate) fn limit_parts(limit: Limit) -> (&'static str, f64) {
    match limit {
        Limit::MemoryMax(bytes) => ("memory_max_bytes", bytes as f64),
        Limit::MemoryHigh(bytes) => ("memory_high_bytes", bytes as f64),
        Limit::CpuMax(cores) => ("cpu_max_cores", cores),
        Limit::CpuWeight(weight) => ("cpu_weight", weight as f64),
        Limit::PidsMax(tasks) => ("pids_max", tasks as f64),
        Limit::MemoryLow(bytes) => ("memory_low_bytes", bytes as f64),
        Limit::CpuBurst(cores) => ("cpu_burst_cores", cores),
        Limit::IoWeight(weight) => ("io_weight", weight as f64),
        Limit::IoReadMax(rate) => ("io_read_max_bytes_per_s", rate as f64),
        Limit::IoWriteMax(rate) => ("io_write_max_bytes_per_s", rate as f64),
    }
}

/// The limit behind a row of `limit_applied`; `None` for a name of a newer version.
pub(super) fn limit_of(name: &str, value: f64) -> Option<Limit> {
    Some(match name {
        "memory_max_bytes" => Limit::MemoryMax(value as u64),
        "memory_high_bytes" => Limit::MemoryHigh(value as u64),
        "cpu_max_cores" => Limit::CpuMax(value),
        "cpu_weight" => Limit::CpuWeight(value as u64),
        "pids_max" => Limit::PidsMax(value as u64),
        "memory_low_bytes" => Limit::MemoryLow(value as u64),
        "cpu_burst_cores" => Limit::CpuBurst(value),
        "io_weight" => Limit::IoWeight(value as u64),
        "io_read_max_bytes_per_s" => Limit::IoReadMax(value as u64),
        "io_write_max_bytes_per_s" => Limit::IoWriteMax(value as u64),
        _ => return None,
    })
}
