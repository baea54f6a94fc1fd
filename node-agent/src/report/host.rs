//! What the page says of a whole host, and the sections that the page of one task has in common with it.

use super::gather::{FAILOVERS_MAX, Report, TASKS_MAX, TIMELINE_MAX};
use super::markup::{Table, escape, numbers, words};
use super::page::{Section, counted, facts, figure, paragraph};
use super::plot::{Across, Bar, Mark, Plot, Row, Span, Unit, bars, timeline};
use super::task;
use crate::backtest::Outcome;
use crate::fingerprint::sentence::sentence;
use crate::predict::Resource;
use crate::store::read::RunRow;
use crate::units::{format_bytes, format_clock, format_count, format_duration};

/// The sections of a page about the whole host.
pub(super) fn sections(report: &Report) -> Vec<Section> {
    let section = |id: &str, title: &str, body: String| Section { id: id.into(), title: title.into(), body };
    let mut all = vec![
        section("tasks", "What runs here", overview(report)),
        section("timeline", "Runs over time", runs(report)),
        section("saved", "Memory saved", saved(report)),
        section("accuracy", "How good predictions were", accuracy(report)),
    ];
    if !report.failovers.is_empty() {
        all.push(section("failovers", "Failovers", failovers(report)));
    }
    if !report.events.is_empty() {
        all.push(section("events", "What went wrong", events(report)));
    }
    all.extend(report.parts.iter().enumerate().map(|(number, part)| task::in_short(part, number)));
    all
}

fn overview(report: &Report) -> String {
    let sum = |of: fn(&crate::store::read::TaskRow) -> u64| report.tasks.iter().map(of).sum::<u64>();
    let (first, last) = (report.runs.last(), report.runs.first());
    let span = |run: Option<&RunRow>| {
        run.map_or_else(|| "–".into(), |run| format_clock(run.started_at_ms)[..16].to_owned())
    };
    let mut body = facts(&[
        ("Tasks", format_count(report.tasks.len() as u64)),
        ("Runs", format_count(sum(|row| row.runs))),
        ("Failed or lost", format_count(sum(|row| row.failed + row.lost))),
        ("Failovers", format_count(report.failovers.len() as u64)),
        ("First run shown", span(first)),
        ("Last run", span(last)),
    ]);
    let items: String = report
        .parts
        .iter()
        .enumerate()
        .map(|(number, part)| {
            let like = part.character.as_ref().map(sentence).unwrap_or_default();
            format!("<li><a href=\"#task-{number}\">{}</a>: {}</li>\n", escape(&part.name), escape(&like))
        })
        .collect();
    body += &format!("<ul>\n{items}</ul>\n");
    if report.tasks.len() > report.parts.len() {
        body += &paragraph(
            "note",
            &format!(
                "The {TASKS_MAX} latest tasks have a section below; `standin report TASK` makes a page of any."
            ),
        );
    }
    if report.cgroups_left_out > 0 {
        let cgroups = counted(report.cgroups_left_out, "cgroup");
        let note = format!("Beside them {cgroups} of others were measured; `standin ls --all` lists them.");
        body += &paragraph("note", &note);
    }
    let mut table = Table::new(
        "All tasks, the latest first",
        &[
            words("Task"),
            words("User"),
            numbers("Runs"),
            numbers("Failed"),
            numbers("Duration"),
            numbers("Cores"),
            numbers("Memory"),
            numbers("Memory, most"),
        ],
    );
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
    for row in &report.tasks {
        table.row([
            row.task_type.clone(),
            row.user.clone(),
            row.runs.to_string(),
            (row.failed + row.lost).to_string(),
            or_dash(row.duration_s_mean.map(format_duration)),
            or_dash(row.cpu_cores_mean.map(|cores| format!("{cores:.2}"))),
            or_dash(row.memory_peak_bytes_mean.map(format_bytes)),
            or_dash(row.memory_peak_bytes_max.map(|bytes| format_bytes(bytes as f64))),
        ]);
    }
    body + &table.html()
}

/// Somebody ended the run: SIGHUP, SIGINT or SIGTERM, or the exit code that stands for one, as `run_actual` has it.
pub(super) fn is_stopped(run: &RunRow) -> bool {
    matches!(run.signal, Some(1 | 2 | 15)) || matches!(run.exit_code, Some(129 | 130 | 143))
}

/// How a run ended, in a word or two.
pub(super) fn ending(run: &RunRow) -> String {
    let main = match (run.state.as_str(), run.exit_code, run.signal) {
        (state @ ("running" | "lost"), ..) => state.to_owned(),
        (_, _, Some(signal)) => format!("signal {signal}"),
        (_, Some(code), _) => format!("exit {code}"),
        (state, ..) => state.to_owned(),
    };
    if run.out_of_memory { format!("{main}, out of memory") } else { main }
}

/// Ticks of a stretch of absolute time, milliseconds.
fn clock_axis(from_ms: i64, to_ms: i64) -> Across {
    const TICKS: i64 = 4;
    let to_ms = to_ms.max(from_ms + 1);
    let within_a_day = to_ms - from_ms < 86_400_000;
    let label = |ms: i64| {
        let text = format_clock(ms);
        if within_a_day { text[11..19].to_owned() } else { text[5..16].to_owned() }
    };
    let at = |tick: i64| from_ms + (to_ms - from_ms) * tick / TICKS;
    let ticks = (0..=TICKS).map(|tick| (at(tick) as f64, label(at(tick)))).collect();
    Across { from: from_ms as f64, to: to_ms as f64, ticks }
}

/// Rows of the timeline; the rest share the last.
const ROWS_MAX: usize = 20;

fn runs(report: &Report) -> String {
    let Some(from_ms) = report.runs.iter().map(|run| run.started_at_ms).min() else { return String::new() };
    let until = |run: &RunRow| run.ended_at_ms.unwrap_or(report.at_ms);
    let to_ms = report.runs.iter().map(until).max().unwrap_or(from_ms);
    let mut names: Vec<&str> = Vec::new();
    for run in &report.runs {
        if !names.contains(&run.task_type.as_str()) && names.len() < ROWS_MAX {
            names.push(&run.task_type);
        }
    }
    let row = |name: &&str| Row {
        name: (*name).to_owned(),
        spans: report
            .runs
            .iter()
            .filter(|run| run.task_type == *name)
            .map(|run| Span {
                from: run.started_at_ms as f64,
                to: until(run) as f64,
                class: match run.state.as_str() {
                    "finished" => "blue",
                    "running" => "green",
                    _ if is_stopped(run) => "purple",
                    _ => "red",
                },
                word: format!("run {} of {}: {}", run.run_id.0, run.task_type, ending(run)),
            })
            .collect(),
        moments: report
            .failovers
            .iter()
            .filter(|failover| failover.service == *name && failover.at_ms >= from_ms)
            .map(|failover| (failover.at_ms as f64, format!("failover: {}", failover.evidence)))
            .collect(),
    };
    let rows: Vec<Row> = names.iter().map(row).collect();
    let description = format!("{} of {}.", counted(report.runs.len(), "run"), counted(names.len(), "task"));
    let svg = timeline("timeline-svg", "Runs over time", &description, &clock_axis(from_ms, to_ms), &rows);
    let mut table = Table::new(
        format!("The newest {} runs", report.runs.len().min(TIMELINE_MAX)),
        &[
            numbers("Run"),
            words("Task"),
            words("User"),
            words("Started"),
            numbers("Duration"),
            numbers("Memory"),
            words("Ended"),
        ],
    );
    for run in &report.runs {
        table.row([
            run.run_id.0.to_string(),
            run.task_type.clone(),
            run.user.clone(),
            format_clock(run.started_at_ms)[..19].to_owned(),
            run.duration_s.map_or_else(|| "–".into(), format_duration),
            run.memory_peak_bytes.map_or_else(|| "–".into(), format_bytes),
            ending(run),
        ]);
    }
    let key = [
        ("fill blue", "ended well"),
        ("fill purple", "stopped from outside"),
        ("fill red", "failed or lost"),
        ("fill green", "running"),
        ("cross red", "failover"),
    ];
    figure("Runs over time", &description, &key, &svg, &table.folded())
}

/// What each way of sizing memory would have wasted on the same runs; and against what users had asked for.
pub(super) fn saved(report: &Report) -> String {
    let Some(ours) = report.outcomes.last() else {
        return paragraph("note", "No run ended well yet, so there is nothing to compare.");
    };
    let what = format!(
        "{} replayed in the order of their start ({} used): memory that each way of sizing would have reserved \
         and not used, in GB·h (10⁹ bytes × 3,600 s), attempts that failed for want of memory included.",
        counted(ours.tasks as usize, "run"),
        format_gbh(ours.used_gbh)
    );
    let mut body = paragraph("", &what);
    // Without a request the preset of a run is made up: it is compared below, over the runs that have one.
    let outcomes = &report.outcomes[1..];
    body += &paragraph("lead", &verdict(ours, outcomes));
    let note = format!(
        "Grey: runs of which a way knew too little. It then reserves what the user asked for, or where nobody asked \
         all memory of the host ({}).",
        format_bytes(report.host_bytes)
    );
    body += &paragraph("note", &note);
    body += &compared("saved", "Memory reserved in vain, by way of sizing", &what, outcomes);
    body += &against_presets(&report.with_request);
    let added_up = as_it_added_up(outcomes);
    if added_up.is_empty() { body } else { format!("{body}<div class=\"plots\">\n{added_up}</div>\n") }
}

fn compared(id: &str, title: &str, what: &str, outcomes: &[Outcome]) -> String {
    let drawn: Vec<Bar> = outcomes.iter().map(bar).collect();
    let svg = bars(&format!("{id}-svg"), title, what, &drawn);
    let mut table = Table::new(
        title,
        &[
            words("Way"),
            numbers("Wasted"),
            numbers("of that, unknown tasks"),
            numbers("Failed attempts"),
            numbers("Of what was used"),
        ],
    );
    for outcome in outcomes {
        let share = 100.0 * outcome.waste_gbh / outcome.used_gbh.max(f64::MIN_POSITIVE);
        table.row([
            outcome.name.clone(),
            format_gbh(outcome.waste_gbh),
            format_gbh(outcome.cold_gbh),
            outcome.failed_attempts.to_string(),
            format!("{share:.0} %"),
        ]);
    }
    let key = [("fill green", "standin"), ("fill blue", "others"), ("fill grey", "before it knew the task")];
    figure(title, "", &key, &svg, &table.folded())
}

/// Of runs whose task was known.
fn known_gbh(outcome: &Outcome) -> f64 {
    (outcome.waste_gbh - outcome.cold_gbh).max(0.0)
}

fn verdict(ours: &Outcome, outcomes: &[Outcome]) -> String {
    if known_gbh(ours) == 0.0 && ours.failed_attempts == 0 {
        return "No task was known yet when a run of it started, so nothing can be compared.".into();
    }
    let of = |outcome: &Outcome| {
        let (wasted, failed) = (format_gbh(known_gbh(outcome)), outcome.failed_attempts as usize);
        format!("{wasted}, with {}", counted(failed, "failed attempt"))
    };
    let others = outcomes.first().filter(|other| other.name != ours.name);
    let beside = others.map_or_else(String::new, |other| format!("; {}: {}", other.name, of(other)));
    format!("Once a task was known, standin would have wasted {}{beside}.", of(ours))
}

/// Over the runs whose users had asked for an amount: what that cost, and what standin would have.
fn against_presets(outcomes: &[Outcome]) -> String {
    let (Some(preset), Some(ours)) = (outcomes.first(), outcomes.last()) else {
        let why = "No user had asked for an amount of memory, so there is no preset to compare with.";
        return paragraph("note", why);
    };
    let what = format!(
        "{} had an amount that their user asked for. It wasted {}; standin would have wasted {}.",
        counted(preset.tasks as usize, "run"),
        format_gbh(preset.waste_gbh),
        format_gbh(ours.waste_gbh)
    );
    let shown = [preset.clone(), ours.clone()];
    paragraph("lead", &what) + &compared("presets", "Against what users asked for", &what, &shown)
}

fn format_gbh(gbh: f64) -> String {
    Unit::GbHours.format(gbh)
}

fn bar(outcome: &Outcome) -> Bar {
    let cold = outcome.cold_gbh.clamp(0.0, outcome.waste_gbh.max(0.0));
    let class = if outcome.name.starts_with("standin") { "green" } else { "blue" };
    Bar {
        name: outcome.name.clone(),
        parts: vec![(class, outcome.waste_gbh - cold), ("grey", cold)],
        word: format_gbh(outcome.waste_gbh),
    }
}

/// Waste as it added up: the largest so far, and standin.
fn as_it_added_up(outcomes: &[Outcome]) -> String {
    let lines =
        [("blue dashed", "line blue dashed", outcomes.first()), ("green", "line green", outcomes.last())];
    let mut marks = Vec::new();
    let mut key = Vec::new();
    let mut end_h = 0.0_f64;
    for (class, sample, outcome) in lines {
        let Some(outcome) = outcome else { continue };
        let points: Vec<_> = outcome.course.iter().map(|(ms, gbh)| (*ms as f64 / 3.6e6, *gbh)).collect();
        end_h = points.iter().map(|point| point.0).fold(end_h, f64::max);
        key.push((sample, outcome.name.as_str()));
        marks.push(Mark::Line { class, steps: true, points });
    }
    if end_h <= 0.0 {
        return String::new();
    }
    let ticks = (0..=4).map(|tick| f64::from(tick) / 4.0 * end_h);
    let ticks = ticks.map(|hours| (hours, format_duration(hours * 3600.0))).collect();
    let across = Across { from: 0.0, to: end_h, ticks };
    let (title, description) = ("Waste as it added up", "GB·h since the first run.");
    let svg = Plot { id: "added-up", title, description, unit: Unit::GbHours, across, marks }.svg();
    figure(title, description, &key, &svg, "")
}

/// Name and unit of a resource.
pub(super) fn named(resource: Resource) -> (&'static str, Unit) {
    match resource {
        Resource::MemoryPeakBytes => ("memory", Unit::Bytes),
        Resource::CpuCoresMean => ("cores, mean", Unit::Cores),
        Resource::CpuCoresPeak => ("cores, peak", Unit::Cores),
        Resource::IoReadBytesPerS => ("storage read", Unit::BytesPerS),
        Resource::IoWriteBytesPerS => ("storage write", Unit::BytesPerS),
        Resource::NetworkReceivedBytesPerS => ("network received", Unit::BytesPerS),
        Resource::NetworkSentBytesPerS => ("network sent", Unit::BytesPerS),
        Resource::TasksPeak => ("tasks", Unit::Count),
        Resource::DurationS => ("duration", Unit::Seconds),
        Resource::CpuCoresP95Of100Ms => ("cores, 95 % of 100 ms", Unit::Cores),
        Resource::CpuCoresP95Of1S => ("cores, 95 % of seconds", Unit::Cores),
        Resource::IoReadOpsPerS => ("reads per second", Unit::Count),
        Resource::IoWriteOpsPerS => ("writes per second", Unit::Count),
    }
}

pub(super) fn accuracy(report: &Report) -> String {
    if report.accuracy.is_empty() {
        return paragraph("note", "No run was predicted yet: that takes a run that ended well before it.");
    }
    let mut table = Table::new(
        "Predictions against what runs then did",
        &[words("Resource"), numbers("Runs"), numbers("Mean error"), numbers("Within the bound")],
    );
    let percent = |share: Option<f64>| share.map_or_else(|| "–".into(), |share| format!("{share:.0} %"));
    let mut drawn = Vec::new();
    for row in &report.accuracy {
        let (name, _) = named(row.resource);
        table.row([
            name.into(),
            row.runs.to_string(),
            percent(row.mean_error_percent),
            percent(row.within_upper_percent),
        ]);
        drawn.push(Bar {
            name: name.into(),
            parts: vec![("blue", row.within_upper_percent.unwrap_or(0.0))],
            word: percent(row.within_upper_percent),
        });
    }
    let description = "Share of runs that stayed within the upper bound, by resource.";
    let svg = bars("accuracy-svg", "Runs within the bound", description, &drawn);
    figure("Runs within the bound", description, &[], &svg, &table.html())
}

pub(super) fn failovers(report: &Report) -> String {
    let (Some(first), Some(last)) = (report.failovers.last(), report.failovers.first()) else {
        return String::new();
    };
    let mut services: Vec<&str> = report.failovers.iter().map(|row| row.service.as_str()).collect();
    services.sort_unstable();
    services.dedup();
    let row = |name: &&str| Row {
        name: (*name).to_owned(),
        spans: Vec::new(),
        moments: report
            .failovers
            .iter()
            .filter(|failover| failover.service == *name)
            .map(|failover| (failover.at_ms as f64, format!("{}: {}", failover.cause, failover.evidence)))
            .collect(),
    };
    let rows: Vec<Row> = services.iter().take(ROWS_MAX).map(row).collect();
    let description =
        format!("{} of {}.", counted(report.failovers.len(), "failover"), counted(services.len(), "service"));
    let across = clock_axis(first.at_ms, last.at_ms);
    let svg = timeline("failovers-svg", "Failovers over time", &description, &across, &rows);
    let mut table = Table::new(
        format!("Failovers, newest first (at most {FAILOVERS_MAX})"),
        &[
            words("When"),
            words("Service"),
            words("Cause"),
            words("Evidence"),
            numbers("Shadow ran after"),
            numbers("Moved"),
            numbers("Lost at most"),
        ],
    );
    for failover in &report.failovers {
        let steps: serde_json::Value = serde_json::from_str(&failover.steps).unwrap_or_default();
        let thawed_us = steps.get("thawed").and_then(serde_json::Value::as_f64);
        table.row([
            format_clock(failover.at_ms),
            failover.service.clone(),
            failover.cause.clone(),
            failover.evidence.clone(),
            thawed_us.map_or_else(|| "–".into(), |us| format_duration(us / 1e6)),
            failover.migrated.to_string(),
            failover.open.map_or_else(|| "–".into(), |open| open.to_string()),
        ]);
    }
    figure("Failovers over time", &description, &[("cross red", "failover")], &svg, &table.html())
}

pub(super) fn events(report: &Report) -> String {
    let mut table = Table::new(
        "Warnings and errors, newest first",
        &[words("When"), words("Severity"), words("About"), words("Event")],
    );
    for event in &report.events {
        let about =
            event.service.as_ref().or(event.task_type.as_ref()).cloned().unwrap_or_else(|| "–".into());
        table.row([format_clock(event.at_ms), event.severity.name().into(), about, event.message.clone()]);
    }
    table.html()
}
