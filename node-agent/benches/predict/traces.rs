//! Waste and accuracy on traces of tasks: three of the Sizey collection, and the sample of NREL's Eagle.

use standin::backtest::accuracy::measure;
use standin::backtest::recipe::{self, Recipe, Retry, Standin};
use standin::backtest::trace::{Mapping, Preset, Trace, read};
use standin::backtest::{Rules, replay};
use standin::predict::Resource;
use std::path::Path;
use std::process::Command;

/// Traces, and what the study of this protocol measured for its own engine, GB·h.
const TRACES: [(&str, f64); 3] = [("chipseq", 229.0), ("eager", 1490.0), ("rnaseq", 783.0)];

pub(crate) fn on_all(folder: &Path) {
    TRACES.iter().for_each(|(name, bar)| on_trace(folder, name, *bar));
    on_eagle(folder);
}

fn unpack(path: &Path) -> Option<String> {
    let output = Command::new("xz").arg("-dc").arg(path).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn on_trace(folder: &Path, name: &str, bar: f64) {
    let Some(text) = unpack(&folder.join(format!("sizey/trace_{name}.csv.xz"))) else {
        return println!("{name}: skipped: no such trace");
    };
    let trace = read(&text, &Mapping { preset: Preset::Sizey, ..Mapping::default() }).unwrap();
    let rules = Rules::default();
    println!(
        "{name}, {} tasks: GB·h wasted, failed attempts per 1,000 (study's engine: {bar})",
        trace.tasks.len()
    );
    let mut recipes = recipe::all(Retry::Kill, rules.host_bytes);
    recipes.push(Box::new(Standin::new(Retry::Elastic, rules.host_bytes)));
    recipes.iter_mut().for_each(|recipe| line(&trace, rules, recipe.as_mut()));
    let mut blind = trace.clone();
    blind.tasks.iter_mut().for_each(|task| task.features.clear());
    print!("  without the size of inputs:");
    line(&blind, rules, &mut Standin::new(Retry::Kill, rules.host_bytes));
    for (what, resource) in [
        ("run time", Resource::DurationS),
        ("mean cores", Resource::CpuCoresMean),
        ("read rate", Resource::IoReadBytesPerS),
        ("write rate", Resource::IoWriteBytesPerS),
    ] {
        accuracy(what, &trace, resource);
    }
    println!();
}

fn accuracy(what: &str, trace: &Trace, resource: Resource) {
    let accuracy = measure(trace, resource, 0.05);
    println!(
        "  {what}: median error {:.1} %, p95 bound covers {:.1} % ({:.1} % of the later half) at {:.2} × used ({} \
         predictions)",
        accuracy.median_error_percent,
        accuracy.covered_percent,
        accuracy.covered_late_percent,
        accuracy.upper_over_used,
        accuracy.predictions
    );
}

/// Jobs of Slurm with the time that their user asked for: only run times can be predicted. A kind of task is a user's
/// jobs of one account and partition.
fn on_eagle(folder: &Path) {
    let Some(text) = unpack(&folder.join("eagle/sample_eagle_data.csv.xz")) else {
        return println!("eagle: skipped: no such trace");
    };
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let place = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let columns =
        ["user", "account", "partition", "start_time", "run_time", "wallclock_req", "processors_req"]
            .map(place);
    let mut csv =
        "task,start_s,duration_s,memory_peak_bytes,feature:wallclock,feature:processors\n".to_owned();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let [user, account, partition, start, run_time, wallclock, processors] = columns.map(|at| fields[at]);
        csv += &format!("{user} {account} {partition},{start},{run_time},1,{wallclock},{processors}\n");
    }
    let trace = read(&csv, &Mapping { skip_bad: true, ..Mapping::default() }).unwrap();
    println!("eagle, {} jobs", trace.tasks.len());
    accuracy("run time", &trace, Resource::DurationS);
    println!();
}

fn line(trace: &Trace, rules: Rules, recipe: &mut dyn Recipe) {
    let outcome = replay(trace, rules, recipe);
    println!(
        "  {:18} {:8.1} GB·h  {:6.1} failed per 1,000  {:7.1} GB·h of it cold",
        outcome.name,
        outcome.waste_gbh,
        1e3 * outcome.failed_attempts as f64 / outcome.tasks as f64,
        outcome.cold_gbh
    );
}
