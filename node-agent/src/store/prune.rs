//! Retention: closed runs beyond a number per task or beyond an age go; what they add up to stays.

use rusqlite::{Connection, Result, params};

/// Runs deleted in one transaction.
pub(super) const PORTION: usize = 1000;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// Which runs go.
pub(super) struct Rule {
    keep_runs: Option<u32>,
    ended_before_ms: Option<i64>,
}

impl Rule {
    /// 0 stands for no bound.
    pub(super) fn new(now_ms: i64, keep_runs: u32, keep_days: u32) -> Self {
        Self {
            keep_runs: (keep_runs > 0).then_some(keep_runs),
            ended_before_ms: (keep_days > 0).then(|| now_ms.saturating_sub(i64::from(keep_days) * DAY_MS)),
        }
    }
}

/// Deletes up to [`PORTION`] runs; returns how many.
pub(super) fn portion(db: &Connection, rule: &Rule) -> Result<usize> {
    db.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS pruned (id INTEGER PRIMARY KEY); DELETE FROM temp.pruned;",
    )?;
    let mut chosen = 0;
    if let Some(ended_before_ms) = rule.ended_before_ms {
        chosen += choose_old(db, ended_before_ms)?;
    }
    if let Some(keep_runs) = rule.keep_runs {
        chosen += choose_surplus(db, keep_runs, PORTION - chosen)?;
    }
    if chosen > 0 {
        keep_sums(db)?;
        db.execute("DELETE FROM run WHERE id IN (SELECT id FROM temp.pruned)", [])?;
    }
    Ok(chosen)
}

fn choose_old(db: &Connection, ended_before_ms: i64) -> Result<usize> {
    db.execute(
        "INSERT INTO temp.pruned SELECT id FROM run WHERE ended_at_ms < ?1 LIMIT ?2",
        params![ended_before_ms, PORTION as i64],
    )
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
         WHERE r.state <> 'running' AND r.id NOT IN (SELECT id FROM temp.pruned)
         LIMIT ?2",
        params![keep_runs, at_most as i64],
    )
}

fn keep_sums(db: &Connection) -> Result<()> {
    db.execute(
        "UPDATE task SET
             pruned_runs = pruned_runs + s.runs,
             pruned_finished = pruned_finished + s.finished,
             pruned_failed = pruned_failed + s.failed,
             pruned_lost = pruned_lost + s.lost,
             pruned_duration_s = pruned_duration_s + s.duration_s,
             pruned_cpu_s = pruned_cpu_s + s.cpu_s,
             pruned_memory_peak_bytes_max =
                 max(ifnull(pruned_memory_peak_bytes_max, s.memory), ifnull(s.memory, pruned_memory_peak_bytes_max))
         FROM (
             SELECT task_id, count(*) AS runs,
                    count(CASE WHEN state = 'finished' THEN 1 END) AS finished,
                    count(CASE WHEN state = 'failed' THEN 1 END) AS failed,
                    count(CASE WHEN state = 'lost' THEN 1 END) AS lost,
                    total(duration_ns) / 1e9 AS duration_s, total(cpu_ns) / 1e9 AS cpu_s,
                    max(memory_peak_bytes) AS memory
             FROM run WHERE id IN (SELECT id FROM temp.pruned) GROUP BY task_id
         ) s WHERE s.task_id = task.id",
        [],
    )?;
    Ok(())
}
