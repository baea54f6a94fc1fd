//! What a run is like: from the numbers of a fingerprint and its course to a few claims, each of which the numbers
//! carry. Pure. Where they carry none, none is made. `docs/fingerprints.md` explains every threshold.

use super::demand::CpuDemand;
use super::histogram::{quantile_s, total};
use super::series::Point;
use super::{Fingerprint, Histogram};

/// Mean cores below which a run hardly uses a CPU.
pub const IDLE_CORES: f64 = 0.02;
/// Windows that a claim about the shape of CPU use needs.
pub const SHAPE_WINDOWS: u64 = 10;
/// Standard deviation over mean of CPU use, up to which it is steady.
pub const STEADY_VARIATION: f64 = 0.3;
/// Cores over their mean from which a window is part of a burst.
pub const BURST_TO_MEAN: f64 = 3.0;
/// Share of the CPU time that bursts must have for CPU use to be bursty.
pub const BURSTS_SHARE: f64 = 0.4;
/// Share of the peak in 10 ms that a longer window must reach for the peak to have lasted so long.
pub const LASTING_SHARE: f64 = 0.75;
/// Share of CPU time in the kernel from which it is told.
pub const KERNEL_SHARE: f64 = 0.6;
/// Least CPU time, seconds, of which the share in the kernel is told.
pub const KERNEL_CPU_S: f64 = 0.1;
/// Share of the time that tasks wanted a CPU and waited for it, from which it is told.
pub const WAITING_SHARE: f64 = 0.25;
/// Least time waited for a CPU, seconds, that is told.
pub const WAITING_S: f64 = 0.1;
/// Points of the course that a claim about the shape of memory needs.
pub const SHAPE_POINTS: usize = 10;
/// Page faults that a claim about the order of first touches needs (some 40 MB).
pub const TOUCH_FAULTS: u64 = 10_000;
/// Share of page faults from which memory is touched in order, or at random.
pub const TOUCH_SHARE: f64 = 0.7;
/// Requests that a claim about the order of I/O needs.
pub const ORDER_REQUESTS: u64 = 32;
/// Bytes from which I/O or traffic is told.
pub const TOLD_BYTES: u64 = 1 << 20;
/// Bytes per second from which it is told how I/O goes.
pub const MUCH_BYTES_PER_S: f64 = 1_048_576.0;
/// Requests per second from which it is told as well.
pub const MUCH_REQUESTS_PER_S: f64 = 10.0;
/// Share of requests that begin where the last one ended, from which I/O is sequential.
pub const SEQUENTIAL_SHARE: f64 = 0.6;
/// The same share, up to which I/O is random.
pub const RANDOM_SHARE: f64 = 0.2;
/// Answers that a claim about service times needs.
pub const SERVED_REQUESTS: u64 = 20;
/// Programs executed from which it is told.
pub const PROGRAMS: u64 = 3;
/// Runs that a claim about growth with a feature needs.
pub const GROWTH_RUNS: usize = 5;
/// Correlation of the logarithms of feature and memory from which memory grows with the feature.
pub const GROWTH_CORRELATION: f64 = 0.8;

/// How CPU use goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CpuShape {
    /// Hardly any.
    Idle,
    /// About the same all the time.
    Steady,
    /// Much at times, little else: the peak in cores, and for about how long it lasts.
    Bursty {
        /// Cores.
        peak: f64,
        /// Seconds; `None`: a second or more.
        lasting_s: Option<f64>,
    },
    /// In between.
    Varying {
        /// Cores.
        peak: f64,
    },
    /// Too short a run to tell.
    Unknown,
}

/// How memory goes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryShape {
    /// At its peak from early on.
    Held,
    /// More and more, to the end.
    Growing,
    /// Far below its peak for most of the time.
    Spike,
}

/// Order of accesses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// One behind the other.
    Sequential,
    /// Anywhere.
    Random,
    /// In part: the share that is in order.
    Partly(f64),
}

/// Reads or writes of blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Io {
    /// All.
    pub bytes: u64,
    /// Over the run.
    pub bytes_per_s: f64,
    /// Mean size of a request.
    pub request_bytes: f64,
    /// Too few requests carry no claim.
    pub order: Option<Order>,
    /// More than a program that is loaded, or a file now and then.
    pub is_much: bool,
}

/// Answers of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Service {
    /// How many.
    pub answers: u64,
    /// Half of them took no longer, seconds.
    pub half_s: Option<f64>,
    /// 99 % of them took no longer, seconds.
    pub most_s: Option<f64>,
}

/// What a run is like.
#[derive(Clone, Debug, PartialEq)]
pub struct Character {
    /// Mean cores.
    pub cpu_mean: Option<f64>,
    /// How CPU use goes.
    pub cpu_shape: CpuShape,
    /// Share of CPU time in the kernel, where it is high.
    pub kernel_share: Option<f64>,
    /// Share of waiting in the time that tasks wanted a CPU, where it is high.
    pub waiting_share: Option<f64>,
    /// Peak, bytes.
    pub memory_bytes: Option<u64>,
    /// How memory goes.
    pub memory_shape: Option<MemoryShape>,
    /// Feature of the task that memory grows with.
    pub memory_grows_with: Option<String>,
    /// Order in which memory is touched first.
    pub touches: Option<Order>,
    /// Reads from block devices.
    pub reads: Option<Io>,
    /// Writes to block devices.
    pub writes: Option<Io>,
    /// Flushes of a device's cache.
    pub flushes: u64,
    /// Answers to requests.
    pub service: Option<Service>,
    /// TCP and UDP payload per second.
    pub received_bytes_per_s: Option<f64>,
    /// TCP and UDP payload per second.
    pub sent_bytes_per_s: Option<f64>,
    /// Programs executed, where there are several.
    pub programs: Option<u64>,
}

/// A feature of a task beside the memory that its runs took, as `standin explain` has it.
#[derive(Clone, Copy, Debug)]
pub struct Growth<'a> {
    /// Name of the feature that sizing looks at.
    pub feature: &'a str,
    /// Of the logarithms.
    pub correlation: f64,
    /// Runs behind it.
    pub runs: usize,
}

impl Character {
    /// From a run's numbers, its course, and what is known of its kind.
    pub fn new(fingerprint: &Fingerprint, course: &[Point], growth: Option<Growth<'_>>) -> Self {
        let seconds = fingerprint.duration_ns as f64 / 1e9;
        let rate = |bytes: u64| (seconds > 0.0).then(|| bytes as f64 / seconds);
        let traffic = |tcp: Option<u64>, udp: Option<u64>| {
            let bytes = tcp.unwrap_or(0) + udp.unwrap_or(0);
            (bytes >= TOLD_BYTES).then(|| rate(bytes)).flatten()
        };
        let cpu_mean = fingerprint.cpu_ns.and_then(rate).map(|ns_per_s| ns_per_s / 1e9);
        Self {
            cpu_mean,
            cpu_shape: cpu_shape(cpu_mean, fingerprint.cpu_demand.as_ref()),
            kernel_share: kernel_share(fingerprint),
            waiting_share: waiting_share(fingerprint),
            memory_bytes: fingerprint.memory_peak_bytes.filter(|&bytes| bytes > 0),
            memory_shape: memory_shape(course),
            memory_grows_with: growth
                .filter(|it| it.runs >= GROWTH_RUNS && it.correlation >= GROWTH_CORRELATION)
                .map(|it| it.feature.to_owned()),
            touches: touches(fingerprint),
            reads: io(
                seconds,
                fingerprint.block_read_bytes,
                fingerprint.block_read_ops,
                fingerprint.block_read_sequential,
            ),
            writes: io(
                seconds,
                fingerprint.block_write_bytes,
                fingerprint.block_write_ops,
                fingerprint.block_write_sequential,
            ),
            flushes: fingerprint.block_flush_ops.unwrap_or(0),
            service: fingerprint.tcp_service_ns.as_ref().and_then(service),
            received_bytes_per_s: traffic(fingerprint.tcp_received_bytes, fingerprint.udp_received_bytes),
            sent_bytes_per_s: traffic(fingerprint.tcp_sent_bytes, fingerprint.udp_sent_bytes),
            programs: fingerprint.execs.filter(|&programs| programs >= PROGRAMS),
        }
    }

    /// The claims as words for programs.
    pub fn traits(&self) -> Vec<&'static str> {
        let order = |io: Option<Io>, words: [&'static str; 2]| match io.and_then(|io| io.order) {
            Some(Order::Sequential) => Some(words[0]),
            Some(Order::Random) => Some(words[1]),
            _ => None,
        };
        let cpu = match self.cpu_shape {
            CpuShape::Idle => Some("cpu_idle"),
            CpuShape::Steady => Some("cpu_steady"),
            CpuShape::Bursty { .. } => Some("cpu_bursty"),
            CpuShape::Varying { .. } => Some("cpu_varying"),
            CpuShape::Unknown => None,
        };
        let memory = match self.memory_shape {
            Some(MemoryShape::Held) => Some("memory_held"),
            Some(MemoryShape::Growing) => Some("memory_growing"),
            Some(MemoryShape::Spike) => Some("memory_spike"),
            None => None,
        };
        let claims = [
            cpu,
            self.kernel_share.map(|_| "cpu_in_kernel"),
            self.waiting_share.map(|_| "cpu_waiting"),
            memory,
            self.memory_grows_with.as_ref().map(|_| "memory_grows_with_feature"),
            order(self.reads, ["reads_sequential", "reads_random"]),
            order(self.writes, ["writes_sequential", "writes_random"]),
            self.service.map(|_| "server"),
        ];
        claims.into_iter().flatten().collect()
    }
}

fn cpu_shape(mean: Option<f64>, demand: Option<&CpuDemand>) -> CpuShape {
    let Some(mean) = mean else { return CpuShape::Unknown };
    if mean < IDLE_CORES {
        return CpuShape::Idle;
    }
    // The finest windows tell of the scheduler's slices as well: shape is taken at 100 ms where there are enough.
    let scales = demand.map(|demand| &demand.0[..]).unwrap_or_default();
    let enough = |place: &usize| scales.get(*place).is_some_and(|windows| windows.windows >= SHAPE_WINDOWS);
    let Some(place) = [1, 0].into_iter().find(enough) else { return CpuShape::Unknown };
    let windows = &scales[place];
    let variation = windows.variance().sqrt() / windows.mean().max(f64::MIN_POSITIVE);
    if variation <= STEADY_VARIATION {
        return CpuShape::Steady;
    }
    let (peak, lasting_s) = lasting_peak(&scales[place..]);
    // One high window makes no bursty task.
    if windows.share_from(BURST_TO_MEAN * windows.mean()) >= BURSTS_SHARE {
        CpuShape::Bursty { peak, lasting_s }
    } else {
        CpuShape::Varying { peak }
    }
}

/// The peak in the longest windows that still reach a good share of that in the shortest, and how long it goes on:
/// the CPU time of the busiest of the next longer windows, divided by that peak.
fn lasting_peak(scales: &[super::demand::Windows]) -> (f64, Option<f64>) {
    let highest = scales.first().map_or(0.0, super::demand::Windows::peak);
    let lasts = |windows: &super::demand::Windows| windows.peak() >= LASTING_SHARE * highest;
    let place = scales.iter().rposition(lasts).unwrap_or(0);
    let peak = scales.get(place).map_or(0.0, super::demand::Windows::peak);
    let lasting_s =
        scales.get(place + 1).map(|longer| longer.peak_us as f64 / 1e6 / peak.max(f64::MIN_POSITIVE));
    (peak, lasting_s)
}

fn kernel_share(fingerprint: &Fingerprint) -> Option<f64> {
    let (cpu, system) = (fingerprint.cpu_ns?, fingerprint.cpu_system_ns?);
    let share = system as f64 / cpu.max(1) as f64;
    (cpu as f64 / 1e9 >= KERNEL_CPU_S && share >= KERNEL_SHARE).then_some(share.min(1.0))
}

fn waiting_share(fingerprint: &Fingerprint) -> Option<f64> {
    let (cpu, waited) = (fingerprint.cpu_ns?, fingerprint.cpu_wait_ns?);
    let share = waited as f64 / (waited as f64 + cpu as f64).max(1.0);
    (waited as f64 / 1e9 >= WAITING_S && share >= WAITING_SHARE).then_some(share)
}

fn memory_shape(course: &[Point]) -> Option<MemoryShape> {
    if course.len() < SHAPE_POINTS {
        return None;
    }
    let peak = course.iter().map(|point| point.memory_bytes).max().filter(|&peak| peak > 0)? as f64;
    let end_ms = course.last().map(|point| point.at_ms).filter(|&end| end > 0)? as f64;
    let at_least = |share: f64| move |point: &&Point| point.memory_bytes as f64 >= share * peak;
    let high_ms: u64 = course.iter().filter(at_least(0.8)).map(|point| point.length_ms).sum();
    let first_high = course.iter().find(at_least(0.9)).map_or(end_ms, |point| point.at_ms as f64) / end_ms;
    let halfway = course.iter().find(|point| point.at_ms as f64 >= end_ms / 2.0);
    let half_share = halfway.map_or(1.0, |point| point.memory_bytes as f64 / peak);
    let fallen: f64 =
        course.windows(2).map(|pair| pair[0].memory_bytes.saturating_sub(pair[1].memory_bytes) as f64).sum();
    match high_ms as f64 / end_ms {
        high if first_high <= 0.2 && high >= 0.75 => Some(MemoryShape::Held),
        _ if first_high >= 0.7 && half_share <= 0.75 && fallen <= 0.25 * peak => Some(MemoryShape::Growing),
        high if high <= 0.2 => Some(MemoryShape::Spike),
        _ => None,
    }
}

fn touches(fingerprint: &Fingerprint) -> Option<Order> {
    let (ordered, strided, random) =
        (fingerprint.faults_sequential?, fingerprint.faults_strided?, fingerprint.faults_random?);
    let all = ordered + strided + random;
    if all < TOUCH_FAULTS {
        return None;
    }
    let share = |part: u64| part as f64 / all as f64;
    if share(ordered) >= TOUCH_SHARE {
        return Some(Order::Sequential);
    }
    (share(random) >= TOUCH_SHARE).then_some(Order::Random)
}

fn io(seconds: f64, bytes: Option<u64>, requests: Option<u64>, ordered: Option<u64>) -> Option<Io> {
    let (bytes, requests) = (bytes.filter(|&bytes| bytes >= TOLD_BYTES)?, requests.filter(|&ops| ops > 0)?);
    let order = ordered.filter(|_| requests >= ORDER_REQUESTS).map(|ordered| {
        match ordered as f64 / requests as f64 {
            share if share >= SEQUENTIAL_SHARE => Order::Sequential,
            share if share <= RANDOM_SHARE => Order::Random,
            share => Order::Partly(share),
        }
    });
    let per_s = |count: u64| count as f64 / seconds.max(f64::MIN_POSITIVE);
    Some(Io {
        bytes,
        bytes_per_s: per_s(bytes),
        request_bytes: bytes as f64 / requests as f64,
        order,
        is_much: per_s(bytes) >= MUCH_BYTES_PER_S || per_s(requests) >= MUCH_REQUESTS_PER_S,
    })
}

fn service(times: &Histogram) -> Option<Service> {
    let answers = total(times);
    (answers >= SERVED_REQUESTS).then(|| Service {
        answers,
        half_s: quantile_s(times, 0.5),
        most_s: quantile_s(times, 0.99),
    })
}

#[cfg(test)]
mod tests;
