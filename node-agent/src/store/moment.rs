//! What ran at a moment of the past: the runs that had begun and not ended, each with the stretch of its course that
//! leads up to the moment, and its memory limit as it was then.

use super::read::{IS_CGROUP, collect, count, kind};
use super::record::RunId;
use super::{Reader, StoreError};
use crate::fingerprint::series::Point;
use crate::live::{Band, Kind, MemoryLimit, Predicted};
use rusqlite::{Connection, Result, Row, params};

/// Most runs of one moment: the newest ones.
pub const MOMENT_RUNS_MAX: usize = 1000;

/// A run that was under way at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MomentRun {
    /// Which.
    pub run_id: RunId,
    /// Kind of task.
    pub task_type: String,
    /// Who ran it.
    pub user: String,
    /// Whether it was a task of ours.
    pub kind: Kind,
    /// Its main process, where it had one.
    pub pid: Option<i32>,
    /// Start, milliseconds since 1970.
    pub started_at_ms: i64,
    /// End; `None`: it is recorded as running.
    pub ended_at_ms: Option<i64>,
    /// What had been predicted.
    pub predicted: Predicted,
    /// Memory limit at the moment.
    pub memory_limit: Option<MemoryLimit>,
    /// Its course until the moment; the last point is the stretch that the moment is in. Empty where nothing was
    /// recorded yet.
    pub course: Vec<Point>,
}

impl Reader {
    /// What ran at `at_ms`, the newest first, each with `span_ms` of its course.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn moment(&self, at_ms: i64, span_ms: i64) -> std::result::Result<Vec<MomentRun>, StoreError> {
        self.run_query(|db| {
            let mut runs = runs(db, at_ms)?;
            for run in &mut runs {
                run.memory_limit = memory_limit(db, run.run_id, at_ms)?;
                run.course = course(db, run, at_ms, span_ms)?;
            }
            Ok(runs)
        })
    }
}

fn runs(db: &Connection, at_ms: i64) -> Result<Vec<MomentRun>> {
    // Two scans of an index each: what ended later, and what has not ended.
    let sql = format!(
        "
        WITH there AS (
            SELECT id FROM run WHERE ended_at_ms >= ?1 AND started_at_ms <= ?1
            UNION ALL SELECT id FROM run WHERE state = 'running' AND started_at_ms <= ?1
            ORDER BY id DESC LIMIT ?2)
        SELECT r.id, t.task_type, t.user, l.main_pid, {IS_CGROUP} AS is_cgroup, r.started_at_ms, r.ended_at_ms,
               m.expected AS memory, m.upper AS memory_upper, c.expected AS cores, c.upper AS cores_upper,
               d.expected AS duration, d.upper AS duration_upper
        FROM there JOIN run r ON r.id = there.id JOIN task t ON t.id = r.task_id
        JOIN run_launch l ON l.run_id = r.id
        LEFT JOIN prediction m ON m.run_id = r.id AND m.resource = 'memory_peak_bytes' AND m.level <> 'host'
        LEFT JOIN prediction c ON c.run_id = r.id AND c.resource = 'cpu_cores_mean' AND c.level <> 'host'
        LEFT JOIN prediction d ON d.run_id = r.id AND d.resource = 'duration_s' AND d.level <> 'host'
        ORDER BY r.id DESC"
    );
    let limit = i64::try_from(MOMENT_RUNS_MAX).unwrap_or(i64::MAX);
    collect(db, &sql, params![at_ms, limit], |row| {
        let band = |expected: &str, upper: &str| -> Result<Option<Band>> {
            let (expected, upper): (Option<f64>, Option<f64>) = (row.get(expected)?, row.get(upper)?);
            Ok(expected.zip(upper).map(|(expected, upper)| Band { expected, upper }))
        };
        Ok(MomentRun {
            run_id: RunId(row.get("id")?),
            task_type: row.get("task_type")?,
            user: row.get("user")?,
            kind: kind(row)?,
            pid: row.get("main_pid")?,
            started_at_ms: row.get("started_at_ms")?,
            ended_at_ms: row.get("ended_at_ms")?,
            predicted: Predicted {
                memory_bytes: band("memory", "memory_upper")?,
                cpu_cores: band("cores", "cores_upper")?,
                duration_s: band("duration", "duration_upper")?,
            },
            memory_limit: None,
            course: Vec::new(),
        })
    })
}

/// The limit that was set at the start, or to which it had followed the task by then.
fn memory_limit(db: &Connection, id: RunId, at_ms: i64) -> Result<Option<MemoryLimit>> {
    let sql = "
        SELECT name = 'memory_max_bytes', ifnull((
            SELECT e.details ->> 'to' FROM event e
            WHERE e.run_id = ?1 AND e.at_ms <= ?2 AND e.kind IN ('limit_raised', 'limit_lowered')
              AND e.details ->> 'limit' = name
            ORDER BY e.id DESC LIMIT 1), value)
        FROM limit_applied WHERE run_id = ?1 AND name IN ('memory_max_bytes', 'memory_high_bytes')";
    let limits: Vec<MemoryLimit> = collect(db, sql, params![id.0, at_ms], |row| {
        let bytes: f64 = row.get(1)?;
        Ok(MemoryLimit { bytes: bytes as u64, is_hard: row.get(0)? })
    })?;
    Ok(limits.into_iter().min_by_key(|limit| limit.bytes))
}

fn course(db: &Connection, run: &MomentRun, at_ms: i64, span_ms: i64) -> Result<Vec<Point>> {
    let sql = "
        SELECT * FROM run_series WHERE run_id = ?1 AND at_ms > ?2 - ?3 AND at_ms <= ifnull(
            (SELECT min(at_ms) FROM run_series WHERE run_id = ?1 AND at_ms >= ?2),
            (SELECT max(at_ms) FROM run_series WHERE run_id = ?1))
        ORDER BY at_ms";
    collect(db, sql, params![run.run_id.0, at_ms - run.started_at_ms, span_ms], point)
}

/// A row of `run_series`.
pub(super) fn point(row: &Row<'_>) -> Result<Point> {
    Ok(Point {
        at_ms: count(row, "at_ms")?,
        length_ms: count(row, "length_ms")?,
        cpu_cores: row.get("cpu_cores")?,
        memory_bytes: count(row, "memory_bytes")?,
        read_bytes_per_s: row.get("read_bytes_per_s")?,
        write_bytes_per_s: row.get("write_bytes_per_s")?,
        received_bytes_per_s: row.get("received_bytes_per_s")?,
        sent_bytes_per_s: row.get("sent_bytes_per_s")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Measured;
    use crate::fingerprint::series::Series;
    use crate::size::{Limit, Limits, Origin};
    use crate::store::Store;
    use crate::store::event::Event;
    use crate::store::record::{Ending, NewRun};
    use crate::store::tests::new_run;

    fn measured(seconds: u64) -> Measured {
        let mut series = Series::default();
        for second in 1..=seconds {
            let cpu_cores = second as f64;
            series.push(Point { at_ms: second * 1000, length_ms: 1000, cpu_cores, ..Point::default() });
        }
        Measured { series, ..Measured::default() }
    }

    #[test]
    fn a_moment_has_what_ran_then_with_its_limit_of_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("standin.db");
        let mut store = Store::open(&path).unwrap().store;
        let now = crate::host::now_ms();
        let at = |seconds: i64| now + seconds * 1000;
        let run = |name: &str, started_at_ms| NewRun {
            started_at_ms,
            limits: Limits(vec![(Limit::MemoryHigh(100), Origin::Predicted)]),
            ..new_run(name, 0)
        };
        let long = store.begin_run(&run("long", at(-10))).unwrap();
        let raised = serde_json::json!({ "limit": "memory_high_bytes", "from": 100, "to": 800 });
        store.log(&Event::new("limit_raised", "x").run(long).details(&raised)).unwrap();
        store.checkpoint(long, &measured(10)).unwrap();
        let short = store.begin_run(&run("short", at(-6))).unwrap();
        store.finish_run(short, at(-4), &Ending::default(), &measured(2)).unwrap();

        let reader = Reader::open(&path).unwrap();
        let seen = |moment: i64| -> Vec<(String, Option<u64>, f64)> {
            let runs = reader.moment(moment, 300_000).unwrap();
            runs.into_iter()
                .map(|run| {
                    let cores = run.course.last().map_or(0.0, |point| point.cpu_cores);
                    (run.task_type, run.memory_limit.map(|limit| limit.bytes), cores)
                })
                .collect()
        };
        assert_eq!(seen(at(-11)), []);
        assert_eq!(seen(at(-9)), [("long".into(), Some(100), 1.0)]);
        assert_eq!(seen(at(-5)), [("short".into(), Some(100), 1.0), ("long".into(), Some(100), 5.0)]);
        assert_eq!(seen(at(-3)), [("long".into(), Some(100), 7.0)]);
        assert_eq!(seen(at(60)), [("long".into(), Some(800), 10.0)], "no more is known than the last record");
        assert_eq!(reader.moment(at(-5), 2_000).unwrap()[1].course.len(), 2);
        assert!(reader.moment(at(-5), 1).unwrap()[0].predicted.memory_bytes.is_some());
    }
}
