//! `cargo xtask bench predict`: how good predictions are on real traces, and what they cost.
//!
//! The traces are not part of this project. `STANDIN_TRACES` names a folder with `sizey/trace_NAME.csv.xz`,
//! `eagle/sample_eagle_data.csv.xz` and `crane/crane.tar.xz`; what is not there is said. Costs are measured on histories
//! made here.
#![allow(missing_docs, clippy::unwrap_used, reason = "this is no library; it panics where it fails")]

mod hours;
mod traces;

use standin::agent::learnt::{self, LearntTasks};
use standin::fingerprint::key::{Feature, FeatureValue, TaskKey};
use standin::fingerprint::{Fingerprint, Measured};
use standin::host::ProcessId;
use standin::predict::sizing::{Sizing, TooSmall};
use standin::predict::{HISTORY_MAX, History, Learnt, Observation, RESOURCES, predict, seasonal};
use standin::size::Policy;
use standin::store::past::ForeignRun;
use standin::store::record::{Engine, NewRun};
use standin::store::{Reader, Store};
use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

fn main() {
    let traces = std::env::var_os("STANDIN_TRACES").map(PathBuf::from).filter(|folder| folder.is_dir());
    match &traces {
        Some(folder) => {
            traces::on_all(folder);
            hours::on_all(folder);
        }
        None => println!("waste and accuracy: skipped: no traces (STANDIN_TRACES names their folder)"),
    }
    costs();
    database();
}

fn features(n: u64) -> Vec<Feature> {
    let number = |name: &str, x: f64| Feature { name: name.into(), value: FeatureValue::Number(x) };
    vec![
        number("input_bytes", (n * 7919 % 1009 + 1) as f64 * 1e6),
        number("input_bytes_max", (n * 104_729 % 997 + 1) as f64 * 1e5),
        number("input_files", (n % 5) as f64),
        number("hour_of_week", (n % 168) as f64),
    ]
}

fn need(n: u64) -> f64 {
    1e8 + (n * 7919 % 1009) as f64 * 1e6 + (n * 31 % 17) as f64 * 1e6
}

/// The median time of `work`, in rounds.
fn median(rounds: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .collect();
    times.sort();
    times[rounds / 2]
}

fn costs() {
    let mut sizing = Sizing::new(TooSmall::Kills);
    (0..10_000).for_each(|n| sizing.ended(n as usize, &features(n), need(n), 60.0));
    let asked = features(77);
    let kept = median(1000, || _ = black_box(sizing.reserve_bytes(black_box(&asked), 1e10)));
    let mut n = 10_000;
    let update = median(1000, || {
        sizing.ended(n as usize, &features(n), need(n), 60.0);
        n += 1;
    });
    println!(
        "10,000 runs behind it, state of a replay kept: predict {kept:?}, update {update:?} (one resource)"
    );
    let observation = |n| Observation {
        values: [Some(need(n)); RESOURCES],
        censored: [false; RESOURCES],
        features: features(n),
    };
    let runs: Vec<_> = (0..HISTORY_MAX as u64).map(observation).collect();
    let history =
        History { task_and_user: runs.clone(), task: runs.clone(), host: runs, ..History::default() };
    state_of_an_agent("four features", &history, &asked);
    let mut bare = history.clone();
    bare.task_and_user.iter_mut().for_each(|run| run.features.clear());
    state_of_an_agent("no features", &bare, &[]);
    let hours: Vec<f64> = (0..HISTORY_MAX as u64).map(need).collect();
    let next = median(100, || _ = black_box(seasonal::next_hour(black_box(&hours), 0.9)));
    println!("next hour of one resource, from {HISTORY_MAX} hours: {next:?}");
}

/// What a prediction costs from what the agent keeps of a task, and what that costs.
fn state_of_an_agent(what: &str, history: &History, asked: &[Feature]) {
    let rebuilt = median(100, || _ = black_box(predict(black_box(history), asked, 0.05)));
    let learn = median(100, || _ = black_box(Learnt::of(black_box(history))));
    let learnt = Learnt::of(history);
    let tell = median(1000, || _ = black_box(learnt.predict(black_box(history), asked, 0.05)));
    let one = |time: Duration| time / RESOURCES as u32;
    println!(
        "{HISTORY_MAX} runs or more, {what}, all {RESOURCES} resources: predict rebuilt {rebuilt:?}, from kept state {tell:?} \
         ({:?} each); state made in {learn:?} ({:?} each), takes {} kB",
        one(tell),
        one(learn),
        learnt.bytes() / 1000
    );
}

/// The same with a database in it, as a start does: a task whose state is kept, and one whose is not.
fn starts(reader: &Reader, key: &TaskKey) {
    let rebuilt = median(50, || _ = black_box(predict(&reader.history(key).unwrap(), &features(77), 0.05)));
    let mut tasks = LearntTasks::default();
    let kept = median(200, || {
        let of_task = tasks.of(reader, key).unwrap();
        _ = black_box(learnt::predict(reader, key, &of_task, &features(77), 0.05).unwrap());
    });
    let same = median(200, || _ = black_box(reader.runs_behind(key).unwrap()));
    let around = median(200, || _ = black_box(reader.around(key, false).unwrap()));
    println!(
        "a start's prediction, database included: rebuilt {rebuilt:?}, from kept state {kept:?} (of it, whether its runs are \
         the same {same:?}, what goes on and how bounds held {around:?})"
    );
}

/// Runs in the database that interactive use is measured at.
fn runs_wanted() -> u64 {
    std::env::var("STANDIN_BENCH_RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000)
}

fn database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("standin.db");
    let mut store = Store::open(&path).unwrap().store;
    let wanted = runs_wanted();
    let started = Instant::now();
    for from in (0..wanted).step_by(10_000) {
        let runs: Vec<_> = (from..(from + 10_000).min(wanted)).map(foreign).collect();
        store.import(&runs).unwrap();
    }
    println!("ingest in batch: {:.0} runs/s", wanted as f64 / started.elapsed().as_secs_f64());
    let reader = Reader::open(&path).unwrap();
    let key = TaskKey { task_type: "task 7".into(), uid: 1000 };
    let history = median(50, || _ = black_box(reader.history(&key).unwrap()));
    println!("{wanted} runs: reading the history of a task {history:?}");
    starts(&reader, &key);
    drop(store);
    for verb in [["ls", ""], ["show", "task 7"], ["predict", "task 7"], ["explain", "task 7"]] {
        let arguments: Vec<_> = verb.iter().filter(|word| !word.is_empty()).collect();
        let took = median(20, || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_standin"));
            command.env("STANDIN_DB", &path).args(&arguments);
            if !verb[1].is_empty() && verb[0] != "show" {
                command.args(["--user", "1000"]);
            }
            assert!(command.output().unwrap().status.success(), "{verb:?}");
        });
        println!("{wanted} runs: standin {} {took:?}, whole process", verb[0]);
    }
}

fn foreign(n: u64) -> ForeignRun {
    let started_at_ms = 1_700_000_000_000 + n as i64 * 1000;
    let run = NewRun {
        admission: None,
        key: TaskKey { task_type: format!("task {}", n % 100), uid: 1000 },
        user: "somebody".into(),
        command: vec!["task".into()],
        directory: "/".into(),
        started_at_ms,
        engine: Engine::Accounting,
        owner: ProcessId::current(),
        main: None,
        cgroup: None,
        policy: Policy::Observe,
        features: features(n),
        prediction: Default::default(),
        limits: Default::default(),
    };
    let fingerprint = Fingerprint {
        duration_ns: 60_000_000_000,
        cpu_ns: Some(30_000_000_000),
        memory_peak_bytes: Some(need(n) as u64),
        ..Fingerprint::default()
    };
    ForeignRun {
        run,
        ended_at_ms: started_at_ms + 60_000,
        measured: Measured { fingerprint, ..Measured::default() },
    }
}
