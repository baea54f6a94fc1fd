//! The text as a whole, and that its reference is true.

use super::names::{ALL, Metric};
use super::*;
use crate::host::OwnCost;
use crate::live::{AgentNow, Totals};
use crate::probe::ProgramCost;
use crate::service::control::Instance;
use prometheus::proto::MetricType;

const REFERENCE: &str = include_str!("../../docs/metrics.md");

fn full() -> (Seen, Beside) {
    let mut service_ns = [0; 32];
    (service_ns[10], service_ns[19], service_ns[31]) = (2, 5, 1);
    let counter = Some(2_000_000_000);
    let series = TaskSeries {
        running: 2,
        finished: 3,
        failed: 1,
        totals: Totals {
            cpu_ns: counter,
            cpu_wait_ns: counter,
            memory_stalled_us: counter,
            quota_periods: counter,
            quota_periods_throttled: counter,
            read_bytes: counter,
            write_bytes: counter,
            received_bytes: counter,
            sent_bytes: counter,
            faults_major: counter,
            oom_kills: counter,
            service_ns: Some(service_ns),
        },
        memory_bytes: Some(5),
        limited: Some((9, 5)),
        predicted_bytes: Some(7),
    };
    let mut snapshot = Snapshot::default();
    let stall = Some(crate::live::Stall { some_10s: 0.5, some_us: 3_000_000, full_us: 1 });
    snapshot.host.pressure = crate::live::Pressure { cpu: stall, memory: stall, io: stall };
    snapshot.host.load = Some([1.0, 2.0, 3.0]);
    snapshot.queue.total.licenses.insert("cad".into(), 4);
    snapshot.agent = AgentNow {
        version: "1.2.3".into(),
        own: OwnCost { cpu_ms: 1500, ..OwnCost::default() },
        costs: vec![ProgramCost {
            name: "sched_switch".into(),
            probe: "sched".into(),
            ..ProgramCost::default()
        }],
        probes: (15, 16),
        ..AgentNow::default()
    };
    let seen = Seen {
        snapshot,
        tasks: vec![(("make \"all\"\n".into(), "ada".into()), series)],
        accuracy: BTreeMap::from([("memory", Accuracy::default())]),
        ..Seen::default()
    };
    let mut beside = Beside::default();
    beside.add_events("queued".into(), "info".into(), 3);
    beside.add_failovers("web".into(), "died".into(), 1);
    beside.services = vec![Status {
        name: "web".into(),
        instances: vec![Instance { role: "primary".into(), ..Instance::default() }],
        ..Status::default()
    }];
    (seen, beside)
}

fn text() -> String {
    let (seen, beside) = full();
    encode(&seen, &beside).unwrap()
}

#[test]
fn every_metric_is_in_the_text_with_its_kind_and_meaning() {
    let text = text();
    let order: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(order, ALL.iter().map(|metric| metric.name).collect::<Vec<_>>());
    for Metric { name, labels, .. } in ALL {
        let series = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#')).unwrap();
        assert!(labels.iter().all(|label| series.contains(&format!("{label}=\""))), "{series}");
    }
    assert!(
        text.contains("standin_task_cpu_seconds_total{task=\"make \\\"all\\\"\\n\",user=\"ada\"} 2\n"),
        "{text}"
    );
    assert!(text.contains("standin_agent_cpu_seconds_total 1.5\n"), "{text}");
}

#[test]
fn histograms_are_cumulative_with_known_edges() {
    let text = text();
    let bucket = |le: &str| {
        let line =
            text.lines().find(|line| line.contains("_bucket{") && line.contains(&format!("le=\"{le}\"")));
        line.unwrap_or_else(|| panic!("no {le} in {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert_eq!(bucket("0.000016384"), 2);
    assert_eq!(bucket("0.000262144"), 2);
    assert_eq!(bucket("0.001048576"), 7);
    assert_eq!(bucket("1.073741824"), 7);
    assert_eq!(bucket("+Inf"), 8);
    assert!(
        text.contains("standin_task_service_time_seconds_count{task=\"make \\\"all\\\"\\n\",user=\"ada\"} 8")
    );
}

#[test]
fn what_is_not_measured_has_no_series() {
    let (mut seen, beside) = full();
    seen.tasks[0].1 = TaskSeries { running: 1, ..TaskSeries::default() };
    seen.snapshot.host.pressure = crate::live::Pressure::default();
    let text = encode(&seen, &beside).unwrap();
    assert!(text.contains("standin_task_running{"));
    for absent in ["standin_task_cpu_seconds_total", "standin_task_service_time", "standin_host_pressure"] {
        assert!(!text.contains(absent), "{absent}");
    }
}

#[test]
fn kinds_and_services_are_bounded() {
    let mut beside = Beside::default();
    for number in 0..1000 {
        beside.add_events(format!("kind{number}"), "info".into(), 1);
        beside.add_failovers(format!("service{number}"), "died".into(), 2);
    }
    assert_eq!(beside.events.len(), KINDS_MAX + 1);
    assert_eq!(beside.failovers.len(), SERVICES_MAX * 5 + 1);
    assert_eq!(beside.failovers.values().sum::<u64>(), 2000);
    assert_eq!(beside.events[&(OTHER.to_owned(), "info".to_owned())], 1000 - KINDS_MAX as u64);
}

/// A row of the reference: "| `name` | kind | labels | meaning |".
fn row(metric: &Metric) -> String {
    let kind = match metric.kind {
        MetricType::COUNTER => "counter",
        MetricType::HISTOGRAM => "histogram",
        _ => "gauge",
    };
    let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help.replace('|', "\\|"))
}

#[test]
fn the_reference_has_every_metric_and_no_other() {
    for metric in ALL {
        assert!(REFERENCE.contains(&row(metric)), "docs/metrics.md lacks this row:\n{}", row(metric));
    }
    let rows = REFERENCE.lines().filter(|line| line.starts_with("| `standin_") && line.contains(" | "));
    let known: Vec<_> = ALL.iter().map(row).collect();
    let strangers: Vec<_> = rows
        .filter(|line| line.matches(" | ").count() == 3 && !known.iter().any(|row| row == line))
        .collect();
    assert!(strangers.is_empty(), "{strangers:#?}");
}
