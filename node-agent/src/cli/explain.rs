//! `standin explain`: why a task's memory is sized as it is.

use super::exit::{NOT_KNOWN, complain, print};
use super::output::{JSON_VERSION, print_json};
use super::predict::{TaskArgs, describe};
use super::settings::Settings;
use super::show::feature;
use super::table::{Align, Table};
use crate::fingerprint::key::Feature;
use crate::predict::explain::{Explanation, explain};
use crate::predict::licenses::{self, LicenseEstimate};
use crate::predict::{History, Level, Observation, Prediction, Resource, predict};
use crate::store::Reader;
use crate::units::{format_bytes, format_duration, format_gb_hours};
use clap::Args;
use serde::Serialize;

/// Rows of history that are shown to people.
const ROWS_SHOWN: usize = 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  standin explain align.py                  what each way of sizing would cost, and which input matters
  standin explain align.py -- big.fastq     for a run with this input")]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    task: TaskArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Explained<'a> {
    version: u32,
    task_type: &'a str,
    uid: u32,
    features: &'a [Feature],
    memory: &'a Explanation,
    #[serde(flatten)]
    prediction: &'a Prediction,
    licenses: &'a [LicenseEstimate],
    history: Vec<HistoryRow<'a>>,
}

#[derive(Serialize)]
struct HistoryRow<'a> {
    memory_peak_bytes: Option<f64>,
    is_lower_bound: bool,
    duration_s: Option<f64>,
    features: &'a [Feature],
}

pub(super) fn run(settings: &Settings, arguments: &ExplainArgs) -> anyhow::Result<u8> {
    let (key, features) = (arguments.task.key(), arguments.task.features());
    let reader = Reader::open(&settings.database_to_read())?;
    let history = reader.history(&key)?;
    let licenses = licenses::learn(&reader.licenses_used(&key)?, settings.config.run.risk);
    let Some(explanation) = explain(&history, &features) else {
        complain(&format!("no finished run of {:?} is known; `standin ls` lists what is", key.task_type));
        return Ok(NOT_KNOWN);
    };
    let prediction = predict(&history, &features, settings.config.run.risk);
    let rows = rows(&history, explanation.level);
    if arguments.json {
        print_json(&Explained {
            version: JSON_VERSION,
            task_type: &key.task_type,
            uid: key.uid,
            features: &features,
            memory: &explanation,
            prediction: &prediction,
            licenses: &licenses,
            history: rows.iter().map(row).collect(),
        })?;
    } else {
        print(words(&explanation, &features, &prediction, &licenses, rows))?;
    }
    Ok(0)
}

fn rows(history: &History, level: Level) -> &[Observation] {
    match level {
        Level::TaskAndUser => &history.task_and_user,
        _ => &history.task,
    }
}

fn row(run: &Observation) -> HistoryRow<'_> {
    let place = Resource::MemoryPeakBytes as usize;
    HistoryRow {
        memory_peak_bytes: run.values[place],
        is_lower_bound: run.censored[place],
        duration_s: run.values[Resource::DurationS as usize],
        features: &run.features,
    }
}

fn words(
    explanation: &Explanation,
    features: &[Feature],
    prediction: &Prediction,
    licenses: &[LicenseEstimate],
    rows: &[Observation],
) -> String {
    let mut text = String::new();
    if let Some(memory) = prediction.estimate(Resource::MemoryPeakBytes) {
        let (expected, upper) = (format_bytes(memory.expected), format_bytes(memory.upper));
        text += &format!("Memory: {expected} expected, {upper} reserved\n  because {}\n\n", memory.reason);
    }
    text += &format!("What each way would cost for this run, by {} runs\n", explanation.samples);
    text += &candidates(explanation).to_string();
    text += &format!("\n{}\n", matters(explanation, features));
    let shown = rows.len().min(ROWS_SHOWN);
    text += &format!(
        "\nThe newest {shown} of {} runs behind it\n{}",
        rows.len(),
        table(&rows[..shown], explanation)
    );
    let pools = licenses.iter().map(|pool| {
        let LicenseEstimate { license, expected, upper, samples } = pool;
        format!("  licences of {license}: {expected} expected, at most {upper}\n    because of what {samples} runs were seen to use")
    });
    let others: Vec<_> = prediction
        .estimates
        .iter()
        .filter(|estimate| estimate.resource != Resource::MemoryPeakBytes)
        .map(|estimate| {
            let (name, format) = describe(estimate.resource);
            let (expected, upper) = (format(estimate.expected), format(estimate.upper));
            format!("  {name}: {expected} expected, at most {upper}\n    because {}", estimate.reason)
        })
        .chain(pools)
        .collect();
    if !others.is_empty() {
        text += &format!("\nEverything else\n{}\n", others.join("\n"));
    }
    text
}

fn candidates(explanation: &Explanation) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("", Left),
        ("MODEL", Left),
        ("SAYS", Right),
        ("TIMES", Right),
        ("RESERVES", Right),
        ("WASTE", Right),
        ("WOULD HAVE FAILED", Right),
    ]);
    for candidate in &explanation.candidates {
        table.row([
            if candidate.chosen { "→".into() } else { String::new() },
            candidate.model.clone(),
            format_bytes(candidate.value_bytes),
            format!("{:.2}", candidate.multiplier),
            format_bytes(candidate.reserved_bytes),
            format_gb_hours(candidate.expected_waste_gbh),
            format!("{:.0} %", candidate.failed_share * 100.0),
        ]);
    }
    table
}

/// Which features matter, where those are known of the run that is asked about.
fn matters(explanation: &Explanation, known: &[Feature]) -> String {
    if explanation.features.is_empty() {
        return "No feature of these runs varied, so none can matter.".into();
    }
    let each: Vec<_> = explanation
        .features
        .iter()
        .map(|feature| {
            let used = if feature.used { ", used" } else { "" };
            match feature.correlation {
                Some(correlation) => format!("{} (correlation {correlation:.2}{used})", feature.name),
                None => format!("{} (a category{used})", feature.name),
            }
        })
        .collect();
    let verdict = match explanation.features.iter().find(|feature| feature.used) {
        Some(feature) => format!("{} was found to matter", feature.name),
        None if explanation.features.iter().all(|it| known.iter().all(|known| known.name != it.name)) => {
            "of this run none is known: name its inputs behind --, or say --feature NAME=VALUE".into()
        }
        None => "none was found to matter".into(),
    };
    format!("Features: {}; {verdict}.", each.join(", "))
}

fn table(rows: &[Observation], explanation: &Explanation) -> Table {
    let mut table =
        Table::new(&[("MEMORY", Align::Right), ("DURATION", Align::Right), ("FEATURES", Align::Left)]);
    for run in rows {
        let seen = row(run);
        let memory = seen.memory_peak_bytes.map_or_else(|| "-".into(), format_bytes);
        let features: Vec<_> = run
            .features
            .iter()
            .filter(|feature| explanation.features.iter().any(|known| known.name == feature.name))
            .map(feature)
            .collect();
        table.row([
            if seen.is_lower_bound { format!("≥ {memory}") } else { memory },
            seen.duration_s.map_or_else(|| "-".into(), format_duration),
            features.join(", "),
        ]);
    }
    table
}
