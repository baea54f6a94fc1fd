//! CPU demand for people: figures per length of window, and the three histograms side by side, so that it can
//! be seen at a glance whether a task is steady, bursty or parallel.

use super::numbers::bar;
use super::table::{Align, Table};
use crate::fingerprint::demand::{CpuDemand, Windows};
use crate::units::format_duration;
use ebpf_probes::demand::DEMAND_BUCKETS;

/// The share of quota periods that may be throttled, for the quota that is shown.
const THROTTLED_SHARE: f64 = 0.01;

/// Buckets that are drawn as one line: a doubling.
const BUCKETS_PER_LINE: usize = 8;

/// Widest bar, characters.
const BAR_WIDTH: u64 = 12;

/// Figures and histograms.
pub(super) fn describe(demand: &CpuDemand) -> String {
    format!("{}{}{}", figures(demand), outlook(demand), histograms(demand))
}

fn figures(demand: &CpuDemand) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("  WINDOW", Left),
        ("IDLE", Right),
        ("MEAN", Right),
        ("MEDIAN", Right),
        ("95 %", Right),
        ("99 %", Right),
        ("PEAK", Right),
        ("PEAK/MEAN", Right),
        ("DISPERSION", Right),
    ]);
    for windows in &demand.0 {
        let idle = 100.0 * (windows.windows - windows.busy) as f64 / windows.windows.max(1) as f64;
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        table.row([
            format!("  {}", format_duration(windows.window_ms as f64 / 1e3)),
            format!("{idle:.0} %"),
            format!("{:.2}", windows.mean()),
            format!("{:.2}", windows.quantile(0.5)),
            format!("{:.2}", windows.quantile(0.95)),
            format!("{:.2}", windows.quantile(0.99)),
            format!("{:.2}", windows.peak()),
            or_dash(windows.peak_to_mean().map(|ratio| format!("{ratio:.1}"))),
            or_dash(windows.dispersion_ms().map(|ms| format_duration(ms / 1e3))),
        ]);
    }
    table
}

/// What a quota would have to be, and what does not agree with exact windows.
fn outlook(demand: &CpuDemand) -> String {
    let mut text = String::new();
    if let (Some(sustained), Some(quota)) = (demand.sustained_cores(), demand.quota(THROTTLED_SHARE)) {
        text += &format!(
            "  {sustained:.2} cores sustained; a quota of {:.2} cores with {} of burst would throttle in about {} % of periods\n",
            quota.cores,
            format_duration(quota.burst_us as f64 / 1e6),
            THROTTLED_SHARE * 100.0
        );
    }
    if let Some(finest) = demand.finest() {
        text += &format!("  on up to {} CPUs within 10 ms\n", finest.cpus_peak);
        if finest.late > 0 {
            text += &format!("  {} shares came too late and count as windows of their own\n", finest.late);
        }
    }
    text
}

/// A line per doubling of cores used, a column per length of window.
fn histograms(demand: &CpuDemand) -> String {
    let lines: Vec<Vec<u64>> = demand.0.iter().map(lines).collect();
    let used = |line: usize| lines.iter().any(|counts| counts[line] > 0);
    let all = 1..=DEMAND_BUCKETS / BUCKETS_PER_LINE;
    let (Some(first), Some(last)) =
        (all.clone().find(|&line| used(line)), all.rev().find(|&line| used(line)))
    else {
        return String::new();
    };
    let mut headings = vec![("  CORES FROM", Align::Right)];
    headings.extend([("10 ms", Align::Left), ("100 ms", Align::Left), ("1 s", Align::Left)]);
    let mut table = Table::new(&headings[..=demand.0.len().min(3)]);
    let edge = |line: usize| match (line, demand.finest()) {
        (0, _) | (_, None) => "  idle".to_owned(),
        (line, Some(windows)) => format!("{:.3}", windows.lower((line - 1) * BUCKETS_PER_LINE)),
    };
    for line in std::iter::once(0).chain(first..=last) {
        let bars = lines.iter().map(|counts| {
            let most = counts.iter().copied().max().unwrap_or(0).max(1);
            let drawn = bar(counts[line], most, BAR_WIDTH);
            format!("{drawn:<width$} {}", percent(counts[line], counts), width = BAR_WIDTH as usize)
        });
        table.row(std::iter::once(edge(line)).chain(bars).collect::<Vec<_>>());
    }
    table.to_string()
}

/// Idle windows, then those of each doubling.
fn lines(windows: &Windows) -> Vec<u64> {
    let doublings = windows.counts.chunks(BUCKETS_PER_LINE).map(|counts| counts.iter().sum());
    std::iter::once(windows.windows - windows.busy.min(windows.windows)).chain(doublings).collect()
}

fn percent(count: u64, counts: &[u64]) -> String {
    let all: u64 = counts.iter().sum();
    if count == 0 { String::new() } else { format!("{:.1} %", 100.0 * count as f64 / all as f64) }
}
