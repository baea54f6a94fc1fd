//! The table of tasks: which columns there are, how wide, and what a row says in them.

use super::glyph::{gauge, spark};
use super::state::Columns;
use super::view::Row;
use crate::cli::table::{Align, printable};
use crate::live::rates::State;
use crate::units::{format_bytes, format_duration};

/// A column: head, width, side, and what it says of a row.
pub(super) struct Column {
    pub(super) head: &'static str,
    pub(super) width: u16,
    pub(super) align: Align,
    pub(super) text: fn(&Row, &Scale) -> String,
    /// The less, the sooner it goes where there is no room.
    rank: u8,
}

/// What curves and ages are drawn against.
pub(super) struct Scale {
    pub(super) at_ms: i64,
    /// Most cores that any task used lately.
    pub(super) cores_most: f64,
}

/// Width of the name of a task: the rest of the line, within these.
const NAME_MIN: u16 = 12;
const NAME_MAX: u16 = 32;

/// Width of gauges and curves.
const GAUGE: usize = 12;
const CURVE: usize = 10;

fn number(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".into(), format)
}

fn bytes(value: Option<f64>) -> String {
    match value {
        // Most tasks have none of most traffic: the eye should find those that have.
        Some(0.0) => "·".into(),
        value => number(value, format_bytes),
    }
}

fn percent(share: Option<f64>) -> String {
    number(share, |share| format!("{:.0} %", share * 100.0))
}

fn sum(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.or(b).map(|_| a.unwrap_or(0.0) + b.unwrap_or(0.0))
}

/// Memory in use against its limit, or against what was predicted at most where there is none; what is expected is
/// marked.
fn memory_gauge(row: &Row) -> String {
    let predicted = row.predicted.memory_bytes;
    let whole = row.memory_limit.map(|limit| limit.bytes as f64).or(predicted.map(|band| band.upper));
    match (row.memory_bytes, whole) {
        (Some(used), Some(whole)) => gauge(used as f64, whole, predicted.map(|band| band.expected), GAUGE),
        _ => String::new(),
    }
}

fn memory_whole(row: &Row) -> String {
    match (row.memory_limit, row.predicted.memory_bytes) {
        (Some(limit), _) if limit.is_hard => format!("{} max", format_bytes(limit.bytes as f64)),
        (Some(limit), _) => format_bytes(limit.bytes as f64),
        (None, Some(band)) => format!("({})", format_bytes(band.upper)),
        (None, None) => String::new(),
    }
}

/// How long it runs.
fn age(row: &Row, scale: &Scale) -> String {
    match (scale.at_ms - row.since_ms).max(0) / 1000 {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format_duration(seconds as f64),
    }
}

macro_rules! column {
    ($head:literal, $width:expr, $align:ident, $rank:literal, $text:expr) => {
        Column { head: $head, width: $width as u16, align: Align::$align, text: $text, rank: $rank }
    };
}

/// All columns of a set; the name of the task comes before them and takes what room is left.
fn all(columns: Columns) -> Vec<Column> {
    let user = column!("USER", 8, Left, 3, |row, _| printable(&row.user));
    let state = column!("STATE", 9, Left, 8, |row, _| row.state.words().into());
    let cores =
        column!("CORES", 5, Right, 9, |row, _| number(row.rates.cpu_cores, |cores| format!("{cores:.2}")));
    let age = column!("AGE", 12, Right, 2, age);
    match columns {
        Columns::Overview => vec![
            user,
            state,
            cores,
            column!("LATELY", CURVE, Left, 5, |row, scale| spark(&row.trail, scale.cores_most, CURVE)),
            column!("MEMORY", 10, Right, 9, |row, _| bytes(row.memory_bytes.map(|bytes| bytes as f64))),
            column!("OF LIMIT", GAUGE, Left, 7, |row, _| memory_gauge(row)),
            column!("LIMIT", 14, Right, 4, |row, _| memory_whole(row)),
            column!("I/O /S", 10, Right, 6, |row, _| bytes(sum(
                row.rates.read_bytes_per_s,
                row.rates.write_bytes_per_s
            ))),
            column!("NET /S", 10, Right, 6, |row, _| bytes(sum(
                row.rates.received_bytes_per_s,
                row.rates.sent_bytes_per_s
            ))),
            column!("SERVICE", 8, Right, 4, |row, _| row
                .rates
                .service
                .map_or_else(String::new, |service| format_duration(service.median_s))),
            age,
        ],
        Columns::Traffic => vec![
            user,
            cores,
            column!("READ /S", 10, Right, 9, |row, _| bytes(row.rates.read_bytes_per_s)),
            column!("WRITTEN /S", 10, Right, 9, |row, _| bytes(row.rates.write_bytes_per_s)),
            column!("RECVD /S", 10, Right, 8, |row, _| bytes(row.rates.received_bytes_per_s)),
            column!("SENT /S", 10, Right, 8, |row, _| bytes(row.rates.sent_bytes_per_s)),
            column!("FAULTS /S", 9, Right, 4, |row, _| number(row.rates.faults_major_per_s, |rate| format!(
                "{rate:.0}"
            ))),
            age,
        ],
        Columns::Waits => vec![
            user,
            state,
            cores,
            column!("WAITING", 7, Right, 9, |row, _| number(row.rates.cpu_waiting, |tasks| format!(
                "{tasks:.2}"
            ))),
            column!("MEM WAIT", 8, Right, 7, |row, _| percent(row.rates.memory_stalled)),
            column!("THROTTLED", 9, Right, 6, |row, _| percent(row.rates.throttled)),
            column!("ANSWERS /S", 10, Right, 8, |row, _| row
                .rates
                .service
                .map_or_else(String::new, |service| format!("{:.1}", service.answers_per_s))),
            column!("MEDIAN", 8, Right, 8, |row, _| row
                .rates
                .service
                .map_or_else(String::new, |service| format_duration(service.median_s))),
            column!("99 %", 8, Right, 8, |row, _| row
                .rates
                .service
                .map_or_else(String::new, |service| format_duration(service.p99_s))),
            column!("TASKS", 5, Right, 3, |row, _| number(
                row.tasks.map(|tasks| tasks as f64),
                |tasks| format!("{tasks:.0}")
            )),
            age,
        ],
    }
}

/// The width of names, and the columns that find room beside them in `width`.
pub(super) fn fitting(columns: Columns, width: u16) -> (u16, Vec<Column>) {
    let mut all = all(columns);
    let taken = |all: &[Column]| all.iter().map(|column| column.width + 1).sum::<u16>();
    while taken(&all) + NAME_MIN > width
        && let Some((last, _)) = all.iter().enumerate().min_by_key(|(_, column)| column.rank)
    {
        all.remove(last);
    }
    (width.saturating_sub(taken(&all)).clamp(1, NAME_MAX), all)
}

/// How much a row needs a look: 2 it is held back, 1 it is near its limit.
pub(super) fn urgency(row: &Row) -> u8 {
    let near = row
        .memory_limit
        .zip(row.memory_bytes)
        .is_some_and(|(limit, used)| used as f64 > limit.bytes as f64 * 0.9);
    match row.state {
        State::WaitsForMemory | State::Throttled => 2,
        _ if near => 1,
        State::WaitsForCpu => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_go_by_rank_where_there_is_no_room() {
        for columns in [Columns::Overview, Columns::Traffic, Columns::Waits] {
            for width in 0..250 {
                let (name, fit) = fitting(columns, width);
                let taken: u16 = fit.iter().map(|column| column.width + 1).sum();
                assert!(fit.is_empty() || name + taken <= width, "{width}");
            }
            assert!(fitting(columns, 250).1.len() > fitting(columns, 80).1.len());
        }
        let (_, at_80) = fitting(Columns::Overview, 80);
        let heads: Vec<_> = at_80.iter().map(|column| column.head).collect();
        assert_eq!(heads, ["STATE", "CORES", "MEMORY", "OF LIMIT", "I/O /S", "NET /S"]);
    }
}
