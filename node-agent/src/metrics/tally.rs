//! What tasks have used, by kind of task and user, over all runs of an agent's life: counters that never go back,
//! whatever ends. Bounded: when as many pairs have series as may have them, all others share one.

use super::Accuracy;
use crate::fingerprint::{Fingerprint, HISTOGRAM_BUCKETS, Histogram};
use crate::live::{TaskNow, Totals};
use crate::predict::{Level, Prediction, Resource};
use std::collections::{BTreeMap, BTreeSet};

/// What stands for all that have no series of their own.
pub const OTHER: &str = "(other)";

/// Kind of task, and user.
type Pair = (String, String);

/// What runs of one kind of task and user use and have used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSeries {
    /// Under way.
    pub running: u64,
    /// Ended with exit code 0.
    pub finished: u64,
    /// Ended otherwise.
    pub failed: u64,
    /// Counters.
    pub totals: Totals,
    /// Memory in use, bytes.
    pub memory_bytes: Option<u64>,
    /// Limits of those that have one, and what those use, bytes.
    pub limited: Option<(u64, u64)>,
    /// Predicted upper bounds, bytes.
    pub predicted_bytes: Option<u64>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Tally {
    most: usize,
    pairs: BTreeSet<Pair>,
    ended: BTreeMap<Pair, TaskSeries>,
    overflowed: u64,
    accuracy: BTreeMap<&'static str, Accuracy>,
}

impl Tally {
    /// With at most so many pairs.
    pub fn new(most: usize) -> Self {
        let (pairs, ended, accuracy) = Default::default();
        Self { most, pairs, ended, overflowed: 0, accuracy }
    }

    /// A run begins.
    pub fn begun(&mut self, task_type: &str, user: &str) {
        let pair = (task_type.to_owned(), user.to_owned());
        if self.pairs.contains(&pair) {
            return;
        }
        if self.pairs.len() < self.most {
            self.pairs.insert(pair);
        } else {
            self.overflowed += 1;
        }
    }

    /// Runs that share the series of all others.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// How good predictions were, by resource.
    pub fn accuracy(&self) -> &BTreeMap<&'static str, Accuracy> {
        &self.accuracy
    }

    fn pair(&self, task_type: &str, user: &str) -> Pair {
        let pair = (task_type.to_owned(), user.to_owned());
        if self.pairs.contains(&pair) { pair } else { (OTHER.to_owned(), OTHER.to_owned()) }
    }

    /// What a run used that is no longer among those under way.
    pub fn used(&mut self, task_type: &str, user: &str, used: &Totals) {
        let pair = self.pair(task_type, user);
        self.ended.entry(pair).or_default().totals.add(used);
    }

    /// How a run ended.
    pub fn ended(&mut self, task_type: &str, user: &str, is_finished: bool) {
        let pair = self.pair(task_type, user);
        let series = self.ended.entry(pair).or_default();
        *(if is_finished { &mut series.finished } else { &mut series.failed }) += 1;
    }

    /// Holds a prediction against what a run that ended well did.
    pub fn judge(&mut self, prediction: &Prediction, did: &Fingerprint) {
        for estimate in prediction.estimates.iter().filter(|estimate| estimate.level != Level::Host) {
            let Some((name, actual)) = actual(did, estimate.resource) else { continue };
            let accuracy = self.accuracy.entry(name).or_default();
            accuracy.judged += 1;
            accuracy.exceeded += u64::from(actual > estimate.upper);
            accuracy.error_ratio += (estimate.expected - actual).abs() / actual;
        }
    }

    /// Everything, with what runs under way have used since they came to this agent.
    pub fn series<'a>(
        &self,
        live: impl Iterator<Item = (&'a TaskNow, &'a Totals)>,
    ) -> Vec<((String, String), TaskSeries)> {
        let mut all = self.ended.clone();
        for (task, before) in live {
            let series = all.entry(self.pair(&task.task_type, &task.user)).or_default();
            series.running += 1;
            series.totals.add(&task.totals.since(before));
            let memory = task.memory_bytes.unwrap_or(0);
            series.memory_bytes = Some(series.memory_bytes.unwrap_or(0) + memory);
            if let Some(limit) = task.memory_limit {
                let (limits, used) = series.limited.unwrap_or_default();
                series.limited = Some((limits.saturating_add(limit.bytes), used + memory));
            }
            if let Some(band) = task.predicted.memory_bytes {
                series.predicted_bytes = Some(series.predicted_bytes.unwrap_or(0) + band.upper as u64);
            }
        }
        all.into_iter().collect()
    }
}

/// The resources whose predictions a run as a whole can be held against; one that used nothing makes no ratio.
fn actual(did: &Fingerprint, resource: Resource) -> Option<(&'static str, f64)> {
    let (name, actual) = match resource {
        Resource::MemoryPeakBytes => ("memory", did.memory_peak_bytes? as f64),
        Resource::CpuCoresMean => ("cpu", did.cpu_ns? as f64 / did.duration_ns.max(1) as f64),
        Resource::DurationS => ("duration", did.duration_ns as f64 / 1e9),
        _ => return None,
    };
    (actual > 0.0).then_some((name, actual))
}

impl Totals {
    /// Of a run that is over.
    pub fn of(did: &Fingerprint, before_end: &Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        Self {
            cpu_ns: did.cpu_ns,
            cpu_wait_ns: did.cpu_wait_ns,
            read_bytes: did.block_read_bytes,
            write_bytes: did.block_write_bytes,
            received_bytes: sum(did.tcp_received_bytes, did.udp_received_bytes),
            sent_bytes: sum(did.tcp_sent_bytes, did.udp_sent_bytes),
            faults_major: did.faults_major,
            oom_kills: did.oom_kills,
            service_ns: did.tcp_service_ns,
            // A fingerprint does not have these.
            ..*before_end
        }
    }

    /// What has been added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        self.combine(before, |now, before| now.saturating_sub(before))
    }

    /// Adds what another run used.
    pub fn add(&mut self, more: &Self) {
        *self = self.combine(more, u64::saturating_add);
    }

    /// Field by field; what one side does not have counts as nothing there.
    fn combine(&self, other: &Self, how: fn(u64, u64) -> u64) -> Self {
        let each = |of: fn(&Self) -> Option<u64>| match (of(self), of(other)) {
            (None, None) => None,
            (a, b) => Some(how(a.unwrap_or(0), b.unwrap_or(0))),
        };
        let buckets = |a: Histogram, b: Histogram| std::array::from_fn(|bucket| how(a[bucket], b[bucket]));
        let nothing = [0; HISTOGRAM_BUCKETS];
        Self {
            cpu_ns: each(|t| t.cpu_ns),
            cpu_wait_ns: each(|t| t.cpu_wait_ns),
            memory_stalled_us: each(|t| t.memory_stalled_us),
            quota_periods: each(|t| t.quota_periods),
            quota_periods_throttled: each(|t| t.quota_periods_throttled),
            read_bytes: each(|t| t.read_bytes),
            write_bytes: each(|t| t.write_bytes),
            received_bytes: each(|t| t.received_bytes),
            sent_bytes: each(|t| t.sent_bytes),
            faults_major: each(|t| t.faults_major),
            oom_kills: each(|t| t.oom_kills),
            service_ns: match (self.service_ns, other.service_ns) {
                (None, None) => None,
                (a, b) => Some(buckets(a.unwrap_or(nothing), b.unwrap_or(nothing))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Estimate;

    fn task(task_type: &str, cpu_ns: u64) -> TaskNow {
        TaskNow {
            task_type: task_type.into(),
            user: "ada".into(),
            totals: Totals { cpu_ns: Some(cpu_ns), ..Totals::default() },
            memory_bytes: Some(10),
            ..TaskNow::default()
        }
    }

    fn cpu_ns(tally: &Tally, live: &[(TaskNow, Totals)], task: &str) -> u64 {
        let series = tally.series(live.iter().map(|(task, before)| (task, before)));
        let found = series.iter().find(|((name, _), _)| name == task).map(|(_, series)| series.totals.cpu_ns);
        found.flatten().unwrap_or(0)
    }

    #[test]
    fn counters_never_go_back_when_a_run_ends() {
        let mut tally = Tally::new(5);
        tally.begun("xz", "ada");
        let before = Totals { cpu_ns: Some(40), ..Totals::default() };
        let running = (task("xz", 100), before);
        assert_eq!(
            cpu_ns(&tally, std::slice::from_ref(&running), "xz"),
            60,
            "what another agent saw is not ours"
        );
        let last = running.0.totals;
        tally.used("xz", "ada", &last.since(&before));
        assert_eq!(cpu_ns(&tally, &[], "xz"), 60);
        let end = Totals::of(&Fingerprint { cpu_ns: Some(130), ..Fingerprint::default() }, &last);
        tally.used("xz", "ada", &end.since(&last));
        tally.ended("xz", "ada", true);
        assert_eq!(cpu_ns(&tally, &[(task("xz", 5), Totals::default())], "xz"), 95);
        let series = tally.series(std::iter::empty());
        assert_eq!((series[0].1.finished, series[0].1.running, series[0].1.totals.read_bytes), (1, 0, None));
    }

    #[test]
    fn pairs_beyond_the_bound_share_one_series() {
        let mut tally = Tally::new(2);
        for name in ["a", "b", "c", "d", "c", "a"] {
            tally.begun(name, "ada");
        }
        let live: Vec<_> = ["a", "b", "c", "d"].map(|name| (task(name, 7), Totals::default())).into();
        let series = tally.series(live.iter().map(|(task, before)| (task, before)));
        let names: Vec<_> =
            series.iter().map(|((task, _), series)| (task.as_str(), series.running)).collect();
        assert_eq!(names, [(OTHER, 2), ("a", 1), ("b", 1)]);
        assert_eq!((cpu_ns(&tally, &live, OTHER), tally.overflowed()), (14, 3));
    }

    #[test]
    fn predictions_are_held_against_what_runs_did() {
        let estimate = |resource, expected, upper, level| Estimate {
            resource,
            expected,
            upper,
            risk: 0.05,
            samples: 3,
            level,
            width: None,
            reason: String::new(),
        };
        let prediction = Prediction {
            estimates: vec![
                estimate(Resource::MemoryPeakBytes, 150.0, 180.0, Level::TaskAndUser),
                estimate(Resource::DurationS, 1.0, 9.0, Level::TaskAndUser),
                estimate(Resource::CpuCoresMean, 1.0, 9.0, Level::Host),
            ],
        };
        let did = Fingerprint {
            memory_peak_bytes: Some(200),
            duration_ns: 2_000_000_000,
            cpu_ns: Some(5),
            ..Fingerprint::default()
        };
        let mut tally = Tally::new(1);
        tally.judge(&prediction, &did);
        let memory = Accuracy { judged: 1, exceeded: 1, error_ratio: 0.25 };
        let duration = Accuracy { judged: 1, exceeded: 0, error_ratio: 0.5 };
        assert_eq!(tally.accuracy(), &BTreeMap::from([("memory", memory), ("duration", duration)]));
    }
}
