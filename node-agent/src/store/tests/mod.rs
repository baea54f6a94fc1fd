//! What the store promises, in files by what a user would ask about.

mod cut_off;
mod events;
mod hostile;
mod own;
mod readme;
mod runs;
mod sums;
mod writer;

use super::event::{Event, Filter, Severity};
use super::record::*;
use super::*;
use crate::fingerprint::Peer;
use crate::fingerprint::demand::{CpuDemand, Windows};
use crate::fingerprint::key::{Feature, FeatureValue};
use crate::fingerprint::series::{Point, Series};
use crate::fingerprint::{Coverage, Fingerprint, Source};
use crate::live::Kind;
use crate::predict::{Estimate, Level, Prediction, Resource};
use crate::size::admission::{Licenses, Promise};
use crate::size::{Limit, Limits, Origin, Policy};
use ebpf_probes::demand::DEMAND_BUCKETS;

fn key(task_type: &str, uid: u32) -> TaskKey {
    TaskKey { task_type: task_type.into(), uid }
}

fn owner() -> ProcessId {
    ProcessId { pid: 77, start_ticks: 123, boot_id: "boot".into() }
}

pub(crate) fn new_run(task_type: &str, uid: u32) -> NewRun {
    let estimate = |resource, expected, upper| Estimate {
        resource,
        expected,
        upper,
        risk: 0.05,
        samples: 3,
        level: Level::TaskAndUser,
        width: Some(0.4),
        reason: "p95 of the last 3 runs".into(),
    };
    NewRun {
        key: key(task_type, uid),
        user: format!("user{uid}"),
        command: vec!["sort".into(), "big file.txt".into()],
        directory: "/srv".into(),
        started_at_ms: 1_700_000_000_000,
        engine: Engine::Agent,
        owner: owner(),
        main: None,
        cgroup: Some(("standin/run-1".into(), 4711)),
        policy: Policy::Elastic,
        features: vec![
            Feature { name: "input_bytes".into(), value: FeatureValue::Number(5e6) },
            Feature { name: "mode".into(), value: FeatureValue::Category("fast".into()) },
        ],
        prediction: Prediction {
            estimates: vec![
                estimate(Resource::MemoryPeakBytes, 2e8, 3e8),
                estimate(Resource::DurationS, 2.0, 3.0),
            ],
        },
        limits: Limits(vec![
            (Limit::CpuBurst(0.5), Origin::Predicted),
            (Limit::CpuWeight(150), Origin::Predicted),
            (Limit::IoReadMax(1 << 20), Origin::Manual),
            (Limit::IoWeight(300), Origin::Predicted),
            (Limit::IoWriteMax(2 << 20), Origin::Manual),
            (Limit::MemoryHigh(300 << 20), Origin::Predicted),
            (Limit::MemoryLow(200 << 20), Origin::Predicted),
        ]),
        admission: Some(Admission {
            priority: 3,
            waited_ms: 1500,
            promise: Promise {
                memory_bytes: 300 << 20,
                cpu_cores: 1.5,
                licenses: Licenses::from([("cad".into(), 2)]),
            },
            overcommitted: true,
        }),
    }
}

fn measured(memory_mib: u64) -> Measured {
    let mut histogram = [0; 32];
    histogram[10] = 5;
    histogram[20] = 40;
    histogram[31] = 1;
    let mut series = Series::default();
    for second in 1..=5 {
        series.push(Point {
            at_ms: second * 1000,
            length_ms: 1000,
            cpu_cores: 0.75,
            memory_bytes: memory_mib << 20,
            ..Point::default()
        });
    }
    Measured {
        fingerprint: Fingerprint {
            duration_ns: 2_000_000_000,
            cpu_ns: Some(1_500_000_000),
            cpu_cores_peak: Some(1.9),
            cpu_cores_p95_100ms: Some(0.6),
            cpu_cores_p95_1s: Some(0.2),
            block_read_ops: Some(100),
            block_write_ops: Some(1),
            cpu_burst_ns: Some(histogram),
            cpu_wait_ns_histogram: Some(histogram),
            cpu_demand: Some(cpu_demand()),
            memory_peak_bytes: Some(memory_mib << 20),
            block_read_bytes: Some(4_000_000),
            storage_read_bytes: Some(1_000_000),
            storage_write_bytes: Some(8_000_000),
            block_read_ns: Some(histogram),
            tcp_service_ns: Some(histogram),
            peers: Some(vec![Peer {
                address: "10.0.0.7".into(),
                port: Some(27000),
                connections: 2,
                sent_bytes: 10_000,
                first_at_ms: 1_700_000_000_000,
                ..Peer::default()
            }]),
            tcp_sent_bytes: Some(10_000),
            tcp_received_bytes: Some(20_000),
            udp_received_bytes: Some(2_000),
            tasks_peak: Some(4),
            faults_major: Some(u64::MAX),
            ..Fingerprint::default()
        },
        series,
        coverage: Coverage(vec![Source {
            measure: "cpu".into(),
            source: Some("tp_btf sched_switch".into()),
            note: None,
        }]),
    }
}

/// One core for half of each second, two seconds long.
fn cpu_demand() -> CpuDemand {
    let windows = |window_ms: u64, busy, us: u64, squares| {
        let mut counts = vec![0; DEMAND_BUCKETS];
        counts[70] = busy;
        Windows {
            window_ms,
            windows: 2000 / window_ms,
            busy,
            cpu_us: 1_000_000,
            squares,
            peak_us: us,
            cpus_peak: 1,
            late: 0,
            counts,
        }
    };
    CpuDemand(vec![
        windows(10, 100, 10_000, 100_000_000),
        windows(100, 10, 100_000, 10_000_000),
        windows(1000, 2, 500_000, 500_000),
    ])
}

fn well() -> Ending {
    Ending { exit_code: Some(0), ..Ending::default() }
}

/// Begins and ends a run.
fn ran(store: &mut Store, new: &NewRun, ending: Ending, memory_mib: u64) -> RunId {
    let id = store.begin_run(new).unwrap();
    store.finish_run(id, new.started_at_ms + 2000, &ending, &measured(memory_mib)).unwrap();
    id
}

/// A store in a directory of its own, which lives as long as the first of the two.
fn temporary() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state/standin.db")).unwrap().store;
    (directory, store)
}

fn number(store: &Store, sql: &str) -> i64 {
    store.connection.query_row(sql, [], |row| row.get(0)).unwrap()
}
