//! Two records in, what happened between them out. Pure. A counter that went back (a task whose place was given to
//! another one, probes that were loaded anew) makes no rate.

use super::{HostNow, TaskNow, Totals};
use crate::fingerprint::{HISTOGRAM_BUCKETS, Histogram};
use crate::host::CpuTicks;
use serde::Serialize;

/// A task whose stalls take up more than this share of time is said to be held back.
const HELD_BACK: f64 = 0.1;

/// A task that used less of a core than this, and waited for as little, sleeps.
const SLEEPS_BELOW_CORES: f64 = 0.005;

/// What a task did between two looks. `None`: not measured, or only one look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Cores in use.
    pub cpu_cores: Option<f64>,
    /// Tasks, on average, that wanted a CPU and had none.
    pub cpu_waiting: Option<f64>,
    /// Share of the time in which some of its tasks waited for memory, 0 to 1.
    pub memory_stalled: Option<f64>,
    /// Share of quota periods in which the quota ran out, 0 to 1.
    pub throttled: Option<f64>,
    /// Block reads, bytes per second.
    pub read_bytes_per_s: Option<f64>,
    /// Block writes, bytes per second.
    pub write_bytes_per_s: Option<f64>,
    /// Network payload received, bytes per second.
    pub received_bytes_per_s: Option<f64>,
    /// Network payload sent, bytes per second.
    pub sent_bytes_per_s: Option<f64>,
    /// Page faults that waited for I/O, per second.
    pub faults_major_per_s: Option<f64>,
    /// What its servers did.
    pub service: Option<Service>,
}

/// Answers of a task's servers between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Service {
    /// Answers per second.
    pub answers_per_s: f64,
    /// Half of them took less, seconds: upper edge of the bucket, so at most twice as much as it was.
    pub median_s: f64,
    /// 99 % of them took less, seconds.
    pub p99_s: f64,
}

/// What a task spends its time on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A limit on memory, or a host without memory, stops it again and again.
    WaitsForMemory,
    /// Its CPU quota runs out.
    Throttled,
    /// It waits for a CPU longer than it has one.
    WaitsForCpu,
    /// It computes.
    Running,
    /// It computes next to nothing, but reads or writes storage.
    Io,
    /// It waits for something else.
    Sleeping,
    /// Not known.
    #[default]
    Unknown,
}

impl State {
    /// In a word or two.
    pub fn words(self) -> &'static str {
        match self {
            Self::WaitsForMemory => "mem wait",
            Self::Throttled => "throttled",
            Self::WaitsForCpu => "cpu wait",
            Self::Running => "running",
            Self::Io => "i/o",
            Self::Sleeping => "sleeping",
            Self::Unknown => "-",
        }
    }
}

impl Rates {
    /// What `now` did since `before`; nothing if these are two tasks.
    pub fn between(before: &TaskNow, now: &TaskNow) -> Self {
        let seconds = now.clock_ns.saturating_sub(before.clock_ns) as f64 / 1e9;
        if before.id != now.id || seconds <= 0.0 {
            return Self::default();
        }
        let grown = |of: fn(&Totals) -> Option<u64>| of(&now.totals)?.checked_sub(of(&before.totals)?);
        let per_s = |of| grown(of).map(|count| count as f64 / seconds);
        let share = |part: Option<u64>, whole: f64| {
            part.map(|part| if whole > 0.0 { (part as f64 / whole).min(1.0) } else { 0.0 })
        };
        let periods = grown(|t| t.quota_periods).unwrap_or(0) as f64;
        Self {
            cpu_cores: per_s(|t| t.cpu_ns).map(|ns| ns / 1e9),
            cpu_waiting: per_s(|t| t.cpu_wait_ns).map(|ns| ns / 1e9),
            memory_stalled: share(grown(|t| t.memory_stalled_us), seconds * 1e6),
            throttled: share(grown(|t| t.quota_periods_throttled), periods),
            read_bytes_per_s: per_s(|t| t.read_bytes),
            write_bytes_per_s: per_s(|t| t.write_bytes),
            received_bytes_per_s: per_s(|t| t.received_bytes),
            sent_bytes_per_s: per_s(|t| t.sent_bytes),
            faults_major_per_s: per_s(|t| t.faults_major),
            service: Service::between(before.totals.service_ns, now.totals.service_ns, seconds),
        }
    }

    /// What the task spends its time on.
    pub fn state(&self) -> State {
        let Some(cores) = self.cpu_cores else { return State::Unknown };
        let waiting = self.cpu_waiting.unwrap_or(0.0);
        let bytes = |rate: Option<f64>| rate.unwrap_or(0.0);
        match () {
            () if self.memory_stalled.unwrap_or(0.0) > HELD_BACK => State::WaitsForMemory,
            () if self.throttled.unwrap_or(0.0) > HELD_BACK => State::Throttled,
            () if waiting > cores && waiting > HELD_BACK => State::WaitsForCpu,
            () if bytes(self.read_bytes_per_s) + bytes(self.write_bytes_per_s) > 0.0 && cores < 0.5 => {
                State::Io
            }
            () if cores.max(waiting) >= SLEEPS_BELOW_CORES => State::Running,
            () => State::Sleeping,
        }
    }
}

impl Service {
    fn between(before: Option<Histogram>, now: Option<Histogram>, seconds: f64) -> Option<Self> {
        let (before, now) = (before?, now?);
        let grown: Histogram = std::array::from_fn(|bucket| now[bucket].saturating_sub(before[bucket]));
        Self::of(&grown, seconds)
    }

    /// Of what a histogram holds that took `seconds` to fill; `None` if that is nothing.
    pub fn of(histogram: &Histogram, seconds: f64) -> Option<Self> {
        let answers: u64 = histogram.iter().sum();
        (answers > 0).then(|| Self {
            answers_per_s: answers as f64 / seconds,
            median_s: quantile_s(histogram, 0.5),
            p99_s: quantile_s(histogram, 0.99),
        })
    }
}

/// The upper edge of the bucket in which a share `q` of the values is reached, seconds.
pub fn quantile_s(histogram: &Histogram, q: f64) -> f64 {
    let wanted = (histogram.iter().sum::<u64>() as f64 * q).ceil().max(1.0) as u64;
    let mut seen = 0;
    let bucket = histogram.iter().position(|count| {
        seen += count;
        seen >= wanted
    });
    let bucket = bucket.unwrap_or(HISTOGRAM_BUCKETS - 1);
    (1_u64 << (bucket + 1)) as f64 / 1e9
}

/// What the host's CPUs did between two looks, cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct HostRates {
    /// In user mode.
    pub user_cores: f64,
    /// In the kernel.
    pub system_cores: f64,
    /// Taken away by the hypervisor.
    pub stolen_cores: f64,
}

impl HostRates {
    /// `None` if no tick passed.
    pub fn between(before: &HostNow, now: &HostNow) -> Option<Self> {
        let grown = |of: fn(&CpuTicks) -> u64| of(&now.ticks).saturating_sub(of(&before.ticks)) as f64;
        let all = grown(CpuTicks::all);
        let cores = |of| grown(of) / all * now.cpus as f64;
        (all > 0.0).then(|| Self {
            user_cores: cores(|ticks| ticks.user),
            system_cores: cores(|ticks| ticks.system),
            stolen_cores: cores(|ticks| ticks.stolen),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(seconds: u64, totals: Totals) -> TaskNow {
        TaskNow { id: 7, clock_ns: seconds * 1_000_000_000, totals, ..TaskNow::default() }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let mut service = [0; HISTOGRAM_BUCKETS];
        let before = task(
            10,
            Totals {
                cpu_ns: Some(1_000_000_000),
                read_bytes: Some(500),
                service_ns: Some(service),
                quota_periods: Some(10),
                quota_periods_throttled: Some(1),
                ..Totals::default()
            },
        );
        (service[20], service[25]) = (98, 2);
        let now = task(
            12,
            Totals {
                cpu_ns: Some(4_000_000_000),
                read_bytes: Some(2500),
                service_ns: Some(service),
                quota_periods: Some(30),
                quota_periods_throttled: Some(6),
                ..Totals::default()
            },
        );
        let rates = Rates::between(&before, &now);
        assert_eq!(
            (rates.cpu_cores, rates.read_bytes_per_s, rates.throttled),
            (Some(1.5), Some(1000.0), Some(0.25))
        );
        assert_eq!(rates.sent_bytes_per_s, None, "what is not measured is not zero");
        let answered = rates.service.unwrap();
        assert_eq!(answered.answers_per_s, 50.0);
        assert!((answered.median_s - 0.002_097).abs() < 1e-5, "{answered:?}");
        assert!((answered.p99_s - 0.067_108).abs() < 1e-5, "{answered:?}");
        assert_eq!(rates.state(), State::Throttled);
    }

    #[test]
    fn another_task_and_counters_that_went_back_make_no_rate() {
        let totals = |cpu_ns| Totals { cpu_ns: Some(cpu_ns), ..Totals::default() };
        assert_eq!(Rates::between(&task(1, totals(9)), &task(2, totals(3))).cpu_cores, None);
        let other = TaskNow { id: 8, ..task(2, totals(20)) };
        assert_eq!(Rates::between(&task(1, totals(9)), &other), Rates::default());
        assert_eq!(Rates::between(&task(1, totals(9)), &task(1, totals(9))), Rates::default());
        assert_eq!(Rates::default().state(), State::Unknown);
    }

    #[test]
    fn a_task_is_what_it_spends_its_time_on() {
        let spends = |cores, waiting, reads, stalled| {
            let rates = Rates {
                cpu_cores: Some(cores),
                cpu_waiting: Some(waiting),
                read_bytes_per_s: Some(reads),
                memory_stalled: Some(stalled),
                ..Rates::default()
            };
            rates.state()
        };
        assert_eq!(spends(0.9, 0.1, 0.0, 0.0), State::Running);
        assert_eq!(spends(0.4, 0.6, 0.0, 0.0), State::WaitsForCpu);
        assert_eq!(spends(0.1, 0.0, 9e6, 0.0), State::Io);
        assert_eq!(spends(0.0, 0.0, 0.0, 0.0), State::Sleeping);
        assert_eq!(spends(0.5, 0.0, 0.0, 0.4), State::WaitsForMemory);
    }

    #[test]
    fn the_hosts_cores_add_up() {
        let host = |user, idle| HostNow {
            cpus: 4,
            ticks: CpuTicks { user, idle, ..CpuTicks::default() },
            ..HostNow::default()
        };
        let rates = HostRates::between(&host(100, 100), &host(200, 400)).unwrap();
        assert_eq!((rates.user_cores, rates.system_cores), (1.0, 0.0));
        assert_eq!(HostRates::between(&host(1, 1), &host(1, 1)), None);
    }
}
