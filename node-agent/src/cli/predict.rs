//! `standin predict`: what a task will need, how sure that is, and why.

use super::completions;
use super::exit::{NOT_KNOWN, complain, print};
use super::output::{JSON_VERSION, print_json};
use super::run::parse_feature;
use super::settings::Settings;
use super::table::{Align, Table};
use crate::fingerprint::key::{self, Feature, TaskKey};
use crate::predict::licenses::{self, LicenseEstimate};
use crate::predict::{Level, Prediction, Resource, predict};
use crate::store::Reader;
use crate::units::{format_bytes, format_cores, format_count, format_duration, format_rate};
use clap::Args;
use clap_complete::ArgValueCandidates;
use nix::unistd::User;
use serde::Serialize;
use std::ffi::OsString;

/// A task, and a run of it that may come.
#[derive(Debug, Args)]
pub(super) struct TaskArgs {
    /// Name of the task, as `standin ls` has it
    #[arg(add = ArgValueCandidates::new(completions::tasks))]
    task: String,
    /// For this user [default: yourself]
    #[arg(long, value_parser = parse_user, value_name = "USER")]
    user: Option<u32>,
    /// A file that the run will read (repeatable); files named in the arguments count anyway
    #[arg(long, value_name = "FILE")]
    input: Vec<OsString>,
    /// Something its needs may depend on (repeatable)
    #[arg(long, value_name = "K=V", value_parser = parse_feature)]
    feature: Vec<Feature>,
    /// The run's arguments: the sizes of files among them are what counts
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

impl TaskArgs {
    pub(super) fn key(&self) -> TaskKey {
        let uid = self.user.unwrap_or_else(|| nix::unistd::getuid().as_raw());
        TaskKey { task_type: self.task.clone(), uid }
    }

    /// What is known of the run: nothing about inputs if none were named.
    pub(super) fn features(&self) -> Vec<Feature> {
        let mut features = Vec::new();
        if !self.arguments.is_empty() || !self.input.is_empty() {
            let directory = std::env::current_dir().unwrap_or_default();
            let program = std::iter::once(OsString::from(&self.task));
            let argv: Vec<_> = program.chain(self.arguments.iter().cloned()).collect();
            features = key::input_features(&argv, &self.input, &directory);
        }
        features.extend(self.feature.iter().cloned());
        key::of_run(features)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin predict align.py                       what its next run will need
  standin predict align.py -- big.fastq          with this input
  standin predict align.py --feature rows=2e6    with this feature, as standin run takes it")]
pub(super) struct PredictArgs {
    #[command(flatten)]
    task: TaskArgs,
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
    licenses: Vec<LicenseEstimate>,
}

pub(super) fn run(settings: &Settings, arguments: &PredictArgs) -> anyhow::Result<u8> {
    let key = arguments.task.key();
    let reader = Reader::open(&settings.database_to_read())?;
    let history = reader.history(&key)?;
    let licenses = licenses::learn(&reader.licenses_used(&key)?, settings.config.run.risk);
    let prediction = predict(&history, &arguments.task.features(), settings.config.run.risk);
    let known = prediction.estimates.iter().any(|estimate| estimate.level != Level::Host);
    if arguments.json {
        print_json(&Predicted {
            version: JSON_VERSION,
            task_type: &key.task_type,
            uid: key.uid,
            prediction,
            licenses,
        })?;
    } else if known {
        print(table(&prediction, &licenses))?;
    }
    if known {
        return Ok(0);
    }
    complain(&format!("no finished run of {:?} is known; `standin ls` lists what is", key.task_type));
    Ok(NOT_KNOWN)
}

/// A line per resource.
pub(super) fn table(prediction: &Prediction, licenses: &[LicenseEstimate]) -> Table {
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
    for pool in licenses {
        table.row([
            format!("licences of {}", pool.license),
            pool.expected.to_string(),
            pool.upper.to_string(),
            pool.samples.to_string(),
            format!(
                "the last {} runs of this task by this user were seen to use so many at once",
                pool.samples
            ),
        ]);
    }
    table
}

/// What people call a resource, and how its numbers are written.
pub(super) fn describe(resource: Resource) -> (&'static str, fn(f64) -> String) {
    let cores: fn(f64) -> String = |cores| format!("{} cores", format_cores(cores));
    let operations: fn(f64) -> String = |rate| {
        if rate < 10.0 { format!("{rate:.1}/s") } else { format!("{}/s", format_count(rate.round() as u64)) }
    };
    let count: fn(f64) -> String = |count| format!("{count:.0}");
    match resource {
        Resource::MemoryPeakBytes => ("memory", format_bytes),
        Resource::CpuCoresMean => ("cpu, mean", cores),
        Resource::CpuCoresPeak => ("cpu, peak sampled", cores),
        Resource::IoReadBytesPerS => ("storage read", format_rate),
        Resource::IoWriteBytesPerS => ("storage write", format_rate),
        Resource::NetworkReceivedBytesPerS => ("network received", format_rate),
        Resource::NetworkSentBytesPerS => ("network sent", format_rate),
        Resource::TasksPeak => ("tasks", count),
        Resource::DurationS => ("duration", format_duration),
        Resource::CpuCoresP95Of100Ms => ("cpu, 95 % of 100 ms", cores),
        Resource::CpuCoresP95Of1S => ("cpu, 95 % of 1 s", cores),
        Resource::IoReadOpsPerS => ("read requests", operations),
        Resource::IoWriteOpsPerS => ("write requests", operations),
    }
}
