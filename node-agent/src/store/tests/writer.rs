//! The batching writer.

use super::*;
use crate::store::writer::Writer;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

#[test]
fn commands_are_answered_and_flushed_on_drop() {
    let (directory, store) = temporary();
    let path = store.path().to_owned();
    let writer = Writer::start(store).unwrap();
    let id = writer.begin_blocking(new_run("sort", 1)).unwrap();
    writer.set_main(id, owner());
    writer.checkpoint(id, measured(5));
    let (answer, answered) = channel();
    writer.finish(id, 1, well(), measured(5), Box::new(move |result| answer.send(result).unwrap()));
    answered.recv().unwrap().unwrap();
    for _ in 0..100 {
        writer.begin(new_run("sort", 1), Box::new(|result| assert!(result.is_ok())));
    }
    assert_eq!(writer.failures(), 0);
    drop(writer);
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.runs(None, 1000).unwrap().len(), 101);
    drop(directory);
}

#[test]
fn one_bad_command_does_not_take_others_with_it() {
    let (_directory, store) = temporary();
    let writer = Writer::start(store).unwrap();
    let (answer, answered) = channel();
    for i in 0..50 {
        let answer = answer.clone();
        if i % 10 == 0 {
            writer.checkpoint(RunId(9999), measured(1));
        }
        writer.begin(new_run("sort", 1), Box::new(move |result| answer.send(result.is_ok()).unwrap()));
    }
    writer.flush().unwrap();
    assert_eq!(answered.try_iter().filter(|ok| *ok).count(), 50);
    assert_eq!(writer.failures(), 5);
    let result = writer.finish_blocking(RunId(9999), 1, well(), measured(1));
    assert!(matches!(result, Err(StoreError::NotRunning { .. })));
    let mut store = writer.close().unwrap();
    assert_eq!(store.open_runs().unwrap().len(), 50);
    assert_eq!(store.prune(&Retention { runs_per_task: 1, days: 1, ..Retention::UNBOUNDED }).unwrap(), 0);
}

/// What an agent with all probes writes at the end of a run.
fn typical() -> Measured {
    let source = |measure: &str| Source {
        measure: measure.into(),
        source: Some("tp_btf sched_switch, sched_wakeup; raw tracepoint sched_process_exit".into()),
        note: Some(
            "cgroup v1: memory is sampled every 100 ms, short peaks between samples are missed".into(),
        ),
    };
    let coverage = ["cpu", "faults", "memory", "block", "network", "tasks"].map(source);
    Measured { coverage: Coverage(coverage.into()), ..measured(100) }
}

/// As in the agent: between two reads another connection commits, which empties the reader's page cache.
fn history_after_commits(reader: &Reader, writer: &Writer) -> [Duration; 2] {
    let mut times: Vec<Duration> = (0..201)
        .map(|i| {
            let id = writer.begin_blocking(new_run(&format!("task{}", i % 100), 1000 + i % 3)).unwrap();
            writer.finish_blocking(id, 1, well(), typical()).unwrap();
            let started = Instant::now();
            reader.history(&key("task7", 1001)).unwrap();
            started.elapsed()
        })
        .collect();
    times.sort();
    [times[0], times[times.len() / 2]]
}

/// A measurement, not a test: `cargo test --release store -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn ingest_and_history_among_many_runs() {
    let (_directory, store) = temporary();
    let path = store.path().to_owned();
    let writer = std::sync::Arc::new(Writer::start(store).unwrap());
    let count: u32 = std::env::var("STANDIN_BENCH_RUNS").map_or(20_000, |runs| runs.parse().unwrap());
    let started = Instant::now();
    let mut begun = 0;
    while begun < count {
        let portion = 400.min(count - begun);
        let (answer, answered) = channel();
        for i in 0..portion {
            let answer = answer.clone();
            let task = format!("task{}", (begun + i) % 100);
            let reply = Box::new(move |result: Result<RunId, StoreError>| answer.send(result).unwrap());
            writer.begin(new_run(&task, 1000 + (begun + i) % 3), reply);
        }
        drop(answer);
        for id in answered {
            writer.finish(id.unwrap(), 1, well(), typical(), Box::new(|result| result.unwrap()));
        }
        begun += portion;
    }
    writer.flush().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let megabytes = std::fs::metadata(&path).unwrap().len() as f64 / 1e6;
    eprintln!("{count} runs begun and ended: {:.0} runs/s, {megabytes:.0} MB", f64::from(count) / seconds);
    let reader = Reader::open(&path).unwrap();
    let timed = |what: &str, work: &dyn Fn() -> usize| {
        work();
        let started = Instant::now();
        let rows = work();
        eprintln!("{what}: {:?} ({rows} rows)", started.elapsed());
    };
    let [best, median] = history_after_commits(&reader, &writer);
    eprintln!("history after a commit: median {median:?}, best {best:?}");
    timed("tasks", &|| reader.tasks().unwrap().len());
    timed("runs", &|| reader.runs(Some("task7"), 20).unwrap().len());
    timed("accuracy", &|| reader.accuracy(Some("task7"), 100).unwrap().len());
    drop(reader);
    timed("opening for writing", &|| usize::from(Store::open(&path).is_ok()));
    timed("opening for reading", &|| usize::from(Reader::open(&path).is_ok()));
    timed("one begun run, waited for", &|| usize::from(writer.begin_blocking(new_run("task7", 1)).is_ok()));
    let writer = std::sync::Arc::into_inner(writer).unwrap();
    let mut store = writer.close().unwrap();
    let started = Instant::now();
    let pruned = store.prune(&Retention { runs_per_task: 100, ..Retention::UNBOUNDED }).unwrap();
    eprintln!("prune of {pruned} runs: {:?}", started.elapsed());
}
