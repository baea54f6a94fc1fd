//! What a run did, in numbers: in come counters of the probes and accounts of the cgroup, out goes one
//! [`Fingerprint`], which the store keeps and predictions are made from.
//!
//! Every number that may be missing is an `Option`: a source that this host lacks leaves `None` (`NULL` in
//! the database) and a word in [`Coverage`], never a zero.

pub mod character;
mod collect;
pub mod demand;
pub mod histogram;
pub mod key;
mod rusage;
mod seed;
pub mod sentence;
pub mod series;

pub use collect::{CORES_WINDOW_NS, Collector, Measures, Sample};
use demand::CpuDemand;
pub use ebpf_probes::{HISTOGRAM_BUCKETS, Histogram};
pub use rusage::from_rusage;
use serde::{Deserialize, Serialize};
use series::Series;

/// The numbers of one run. Totals run from the start of the main process to the end of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Wall time.
    pub duration_ns: u64,

    /// CPU time of all tasks.
    pub cpu_ns: Option<u64>,
    /// Of that, in user mode.
    pub cpu_user_ns: Option<u64>,
    /// Of that, in the kernel.
    pub cpu_system_ns: Option<u64>,
    /// Time that tasks were runnable and waited for a CPU.
    pub cpu_wait_ns: Option<u64>,
    /// Most cores used over one sampling interval (see [`Collector`]).
    pub cpu_cores_peak: Option<f64>,
    /// Context switches because a task slept or ended.
    pub switches_voluntary: Option<u64>,
    /// Context switches away from a task that was still runnable.
    pub switches_forced: Option<u64>,
    /// Lengths of CPU bursts: bucket `i` counts those of `[2^i, 2^(i+1))` ns.
    pub cpu_burst_ns: Option<Histogram>,
    /// Waits in the run queue before each burst, same buckets.
    pub cpu_wait_ns_histogram: Option<Histogram>,
    /// Time that tasks could not run because a CPU quota was used up.
    pub cpu_throttled_ns: Option<u64>,
    /// CPU used per window of 10 ms, 100 ms and 1 s.
    pub cpu_demand: Option<CpuDemand>,
    /// Cores that are enough for 95 % of its windows of 100 ms, and of 1 s.
    pub cpu_cores_p95_100ms: Option<f64>,
    /// See above.
    pub cpu_cores_p95_1s: Option<f64>,

    /// Most memory the task could not do without: anonymous and shared memory of the cgroup as sampled, or
    /// the largest resident set of one process where that is more and was charged to the cgroup.
    pub memory_peak_bytes: Option<u64>,
    /// Highest charge of the cgroup, page cache included (`memory.peak`, v1 `memory.max_usage_in_bytes`).
    pub memory_charged_peak_bytes: Option<u64>,
    /// Largest peak resident set of one process (as `ru_maxrss`).
    pub process_rss_peak_bytes: Option<u64>,
    /// Most memory that was not idle page cache, as sampled: the charge without inactive pages of files, which is
    /// what Kubernetes calls the working set (`memory.current` − `inactive_file`).
    pub memory_working_set_bytes: Option<u64>,
    /// User page faults right behind the thread's last one (the thresholds are in `ebpf-probes/src/faults.rs`).
    pub faults_sequential: Option<u64>,
    /// User page faults as far from the thread's last one as that was from the one before.
    pub faults_strided: Option<u64>,
    /// User page faults anywhere else.
    pub faults_random: Option<u64>,
    /// Page faults without I/O.
    pub faults_minor: Option<u64>,
    /// Page faults that waited for I/O.
    pub faults_major: Option<u64>,

    /// Bytes read by block requests.
    pub block_read_bytes: Option<u64>,
    /// Bytes written by block requests.
    pub block_write_bytes: Option<u64>,
    /// Block read requests.
    pub block_read_ops: Option<u64>,
    /// Block write requests.
    pub block_write_ops: Option<u64>,
    /// Of the reads, those that began where the last one ended.
    pub block_read_sequential: Option<u64>,
    /// Of the writes, those that began where the last one ended.
    pub block_write_sequential: Option<u64>,
    /// Reads and writes that somebody waited for.
    pub block_sync_ops: Option<u64>,
    /// Flushes of the device's cache, and writes past it.
    pub block_flush_ops: Option<u64>,
    /// Requests to discard blocks.
    pub block_discard_ops: Option<u64>,
    /// Blocks discarded, bytes.
    pub block_discard_bytes: Option<u64>,
    /// Of the bytes written, those that the kernel wrote back later, on behalf of the tasks.
    pub block_writeback_bytes: Option<u64>,
    /// Time of block requests from start until they went to the device.
    pub block_queue_ns: Option<Histogram>,
    /// Time of block reads from start to completion, log2 ns buckets as above.
    pub block_read_ns: Option<Histogram>,
    /// Time of block writes from start to completion.
    pub block_write_ns: Option<Histogram>,
    /// Bytes that the tasks caused to be read from storage, as the kernel's task accounting has it.
    pub storage_read_bytes: Option<u64>,
    /// Bytes that the tasks dirtied for storage, whoever wrote them out later (same accounting).
    pub storage_write_bytes: Option<u64>,

    /// TCP payload sent.
    pub tcp_sent_bytes: Option<u64>,
    /// TCP payload received.
    pub tcp_received_bytes: Option<u64>,
    /// UDP payload sent.
    pub udp_sent_bytes: Option<u64>,
    /// UDP payload received.
    pub udp_received_bytes: Option<u64>,
    /// TCP connections opened.
    pub tcp_connects: Option<u64>,
    /// TCP connections accepted.
    pub tcp_accepts: Option<u64>,
    /// TCP segments sent again.
    pub tcp_retransmits: Option<u64>,
    /// TCP connections asked for that did not come about.
    pub tcp_connects_failed: Option<u64>,
    /// Time from asking for a connection until it was there.
    pub tcp_connect_ns: Option<Histogram>,
    /// Time from the last byte of a request to the first of its answer, on accepted connections.
    pub tcp_service_ns: Option<Histogram>,
    /// Smoothed round-trip time of connections when they closed.
    pub tcp_rtt_ns: Option<Histogram>,
    /// Whom it talked to over TCP, the most bytes first: at most [`PEERS_MAX`].
    pub peers: Option<Vec<Peer>>,

    /// Tasks (processes and threads) created.
    pub forks: Option<u64>,
    /// Programs executed.
    pub execs: Option<u64>,
    /// Tasks ended.
    pub exits: Option<u64>,
    /// Most tasks alive at once.
    pub tasks_peak: Option<u64>,
    /// Processes killed by the out-of-memory killer.
    pub oom_kills: Option<u64>,
}

/// Most peers that a fingerprint has.
pub const PEERS_MAX: usize = 16;

/// TCP connections to one other side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its address.
    pub address: String,
    /// Its port where the task opened the connections; `None` for clients, all ports of an address together.
    pub port: Option<u16>,
    /// Connections, those still open included.
    pub connections: u64,
    /// Payload sent.
    pub sent_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
    /// Time until they were established, in all.
    pub connect_ns: u64,
    /// How long they were open, in all.
    pub held_ns: u64,
    /// When the first was opened, milliseconds since the epoch.
    pub first_at_ms: i64,
    /// Time from asking for a connection to the first bytes of the other side, in all; 0 for clients.
    pub answer_ns: u64,
    /// Most connections open at once, of those that the task opened; 0 for clients.
    pub open_max: u64,
}

/// Which source a group of numbers came from, or why there is none: one row per measure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage(pub Vec<Source>);

/// One row of [`Coverage`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What is measured: `cpu`, `faults`, `memory`, `block`, `network`, `tasks`.
    pub measure: String,
    /// Where it comes from (`tp_btf sched_switch`, `cgroup v1 memory`, `rusage`); `None` if nowhere.
    pub source: Option<String>,
    /// Why a better source is missing, if so.
    pub note: Option<String>,
}

/// Measurements of a run, so far or at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The totals.
    pub fingerprint: Fingerprint,
    /// The course.
    pub series: Series,
    /// The sources.
    pub coverage: Coverage,
}
