//! A plan, a limit and a finished run, in one line for people or as JSON for programs.

use super::exit::print;
use crate::fingerprint::Fingerprint;
use crate::predict::{Level, Prediction, Resource};
use crate::size::{Limit, Limits, Origin};
use crate::store::record::Ending;
use crate::units::{format_bytes, format_cores, format_duration, format_rate};
use crate::wire::Finished;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Write};

/// Version of every JSON form of this program.
pub(super) const JSON_VERSION: u32 = 1;

/// Prints a value for programs.
pub(super) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(format_args!("{}\n", serde_json::to_string_pretty(value)?))
}

/// What is expected and what is limited.
pub(super) fn plan(prediction: &Prediction, limits: &Limits) -> String {
    let expected = match expected(prediction) {
        Some(expected) => format!("predicted {expected}"),
        None => "no successful run of this task is known".into(),
    };
    format!("{expected}; {}", describe_limits(limits))
}

/// All limits of a run.
pub(super) fn describe_limits(limits: &Limits) -> String {
    if limits.0.is_empty() {
        return "no limits".into();
    }
    let limits: Vec<_> = limits.0.iter().map(|(limit, origin)| describe_limit(*limit, *origin)).collect();
    format!("limits: {}", limits.join(", "))
}

/// `None` without a run of the very task: what others needed says little.
pub(super) fn expected(prediction: &Prediction) -> Option<String> {
    let of = |resource, format: fn(f64) -> String| {
        let estimate = prediction.estimate(resource).filter(|estimate| estimate.level != Level::Host)?;
        Some(format!("{} (at most {})", format(estimate.expected), format(estimate.upper)))
    };
    let parts: Vec<_> = [
        of(Resource::MemoryPeakBytes, format_bytes).map(|text| format!("{text} of memory")),
        of(Resource::CpuCoresMean, format_cores).map(|text| format!("{text} cores")),
        of(Resource::DurationS, format_duration),
    ]
    .into_iter()
    .flatten()
    .collect();
    let of_task = prediction.estimates.iter().filter(|estimate| estimate.level != Level::Host);
    let samples = of_task.map(|estimate| estimate.samples).max()?;
    let runs = if samples == 1 { "run" } else { "runs" };
    Some(format!("{} from {samples} {runs}", parts.join(", ")))
}

/// `memory.high 530 MiB`, with a word if the user asked for it.
fn describe_limit(limit: Limit, origin: Origin) -> String {
    let text = match limit {
        Limit::MemoryMax(bytes) => format!("memory.max {}", format_bytes(bytes as f64)),
        Limit::MemoryHigh(bytes) => format!("memory.high {}", format_bytes(bytes as f64)),
        Limit::CpuMax(cores) => format!("cpu.max {cores:.2} cores"),
        Limit::CpuWeight(weight) => format!("cpu.weight {weight}"),
        Limit::PidsMax(tasks) => format!("pids.max {tasks}"),
        Limit::MemoryLow(bytes) => format!("memory.low {}", format_bytes(bytes as f64)),
        Limit::CpuBurst(cores) => format!("cpu.max.burst {cores:.2} cores"),
        Limit::IoWeight(weight) => format!("io.weight {weight}"),
        Limit::IoReadMax(rate) => format!("io.max reads {}", format_rate(rate as f64)),
        Limit::IoWriteMax(rate) => format!("io.max writes {}", format_rate(rate as f64)),
    };
    match origin {
        Origin::Predicted => text,
        Origin::Manual => format!("{text} (by hand)"),
    }
}

/// What a run did, in one line.
pub(super) fn run(finished: &Finished) -> String {
    let name = match finished.run {
        Some(run) => format!("run {run}, {}", finished.task_type),
        None => format!("{} (not recorded)", finished.task_type),
    };
    format!("{name}: {}, {}", ending(&finished.ending), numbers(&finished.measured.fingerprint))
}

/// How a run ended, in words.
pub(super) fn ending(ending: &Ending) -> String {
    let main = match (ending.exit_code, ending.signal, ending.exec_errno) {
        (_, _, Some(errno)) => {
            format!("could not be executed ({})", nix::errno::Errno::from_raw(errno).desc())
        }
        (_, Some(signal), _) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (Some(code), _, _) => format!("exit {code}"),
        _ => "ended".into(),
    };
    let marks = [
        (ending.out_of_memory, "out of memory"),
        (ending.out_of_tasks, "out of tasks"),
        (ending.throttled, "held back by its CPU limit"),
    ];
    marks.into_iter().filter(|(set, _)| *set).fold(main, |text, (_, mark)| format!("{text}, {mark}"))
}

/// The main numbers of a fingerprint.
fn numbers(fingerprint: &Fingerprint) -> String {
    let seconds = fingerprint.duration_ns as f64 / 1e9;
    let mut parts = vec![format_duration(seconds)];
    if let Some(cpu_ns) = fingerprint.cpu_ns {
        let cores = if seconds > 0.0 { cpu_ns as f64 / 1e9 / seconds } else { 0.0 };
        parts.push(format!("{} of CPU ({cores:.2} cores)", format_duration(cpu_ns as f64 / 1e9)));
    }
    if let Some(bytes) = fingerprint.memory_peak_bytes {
        parts.push(format!("{} of memory", format_bytes(bytes as f64)));
    }
    let sum = |a: Option<u64>, b: Option<u64>| a.unwrap_or(0) + b.unwrap_or(0);
    let traffic = [
        ("read", fingerprint.block_read_bytes.max(fingerprint.storage_read_bytes).unwrap_or(0)),
        ("written", fingerprint.block_write_bytes.max(fingerprint.storage_write_bytes).unwrap_or(0)),
        ("received", sum(fingerprint.tcp_received_bytes, fingerprint.udp_received_bytes)),
        ("sent", sum(fingerprint.tcp_sent_bytes, fingerprint.udp_sent_bytes)),
    ];
    parts.extend(
        traffic
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(what, bytes)| format!("{} {what}", format_bytes(bytes as f64))),
    );
    parts.join(", ")
}

#[derive(Serialize)]
struct Result<'a> {
    version: u32,
    #[serde(flatten)]
    finished: &'a Finished,
    /// The kernel's own account, beside what was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    rusage: Option<Usage>,
}

/// `getrusage(2)` of the main process and the children it waited for.
#[derive(Serialize)]
struct Usage {
    user_s: f64,
    system_s: f64,
    rss_peak_bytes: i64,
    faults_minor: i64,
    faults_major: i64,
    switches_voluntary: i64,
    switches_forced: i64,
}

impl From<&libc::rusage> for Usage {
    fn from(usage: &libc::rusage) -> Self {
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        Self {
            user_s: seconds(usage.ru_utime),
            system_s: seconds(usage.ru_stime),
            rss_peak_bytes: usage.ru_maxrss * 1024,
            faults_minor: usage.ru_minflt,
            faults_major: usage.ru_majflt,
            switches_voluntary: usage.ru_nvcsw,
            switches_forced: usage.ru_nivcsw,
        }
    }
}

/// Writes the result of a run for programs.
pub(super) fn write_json(
    mut file: &File,
    finished: &Finished,
    usage: Option<&libc::rusage>,
) -> io::Result<()> {
    let result = Result { version: JSON_VERSION, finished, rusage: usage.map(Usage::from) };
    serde_json::to_writer_pretty(file, &result)?;
    file.write_all(b"\n")
}
