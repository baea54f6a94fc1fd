//! `standin backtest`: the past replayed, standin beside the recipes in use.

use super::exit::print;
use super::output::{JSON_VERSION, print_json};
use super::progress::Progress;
use super::settings::Settings;
use super::table::{Align, Table};
use super::trace_file::TraceArgs;
use crate::backtest::recipe::{self, Retry};
use crate::backtest::trace::Trace;
use crate::backtest::{Outcome, Rules, own, plot, replay_telling};
use crate::store::Reader;
use crate::store::past::PastRun;
use crate::units::{self, format_count, format_gb_hours};
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Tasks come in the order of their start; a recipe knows only what had ended by then.
Waste is memory reserved and not used, GB·h (10^9 bytes), failed attempts included.

Examples:
  standin backtest                                     your own history
  standin backtest --csv trace.csv.xz --preset sizey --svg waste.svg
  standin backtest --csv jobs.txt --preset sacct --retry elastic")]
pub(super) struct BacktestArgs {
    /// A trace to replay, .xz too [default: your own history]
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    reading: TraceArgs,
    /// What happens to standin's tasks when their memory is too small
    #[arg(long, value_enum, default_value = "kill")]
    retry: RetryArg,
    /// Share of its run time after which a task with too little memory fails
    #[arg(long, value_name = "SHARE", default_value = "1", value_parser = parse_share)]
    fail_at: f64,
    /// What no reservation exceeds, unless the user asked for more
    #[arg(long, value_name = "BYTES", default_value = "128GB", value_parser = units::parse_bytes)]
    host_memory: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the waste as it adds up into FILE
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RetryArg {
    /// They are killed and start again with more
    Kill,
    /// Their limit grows in place, up to what the user asked for
    Elastic,
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "allowed is a number from 0 to 1".into())
}

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    tasks: usize,
    used_gbh: f64,
    bad_rows_skipped: usize,
    recipes: &'a [Outcome],
}

pub(super) fn run(settings: &Settings, arguments: &BacktestArgs) -> anyhow::Result<u8> {
    let trace = match &arguments.csv {
        Some(path) => arguments.reading.read(path)?,
        None => own_history(&Reader::open(&settings.database_to_read())?.past()?)?,
    };
    let rules = Rules { fail_at: arguments.fail_at, host_bytes: arguments.host_memory as f64 };
    let retry = match arguments.retry {
        RetryArg::Kill => Retry::Kill,
        RetryArg::Elastic => Retry::Elastic,
    };
    let mut recipes = recipe::all(retry, rules.host_bytes);
    let mut progress = Progress::new("replaying");
    let (tasks, all) = (trace.tasks.len(), recipes.len() * trace.tasks.len());
    let mut outcomes = Vec::new();
    for (place, recipe) in recipes.iter_mut().enumerate() {
        let mut tell = |started: usize| progress.tell(place * tasks + started, all, "starts");
        outcomes.push(replay_telling(&trace, rules, recipe.as_mut(), &mut tell));
    }
    drop(progress);
    if let Some(path) = &arguments.svg {
        let failed = || format!("failed to write {}", path.display());
        std::fs::write(path, plot::cumulative_waste(&outcomes)).with_context(failed)?;
    }
    let used_gbh = outcomes.first().map_or(0.0, |outcome| outcome.used_gbh);
    if arguments.json {
        print_json(&Report {
            version: JSON_VERSION,
            tasks: trace.tasks.len(),
            used_gbh,
            bad_rows_skipped: trace.skipped,
            recipes: &outcomes,
        })?;
    } else {
        let used = format_gb_hours(used_gbh);
        let tasks = format_count(trace.tasks.len() as u64);
        print(format!("{tasks} tasks used {used}\n\n{}", table(&outcomes)))?;
    }
    Ok(0)
}

fn table(outcomes: &[Outcome]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("RECIPE", Left),
        ("WASTED GB·h", Right),
        ("OF USE", Right),
        ("COLD GB·h", Right),
        ("FAILED ATTEMPTS", Right),
        ("PER 1,000", Right),
        ("FAILED TASKS", Right),
        ("LOST core·h", Right),
        ("RAISED", Right),
    ]);
    for outcome in outcomes {
        let share = 100.0 * outcome.waste_gbh / outcome.used_gbh.max(f64::MIN_POSITIVE);
        table.row([
            outcome.name.clone(),
            figures(outcome.waste_gbh),
            format!("{} %", format_count(share.round() as u64)),
            figures(outcome.cold_gbh),
            outcome.failed_attempts.to_string(),
            format!("{:.1}", 1e3 * outcome.failed_attempts as f64 / outcome.tasks.max(1) as f64),
            outcome.failed_tasks.to_string(),
            figures(outcome.failed_core_hours),
            outcome.raises.to_string(),
        ]);
    }
    table
}

/// One decimal, and more where that would leave fewer than three figures: `1234.5`, `0.0123`.
fn figures(value: f64) -> String {
    let leading = if value > 0.0 { value.log10().floor() } else { 1.0 };
    format!("{value:.0$}", (2.0 - leading).clamp(1.0, 9.0) as usize)
}

fn own_history(runs: &[PastRun]) -> anyhow::Result<Trace> {
    if runs.is_empty() {
        bail!("no run that ended well is known yet; replay a trace with --csv FILE");
    }
    Ok(own::history(runs))
}
