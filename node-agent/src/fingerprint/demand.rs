//! What a task demands of the CPUs at the time scales that quotas work at: sums and histograms over windows
//! of 10 ms, 100 ms and 1 s in (`ebpf_probes::demand`), the figures that sizing wants out.
//!
//! With `d` the cores used in a window of length `s`, over all `n` windows of the run, idle ones included (the
//! first and the last are cut off by its start and end, which tells in runs of few windows):
//!
//! * mean `m = Σd / n`, variance `v = Σd² / n − m²`, peak `max d`, peak-to-mean `max d / m`;
//! * index of dispersion `I(s) = s·v / m`, in milliseconds: variance over mean of the CPU time per window
//!   (Gusella, "Characterizing the Variability of Arrival Processes with Indexes of Dispersion", IEEE JSAC 9(2),
//!   1991). Work that comes in independent lumps of `u` ms has `I(s) = u` at every scale; an `I` that grows
//!   with `s` tells of bursts that last;
//! * sustained load: the 0.95 quantile of `d` at 1 s;
//! * quota and burst that would throttle in at most a share `x` of periods: the token bucket that the
//!   `1 − x` quantiles of work per window conform to, `A(s) ≤ quota·s + burst` (Cruz, "A Calculus for Network
//!   Delay, Part I", IEEE Trans. Inf. Theory 37(1), 1991). The rate is taken at 1 s and the burst from the
//!   100 ms windows, which are the kernel's quota periods; `cpu.max.burst` may not exceed the quota of a
//!   period (`tg_set_cfs_bandwidth`, kernel/sched/core.c), so the rate is raised where it would.
//!
//! A quantile is the upper edge of its bucket, at most an eighth above the value, and never above the peak.

use ebpf_probes::demand::{DEMAND_BUCKETS, SCALE_WINDOWS, SCALES, Scale, WINDOW_NS, bucket_lower_us};
use serde::{Deserialize, Serialize};

/// Quota period of the kernel, seconds.
const PERIOD_S: f64 = 0.1;

/// Which quantile of the 1 s windows is the sustained load.
const SUSTAINED: f64 = 0.95;

/// Demand at three scales, the finest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuDemand(pub Vec<Windows>);

/// All windows of one length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// Length: 10, 100 or 1000.
    pub window_ms: u64,
    /// How many there were, idle ones included.
    pub windows: u64,
    /// Those in which CPU was used.
    pub busy: u64,
    /// CPU time in all, microseconds.
    pub cpu_us: u64,
    /// Sum of (thousandths of a core)².
    pub squares: u64,
    /// Most CPU time in a window, microseconds.
    pub peak_us: u64,
    /// Most CPUs that one window saw it on, no fewer than tasks that ran at once; 10 ms windows only, else 0.
    pub cpus_peak: u64,
    /// Shares of a CPU that came too late and counted as windows of their own: 0 when all is exact.
    pub late: u64,
    /// Busy windows by bucket (`ebpf_probes::demand::bucket`).
    pub counts: Vec<u64>,
}

/// What a CPU quota should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Cores: quota over period.
    pub cores: f64,
    /// CPU time that may be saved up and used at once, microseconds (`cpu.max.burst`).
    pub burst_us: u64,
}

impl CpuDemand {
    /// From the probes' sums over a run that has lasted `elapsed_ns`.
    pub fn new(scales: &[Scale; SCALES], elapsed_ns: u64) -> Self {
        let windows = scales.iter().zip(SCALE_WINDOWS).map(|(scale, length)| Windows {
            window_ms: length * WINDOW_NS / 1_000_000,
            windows: scale.busy.max(elapsed_ns.div_ceil(length * WINDOW_NS)),
            busy: scale.busy,
            cpu_us: scale.cpu_us,
            squares: scale.squares,
            peak_us: scale.peak_us,
            cpus_peak: scale.cpus_peak,
            late: scale.late,
            counts: scale.counts.to_vec(),
        });
        Self(windows.collect())
    }

    /// Windows of 10 ms.
    pub fn finest(&self) -> Option<&Windows> {
        self.0.first()
    }

    /// The cores that are enough for 95 % of quota periods (100 ms).
    pub fn cores_per_period(&self) -> Option<f64> {
        self.0.get(1).map(|period| period.quantile(SUSTAINED))
    }

    /// The cores that are enough for 95 % of seconds.
    pub fn sustained_cores(&self) -> Option<f64> {
        self.0.last().map(|second| second.quantile(SUSTAINED))
    }

    /// The quota that would throttle in at most `share` of periods.
    pub fn quota(&self, share: f64) -> Option<Quota> {
        let (period, second) = (self.0.get(1)?, self.0.get(2)?);
        if second.windows == 0 {
            return None;
        }
        let mean = self.finest().map_or(0.0, Windows::mean);
        Some(Quota::of(period.quantile(1.0 - share), second.quantile(1.0 - share), mean))
    }
}

impl Quota {
    /// For a task that is to have `in_period` cores in a period of 100 ms and `in_second` cores for long, and takes `mean`
    /// in all.
    pub fn of(in_period: f64, in_second: f64, mean: f64) -> Self {
        let cores = in_second.max(mean).max(in_period / 2.0);
        let burst_s = ((in_period - cores) * PERIOD_S).max(0.0);
        Self { cores, burst_us: (burst_s * 1e6).ceil() as u64 }
    }

    /// What may be saved up, cores times the period.
    pub fn burst_cores(self) -> f64 {
        self.burst_us as f64 / (PERIOD_S * 1e6)
    }
}

impl Windows {
    /// Where this is in the list of scales.
    fn scale(&self) -> usize {
        let length = self.window_ms * 1_000_000 / WINDOW_NS;
        SCALE_WINDOWS.iter().position(|&windows| windows == length).unwrap_or(0)
    }

    fn cores(&self, us: f64) -> f64 {
        us / (self.window_ms as f64 * 1e3)
    }

    /// Mean, cores.
    pub fn mean(&self) -> f64 {
        if self.windows == 0 { 0.0 } else { self.cores(self.cpu_us as f64) / self.windows as f64 }
    }

    /// Most cores in a window.
    pub fn peak(&self) -> f64 {
        self.cores(self.peak_us as f64)
    }

    /// Peak over mean; `None` for a task that used nothing.
    pub fn peak_to_mean(&self) -> Option<f64> {
        (self.cpu_us > 0).then(|| self.peak() / self.mean())
    }

    /// Variance, cores².
    pub fn variance(&self) -> f64 {
        let mean_square = self.squares as f64 / 1e6 / self.windows.max(1) as f64;
        (mean_square - self.mean().powi(2)).max(0.0)
    }

    /// Index of dispersion, milliseconds; `None` for a task that used nothing.
    pub fn dispersion_ms(&self) -> Option<f64> {
        (self.cpu_us > 0).then(|| self.variance() / self.mean() * self.window_ms as f64)
    }

    /// The cores that are enough for a share `q` of windows, idle ones included.
    pub fn quantile(&self, q: f64) -> f64 {
        let wanted = (q * self.windows as f64).ceil() as u64;
        let mut seen = self.windows.saturating_sub(self.busy);
        if seen >= wanted {
            return 0.0;
        }
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return self.upper(bucket).min(self.peak());
            }
        }
        self.peak()
    }

    /// Share of the CPU time that was used in windows of at least so many cores, by buckets.
    pub fn share_from(&self, cores: f64) -> f64 {
        let middle = |bucket: usize| (self.lower(bucket) + self.upper(bucket)) / 2.0;
        let used = |from: f64| -> f64 {
            let buckets =
                self.counts.iter().enumerate().map(|(bucket, &count)| (middle(bucket), count as f64));
            buckets.filter(|(cores, _)| *cores >= from).map(|(cores, count)| cores * count).sum()
        };
        used(cores) / used(0.0).max(f64::MIN_POSITIVE)
    }

    /// Upper edge of a bucket, cores; what is in the last one may be above it.
    pub fn upper(&self, bucket: usize) -> f64 {
        self.lower((bucket + 1).min(DEMAND_BUCKETS))
    }

    /// Lower edge of a bucket, cores.
    pub fn lower(&self, bucket: usize) -> f64 {
        self.cores(bucket_lower_us(self.scale(), bucket) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_probes::demand::{DEMAND_WORDS, Demand, Words, bucket, settle};
    use std::cell::RefCell;

    /// Words of one thread.
    struct Plain(RefCell<Vec<u64>>);

    impl Words for Plain {
        fn load(&self, word: usize) -> u64 {
            self.0.borrow()[word]
        }
        fn fetch_add(&self, word: usize, value: u64) -> u64 {
            let words = &mut self.0.borrow_mut();
            let before = words[word];
            words[word] = before.wrapping_add(value);
            before
        }
        fn exchange(&self, word: usize, _old: u64, new: u64) -> Result<(), u64> {
            self.0.borrow_mut()[word] = new;
            Ok(())
        }
        fn raise(&self, word: usize, value: u64) {
            let words = &mut self.0.borrow_mut();
            words[word] = words[word].max(value);
        }
    }

    /// Demand of shares given as (finest window, microseconds).
    fn demand(shares: &[(u64, u64)], elapsed_ms: u64) -> CpuDemand {
        let words = Plain(RefCell::new(vec![0; DEMAND_WORDS]));
        shares.iter().for_each(|&(window, us)| settle(&words, window, us));
        let words: [u64; DEMAND_WORDS] = words.0.into_inner().try_into().unwrap();
        // SAFETY: repr(C) with 64-bit integers only.
        let demand = unsafe { std::mem::transmute::<[u64; DEMAND_WORDS], Demand>(words) };
        CpuDemand::new(&demand.scales, elapsed_ms * 1_000_000)
    }

    #[test]
    fn buckets_and_edges_agree() {
        for scale in 0..SCALES {
            for bucket_number in 0..DEMAND_BUCKETS {
                let lower = bucket_lower_us(scale, bucket_number);
                assert_eq!(bucket(scale, lower), bucket_number, "scale {scale}");
                assert_eq!(bucket(scale, bucket_lower_us(scale, bucket_number + 1) - 1), bucket_number);
            }
            assert_eq!(bucket(scale, u64::from(u32::MAX) << 4), DEMAND_BUCKETS - 1);
        }
    }

    #[test]
    fn shares_of_one_window_add_up_in_any_order() {
        // Two CPUs busy in windows 100 and 101; the second tells late.
        let demand = demand(&[(100, 10_000), (101, 10_000), (101, 5_000), (100, 10_000)], 1000);
        let finest = demand.finest().unwrap();
        assert_eq!((finest.windows, finest.busy, finest.cpu_us), (100, 2, 35_000));
        assert_eq!((finest.peak_us, finest.cpus_peak, finest.late), (20_000, 2, 0));
        assert_eq!(finest.counts.iter().sum::<u64>(), 2);
        assert_eq!(finest.counts[bucket(0, 20_000)], 1);
        assert_eq!(finest.counts[bucket(0, 15_000)], 1);
        assert_eq!(finest.squares, 2000 * 2000 + 1500 * 1500);
        assert_eq!(demand.0[2].counts[bucket(2, 35_000)], 1);
    }

    #[test]
    fn what_comes_too_late_is_told() {
        let demand = demand(&[(100, 4_000), (100 + 512, 4_000), (100, 4_000)], 10_000);
        let finest = demand.finest().unwrap();
        assert_eq!((finest.busy, finest.late, finest.cpu_us), (3, 1, 12_000));
        assert_eq!((demand.0[1].busy, demand.0[1].late), (2, 0), "100 ms windows are kept for longer");
    }

    #[test]
    fn figures_are_those_of_the_formulas() {
        // One core for 100 ms, then 900 ms of nothing, ten times over.
        let shares: Vec<_> = (0..1000).filter(|window| window % 100 < 10).map(|w| (w, 10_000)).collect();
        let demand = demand(&shares, 10_000);
        let [finest, period, second] = &demand.0[..] else { panic!("{demand:?}") };
        for windows in &demand.0 {
            assert!((windows.mean() - 0.1).abs() < 1e-9, "{windows:?}");
        }
        assert_eq!((finest.peak(), period.peak(), second.peak()), (1.0, 1.0, 0.1));
        assert!((finest.variance() - 0.09).abs() < 1e-9 && second.variance() < 1e-9);
        assert!((finest.dispersion_ms().unwrap() - 9.0).abs() < 1e-9);
        assert!((period.dispersion_ms().unwrap() - 90.0).abs() < 1e-9);
        assert_eq!(finest.peak_to_mean(), Some(10.0));
        assert_eq!((finest.quantile(0.5), finest.quantile(0.95)), (0.0, 1.0));
        assert_eq!(demand.sustained_cores(), Some(0.1));
        assert_eq!(
            (finest.share_from(0.9), finest.share_from(1.2), second.share_from(0.09)),
            (1.0, 0.0, 1.0)
        );
        assert_eq!(Windows::default().share_from(0.0), 0.0);
        // Half a core by rule (burst at most the quota), and the other half saved up.
        let quota = demand.quota(0.05).unwrap();
        assert_eq!((quota.cores, quota.burst_us), (0.5, 50_000));
        // A tenth of the periods may be throttled: then a tenth of a core does.
        let quota = demand.quota(0.1).unwrap();
        assert!((quota.cores - 0.1).abs() < 1e-9 && quota.burst_us == 0, "{quota:?}");
    }

    #[test]
    fn a_steady_task_needs_no_burst() {
        let shares: Vec<_> = (0..1000).map(|window| (window, 5_000)).collect();
        let demand = demand(&shares, 10_000);
        let quota = demand.quota(0.01).unwrap();
        assert!((quota.cores - 0.5).abs() < 1e-9 && quota.burst_us == 0, "{quota:?}");
        assert!(demand.finest().unwrap().dispersion_ms().unwrap() < 1e-9);
    }
}
