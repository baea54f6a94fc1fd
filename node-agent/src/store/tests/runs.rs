//! A run from its beginning to its last trace.

use super::*;
use crate::predict::RESOURCES;

#[test]
fn a_run_comes_back_as_it_was_written() {
    let (_directory, mut store) = temporary();
    let new = new_run("sort", 1000);
    let id = ran(&mut store, &new, well(), 212);
    let detail = Reader::open(store.path()).unwrap().run(id).unwrap().unwrap();
    let mut expected = measured(212);
    // SQLite's integers are signed.
    expected.fingerprint.faults_major = Some(i64::MAX.cast_unsigned());
    assert_eq!(detail.fingerprint, expected.fingerprint);
    assert_eq!(detail.series, expected.series.points());
    assert_eq!(detail.coverage, expected.coverage);
    assert_eq!(detail.features, new.features);
    assert_eq!(detail.prediction, new.prediction);
    assert_eq!(detail.limits, new.limits);
    assert_eq!(detail.run.command, new.command);
    assert_eq!((detail.run.state.as_str(), detail.run.exit_code), ("finished", Some(0)));
    assert_eq!(detail.run.cpu_cores_mean, Some(0.75));
    assert!(serde_json::to_string(&detail).unwrap().contains("\"memory_peak_bytes\""));
}

#[test]
fn the_view_of_resources_says_what_each_is() {
    let (_directory, mut store) = temporary();
    ran(&mut store, &new_run("sort", 1000), well(), 200);
    let history = store.history(&key("sort", 1000)).unwrap();
    let expected = [
        (200 << 20) as f64,
        0.75,
        1.9,
        2e6, // the larger of block and storage
        4e6, // storage alone
        11e3,
        5e3, // TCP alone: UDP was not measured
        4.0,
        2.0,
        0.6,
        0.2,
        50.0,
        0.5,
    ];
    assert_eq!(history.task_and_user[0].values, expected.map(Some));
    assert_eq!(history.task_and_user[0].censored, [false; RESOURCES]);
    assert_eq!(number(&store, "SELECT count(*) FROM run_resource WHERE value IS NOT NULL"), RESOURCES as i64);
}

#[test]
fn history_has_three_levels_newest_first() {
    let (_directory, mut store) = temporary();
    for (task, uid, mib) in [("sort", 1, 10), ("sort", 2, 20), ("xz", 1, 30), ("sort", 1, 40)] {
        ran(&mut store, &new_run(task, uid), well(), mib);
    }
    let history = store.history(&key("sort", 1)).unwrap();
    let mib = |runs: &[crate::predict::Observation]| -> Vec<u64> {
        runs.iter().map(|run| run.values[0].unwrap() as u64 >> 20).collect()
    };
    assert_eq!(mib(&history.task_and_user), [40, 10]);
    assert_eq!(mib(&history.task), [40, 20, 10]);
    assert_eq!(mib(&history.host), [40, 30, 20, 10]);
    assert_eq!(store.history(&key("sort", 9)).unwrap().task_and_user, []);
}

#[test]
fn failures_are_samples_only_where_they_tell_something() {
    let (_directory, mut store) = temporary();
    let new = new_run("job", 1);
    let failed = Ending { exit_code: Some(2), ..Ending::default() };
    let not_executed = Ending { exec_errno: Some(2), ..Ending::default() };
    let stopped = Ending { signal: Some(15), ..Ending::default() };
    let out_of_memory = Ending { signal: Some(9), out_of_memory: true, ..Ending::default() };
    let throttled = Ending { throttled: true, ..well() };
    let held_back = Ending { throttled: true, ..failed };
    for ending in [failed, not_executed, held_back] {
        ran(&mut store, &new, ending, 10);
    }
    let lost = store.begin_run(&new).unwrap();
    store.checkpoint(lost, &measured(10)).unwrap();
    store.close_lost(lost, 1).unwrap();
    store.begin_run(&new).unwrap();
    let history = |store: &Store| store.history(&key("job", 1)).unwrap().task_and_user;
    assert_eq!(history(&store), []);

    ran(&mut store, &new, stopped, 50);
    assert_eq!(history(&store).len(), 1, "a service that never ends by itself has only such runs");

    ran(&mut store, &new, out_of_memory, 100);
    assert_eq!(history(&store)[0].censored, [true; RESOURCES]);

    ran(&mut store, &new, throttled, 20);
    let runs = history(&store);
    assert_eq!(runs.len(), 2, "now that a run ended well the stopped one is out");
    let cpu = [false, true, true, false, false, false, false, false, false, true, true, false, false];
    assert_eq!(runs[0].censored, cpu);
}

#[test]
fn open_runs_are_found_adopted_and_closed() {
    let (_directory, mut store) = temporary();
    let id = store.begin_run(&new_run("serve", 1)).unwrap();
    let main = ProcessId { pid: 88, ..owner() };
    store.set_main(id, &main).unwrap();
    store.checkpoint(id, &measured(64)).unwrap();
    let open = store.open_runs().unwrap();
    assert_eq!(open.len(), 1);
    let run = &open[0];
    assert_eq!((run.id, &run.owner, run.main.as_ref()), (id, &owner(), Some(&main)));
    assert_eq!(run.cgroup, Some(("standin/run-1".into(), 4711)));
    assert_eq!(run.measured.series.points(), measured(64).series.points());
    assert_eq!(run.limits, new_run("serve", 1).limits);

    store.adopt(id, &main).unwrap();
    assert_eq!(store.open_runs().unwrap()[0].owner, main);
    store.close_lost(id, 5).unwrap();
    assert!(store.open_runs().unwrap().is_empty());
    for result in [
        store.checkpoint(id, &measured(1)),
        store.finish_run(id, 6, &well(), &measured(1)),
        store.set_main(RunId(999), &main),
    ] {
        assert!(matches!(result, Err(StoreError::NotRunning { .. })), "{result:?}");
    }
}

#[test]
fn checkpoints_of_a_growing_series_leave_what_is_measured_last() {
    let (_directory, mut store) = temporary();
    let id = store.begin_run(&new_run("long", 1)).unwrap();
    let mut measured = Measured::default();
    for second in 1..=1000 {
        measured.series.push(Point {
            at_ms: second * 1000,
            length_ms: 1000,
            memory_bytes: second,
            ..Point::default()
        });
        if second % 7 == 0 {
            store.checkpoint(id, &measured).unwrap();
        }
    }
    store.finish_run(id, 1, &well(), &measured).unwrap();
    let detail = Reader::open(store.path()).unwrap().run(id).unwrap().unwrap();
    assert_eq!(detail.series, measured.series.points());
}

#[test]
fn odd_numbers_and_doubled_names_lose_no_run() {
    let (_directory, mut store) = temporary();
    let mut new = new_run("odd\u{0}name", u32::MAX);
    new.features.push(new.features[0].clone());
    new.features.push(Feature { name: "nan".into(), value: FeatureValue::Number(f64::NAN) });
    new.prediction.estimates[0].upper = f64::NAN;
    new.limits.0.push((Limit::CpuMax(f64::INFINITY), Origin::Manual));
    let id = store.begin_run(&new).unwrap();
    let mut measured = measured(1);
    measured.fingerprint.cpu_cores_peak = Some(f64::NAN);
    measured.series.push(Point { at_ms: 9000, cpu_cores: f64::NAN, ..Point::default() });
    store.finish_run(id, 1, &well(), &measured).unwrap();
    assert!(Reader::open(store.path()).unwrap().run(id).unwrap().is_some());
}

#[test]
fn retention_keeps_what_runs_add_up_to() {
    let (_directory, mut store) = temporary();
    for mib in 1..=20 {
        ran(&mut store, &new_run("sort", 1), well(), 100 - mib);
    }
    let failed = Ending { exit_code: Some(1), ..Ending::default() };
    ran(&mut store, &new_run("old", 1), failed, 7);
    let running = store.begin_run(&new_run("old", 1)).unwrap();
    let day_ms = 24 * 3600 * 1000;
    let now_ms = 1_700_000_000_000 + 10 * day_ms;
    assert_eq!(store.prune_at(now_ms, 0, 0).unwrap(), 0);
    assert_eq!(store.prune_at(now_ms, 5, 30).unwrap(), 15);
    assert_eq!(store.history(&key("sort", 1)).unwrap().task_and_user.len(), 5);
    let tasks = Reader::open(store.path()).unwrap().tasks().unwrap();
    let sort = tasks.iter().find(|task| task.task_type == "sort").unwrap();
    assert_eq!((sort.runs, sort.finished, sort.memory_peak_bytes_max), (20, 20, Some(99 << 20)));
    assert_eq!(number(&store, "SELECT count(*) FROM run_series"), 6 * 5, "children go with their run");

    assert_eq!(store.prune_at(now_ms, 5, 9).unwrap(), 6);
    assert_eq!(store.open_runs().unwrap()[0].id, running, "what runs stays");
    let tasks = Reader::open(store.path()).unwrap().tasks().unwrap();
    let old = tasks.iter().find(|task| task.task_type == "old").unwrap();
    assert_eq!((old.runs, old.failed), (2, 1));
}

#[test]
fn cgroups_of_others_are_told_from_runs() {
    let (_directory, mut store) = temporary();
    ran(&mut store, &new_run("sort", 1), well(), 150);
    // Measured elsewhere: without a command, and without a cgroup.
    ran(&mut store, &NewRun { command: Vec::new(), cgroup: None, ..new_run("slurm", 1) }, well(), 150);
    ran(&mut store, &NewRun { command: Vec::new(), ..new_run("nginx.service", 1) }, well(), 10);
    let reader = Reader::open(store.path()).unwrap();
    let kinds: Vec<_> = reader.tasks().unwrap().into_iter().map(|task| (task.task_type, task.kind)).collect();
    let of = |name: &str, kind| (name.to_owned(), kind);
    assert_eq!(kinds, [of("nginx.service", Kind::Cgroup), of("slurm", Kind::Run), of("sort", Kind::Run)]);
    let started: Vec<_> = reader.runs_started(10).unwrap().into_iter().map(|run| run.task_type).collect();
    assert_eq!((started, reader.runs(None, 10).unwrap().len()), (vec!["slurm".into(), "sort".into()], 3));
    let past: Vec<_> = reader.past().unwrap().into_iter().map(|run| run.task_type).collect();
    assert_eq!(past, ["sort", "slurm"], "nothing was ever reserved for a unit");
}

#[test]
fn readers_see_tasks_runs_and_accuracy() {
    let (_directory, mut store) = temporary();
    ran(&mut store, &new_run("sort", 1), well(), 150);
    ran(&mut store, &new_run("sort", 2), well(), 400);
    ran(&mut store, &new_run("xz", 1), well(), 10);
    let reader = Reader::open(store.path()).unwrap();
    assert_eq!(reader.runs(None, 2).unwrap().len(), 2);
    assert_eq!(reader.runs(Some("sort"), 10).unwrap().len(), 2);
    let task = reader.task("sort").unwrap().unwrap();
    assert_eq!((task.users.len(), task.recent_runs.len()), (2, 2));
    assert_eq!(reader.task("none").unwrap(), None);
    assert_eq!(reader.run(RunId(99)).unwrap(), None);
    let memory: Vec<_> = reader
        .accuracy(Some("sort"), 100)
        .unwrap()
        .into_iter()
        .filter(|row| row.resource == Resource::MemoryPeakBytes)
        .map(|row| row.within_upper)
        .collect();
    assert_eq!(memory, [false, true]);
}
