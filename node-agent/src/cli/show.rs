//! `standin show`: the fingerprint of a task, of its last finished run or of one that is named.

use super::exit::{NOT_KNOWN, complain};
use super::report::{JSON_VERSION, describe_limit, print_json};
use super::settings::Settings;
use super::table::{Align, Table};
use super::{ls, predict, runs};
use crate::fingerprint::{Fingerprint, Histogram};
use crate::store::Reader;
use crate::store::read::{RunDetail, TaskDetail};
use crate::store::record::RunId;
use crate::units::{format_bytes, format_duration};
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name of the task, as `standin ls` has it
    #[arg(required_unless_present = "run")]
    task: Option<String>,
    /// This run instead of the task's last finished one
    #[arg(long, value_name = "N", conflicts_with = "task")]
    run: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskDetail>,
    run: Option<RunDetail>,
}

pub(super) fn run(settings: &Settings, arguments: &ShowArgs) -> anyhow::Result<u8> {
    let reader = Reader::open(&settings.database)?;
    let (task, id) = match &arguments.task {
        Some(name) => match reader.task(name)? {
            Some(task) => {
                let last =
                    task.recent_runs.iter().find(|run| run.state == "finished").or(task.recent_runs.first());
                let id = last.map(|run| run.run_id);
                (Some(task), id)
            }
            None => {
                return Ok(not_known(&format!("no run of {name:?} is known; `standin ls` lists what is")));
            }
        },
        None => (None, arguments.run.map(RunId)),
    };
    let detail = id.map(|id| reader.run(id)).transpose()?.flatten();
    if task.is_none() && detail.is_none() {
        let number = arguments.run.unwrap_or_default();
        return Ok(not_known(&format!("there is no run {number}; `standin runs` lists them")));
    }
    if arguments.json {
        print_json(&Shown { version: JSON_VERSION, task, run: detail })?;
    } else {
        print(task.as_ref(), detail.as_ref());
    }
    Ok(0)
}

fn not_known(message: &str) -> u8 {
    complain(message);
    NOT_KNOWN
}

fn print(task: Option<&TaskDetail>, run: Option<&RunDetail>) {
    if let Some(task) = task {
        println!("{}", ls::table(&task.users));
        println!("{}", runs::table(&task.recent_runs[..task.recent_runs.len().min(5)]));
    }
    let Some(run) = run else { return };
    println!("Run {}: {}", run.run.run_id.0, run.run.command.join(" "));
    println!("{}", numbers(&run.fingerprint));
    for (title, histogram) in histograms(&run.fingerprint) {
        println!("{title}\n{}", draw(histogram));
    }
    if !run.prediction.estimates.is_empty() {
        println!("Predicted before it started\n{}", predict::table(&run.prediction));
    }
    if !run.limits.0.is_empty() {
        let limits: Vec<_> =
            run.limits.0.iter().map(|(limit, origin)| describe_limit(*limit, *origin)).collect();
        println!("Limits: {}\n", limits.join(", "));
    }
    println!("Sources\n{}", sources(run));
}

/// What was measured, a line each; what was not is left out and told under the sources.
fn numbers(fingerprint: &Fingerprint) -> Table {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Right)]);
    let seconds = |ns: u64| format_duration(ns as f64 / 1e9);
    let bytes = |bytes: u64| format_bytes(bytes as f64);
    let count = |count: u64| count.to_string();
    type Format<'a> = &'a dyn Fn(u64) -> String;
    let rows: [(&str, Option<u64>, Format); 26] = [
        ("duration", Some(fingerprint.duration_ns), &seconds),
        ("cpu time", fingerprint.cpu_ns, &seconds),
        ("  in user mode", fingerprint.cpu_user_ns, &seconds),
        ("  in the kernel", fingerprint.cpu_system_ns, &seconds),
        ("waiting for a cpu", fingerprint.cpu_wait_ns, &seconds),
        ("switches, voluntary", fingerprint.switches_voluntary, &count),
        ("switches, forced", fingerprint.switches_forced, &count),
        ("memory, peak", fingerprint.memory_peak_bytes, &bytes),
        ("memory with page cache, peak", fingerprint.memory_charged_peak_bytes, &bytes),
        ("page faults, minor", fingerprint.faults_minor, &count),
        ("page faults, major", fingerprint.faults_major, &count),
        ("block reads", fingerprint.block_read_bytes, &bytes),
        ("  requests", fingerprint.block_read_ops, &count),
        ("block writes", fingerprint.block_write_bytes, &bytes),
        ("  requests", fingerprint.block_write_ops, &count),
        ("written to files", fingerprint.storage_write_bytes, &bytes),
        ("tcp sent", fingerprint.tcp_sent_bytes, &bytes),
        ("tcp received", fingerprint.tcp_received_bytes, &bytes),
        ("udp sent", fingerprint.udp_sent_bytes, &bytes),
        ("udp received", fingerprint.udp_received_bytes, &bytes),
        ("connections opened", fingerprint.tcp_connects, &count),
        ("connections accepted", fingerprint.tcp_accepts, &count),
        ("tcp retransmits", fingerprint.tcp_retransmits, &count),
        ("tasks created", fingerprint.forks, &count),
        ("tasks at once, peak", fingerprint.tasks_peak, &count),
        ("out-of-memory kills", fingerprint.oom_kills, &count),
    ];
    for (name, value, format) in rows {
        if let Some(value) = value {
            table.row([name.to_owned(), format(value)]);
        }
    }
    if let Some(cores) = fingerprint.cpu_cores_peak {
        table.row(["cores, peak".into(), format!("{cores:.2}")]);
    }
    table
}

fn histograms(fingerprint: &Fingerprint) -> impl Iterator<Item = (&'static str, &Histogram)> {
    [
        ("CPU bursts", &fingerprint.cpu_burst_ns),
        ("Waits in the run queue", &fingerprint.cpu_wait_ns_histogram),
        ("Block read latency", &fingerprint.block_read_ns),
        ("Block write latency", &fingerprint.block_write_ns),
    ]
    .into_iter()
    .filter_map(|(title, histogram)| Some((title, histogram.as_ref()?)))
    .filter(|(_, histogram)| histogram.iter().any(|&count| count > 0))
}

/// Widest bar, characters.
const BAR_WIDTH: u64 = 40;

/// A line per bucket from the first to the last that is not empty.
fn draw(histogram: &Histogram) -> Table {
    let mut table = Table::new(&[("FROM", Align::Right), ("COUNT", Align::Right), ("", Align::Left)]);
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    let first = histogram.iter().position(|&count| count > 0).unwrap_or(0);
    let last = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
    for (bucket, &count) in histogram.iter().enumerate().take(last + 1).skip(first) {
        let from = if bucket == 0 { 0.0 } else { (1_u64 << bucket) as f64 / 1e9 };
        table.row([format_duration(from), count.to_string(), bar(count, most)]);
    }
    table
}

/// A bar in eighths of a character; anything above nothing shows.
fn bar(count: u64, most: u64) -> String {
    const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    let eighths = (u128::from(count) * u128::from(BAR_WIDTH) * 8).div_ceil(u128::from(most)) as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

fn sources(run: &RunDetail) -> Table {
    let mut table = Table::new(&[("MEASURE", Align::Left), ("SOURCE", Align::Left), ("NOTE", Align::Left)]);
    for source in &run.coverage.0 {
        table.row([
            source.measure.clone(),
            source.source.clone().unwrap_or_else(|| "none".into()),
            source.note.clone().unwrap_or_default(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_to_scale_and_never_vanish() {
        assert_eq!(bar(8, 8).chars().count() as u64, BAR_WIDTH);
        assert_eq!(bar(4, 8).chars().count() as u64, BAR_WIDTH / 2);
        assert_eq!(bar(1, u64::MAX), "▏");
        assert_eq!(bar(0, 5), "");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count() as u64, BAR_WIDTH);
    }
}
