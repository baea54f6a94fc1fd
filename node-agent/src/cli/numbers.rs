//! A fingerprint for people: its numbers, and its histograms as bars.

use super::table::{Align, Table};
use crate::fingerprint::{Fingerprint, Histogram, Peer};
use crate::units::{format_bytes, format_duration};

/// What was measured, a line each; what was not is left out and told under the sources.
pub(super) fn numbers(fingerprint: &Fingerprint) -> String {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Right)]);
    let mut zero = Vec::new();
    let seconds = |ns: u64| format_duration(ns as f64 / 1e9);
    let bytes = |bytes: u64| format_bytes(bytes as f64);
    let count = |count: u64| count.to_string();
    type Format<'a> = &'a dyn Fn(u64) -> String;
    let rows: [(&'static str, Option<u64>, Format); 41] = [
        ("duration", Some(fingerprint.duration_ns), &seconds),
        ("cpu time", fingerprint.cpu_ns, &seconds),
        ("cpu time in user mode", fingerprint.cpu_user_ns, &seconds),
        ("cpu time in the kernel", fingerprint.cpu_system_ns, &seconds),
        ("waiting for a cpu", fingerprint.cpu_wait_ns, &seconds),
        ("throttled by a quota", fingerprint.cpu_throttled_ns, &seconds),
        ("switches, voluntary", fingerprint.switches_voluntary, &count),
        ("switches, forced", fingerprint.switches_forced, &count),
        ("memory, peak", fingerprint.memory_peak_bytes, &bytes),
        ("memory with page cache, peak", fingerprint.memory_charged_peak_bytes, &bytes),
        ("working set, peak", fingerprint.memory_working_set_bytes, &bytes),
        ("page faults, minor", fingerprint.faults_minor, &count),
        ("page faults, major", fingerprint.faults_major, &count),
        ("page faults in order", fingerprint.faults_sequential, &count),
        ("page faults at even steps", fingerprint.faults_strided, &count),
        ("page faults at random", fingerprint.faults_random, &count),
        ("block reads", fingerprint.block_read_bytes, &bytes),
        ("block read requests", fingerprint.block_read_ops, &count),
        ("block reads in order", fingerprint.block_read_sequential, &count),
        ("block writes", fingerprint.block_write_bytes, &bytes),
        ("block write requests", fingerprint.block_write_ops, &count),
        ("block writes in order", fingerprint.block_write_sequential, &count),
        ("block requests waited for", fingerprint.block_sync_ops, &count),
        ("block flushes", fingerprint.block_flush_ops, &count),
        ("block discards", fingerprint.block_discard_ops, &count),
        ("blocks discarded", fingerprint.block_discard_bytes, &bytes),
        ("written back by the kernel", fingerprint.block_writeback_bytes, &bytes),
        ("read from files", fingerprint.storage_read_bytes, &bytes),
        ("written to files", fingerprint.storage_write_bytes, &bytes),
        ("tcp sent", fingerprint.tcp_sent_bytes, &bytes),
        ("tcp received", fingerprint.tcp_received_bytes, &bytes),
        ("udp sent", fingerprint.udp_sent_bytes, &bytes),
        ("udp received", fingerprint.udp_received_bytes, &bytes),
        ("connections opened", fingerprint.tcp_connects, &count),
        ("connections accepted", fingerprint.tcp_accepts, &count),
        ("connections failed", fingerprint.tcp_connects_failed, &count),
        ("tcp retransmits", fingerprint.tcp_retransmits, &count),
        ("programs executed", fingerprint.execs, &count),
        ("tasks created", fingerprint.forks, &count),
        ("tasks at once, peak", fingerprint.tasks_peak, &count),
        ("out-of-memory kills", fingerprint.oom_kills, &count),
    ];
    for (name, value, format) in rows {
        match value {
            Some(0) => zero.push(name),
            Some(value) => table.row([format!("  {name}"), format(value)]),
            None => {}
        }
    }
    if zero.is_empty() { table.to_string() } else { format!("{table}  none: {}\n", zero.join(", ")) }
}

pub(super) fn histograms(fingerprint: &Fingerprint) -> impl Iterator<Item = (&'static str, &Histogram)> {
    [
        ("CPU bursts", &fingerprint.cpu_burst_ns),
        ("Waits in the run queue", &fingerprint.cpu_wait_ns_histogram),
        ("Block read latency", &fingerprint.block_read_ns),
        ("Block write latency", &fingerprint.block_write_ns),
        ("Block requests: time in the queue", &fingerprint.block_queue_ns),
        ("Service time", &fingerprint.tcp_service_ns),
        ("Time to connect", &fingerprint.tcp_connect_ns),
        ("Round trips of connections", &fingerprint.tcp_rtt_ns),
    ]
    .into_iter()
    .filter_map(|(title, histogram)| Some((title, histogram.as_ref()?)))
    .filter(|(_, histogram)| histogram.iter().any(|&count| count > 0))
}

/// Whom it talked to.
pub(super) fn peers(peers: &[Peer]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("  ADDRESS", Left),
        ("CONNECTIONS", Right),
        ("SENT", Right),
        ("RECEIVED", Right),
        ("CONNECT", Right),
        ("OPEN", Right),
    ]);
    for peer in peers {
        let address = match peer.port {
            Some(port) => format!("  {} port {port}", peer.address),
            None => format!("  {} (client)", peer.address),
        };
        let connect = match peer.port {
            Some(_) => format_duration(peer.connect_ns as f64 / 1e9 / peer.connections.max(1) as f64),
            None => "-".into(),
        };
        table.row([
            address,
            peer.connections.to_string(),
            format_bytes(peer.sent_bytes as f64),
            format_bytes(peer.received_bytes as f64),
            connect,
            format_duration(peer.held_ns as f64 / 1e9),
        ]);
    }
    table
}

/// Widest bar, characters.
const BAR_WIDTH: u64 = 40;

/// A line per bucket from the first to the last that is not empty; a gap is one line.
pub(super) fn draw(histogram: &Histogram) -> Table {
    let mut table = Table::new(&[("  FROM", Align::Right), ("COUNT", Align::Right), ("", Align::Left)]);
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    let first = histogram.iter().position(|&count| count > 0).unwrap_or(0);
    let last = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
    let is_empty = |bucket: usize| histogram.get(bucket) == Some(&0);
    for (bucket, &count) in histogram.iter().enumerate().take(last + 1).skip(first) {
        if is_empty(bucket) && is_empty(bucket - 1) {
            continue;
        }
        let from = if bucket == 0 { 0.0 } else { (1_u64 << bucket) as f64 / 1e9 };
        table.row([format_duration(from), count.to_string(), bar(count, most, BAR_WIDTH)]);
    }
    table
}

/// A bar in eighths of a character; anything above nothing shows.
pub(super) fn bar(count: u64, most: u64, width: u64) -> String {
    const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    let eighths = (u128::from(count) * u128::from(width) * 8).div_ceil(u128::from(most)) as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8 - 1]);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_to_scale_and_never_vanish() {
        assert_eq!(bar(8, 8, BAR_WIDTH).chars().count() as u64, BAR_WIDTH);
        assert_eq!(bar(4, 8, BAR_WIDTH).chars().count() as u64, BAR_WIDTH / 2);
        assert_eq!(bar(1, u64::MAX, BAR_WIDTH), "▏");
        assert_eq!(bar(0, 5, BAR_WIDTH), "");
        assert_eq!(bar(u64::MAX, u64::MAX, BAR_WIDTH).chars().count() as u64, BAR_WIDTH);
    }
}
