//! What limits promise, whatever was predicted.

use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const HOST: Capacity = Capacity { cpus: 4, memory_bytes: 8 * GIB };

fn estimate(resource: Resource, expected: f64, upper: f64, level: Level) -> Estimate {
    Estimate { resource, expected, upper, risk: 0.05, samples: 5, level, width: None, reason: String::new() }
}

fn prediction(level: Level) -> Prediction {
    Prediction {
        estimates: vec![
            estimate(Resource::MemoryPeakBytes, 1e9, 2e9, level),
            estimate(Resource::CpuCoresMean, 1.5, 2.0, level),
            estimate(Resource::CpuCoresPeak, 2.0, 3.0, level),
            estimate(Resource::TasksPeak, 10.0, 20.0, level),
        ],
    }
}

fn predicted(policy: Policy, level: Level) -> Vec<Limit> {
    size(&prediction(level), policy, Manual::default(), HOST)
        .0
        .into_iter()
        .map(|(limit, origin)| {
            assert_eq!(origin, Origin::Predicted);
            limit
        })
        .collect()
}

#[test]
fn each_policy_limits_what_it_says() {
    let own = Level::TaskAndUser;
    assert_eq!(predicted(Policy::Observe, own), []);
    assert_eq!(
        predicted(Policy::Elastic, own),
        [Limit::MemoryHigh(2_000_000_000), Limit::MemoryLow(1_000_000_000), Limit::CpuWeight(150)]
    );
    assert_eq!(
        predicted(Policy::Strict, own),
        [Limit::MemoryMax(2_000_000_000), Limit::CpuMax(3.0), Limit::CpuBurst(3.0), Limit::PidsMax(46)]
    );
}

#[test]
fn demand_per_period_and_second_gives_quota_and_burst() {
    let limits = |in_period, in_second, mean| {
        let own = Level::TaskAndUser;
        let estimates = vec![
            estimate(Resource::CpuCoresMean, mean, mean, own),
            estimate(Resource::CpuCoresPeak, 1.0, 3.9, own),
            estimate(Resource::CpuCoresP95Of100Ms, in_period, in_period, own),
            estimate(Resource::CpuCoresP95Of1S, in_second, in_second, own),
        ];
        size(&Prediction { estimates }, Policy::Strict, Manual::default(), HOST).0
    };
    let predicted = |cores, burst: Option<f64>| -> Vec<_> {
        let burst = burst.map(Limit::CpuBurst);
        [Some(Limit::CpuMax(cores)), burst].into_iter().flatten().map(|l| (l, Origin::Predicted)).collect()
    };
    // 50 ms in a period now and then: half at once, half saved up.
    assert_eq!(limits(0.5, 0.125, 0.125), predicted(0.25, Some(0.25)));
    assert_eq!(limits(1.5, 1.0, 0.5), predicted(1.0, Some(0.5)));
    // Busy for less than a second in twenty: never less than the mean.
    assert_eq!(limits(0.0, 0.0, 0.25), predicted(0.25, None));
    assert_eq!(limits(1.5, 1.5, 1.0), predicted(1.5, None));
    assert_eq!(limits(1.5, 5.0, 1.0), []);
}

#[test]
fn other_tasks_of_the_host_limit_nothing() {
    for policy in [Policy::Elastic, Policy::Strict] {
        assert_eq!(predicted(policy, Level::Host), []);
    }
}

#[test]
fn what_the_host_cannot_give_is_no_limit() {
    let small = Capacity { cpus: 1, memory_bytes: GIB };
    let prediction = prediction(Level::Task);
    let limits = |policy| size(&prediction, policy, Manual::default(), small).0;
    assert_eq!(
        limits(Policy::Elastic),
        [(Limit::MemoryLow(1_000_000_000), Origin::Predicted), (Limit::CpuWeight(150), Origin::Predicted)]
    );
    assert_eq!(limits(Policy::Strict), [(Limit::PidsMax(46), Origin::Predicted)]);
}

#[test]
fn by_hand_always_holds() {
    let manual = Manual { memory_bytes: Some(GIB), cpu_cores: Some(8.0), ..Manual::default() };
    for policy in [Policy::Observe, Policy::Elastic, Policy::Strict] {
        let limits = size(&prediction(Level::TaskAndUser), policy, manual, HOST).0;
        assert_eq!(
            limits[..2],
            [(Limit::MemoryMax(GIB), Origin::Manual), (Limit::CpuMax(8.0), Origin::Manual)]
        );
        // The predicted 2 GB are above 1 GiB: no second limit on memory.
        assert!(!limits[2..].iter().any(|(limit, _)| matches!(
            limit,
            Limit::MemoryMax(_) | Limit::MemoryHigh(_) | Limit::CpuMax(_)
        )));
    }
}

#[test]
fn floors_raise_predicted_limits_and_give_weight() {
    let manual = Manual {
        memory_floor_bytes: Some(4 * GIB),
        cpu_floor_cores: Some(3.5),
        cpu_quota: Some(true),
        ..Manual::default()
    };
    let limits = |policy| -> Vec<Limit> {
        size(&prediction(Level::Task), policy, manual, HOST).0.into_iter().map(|(limit, _)| limit).collect()
    };
    assert_eq!(
        limits(Policy::Elastic),
        [
            Limit::MemoryHigh(4 * GIB),
            Limit::MemoryLow(4 * GIB),
            Limit::CpuWeight(350),
            Limit::CpuMax(3.5),
            Limit::CpuBurst(3.5)
        ]
    );
    assert_eq!(limits(Policy::Strict)[..2], [Limit::MemoryMax(4 * GIB), Limit::CpuMax(3.5)]);
}

#[test]
fn only_elastic_limits_follow() {
    let manual = Manual { cpu_quota: Some(true), ..Manual::default() };
    for (policy, follows) in [(Policy::Elastic, true), (Policy::Strict, false), (Policy::Observe, false)] {
        let limits = size(&prediction(Level::Task), policy, manual, HOST);
        assert_eq!(!following(&limits, policy, manual, HOST).is_empty(), follows, "{policy:?}");
    }
    let by_hand = Manual { memory_bytes: Some(GIB), cpu_cores: Some(1.0), ..Manual::default() };
    let limits = size(&Prediction::default(), Policy::Elastic, by_hand, HOST);
    assert!(following(&limits, Policy::Elastic, by_hand, HOST).is_empty());
}

fn any_estimate() -> impl Strategy<Value = Estimate> {
    (
        prop::sample::select(Resource::ALL.to_vec()),
        any::<f64>(),
        prop_oneof![any::<f64>(), 0.0..1e12],
        prop::sample::select(vec![Level::TaskAndUser, Level::Task, Level::Host]),
    )
        .prop_map(|(resource, expected, upper, level)| estimate(resource, expected, upper, level))
}

proptest! {
    #[test]
    fn limits_are_sane(
        estimates in prop::collection::vec(any_estimate(), 0..12),
        strict in any::<bool>(),
        memory_bytes in prop::option::of(any::<u64>()),
        cpu_cores in prop::option::of(any::<f64>()),
        memory_floor_bytes in prop::option::of(any::<u64>()), cpu_floor_cores in prop::option::of(0.0..1e4),
        cpus in 1_usize..256, host in any::<u64>(),
    ) {
        let policy = if strict { Policy::Strict } else { Policy::Elastic };
        let capacity = Capacity { cpus, memory_bytes: host };
        let manual = Manual {
            memory_bytes, cpu_cores, memory_floor_bytes, cpu_floor_cores, cpu_quota: Some(true), ..Manual::default()
        };
        let limits = size(&Prediction { estimates }, policy, manual, capacity).0;
        let max = limits.iter().find_map(|(limit, _)| match limit {
            Limit::MemoryMax(bytes) => Some(*bytes),
            _ => None,
        });
        if memory_bytes.is_some() {
            prop_assert_eq!(max, memory_bytes);
        }
        for (limit, origin) in &limits {
            match (*limit, *origin) {
                (Limit::MemoryMax(bytes), Origin::Predicted) => prop_assert!(bytes > 0 && bytes < host),
                (Limit::MemoryHigh(bytes), _) => {
                    prop_assert!(bytes > 0 && bytes < host && bytes <= max.unwrap_or(u64::MAX));
                }
                (Limit::MemoryLow(bytes), _) => prop_assert!(bytes > 0),
                (Limit::CpuMax(cores), Origin::Predicted) => {
                    prop_assert!((CPU_MAX_LEAST_CORES..cpus as f64).contains(&cores));
                }
                (Limit::CpuBurst(burst), Origin::Predicted) => {
                    let within = |limit: &Limit| matches!(limit, Limit::CpuMax(cores) if burst > 0.0 && burst <= *cores);
                    prop_assert!(limits.iter().any(|(limit, _)| within(limit)), "the kernel refuses it");
                }
                (Limit::CpuMax(cores), Origin::Manual) => prop_assert!(cores.is_finite() && cores > 0.0),
                (Limit::CpuWeight(weight) | Limit::IoWeight(weight), _) => prop_assert!((101..=10_000).contains(&weight)),
                (Limit::PidsMax(tasks), _) => prop_assert!((16..=TASKS_MAX).contains(&tasks)),
                (Limit::MemoryMax(_) | Limit::CpuBurst(_), Origin::Manual) => {}
                (Limit::IoReadMax(_) | Limit::IoWriteMax(_), _) => prop_assert!(false, "nobody asked for it"),
            }
        }
    }
}
