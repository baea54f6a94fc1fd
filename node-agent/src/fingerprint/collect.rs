//! Samples of a running task in, its fingerprint and its course over time out.
//!
//! Totals come from the last sample. What no total tells (memory in use, cores at peak) is sampled: often at
//! first, so that short runs have a course too, then once a second (see [`Collector::interval`]). Cores at
//! peak are means over windows of at least [`CORES_WINDOW_NS`].

use super::demand::CpuDemand;
use super::series::{Point, Series};
use super::{Coverage, Fingerprint, Histogram, Peer, Source};
use crate::cgroup::Accounts;
use crate::fingerprint::Measured;
use crate::host;
use crate::probe::Measure;
use ebpf_probes::demand::{SCALES, Scale};
use ebpf_probes::{Counters, Shared};
use std::time::Duration;

/// Shortest window that counts for [`Fingerprint::cpu_cores_peak`]: shorter ones say more about the
/// scheduler's slices than about the task.
pub const CORES_WINDOW_NS: u64 = 100_000_000;

/// What is said where the kernel did not show the probe every switch.
const UNSEEN: &str = "the kernel did not show every switch: waits and faults are lower bounds";

/// Shortest and longest pause between two samples.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Shortest stretch of a course: two looks right after another (a sample and a record) are one.
const STRETCH_MIN_NS: u64 = 5_000_000;

/// The interval grows with the run: a sixteenth of what has passed.
const INTERVAL_SHARE: u32 = 16;

/// The measures that are real for a task. The counters of others become `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures(pub Vec<Measure>);

impl Measures {
    /// Whether a measure is real.
    pub fn has(&self, measure: Measure) -> bool {
        self.0.contains(&measure)
    }
}

/// One look at a running task.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Time since the start of the run.
    pub elapsed_ns: u64,
    /// The probes' counters, summed over CPUs, where the task is tracked.
    pub counted: Option<(Counters, Shared)>,
    /// The cgroup's own accounts.
    pub accounts: Accounts,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Collector {
    measures: Measures,
    coverage: Coverage,
    /// What an agent before this one had measured of the same run: its totals where nothing counts on.
    before: Fingerprint,
    series: Series,
    last: Sample,
    /// The sample that the last stretch of the course ends with.
    stretch: Sample,
    /// CPU demand when it was looked at last.
    demand: Option<[Scale; SCALES]>,
    /// Start of the window for cores at peak: elapsed and CPU time.
    window: (u64, u64),
    cores_peak: Option<f64>,
    memory_peak: Option<u64>,
    working_set: Option<u64>,
    peers: Option<Vec<Peer>>,
}

impl Collector {
    /// For a run that begins now.
    pub fn new(measures: Measures, coverage: Coverage) -> Self {
        Self::resume(measures, coverage, Measured::default())
    }

    /// For a run that was measured before. Counters that are sampled from now on begin with what it had.
    pub fn resume(measures: Measures, coverage: Coverage, before: Measured) -> Self {
        Self {
            measures,
            coverage,
            cores_peak: before.fingerprint.cpu_cores_peak,
            memory_peak: before.fingerprint.memory_peak_bytes,
            working_set: before.fingerprint.memory_working_set_bytes,
            peers: None,
            before: before.fingerprint,
            series: before.series,
            last: Sample::default(),
            stretch: Sample::default(),
            demand: None,
            window: (0, 0),
        }
    }

    /// Sets where counting starts, for a task that has used something before.
    pub fn start_at(&mut self, sample: Sample) {
        self.window = (sample.elapsed_ns, sample.accounts.cpu_ns.unwrap_or(0));
        (self.last, self.stretch) = (sample, sample);
    }

    /// What is real for this task.
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// The last sample.
    pub fn last(&self) -> &Sample {
        &self.last
    }

    /// How long to wait until the next sample.
    pub fn interval(elapsed: Duration) -> Duration {
        (elapsed / INTERVAL_SHARE).clamp(INTERVAL_MIN, INTERVAL_MAX)
    }

    /// Takes a sample in.
    pub fn sample(&mut self, sample: Sample) {
        self.memory_peak = self.memory_peak.max(sample.accounts.memory_bytes);
        self.working_set = self.working_set.max(sample.accounts.working_set_bytes);
        self.close_window(&sample);
        self.last = sample;
        self.end_stretch(STRETCH_MIN_NS);
    }

    /// Adds what happened since the last stretch to the course, if that is at least `least_ns`.
    fn end_stretch(&mut self, least_ns: u64) {
        let (before, now) = (&self.stretch, &self.last);
        let length_ns = now.elapsed_ns.saturating_sub(before.elapsed_ns);
        let (from_ms, at_ms) = (before.elapsed_ns / 1_000_000, now.elapsed_ns / 1_000_000);
        // Two samples within a millisecond would be two points of one time, and the database keeps one.
        if length_ns >= least_ns && at_ms > from_ms {
            let rate = |of: fn(&Counters) -> u64| {
                let total = |sample: &Sample| sample.counted.map_or(0, |(counters, _)| of(&counters));
                total(now).saturating_sub(total(before)) as f64 * 1e9 / length_ns as f64
            };
            let cpu = |sample: &Sample| sample.accounts.cpu_ns.unwrap_or(0);
            self.series.push(Point {
                at_ms,
                length_ms: at_ms - from_ms,
                cpu_cores: cpu(now).saturating_sub(cpu(before)) as f64 / length_ns as f64,
                memory_bytes: now.accounts.memory_bytes.unwrap_or(0),
                read_bytes_per_s: rate(|c| c.block_read_bytes),
                write_bytes_per_s: rate(|c| c.block_write_bytes),
                received_bytes_per_s: rate(|c| c.tcp_received_bytes + c.udp_received_bytes),
                sent_bytes_per_s: rate(|c| c.tcp_sent_bytes + c.udp_sent_bytes),
            });
            self.stretch = self.last;
        }
    }

    /// Ends the window for cores at peak if it is long enough.
    fn close_window(&mut self, sample: &Sample) {
        let Some(cpu_ns) = sample.accounts.cpu_ns else {
            return;
        };
        let length_ns = sample.elapsed_ns.saturating_sub(self.window.0);
        if length_ns >= CORES_WINDOW_NS {
            let cores = cpu_ns.saturating_sub(self.window.1) as f64 / length_ns as f64;
            self.cores_peak = larger(self.cores_peak, cores);
            self.window = (sample.elapsed_ns, cpu_ns);
        }
    }

    /// Takes in what the probes know of CPU demand; looked at less often than the rest, as it is larger.
    pub fn demand(&mut self, scales: Option<[Scale; SCALES]>) {
        self.demand = scales.filter(|_| self.measures.has(Measure::CpuWait));
    }

    /// Whom it talked to, as far as the probes know.
    pub fn peers(&mut self, peers: Option<Vec<Peer>>) {
        self.peers = peers.filter(|_| self.measures.has(Measure::Connections));
    }

    /// What has been measured so far.
    pub fn measured(&self) -> Measured {
        let mut coverage = self.coverage.clone();
        if self.last.counted.is_some_and(|(counters, _)| counters.switches_unseen > 0) {
            let from_switches =
                |source: &&mut Source| source.source.as_ref().is_some_and(|s| s.contains("sched_switch"));
            coverage.0.iter_mut().filter(from_switches).for_each(|source| source.note = Some(UNSEEN.into()));
        }
        Measured { fingerprint: self.fingerprint(), series: self.series.clone(), coverage }
    }

    /// The result, after the last `sample`.
    pub fn finish(mut self, sample: Sample) -> Measured {
        self.sample(sample);
        self.end_stretch(1);
        // The peak is no less than the mean, also in a run shorter than a window.
        if let Some(cpu_ns) = sample.accounts.cpu_ns
            && sample.elapsed_ns > 0
        {
            self.cores_peak = larger(self.cores_peak, cpu_ns as f64 / sample.elapsed_ns as f64);
        }
        self.measured()
    }

    fn fingerprint(&self) -> Fingerprint {
        let Sample { elapsed_ns, counted, accounts } = self.last;
        let mut now = match counted {
            Some((counters, shared)) => of_counters(&counters, &shared, &self.measures),
            None => self.before.clone(),
        };
        now.cpu_demand = self.demand.map(|scales| CpuDemand::new(&scales, elapsed_ns));
        now.cpu_cores_p95_100ms = now.cpu_demand.as_ref().and_then(CpuDemand::cores_per_period);
        now.cpu_cores_p95_1s = now.cpu_demand.as_ref().and_then(CpuDemand::sustained_cores);
        now.duration_ns = elapsed_ns;
        // The cgroup's account is exact between switches too.
        now.cpu_ns = now.cpu_ns.max(accounts.cpu_ns);
        now.cpu_user_ns = accounts.cpu_user_ns;
        now.cpu_system_ns = accounts.cpu_system_ns;
        now.cpu_cores_peak = self.cores_peak;
        now.memory_charged_peak_bytes = accounts.memory_charged_peak_bytes;
        now.memory_peak_bytes = self.memory_peak;
        now.memory_working_set_bytes = self.working_set;
        now.cpu_throttled_ns = accounts.throttled_ns;
        now.peers.clone_from(&self.peers);
        now.raise_memory_peak();
        now.oom_kills = now.oom_kills.max(accounts.oom_kills);
        now
    }
}

fn larger(known: Option<f64>, value: f64) -> Option<f64> {
    Some(known.map_or(value, |known| known.max(value)))
}

/// Counters as the fields of a fingerprint.
fn of_counters(counters: &Counters, shared: &Shared, real: &Measures) -> Fingerprint {
    use Measure::{
        Access, Block, Connections, Cpu, CpuWait, Execs, Exits, Faults, OomKills, Retransmits, Service,
        SocketBytes, Storage, Tasks, Writeback,
    };
    let number = |measure, value: u64| real.has(measure).then_some(value);
    let histogram = |measure, value: Histogram| real.has(measure).then_some(value);
    Fingerprint {
        cpu_ns: number(Cpu, counters.on_cpu_ns),
        cpu_wait_ns: number(CpuWait, counters.wait_ns),
        switches_voluntary: number(Cpu, counters.switches_voluntary),
        switches_forced: number(Cpu, counters.switches_forced),
        cpu_burst_ns: histogram(Cpu, counters.burst_ns),
        cpu_wait_ns_histogram: histogram(CpuWait, counters.wait_ns_histogram),
        process_rss_peak_bytes: number(Exits, shared.process_rss_peak_pages * host::page_bytes()),
        faults_minor: number(Faults, counters.faults_minor),
        faults_major: number(Faults, counters.faults_major),
        block_read_bytes: number(Block, counters.block_read_bytes),
        block_write_bytes: number(Block, counters.block_write_bytes),
        block_read_ops: number(Block, counters.block_read_ops),
        block_write_ops: number(Block, counters.block_write_ops),
        block_read_ns: histogram(Block, counters.block_read_ns),
        block_write_ns: histogram(Block, counters.block_write_ns),
        faults_sequential: number(Access, counters.faults_sequential),
        faults_strided: number(Access, counters.faults_strided),
        faults_random: number(Access, counters.faults_random),
        block_read_sequential: number(Block, counters.block_read_sequential),
        block_write_sequential: number(Block, counters.block_write_sequential),
        block_sync_ops: number(Block, counters.block_sync_ops),
        block_flush_ops: number(Block, counters.block_flush_ops),
        block_discard_ops: number(Block, counters.block_discard_ops),
        block_discard_bytes: number(Block, counters.block_discard_bytes),
        block_writeback_bytes: number(Writeback, counters.block_writeback_bytes),
        tcp_connects_failed: number(Connections, counters.tcp_connects_failed),
        block_queue_ns: histogram(Block, counters.block_queue_ns),
        tcp_connect_ns: histogram(Connections, counters.tcp_connect_ns),
        tcp_service_ns: histogram(Service, counters.tcp_service_ns),
        tcp_rtt_ns: histogram(Connections, counters.tcp_rtt_ns),
        storage_read_bytes: number(Storage, counters.storage_read_bytes),
        storage_write_bytes: number(Storage, counters.storage_write_bytes),
        tcp_sent_bytes: number(SocketBytes, counters.tcp_sent_bytes),
        tcp_received_bytes: number(SocketBytes, counters.tcp_received_bytes),
        udp_sent_bytes: number(SocketBytes, counters.udp_sent_bytes),
        udp_received_bytes: number(SocketBytes, counters.udp_received_bytes),
        tcp_connects: number(Connections, counters.tcp_connects),
        tcp_accepts: number(Connections, counters.tcp_accepts),
        tcp_retransmits: number(Retransmits, counters.tcp_retransmits),
        forks: number(Tasks, counters.forks),
        execs: number(Execs, counters.execs),
        exits: number(Exits, counters.exits),
        tasks_peak: number(Tasks, u64::try_from(shared.tasks_peak).unwrap_or(0)),
        oom_kills: number(OomKills, counters.oom_kills),
        ..Fingerprint::default()
    }
}

impl Fingerprint {
    /// Samples miss what was in use only for a moment: the largest resident set of a process tells more. It
    /// also holds pages that are charged to others (libraries in the page cache) or, before exec, were the
    /// launcher's, so what the cgroup was charged at most bounds it.
    pub(super) fn raise_memory_peak(&mut self) {
        let charged_peak = self.memory_charged_peak_bytes.unwrap_or(u64::MAX);
        let process_peak = self.process_rss_peak_bytes.map(|bytes| bytes.min(charged_peak));
        self.memory_peak_bytes = self.memory_peak_bytes.max(process_peak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: u64, cpu_ms: u64, memory_bytes: u64) -> Sample {
        let accounts = Accounts {
            cpu_ns: Some(cpu_ms * 1_000_000),
            memory_bytes: Some(memory_bytes),
            ..Accounts::default()
        };
        let counters = Counters { block_read_bytes: ms * 1000, faults_minor: ms, ..Counters::default() };
        Sample { elapsed_ns: ms * 1_000_000, counted: Some((counters, Shared::default())), accounts }
    }

    fn collector(before: Measured) -> Collector {
        let measures = Measures(vec![Measure::Faults, Measure::Block]);
        Collector::resume(measures, Coverage::default(), before)
    }

    #[test]
    fn peaks_come_from_samples_and_totals_from_the_last() {
        let mut collector = collector(Measured::default());
        collector.sample(sample(100, 50, 500));
        collector.sample(sample(200, 250, 900));
        let measured = collector.finish(sample(1000, 300, 100));
        let fingerprint = measured.fingerprint;
        assert_eq!(fingerprint.memory_peak_bytes, Some(900));
        assert_eq!(fingerprint.cpu_cores_peak, Some(2.0));
        assert_eq!(fingerprint.cpu_ns, Some(300_000_000));
        assert_eq!(fingerprint.block_read_bytes, Some(1_000_000));
        assert_eq!(fingerprint.forks, None, "what is not measured is not zero");
        assert_eq!(measured.series.points()[0].read_bytes_per_s, 1e6);
    }

    #[test]
    fn two_looks_right_after_another_are_one_stretch() {
        let mut collector = collector(Measured::default());
        collector.sample(sample(1000, 500, 500));
        collector.sample(sample(1001, 500, 500));
        let last = collector.measured().series.points().last().copied();
        assert_eq!(last.map(|point| (point.at_ms, point.cpu_cores)), Some((1000, 0.5)));
        let points = collector.finish(sample(1002, 502, 1)).series.points().to_vec();
        assert_eq!((points.len(), points[1].length_ms, points[1].cpu_cores), (2, 2, 1.0), "nothing is lost");
    }

    #[test]
    fn samples_within_a_millisecond_are_one_point() {
        let mut collector = collector(Measured::default());
        collector.sample(sample(100, 50, 500));
        let late = Sample { elapsed_ns: 100_400_000, ..sample(100, 50, 700) };
        let measured = collector.finish(late);
        let points: Vec<_> = measured.series.points().iter().map(|p| (p.at_ms, p.length_ms)).collect();
        assert_eq!(points, [(100, 100)]);
        assert_eq!(measured.fingerprint.memory_peak_bytes, Some(700));
    }

    #[test]
    fn a_run_shorter_than_a_window_has_its_mean_as_peak() {
        let measured = collector(Measured::default()).finish(sample(50, 25, 1));
        assert_eq!(measured.fingerprint.cpu_cores_peak, Some(0.5));
    }

    #[test]
    fn new_probes_count_on_from_what_was_measured() {
        let before = collector(Measured::default()).finish(sample(1000, 100, 700));
        let seed = before.fingerprint.as_counted().0;
        let mut next = sample(3000, 250, 100);
        next.counted = next.counted.map(|(mut counters, shared)| {
            counters.faults_minor += seed.counters.faults_minor;
            (counters, shared)
        });
        let after = collector(before).finish(next);
        assert_eq!(after.fingerprint.faults_minor, Some(4000));
        assert_eq!(after.fingerprint.cpu_ns, Some(250_000_000));
        assert_eq!(after.fingerprint.memory_peak_bytes, Some(700));
        assert_eq!(after.fingerprint.duration_ns, 3_000_000_000);
    }

    #[test]
    fn without_probes_a_resumed_run_keeps_what_was_measured() {
        let before = collector(Measured::default()).finish(sample(1000, 100, 700));
        let unprobed = Sample { counted: None, ..sample(3000, 250, 100) };
        let after = collector(before).finish(unprobed);
        assert_eq!(after.fingerprint.faults_minor, Some(1000));
        assert_eq!(after.fingerprint.cpu_ns, Some(250_000_000));
    }

    #[test]
    fn counters_and_fingerprint_tell_the_same() {
        use Measure::{
            Access, Block, Connections, Cpu, CpuWait, Execs, Exits, Faults, OomKills, Retransmits, Service,
            SocketBytes, Storage, Tasks, Writeback,
        };
        let all = Measures(vec![
            Access,
            Block,
            Connections,
            Cpu,
            CpuWait,
            Execs,
            Exits,
            Faults,
            OomKills,
            Retransmits,
            Service,
            SocketBytes,
            Storage,
            Tasks,
            Writeback,
        ]);
        // Every word another number, but those that a fingerprint does not keep.
        let words: [u64; size_of::<Counters>() / 8] = std::array::from_fn(|word| word as u64 + 1);
        // SAFETY: repr(C) with 64-bit integers only.
        let mut counters =
            unsafe { std::mem::transmute::<[u64; size_of::<Counters>() / 8], Counters>(words) };
        (counters.window_start_ns, counters.window, counters.switches_unseen) = (0, 0, 0);
        let shared = Shared { tasks_peak: 3, process_rss_peak_pages: 9, ..Shared::default() };
        let (reading, _) = of_counters(&counters, &shared, &all).as_counted();
        assert_eq!((reading.counters, reading.shared), (counters, shared));
    }

    #[test]
    fn intervals_grow_with_the_run() {
        assert_eq!(Collector::interval(Duration::ZERO), INTERVAL_MIN);
        assert_eq!(Collector::interval(Duration::from_secs(8)), Duration::from_millis(500));
        assert_eq!(Collector::interval(Duration::from_secs(3600)), INTERVAL_MAX);
    }
}
