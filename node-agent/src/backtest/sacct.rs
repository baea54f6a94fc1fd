//! What `sacct --parsable2` prints: a row per job, and one per step below it (`123.batch`, `123.0`), which is
//! where the peak of memory stands. Jobs become tasks; the largest peak of their steps is theirs.

use super::csv::Row;
use super::trace::{Column, Scale};
use std::collections::HashMap;

/// Columns of `sacct`.
pub(super) fn column(name: &str) -> Option<Column> {
    Some(match name {
        "JobName" => Column::TaskType,
        "User" => Column::User,
        "Start" => Column::Start(Scale::One),
        "End" => Column::End(Scale::One),
        "ElapsedRaw" | "Elapsed" => Column::Duration(Scale::One),
        "MaxRSS" => Column::MemoryPeak(Scale::One),
        "ReqMem" => Column::MemoryRequest(Scale::One),
        "AllocCPUS" | "ReqCPUS" => Column::CpuRequest,
        "TotalCPU" => Column::CpuTime(Scale::One),
        "State" => Column::State,
        _ => return None,
    })
}

/// Gives each job the largest `MaxRSS` of its steps and drops the steps. `ReqMem` loses the mark that old
/// versions put behind it: `4Gn` is per node, `4Gc` per core, and is multiplied with the cores then.
pub(super) fn join_steps(header: &Row, rows: Vec<Row>) -> Vec<Row> {
    let place = |name: &str| header.fields.iter().position(|field| field.trim() == name);
    let (Some(id), Some(peak)) = (place("JobID"), place("MaxRSS")) else {
        return rows;
    };
    let mut peaks: HashMap<String, String> = HashMap::new();
    for row in &rows {
        let (Some(job), Some(text)) = (row.fields.get(id), row.fields.get(peak)) else { continue };
        let known = peaks.entry(job_of(job).to_owned()).or_default();
        if size(text) > size(known) {
            known.clone_from(text);
        }
    }
    let (request, cores) = (place("ReqMem"), place("AllocCPUS").or_else(|| place("ReqCPUS")));
    let is_job = |row: &Row| row.fields.get(id).is_none_or(|job| !job.contains('.'));
    let mut jobs: Vec<Row> = rows.into_iter().filter(is_job).collect();
    for row in &mut jobs {
        let found = row.fields.get(id).and_then(|job| peaks.get(job_of(job))).cloned();
        if let (Some(found), Some(field)) = (found, row.fields.get_mut(peak)) {
            *field = found;
        }
        let cores = cores.and_then(|cores| row.fields.get(cores)?.trim().parse::<f64>().ok());
        if let Some(field) = request.and_then(|request| row.fields.get_mut(request)) {
            *field = whole_request(field, cores.unwrap_or(1.0));
        }
    }
    jobs
}

fn job_of(id: &str) -> &str {
    id.split('.').next().unwrap_or(id)
}

fn whole_request(text: &str, cores: f64) -> String {
    match text.trim().strip_suffix('c') {
        Some(per_core) => format!("{}K", size(per_core).max(0.0) / 1024.0 * cores),
        None => text.trim().trim_end_matches('n').to_owned(),
    }
}

/// Bytes of `123K`; less than 0 where it is no size.
fn size(text: &str) -> f64 {
    let text = text.trim();
    let factor = match text.chars().last() {
        Some('K') => 1024.0,
        Some('M') => 1_048_576.0,
        Some('G') => 1_073_741_824.0,
        Some('T') => 1_099_511_627_776.0,
        _ => return text.parse().unwrap_or(-1.0),
    };
    text[..text.len() - 1].parse::<f64>().map_or(-1.0, |number| number * factor)
}

#[cfg(test)]
mod tests {
    use crate::backtest::trace::{Mapping, Preset, read};

    #[test]
    fn the_peak_of_a_job_is_that_of_its_largest_step() {
        let text = "JobID|JobName|User|Start|ElapsedRaw|State|ReqMem|MaxRSS|AllocCPUS\n\
                    7|align|ann|2024-05-01T10:00:00|3600|COMPLETED|2Gc||4\n\
                    7.batch|batch||2024-05-01T10:00:00|3600|COMPLETED||1048576K|4\n\
                    7.0|bwa||2024-05-01T10:00:00|3590|COMPLETED||3145728K|4\n\
                    8|align|ann|2024-05-01T11:00:00|60|CANCELLED by 0|4Gn|10K|4\n";
        let mapping = Mapping { preset: Preset::Sacct, ..Mapping::default() };
        let trace = read(text, &mapping).unwrap();
        assert_eq!((trace.tasks.len(), trace.failed), (1, 1));
        let task = &trace.tasks[0];
        assert_eq!(task.memory_peak_bytes, 3_221_225_472.0);
        assert_eq!(task.memory_request_bytes, Some(8.0 * 1_073_741_824.0));
        assert_eq!((task.task_type.as_str(), task.user.as_str()), ("align", "ann"));
    }
}
