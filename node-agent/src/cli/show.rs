//! `standin show`: the fingerprint of a task, of its last finished run or of one that is named.

use super::exit::{NOT_KNOWN, complain, print};
use super::numbers::{draw, histograms, numbers, peers};
use super::report::{JSON_VERSION, describe_limits, print_json};
use super::settings::Settings;
use super::table::{Align, Table, printable};
use super::{demand, ls, predict, runs, when};
use crate::cgroup::Hierarchies;
use crate::fingerprint::key::{Feature, FeatureValue};
use crate::predict::{Level, Resource};
use crate::size::Policy;
use crate::store::Reader;
use crate::store::read::{AccuracySummary, RunDetail, RunRow, TaskDetail};
use crate::store::record::RunId;
use crate::units::format_bytes;
use clap::Args;
use serde::Serialize;

/// Most recent runs listed above the one that is shown.
const RECENT_SHOWN: usize = 5;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Name of the task, as `standin ls` has it
    #[arg(required_unless_present_any = ["run", "cgroup"])]
    task: Option<String>,
    /// This run instead of the task's last finished one
    #[arg(long, value_name = "N", conflicts_with = "task", value_parser = parse_run)]
    run: Option<i64>,
    /// The last that was measured in this cgroup: a systemd unit, a container, whoever made it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["task", "run"])]
    cgroup: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_run(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "allowed is the number of a run, as `standin runs` has it".into())
}

#[derive(Serialize)]
struct Shown {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<TaskDetail>,
    run: Option<RunDetail>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accuracy: Vec<AccuracySummary>,
}

pub(super) fn run(settings: &Settings, arguments: &ShowArgs) -> anyhow::Result<u8> {
    let reader = Reader::open(&settings.database_to_read())?;
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
        None => match &arguments.cgroup {
            Some(path) => match reader.run_of_cgroup(below_root(path))? {
                Some(run) => (None, Some(run)),
                None => {
                    return Ok(not_known(&format!(
                        "nothing was measured in a cgroup {path:?}; an agent with agent.host_cgroups above 0 measures all that use the CPU"
                    )));
                }
            },
            None => (None, arguments.run.map(RunId)),
        },
    };
    let detail = id.map(|id| reader.run(id)).transpose()?.flatten();
    if task.is_none() && detail.is_none() {
        let number = arguments.run.unwrap_or_default();
        return Ok(not_known(&format!("there is no run {number}; `standin runs` lists them")));
    }
    let accuracy = match &arguments.task {
        Some(name) => reader.accuracy_summary(name)?,
        None => Vec::new(),
    };
    if arguments.json {
        print_json(&Shown { version: JSON_VERSION, task, run: detail, accuracy })?;
    } else {
        print(describe(task.as_ref(), detail.as_ref(), &accuracy))?;
    }
    Ok(0)
}

/// A cgroup's path as people give it: from the root of the file system, of the hierarchy, or below it.
fn below_root(path: &str) -> &str {
    let mount = Hierarchies::detect().map(|hierarchies| hierarchies.unified.display().to_string());
    let below = mount.ok().and_then(|mount| path.strip_prefix(&mount)).unwrap_or(path);
    below.trim_matches('/')
}

fn not_known(message: &str) -> u8 {
    complain(message);
    NOT_KNOWN
}

/// What matters first: what it is, what it needed against what was expected, then the numbers behind that.
fn describe(task: Option<&TaskDetail>, run: Option<&RunDetail>, accuracy: &[AccuracySummary]) -> String {
    let mut parts = Vec::new();
    if let Some(task) = task {
        parts.push(format!("{}\n{}", ls::table(&task.users), recent(&task.recent_runs)));
    }
    if let Some(run) = run {
        parts.push(format!("{}\n{}", heading(run), needs(run)));
        if !accuracy.is_empty() {
            parts.push(format!("How good predictions were so far\n{}", accuracies(accuracy)));
        }
        parts.push(format!("Measured\n{}", numbers(&run.fingerprint)));
        if let Some(demand) = &run.fingerprint.cpu_demand {
            parts.push(format!("CPU demand, cores in use per window\n{}", demand::describe(demand)));
        }
        parts.extend(
            histograms(&run.fingerprint).map(|(title, histogram)| format!("{title}\n{}", draw(histogram))),
        );
        if let Some(known) = &run.fingerprint.peers {
            parts.push(format!("Peers\n{}", peers(known)));
        }
        parts.push(format!("Where the numbers come from\n{}", sources(run)));
    }
    parts.join("\n")
}

fn accuracies(accuracy: &[AccuracySummary]) -> Table {
    use Align::{Left, Right};
    let mut table =
        Table::new(&[("", Left), ("RUNS", Right), ("MEAN ERROR", Right), ("WITHIN BOUND", Right)]);
    let percent = |share: Option<f64>| share.map_or_else(|| "-".into(), |share| format!("{share:.0} %"));
    for row in accuracy {
        table.row([
            predict::describe(row.resource).0.into(),
            row.runs.to_string(),
            percent(row.mean_error_percent),
            percent(row.within_upper_percent),
        ]);
    }
    table
}

fn recent(recent_runs: &[RunRow]) -> Table {
    runs::table(&recent_runs[..recent_runs.len().min(RECENT_SHOWN)])
}

fn heading(run: &RunDetail) -> String {
    let row = &run.run;
    let features: Vec<_> = run.features.iter().map(feature).collect();
    [
        format!(
            "Run {}: {} by {}, {}: {}",
            row.run_id.0,
            row.task_type,
            row.user,
            when::ago(row.started_at_ms),
            runs::ending(row)
        ),
        format!("  command   {}", row.command.join(" ")),
        format!("  in        {}", run.directory),
        format!("  known     {}", features.join(", ")),
        format!("  decided   policy {}; {}", policy_name(row.policy), describe_limits(&run.limits)),
    ]
    .map(|line| printable(&line) + "\n")
    .concat()
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Elastic => "elastic",
        Policy::Strict => "strict",
        Policy::Observe => "observe",
    }
}

fn feature(feature: &Feature) -> String {
    let name = &feature.name;
    match &feature.value {
        FeatureValue::Number(bytes) if name.starts_with("input_bytes") => {
            format!("{name} {}", format_bytes(*bytes))
        }
        FeatureValue::Number(number) => format!("{name} {number}"),
        FeatureValue::Category(text) => format!("{name} {text}"),
    }
}

/// What the run needed of each resource, beside what was expected before it started.
fn needs(run: &RunDetail) -> Table {
    use Align::{Left, Right};
    let columns =
        [("RESOURCE", Left), ("NEEDED", Right), ("EXPECTED", Right), ("AT MOST", Right), ("", Left)];
    let mut table = Table::new(&columns);
    for resource in Resource::ALL {
        let (name, format) = predict::describe(resource);
        let estimate = run.prediction.estimate(resource).filter(|estimate| estimate.level != Level::Host);
        let needed = needed(run, resource);
        if needed.is_none() && estimate.is_none() {
            continue;
        }
        let or_dash = |number: Option<f64>| number.map_or_else(|| "-".into(), format);
        let over = needed.zip(estimate).is_some_and(|(needed, estimate)| needed > estimate.upper);
        table.row([
            name.into(),
            or_dash(needed),
            or_dash(estimate.map(|estimate| estimate.expected)),
            or_dash(estimate.map(|estimate| estimate.upper)),
            if over { "more than expected".into() } else { String::new() },
        ]);
    }
    table
}

fn needed(run: &RunDetail, resource: Resource) -> Option<f64> {
    let row = &run.run;
    match resource {
        Resource::MemoryPeakBytes => row.memory_peak_bytes,
        Resource::CpuCoresMean => row.cpu_cores_mean,
        Resource::CpuCoresPeak => run.fingerprint.cpu_cores_peak,
        Resource::IoReadBytesPerS => row.io_read_bytes_per_s,
        Resource::IoWriteBytesPerS => row.io_write_bytes_per_s,
        Resource::NetworkReceivedBytesPerS => row.network_received_bytes_per_s,
        Resource::NetworkSentBytesPerS => row.network_sent_bytes_per_s,
        Resource::TasksPeak => run.fingerprint.tasks_peak.map(|tasks| tasks as f64),
        Resource::DurationS => row.duration_s,
        Resource::CpuCoresP95Of100Ms => run.fingerprint.cpu_cores_p95_100ms,
        Resource::CpuCoresP95Of1S => run.fingerprint.cpu_cores_p95_1s,
        Resource::IoReadOpsPerS => row.io_read_ops_per_s,
        Resource::IoWriteOpsPerS => row.io_write_ops_per_s,
    }
}

fn sources(run: &RunDetail) -> Table {
    let mut table = Table::new(&[("  MEASURE", Align::Left), ("SOURCE", Align::Left), ("NOTE", Align::Left)]);
    for source in &run.coverage.0 {
        table.row([
            format!("  {}", source.measure),
            source.source.clone().unwrap_or_else(|| "none".into()),
            source.note.clone().unwrap_or_default(),
        ]);
    }
    table
}
