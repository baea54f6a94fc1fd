//! What limits promise, whatever was predicted.

use super::*;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const HOST: Capacity = Capacity { cpus: 4, memory_bytes: 8 * GIB };

fn estimate(resource: Resource, expected: f64, upper: f64, level: Level) -> Estimate {
    Estimate { resource, expected, upper, risk: 0.05, samples: 5, level, reason: String::new() }
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
    assert_eq!(predicted(Policy::Elastic, own), [Limit::MemoryHigh(2_000_000_000), Limit::CpuWeight(150)]);
    assert_eq!(
        predicted(Policy::Strict, own),
        [Limit::MemoryMax(2_000_000_000), Limit::CpuMax(3.0), Limit::PidsMax(46)]
    );
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
    assert_eq!(limits(Policy::Elastic), [(Limit::CpuWeight(150), Origin::Predicted)]);
    assert_eq!(limits(Policy::Strict), [(Limit::PidsMax(46), Origin::Predicted)]);
}

#[test]
fn by_hand_always_holds() {
    let manual = Manual { memory_bytes: Some(GIB), cpu_cores: Some(8.0) };
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
fn growing_leaves_headroom() {
    assert_eq!(grow(GIB, GIB / 2, HOST), None);
    assert_eq!(grow(GIB, GIB, HOST), Some(GIB + GIB / 2));
    assert_eq!(grow(GIB, 7 * GIB, HOST), Some(8 * GIB));
    assert_eq!(grow(8 * GIB, 8 * GIB, HOST), None);
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
        cpus in 1_usize..256, host in any::<u64>(),
    ) {
        let policy = if strict { Policy::Strict } else { Policy::Elastic };
        let capacity = Capacity { cpus, memory_bytes: host };
        let limits = size(&Prediction { estimates }, policy, Manual { memory_bytes, cpu_cores }, capacity).0;
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
                (Limit::CpuMax(cores), Origin::Predicted) => {
                    prop_assert!((CPU_MAX_LEAST_CORES..cpus as f64).contains(&cores));
                }
                (Limit::CpuMax(cores), Origin::Manual) => prop_assert!(cores.is_finite() && cores > 0.0),
                (Limit::CpuWeight(weight), _) => prop_assert!((101..=10_000).contains(&weight)),
                (Limit::PidsMax(tasks), _) => prop_assert!((16..=TASKS_MAX).contains(&tasks)),
                (Limit::MemoryMax(_), Origin::Manual) => {}
            }
        }
    }

    #[test]
    fn growth_never_leaves_the_working_set_above(
        high in any::<u64>(), used in 0_u64..1 << 50, memory_bytes in 0_u64..1 << 50
    ) {
        let capacity = Capacity { cpus: 1, memory_bytes };
        match grow(high, used, capacity) {
            Some(new) => {
                prop_assert!(new > high && new <= memory_bytes);
                prop_assert!(new == memory_bytes || used as f64 <= new as f64 * GROW_AT_SHARE);
            }
            None => prop_assert!(used as f64 <= high as f64 * GROW_AT_SHARE || high >= memory_bytes
                || whole(used as f64 * GROW_FACTOR) <= high),
        }
    }
}
