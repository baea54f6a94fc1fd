//! `standin queue`: what is promised to whom, and who waits.

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::reach;
use super::settings::Settings;
use super::table::{Align, Table};
use super::when;
use crate::size::admission::Promise;
use crate::units::{format_bytes, format_duration};
use crate::wire::{QueueEntry, QueueStatus, Reply, Request};
use anyhow::bail;
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin queue                        what is promised, who runs, who waits and for how long
  standin queue --json | jq '.waiting[0].expected_ms'")]
pub(super) struct QueueArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    version: u32,
    #[serde(flatten)]
    queue: QueueStatus,
}

pub(super) fn run(settings: &Settings, arguments: &QueueArgs) -> anyhow::Result<u8> {
    let queue = match reach::ask(&settings.socket, &Request::Queue) {
        Ok(Reply::Queue(queue)) => *queue,
        Ok(_) => bail!("agent at {}: it answered something else", settings.socket.display()),
        Err(unreachable) => bail!("{}; the queue is kept by an agent", unreachable.message),
    };
    if arguments.json {
        print_json(&Shown { version: JSON_VERSION, queue })?;
    } else {
        print(describe(&queue))?;
    }
    Ok(0)
}

fn describe(queue: &QueueStatus) -> String {
    let mut parts = vec![ledger(queue).to_string()];
    parts.push(match queue.running.len() {
        0 => "Nothing runs.\n".into(),
        _ => format!("Running\n{}", entries(&queue.running, "STARTED", "ENDS IN")),
    });
    parts.push(match queue.waiting.len() {
        0 => "Nobody waits.\n".into(),
        _ => format!("Waiting\n{}", entries(&queue.waiting, "CAME", "STARTS IN")),
    });
    parts.join("\n")
}

fn ledger(queue: &QueueStatus) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[("", Left), ("PROMISED", Right), ("OF", Right), ("", Left)]);
    let QueueStatus { total, promised, free_memory_bytes, .. } = queue;
    let over = |is_over: bool| if is_over { "more than there is".to_owned() } else { String::new() };
    let bytes = |bytes: u64| format_bytes(bytes as f64);
    table.row([
        "memory".into(),
        bytes(promised.memory_bytes),
        bytes(total.memory_bytes),
        match promised.memory_bytes > total.memory_bytes {
            true => over(true),
            false => format!("{} are free now", bytes(*free_memory_bytes)),
        },
    ]);
    table.row([
        "cores".into(),
        format!("{:.2}", promised.cpu_cores),
        format!("{:.2}", total.cpu_cores),
        over(promised.cpu_cores > total.cpu_cores),
    ]);
    for (name, count) in &total.licenses {
        let taken = promised.licenses.get(name).copied().unwrap_or(0);
        table.row([format!("licence {name}"), taken.to_string(), count.to_string(), over(taken > *count)]);
    }
    table
}

fn entries(entries: &[QueueEntry], since: &'static str, until: &'static str) -> Table {
    use Align::{Left, Right};
    let columns = [
        ("RUN", Right),
        ("TASK", Left),
        ("USER", Left),
        ("PID", Right),
        ("PRIORITY", Right),
        ("MEMORY", Right),
        ("CORES", Right),
        ("LICENCES", Left),
        (since, Left),
        (until, Right),
    ];
    let mut table = Table::new(&columns);
    for entry in entries {
        let Promise { cpu_cores, licenses, .. } = &entry.promise;
        let licenses: Vec<_> = licenses.iter().map(|(name, count)| format!("{name}={count}")).collect();
        table.row([
            entry.run_id.map_or_else(|| "-".into(), |run| run.to_string()),
            entry.task_type.clone().unwrap_or_else(|| "(another user's)".into()),
            entry.user.clone(),
            entry.pid.to_string(),
            entry.priority.to_string(),
            format_bytes(entry.memory_bytes as f64),
            format!("{cpu_cores:.2}"),
            licenses.join(" "),
            when::ago(entry.since_ms),
            entry.expected_ms.map_or_else(|| "-".into(), remaining),
        ]);
    }
    table
}

fn remaining(ms: i64) -> String {
    if ms < 0 { "late".into() } else { format_duration((ms as f64 / 1000.0).round()) }
}
