//! `standin runs`: runs, newest first.

use super::exit::{NOT_KNOWN, complain, print};
use super::output::{self, JSON_VERSION, print_json};
use super::settings::Settings;
use super::table::{Align, Table};
use super::{completions, when};
use crate::store::Reader;
use crate::store::read::RunRow;
use crate::store::record::Ending;
use crate::units::{format_bytes, format_cores, format_duration};
use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin runs                         the newest 20 runs of all tasks
  standin runs align.py -n 100         the newest 100 of one
  standin runs --all                   systemd units and containers too, as an agent records them
  standin runs --json | jq '.runs[] | select(.state == \"failed\") | .run_id'")]
pub(super) struct RunsArgs {
    /// Only runs of this task
    #[arg(add = ArgValueCandidates::new(completions::tasks))]
    task: Option<String>,
    /// How many at most
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N", value_parser = parse_limit)]
    #[arg(allow_negative_numbers = true)]
    limit: usize,
    /// Cgroups of others too: systemd units, containers
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn parse_limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&limit| limit > 0).ok_or_else(|| "allowed is a number, 1 or more".into())
}

#[derive(Serialize)]
struct Runs {
    version: u32,
    runs: Vec<RunRow>,
}

pub(super) fn run(settings: &Settings, arguments: &RunsArgs) -> anyhow::Result<u8> {
    let reader = Reader::open(&settings.database_to_read())?;
    let runs = match &arguments.task {
        None if !arguments.all => reader.runs_started(arguments.limit)?,
        task => reader.runs(task.as_deref(), arguments.limit)?,
    };
    if let (Some(task), true) = (&arguments.task, runs.is_empty()) {
        complain(&format!("no run of {task:?} is known; `standin ls` lists what is"));
        return Ok(NOT_KNOWN);
    }
    if arguments.json {
        print_json(&Runs { version: JSON_VERSION, runs })?;
        return Ok(0);
    }
    if runs.is_empty() {
        print("nothing has run here yet; start something with: standin run -- COMMAND\n")?;
    } else {
        print(table(&runs))?;
    }
    Ok(0)
}

/// A line per run.
pub(super) fn table(runs: &[RunRow]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("RUN", Right),
        ("TASK", Left),
        ("USER", Left),
        ("STARTED", Left),
        ("DURATION", Right),
        ("CORES", Right),
        ("MEMORY", Right),
        ("ENDING", Left),
    ]);
    for run in runs {
        let [started, duration, cores, memory, ending] = in_short(run);
        let (task, user) = (run.task_type.clone(), run.user.clone());
        table.row([run.run_id.0.to_string(), task, user, started, duration, cores, memory, ending]);
    }
    table
}

/// When a run started, how long it took, its mean cores, its peak memory, and how it ended.
pub(super) fn in_short(run: &RunRow) -> [String; 5] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        when::ago(run.started_at_ms),
        or_dash(run.duration_s.map(format_duration)),
        or_dash(run.cpu_cores_mean.map(format_cores)),
        or_dash(run.memory_peak_bytes.map(format_bytes)),
        ending(run),
    ]
}

/// How a run ended, or that it has not.
pub(super) fn ending(run: &RunRow) -> String {
    match run.state.as_str() {
        "running" | "lost" => run.state.clone(),
        _ => output::ending(&Ending {
            exit_code: run.exit_code,
            signal: run.signal,
            exec_errno: run.exec_errno,
            out_of_memory: run.out_of_memory,
            out_of_tasks: run.out_of_tasks,
            throttled: run.throttled,
        }),
    }
}
