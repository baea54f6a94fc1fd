//! What is kept up to date beside the runs equals what reading all runs gives.

use super::*;
use crate::predict::{HISTORY_MAX, Observation};
use crate::store::read::TaskRow;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Begin { task: usize, started_at_ms: i64 },
    Checkpoint(Index, Measured),
    Finish(Index, Ending, Measured),
    Lost(Index),
    Prune { keep_runs: u32, keep_days: u32 },
}

const TASKS: [(&str, u32); 3] = [("sort", 1), ("sort", 2), ("xz", 1)];

const DAY_MS: i64 = 24 * 3600 * 1000;

fn any_measured() -> impl Strategy<Value = Measured> {
    let amount = || prop::option::weighted(0.8, 0..1_u64 << 40);
    (prop_oneof![1 => Just(0), 9 => 1_000_000..1_u64 << 42], amount(), amount(), amount(), amount(), 0..4)
        .prop_map(|(duration_ns, cpu_ns, memory_peak_bytes, read, write, note)| {
            let mut measured = Measured::default();
            let fingerprint = &mut measured.fingerprint;
            fingerprint.duration_ns = duration_ns;
            fingerprint.cpu_ns = cpu_ns;
            fingerprint.memory_peak_bytes = memory_peak_bytes;
            fingerprint.block_read_bytes = read;
            fingerprint.storage_write_bytes = write;
            measured.coverage = coverage(&format!("note {note}"));
            measured
        })
}

fn coverage(note: &str) -> Coverage {
    Coverage(vec![Source { measure: "cpu".into(), source: None, note: Some(note.into()) }])
}

fn any_ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        4 => Just(well()),
        1 => Just(Ending { exit_code: Some(1), ..Ending::default() }),
        1 => Just(Ending { signal: Some(15), ..Ending::default() }),
        1 => Just(Ending { signal: Some(9), out_of_memory: true, ..Ending::default() }),
        1 => Just(Ending { exec_errno: Some(2), ..Ending::default() }),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..TASKS.len(), 0..30 * DAY_MS).prop_map(|(task, started_at_ms)| Step::Begin { task, started_at_ms }),
        3 => (any::<Index>(), any_measured()).prop_map(|(run, measured)| Step::Checkpoint(run, measured)),
        5 => (any::<Index>(), any_ending(), any_measured()).prop_map(|(run, ending, measured)| {
            Step::Finish(run, ending, measured)
        }),
        1 => any::<Index>().prop_map(Step::Lost),
        1 => (0..4_u32, 0..30_u32).prop_map(|(keep_runs, keep_days)| Step::Prune { keep_runs, keep_days }),
    ]
}

/// What a task must add up to, counted beside the store. Means are not here: they are over what is kept.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    runs: u64,
    finished: u64,
    failed: u64,
    lost: u64,
    last_started_at_ms: Option<i64>,
    memory_peak_bytes_max: Option<u64>,
}

#[derive(Default)]
struct Model {
    sums: BTreeMap<(String, u32), Sums>,
    open: Vec<(RunId, usize)>,
}

impl Model {
    fn sums(&mut self, task: usize) -> &mut Sums {
        let (task_type, uid) = TASKS[task];
        self.sums.entry((task_type.into(), uid)).or_default()
    }

    fn measured(&mut self, task: usize, measured: &Measured) {
        let sums = self.sums(task);
        sums.memory_peak_bytes_max = sums.memory_peak_bytes_max.max(measured.fingerprint.memory_peak_bytes);
    }

    fn ended(&mut self, run: &Index) -> Option<(RunId, usize)> {
        (!self.open.is_empty()).then(|| self.open.swap_remove(run.index(self.open.len())))
    }

    fn take(&mut self, store: &mut Store, step: &Step) {
        match step {
            Step::Begin { task, started_at_ms } => {
                let (task_type, uid) = TASKS[*task];
                let new = NewRun { started_at_ms: *started_at_ms, ..new_run(task_type, uid) };
                self.open.push((store.begin_run(&new).unwrap(), *task));
                let sums = self.sums(*task);
                sums.runs += 1;
                sums.last_started_at_ms = sums.last_started_at_ms.max(Some(*started_at_ms));
            }
            Step::Checkpoint(run, measured) => {
                if !self.open.is_empty() {
                    let (id, task) = self.open[run.index(self.open.len())];
                    store.checkpoint(id, measured).unwrap();
                    self.measured(task, measured);
                }
            }
            Step::Finish(run, ending, measured) => {
                if let Some((id, task)) = self.ended(run) {
                    store.finish_run(id, id.0 * DAY_MS, ending, measured).unwrap();
                    self.measured(task, measured);
                    let sums = self.sums(task);
                    *if ending == &well() { &mut sums.finished } else { &mut sums.failed } += 1;
                }
            }
            Step::Lost(run) => {
                if let Some((id, task)) = self.ended(run) {
                    store.close_lost(id, id.0 * DAY_MS).unwrap();
                    self.sums(task).lost += 1;
                }
            }
            Step::Prune { keep_runs, keep_days } => {
                store.prune_at(40 * DAY_MS, *keep_runs, *keep_days).unwrap();
            }
        }
    }
}

fn sums_of(row: &TaskRow) -> Sums {
    Sums {
        runs: row.runs,
        finished: row.finished,
        failed: row.failed,
        lost: row.lost,
        last_started_at_ms: row.last_started_at_ms,
        memory_peak_bytes_max: row.memory_peak_bytes_max,
    }
}

/// The means of a task by reading all its runs.
fn scanned(store: &Store, row: &TaskRow) -> [Option<f64>; 5] {
    let sql = "SELECT avg(duration_s), avg(cpu_cores_mean), avg(memory_peak_bytes), avg(io_read_bytes_per_s),
                      avg(io_write_bytes_per_s)
               FROM run_actual a JOIN task t ON t.id = a.task_id
               WHERE a.worth = 'sample' AND t.task_type = ? AND t.uid = ?";
    let means =
        |row: &rusqlite::Row<'_>| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]);
    store.connection.query_row(sql, rusqlite::params![row.task_type, row.uid], means).unwrap()
}

/// The means of `task_summary` that no other is made of: of CPU time and of bytes read.
fn summary(store: &Store, row: &TaskRow, sql: &str) -> [Option<f64>; 2] {
    store
        .connection
        .query_row(sql, rusqlite::params![row.task_type, row.user], |row| Ok([row.get(0)?, row.get(1)?]))
        .unwrap()
}

fn close(a: Option<f64>, b: Option<f64>, within: f64) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= within + 1e-8 * a.abs().max(b.abs()),
        (a, b) => a == b,
    }
}

fn check(store: &Store, model: &Model) {
    let tasks = Reader::open(store.path()).unwrap().tasks().unwrap();
    let sums = tasks.iter().map(|row| ((row.task_type.clone(), row.uid), sums_of(row))).collect();
    assert_eq!(model.sums, sums);
    for row in &tasks {
        let kept = [
            row.duration_s_mean,
            row.cpu_cores_mean,
            row.memory_peak_bytes_mean,
            row.io_read_bytes_per_s_mean,
            row.io_write_bytes_per_s_mean,
        ];
        let read = scanned(store, row);
        assert!(kept.iter().zip(read).all(|(a, b)| close(*a, b, 1e-6)), "{kept:?} {read:?}");
        let kept =
            summary(store, row, "SELECT cpu_s, read_mib FROM task_summary WHERE task_type = ? AND user = ?");
        let sql = "SELECT avg(r.cpu_ns) / 1e9, avg(r.block_read_bytes) / 1048576
                   FROM run r JOIN task t ON t.id = r.task_id
                   WHERE r.state = 'finished' AND r.duration_ns > 0 AND t.task_type = ? AND t.user = ?";
        let read = summary(store, row, sql);
        assert!(close(kept[0], read[0], 0.006) && close(kept[1], read[1], 0.06), "{kept:?} {read:?}");
    }
    nothing_is_left_over(store);
}

fn nothing_is_left_over(store: &Store) {
    let zero = |sql: &str| assert_eq!(number(store, sql), 0, "{sql}");
    zero(
        "SELECT count(*) FROM coverage WHERE id NOT IN (SELECT coverage_id FROM run WHERE coverage_id NOTNULL)",
    );
    let columns = format!("run_id, task_id, {}", crate::store::history::COLUMNS);
    let actual = format!("SELECT {columns} FROM run_actual WHERE worth <> 'none'");
    let kept = format!("SELECT {columns} FROM observation");
    zero(&format!("SELECT count(*) FROM ({actual} EXCEPT {kept})"));
    zero(&format!("SELECT count(*) FROM ({kept} EXCEPT {actual})"));
    zero("SELECT sum(runs - pruned) - (SELECT count(*) FROM run) FROM task");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_those_of_a_scan(steps in vec(any_step(), 1..120)) {
        let (_directory, mut store) = temporary();
        let mut model = Model::default();
        store.begin_run(&new_run("other", 9)).unwrap();
        model.sums.insert(("other".into(), 9), Sums {
            runs: 1,
            last_started_at_ms: Some(new_run("other", 9).started_at_ms),
            ..Sums::default()
        });
        for step in &steps {
            model.take(&mut store, step);
        }
        check(&store, &model);
    }
}

#[test]
fn checkpoints_that_change_coverage_leave_one_row() {
    let (_directory, mut store) = temporary();
    let id = store.begin_run(&new_run("long", 1)).unwrap();
    for lost in 0..50 {
        let measured = Measured { coverage: coverage(&format!("{lost} events lost")), ..measured(1) };
        store.checkpoint(id, &measured).unwrap();
    }
    assert_eq!(number(&store, "SELECT count(*) FROM coverage"), 1);
    assert!(matches!(store.checkpoint(RunId(99), &measured(1)), Err(StoreError::NotRunning { .. })));
    assert_eq!(number(&store, "SELECT count(*) FROM coverage"), 1, "nor does a run that is none");
    store.close_lost(id, 1).unwrap();
    store.prune_at(100 * DAY_MS, 0, 1).unwrap();
    assert_eq!(number(&store, "SELECT count(*) FROM coverage"), 0);
}

/// Memory identifies a run here.
fn mib(runs: &[Observation]) -> Vec<u64> {
    runs.iter().map(|run| run.values[0].unwrap() as u64 >> 20).collect()
}

#[test]
fn full_levels_hold_the_newest_of_all_users() {
    let (_directory, mut store) = temporary();
    let mut newest = Vec::new();
    store.execute("BEGIN").unwrap();
    for i in 1..=1500_u64 {
        // Some users run often, some seldom, and one stopped long ago.
        let uid = if i <= 300 { 9 } else { (i * i % 7 % 5) as u32 };
        ran(&mut store, &new_run("sort", uid), well(), i);
        newest.insert(0, (i, uid));
    }
    store.execute("COMMIT").unwrap();
    let all: Vec<u64> = newest.iter().map(|(i, _)| *i).take(HISTORY_MAX).collect();
    for uid in [0, 1, 2, 4, 9, 77] {
        let history = store.history(&key("sort", uid)).unwrap();
        let own = newest.iter().filter(|(_, user)| *user == uid).map(|(i, _)| *i).take(HISTORY_MAX);
        assert_eq!(mib(&history.task_and_user), own.collect::<Vec<_>>());
        assert_eq!(mib(&history.task), all);
        assert_eq!(mib(&history.host), all);
    }
}

#[test]
fn the_history_of_a_task_is_read_from_its_index_alone() {
    let (_directory, store) = temporary();
    let sql = format!("EXPLAIN QUERY PLAN {}", crate::store::history::OF_TASK.as_str());
    let plan: String = store.connection.query_row(&sql, [1, 1], |row| row.get("detail")).unwrap();
    assert!(plan.contains("USING COVERING INDEX observation_by_task"), "{plan}");
}
