//! What predictions promise, whatever the history says.

use super::calibration::Outcome;
use super::*;
use crate::fingerprint::key::FeatureValue;
use proptest::prelude::*;

const MIB: f64 = 1_048_576.0;

fn run(resource: Resource, value: f64, censored: bool) -> Observation {
    let mut observation = Observation::default();
    observation.values[resource as usize] = Some(value);
    observation.censored[resource as usize] = censored;
    observation
}

fn memory(mib: &[f64]) -> Vec<Observation> {
    mib.iter().map(|mib| run(Resource::MemoryPeakBytes, mib * MIB, false)).collect()
}

fn memory_estimate(history: &History) -> Estimate {
    predict(history, &[], 0.05).estimate(Resource::MemoryPeakBytes).cloned().unwrap()
}

#[test]
fn the_order_of_all_is_the_order_of_values() {
    for (place, resource) in Resource::ALL.into_iter().enumerate() {
        assert_eq!(resource as usize, place);
    }
}

#[test]
fn few_runs_that_got_faster_do_not_promise_an_even_faster_one() {
    // The newest first.
    for seconds in [&[5.3, 10.3][..], &[5.0, 10.0, 20.0], &[40.0, 10.0]] {
        let runs = seconds.iter().map(|seconds| run(Resource::DurationS, *seconds, false)).collect();
        let prediction = predict(&History { task_and_user: runs, ..History::default() }, &[], 0.05);
        let expected = prediction.estimate(Resource::DurationS).unwrap().expected;
        let (least, most) =
            seconds.iter().fold((f64::MAX, 0.0_f64), |(least, most), s| (least.min(*s), most.max(*s)));
        assert!((least..=most).contains(&expected), "{expected} from {seconds:?}");
    }
}

#[test]
fn no_history_no_estimate() {
    assert_eq!(predict(&History::default(), &[], 0.05), Prediction::default());
}

#[test]
fn one_run_gives_a_generous_bound() {
    let estimate = memory_estimate(&History { task_and_user: memory(&[300.0]), ..History::default() });
    assert_eq!(estimate.expected, 300.0 * MIB);
    assert_eq!(estimate.upper, 932.0 * MIB);
    assert_eq!(
        estimate.reason,
        "the median of the one run of this task by this user is 300.0 MiB; ×3.00 for 1 sample, +32.0 MiB"
    );
}

#[test]
fn a_reason_does_not_tell_of_what_nothing_is_taken_for() {
    let runs = vec![run(Resource::IoWriteBytesPerS, 0.0, false); 5];
    let prediction = predict(&History { task_and_user: runs, ..History::default() }, &[], 0.05);
    let estimate = prediction.estimate(Resource::IoWriteBytesPerS).unwrap();
    assert_eq!(estimate.expected, 0.0);
    assert!(estimate.reason.contains("is next to nothing, taken for 1.0 KiB/s;"), "{}", estimate.reason);
}

#[test]
fn more_runs_give_a_tighter_bound() {
    let with = |count| {
        memory_estimate(&History { task_and_user: memory(&vec![1000.0; count]), ..History::default() })
    };
    let uppers: Vec<_> = [1, 2, 7, 40, 256].map(|count| with(count).upper).to_vec();
    assert!(uppers.windows(2).all(|w| w[0] > w[1]), "{uppers:?}");
    assert!(uppers[4] < 1060.0 * MIB, "{uppers:?}");
}

#[test]
fn small_tasks_get_the_least_memory() {
    let estimate = memory_estimate(&History { task_and_user: memory(&[1.0]), ..History::default() });
    assert_eq!(estimate.upper, MEMORY_LEAST_BYTES);
    assert!(estimate.reason.contains("least bound"), "{}", estimate.reason);
}

#[test]
fn memory_that_grows_with_an_input_is_predicted_from_it() {
    let feature = |x: f64| vec![Feature { name: "rows".into(), value: FeatureValue::Number(x) }];
    let mut runs = memory(&(1..=30).map(|n| 100.0 + 20.0 * f64::from(n * 7 % 31)).collect::<Vec<_>>());
    for (n, run) in (1..).zip(&mut runs) {
        run.features = feature(f64::from(n * 7 % 31));
    }
    let history = History { task_and_user: runs, ..History::default() };
    let at = |x| predict(&history, &feature(x), 0.05).estimates[0].clone();
    assert!((at(10.0).expected - 300.0 * MIB).abs() < 15.0 * MIB, "{:?}", at(10.0));
    assert!((at(40.0).expected - 900.0 * MIB).abs() < 90.0 * MIB, "beyond what was seen: {:?}", at(40.0));
    assert!(at(10.0).reason.contains("rows"), "{}", at(10.0).reason);
    let explained = explain::explain(&history, &feature(10.0)).unwrap();
    assert_eq!((explained.features[0].name.as_str(), explained.features[0].used), ("rows", true));
    assert!(explained.candidates.windows(2).all(|w| w[0].expected_waste_gbh <= w[1].expected_waste_gbh));
    // Nothing known of the run: the line cannot speak.
    assert!(predict(&history, &[], 0.05).estimates[0].reason.contains("median"));
}

#[test]
fn a_change_is_followed() {
    let follows_after = |least: usize| {
        let mut mib = vec![400.0; least];
        mib.extend(vec![100.0; 60]);
        memory_estimate(&History { task_and_user: memory(&mib), ..History::default() })
    };
    assert_eq!(follows_after(0).expected, 100.0 * MIB);
    assert!(follows_after(1).upper < 200.0 * MIB, "one run is no change");
    let two = follows_after(2);
    assert!(two.upper > 400.0 * MIB && two.upper < 600.0 * MIB, "{two:?}");
    assert!((follows_after(4).expected - 400.0 * MIB).abs() < 20.0 * MIB, "{:?}", follows_after(4));
}

#[test]
fn a_run_at_its_limit_raises_the_bound_and_is_no_sample() {
    let mut runs = memory(&[300.0; 20]);
    runs.insert(0, run(Resource::MemoryPeakBytes, 800.0 * MIB, true));
    let estimate = memory_estimate(&History { task_and_user: runs, ..History::default() });
    assert_eq!((estimate.expected, estimate.samples), (300.0 * MIB, 20));
    assert_eq!(estimate.upper, 1000.0 * MIB);
    assert!(estimate.reason.contains("met its limit at 800.0 MiB"), "{}", estimate.reason);
}

#[test]
fn meeting_the_limit_again_doubles_it() {
    let mut runs = memory(&[300.0; 20]);
    runs.insert(0, run(Resource::MemoryPeakBytes, 800.0 * MIB, true));
    runs.insert(0, run(Resource::MemoryPeakBytes, 1000.0 * MIB, true));
    let estimate = memory_estimate(&History { task_and_user: runs, ..History::default() });
    assert_eq!(estimate.upper, 2000.0 * MIB);
    assert!(estimate.reason.contains("raised to 2×"), "{}", estimate.reason);
}

#[test]
fn nothing_but_runs_at_the_limit_still_gives_room() {
    let estimate = memory_estimate(&History {
        task_and_user: vec![run(Resource::MemoryPeakBytes, 500.0 * MIB, true)],
        host: memory(&[10.0]),
        ..History::default()
    });
    assert_eq!(estimate.level, Level::TaskAndUser);
    assert!(estimate.upper >= 2.0 * 500.0 * MIB);
}

#[test]
fn each_resource_backs_off_by_itself() {
    let prediction = predict(
        &History {
            task_and_user: memory(&[300.0]),
            task: vec![run(Resource::CpuCoresMean, 1.5, false)],
            host: vec![run(Resource::DurationS, 9.0, false), run(Resource::CpuCoresMean, 8.0, false)],
            ..History::default()
        },
        &[],
        0.05,
    );
    let level = |resource| prediction.estimate(resource).map(|estimate| estimate.level);
    assert_eq!(level(Resource::MemoryPeakBytes), Some(Level::TaskAndUser));
    assert_eq!(level(Resource::CpuCoresMean), Some(Level::Task));
    assert_eq!(level(Resource::DurationS), Some(Level::Host));
    assert_eq!(level(Resource::TasksPeak), None);
}

#[test]
fn runs_that_go_on_longer_than_any_that_ended_raise_the_bound() {
    let ended = || vec![run(Resource::DurationS, 10.0, false); 6];
    let upper = |running: Vec<Observation>| {
        let history = History { task_and_user: ended(), running, ..History::default() };
        predict(&history, &[], 0.05).estimate(Resource::DurationS).unwrap().upper
    };
    let alone = upper(Vec::new());
    let begun = upper(vec![run(Resource::DurationS, 0.5, false); 20]);
    assert!((begun - alone).abs() < 1e-9, "they have only begun: {begun} for {alone}");
    assert!(upper(vec![run(Resource::DurationS, 30.0, false); 20]) > 1.2 * alone);
}

fn any_value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        Just(None),
        any::<f64>().prop_map(Some),
        (0.0..1e12).prop_map(Some),
        prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, -0.0, 0.0, 1e300, 1e18, f64::MIN_POSITIVE])
            .prop_map(Some),
    ]
}

fn any_features() -> impl Strategy<Value = Vec<Feature>> {
    let name = prop::sample::select(vec!["a", "b", "hour_of_week", "input_bytes"]);
    let value = prop_oneof![
        any::<f64>().prop_map(FeatureValue::Number),
        (0.0..1e15).prop_map(FeatureValue::Number),
        "[xy]".prop_map(FeatureValue::Category),
    ];
    prop::collection::vec((name, value).prop_map(|(name, value)| Feature { name: name.into(), value }), 0..5)
}

fn any_runs() -> impl Strategy<Value = Vec<Observation>> {
    let run = (prop::array::uniform13(any_value()), any::<[bool; RESOURCES]>(), any_features())
        .prop_map(|(values, censored, features)| Observation { values, censored, features });
    prop::collection::vec(run, 0..60)
}

fn any_outcomes() -> impl Strategy<Value = Vec<Outcome>> {
    let number = || any_value().prop_map(|value| value.unwrap_or(1.0));
    let outcome =
        (prop::sample::select(Resource::ALL.to_vec()), prop::array::uniform4(number()), any::<usize>());
    let outcome =
        (outcome, any::<bool>()).prop_map(|((resource, [expected, width, risk, actual], samples), ended)| {
            Outcome { resource, expected, width, risk, samples, actual, ended }
        });
    prop::collection::vec(outcome, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn estimates_are_finite_and_ordered(
        task_and_user in any_runs(), task in any_runs(), host in any_runs(),
        running in any_runs(), outcomes in any_outcomes(), features in any_features(), risk in any::<f64>()
    ) {
        let history = History { task_and_user, task, host, running, outcomes };
        for estimate in predict(&history, &features, risk).estimates {
            prop_assert!(estimate.expected.is_finite() && estimate.expected >= 0.0, "{:?}", estimate);
            prop_assert!(estimate.upper.is_finite() && estimate.upper >= estimate.expected, "{:?}", estimate);
            prop_assert!(estimate.risk > 0.0 && estimate.risk < 1.0);
            prop_assert!(estimate.samples > 0 && !estimate.reason.is_empty());
        }
    }

    #[test]
    fn a_lower_risk_never_gives_a_lower_bound(values in prop::collection::vec(0.0..1e12, 1..100)) {
        let history = History {
            task_and_user: values.into_iter().map(|v| run(Resource::TasksPeak, v, false)).collect(),
            ..History::default()
        };
        let upper = |risk| predict(&history, &[], risk).estimates[0].upper;
        prop_assert!(upper(0.01) >= upper(0.05) && upper(0.05) >= upper(0.3));
    }
}

/// A measurement, not a test: `cargo test --release predict -- --nocapture`.
#[test]
fn time_of_a_prediction() {
    let runs: Vec<_> = (0..HISTORY_MAX)
        .map(|i| Observation {
            values: [Some(((i * 7919) % 1009) as f64); RESOURCES],
            censored: [i % 50 == 0; RESOURCES],
            features: Vec::new(),
        })
        .collect();
    let history =
        History { task_and_user: runs.clone(), task: runs.clone(), host: runs, ..History::default() };
    let started = std::time::Instant::now();
    let rounds = 200;
    for _ in 0..rounds {
        std::hint::black_box(predict(std::hint::black_box(&history), &[], 0.05));
    }
    eprintln!("predict, 256 runs of history: {:?}", started.elapsed() / rounds);
}
