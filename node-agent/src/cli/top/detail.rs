//! Everything about one task as lines of text: its course with the limits over it, what was predicted, CPU demand at
//! three scales, histograms.

use super::glyph::spark;
use super::view::Row;
use crate::cli::numbers::{draw, histograms, numbers};
use crate::cli::table::{Align, Table, printable};
use crate::cli::{demand, output, predict, when};
use crate::fingerprint::Fingerprint;
use crate::fingerprint::series::Point;
use crate::live::{MemoryLimit, TaskDetail};
use crate::predict::{Level, Prediction, Resource};
use crate::printable::{columns, within};
use crate::size::Limits;
use crate::store::event::EventRow;
use crate::store::read::RunDetail;
use crate::units::{format_bytes, format_duration, format_rate};

/// What is known of a task beyond its row.
#[derive(Clone, Debug, Default)]
pub(super) struct Detail {
    /// Which: the `id` of its row.
    pub(super) id: u64,
    pub(super) fingerprint: Fingerprint,
    pub(super) series: Vec<Point>,
    pub(super) prediction: Prediction,
    pub(super) limits: Limits,
    /// What happened to it, oldest first.
    pub(super) events: Vec<EventRow>,
    /// Where these numbers are not of the present: of when they are.
    pub(super) note: Option<String>,
}

impl Detail {
    /// As the agent has it now.
    pub(super) fn live(id: u64, detail: TaskDetail) -> Self {
        let TaskDetail { fingerprint, series, prediction, limits, .. } = detail;
        Self { id, fingerprint, series, prediction, limits, ..Self::default() }
    }

    /// As the database has it.
    pub(super) fn recorded(run: RunDetail) -> Self {
        let what = if run.run.state == "running" { "its last record" } else { "the whole run" };
        Self {
            id: run.run.run_id.0.cast_unsigned(),
            fingerprint: run.fingerprint,
            series: run.series,
            prediction: run.prediction,
            limits: run.limits,
            events: Vec::new(),
            note: Some(format!("Numbers and histograms are those of {what}.")),
        }
    }
}

/// The lines of the page, at most `width` wide but for tables.
pub(super) fn lines(row: Option<&Row>, detail: Option<&Detail>, width: usize) -> Vec<String> {
    let mut text = row.map_or_else(|| "This task is over.\n".into(), heading);
    let Some(detail) = detail else {
        text += "\nno more is known of it yet\n";
        return text.lines().flat_map(|line| wrapped(&printable(line), width)).collect();
    };
    let since_ms = row.map_or(0, |row| row.since_ms);
    if let Some(note) = &detail.note {
        text += &format!("{note}\n");
    }
    let mut part = |title: &str, body: String| {
        if !body.trim().is_empty() {
            text += &format!("\n{title}\n{body}");
        }
    };
    part("Course", course(detail, since_ms, width));
    part("Needed up to now, and predicted", needs(detail).to_string());
    part("What standin did", happened(detail, since_ms));
    if let Some(windows) = &detail.fingerprint.cpu_demand {
        part("CPU demand, cores in use per window", demand::describe(windows));
    }
    for (title, histogram) in histograms(&detail.fingerprint) {
        part(title, draw(histogram).to_string());
    }
    part("Measured", numbers(&detail.fingerprint));
    text.lines().flat_map(|line| wrapped(&printable(line), width)).collect()
}

/// Narrower than this a line is cut, as wrapped tables can't be read.
const WRAPS_FROM: usize = 60;

/// A line as lines of at most `width` columns, the later ones indented.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    const INDENT: &str = "      ";
    let mut lines = Vec::new();
    let mut rest = line.to_owned();
    while width >= WRAPS_FROM && columns(&rest) > width {
        let cut = within(&rest, width).len();
        let end = rest[..cut].rfind(' ').filter(|end| *end > INDENT.len()).unwrap_or(cut);
        let next = format!("{INDENT}{}", rest[end..].trim_start());
        rest.truncate(end);
        lines.push(std::mem::replace(&mut rest, next));
    }
    lines.push(rest);
    lines
}

fn heading(row: &Row) -> String {
    let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".into());
    format!(
        "{} by {}, run {}, process {}, started {}, {}\n",
        row.task_type,
        row.user,
        or_dash(row.run_id.map(|run| run.to_string())),
        or_dash(row.pid.map(|pid| pid.to_string())),
        when::ago(row.since_ms),
        row.state.words(),
    )
}

/// Curves over the life of the task, each to its own scale; the memory limit to that of memory.
fn course(detail: &Detail, since_ms: i64, width: usize) -> String {
    const LABEL: usize = 12;
    const FIGURES: usize = 30;
    let points = &detail.series;
    let room = width.saturating_sub(LABEL + FIGURES + 2).clamp(8, 120);
    let Some(end_ms) = points.last().map(|point| point.at_ms) else { return String::new() };
    let limits = memory_limits(detail, since_ms);
    let curve = |name: &str, of: &dyn Fn(&Point) -> f64, most: f64, figures: String| {
        let values = resample(points, end_ms, room, of);
        format!("  {name:<LABEL$}{} {figures}\n", spark(&values, most, room))
    };
    let most = |of: &dyn Fn(&Point) -> f64| points.iter().map(of).fold(0.0, f64::max);
    let last = points[points.len() - 1];
    let mut text = String::new();
    let cores = |point: &Point| point.cpu_cores;
    text += &curve(
        "cpu",
        &cores,
        most(&cores),
        format!("{:.2}, at most {:.2} cores", last.cpu_cores, most(&cores)),
    );
    let memory = |point: &Point| point.memory_bytes as f64;
    let limit = |point: &Point| limit_at(&limits, point.at_ms).map_or(0.0, |limit| limit.bytes as f64);
    let scale = most(&memory).max(most(&limit));
    let figures = |now: f64, most: f64| format!("{}, at most {}", format_bytes(now), format_bytes(most));
    text += &curve("memory", &memory, scale, figures(memory(&last), most(&memory)));
    if !limits.is_empty() {
        text += &curve("its limit", &limit, scale, figures(limit(&last), most(&limit)));
    }
    type Rate = fn(&Point) -> f64;
    let rates: [(&str, Rate); 4] = [
        ("read", |point| point.read_bytes_per_s),
        ("written", |point| point.write_bytes_per_s),
        ("received", |point| point.received_bytes_per_s),
        ("sent", |point| point.sent_bytes_per_s),
    ];
    for (name, of) in rates {
        let top = most(&of);
        if top > 0.0 {
            text += &curve(name, &of, top, format!("at most {}", format_rate(top)));
        }
    }
    text + &format!("  {:<LABEL$}{:<room$}\n", "", format!("0 … {}", format_duration(end_ms as f64 / 1e3)))
}

/// The largest value in each of `width` equal stretches.
fn resample(points: &[Point], end_ms: u64, width: usize, of: &dyn Fn(&Point) -> f64) -> Vec<f64> {
    let edge = |column: usize| end_ms as f64 * column as f64 / width as f64;
    (0..width)
        .map(|column| {
            let (begin, end) = (edge(column), edge(column + 1));
            let inside = points.iter().filter(|point| {
                point.at_ms as f64 > begin && (point.at_ms.saturating_sub(point.length_ms) as f64) < end
            });
            inside.map(of).fold(0.0, f64::max)
        })
        .collect()
}

/// Since when, in milliseconds of the run, which memory limit held: what was set, and what it followed to.
fn memory_limits(detail: &Detail, since_ms: i64) -> Vec<(u64, MemoryLimit)> {
    let Some(present) = MemoryLimit::of(&detail.limits) else { return Vec::new() };
    let name = if present.is_hard { "memory_max_bytes" } else { "memory_high_bytes" };
    let of = |event: &EventRow, key: &str| {
        let bytes = event.details.get(key)?.as_f64()?;
        Some(MemoryLimit { bytes: bytes as u64, ..present })
    };
    let changes: Vec<_> = detail
        .events
        .iter()
        .filter(|event| matches!(event.kind.as_str(), "limit_raised" | "limit_lowered"))
        .filter(|event| event.details.get("limit").and_then(|limit| limit.as_str()) == Some(name))
        .collect();
    let first = changes.first().and_then(|event| of(event, "from")).unwrap_or(present);
    let later = changes
        .iter()
        .filter_map(|event| Some((u64::try_from(event.at_ms - since_ms).unwrap_or(0), of(event, "to")?)));
    std::iter::once((0, first)).chain(later).collect()
}

fn limit_at(limits: &[(u64, MemoryLimit)], at_ms: u64) -> Option<MemoryLimit> {
    limits.iter().take_while(|(since, _)| *since <= at_ms).last().map(|(_, limit)| *limit)
}

fn needs(detail: &Detail) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("  RESOURCE", Left),
        ("NEEDED", Right),
        ("EXPECTED", Right),
        ("AT MOST", Right),
        ("", Left),
    ]);
    for resource in Resource::ALL {
        let (name, format) = predict::describe(resource);
        let estimate = detail.prediction.estimate(resource).filter(|estimate| estimate.level != Level::Host);
        let needed = so_far(&detail.fingerprint, resource);
        if needed.is_none() && estimate.is_none() {
            continue;
        }
        let or_dash = |number: Option<f64>| number.map_or_else(|| "-".into(), format);
        let is_over = needed.zip(estimate).is_some_and(|(needed, estimate)| needed > estimate.upper);
        table.row([
            format!("  {name}"),
            or_dash(needed),
            or_dash(estimate.map(|estimate| estimate.expected)),
            or_dash(estimate.map(|estimate| estimate.upper)),
            if is_over { "more than expected".into() } else { String::new() },
        ]);
    }
    table
}

fn so_far(fingerprint: &Fingerprint, resource: Resource) -> Option<f64> {
    let seconds = fingerprint.duration_ns as f64 / 1e9;
    match resource {
        Resource::MemoryPeakBytes => fingerprint.memory_peak_bytes.map(|bytes| bytes as f64),
        Resource::CpuCoresMean => fingerprint.cpu_ns.map(|ns| ns as f64 / 1e9 / seconds.max(1e-9)),
        Resource::CpuCoresPeak => fingerprint.cpu_cores_peak,
        Resource::TasksPeak => fingerprint.tasks_peak.map(|tasks| tasks as f64),
        Resource::DurationS => Some(seconds),
        // Means over a run that goes on say little yet.
        _ => None,
    }
}

fn happened(detail: &Detail, since_ms: i64) -> String {
    let when = if detail.note.is_some() { "at the start" } else { "now" };
    let mut text = format!("  {when}: {}\n", output::describe_limits(&detail.limits));
    for event in &detail.events {
        let at = format_duration((event.at_ms - since_ms).max(0) as f64 / 1e3);
        text += &format!("  after {at}: {}\n", event.message);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::{Limit, Origin};
    use crate::store::event::Severity;

    fn followed() -> Detail {
        let point = |at_ms, memory_bytes| Point {
            at_ms,
            length_ms: 1000,
            memory_bytes,
            cpu_cores: 1.0,
            ..Point::default()
        };
        let raised = EventRow {
            event_id: 1,
            at_ms: 5_000_000 + 1500,
            severity: Severity::Info,
            kind: "limit_raised".into(),
            task_type: None,
            run_id: None,
            service: None,
            message: "memory.high raised".into(),
            details: serde_json::json!({ "limit": "memory_high_bytes", "from": 100.0, "to": 800.0 }),
        };
        Detail {
            series: vec![point(1000, 100), point(2000, 300), point(3000, 600)],
            limits: Limits(vec![(Limit::MemoryHigh(800), Origin::Predicted)]),
            events: vec![raised],
            ..Detail::default()
        }
    }

    #[test]
    fn the_limit_is_drawn_as_it_followed() {
        let limits = memory_limits(&followed(), 5_000_000);
        let bytes: Vec<_> = [0, 1000, 1500, 3000].map(|at| limit_at(&limits, at).unwrap().bytes).into();
        assert_eq!(bytes, [100, 100, 800, 800]);
        let row = Row { since_ms: 5_000_000, ..Row::default() };
        let page = lines(Some(&row), Some(&followed()), 80).join("\n");
        assert!(page.contains("its limit") && page.contains("at most 800 B"), "{page}");
        assert!(page.contains("after "), "{page}");
    }

    #[test]
    fn every_column_has_the_largest_value_of_its_stretch() {
        let values = resample(&followed().series, 3000, 6, &|point| point.memory_bytes as f64);
        assert_eq!(values, [100.0, 100.0, 300.0, 300.0, 600.0, 600.0]);
    }

    #[test]
    fn long_lines_go_on_in_the_next_one() {
        let line = "word ".repeat(40);
        let lines = wrapped(line.trim_end(), 80);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        assert_eq!(lines.join(" ").split_whitespace().count(), 40);
        assert_eq!(wrapped(&"x".repeat(200), 80).concat().matches('x').count(), 200);
        assert_eq!(wrapped(&line, 10).len(), 1);
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        let row = Row { task_type: "a\u{1b}[2J".into(), ..Row::default() };
        assert!(
            lines(Some(&row), None, 80)
                .iter()
                .chain(&lines(Some(&row), Some(&followed()), 80))
                .all(|line| !line.contains('\u{1b}'))
        );
    }
}
