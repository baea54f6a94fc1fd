//! What was seen as Prometheus text (version 0.0.4 of the exposition format).

use super::names::{self, Metric};
use super::{Beside, SERVICES_MAX, Seen, TaskSeries};
use crate::fingerprint::Histogram;
use crate::live::{HostNow, QueueNow};
use crate::service::control::Status;
use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};
use std::collections::BTreeMap;

/// Upper edges of the buckets of service times, as powers of two of nanoseconds: 16 µs, 66 µs, … 1.1 s.
const EDGES: [u32; 9] = [14, 16, 18, 20, 22, 24, 26, 28, 30];

/// Families by the place of their metric in [`names::ALL`], so that the text has their order.
#[derive(Default)]
struct Families(BTreeMap<usize, MetricFamily>);

impl Families {
    fn family(&mut self, metric: Metric) -> &mut MetricFamily {
        let place = names::ALL.iter().position(|known| known.name == metric.name).unwrap_or(usize::MAX);
        self.0.entry(place).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name.into());
            family.set_help(metric.help.into());
            family.set_field_type(metric.kind);
            family
        })
    }

    /// A series of a counter or a gauge.
    fn put(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let mut series = proto::Metric::from_label(pairs(metric, labels));
        if metric.kind == MetricType::COUNTER {
            let mut counter = proto::Counter::default();
            counter.set_value(value);
            series.set_counter(counter);
        } else {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            series.set_gauge(gauge);
        }
        self.family(metric).mut_metric().push(series);
    }

    /// The same where it is known: what is not measured has no series.
    fn put_known(&mut self, metric: Metric, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            self.put(metric, labels, value);
        }
    }

    fn put_histogram(&mut self, metric: Metric, labels: &[&str], histogram: &Histogram) {
        let below = |edge: u32| histogram.iter().take(edge as usize).sum::<u64>();
        let buckets = EDGES.map(|edge| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound((1_u64 << edge) as f64 / 1e9);
            bucket.set_cumulative_count(below(edge));
            bucket
        });
        let middle = |bucket: usize| (1_u64 << bucket) as f64 * 1.5 / 1e9;
        let mut data = proto::Histogram::default();
        data.set_bucket(buckets.into());
        data.set_sample_count(histogram.iter().sum());
        data.set_sample_sum(
            histogram.iter().enumerate().map(|(bucket, count)| middle(bucket) * *count as f64).sum(),
        );
        let mut series = proto::Metric::from_label(pairs(metric, labels));
        series.set_histogram(data);
        self.family(metric).mut_metric().push(series);
    }
}

fn pairs(metric: Metric, values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    metric.labels.iter().zip(values).map(pair).collect()
}

/// The text.
///
/// # Errors
/// In words, if the encoder refuses what it was given.
pub fn encode(seen: &Seen, beside: &Beside) -> Result<String, String> {
    let mut families = Families::default();
    host(&mut families, &seen.snapshot.host);
    admission(&mut families, &seen.snapshot.queue, seen.longest_wait_s);
    for ((task, user), series) in &seen.tasks {
        self::task(&mut families, &[task, user], series);
    }
    for (resource, accuracy) in &seen.accuracy {
        families.put(names::PREDICTIONS, &[resource], accuracy.judged as f64);
        families.put(names::PREDICTIONS_EXCEEDED, &[resource], accuracy.exceeded as f64);
        families.put(names::PREDICTIONS_ERROR, &[resource], accuracy.error_ratio);
    }
    for ((kind, severity), count) in &beside.events {
        families.put(names::EVENTS, &[kind, severity], *count as f64);
    }
    for ((service, cause), count) in &beside.failovers {
        families.put(names::FAILOVERS, &[service, cause], *count as f64);
    }
    beside.services.iter().take(SERVICES_MAX).for_each(|service| self::service(&mut families, service));
    own(&mut families, seen, beside);
    let families: Vec<_> = families.0.into_values().collect();
    TextEncoder::new().encode_to_string(&families).map_err(|error| error.to_string())
}

fn host(families: &mut Families, host: &HostNow) {
    families.put(names::HOST_CPUS, &[], host.cpus as f64);
    let ticks = procfs::ticks_per_second().max(1) as f64;
    let modes = [
        ("user", host.ticks.user),
        ("system", host.ticks.system),
        ("idle", host.ticks.idle),
        ("stolen", host.ticks.stolen),
    ];
    for (mode, count) in modes {
        families.put(names::HOST_CPU_SECONDS, &[mode], count as f64 / ticks);
    }
    families.put(names::HOST_MEMORY, &[], host.memory_total_bytes as f64);
    families.put(names::HOST_MEMORY_AVAILABLE, &[], host.memory_available_bytes as f64);
    families.put_known(
        names::HOST_LOAD,
        &[],
        host.load.map(|[one, ..]| (f64::from(one) * 100.0).round() / 100.0),
    );
    let pressure = &host.pressure;
    for (resource, stall) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
        families.put_known(names::HOST_WAITING, &[resource], stall.map(|stall| stall.some_us as f64 / 1e6));
        families.put_known(names::HOST_STALLED, &[resource], stall.map(|stall| stall.full_us as f64 / 1e6));
    }
}

fn admission(families: &mut Families, queue: &QueueNow, longest_wait_s: f64) {
    families.put(names::PROMISABLE_MEMORY, &[], queue.total.memory_bytes as f64);
    families.put(names::PROMISED_MEMORY, &[], queue.promised.memory_bytes as f64);
    families.put(names::PROMISABLE_CPU, &[], queue.total.cpu_cores);
    families.put(names::PROMISED_CPU, &[], queue.promised.cpu_cores);
    for (license, count) in &queue.total.licenses {
        families.put(names::LICENSES, &[license], f64::from(*count));
        let taken = queue.promised.licenses.get(license).copied().unwrap_or(0);
        families.put(names::LICENSES_TAKEN, &[license], f64::from(taken));
    }
    families.put(names::QUEUE_TASKS, &[], (queue.waiting.len() + queue.waiting_left_out) as f64);
    families.put(names::QUEUE_LONGEST, &[], longest_wait_s);
}

fn task(families: &mut Families, labels: &[&str; 2], series: &TaskSeries) {
    let [task, user] = *labels;
    families.put(names::TASK_RUNNING, labels, series.running as f64);
    families.put(names::TASK_RUNS, &[task, user, "finished"], series.finished as f64);
    families.put(names::TASK_RUNS, &[task, user, "failed"], series.failed as f64);
    let seconds = |count: Option<u64>, per_s: f64| count.map(|count| count as f64 / per_s);
    let totals = &series.totals;
    let counters = [
        (names::TASK_CPU, seconds(totals.cpu_ns, 1e9)),
        (names::TASK_CPU_WAITING, seconds(totals.cpu_wait_ns, 1e9)),
        (names::TASK_MEMORY_WAITING, seconds(totals.memory_stalled_us, 1e6)),
        (names::TASK_MEMORY, seconds(series.memory_bytes, 1.0)),
        (names::TASK_MEMORY_LIMIT, series.limited.map(|(limits, _)| limits as f64)),
        (names::TASK_MEMORY_LIMITED, series.limited.map(|(_, used)| used as f64)),
        (names::TASK_MEMORY_PREDICTED, seconds(series.predicted_bytes, 1.0)),
        (names::TASK_READ, seconds(totals.read_bytes, 1.0)),
        (names::TASK_WRITTEN, seconds(totals.write_bytes, 1.0)),
        (names::TASK_RECEIVED, seconds(totals.received_bytes, 1.0)),
        (names::TASK_SENT, seconds(totals.sent_bytes, 1.0)),
        (names::TASK_MAJOR_FAULTS, seconds(totals.faults_major, 1.0)),
        (names::TASK_OOM_KILLS, seconds(totals.oom_kills, 1.0)),
        (names::TASK_THROTTLED, seconds(totals.quota_periods_throttled, 1.0)),
    ];
    for (metric, value) in counters {
        families.put_known(metric, labels, value);
    }
    // Most tasks serve nobody.
    if let Some(service) = totals.service_ns.filter(|buckets| buckets.iter().any(|count| *count > 0)) {
        families.put_histogram(names::TASK_SERVICE_TIME, labels, &service);
    }
}

fn service(families: &mut Families, service: &Status) {
    let name = service.name.as_str();
    for role in ["primary", "shadow", "starting", "retiring", "ending"] {
        let count = service.instances.iter().filter(|instance| instance.role == role).count();
        families.put(names::SERVICE_INSTANCES, &[name, role], count as f64);
    }
    families.put(names::SERVICE_SHADOWS, &[name], service.shadows as f64);
    let queue: u64 = service.instances.iter().map(|instance| instance.queue).sum();
    families.put(names::SERVICE_QUEUE, &[name], queue as f64);
    families.put(names::SERVICE_CONNECTIONS, &[name], service.connections as f64);
}

fn own(families: &mut Families, seen: &Seen, beside: &Beside) {
    let agent = &seen.snapshot.agent;
    families.put(names::BUILD, &[&agent.version], 1.0);
    families.put(names::AGENT_START, &[], agent.since_ms as f64 / 1e3);
    families.put(names::AGENT_CPU, &[], agent.own.cpu_ms as f64 / 1e3);
    families.put(names::AGENT_MEMORY, &[], agent.own.rss_bytes as f64);
    families.put(names::AGENT_LEARNT, &[], seen.learnt_bytes as f64);
    families.put(names::AGENT_TASKS, &[], agent.running as f64);
    families.put(names::AGENT_CGROUPS, &[], agent.host_cgroups as f64);
    families.put(names::AGENT_RECORDED, &[], agent.recorded as f64);
    families.put(names::AGENT_LOOK, &[], seen.took.as_secs_f64());
    let (attached, all) = agent.probes;
    families.put(names::PROBES, &["attached"], attached as f64);
    families.put(names::PROBES, &["missing"], all.saturating_sub(attached) as f64);
    for cost in &agent.costs {
        families.put(names::PROBE_CPU, &[&cost.probe, &cost.name], cost.share);
        families.put(names::PROBE_RUNS, &[&cost.probe, &cost.name], cost.runs_per_s);
    }
    families.put(names::PROBE_LOST, &[], agent.lost.iter().map(|(_, count)| *count).sum::<u64>() as f64);
    families.put(names::DATABASE, &[], agent.store.database_bytes as f64);
    families.put(names::DATABASE_LOG, &[], agent.store.log_bytes as f64);
    families.put(names::WRITER_QUEUED, &[], agent.store.queued as f64);
    families.put(names::WRITER_FAILURES, &[], agent.store.failures as f64);
    families.put(names::TASK_OVERFLOWED, &[], seen.overflowed as f64);
    families.put(names::SCRAPES, &[], beside.scrapes as f64);
}
