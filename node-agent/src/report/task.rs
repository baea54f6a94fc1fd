//! What the page says of one kind of task.

use super::gather::{RUNS_MAX, Report, TaskPart};
use super::host;
use super::markup::{Table, numbers, words};
use super::page::{Section, counted, facts, figure, paragraph};
use super::plot::{Across, Mark, Plot, Unit};
use crate::fingerprint::demand::Windows;
use crate::fingerprint::histogram::{lower_s, quantile_s, total};
use crate::fingerprint::sentence::sentence;
use crate::fingerprint::series::Point;
use crate::fingerprint::{Fingerprint, HISTOGRAM_BUCKETS, Histogram};
use crate::predict::{Level, Resource};
use crate::printable::command_line;
use crate::size::Limit;
use crate::store::event::EventRow;
use crate::store::read::{RunDetail, RunRow};
use crate::units::{format_bytes, format_clock, format_count, format_duration};

/// The sections of a page about this task alone.
pub(super) fn sections(report: &Report, part: &TaskPart) -> Vec<Section> {
    let section = |id: &str, title: &str, body: String| Section { id: id.into(), title: title.into(), body };
    let mut all = vec![section("is", "What it is like", overview(report, part))];
    all.push(section("runs", "Runs over time", runs_over_time(part, "runs")));
    if let Some(run) = &part.last {
        let title = format!("The course of run {}", run.run.run_id.0);
        all.push(section("course", &title, course(part, run, "course")));
        all.push(section("times", "How long things took", times(run, "times")));
    }
    all.push(section("next", "What the next run will need", next(part)));
    all.push(section("accuracy", "How good predictions were", host::accuracy(report)));
    all.push(section("saved", "Memory saved", host::saved(report)));
    if !report.failovers.is_empty() {
        all.push(section("failovers", "Failovers", host::failovers(report)));
    }
    if !report.events.is_empty() {
        all.push(section("events", "What went wrong", host::events(report)));
    }
    all
}

/// The section of a task on the page of a host.
pub(super) fn in_short(part: &TaskPart, number: usize) -> Section {
    let id = format!("task-{number}");
    let mut body = part.character.as_ref().map(|it| paragraph("lead", &sentence(it))).unwrap_or_default();
    body += &runs_over_time(part, &id);
    if let Some(run) = &part.last {
        body += &format!("<h3>The course of run {}</h3>\n{}", run.run.run_id.0, course(part, run, &id));
        body += &format!("<h3>How long things took</h3>\n{}", times(run, &id));
    }
    Section { id, title: part.name.clone(), body }
}

fn overview(report: &Report, part: &TaskPart) -> String {
    let mut body = part.character.as_ref().map(|it| paragraph("lead", &sentence(it))).unwrap_or_default();
    let sum = |of: fn(&crate::store::read::TaskRow) -> u64| report.tasks.iter().map(of).sum::<u64>();
    let users: Vec<_> = report.tasks.iter().map(|row| row.user.as_str()).collect();
    let latest = report.tasks.iter().filter_map(|row| row.last_started_at_ms).max();
    let row = &report.tasks[0];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    body += &facts(&[
        ("Runs", format_count(sum(|row| row.runs))),
        ("Failed or lost", format_count(sum(|row| row.failed + row.lost))),
        ("Users", users.join(", ")),
        ("Last start", or_dash(latest.map(|ms| format_clock(ms)[..19].to_owned()))),
        ("Duration, mean", or_dash(row.duration_s_mean.map(format_duration))),
        ("Memory, mean", or_dash(row.memory_peak_bytes_mean.map(format_bytes))),
        ("Memory, most", or_dash(row.memory_peak_bytes_max.map(|bytes| format_bytes(bytes as f64)))),
        ("Cores, mean", or_dash(row.cpu_cores_mean.map(|cores| format!("{cores:.2}")))),
    ]);
    if let Some(run) = &part.last {
        body += &paragraph(
            "note",
            &format!("The sentence is about run {}: {}", run.run.run_id.0, command_line(&run.run.command)),
        );
    }
    body
}

const OVER_TIME: [(Resource, &str, Unit); 3] = [
    (Resource::MemoryPeakBytes, "Memory at peak", Unit::Bytes),
    (Resource::DurationS, "Duration", Unit::Seconds),
    (Resource::CpuCoresMean, "Cores on average", Unit::Cores),
];

fn runs_over_time(part: &TaskPart, id: &str) -> String {
    // Oldest first.
    let runs: Vec<&RunRow> = part.runs.iter().rev().collect();
    let figures: String = OVER_TIME
        .iter()
        .enumerate()
        .map(|(number, what)| over_time(part, &runs, what, &format!("{id}-over-{number}")))
        .collect();
    format!("<div class=\"plots\">\n{figures}</div>\n")
}

fn value(run: &RunRow, resource: Resource) -> Option<f64> {
    match resource {
        Resource::MemoryPeakBytes => run.memory_peak_bytes,
        Resource::DurationS => run.duration_s,
        _ => run.cpu_cores_mean,
    }
}

/// Runs beside each other in the order of their start, with the band that was predicted before each.
fn over_time(part: &TaskPart, runs: &[&RunRow], what: &(Resource, &str, Unit), id: &str) -> String {
    let (resource, name, unit) = *what;
    let mut table = Table::new(
        format!("{name} of each run"),
        &[
            numbers("Run"),
            words("Started"),
            words("Ended"),
            numbers("Was"),
            numbers("Expected"),
            numbers("At most"),
        ],
    );
    let (mut band, mut expected, mut good, mut bad) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut within = (0, 0);
    for (place, run) in runs.iter().enumerate() {
        let at = place as f64;
        let was = value(run, resource);
        let estimate = part
            .predicted
            .iter()
            .find(|row| row.run_id == run.run_id && row.resource == resource && row.level != Level::Host);
        if let Some(row) = estimate {
            band.push((at - 0.5, 0.0, row.upper));
            band.push((at + 0.5, 0.0, row.upper));
            expected.push((at - 0.5, row.expected));
            expected.push((at + 0.5, row.expected));
            within = (within.0 + usize::from(row.within_upper), within.1 + 1);
        }
        let or_dash = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| unit.format(value));
        let ended = host::ending(run);
        if let Some(was) = was {
            let word = format!("run {}: {}, {ended}", run.run_id.0, unit.format(was));
            if run.state == "finished" { good.push((at, was, word)) } else { bad.push((at, was, word)) }
        }
        table.row([
            run.run_id.0.to_string(),
            format_clock(run.started_at_ms)[..19].to_owned(),
            ended,
            or_dash(was),
            or_dash(estimate.map(|row| row.expected)),
            or_dash(estimate.map(|row| row.upper)),
        ]);
    }
    if good.is_empty() && bad.is_empty() {
        // It was never measured, as of runs that others took down.
        return String::new();
    }
    let every = runs.len().div_ceil(8).max(1);
    let ticks = runs.iter().enumerate().step_by(every);
    let ticks = ticks.map(|(place, run)| (place as f64, format!("run {}", run.run_id.0))).collect();
    let across = Across { from: -0.5, to: runs.len() as f64 - 0.5, ticks };
    let mut description = format!("{} in the order of their start.", counted(runs.len(), "run"));
    let mut key = vec![("dot blue", "ended well")];
    if !bad.is_empty() {
        key.push(("cross red", "failed, lost or running"));
    }
    if !band.is_empty() {
        description += &format!(" {} of {} that were predicted stayed within the bound.", within.0, within.1);
        key.extend([("line blue dashed", "expected before"), ("band", "up to the bound")]);
    }
    let marks = vec![
        Mark::Band(band),
        Mark::Line { class: "blue dashed", steps: false, points: expected },
        Mark::Dots { class: "blue", points: good },
        Mark::Crosses { class: "red", points: bad },
    ];
    let svg = Plot { id, title: name, description: &description, unit, across, marks }.svg();
    let note =
        if part.runs.len() == RUNS_MAX { format!("The newest {description}") } else { description.clone() };
    figure(name, &note, &key, &svg, &table.folded())
}

type Measure = (&'static str, Unit, &'static str, fn(&Point) -> f64);

const MEASURES: [Measure; 6] = [
    ("Memory in use", Unit::Bytes, "line blue", |point| point.memory_bytes as f64),
    ("Cores in use", Unit::Cores, "line orange", |point| point.cpu_cores),
    ("Reads from storage", Unit::BytesPerS, "line green", |point| point.read_bytes_per_s),
    ("Writes to storage", Unit::BytesPerS, "line purple", |point| point.write_bytes_per_s),
    ("Received", Unit::BytesPerS, "line green", |point| point.received_bytes_per_s),
    ("Sent", Unit::BytesPerS, "line purple", |point| point.sent_bytes_per_s),
];

/// A plot per measure that was ever above nothing, with the limits that it had.
fn course(part: &TaskPart, run: &RunDetail, id: &str) -> String {
    let end_s = run.series.last().map_or(0.0, |point| point.at_ms as f64 / 1e3);
    if run.series.len() < 2 || end_s <= 0.0 {
        return paragraph("note", "No course is known: the run was too short, or was measured elsewhere.");
    }
    let figures: String = MEASURES
        .iter()
        .enumerate()
        .filter(|(_, measure)| run.series.iter().any(|point| measure.3(point) > 0.0))
        .map(|(number, measure)| over_run(part, run, measure, end_s, &format!("{id}-course-{number}")))
        .collect();
    format!("<div class=\"plots\">\n{figures}</div>\n")
}

fn over_run(part: &TaskPart, run: &RunDetail, measure: &Measure, end_s: f64, id: &str) -> String {
    let (name, unit, class, of) = *measure;
    let mut table =
        Table::new(format!("{name} over run {}", run.run.run_id.0), &[numbers("Until"), numbers(name)]);
    let mut points = Vec::new();
    for point in &run.series {
        let (from, to) = (point.at_ms.saturating_sub(point.length_ms) as f64 / 1e3, point.at_ms as f64 / 1e3);
        points.push((from, of(point)));
        points.push((to, of(point)));
        table.row([format_duration(to), unit.format(of(point))]);
    }
    let most = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let mut marks = vec![Mark::Line { class: colour(class), steps: false, points }];
    let mut key = vec![(class, "in use")];
    let mut told = String::new();
    let limits = limits_over(part, run, name, end_s);
    for (class, sample, meaning, line) in limits {
        let (first, last) = (line.first().map_or(0.0, |p| p.1), line.last().map_or(0.0, |p| p.1));
        told += &format!("; {meaning}: {}", unit.format(first));
        if first != last {
            told += &format!(", at the end {}", unit.format(last));
        }
        key.push((sample, meaning));
        marks.push(Mark::Line { class, steps: true, points: line });
    }
    let description = format!("At most {} over {}{told}.", unit.format(most), format_duration(end_s));
    let across = Across::seconds(end_s);
    let svg = Plot { id, title: name, description: &description, unit, across, marks }.svg();
    figure(name, &description, &key, &svg, &table.folded())
}

fn colour(class: &'static str) -> &'static str {
    class.strip_prefix("line ").unwrap_or(class)
}

/// Class of the line, of its sample, its meaning, its points.
type Limited = (&'static str, &'static str, &'static str, Vec<(f64, f64)>);

/// Limits on what is drawn, as they were from the start to the end; and what was expected of memory.
fn limits_over(part: &TaskPart, run: &RunDetail, name: &str, end_s: f64) -> Vec<Limited> {
    let mut lines = Vec::new();
    for (limit, _) in &run.limits.0 {
        let (column, sample, class, meaning, value) = match (name, limit) {
            ("Memory in use", Limit::MemoryHigh(bytes)) => {
                ("memory_high_bytes", "line red dashed", "red dashed", "memory.high", *bytes as f64)
            }
            ("Memory in use", Limit::MemoryMax(bytes)) => {
                ("memory_max_bytes", "line red", "red", "memory.max", *bytes as f64)
            }
            ("Cores in use", Limit::CpuMax(cores)) => ("cpu_max_cores", "line red", "red", "cpu.max", *cores),
            _ => continue,
        };
        lines.push((class, sample, meaning, followed(&part.steps, run, column, value, end_s)));
    }
    let of = match name {
        "Memory in use" => Some(Resource::MemoryPeakBytes),
        "Cores in use" => Some(Resource::CpuCoresMean),
        _ => None,
    };
    let estimate = of.and_then(|of| run.prediction.estimate(of)).filter(|it| it.level != Level::Host);
    if let Some(estimate) = estimate {
        let line = vec![(0.0, estimate.expected), (end_s, estimate.expected)];
        let meaning = if name == "Memory in use" { "peak expected" } else { "mean expected" };
        lines.push(("purple dotted", "line purple dotted", meaning, line));
    }
    lines
}

/// A limit as it followed the run, by the events that tell it.
fn followed(steps: &[EventRow], run: &RunDetail, column: &str, first: f64, end_s: f64) -> Vec<(f64, f64)> {
    let mut line = vec![(0.0, first)];
    for event in steps {
        let details = &event.details;
        let is_it = details.get("limit").and_then(|name| name.as_str()) == Some(column);
        let (Some(to), true) = (details.get("to").and_then(serde_json::Value::as_f64), is_it) else {
            continue;
        };
        let at_s = (event.at_ms - run.run.started_at_ms) as f64 / 1e3;
        line.push((at_s.clamp(0.0, end_s), to));
    }
    let last = line.last().map_or(first, |point| point.1);
    line.push((end_s, last));
    line
}

/// Histograms of times, and cores in use per window.
fn times(run: &RunDetail, id: &str) -> String {
    let fingerprint = &run.fingerprint;
    let mut figures: String = histograms(fingerprint)
        .enumerate()
        .map(|(number, (name, histogram))| histogram_figure(name, histogram, &format!("{id}-times-{number}")))
        .collect();
    for windows in fingerprint.cpu_demand.iter().flat_map(|demand| &demand.0).take(2) {
        figures += &demand_figure(windows, &format!("{id}-demand-{}", windows.window_ms));
    }
    if figures.is_empty() {
        return paragraph("note", "No histogram was measured: that takes probes, and so root or an agent.");
    }
    format!("<div class=\"plots\">\n{figures}</div>\n")
}

fn histograms(fingerprint: &Fingerprint) -> impl Iterator<Item = (&'static str, &Histogram)> {
    [
        ("CPU bursts", &fingerprint.cpu_burst_ns),
        ("Waits for a CPU", &fingerprint.cpu_wait_ns_histogram),
        ("Block reads", &fingerprint.block_read_ns),
        ("Block writes", &fingerprint.block_write_ns),
        ("Service times", &fingerprint.tcp_service_ns),
        ("Times to connect", &fingerprint.tcp_connect_ns),
    ]
    .into_iter()
    .filter_map(|(name, histogram)| Some((name, histogram.as_ref().filter(|it| total(it) > 0)?)))
}

/// The bucket that histograms are drawn from: all start at a microsecond, so that they can be compared.
const FIRST: usize = 9;

fn histogram_figure(name: &str, histogram: &Histogram, id: &str) -> String {
    let mut table = Table::new(format!("{name}, by length"), &[numbers("From"), numbers("Count")]);
    let mut columns = Vec::new();
    for (bucket, &count) in histogram.iter().enumerate().filter(|(_, count)| **count > 0) {
        table.row([format_duration(lower_s(bucket)), format_count(count)]);
        let at = bucket.max(FIRST) as f64;
        let word = format!("from {}: {}", format_duration(lower_s(bucket)), format_count(count));
        columns.push((at, at + 1.0, count as f64, word));
    }
    let label = |bucket: usize| match bucket {
        FIRST => "shorter".to_owned(),
        bucket => format_duration(lower_s(bucket)),
    };
    let ticks = (FIRST + 1..HISTOGRAM_BUCKETS).step_by(4).map(|bucket| (bucket as f64, label(bucket)));
    let across = Across { from: FIRST as f64, to: HISTOGRAM_BUCKETS as f64, ticks: ticks.collect() };
    let time = |q| {
        quantile_s(histogram, q)
            .map_or_else(|| "more than 2 s".into(), |seconds| format_duration(seconds.max(1e-6)))
    };
    let description = format!(
        "{} in all; half within {}, 99 % within {}.",
        format_count(total(histogram)),
        time(0.5),
        time(0.99)
    );
    let marks = vec![Mark::Columns { class: "blue", columns }];
    let svg = Plot { id, title: name, description: &description, unit: Unit::Count, across, marks }.svg();
    figure(name, &description, &[], &svg, &table.folded())
}

fn demand_figure(windows: &Windows, id: &str) -> String {
    let length = format_duration(windows.window_ms as f64 / 1e3);
    let name = format!("Cores in use per {length}");
    let mut table =
        Table::new(format!("{name}, share of windows"), &[numbers("Cores from"), numbers("Share")]);
    let share = |count: u64| 100.0 * count as f64 / windows.windows.max(1) as f64;
    let idle = windows.windows.saturating_sub(windows.busy);
    table.row(["idle".into(), format!("{:.1} %", share(idle))]);
    let highest = windows.peak().max(0.01);
    let mut columns = Vec::new();
    for (bucket, &count) in windows.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (from, to) = (windows.lower(bucket), windows.upper(bucket).min(highest));
        table.row([format!("{from:.3}"), format!("{:.1} %", share(count))]);
        columns.push((from, to, share(count), format!("from {from:.2} cores: {:.1} %", share(count))));
    }
    let ticks = (0..=4).map(|tick| f64::from(tick) / 4.0 * highest).map(|at| (at, format!("{at:.2}")));
    let across = Across { from: 0.0, to: highest, ticks: ticks.collect() };
    let description = format!(
        "{:.0} % of windows idle; mean {:.2}, 95 % below {:.2}, peak {:.2} cores.",
        share(idle),
        windows.mean(),
        windows.quantile(0.95),
        windows.peak()
    );
    let marks = vec![Mark::Columns { class: "orange", columns }];
    let svg = Plot { id, title: &name, description: &description, unit: Unit::Percent, across, marks }.svg();
    figure(&name, &description, &[], &svg, &table.folded())
}

fn next(part: &TaskPart) -> String {
    let of_task: Vec<_> = part.next.estimates.iter().filter(|it| it.level != Level::Host).collect();
    if of_task.is_empty() {
        return paragraph("note", "No run of this task ended well yet.");
    }
    let mut table = Table::new(
        "A run with the features of the last one",
        &[words("Resource"), numbers("Expected"), numbers("At most"), numbers("Runs"), words("Because")],
    );
    for estimate in of_task {
        let (name, unit) = host::named(estimate.resource);
        table.row([
            name.into(),
            unit.format(estimate.expected),
            unit.format(estimate.upper),
            estimate.samples.to_string(),
            estimate.reason.clone(),
        ]);
    }
    table.html()
}
