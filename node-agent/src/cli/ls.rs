//! `standin ls`: the tasks that are known.

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::settings::Settings;
use super::table::{Align, Table};
use super::when;
use crate::live::Kind;
use crate::store::Reader;
use crate::store::read::TaskRow;
use crate::units::{format_bytes, format_cores, format_count, format_duration};
use clap::Args;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin ls                           a line per task and user, the latest first
  standin ls --all                     systemd units and containers too, as an agent measures them
  standin ls --json | jq '.tasks[] | select(.failed > 0) | .task_type'")]
pub(super) struct LsArgs {
    /// Cgroups of others too: systemd units, containers
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Tasks {
    version: u32,
    tasks: Vec<TaskRow>,
}

pub(super) fn run(settings: &Settings, arguments: &LsArgs) -> anyhow::Result<u8> {
    let known = Reader::open(&settings.database_to_read())?.tasks()?;
    let (tasks, others): (Vec<_>, Vec<_>) =
        known.into_iter().partition(|task| arguments.all || task.kind == Kind::Run);
    if arguments.json {
        print_json(&Tasks { version: JSON_VERSION, tasks })?;
        return Ok(0);
    }
    if tasks.is_empty() {
        print("no task has run here yet; start one with: standin run -- COMMAND\n")?;
    } else {
        print(table(&tasks))?;
    }
    if !others.is_empty() {
        print(format!("\n{}\n", left_out(others.len(), "standin ls --all")))?;
    }
    Ok(0)
}

/// What is not listed, and what lists it.
fn left_out(cgroups: usize, all: &str) -> String {
    let (plural, are) = if cgroups == 1 { ("", "is") } else { ("s", "are") };
    format!("{} cgroup{plural} of others {are} not listed; `{all}` does", format_count(cgroups as u64))
}

/// A line per task and user. `-` where nothing is known.
pub(super) fn table(tasks: &[TaskRow]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("TASK", Left),
        ("USER", Left),
        ("RUNS", Right),
        ("FAILED", Right),
        ("DURATION", Right),
        ("CORES", Right),
        ("MEMORY", Right),
        ("MEMORY MAX", Right),
        ("LAST RUN", Left),
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for task in tasks {
        table.row([
            task.task_type.clone(),
            task.user.clone(),
            task.runs.to_string(),
            (task.failed + task.lost).to_string(),
            or_dash(task.duration_s_mean.map(format_duration)),
            or_dash(task.cpu_cores_mean.map(format_cores)),
            or_dash(task.memory_peak_bytes_mean.map(format_bytes)),
            or_dash(task.memory_peak_bytes_max.map(|bytes| format_bytes(bytes as f64))),
            or_dash(task.last_started_at_ms.map(when::ago)),
        ]);
    }
    table
}
