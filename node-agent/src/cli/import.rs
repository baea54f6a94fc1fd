//! `standin import`: runs that were measured elsewhere, as a starting point for predictions.

use super::exit::complain;
use super::progress::Progress;
use super::settings::Settings;
use super::trace_file::{CsvArg, TraceArgs};
use crate::backtest::own::REQUEST;
use crate::backtest::trace::Task;
use crate::fingerprint::key::{Feature, FeatureValue, TaskKey};
use crate::fingerprint::{Coverage, Fingerprint, Measured, Source};
use crate::host::{self, ProcessId};
use crate::size::Policy;
use crate::store::Store;
use crate::store::past::{ForeignRun, PORTION};
use crate::store::record::{Engine, NewRun};
use crate::units::format_count;
use clap::Args;
use nix::unistd::User;
use std::collections::{BTreeSet, HashMap};

/// Names that are listed of many.
const NAMES_MAX: usize = 8;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sacct --parsable2 --format JobID,JobName,User,Start,End,ElapsedRaw,State,ReqMem,MaxRSS,AllocCPUS,TotalCPU > jobs
  standin import --csv jobs --preset sacct
  standin import --csv trace.csv.xz --preset sizey
  standin import --csv own.csv --map elapsed=duration_s --map rss=memory_peak_bytes --map job=task_type")]
pub(super) struct ImportArgs {
    #[command(flatten)]
    csv: CsvArg,
    #[command(flatten)]
    reading: TraceArgs,
}

pub(super) fn run(settings: &Settings, arguments: &ImportArgs) -> anyhow::Result<u8> {
    let trace = arguments.reading.read(&arguments.csv.csv)?;
    let mut users = HashMap::new();
    let runs: Vec<_> = trace.tasks.iter().map(|task| foreign(task, &mut users)).collect();
    let mut opened = Store::open(&settings.database)?;
    let mut progress = Progress::new("took in");
    for (done, portion) in runs.chunks(PORTION).enumerate() {
        opened.store.import(portion)?;
        progress.tell(done * PORTION + portion.len(), runs.len(), "runs");
    }
    drop(progress);
    complain(&format!("{} runs taken into {}", format_count(runs.len() as u64), settings.database.display()));
    let strangers =
        names(users.iter().filter(|(name, uid)| uid.is_none() && !name.is_empty()).map(|it| it.0));
    if !strangers.is_empty() {
        complain(&format!("users that this host does not have, whose runs count as yours: {strangers}"));
    }
    if !trace.unused.is_empty() {
        let unused = names(trace.unused.iter());
        complain(&format!("columns that were not used: {unused}; --map COLUMN=NAME says what one holds"));
    }
    Ok(0)
}

/// Names in order, each once; of many the first.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> String {
    let all: BTreeSet<&str> = all.map(String::as_str).collect();
    let first: Vec<&str> = all.iter().take(NAMES_MAX).copied().collect();
    let rest = all.len() - first.len();
    first.join(", ") + &if rest > 0 { format!(" and {rest} more") } else { String::new() }
}

/// The user of that name on this host.
fn uid(name: &str, users: &mut HashMap<String, Option<u32>>) -> Option<u32> {
    let known = || User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    *users.entry(name.to_owned()).or_insert_with(known)
}

/// Users of this host keep their runs; those of others count as the caller's.
fn foreign(task: &Task, users: &mut HashMap<String, Option<u32>>) -> ForeignRun {
    let uid = uid(&task.user, users).unwrap_or_else(|| nix::unistd::getuid().as_raw());
    let mut features = task.features.clone();
    let request = |bytes| Feature { name: REQUEST.into(), value: FeatureValue::Number(bytes) };
    features.extend(task.memory_request_bytes.map(request));
    let run = NewRun {
        admission: None,
        key: TaskKey { task_type: task.task_type.clone(), uid },
        user: host::user_name(uid),
        command: vec![task.task_type.clone()],
        directory: String::new(),
        started_at_ms: task.start_ms,
        engine: Engine::Accounting,
        owner: ProcessId::current(),
        main: None,
        cgroup: None,
        policy: Policy::Observe,
        features,
        prediction: Default::default(),
        limits: Default::default(),
    };
    let ns = |seconds: f64| (seconds * 1e9) as u64;
    let duration_ms = (task.duration_s * 1e3) as i64;
    let fingerprint = Fingerprint {
        duration_ns: ns(task.duration_s),
        cpu_ns: task.cpu_cores_mean.map(|cores| ns(cores * task.duration_s)),
        memory_peak_bytes: Some(task.memory_peak_bytes as u64),
        storage_read_bytes: task.io_read_bytes.map(|bytes| bytes as u64),
        storage_write_bytes: task.io_write_bytes.map(|bytes| bytes as u64),
        ..Fingerprint::default()
    };
    let source = Source {
        measure: "all".into(),
        source: Some("standin import".into()),
        note: Some("measured elsewhere".into()),
    };
    let measured = Measured { fingerprint, coverage: Coverage(vec![source]), ..Measured::default() };
    ForeignRun { run, ended_at_ms: task.start_ms.saturating_add(duration_ms), measured }
}
