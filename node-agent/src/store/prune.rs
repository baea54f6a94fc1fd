//! Retention: closed runs beyond a number per task or beyond an age go; triggers of the schema see to it that
//! the counts of their task stay and its means are those of the runs that are left. Tasks without runs are bounded too.
//!
//! The ids are chosen first and then deleted in their order, portion by portion: runs that started one after
//! the other lie beside each other in every table, so that a portion touches few pages.

use rusqlite::{Connection, Result, params};
use serde::Deserialize;

/// `[retention]` of the configuration: what is kept, and for how long. The totals of a task outlive its runs. 0 stands
/// for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Most runs kept of one task and user.
    pub runs_per_task: u32,
    /// Most runs kept of all tasks together, and most tasks as long as some have no runs.
    pub runs: u32,
    /// Most events kept.
    pub events: u32,
    /// Days after which a run or an event is dropped.
    pub days: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { runs_per_task: 10_000, runs: 1_000_000, events: 100_000, days: 365 }
    }
}

#[cfg(test)]
impl Retention {
    /// Everything for ever.
    pub(crate) const UNBOUNDED: Self = Self { runs_per_task: 0, runs: 0, events: 0, days: 0 };
}

/// Runs chosen at once: what bounds the list of ids in memory.
pub(super) const CHOICE_MAX: usize = 100_000;

/// Runs deleted in one transaction, so that others that write do not wait for all of it.
const PORTION: usize = 1000;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Which runs go.
#[derive(Default)]
pub(super) struct Rule {
    keep_runs: Option<u32>,
    /// Of all tasks together.
    keep_all: Option<u32>,
    ended_before_ms: Option<i64>,
}

impl Rule {
    /// 0 stands for no bound.
    pub(super) fn new(now_ms: i64, keep_runs: u32, keep_days: u32) -> Self {
        Self {
            keep_runs: (keep_runs > 0).then_some(keep_runs),
            ended_before_ms: before_ms(now_ms, keep_days),
            ..Self::default()
        }
    }

    /// Of all tasks together: others' cgroups and users in a loop make tasks that run once. 0 stands for no bound.
    pub(super) fn of_all(keep_all: u32) -> Self {
        Self { keep_all: (keep_all > 0).then_some(keep_all), ..Self::default() }
    }
}

/// The time before which things go; 0 days stand for no bound.
pub(super) fn before_ms(now_ms: i64, keep_days: u32) -> Option<i64> {
    (keep_days > 0).then(|| now_ms.saturating_sub(i64::from(keep_days) * DAY_MS))
}

/// Fills the list with the oldest [`CHOICE_MAX`] runs that go; returns how many they are.
pub(super) fn choose(db: &Connection, rule: &Rule) -> Result<usize> {
    db.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS pruned (id INTEGER PRIMARY KEY); DELETE FROM temp.pruned;",
    )?;
    let mut chosen = 0;
    if let Some(ended_before_ms) = rule.ended_before_ms {
        chosen += db.execute(
            "INSERT INTO temp.pruned SELECT id FROM run WHERE ended_at_ms < ?1 ORDER BY id LIMIT ?2",
            params![ended_before_ms, CHOICE_MAX as i64],
        )?;
    }
    if let Some(keep_all) = rule.keep_all {
        chosen += db.execute(
            "INSERT INTO temp.pruned SELECT id FROM run
             WHERE id < (SELECT id FROM run ORDER BY id DESC LIMIT 1 OFFSET ?1 - 1) AND state <> 'running'
             ORDER BY id LIMIT ?2",
            params![keep_all, CHOICE_MAX as i64],
        )?;
    }
    if let Some(keep_runs) = rule.keep_runs {
        chosen += choose_surplus(db, keep_runs, CHOICE_MAX - chosen)?;
    }
    Ok(chosen)
}

/// The oldest run of each task that stays is found in the index, without reading rows.
fn choose_surplus(db: &Connection, keep_runs: u32, at_most: usize) -> Result<usize> {
    db.execute(
        "INSERT INTO temp.pruned
         WITH kept AS MATERIALIZED (
             SELECT t.id AS task_id,
                    (SELECT k.id FROM run k WHERE k.task_id = t.id ORDER BY k.id DESC LIMIT 1 OFFSET ?1 - 1) AS first
             FROM task t
         )
         SELECT r.id FROM kept CROSS JOIN run r ON r.task_id = kept.task_id AND r.id < kept.first
         WHERE r.id NOT IN (SELECT id FROM temp.pruned) AND r.id NOT IN (SELECT id FROM run WHERE state = 'running')
         ORDER BY r.id LIMIT ?2",
        params![keep_runs, at_most as i64],
    )
}

/// Deletes tasks of which no run is left, the longest unused first, as long as there are more than `keep` tasks
/// (0: no bound): what their runs added up to would else grow without bound.
pub(super) fn forget_tasks(db: &Connection, keep: u32) -> Result<usize> {
    if keep == 0 {
        return Ok(0);
    }
    let tasks: i64 = db.query_row("SELECT count(*) FROM task", [], |row| row.get(0))?;
    let surplus = tasks - i64::from(keep);
    if surplus <= 0 {
        return Ok(0);
    }
    db.execute(
        "DELETE FROM task WHERE id IN (
             SELECT id FROM task t WHERE NOT EXISTS (SELECT 1 FROM run WHERE task_id = t.id)
             ORDER BY last_run_id LIMIT ?)",
        [surplus],
    )
}

/// Deletes the next [`PORTION`] runs of the list; returns how many, 0 when it is empty.
pub(super) fn portion(db: &Connection) -> Result<usize> {
    let last: Option<i64> = db.query_row(
        "SELECT max(id) FROM (SELECT id FROM temp.pruned ORDER BY id LIMIT ?)",
        [PORTION as i64],
        |row| row.get(0),
    )?;
    let Some(last) = last else { return Ok(0) };
    db.execute("DELETE FROM run WHERE id IN (SELECT id FROM temp.pruned WHERE id <= ?)", [last])?;
    db.execute("DELETE FROM temp.pruned WHERE id <= ?", [last])
}
