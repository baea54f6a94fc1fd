//! Where a [`Fingerprint`] is kept, in columns of table `run` and in rows of `run_histogram`: one list that
//! both writing and reading follow.

use crate::fingerprint::{Fingerprint, Histogram};
use rusqlite::types::Value;
use rusqlite::{Result, Row};

macro_rules! columns {
    (counters: $($counter:ident),+; reals: $($real:ident),+; histograms: $($histogram:ident => $kind:literal),+;
     tables: $($apart:ident),+;) => {
        /// Names of columns of `run`, in the order of [`values`].
        pub(super) const COLUMNS: &[&str] = &[
            "duration_ns", $(stringify!($counter),)+ $(stringify!($real),)+
        ];

        /// Values to bind for them.
        pub(super) fn values(fingerprint: &Fingerprint) -> Vec<Value> {
            vec![
                Value::Integer(integer(fingerprint.duration_ns)),
                $(fingerprint.$counter.map_or(Value::Null, |n| Value::Integer(integer(n))),)+
                $(real(fingerprint.$real),)+
            ]
        }

        /// Each `run_histogram.kind` with its counts, where it was measured.
        pub(super) fn histograms(fingerprint: &Fingerprint) -> Vec<(&'static str, Option<&Histogram>)> {
            vec![$(($kind, fingerprint.$histogram.as_ref()),)+]
        }

        /// Puts the counts of a `run_histogram.kind` in their place; a kind of a newer version has none.
        pub(super) fn set_histogram(fingerprint: &mut Fingerprint, kind: &str, counts: Histogram) {
            match kind {
                $($kind => fingerprint.$histogram = Some(counts),)+
                _ => {}
            }
        }

        /// Reads a row that has all [`COLUMNS`]; its histograms and tables are rows of their own.
        pub(super) fn fingerprint(row: &Row<'_>) -> Result<Fingerprint> {
            Ok(Fingerprint {
                duration_ns: counter(row, "duration_ns")?.unwrap_or(0),
                $($counter: counter(row, stringify!($counter))?,)+
                $($real: row.get(stringify!($real))?,)+
                $($histogram: None,)+
                $($apart: None,)+
            })
        }
    };
}

columns! {
    counters: cpu_ns, cpu_throttled_ns, cpu_user_ns, cpu_system_ns, cpu_wait_ns, switches_voluntary, switches_forced,
        memory_peak_bytes, memory_charged_peak_bytes, process_rss_peak_bytes, faults_minor, faults_major,
        memory_working_set_bytes, faults_sequential, faults_strided, faults_random,
        block_read_bytes, block_write_bytes, block_read_ops, block_write_ops,
        block_read_sequential, block_write_sequential, block_sync_ops, block_flush_ops, block_discard_ops,
        block_discard_bytes, block_writeback_bytes,
        storage_read_bytes, storage_write_bytes,
        tcp_sent_bytes, tcp_received_bytes, udp_sent_bytes, udp_received_bytes,
        tcp_connects, tcp_accepts, tcp_retransmits, tcp_connects_failed, forks, execs, exits, tasks_peak, oom_kills;
    reals: cpu_cores_peak, cpu_cores_p95_100ms, cpu_cores_p95_1s;
    histograms: cpu_burst_ns => "cpu_burst_ns", cpu_wait_ns_histogram => "cpu_wait_ns",
        block_read_ns => "block_read_ns", block_write_ns => "block_write_ns",
        block_queue_ns => "block_queue_ns", tcp_connect_ns => "tcp_connect_ns",
        tcp_service_ns => "tcp_service_ns", tcp_rtt_ns => "tcp_rtt_ns";
    tables: cpu_demand, peers;
}

/// SQLite's integers are signed: what does not fit is kept as the largest.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// SQLite makes NULL of NaN, which a NOT NULL column refuses; an amount that is no number is unknown.
fn real(number: Option<f64>) -> Value {
    number.filter(|n| n.is_finite()).map_or(Value::Null, Value::Real)
}

/// Plain data always has a JSON form; if it ever had not, `null` says so without losing the row.
pub(super) fn json<T: serde::Serialize + ?Sized>(data: &T) -> String {
    serde_json::to_string(data).unwrap_or_else(|_| "null".into())
}

fn counter(row: &Row<'_>, name: &str) -> Result<Option<u64>> {
    let number: Option<i64> = row.get(name)?;
    Ok(number.and_then(|number| u64::try_from(number).ok()))
}
