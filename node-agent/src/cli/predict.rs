//! `standin predict`: what a task will need, how sure that is, and why.

use super::exit::{NOT_KNOWN, complain, print};
use super::report::{JSON_VERSION, print_json};
use super::settings::Settings;
use super::table::{Align, Table};
use crate::fingerprint::key::TaskKey;
use crate::predict::{Level, Prediction, Resource, predict};
use crate::store::Reader;
use crate::units::{format_bytes, format_duration, format_rate};
use clap::Args;
use nix::unistd::User;
use serde::Serialize;

#[derive(Debug, Args)]
pub(super) struct PredictArgs {
    /// Name of the task, as `standin ls` has it
    task: String,
    /// For this user [default: yourself]
    #[arg(long, value_parser = parse_user, value_name = "USER")]
    user: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_user(text: &str) -> Result<u32, String> {
    let by_name = || User::from_name(text).ok().flatten().map(|user| user.uid.as_raw());
    text.parse()
        .ok()
        .or_else(by_name)
        .ok_or_else(|| "allowed is the name or number of a user of this host".into())
}

#[derive(Serialize)]
struct Predicted<'a> {
    version: u32,
    task_type: &'a str,
    uid: u32,
    #[serde(flatten)]
    prediction: Prediction,
}

pub(super) fn run(settings: &Settings, arguments: &PredictArgs) -> anyhow::Result<u8> {
    let uid = arguments.user.unwrap_or_else(|| nix::unistd::getuid().as_raw());
    let key = TaskKey { task_type: arguments.task.clone(), uid };
    let history = Reader::open(&settings.database)?.history(&key)?;
    let prediction = predict(&history, settings.config.run.risk);
    let known = prediction.estimates.iter().any(|estimate| estimate.level != Level::Host);
    if arguments.json {
        print_json(&Predicted { version: JSON_VERSION, task_type: &arguments.task, uid, prediction })?;
    } else if known {
        print(table(&prediction))?;
    }
    if known {
        return Ok(0);
    }
    complain(&format!("no finished run of {:?} is known; `standin ls` lists what is", arguments.task));
    Ok(NOT_KNOWN)
}

/// A line per resource.
pub(super) fn table(prediction: &Prediction) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("RESOURCE", Left),
        ("EXPECTED", Right),
        ("AT MOST", Right),
        ("RUNS", Right),
        ("BECAUSE", Left),
    ]);
    for estimate in &prediction.estimates {
        let (name, format) = describe(estimate.resource);
        table.row([
            name.into(),
            format(estimate.expected),
            format(estimate.upper),
            estimate.samples.to_string(),
            estimate.reason.clone(),
        ]);
    }
    table
}

/// What people call a resource, and how its numbers are written.
pub(super) fn describe(resource: Resource) -> (&'static str, fn(f64) -> String) {
    let cores: fn(f64) -> String = |cores| format!("{cores:.2} cores");
    let count: fn(f64) -> String = |count| format!("{count:.0}");
    match resource {
        Resource::MemoryPeakBytes => ("memory", format_bytes),
        Resource::CpuCoresMean => ("cpu, mean", cores),
        Resource::CpuCoresPeak => ("cpu, peak", cores),
        Resource::IoReadBytesPerS => ("storage read", format_rate),
        Resource::IoWriteBytesPerS => ("storage write", format_rate),
        Resource::NetworkReceivedBytesPerS => ("network received", format_rate),
        Resource::NetworkSentBytesPerS => ("network sent", format_rate),
        Resource::TasksPeak => ("tasks", count),
        Resource::DurationS => ("duration", format_duration),
    }
}
