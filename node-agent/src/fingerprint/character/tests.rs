use super::*;
use crate::fingerprint::demand::Windows;
use crate::fingerprint::sentence::sentence;
use ebpf_probes::demand::{DEMAND_BUCKETS, bucket};
use proptest::prelude::*;

/// A run of 10 s whose demand has this mean and standard deviation at 100 ms, and these peaks at 10 ms, 100 ms, 1 s, with
/// all its CPU time in them.
fn with_cpu(mean: f64, deviation: f64, peaks: [f64; 3]) -> Fingerprint {
    let windows = |(window_ms, peak): (u64, f64)| {
        let windows = 10_000 / window_ms;
        let (cpu_us, peak_us) = ((mean * 10e6) as u64, (peak * window_ms as f64 * 1e3) as u64);
        let mut counts = vec![0; DEMAND_BUCKETS];
        counts[bucket([10, 100, 1000].iter().position(|&ms| ms == window_ms).unwrap(), peak_us)] =
            cpu_us / peak_us;
        Windows {
            window_ms,
            windows,
            busy: windows,
            cpu_us,
            squares: (windows as f64 * 1e6 * (mean * mean + deviation * deviation)) as u64,
            peak_us,
            cpus_peak: 1,
            late: 0,
            counts,
        }
    };
    Fingerprint {
        duration_ns: 10_000_000_000,
        cpu_ns: Some((mean * 10e9) as u64),
        cpu_demand: Some(CpuDemand([10, 100, 1000].into_iter().zip(peaks).map(windows).collect())),
        ..Fingerprint::default()
    }
}

fn said(fingerprint: &Fingerprint) -> String {
    sentence(&Character::new(fingerprint, &[], None))
}

fn course(memory: impl Iterator<Item = u64>) -> Vec<Point> {
    let point = |(i, memory_bytes): (usize, u64)| Point {
        at_ms: (i as u64 + 1) * 100,
        length_ms: 100,
        memory_bytes,
        ..Point::default()
    };
    memory.enumerate().map(point).collect()
}

#[test]
fn a_burst_is_told_with_its_height_and_length() {
    // 4 cores for 120 ms, every now and then: 0.48 of a second's core.
    let bursty = with_cpu(0.3, 0.9, [4.0, 4.0, 0.48]);
    assert_eq!(said(&bursty), "Bursty CPU: 0.30 cores on average, 4.00 at peak for about 120 ms.");
    let long = with_cpu(0.3, 0.9, [4.0, 3.9, 3.5]);
    assert_eq!(said(&long), "Bursty CPU: 0.30 cores on average, 3.50 at peak for a second or more.");
    assert_eq!(said(&with_cpu(0.9, 0.1, [1.0, 1.0, 1.0])), "Steady CPU: 0.90 cores.");
    let varying = "Varying CPU: 0.90 cores on average, 1.90 at peak.";
    assert_eq!(said(&with_cpu(0.9, 0.4, [1.9, 1.9, 1.0])), varying);
    assert_eq!(said(&with_cpu(0.01, 0.1, [1.0, 0.1, 0.1])), "Hardly any CPU.");
}

#[test]
fn one_high_window_makes_no_bursty_task() {
    // A tenth of a core all the time, and once half a core for 100 ms.
    let mut even = with_cpu(0.1, 0.05, [0.6, 0.5, 0.2]);
    for (scale, windows) in even.cpu_demand.as_mut().unwrap().0.iter_mut().enumerate() {
        windows.counts = vec![0; DEMAND_BUCKETS];
        windows.counts[bucket(scale, windows.window_ms * 100)] = windows.windows - 1;
        windows.counts[bucket(scale, windows.peak_us)] = 1;
    }
    assert_eq!(said(&even), "Varying CPU: 0.10 cores on average, 0.50 at peak.");
}

#[test]
fn what_was_not_measured_is_not_claimed() {
    assert_eq!(said(&Fingerprint::default()), "");
    let short = Fingerprint { duration_ns: 1_000_000, cpu_ns: Some(900_000), ..Fingerprint::default() };
    assert_eq!(said(&short), "0.90 cores on average.");
    let few = Fingerprint {
        duration_ns: 1_000_000_000,
        block_read_bytes: Some(4 << 20),
        block_read_ops: Some(ORDER_REQUESTS - 1),
        block_read_sequential: Some(ORDER_REQUESTS - 1),
        ..Fingerprint::default()
    };
    assert_eq!(said(&few), "Reads 4.0 MiB, 132.1 KiB at a time, 4.0 MiB/s.");
    let slow = Fingerprint { duration_ns: 100_000_000_000, ..few };
    assert_eq!(said(&slow), "Reads 4.0 MiB in all.", "a program that was loaded");
}

#[test]
fn order_of_io_by_its_share() {
    let order = |ordered| io(1.0, Some(400 << 12), Some(400), Some(ordered)).unwrap().order;
    assert_eq!(order(400), Some(Order::Sequential));
    assert_eq!(order(240), Some(Order::Sequential));
    assert_eq!(order(200), Some(Order::Partly(0.5)));
    assert_eq!(order(80), Some(Order::Random));
}

#[test]
fn shapes_of_memory() {
    assert_eq!(memory_shape(&course((0..100).map(|_| 500))), Some(MemoryShape::Held));
    assert_eq!(memory_shape(&course((1..=100).map(|i| i * 10))), Some(MemoryShape::Growing));
    let spike = course((0..100).map(|i| if (50..55).contains(&i) { 1000 } else { 100 }));
    assert_eq!(memory_shape(&spike), Some(MemoryShape::Spike));
    assert_eq!(memory_shape(&course((0..5).map(|_| 500))), None);
    assert_eq!(memory_shape(&course((0..50).map(|_| 0))), None);
}

#[test]
fn growth_needs_runs_and_correlation() {
    let fingerprint = Fingerprint { memory_peak_bytes: Some(300 << 20), ..Fingerprint::default() };
    let with = |correlation, runs| {
        let growth = Growth { feature: "input_bytes", correlation, runs };
        sentence(&Character::new(&fingerprint, &[], Some(growth)))
    };
    assert_eq!(with(0.95, 9), "300.0 MiB of memory, more for larger inputs.");
    assert_eq!(with(0.95, GROWTH_RUNS - 1), "300.0 MiB of memory.");
    assert_eq!(with(-0.95, 9), "300.0 MiB of memory.");
}

#[test]
fn a_server_is_told_by_its_answers() {
    let mut times = [0; 32];
    times[15] = 980;
    times[20] = 20;
    let fingerprint = Fingerprint {
        duration_ns: 1_000_000_000,
        tcp_service_ns: Some(times),
        tcp_sent_bytes: Some(3 << 20),
        ..Fingerprint::default()
    };
    let expected = "Answers 1,000 requests, half within 66 µs, 99 % within 2.1 ms; sends 3.0 MiB/s.";
    assert_eq!(said(&fingerprint), expected);
    assert_eq!(Character::new(&fingerprint, &[], None).traits(), ["server"]);
}

/// `docs/fingerprints.md` has every threshold with the value that is used.
#[test]
fn the_page_has_the_thresholds() {
    let page = include_str!("../../../docs/fingerprints.md");
    let thresholds = [
        ("IDLE_CORES", IDLE_CORES),
        ("SHAPE_WINDOWS", SHAPE_WINDOWS as f64),
        ("STEADY_VARIATION", STEADY_VARIATION),
        ("BURST_TO_MEAN", BURST_TO_MEAN),
        ("BURSTS_SHARE", BURSTS_SHARE),
        ("LASTING_SHARE", LASTING_SHARE),
        ("KERNEL_SHARE", KERNEL_SHARE),
        ("KERNEL_CPU_S", KERNEL_CPU_S),
        ("WAITING_SHARE", WAITING_SHARE),
        ("WAITING_S", WAITING_S),
        ("SHAPE_POINTS", SHAPE_POINTS as f64),
        ("TOUCH_FAULTS", TOUCH_FAULTS as f64),
        ("TOUCH_SHARE", TOUCH_SHARE),
        ("ORDER_REQUESTS", ORDER_REQUESTS as f64),
        ("TOLD_BYTES", TOLD_BYTES as f64),
        ("MUCH_BYTES_PER_S", MUCH_BYTES_PER_S),
        ("MUCH_REQUESTS_PER_S", MUCH_REQUESTS_PER_S),
        ("SEQUENTIAL_SHARE", SEQUENTIAL_SHARE),
        ("RANDOM_SHARE", RANDOM_SHARE),
        ("SERVED_REQUESTS", SERVED_REQUESTS as f64),
        ("PROGRAMS", PROGRAMS as f64),
        ("GROWTH_RUNS", GROWTH_RUNS as f64),
        ("GROWTH_CORRELATION", GROWTH_CORRELATION),
    ];
    for (name, value) in thresholds {
        let cell = format!("| `{name}` | {value} |");
        assert!(page.contains(&cell), "the page lacks {cell:?}");
    }
}

proptest! {
    /// Whatever the numbers: one line, ends with a full stop, no NaN.
    #[test]
    fn any_numbers_make_a_sentence(
        numbers in prop::collection::vec(prop::option::of(prop_oneof![Just(0), Just(u64::MAX / 8), 0_u64..1 << 40]), 14),
        duration_ns in prop_oneof![Just(0), 0_u64..1 << 50],
    ) {
        let n = |i: usize| numbers[i];
        let fingerprint = Fingerprint {
            duration_ns,
            cpu_ns: n(0), cpu_system_ns: n(1), cpu_wait_ns: n(2), memory_peak_bytes: n(3),
            faults_sequential: n(4), faults_strided: n(5), faults_random: n(6),
            block_read_bytes: n(7), block_read_ops: n(8), block_read_sequential: n(9),
            tcp_sent_bytes: n(10), udp_sent_bytes: n(11), execs: n(12), block_flush_ops: n(13),
            ..Fingerprint::default()
        };
        let text = said(&fingerprint);
        prop_assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains('\n'), "{text}");
        prop_assert!(text.is_empty() || text.ends_with('.'));
    }
}
