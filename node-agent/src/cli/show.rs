//! `standin show`: the fingerprint of a task, of its last finished run or of one that is named: at a glance, and
//! with `--full` every number.

use super::exit::{NOT_KNOWN, complain, print};
use super::numbers::{draw, histograms, numbers, peers};
use super::output::{self, JSON_VERSION, describe_limits, print_json};
use super::settings::Settings;
use super::table::{Align, Table, printable};
use super::{completions, demand, glance, predict, runs, when};
use crate::cgroup::Hierarchies;
use crate::fingerprint::character::Character;
use crate::fingerprint::key::{Feature, FeatureValue, TaskKey};
use crate::fingerprint::sentence::sentence;
use crate::predict::explain::{Explanation, explain};
use crate::predict::{Level, Prediction, Resource, predict as predict_all};
use crate::printable::command_line;
use crate::size::Policy;
use crate::store::failover::FailoverRow;
use crate::store::read::{AccuracySummary, RunDetail, RunRow, TaskDetail, TaskRow};
use crate::store::record::RunId;
use crate::store::{Reader, StoreError};
use crate::units::format_bytes;
use clap::Args;
use clap_complete::ArgValueCandidates;
use serde::Serialize;
use std::fmt::Display;

/// Most recent runs listed.
const RECENT_SHOWN: usize = 5;
/// Failovers listed.
const FAILOVERS_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin show align.py                what it is like, what it needs, how well that was predicted
  standin show align.py --full         every number, and where each comes from
  standin show --run 12                one run
  standin show --cgroup system.slice/nginx.service")]
pub(super) struct ShowArgs {
    /// Name of the task, as `standin ls` has it
    #[arg(required_unless_present_any = ["run", "cgroup"], add = ArgValueCandidates::new(completions::tasks))]
    task: Option<String>,
    /// This run instead of the task's last finished one
    #[arg(long, value_name = "N", conflicts_with = "task", value_parser = parse_run)]
    run: Option<i64>,
    /// The last that was measured in this cgroup: a systemd unit, a container, whoever made it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["task", "run"])]
    cgroup: Option<String>,
    /// All numbers, full histograms, peers, and where each number comes from
    #[arg(long, conflicts_with = "json")]
    full: bool,
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
    /// What the run is like, in a sentence and as words for programs.
    summary: String,
    traits: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Prediction>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accuracy: Vec<AccuracySummary>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failovers: Vec<FailoverRow>,
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
        Some(name) => reader.accuracy_summary(Some(name))?,
        None => Vec::new(),
    };
    let failovers = match &arguments.task {
        Some(name) => reader.failovers(Some(name), FAILOVERS_SHOWN)?,
        None => Vec::new(),
    };
    let (character, next) = match &detail {
        Some(run) => known_of(&reader, run, settings.config.run.risk)?,
        None => (None, None),
    };
    let summary = character.as_ref().map(sentence).unwrap_or_default();
    let next = next.filter(|_| task.is_some());
    if arguments.json {
        let traits = character.as_ref().map(Character::traits).unwrap_or_default();
        let version = JSON_VERSION;
        print_json(&Shown { version, task, run: detail, summary, traits, next, accuracy, failovers })?;
        return Ok(0);
    }
    let (task, run) = (task.as_ref(), detail.as_ref());
    let view = View {
        task,
        run,
        summary: &summary,
        next: next.as_ref(),
        accuracy: &accuracy,
        failovers: &failovers,
    };
    print(describe(&view))?;
    match run {
        Some(run) if arguments.full => print(format!("\n{}", in_full(run)))?,
        Some(_) => print("\n`--full` shows all numbers and where each comes from.\n")?,
        None => {}
    }
    Ok(0)
}

/// What a run is like, by its own numbers and by what its task's memory goes with; and what the next one like it
/// is expected to need.
fn known_of(
    reader: &Reader,
    run: &RunDetail,
    risk: f64,
) -> Result<(Option<Character>, Option<Prediction>), StoreError> {
    let key = TaskKey { task_type: run.run.task_type.clone(), uid: run.run.uid };
    let history = reader.history(&key)?;
    let explanation = explain(&history, &run.features);
    let growth = explanation.as_ref().and_then(Explanation::growth);
    let character = Character::new(&run.fingerprint, &run.series, growth);
    Ok((Some(character), Some(predict_all(&history, &run.features, risk))))
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

/// Everything that is shown.
struct View<'a> {
    task: Option<&'a TaskDetail>,
    run: Option<&'a RunDetail>,
    summary: &'a str,
    next: Option<&'a Prediction>,
    accuracy: &'a [AccuracySummary],
    failovers: &'a [FailoverRow],
}

/// What matters first: what it is like, in a sentence and at a glance; how it was started, what it needed, and how well
/// that was predicted; what happened lately.
fn describe(view: &View<'_>) -> String {
    let mut parts = Vec::new();
    if let Some(run) = view.run {
        let fingerprint = &run.fingerprint;
        parts.push(heading(view.task, run) + &sentence_lines(view.summary));
        parts.push(titled("Its course", glance::course(&run.series)));
        let demand = fingerprint.cpu_demand.as_ref().map(glance::demand).unwrap_or_default();
        parts.push(titled("Cores in use, by share of windows", demand));
        parts.push(titled("How long things took, by their number", glance::times(fingerprint)));
        parts.push(titled("How it was started", started(run)));
        parts.push(needs(run, view.accuracy).to_string());
        parts.push(next_run(view.next));
    }
    if let Some(task) = view.task {
        parts.push(titled("Last runs", recent(&task.recent_runs)));
    }
    if !view.failovers.is_empty() {
        parts.push(titled("Failovers", failovers(view.failovers).to_string()));
    }
    if let Some(run) = view.run {
        parts.push(not_measured(run));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// A title above a text; nothing where there is none.
fn titled(title: &str, text: impl Display) -> String {
    let text = text.to_string();
    if text.is_empty() { text } else { format!("{title}\n{text}") }
}

fn sentence_lines(summary: &str) -> String {
    if summary.is_empty() { String::new() } else { format!("\n{}", glance::wrapped(summary)) }
}

/// All numbers behind that, and where they come from.
fn in_full(run: &RunDetail) -> String {
    let command = printable(&command_line(&run.run.command));
    let mut parts =
        vec![format!("Command\n  {command}\n"), format!("Measured\n{}", numbers(&run.fingerprint))];
    if let Some(demand) = &run.fingerprint.cpu_demand {
        parts.push(format!("CPU demand, cores in use per window\n{}", demand::describe(demand)));
    }
    parts.extend(
        histograms(&run.fingerprint).map(|(title, histogram)| format!("{title}\n{}", draw(histogram))),
    );
    if let Some(known) = run.fingerprint.peers.as_ref().filter(|peers| !peers.is_empty()) {
        parts.push(format!("Peers\n{}", peers(known)));
    }
    parts.push(format!("Where the numbers come from\n{}", sources(run)));
    parts.join("\n")
}

/// What the next run is expected to need, as `standin run` says it.
fn next_run(next: Option<&Prediction>) -> String {
    let expected = next.and_then(output::expected);
    expected.map_or_else(String::new, |text| glance::wrapped(&format!("Next run: {text}.")))
}

/// What a better source is missing for: a run with few numbers says so.
fn not_measured(run: &RunDetail) -> String {
    let missing = run.coverage.0.iter().filter(|source| source.source.is_none());
    let names: Vec<_> = missing.map(|source| source.measure.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    let text = format!(
        "Not measured: {}; `standin show --run {} --full` says why.",
        names.join(", "),
        run.run.run_id.0
    );
    glance::wrapped(&printable(&text))
}

fn failovers(rows: &[FailoverRow]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[("  WHEN", Left), ("CAUSE", Left), ("MOVED", Right), ("EVIDENCE", Left)]);
    for row in rows {
        table.row([
            format!("  {}", when::ago(row.at_ms)),
            row.cause.clone(),
            row.migrated.to_string(),
            row.evidence.clone(),
        ]);
    }
    table
}

fn recent(recent_runs: &[RunRow]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("  RUN", Right),
        ("STARTED", Left),
        ("DURATION", Right),
        ("CORES", Right),
        ("MEMORY", Right),
        ("ENDING", Left),
    ]);
    for run in recent_runs.iter().take(RECENT_SHOWN) {
        let [started, duration, cores, memory, ending] = runs::in_short(run);
        table.row([run.run_id.0.to_string(), started, duration, cores, memory, ending]);
    }
    table
}

/// Whose task it is and how often it ran, then which run is shown.
fn heading(task: Option<&TaskDetail>, run: &RunDetail) -> String {
    let users = task.map(|task| &task.users[..]).unwrap_or_default();
    let users: String = users.iter().map(|user| printable(&of_user(user)) + "\n").collect();
    let (number, ago, ending) = (run.run.run_id.0, when::ago(run.run.started_at_ms), runs::ending(&run.run));
    let of = if users.is_empty() { format!(" of {}", run.run.task_type) } else { String::new() };
    users + &printable(&format!("Run {number}{of} by {}, {ago}: {ending}", run.run.user)) + "\n"
}

fn of_user(user: &TaskRow) -> String {
    let TaskRow { task_type, user: name, runs, failed, lost, .. } = user;
    let plural = if *runs == 1 { "run" } else { "runs" };
    let bad = match failed + lost {
        0 => String::new(),
        bad => format!(", {bad} of them failed or lost"),
    };
    format!("{task_type}: {runs} {plural} by {name}{bad}")
}

/// The command, what was known of it, and what standin decided.
fn started(run: &RunDetail) -> String {
    let row = &run.run;
    let mut text = String::new();
    let facts = [("command", command_line(&row.command)), ("in", run.directory.clone())];
    for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
        text += &(glance::cut(&printable(&format!("  {name:<9} {fact}"))) + "\n");
    }
    let features: Vec<_> = run.features.iter().map(feature).collect();
    let decided = format!("policy {}; {}", policy_name(row.policy), describe_limits(&run.limits));
    for (name, fact) in [("features", features.join(", ")), ("decided", decided)] {
        if !fact.is_empty() {
            text += &glance::hanging(&format!("  {name:<9} "), &printable(&fact));
        }
    }
    text
}

fn policy_name(policy: Policy) -> &'static str {
    match policy {
        Policy::Elastic => "elastic",
        Policy::Strict => "strict",
        Policy::Observe => "observe",
    }
}

/// A feature with its unit.
pub(super) fn feature(feature: &Feature) -> String {
    let name = &feature.name;
    match &feature.value {
        FeatureValue::Number(bytes) if name.starts_with("input_bytes") => {
            format!("{name} {}", format_bytes(*bytes))
        }
        FeatureValue::Number(number) => format!("{name} {number}"),
        FeatureValue::Category(text) => format!("{name} {text}"),
    }
}

/// What the run needed of each resource, beside what was expected before it started, and how good the predictions
/// of this task were so far.
fn needs(run: &RunDetail, accuracy: &[AccuracySummary]) -> Table {
    use Align::{Left, Right};
    let columns = [
        ("RESOURCE", Left),
        ("NEEDED", Right),
        ("EXPECTED", Right),
        ("AT MOST", Right),
        ("ERROR", Right),
        ("WITHIN", Right),
        ("", Left),
    ];
    let estimate = |resource| run.prediction.estimate(resource).filter(|it| it.level != Level::Host);
    let was_predicted = Resource::ALL.into_iter().any(|resource| estimate(resource).is_some());
    let mut table = Table::new(match (accuracy.is_empty(), was_predicted) {
        (true, false) => &columns[..2],
        (true, true) => &columns[..4],
        (false, _) => &columns[..],
    });
    for resource in Resource::ALL {
        let (name, format) = predict::describe(resource);
        let estimate = estimate(resource);
        let needed = needed(run, resource);
        let nothing = needed.unwrap_or(0.0) == 0.0;
        if nothing && estimate.is_none_or(|estimate| estimate.expected == 0.0) {
            continue;
        }
        let or_dash = |number: Option<f64>| number.map_or_else(|| "-".into(), format);
        let over = needed.zip(estimate).is_some_and(|(needed, estimate)| needed > estimate.upper);
        let known = accuracy.iter().find(|known| known.resource == resource);
        let percent = |share: Option<f64>| match share {
            // Beside next to nothing every error is huge.
            Some(share) if share >= 999.5 => ">999 %".into(),
            share => share.map_or_else(|| "-".into(), |share| format!("{share:.0} %")),
        };
        table.row([
            name.into(),
            or_dash(needed),
            or_dash(estimate.map(|estimate| estimate.expected)),
            or_dash(estimate.map(|estimate| estimate.upper)),
            percent(known.and_then(|known| known.mean_error_percent)),
            percent(known.and_then(|known| known.within_upper_percent)),
            if over { "more".into() } else { String::new() },
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
