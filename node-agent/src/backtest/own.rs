//! The host's own past as a trace.

use super::trace::{Task, Trace};
use crate::fingerprint::key::{Feature, FeatureValue};
use crate::store::past::PastRun;

/// Name of the feature that keeps what the user asked for.
pub const REQUEST: &str = "memory_request_bytes";

/// Runs that ended well, in the order of their start. What the user asked for is the feature [`REQUEST`] of runs that
/// were imported, else the limit on memory that was given by hand.
pub fn history<'a>(runs: impl IntoIterator<Item = &'a PastRun>) -> Trace {
    let request = |feature: &Feature| match &feature.value {
        FeatureValue::Number(bytes) if feature.name == REQUEST => Some(*bytes),
        _ => None,
    };
    let tasks = runs.into_iter().map(|run| Task {
        task_type: run.task_type.clone(),
        user: run.user.clone(),
        start_ms: run.started_at_ms,
        duration_s: run.duration_s,
        memory_peak_bytes: run.memory_peak_bytes,
        memory_request_bytes: run.features.iter().find_map(request).or(run.memory_limit_bytes),
        cpu_cores_mean: run.cpu_cores_mean,
        succeeded: true,
        features: run.features.clone(),
        ..Task::default()
    });
    Trace { tasks: tasks.collect(), ..Trace::default() }
}
