//! A run at a glance: its course and its distributions as rows of blocks, all on the same axes for every task, so
//! that two tasks can be told apart without reading a number. At most 80 columns.

use crate::fingerprint::demand::{CpuDemand, Windows};
use crate::fingerprint::histogram::{lower_s, quantile_s, total};
use crate::fingerprint::series::Point;
use crate::fingerprint::{Fingerprint, HISTOGRAM_BUCKETS, Histogram};
use crate::printable::{self, columns};
use crate::units::{format_bytes, format_duration, format_rate};
use ebpf_probes::demand::DEMAND_BUCKETS;

/// Widest line, columns.
pub(super) const WIDTH: usize = 80;
/// Characters of names to the left.
const NAME: usize = 12;
/// Characters of a course.
const COURSE: usize = 44;
/// Characters per bucket.
const CELL: usize = 2;
/// Bucket up to which all are one cell: what is shorter than a microsecond.
const FIRST_BUCKET: usize = 9;
/// Buckets of demand that are one cell: a doubling.
const BUCKETS_PER_CELL: usize = 8;

/// The eighths of a row, and nothing.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Each value as a block of its height beside `most`; what is above nothing shows.
fn blocks(values: impl IntoIterator<Item = f64>, most: f64) -> String {
    let height = |value: f64| {
        let eighths = if most > 0.0 && value > 0.0 { (8.0 * value / most).ceil() } else { 0.0 };
        BLOCKS[(eighths as usize).min(8)]
    };
    values.into_iter().map(height).collect()
}

/// The course of a run: a row per measure that was ever above nothing. Empty for runs of one point.
pub(super) fn course(points: &[Point]) -> String {
    let end_ms = points.last().map_or(0, |point| point.at_ms);
    if points.len() < 2 || end_ms == 0 {
        return String::new();
    }
    type Measure = (&'static str, fn(&Point) -> f64, fn(f64) -> String);
    let measures: [Measure; 6] = [
        ("cpu", |point| point.cpu_cores, |cores| format!("{cores:.2} cores")),
        ("memory", |point| point.memory_bytes as f64, format_bytes),
        ("reads", |point| point.read_bytes_per_s, format_rate),
        ("writes", |point| point.write_bytes_per_s, format_rate),
        ("receives", |point| point.received_bytes_per_s, format_rate),
        ("sends", |point| point.sent_bytes_per_s, format_rate),
    ];
    let mut text = String::new();
    for (name, of, format) in measures {
        let values = resample(points, end_ms, of);
        let most = values.iter().copied().fold(0.0, f64::max);
        if most > 0.0 {
            text += &format!("  {name:<NAME$}{}  up to {}\n", blocks(values, most), format(most));
        }
    }
    let end = format_duration(end_ms as f64 / 1e3);
    let room = COURSE.saturating_sub(end.chars().count() + 1);
    text + &format!("  {:<NAME$}0{:room$}{end}\n", "", "")
}

/// The largest value of each of [`COURSE`] equal stretches; a stretch between two points has the later one's.
fn resample(points: &[Point], end_ms: u64, of: impl Fn(&Point) -> f64) -> Vec<f64> {
    let edge = |place: usize| place as f64 * end_ms as f64 / COURSE as f64;
    (0..COURSE)
        .map(|place| {
            let (from, to) = (edge(place), edge(place + 1));
            let overlaps = |point: &&Point| {
                let begins = point.at_ms.saturating_sub(point.length_ms) as f64;
                begins < to && point.at_ms as f64 > from
            };
            points.iter().filter(overlaps).map(&of).fold(0.0, f64::max)
        })
        .collect()
}

/// Cores in use per window: a row per length of window, a cell for idle ones and one per doubling of cores.
pub(super) fn demand(demand: &CpuDemand) -> String {
    let rows: Vec<(&Windows, Vec<u64>)> = demand.0.iter().map(|windows| (windows, cells(windows))).collect();
    let Some(finest) = demand.finest().filter(|finest| finest.windows > 0) else { return String::new() };
    let last = rows.iter().filter_map(|(_, cells)| cells.iter().rposition(|&count| count > 0)).max();
    let shown = last.unwrap_or(0) + 1;
    let label = |cell: usize| match cell {
        0 => "idle".to_owned(),
        cell => format!("{:.2}", finest.lower((cell - 1) * BUCKETS_PER_CELL)),
    };
    let labels = (0..shown).step_by(3).map(|cell| (cell, label(cell)));
    let mut text = format!("  {:<NAME$}{}   95 %   peak\n", "", axis(labels, shown));
    for (windows, cells) in rows {
        let name = format_scale(windows.window_ms as f64 / 1e3);
        let most = cells.iter().copied().max().unwrap_or(0) as f64;
        let drawn = wide(cells.iter().take(shown).map(|&count| count as f64), most);
        text += &format!(
            "  {:<NAME$}{drawn} {:>6.2} {:>6.2}\n",
            format!("per {name}"),
            windows.quantile(0.95),
            windows.peak()
        );
    }
    text
}

/// Idle windows, then those of each doubling.
fn cells(windows: &Windows) -> Vec<u64> {
    let doublings = windows.counts.chunks(BUCKETS_PER_CELL).map(|counts| counts.iter().sum());
    let idle = windows.windows.saturating_sub(windows.busy);
    std::iter::once(idle).chain(doublings).take(1 + DEMAND_BUCKETS / BUCKETS_PER_CELL).collect()
}

/// Distributions of times, a row each on one logarithmic axis from a microsecond to seconds.
pub(super) fn times(fingerprint: &Fingerprint) -> String {
    let histograms: Vec<_> = [
        ("cpu bursts", &fingerprint.cpu_burst_ns),
        ("cpu waits", &fingerprint.cpu_wait_ns_histogram),
        ("reads", &fingerprint.block_read_ns),
        ("writes", &fingerprint.block_write_ns),
        ("service", &fingerprint.tcp_service_ns),
        ("connects", &fingerprint.tcp_connect_ns),
    ]
    .into_iter()
    .filter_map(|(name, histogram)| Some((name, histogram.as_ref().filter(|it| total(it) > 0)?)))
    .collect();
    if histograms.is_empty() {
        return String::new();
    }
    let shown = HISTOGRAM_BUCKETS - FIRST_BUCKET;
    let label =
        |cell: usize| if cell == 0 { "<1 µs".into() } else { format_scale(lower_s(FIRST_BUCKET + cell)) };
    let labels = [0, 4, 8, 11, 14, 18, 21].map(|cell| (cell, label(cell)));
    let mut text = format!("  {:<NAME$}{}   half    99 %\n", "", axis(labels, shown));
    for (name, histogram) in histograms {
        let most = by_cell(histogram).fold(0.0, f64::max);
        let (half, most_of) = (quantile_s(histogram, 0.5), quantile_s(histogram, 0.99));
        let time = |seconds: Option<f64>| seconds.map_or_else(|| "> 2 s".into(), format_scale);
        let drawn = wide(by_cell(histogram), most);
        text += &format!("  {name:<NAME$}{drawn} {:>6}  {:>6}\n", time(half), time(most_of));
    }
    text
}

/// Two digits of a time: `33 µs`, `1 ms`, `1.1 s`.
fn format_scale(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => "<1 µs".into(),
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s == s.trunc() => format!("{s:.0} s"),
        s => format!("{s:.1} s"),
    }
}

/// What is shorter than a microsecond, then a bucket each.
fn by_cell(histogram: &Histogram) -> impl Iterator<Item = f64> {
    let short: u64 = histogram[..=FIRST_BUCKET].iter().sum();
    std::iter::once(short).chain(histogram[FIRST_BUCKET + 1..].iter().copied()).map(|count| count as f64)
}

/// Blocks, each [`CELL`] characters wide.
fn wide(values: impl IntoIterator<Item = f64>, most: f64) -> String {
    blocks(values, most).chars().flat_map(|block| std::iter::repeat_n(block, CELL)).collect()
}

/// Labels over the cells that they are of, as far as there is room between them; as wide as the cells.
fn axis(labels: impl IntoIterator<Item = (usize, String)>, cells: usize) -> String {
    let mut line = String::new();
    for (cell, label) in labels {
        let (at, have) = (cell * CELL, line.chars().count());
        if have > 0 && at <= have {
            continue;
        }
        line += &" ".repeat(at - have);
        line += &label;
    }
    let have = line.chars().count();
    line + &" ".repeat((cells * CELL).saturating_sub(have))
}

/// A text of one line that is no wider than [`WIDTH`]; what does not fit is left out, and a sign stands for it.
pub(super) fn cut(text: &str) -> String {
    printable::cut(text, WIDTH)
}

/// A text in lines of at most [`WIDTH`] columns; words that are longer are left whole.
pub(super) fn wrapped(text: &str) -> String {
    hanging("", text)
}

/// A text behind `head`, its lines below each other, of at most [`WIDTH`] columns.
pub(super) fn hanging(head: &str, text: &str) -> String {
    let indent = " ".repeat(columns(head));
    let mut lines = vec![head.to_owned()];
    for word in &unbroken(text) {
        let Some(line) = lines.last_mut() else { continue };
        let begins = columns(line) == indent.len();
        if !begins && columns(line) + 1 + columns(word) > WIDTH {
            lines.push(format!("{indent}{word}"));
        } else {
            line.push_str(if begins { "" } else { " " });
            line.push_str(word);
        }
    }
    lines.join("\n") + "\n"
}

/// Words, and numbers with the unit that follows them: those stay on one line.
fn unbroken(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let is_unit = word.starts_with(|c: char| c.is_alphabetic() || c == '%');
        match words.last_mut() {
            Some(last) if is_unit && last.ends_with(|c: char| c.is_ascii_digit()) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_to_scale_and_never_vanish() {
        assert_eq!(blocks([0.0, 0.001, 4.0, 8.0], 8.0), " ▁▄█");
        assert_eq!(blocks([f64::NAN, -1.0, 1.0], 0.0), "   ");
        assert_eq!(blocks([f64::INFINITY, f64::MAX], 1.0), "██");
    }

    #[test]
    fn a_course_keeps_short_peaks_and_its_width() {
        let point = |i: u64| Point {
            at_ms: (i + 1) * 10,
            length_ms: 10,
            cpu_cores: if i == 77 { 2.0 } else { 0.0 },
            ..Point::default()
        };
        let drawn = course(&(0..240).map(point).collect::<Vec<_>>());
        assert!(
            drawn.contains('█') && drawn.contains("up to 2.00 cores") && !drawn.contains("memory"),
            "{drawn}"
        );
        assert!(drawn.lines().all(|line| line.chars().count() <= WIDTH), "{drawn}");
        assert!(drawn.lines().last().unwrap().trim_end().ends_with("2.4 s"), "{drawn}");
        assert_eq!(course(&[point(0)]), "");
    }

    #[test]
    fn everything_fits_into_80_columns() {
        let fingerprint = Fingerprint {
            cpu_burst_ns: Some([u64::MAX >> 6; 32]),
            tcp_service_ns: Some([7; 32]),
            ..Fingerprint::default()
        };
        let windows = |window_ms| Windows {
            window_ms,
            windows: 1000,
            busy: 900,
            peak_us: 1 << 40,
            counts: vec![3; DEMAND_BUCKETS],
            ..Windows::default()
        };
        let demanded = demand(&CpuDemand([10, 100, 1000].map(windows).to_vec()));
        for text in [times(&fingerprint), demanded] {
            assert!(!text.is_empty());
            for line in text.lines() {
                assert!(line.chars().count() <= WIDTH, "{} characters: {line}", line.chars().count());
            }
        }
        assert_eq!(times(&Fingerprint::default()), "");
        assert_eq!(demand(&CpuDemand::default()), "");
    }

    #[test]
    fn texts_are_wrapped_between_words() {
        let text = hanging("> ", &"word ".repeat(40));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH && line[2..].starts_with("word")));
        assert_eq!(wrapped(&"x".repeat(200)).lines().count(), 1);
        let wide = wrapped(&"日本 ".repeat(40));
        assert!(wide.lines().count() > 2 && wide.lines().all(|line| columns(line) <= WIDTH), "{wide}");
        let text = format!("{} 1.7 s later", "x".repeat(WIDTH - 5));
        assert_eq!(wrapped(&text).lines().nth(1), Some("1.7 s later"), "a number keeps its unit");
        assert_eq!(cut(&"日".repeat(60)), "日".repeat(39) + "…");
    }
}
