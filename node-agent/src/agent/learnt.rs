//! What was learnt of tasks, kept in memory: the least recently used goes first. What is kept is only ever found by the
//! runs that it was made from: one more, or one less, whoever wrote or deleted it, and it is made anew.

use crate::fingerprint::key::{Feature, TaskKey};
use crate::predict::{Learnt, Prediction};
use crate::store::{Reader, RunsBehind, StoreError};
use std::collections::HashMap;
use std::sync::Arc;

/// Most memory that is taken, bytes. A task whose runs have many features takes 0.5 MB, one without 0.1 MB.
pub const KEPT_BYTES_MAX: usize = 4 << 20;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct LearntTasks {
    kept: HashMap<TaskKey, Kept>,
    bytes: usize,
    /// Uses so far.
    uses: u64,
}

#[derive(Debug)]
struct Kept {
    behind: RunsBehind,
    learnt: Arc<Learnt>,
    bytes: usize,
    last_use: u64,
}

impl LearntTasks {
    /// What it takes, bytes: at most [`KEPT_BYTES_MAX`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is learnt of a task, from memory if its runs are still the same.
    ///
    /// # Errors
    /// The database can't be read.
    pub fn of(&mut self, reader: &Reader, key: &TaskKey) -> Result<Arc<Learnt>, StoreError> {
        let behind = reader.runs_behind(key)?;
        self.uses += 1;
        if let Some(kept) = self.kept.get_mut(key).filter(|kept| kept.behind == behind) {
            kept.last_use = self.uses;
            return Ok(Arc::clone(&kept.learnt));
        }
        let (history, behind) = reader.history_of_task(key)?;
        let learnt = Arc::new(Learnt::of(&history));
        self.keep(key.clone(), behind, Arc::clone(&learnt));
        Ok(learnt)
    }

    /// Keeps what was learnt elsewhere from these runs.
    pub fn keep(&mut self, key: TaskKey, behind: RunsBehind, learnt: Arc<Learnt>) {
        self.remove(&key);
        let bytes = size_of::<Kept>() + key.task_type.capacity() + behind.bytes() + learnt.bytes();
        while self.bytes + bytes > KEPT_BYTES_MAX {
            let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| kept.last_use) else { return };
            let oldest = oldest.0.clone();
            self.remove(&oldest);
        }
        self.uses += 1;
        self.bytes += bytes;
        self.kept.insert(key, Kept { behind, learnt, bytes, last_use: self.uses });
    }

    fn remove(&mut self, key: &TaskKey) {
        self.bytes -= self.kept.remove(key).map_or(0, |kept| kept.bytes);
    }
}

/// What a run will need by what was learnt of its task; what else matters is read.
///
/// # Errors
/// The database can't be read.
pub fn predict(
    reader: &Reader,
    key: &TaskKey,
    learnt: &Learnt,
    features: &[Feature],
    risk: f64,
) -> Result<Prediction, StoreError> {
    let around = reader.around(key, !learnt.is_complete())?;
    Ok(learnt.predict(&around, features, risk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::key::FeatureValue;
    use crate::fingerprint::{Fingerprint, Measured};
    use crate::host::ProcessId;
    use crate::predict::{History, Observation, RESOURCES};
    use crate::size::Policy;
    use crate::store::past::ForeignRun;
    use crate::store::record::{Ending, Engine, NewRun, RunId};
    use crate::store::{Retention, Store};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn key(task: u8, uid: u32) -> TaskKey {
        TaskKey { task_type: format!("task {task}"), uid }
    }

    fn new_run(key: TaskKey, n: u64) -> NewRun {
        let size =
            Feature { name: "input_bytes".into(), value: FeatureValue::Number((n * 37 % 101) as f64 * 1e6) };
        NewRun {
            admission: None,
            user: "somebody".into(),
            key,
            command: vec!["task".into()],
            directory: "/".into(),
            started_at_ms: n as i64 * 1000,
            engine: Engine::Agent,
            owner: ProcessId::current(),
            main: None,
            cgroup: None,
            policy: Policy::Observe,
            features: vec![size],
            prediction: Default::default(),
            limits: Default::default(),
        }
    }

    fn measured(n: u64) -> Measured {
        let fingerprint = Fingerprint {
            duration_ns: (1 + n * 37 % 101) * 1_000_000_000,
            cpu_ns: Some(1 + n % 7 * 100_000_000),
            memory_peak_bytes: Some((100 + n * 37 % 101) << 20),
            tasks_peak: (!n.is_multiple_of(3)).then_some(n % 5),
            ..Fingerprint::default()
        };
        Measured { fingerprint, ..Measured::default() }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begins(u8, u32),
        /// The oldest of those under way, else the newest.
        Ends {
            oldest: bool,
            exit_code: i32,
        },
        Imported {
            task: u8,
            uid: u32,
            runs: u64,
        },
        Pruned {
            keep_runs: u32,
        },
        Lost,
        Asked(u8, u32),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..2_u8, 0..2_u32).prop_map(|(task, uid)| Step::Begins(task, uid)),
            6 => (any::<bool>(), 0..2).prop_map(|(oldest, exit_code)| Step::Ends { oldest, exit_code }),
            2 => (0..2_u8, 0..2_u32, 1..9_u64).prop_map(|(task, uid, runs)| Step::Imported { task, uid, runs }),
            1 => (1..6_u32).prop_map(|keep_runs| Step::Pruned { keep_runs }),
            1 => Just(Step::Lost),
            4 => (0..2_u8, 0..2_u32).prop_map(|(task, uid)| Step::Asked(task, uid)),
        ]
    }

    /// Writes what a step says.
    fn take(store: &mut Store, step: &Step, under_way: &mut VecDeque<RunId>, n: u64) {
        match *step {
            Step::Begins(task, uid) => {
                under_way.push_back(store.begin_run(&new_run(key(task, uid), n)).unwrap());
            }
            Step::Ends { oldest, exit_code } => {
                let run = if oldest { under_way.pop_front() } else { under_way.pop_back() };
                let ending = Ending { exit_code: Some(exit_code), ..Ending::default() };
                run.into_iter()
                    .for_each(|run| store.finish_run(run, n as i64, &ending, &measured(n)).unwrap());
            }
            Step::Imported { task, uid, runs } => {
                let runs = (0..runs).map(|more| ForeignRun {
                    run: new_run(key(task, uid), n + more),
                    ended_at_ms: n as i64 * 1000 + 500,
                    measured: measured(n + more),
                });
                store.import(&runs.collect::<Vec<_>>()).unwrap();
            }
            Step::Pruned { keep_runs } => {
                store.prune(&Retention { runs_per_task: keep_runs, ..Retention::UNBOUNDED }).unwrap();
            }
            Step::Lost => {
                under_way.pop_front().into_iter().for_each(|run| store.close_lost(run, n as i64).unwrap());
            }
            Step::Asked(..) => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_kept_predicts_what_is_made_anew(steps in prop::collection::vec(any_step(), 1..80)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("standin.db");
            let mut store = Store::open(&path).unwrap().store;
            let reader = Reader::open(&path).unwrap();
            let (mut tasks, mut under_way) = (LearntTasks::default(), VecDeque::new());
            for (n, step) in (0..).map(|n| n * 10).zip(&steps) {
                take(&mut store, step, &mut under_way, n);
                let Step::Asked(task, uid) = *step else { continue };
                let key = key(task, uid);
                let kept = tasks.of(&reader, &key).unwrap();
                let again = tasks.of(&reader, &key).unwrap();
                prop_assert!(Arc::ptr_eq(&kept, &again), "it is not kept");
                let history = reader.history(&key).unwrap();
                let features = new_run(key, n).features;
                let anew = crate::predict::predict(&history, &features, 0.05);
                let around = History { task_and_user: Vec::new(), task: Vec::new(), ..history };
                prop_assert_eq!(kept.predict(&around, &features, 0.05), anew);
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_the_least_recently_used_goes_first() {
        let run = |n: u64| Observation {
            values: [Some(n as f64); RESOURCES],
            features: new_run(key(0, 0), n).features,
            ..Observation::default()
        };
        let history = History { task_and_user: (0..64).map(run).collect(), ..History::default() };
        let learnt = Arc::new(Learnt::of(&history));
        let mut tasks = LearntTasks::default();
        let fit = KEPT_BYTES_MAX / learnt.bytes();
        for uid in 0..2 * fit as u32 {
            tasks.keep(key(0, uid), RunsBehind::default(), Arc::clone(&learnt));
            tasks.kept.get_mut(&key(0, 0)).unwrap().last_use = u64::from(uid) + 1000;
            assert!(tasks.bytes() <= KEPT_BYTES_MAX);
        }
        assert_eq!(tasks.bytes(), tasks.kept.values().map(|kept| kept.bytes).sum::<usize>());
        assert!(tasks.kept.len() + 2 >= fit, "{} of {fit}", tasks.kept.len());
        assert!(tasks.kept.contains_key(&key(0, 0)) && !tasks.kept.contains_key(&key(0, 1)));
    }
}
