//! A past of tasks to replay: from delimited text and a mapping of its columns to [`Task`]s in arrival order.
//!
//! Every column that is understood is a [`Column`], whose name ends in its unit. A preset maps the columns of
//! a known source; `--map column=NAME` adds to it or overrides it; a column whose own name is one of ours needs
//! no mapping. Each value is checked at this border: a row with a value that can't be is an error with its line
//! and column, or is counted and left out, as asked.

use super::csv::{self, BadInput, Row};
use super::sacct;
use crate::fingerprint::key::{Feature, FeatureValue, clean};
use std::collections::HashMap;

/// One task of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// Kind of task.
    pub task_type: String,
    /// Who ran it.
    pub user: String,
    /// When it started, milliseconds; any epoch.
    pub start_ms: i64,
    /// When its end was known, milliseconds: later than start and wall time where files are moved about.
    pub end_ms: Option<i64>,
    /// Wall time, seconds.
    pub duration_s: f64,
    /// Peak memory, bytes.
    pub memory_peak_bytes: f64,
    /// Memory that its user asked for, bytes.
    pub memory_request_bytes: Option<f64>,
    /// Cores that its user asked for.
    pub cpu_request_cores: Option<f64>,
    /// Mean cores in use.
    pub cpu_cores_mean: Option<f64>,
    /// Read from storage, bytes.
    pub io_read_bytes: Option<f64>,
    /// Written to storage, bytes.
    pub io_write_bytes: Option<f64>,
    /// It ended well. Others have no sound peak and are left out of a replay.
    pub succeeded: bool,
    /// What was known before it started.
    pub features: Vec<Feature>,
}

/// Tasks in arrival order, and what was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// In order of their start; those of one moment as in the file.
    pub tasks: Vec<Task>,
    /// Rows left out because a value in them cannot be.
    pub skipped: usize,
    /// Rows left out because the task did not end well.
    pub failed: usize,
    /// Columns that nothing is known of and nobody said to ignore, where names are our own: typing errors, maybe.
    pub unused: Vec<String>,
}

/// A column that is understood, by what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Kind of task.
    TaskType,
    /// User.
    User,
    /// Start: number with the unit's milliseconds, or a date.
    Start(Scale),
    /// When the end was known.
    End(Scale),
    /// Wall time.
    Duration(Scale),
    /// Peak memory; the largest of several such columns counts.
    MemoryPeak(Scale),
    /// Requested memory.
    MemoryRequest(Scale),
    /// Requested cores.
    CpuRequest,
    /// Mean cores in use, as percent of one core.
    CpuPercent,
    /// Mean cores in use.
    CpuCores,
    /// CPU time.
    CpuTime(Scale),
    /// Bytes read.
    IoRead(Scale),
    /// Bytes written.
    IoWrite(Scale),
    /// How it ended: `COMPLETED` or 0 is well.
    State,
    /// A feature of this name.
    Feature(String),
    /// Not looked at.
    Ignored,
}

/// What a number of a column is multiplied with to get seconds, milliseconds (of a start) or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scale {
    /// A thousandth.
    Milli,
    /// 1.
    One,
    /// 1,024.
    Kibi,
    /// 1,048,576.
    Mebi,
    /// 1,073,741,824.
    Gibi,
}

impl Scale {
    fn factor(self) -> f64 {
        match self {
            Self::Milli => 1e-3,
            Self::One => 1.0,
            Self::Kibi => 1024.0,
            Self::Mebi => 1_048_576.0,
            Self::Gibi => 1_073_741_824.0,
        }
    }
}

/// Which source a file comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Columns have our own names, or are mapped.
    #[default]
    Generic,
    /// A Nextflow trace as in the Sizey collection: milliseconds and bytes.
    Sizey,
    /// `sacct --parsable2`.
    Sacct,
}

/// How a file is read.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    /// See [`Preset`].
    pub preset: Preset,
    /// Column of the file → what it holds; wins over the preset.
    pub columns: HashMap<String, Column>,
    /// Leave bad rows out and count them, instead of failing.
    pub skip_bad: bool,
}

/// Names of [`Column`]s as `--map` takes them.
pub const COLUMN_NAMES: &str = "task_type, user, start_ms, start_s, start, end_ms, end_s, end, duration_ms, duration_s, \
     memory_peak_bytes, memory_peak_kib, memory_peak_mib, memory_peak_gib, memory_request_bytes, \
     memory_request_kib, memory_request_mib, memory_request_gib, cpu_request_cores, cpu_percent, cpu_cores_mean, \
     cpu_time_ms, cpu_time_s, io_read_bytes, io_write_bytes, state, input_bytes, input_bytes_max, input_files, \
     feature:ANY and ignored";

/// What a name stands for.
pub fn column(name: &str) -> Option<Column> {
    Some(match name {
        "task_type" | "task" => Column::TaskType,
        "user" => Column::User,
        "start_ms" => Column::Start(Scale::Milli),
        "start_s" | "start" => Column::Start(Scale::One),
        "end_ms" => Column::End(Scale::Milli),
        "end_s" | "end" => Column::End(Scale::One),
        "duration_ms" => Column::Duration(Scale::Milli),
        "duration_s" => Column::Duration(Scale::One),
        "cpu_request_cores" => Column::CpuRequest,
        "cpu_percent" => Column::CpuPercent,
        "cpu_cores_mean" => Column::CpuCores,
        "cpu_time_ms" => Column::CpuTime(Scale::Milli),
        "cpu_time_s" => Column::CpuTime(Scale::One),
        "io_read_bytes" => Column::IoRead(Scale::One),
        "io_write_bytes" => Column::IoWrite(Scale::One),
        "state" => Column::State,
        "ignored" => Column::Ignored,
        "input_bytes" | "input_bytes_max" | "input_files" => Column::Feature(name.into()),
        _ => {
            return bytes_column(name)
                .or_else(|| name.strip_prefix("feature:").map(|f| Column::Feature(clean(f))));
        }
    })
}

fn bytes_column(name: &str) -> Option<Column> {
    let (what, unit) = name.rsplit_once('_')?;
    let scale = match unit {
        "bytes" => Scale::One,
        "kib" => Scale::Kibi,
        "mib" => Scale::Mebi,
        "gib" => Scale::Gibi,
        _ => return None,
    };
    match what {
        "memory_peak" => Some(Column::MemoryPeak(scale)),
        "memory_request" => Some(Column::MemoryRequest(scale)),
        _ => None,
    }
}

fn preset_column(preset: Preset, name: &str) -> Option<Column> {
    match preset {
        Preset::Generic => column(name),
        Preset::Sacct => sacct::column(name),
        Preset::Sizey => Some(match name {
            "process" => Column::TaskType,
            "start" => Column::Start(Scale::Milli),
            "complete" => Column::End(Scale::Milli),
            "realtime" => Column::Duration(Scale::Milli),
            "rss" | "peak_rss" => Column::MemoryPeak(Scale::One),
            "memory" => Column::MemoryRequest(Scale::One),
            "cpus" => Column::CpuRequest,
            "%cpu" => Column::CpuPercent,
            "read_bytes" => Column::IoRead(Scale::One),
            "write_bytes" => Column::IoWrite(Scale::One),
            "status" => Column::State,
            "rchar" => Column::Feature("input_bytes".into()),
            _ => return None,
        }),
    }
}

/// Reads a trace.
///
/// # Errors
/// [`BadInput`] with line and column: nothing in it, a column missing, or (unless bad rows are skipped) a value
/// that can't be.
pub fn read(text: &str, mapping: &Mapping) -> Result<Trace, BadInput> {
    let mut rows = csv::rows(text)?;
    if rows.is_empty() {
        return Err(whole("the input is empty: a header and at least one row are needed"));
    }
    let header = rows.remove(0);
    let columns = columns(&header, mapping)?;
    if mapping.preset == Preset::Sacct {
        rows = sacct::join_steps(&header, rows);
    }
    let mut trace = Trace { unused: unused(&header, &columns, mapping), ..Trace::default() };
    let mut order = Vec::new();
    for row in &rows {
        match task(&header, &columns, row) {
            Ok(task) if task.succeeded => order.push(task),
            Ok(_) => trace.failed += 1,
            Err(_) if mapping.skip_bad => trace.skipped += 1,
            Err(bad) => return Err(bad),
        }
    }
    if order.is_empty() {
        let why = if rows.is_empty() { "the input has a header but no rows" } else { "no row is of use" };
        return Err(whole(why));
    }
    order.sort_by_key(|task| task.start_ms);
    trace.tasks = order;
    Ok(trace)
}

fn whole(problem: &str) -> BadInput {
    BadInput { line: 0, column: String::new(), problem: problem.into() }
}

fn columns(header: &Row, mapping: &Mapping) -> Result<Vec<Column>, BadInput> {
    let names = || header.fields.iter().map(|name| name.trim());
    let unknown = mapping.columns.keys().find(|mapped| !names().any(|name| name == mapped.as_str()));
    let missing =
        |column: &str, problem: String| BadInput { line: header.line, column: column.into(), problem };
    if let Some(name) = unknown {
        let there = names().collect::<Vec<_>>().join(", ");
        return Err(missing(name, format!("there is no such column; there are {there}")));
    }
    let columns: Vec<_> = names()
        .map(|name| {
            let mapped = mapping.columns.get(name).cloned();
            mapped.or_else(|| preset_column(mapping.preset, name)).unwrap_or(Column::Ignored)
        })
        .collect();
    let has = |is: fn(&Column) -> bool| columns.iter().any(is);
    let needed = [
        ("task_type", has(|column| *column == Column::TaskType)),
        ("duration_s", has(|column| matches!(column, Column::Duration(_)))),
        ("memory_peak_bytes", has(|column| matches!(column, Column::MemoryPeak(_)))),
    ];
    match needed.into_iter().find(|(_, there)| !there) {
        Some((name, _)) => Err(missing(name, "the column is missing: name it with --map COLUMN=NAME".into())),
        None => Ok(columns),
    }
}

fn unused(header: &Row, columns: &[Column], mapping: &Mapping) -> Vec<String> {
    let names = header.fields.iter().map(|name| name.trim()).zip(columns);
    let unused =
        names.filter(|(name, column)| **column == Column::Ignored && !mapping.columns.contains_key(*name));
    let is_ours = mapping.preset == Preset::Generic;
    unused.filter(|_| is_ours).map(|(name, _)| name.to_owned()).collect()
}

fn task(header: &Row, columns: &[Column], row: &Row) -> Result<Task, BadInput> {
    if row.fields.len() != columns.len() {
        let (have, want) = (row.fields.len(), columns.len());
        let problem = format!("the row has {have} fields where the header has {want}");
        return Err(BadInput { line: row.line, column: String::new(), problem });
    }
    let mut reading = Reading::default();
    for ((column, text), name) in columns.iter().zip(&row.fields).zip(&header.fields) {
        let text = text.trim();
        let result = if matches!(text, "" | "-") { Ok(()) } else { reading.take(column, text) };
        result.map_err(|problem| BadInput { line: row.line, column: name.trim().into(), problem })?;
    }
    reading.task().map_err(|(column, problem)| BadInput { line: row.line, column: column.into(), problem })
}

/// What one row has told so far.
#[derive(Default)]
struct Reading {
    task: Task,
    duration_s: Option<f64>,
    peak_bytes: Option<f64>,
    cpu_s: Option<f64>,
    failed: bool,
}

/// Bounds of what can be: 2^50 bytes of memory (1 PiB), 2^60 of anything read, ten years.
const MEMORY_BYTES_MAX: f64 = (1_u64 << 50) as f64;
const BYTES_MAX: f64 = (1_u64 << 60) as f64;
const SECONDS_MAX: f64 = 10.0 * 366.0 * 86_400.0;
const CORES_MAX: f64 = 1e6;

impl Reading {
    fn take(&mut self, column: &Column, text: &str) -> Result<(), String> {
        let task = &mut self.task;
        match column {
            Column::TaskType => task.task_type = clean(text),
            Column::User => task.user = clean(text),
            Column::Start(scale) => task.start_ms = moment_ms(text, *scale)?,
            Column::End(scale) => task.end_ms = Some(moment_ms(text, *scale)?),
            Column::Duration(scale) => self.duration_s = Some(seconds(text, *scale)?),
            Column::CpuTime(scale) => self.cpu_s = Some(seconds(text, *scale)?),
            Column::MemoryPeak(scale) => {
                let bytes = bytes(text, *scale, MEMORY_BYTES_MAX)?;
                self.peak_bytes = Some(self.peak_bytes.map_or(bytes, |peak| peak.max(bytes)));
            }
            Column::MemoryRequest(scale) => {
                task.memory_request_bytes = Some(bytes(text, *scale, MEMORY_BYTES_MAX)?).filter(|b| *b > 0.0);
            }
            Column::CpuRequest => task.cpu_request_cores = Some(number(text, CORES_MAX)?),
            Column::CpuCores => task.cpu_cores_mean = Some(number(text, CORES_MAX)?),
            Column::CpuPercent => task.cpu_cores_mean = Some(number(text, CORES_MAX)? / 100.0),
            Column::IoRead(scale) => task.io_read_bytes = Some(bytes(text, *scale, BYTES_MAX)?),
            Column::IoWrite(scale) => task.io_write_bytes = Some(bytes(text, *scale, BYTES_MAX)?),
            Column::State => self.failed = !matches!(text, "COMPLETED" | "CACHED" | "finished" | "0" | "0:0"),
            Column::Feature(name) => {
                let value = FeatureValue::parse(text);
                task.features.push(Feature { name: name.clone(), value });
            }
            Column::Ignored => {}
        }
        Ok(())
    }

    fn task(mut self) -> Result<Task, (&'static str, String)> {
        self.task.succeeded = !self.failed;
        if self.failed {
            return Ok(self.task);
        }
        let missing = |column| (column, "the value is missing".to_owned());
        if self.task.task_type.is_empty() {
            return Err(missing("task_type"));
        }
        self.task.duration_s = self.duration_s.ok_or_else(|| missing("duration_s"))?;
        self.task.memory_peak_bytes = self.peak_bytes.ok_or_else(|| missing("memory_peak_bytes"))?;
        if let Some(cpu_s) = self.cpu_s.filter(|_| self.task.duration_s > 0.0) {
            let cores = cpu_s / self.task.duration_s;
            if cores > CORES_MAX {
                return Err(("duration_s", format!("{cpu_s} s of CPU time within it cannot be")));
            }
            self.task.cpu_cores_mean = Some(cores);
        }
        Ok(self.task)
    }
}

fn number(text: &str, most: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=most).contains(&number) {
        return Ok(number);
    }
    Err(format!("{text} cannot be: allowed is 0 to {most:e}; is the unit another one?"))
}

/// A plain number in the column's unit, or one with a unit of its own (`12.5G`, as Slurm writes it).
fn bytes(text: &str, scale: Scale, most: f64) -> Result<f64, String> {
    let with_unit = text.trim_end_matches(['B', 'b', 'i']);
    let factor = match with_unit.chars().last() {
        Some('K' | 'k') => 1024.0,
        Some('M' | 'm') => 1_048_576.0,
        Some('G' | 'g') => 1_073_741_824.0,
        Some('T' | 't') => 1_099_511_627_776.0,
        _ => return number(text, most / scale.factor()).map(|number| number * scale.factor()),
    };
    let digits = &with_unit[..with_unit.len() - 1];
    number(digits.trim(), most / factor)
        .map(|number| number * factor)
        .map_err(|_| format!("{text:?} is no size"))
}

/// Seconds as a number in the column's unit, or as Slurm writes them: `[D-]HH:MM:SS`, `MM:SS.mmm`.
fn seconds(text: &str, scale: Scale) -> Result<f64, String> {
    if !text.contains(':') {
        return number(text, SECONDS_MAX / scale.factor()).map(|number| number * scale.factor());
    }
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let mut total = number(days, 3660.0)? * 24.0;
    let parts: Vec<_> = clock.split(':').collect();
    let hours = usize::from(parts.len() == 3);
    if hours == 1 {
        total += number(parts[0], 1e6)?;
    }
    for part in &parts[hours..] {
        total = total * 60.0 + number(part, 59.999_999)?;
    }
    Ok(total)
}

/// Milliseconds of a moment: a number in the column's unit, or `YYYY-MM-DD[T ]HH:MM:SS`.
fn moment_ms(text: &str, scale: Scale) -> Result<i64, String> {
    if let Ok(number) = text.parse::<f64>() {
        let ms = number * scale.factor() * 1e3;
        // Year 2500 in milliseconds: above that the unit is another one.
        let fits = (0.0..=1.7e13).contains(&ms);
        return if fits {
            Ok(ms as i64)
        } else {
            Err(format!("{text} is no time: is the unit another one?"))
        };
    }
    date_ms(text).ok_or_else(|| format!("{text:?} is no time: allowed is a number or YYYY-MM-DDTHH:MM:SS"))
}

/// Days from the civil calendar as in Howard Hinnant's `days_from_civil`.
fn date_ms(text: &str) -> Option<i64> {
    let (date, clock) = text.split_once(['T', ' '])?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.split(':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next().unwrap_or(Some(0.0))?);
    if !(1970..2500).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if !(0.0..24.0).contains(&hour) || !(0.0..60.0).contains(&minute) || !(0.0..61.0).contains(&second) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400_000 + ((hour * 60.0 + minute) * 60.0 * 1e3 + second * 1e3) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const HEADER: &str = "task_type,start_s,duration_s,memory_peak_bytes,memory_request_bytes,input_bytes\n";

    fn bad(rows: &str) -> String {
        read(&format!("{HEADER}{rows}"), &Mapping::default()).unwrap_err().to_string()
    }

    #[test]
    fn rows_come_in_arrival_order() {
        let text = format!("{HEADER}b,20,5,100,200,7\na,10,5,100,-,\n");
        let trace = read(&text, &Mapping::default()).unwrap();
        assert_eq!(trace.tasks[0].task_type, "a");
        assert_eq!(trace.tasks[0].memory_request_bytes, None);
        assert_eq!(trace.tasks[1].features[0].value, FeatureValue::Number(7.0));
    }

    #[test]
    fn absurd_values_are_told_with_line_and_column() {
        for value in ["-5", "NaN", "inf", "1e18", "many"] {
            let message = bad(&format!("a,1,1,10,20,0\nb,2,1,{value},20,0\n"));
            assert!(message.starts_with("line 3, column \"memory_peak_bytes\": "), "{message}");
            assert!(!message.contains('\n'));
        }
        assert!(bad("a,1,-1,10,20,0\n").starts_with("line 2, column \"duration_s\""));
        assert!(bad("a,1674490105000,1,10,20,0\n").contains("unit"), "milliseconds as seconds");
        assert!(bad("a,1,1\n").contains("3 fields"));
        assert!(bad("a,1,1,,20,0\n").contains("missing"));
        assert!(bad("").contains("no rows"));
        assert!(read("", &Mapping::default()).unwrap_err().to_string().contains("empty"));
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = read("task_type,duration_s\na,1\n", &Mapping::default()).unwrap_err();
        assert_eq!((error.line, error.column.as_str()), (1, "memory_peak_bytes"));
        let columns = HashMap::from([("nope".to_owned(), Column::User)]);
        let error = read(HEADER, &Mapping { columns, ..Mapping::default() }).unwrap_err();
        assert!(error.to_string().contains("no such column"));
    }

    #[test]
    fn columns_of_no_known_name_are_told() {
        let text = "task_type,duration_s,memory_peak_bytes,cpu_s,note\na,1,9,1,x\n";
        let columns = HashMap::from([("note".to_owned(), Column::Ignored)]);
        let trace = read(text, &Mapping { columns, ..Mapping::default() }).unwrap();
        assert_eq!(trace.unused, ["cpu_s"]);
    }

    #[test]
    fn bad_rows_can_be_skipped_and_are_counted() {
        let text = format!("{HEADER}a,1,1,10,20,0\nb,2,1,-1,20,0\nc,3,x,1,1,1\n");
        let trace = read(&text, &Mapping { skip_bad: true, ..Mapping::default() }).unwrap();
        assert_eq!((trace.tasks.len(), trace.skipped), (1, 2));
    }

    #[test]
    fn times_and_sizes_as_slurm_writes_them() {
        assert_eq!(seconds("1-02:03:04", Scale::One), Ok(93_784.0));
        assert_eq!(seconds("02:03.5", Scale::One), Ok(123.5));
        assert_eq!(bytes("512M", Scale::One, MEMORY_BYTES_MAX), Ok(536_870_912.0));
        assert_eq!(moment_ms("1970-01-02T00:00:01", Scale::One), Ok(86_401_000));
        assert_eq!(moment_ms("2023-01-23 16:08:25", Scale::One), Ok(1_674_490_105_000));
        assert!(seconds("99:99:99", Scale::One).is_err());
    }

    const NAMES: &[&str] = &[
        "task_type",
        "user",
        "start_s",
        "end",
        "duration_s",
        "memory_peak_bytes",
        "memory_request_gib",
        "cpu_percent",
        "cpu_time_s",
        "io_read_bytes",
        "state",
        "feature:x",
        "process",
        "start",
        "complete",
        "realtime",
        "rss",
        "peak_rss",
        "memory",
        "%cpu",
        "status",
        "rchar",
        "JobID",
        "JobName",
        "User",
        "Start",
        "End",
        "Elapsed",
        "MaxRSS",
        "ReqMem",
        "AllocCPUS",
        "TotalCPU",
        "State",
    ];

    /// The columns that each preset can't do without, so that rows are looked at.
    const NEEDED: [(Preset, &str); 3] = [
        (Preset::Generic, "task_type,duration_s,memory_peak_bytes"),
        (Preset::Sizey, "process,realtime,rss"),
        (Preset::Sacct, "JobName,Elapsed,MaxRSS"),
    ];

    fn file() -> impl Strategy<Value = (Preset, String)> {
        let cell = prop_oneof![
            6 => hostile::number(),
            2 => hostile::word_of(&["COMPLETED", "FAILED", "a", "b", "-", "", "7.batch", "7", "\"x\"", "4Gc"]),
            1 => any::<String>(),
        ];
        let delimiter = prop::sample::select(vec![",", "|", "\t"]);
        let end = prop::sample::select(vec!["\n", "\r\n", "\n\n", ""]);
        let names = vec(hostile::word_of(NAMES), 0..6);
        let rows = vec(vec(cell, 0..10), 0..6);
        (prop::sample::select(NEEDED.to_vec()), names, rows, delimiter, end, any::<bool>()).prop_map(
            |((preset, needed), names, rows, delimiter, end, fits)| {
                let mut header: Vec<String> = needed.split(',').map(str::to_owned).collect();
                header.extend(names);
                let width = header.len();
                let line = |mut cells: Vec<String>| {
                    if fits {
                        cells.resize(width, "1".into());
                    }
                    cells.join(delimiter) + end
                };
                let rows: String = rows.into_iter().map(line).collect();
                (preset, header.join(delimiter) + "\n" + &rows)
            },
        )
    }

    proptest! {
        #[test]
        fn hostile_traces((preset, text) in file(), skip_bad in any::<bool>()) {
            let mapping = Mapping { preset, skip_bad, ..Mapping::default() };
            let Ok(trace) = read(&text, &mapping) else { return Ok(()) };
            for task in trace.tasks {
                prop_assert!(!task.task_type.is_empty() && !task.task_type.chars().any(char::is_control));
                prop_assert!((0.0..=SECONDS_MAX * 2.0).contains(&task.duration_s), "{}", task.duration_s);
                prop_assert!((0.0..=MEMORY_BYTES_MAX).contains(&task.memory_peak_bytes));
                let bytes = [task.io_read_bytes, task.io_write_bytes, task.memory_request_bytes];
                prop_assert!(bytes.iter().flatten().all(|bytes| (0.0..=BYTES_MAX).contains(bytes)));
                let cores = [task.cpu_cores_mean, task.cpu_request_cores];
                prop_assert!(cores.iter().flatten().all(|cores| (0.0..=CORES_MAX).contains(cores)), "{cores:?}");
                let moments = [Some(task.start_ms), task.end_ms];
                prop_assert!(moments.iter().flatten().all(|ms| (0..=17_000_000_000_000).contains(ms)));
            }
        }

        #[test]
        fn hostile_text(text in any::<String>()) {
            for (preset, _) in NEEDED {
                if let Err(bad) = read(&text, &Mapping { preset, ..Mapping::default() }) {
                    prop_assert!(bad.line <= text.lines().count() + 1);
                }
            }
        }
    }
}
