//! Reading for people and programs: rows with units in their names, which are also what `--json` prints.

use super::error::StoreError;
use super::history::RunsBehind;
use super::past::{self, PastRun};
use super::record::{Engine, OpenRun, RunId};
use super::{admission, columns, demand, event, history, moment, open, peers, write};
use crate::fingerprint::Measured;
use crate::fingerprint::key::{Feature, FeatureValue, TaskKey};
use crate::fingerprint::series::{Point, Series};
use crate::fingerprint::{Coverage, Fingerprint};
use crate::host::ProcessId;
use crate::live::Kind;
use crate::predict::{Estimate, History, Level, Prediction, Resource};
use crate::size::admission::Licenses;
use crate::size::{Limits, Origin, Policy};
use rusqlite::{Connection, OptionalExtension, Params, Result, Row, params};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs that [`Reader::task`] returns.
const RECENT_RUNS: usize = 20;

/// A connection that cannot write: for whoever may read the file, whether an agent runs or not.
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

/// A kind of task of one user, over all its runs. Means are over finished runs that are still kept; counts,
/// the last start and `memory_peak_bytes_max` also cover runs that were pruned.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it, with units")]
pub struct TaskRow {
    pub task_type: String,
    pub user: String,
    pub uid: u32,
    pub kind: Kind,
    pub runs: u64,
    pub finished: u64,
    pub failed: u64,
    pub lost: u64,
    pub last_started_at_ms: Option<i64>,
    pub duration_s_mean: Option<f64>,
    pub cpu_cores_mean: Option<f64>,
    pub memory_peak_bytes_mean: Option<f64>,
    pub memory_peak_bytes_max: Option<u64>,
    pub io_read_bytes_per_s_mean: Option<f64>,
    pub io_write_bytes_per_s_mean: Option<f64>,
}

/// A run in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it, with units")]
pub struct RunRow {
    pub run_id: RunId,
    pub task_type: String,
    pub user: String,
    pub uid: u32,
    /// `running`, `finished` (exit code 0), `failed` or `lost`.
    pub state: String,
    pub started_at_ms: i64,
    pub ended_at_ms: Option<i64>,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub exec_errno: Option<i32>,
    pub out_of_memory: bool,
    pub out_of_tasks: bool,
    pub throttled: bool,
    pub engine: Engine,
    pub policy: Policy,
    pub duration_s: Option<f64>,
    pub cpu_s: Option<f64>,
    pub cpu_cores_mean: Option<f64>,
    pub memory_peak_bytes: Option<f64>,
    pub io_read_bytes_per_s: Option<f64>,
    pub io_read_ops_per_s: Option<f64>,
    pub io_write_ops_per_s: Option<f64>,
    pub io_write_bytes_per_s: Option<f64>,
    pub network_received_bytes_per_s: Option<f64>,
    pub network_sent_bytes_per_s: Option<f64>,
    pub command: Vec<String>,
}

/// Everything about one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct RunDetail {
    #[serde(flatten)]
    pub run: RunRow,
    pub directory: String,
    pub cgroup_path: Option<String>,
    pub fingerprint: Fingerprint,
    pub features: Vec<Feature>,
    pub prediction: Prediction,
    pub limits: Limits,
    pub series: Vec<Point>,
    pub coverage: Coverage,
}

/// A kind of task: one row per user, and its newest runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct TaskDetail {
    pub users: Vec<TaskRow>,
    pub recent_runs: Vec<RunRow>,
}

/// What was predicted for a run, and what it was, in the unit of the resource.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct AccuracyRow {
    pub run_id: RunId,
    pub task_type: String,
    pub user: String,
    pub resource: Resource,
    pub expected: f64,
    pub upper: f64,
    pub actual: f64,
    pub within_upper: bool,
    /// The run met its limit: it would have used more than `actual`.
    pub actual_is_lower_bound: bool,
    pub samples: u64,
    pub level: Level,
}

/// How good predictions of one resource of a task were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccuracySummary {
    /// Which.
    pub resource: Resource,
    /// Runs that were predicted and said something.
    pub runs: u64,
    /// Mean of |expected − actual| ÷ actual, percent; `None` where all were 0.
    pub mean_error_percent: Option<f64>,
    /// Share of runs that stayed under the upper bound, percent.
    pub within_upper_percent: Option<f64>,
}

impl Reader {
    /// Opens the database for reading.
    ///
    /// # Errors
    /// When there is none, it may not be read, is damaged, of another program, or newer than this one.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open::read_only(path)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tasks, the most recently started first.
    ///
    /// # Errors
    /// When the database cannot be read: as for all that follow.
    pub fn tasks(&self) -> Result<Vec<TaskRow>, StoreError> {
        self.run_query(|db| tasks(db, None))
    }

    /// The newest runs, of one task type or of all.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn runs(&self, task_type: Option<&str>, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        self.run_query(|db| runs(db, task_type, limit))
    }

    /// The newest runs that were started through standin: without cgroups that others made.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn runs_started(&self, limit: usize) -> Result<Vec<RunRow>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let sql = format!("{RUN_ROW} WHERE NOT {IS_CGROUP} ORDER BY r.id DESC LIMIT ?");
        self.run_query(|db| collect(db, &sql, [limit], run_row))
    }

    /// One run.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn run(&self, id: RunId) -> Result<Option<RunDetail>, StoreError> {
        self.run_query(|db| detail(db, id))
    }

    /// The newest run in a cgroup, whose path is below the v2 root.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn run_of_cgroup(&self, path: &str) -> Result<Option<RunId>, StoreError> {
        self.run_query(|db| {
            db.prepare_cached(
                "SELECT run_id FROM run_launch WHERE cgroup_path = ? ORDER BY run_id DESC LIMIT 1",
            )?
            .query_row([path], |row| row.get(0).map(RunId))
            .optional()
        })
    }

    /// One kind of task; `None` if it never ran.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn task(&self, task_type: &str) -> Result<Option<TaskDetail>, StoreError> {
        self.run_query(|db| {
            let users = tasks(db, Some(task_type))?;
            if users.is_empty() {
                return Ok(None);
            }
            let recent_runs = runs(db, Some(task_type), RECENT_RUNS)?;
            Ok(Some(TaskDetail { users, recent_runs }))
        })
    }

    /// Past runs of a task, for prediction.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn history(&self, key: &TaskKey) -> Result<History, StoreError> {
        self.at_one_moment(|db| history::read(db, key))
    }

    /// Which runs of a task are behind its predictions: what was learnt from them holds as long as they are these.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn runs_behind(&self, key: &TaskKey) -> Result<RunsBehind, StoreError> {
        self.at_one_moment(|db| history::runs_behind(db, key))
    }

    /// The part of [`Reader::history`] that is not about past runs of the task; runs of other tasks only `with_host`.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn around(&self, key: &TaskKey, with_host: bool) -> Result<History, StoreError> {
        self.at_one_moment(|db| history::around(db, key, with_host))
    }

    /// The part of [`Reader::history`] that is about past runs of the task, and [`Reader::runs_behind`] at that moment.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn history_of_task(&self, key: &TaskKey) -> Result<(History, RunsBehind), StoreError> {
        self.at_one_moment(|db| history::of_task(db, key))
    }

    /// Predictions against what runs then did, newest run first: at most `limit` rows.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn accuracy(&self, task_type: Option<&str>, limit: usize) -> Result<Vec<AccuracyRow>, StoreError> {
        self.run_query(|db| accuracy(db, task_type, limit))
    }

    /// Every run that ended well and whose memory was measured, in the order of their start.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn past(&self) -> Result<Vec<PastRun>, StoreError> {
        self.run_query(past::read)
    }

    /// How good the predictions of a task or of all were, per resource, over all kept runs and users.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn accuracy_summary(&self, task_type: Option<&str>) -> Result<Vec<AccuracySummary>, StoreError> {
        self.run_query(|db| accuracy_summary(db, task_type))
    }

    /// Runs that are not closed, oldest first.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn open_runs(&self) -> Result<Vec<OpenRun>, StoreError> {
        self.run_query(open_runs)
    }

    /// The most licences that one of the newest runs of a task was seen to use, by pool.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn licenses_learned(&self, key: &TaskKey) -> Result<Licenses, StoreError> {
        self.run_query(|db| admission::learned(db, key))
    }

    /// The most licences of each pool that each of the newest runs of a task used at once: for
    /// [`learn`](crate::predict::licenses::learn).
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn licenses_used(&self, key: &TaskKey) -> Result<BTreeMap<String, Vec<u32>>, StoreError> {
        self.run_query(|db| admission::used(db, key))
    }

    /// The newest events, newest first: at most `limit`.
    ///
    /// # Errors
    /// As [`Reader::tasks`].
    pub fn events(&self, filter: &event::Filter, limit: usize) -> Result<Vec<event::EventRow>, StoreError> {
        self.run_query(|db| event::read(db, filter, limit))
    }

    /// Queries that see the same moment; together they are also quicker, as SQLite locks and looks for news once.
    fn at_one_moment<T>(&self, queries: impl FnOnce(&Connection) -> Result<T>) -> Result<T, StoreError> {
        self.run_query(|db| {
            let moment = db.unchecked_transaction()?;
            let read = queries(db)?;
            moment.commit()?;
            Ok(read)
        })
    }

    pub(super) fn run_query<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T, StoreError> {
        query(&self.connection).map_err(|error| StoreError::of(&self.path, error))
    }
}

pub(super) fn collect<T>(
    db: &Connection,
    sql: &str,
    parameters: impl Params,
    row: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    db.prepare_cached(sql)?.query_map(parameters, row)?.collect()
}

/// A run, as `l` in `run_launch`, that is what an agent measured of a cgroup that others made.
pub(super) const IS_CGROUP: &str = "(l.command = '[]' AND l.cgroup_path IS NOT NULL)";

fn tasks(db: &Connection, task_type: Option<&str>) -> Result<Vec<TaskRow>> {
    let sql = format!(
        "
        SELECT *,
               (SELECT {IS_CGROUP} FROM run_launch l WHERE l.run_id = task.last_run_id) AS is_cgroup,
               duration_s_sum / nullif(duration_samples, 0) AS duration_s_mean,
               cpu_cores_sum / nullif(cpu_samples, 0) AS cpu_cores_mean,
               memory_bytes_sum / nullif(memory_samples, 0) AS memory_peak_bytes_mean,
               read_bytes_per_s_sum / nullif(read_samples, 0) AS io_read_bytes_per_s_mean,
               written_bytes_per_s_sum / nullif(written_samples, 0) AS io_write_bytes_per_s_mean
        FROM task WHERE ?1 IS NULL OR task_type = ?1
        ORDER BY last_run_id DESC"
    );
    collect(db, &sql, [task_type], |row| {
        Ok(TaskRow {
            task_type: row.get("task_type")?,
            user: row.get("user")?,
            uid: row.get("uid")?,
            kind: kind(row)?,
            runs: count(row, "runs")?,
            finished: count(row, "finished")?,
            failed: count(row, "failed")?,
            lost: count(row, "lost")?,
            last_started_at_ms: row.get("last_started_at_ms")?,
            duration_s_mean: row.get("duration_s_mean")?,
            cpu_cores_mean: row.get("cpu_cores_mean")?,
            memory_peak_bytes_mean: row.get("memory_peak_bytes_mean")?,
            memory_peak_bytes_max: row
                .get::<_, Option<i64>>("memory_peak_bytes_max")?
                .map(i64::cast_unsigned),
            io_read_bytes_per_s_mean: row.get("io_read_bytes_per_s_mean")?,
            io_write_bytes_per_s_mean: row.get("io_write_bytes_per_s_mean")?,
        })
    })
}

/// What a row is about; of a task whose last run was dropped: a run.
pub(super) fn kind(row: &Row<'_>) -> Result<Kind> {
    let is_cgroup: Option<bool> = row.get("is_cgroup")?;
    Ok(if is_cgroup == Some(true) { Kind::Cgroup } else { Kind::Run })
}

const RUN_ROW: &str = "
    SELECT r.*, l.*, t.task_type, t.user, t.uid, a.cpu_cores_mean, a.io_read_bytes_per_s, a.io_write_bytes_per_s,
           a.io_read_ops_per_s, a.io_write_ops_per_s, a.network_received_bytes_per_s, a.network_sent_bytes_per_s,
           (SELECT sources FROM coverage WHERE coverage.id = r.coverage_id) AS coverage
    FROM run r JOIN task t ON t.id = r.task_id JOIN run_launch l ON l.run_id = r.id
    JOIN run_actual a ON a.run_id = r.id";

fn runs(db: &Connection, task_type: Option<&str>, limit: usize) -> Result<Vec<RunRow>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    match task_type {
        None => collect(db, &format!("{RUN_ROW} ORDER BY r.id DESC LIMIT ?"), [limit], run_row),
        Some(task_type) => {
            // Ids first, from the index alone: only the rows that are wanted are read.
            let sql = format!(
                "{RUN_ROW} WHERE r.id IN (
                     SELECT k.id FROM task t JOIN run k ON k.id IN (
                         SELECT n.id FROM run n WHERE n.task_id = t.id ORDER BY n.id DESC LIMIT ?2
                     ) WHERE t.task_type = ?1 ORDER BY k.id DESC LIMIT ?2
                 ) ORDER BY r.id DESC"
            );
            collect(db, &sql, params![task_type, limit], run_row)
        }
    }
}

fn run_row(row: &Row<'_>) -> Result<RunRow> {
    let cpu_ns: Option<i64> = row.get("cpu_ns")?;
    let duration_ns: Option<i64> = row.get("duration_ns")?;
    let memory_peak_bytes: Option<i64> = row.get("memory_peak_bytes")?;
    Ok(RunRow {
        run_id: RunId(row.get("id")?),
        task_type: row.get("task_type")?,
        user: row.get("user")?,
        uid: row.get("uid")?,
        state: row.get("state")?,
        started_at_ms: row.get("started_at_ms")?,
        ended_at_ms: row.get("ended_at_ms")?,
        exit_code: row.get("exit_code")?,
        signal: row.get("signal")?,
        exec_errno: row.get("exec_errno")?,
        out_of_memory: row.get("out_of_memory")?,
        out_of_tasks: row.get("out_of_tasks")?,
        throttled: row.get("throttled")?,
        engine: engine(row)?,
        policy: policy(row)?,
        duration_s: duration_ns.map(|ns| ns as f64 / 1e9),
        cpu_s: cpu_ns.map(|ns| ns as f64 / 1e9),
        cpu_cores_mean: row.get("cpu_cores_mean")?,
        memory_peak_bytes: memory_peak_bytes.map(|bytes| bytes as f64),
        io_read_bytes_per_s: row.get("io_read_bytes_per_s")?,
        io_read_ops_per_s: row.get("io_read_ops_per_s")?,
        io_write_ops_per_s: row.get("io_write_ops_per_s")?,
        io_write_bytes_per_s: row.get("io_write_bytes_per_s")?,
        network_received_bytes_per_s: row.get("network_received_bytes_per_s")?,
        network_sent_bytes_per_s: row.get("network_sent_bytes_per_s")?,
        command: parsed(row, "command")?,
    })
}

fn detail(db: &Connection, id: RunId) -> Result<Option<RunDetail>> {
    db.prepare_cached(&format!("{RUN_ROW} WHERE r.id = ?"))?
        .query_row([id.0], |row| {
            Ok(RunDetail {
                run: run_row(row)?,
                directory: row.get("directory")?,
                cgroup_path: row.get("cgroup_path")?,
                fingerprint: fingerprint(db, id, row)?,
                features: features(db, id)?,
                prediction: prediction(db, id)?,
                limits: limits(db, id)?,
                series: points(db, id)?,
                coverage: parsed(row, "coverage")?,
            })
        })
        .optional()
}

fn fingerprint(db: &Connection, id: RunId, row: &Row<'_>) -> Result<Fingerprint> {
    let mut fingerprint = columns::fingerprint(row)?;
    let histograms: Vec<(String, String)> =
        collect(db, "SELECT kind, counts FROM run_histogram WHERE run_id = ?", [id.0], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    for (kind, counts) in histograms {
        if let Ok(counts) = serde_json::from_str(&counts) {
            columns::set_histogram(&mut fingerprint, &kind, counts);
        }
    }
    fingerprint.cpu_demand = demand::read(db, id)?;
    fingerprint.peers = peers::read(db, id)?;
    Ok(fingerprint)
}

pub(super) fn features(db: &Connection, id: RunId) -> Result<Vec<Feature>> {
    let sql = "SELECT name, number, category FROM run_feature WHERE run_id = ? ORDER BY name";
    collect(db, sql, [id.0], |row| {
        let number: Option<f64> = row.get(1)?;
        let value = match number {
            Some(number) => FeatureValue::Number(number),
            None => FeatureValue::Category(row.get::<_, Option<String>>(2)?.unwrap_or_default()),
        };
        Ok(Feature { name: row.get(0)?, value })
    })
}

fn prediction(db: &Connection, id: RunId) -> Result<Prediction> {
    let sql = "SELECT p.* FROM prediction p JOIN resource n ON n.name = p.resource WHERE run_id = ? ORDER BY n.place";
    let estimates = collect(db, sql, [id.0], |row| {
        Ok(resource(row)?.map(|resource| Estimate {
            resource,
            expected: row.get("expected").unwrap_or_default(),
            upper: row.get("upper").unwrap_or_default(),
            risk: row.get("risk").unwrap_or_default(),
            samples: count(row, "samples").map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX)),
            level: level(row).unwrap_or(Level::Host),
            width: row.get("width").unwrap_or_default(),
            reason: row.get("reason").unwrap_or_default(),
        }))
    })?;
    Ok(Prediction { estimates: estimates.into_iter().flatten().collect() })
}

fn limits(db: &Connection, id: RunId) -> Result<Limits> {
    let sql = "SELECT name, value, origin FROM limit_applied WHERE run_id = ? ORDER BY name";
    let limits = collect(db, sql, [id.0], |row| {
        let origin = match row.get_ref(2)?.as_str()? {
            "manual" => Origin::Manual,
            _ => Origin::Predicted,
        };
        let name: String = row.get(0)?;
        Ok(write::limit_of(&name, row.get(1)?).map(|limit| (limit, origin)))
    })?;
    Ok(Limits(limits.into_iter().flatten().collect()))
}

fn points(db: &Connection, id: RunId) -> Result<Vec<Point>> {
    let sql = "SELECT * FROM run_series WHERE run_id = ? ORDER BY at_ms";
    collect(db, sql, [id.0], moment::point)
}

fn accuracy(db: &Connection, task_type: Option<&str>, limit: usize) -> Result<Vec<AccuracyRow>> {
    let sql = "
        SELECT p.*, t.task_type, t.user, a.value AS actual, a.lower_bound
        FROM prediction p JOIN run r ON r.id = p.run_id JOIN task t ON t.id = r.task_id
        JOIN run_resource a ON a.run_id = p.run_id AND a.resource = p.resource
        WHERE a.worth <> 'none' AND a.value IS NOT NULL AND (?1 IS NULL OR t.task_type = ?1)
        ORDER BY p.run_id DESC LIMIT ?2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = collect(db, sql, params![task_type, limit], |row| {
        let Some(resource) = resource(row)? else {
            return Ok(None);
        };
        let (upper, actual): (f64, f64) = (row.get("upper")?, row.get("actual")?);
        Ok(Some(AccuracyRow {
            run_id: RunId(row.get("run_id")?),
            task_type: row.get("task_type")?,
            user: row.get("user")?,
            resource,
            expected: row.get("expected")?,
            upper,
            actual,
            within_upper: actual <= upper,
            actual_is_lower_bound: row.get("lower_bound")?,
            samples: count(row, "samples")?,
            level: level(row)?,
        }))
    })?;
    Ok(rows.into_iter().flatten().collect())
}

fn accuracy_summary(db: &Connection, task_type: Option<&str>) -> Result<Vec<AccuracySummary>> {
    let sql = "SELECT a.resource, count(*) AS runs, avg(abs(a.error_percent)) AS mean_error_percent,
                      100.0 * avg(a.within_upper) AS within_upper_percent
               FROM prediction_accuracy a JOIN resource n ON n.name = a.resource
               WHERE (?1 IS NULL OR a.task_type = ?1) AND a.level <> 'host' AND NOT a.actual_is_lower_bound
               GROUP BY a.resource ORDER BY n.place";
    let rows = collect(db, sql, [task_type], |row| {
        let Some(resource) = resource(row)? else { return Ok(None) };
        Ok(Some(AccuracySummary {
            resource,
            runs: count(row, "runs")?,
            mean_error_percent: row.get("mean_error_percent")?,
            within_upper_percent: row.get("within_upper_percent")?,
        }))
    })?;
    Ok(rows.into_iter().flatten().collect())
}

pub(super) fn open_runs(db: &Connection) -> Result<Vec<OpenRun>> {
    let sql = "SELECT r.*, l.*, t.task_type, t.user, t.uid,
                      (SELECT sources FROM coverage WHERE coverage.id = r.coverage_id) AS coverage
               FROM run r JOIN task t ON t.id = r.task_id JOIN run_launch l ON l.run_id = r.id
               WHERE r.state = 'running' ORDER BY r.id";
    collect(db, sql, [], |row| {
        let id = RunId(row.get("id")?);
        let mut series = Series::default();
        points(db, id)?.into_iter().for_each(|point| series.push(point));
        let cgroup_path: Option<String> = row.get("cgroup_path")?;
        let cgroup_id: Option<i64> = row.get("cgroup_id")?;
        Ok(OpenRun {
            id,
            key: TaskKey { task_type: row.get("task_type")?, uid: row.get("uid")? },
            user: row.get("user")?,
            engine: engine(row)?,
            policy: policy(row)?,
            owner: process(row, "owner")?.unwrap_or(ProcessId {
                pid: 0,
                start_ticks: 0,
                boot_id: String::new(),
            }),
            main: process(row, "main")?,
            cgroup: cgroup_path.zip(cgroup_id.map(i64::cast_unsigned)),
            started_at_ms: row.get("started_at_ms")?,
            limits: limits(db, id)?,
            admission: admission::read(db, id)?,
            measured: Measured {
                fingerprint: fingerprint(db, id, row)?,
                series,
                coverage: parsed(row, "coverage")?,
            },
        })
    })
}

fn process(row: &Row<'_>, prefix: &str) -> Result<Option<ProcessId>> {
    let Some(pid) = row.get(format!("{prefix}_pid").as_str())? else {
        return Ok(None);
    };
    Ok(Some(ProcessId {
        pid,
        start_ticks: count(row, &format!("{prefix}_start_ticks"))?,
        boot_id: row.get(format!("{prefix}_boot_id").as_str())?,
    }))
}

pub(super) fn count(row: &Row<'_>, name: &str) -> Result<u64> {
    row.get::<_, i64>(name).map(|n| u64::try_from(n).unwrap_or(0))
}

/// A column of JSON; the default where it is NULL or of a newer version.
fn parsed<T: Default + serde::de::DeserializeOwned>(row: &Row<'_>, name: &str) -> Result<T> {
    let text: Option<String> = row.get(name)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

fn engine(row: &Row<'_>) -> Result<Engine> {
    Ok(match row.get_ref("engine")?.as_str()? {
        "agent" => Engine::Agent,
        "embedded" => Engine::Embedded,
        _ => Engine::Accounting,
    })
}

fn policy(row: &Row<'_>) -> Result<Policy> {
    Ok(match row.get_ref("policy")?.as_str()? {
        "strict" => Policy::Strict,
        "elastic" => Policy::Elastic,
        _ => Policy::Observe,
    })
}

fn level(row: &Row<'_>) -> Result<Level> {
    Ok(match row.get_ref("level")?.as_str()? {
        "task_and_user" => Level::TaskAndUser,
        "task" => Level::Task,
        _ => Level::Host,
    })
}

fn resource(row: &Row<'_>) -> Result<Option<Resource>> {
    let name = row.get_ref("resource")?.as_str()?;
    Ok(Resource::ALL.into_iter().find(|resource| write::resource_name(*resource) == name))
}
