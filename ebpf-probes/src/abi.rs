//! The layout that BPF programs and user space share: map values, ring-buffer events and the offsets of
//! kernel fields. `no_std`, no dependency, every size asserted, so both sides compile the same bytes.
//!
//! All counters only grow while a slot is in use; user space takes differences.
#![no_std]

/// Buckets of every histogram. Bucket `i` counts values in `[2^i, 2^(i+1))` nanoseconds; bucket 0 also
/// holds 0 and the last one everything from 2^31 ns (2.1 s) up.
pub const HISTOGRAM_BUCKETS: usize = 32;

/// A log2 histogram of nanoseconds, see [`HISTOGRAM_BUCKETS`].
pub type Histogram = [u64; HISTOGRAM_BUCKETS];

/// What is counted for one cgroup on one CPU. Entry `slot * cpus + cpu` of the map `COUNTERS`; only that
/// CPU writes it, so plain additions are exact.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Time on the CPU, from the scheduler's own `se.sum_exec_runtime`.
    pub on_cpu_ns: u64,
    /// Time runnable but waiting for a CPU, from `sched_info.run_delay`.
    pub wait_ns: u64,
    /// Switches where the task gave up the CPU by itself (it slept or ended).
    pub switches_voluntary: u64,
    /// Switches where the task was still runnable (preempted or yielded).
    pub switches_forced: u64,
    /// Page faults without I/O, from `task_struct.min_flt`.
    pub faults_minor: u64,
    /// Page faults that waited for I/O, from `task_struct.maj_flt`.
    pub faults_major: u64,
    /// Lengths of the stretches between switch-in and switch-out.
    pub burst_ns: Histogram,
    /// Waits before each of those stretches.
    pub wait_ns_histogram: Histogram,

    /// Block reads completed: bytes.
    pub block_read_bytes: u64,
    /// Block writes completed: bytes.
    pub block_write_bytes: u64,
    /// Block reads completed: requests.
    pub block_read_ops: u64,
    /// Block writes completed: requests.
    pub block_write_ops: u64,
    /// Time from start of a read request to its completion.
    pub block_read_ns: Histogram,
    /// Time from start of a write request to its completion.
    pub block_write_ns: Histogram,

    /// TCP payload bytes accepted from the task for sending.
    pub tcp_sent_bytes: u64,
    /// TCP payload bytes handed to the task.
    pub tcp_received_bytes: u64,
    /// UDP payload bytes sent.
    pub udp_sent_bytes: u64,
    /// UDP payload bytes received.
    pub udp_received_bytes: u64,
    /// TCP connections that became established from this side (connect).
    pub tcp_connects: u64,
    /// TCP connections that became established from the other side (accept).
    pub tcp_accepts: u64,
    /// TCP segments sent again.
    pub tcp_retransmits: u64,

    /// Tasks (processes and threads) created.
    pub forks: u64,
    /// Programs executed.
    pub execs: u64,
    /// Tasks (processes and threads) ended.
    pub exits: u64,
    /// Processes chosen by the out-of-memory killer.
    pub oom_kills: u64,
    /// Bytes that ended tasks had caused to be read from storage (`task_io_accounting.read_bytes`).
    pub storage_read_bytes: u64,
    /// Bytes that ended tasks had dirtied towards storage (`write_bytes` less `cancelled_write_bytes`).
    pub storage_write_bytes: u64,
}

/// What all CPUs share for one cgroup: entry `slot` of the map `SHARED`, updated atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Tasks alive now. User space sets it to what the cgroup held when tracking began.
    pub tasks: i64,
    /// Most tasks alive at once.
    pub tasks_peak: i64,
    /// Largest peak RSS of a process that ended (`signal_struct.maxrss`), pages. What `ru_maxrss` tells.
    pub process_rss_peak_pages: u64,
}

/// Per-CPU state of the scheduler program: the task that is on this CPU. Entry `cpu` of the map `CPUS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnCpu {
    /// Address of the `task_struct`; 0 when the CPU idles or nothing is known.
    pub task: u64,
    /// `se.sum_exec_runtime` at switch-in.
    pub exec_ns: u64,
    /// `sched_info.run_delay` at switch-in.
    pub delay_ns: u64,
    /// `min_flt` at switch-in.
    pub faults_minor: u64,
    /// `maj_flt` at switch-in.
    pub faults_major: u64,
    /// Cgroup of the last lookup and the slot it gave ([`NO_SLOT`] if it is not tracked): a cache of one.
    pub cgroup: u64,
    /// See `cgroup`.
    pub slot: u32,
    /// Unused.
    pub padding: u32,
}

/// Slot of a cgroup that nobody tracks.
pub const NO_SLOT: u32 = u32::MAX;

/// A process ended (its last thread did): the one event of the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessExit {
    /// v2 id of its cgroup.
    pub cgroup: u64,
    /// Process id (`tgid`).
    pub pid: u32,
    /// Status as `wait(2)` reports it: exit code in bits 8–15, signal in bits 0–6, core-dump flag 0x80.
    pub status: i32,
    /// Peak resident set, pages.
    pub rss_peak_pages: u64,
}

/// Events that could not be reserved in the ring buffer, and I/O requests that found no room in the map of
/// requests under way: the single entry of the map `LOSSES`, added atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Exit events lost because the ring buffer was full.
    pub events: u64,
    /// Block requests not measured because `REQUESTS` was full.
    pub requests: u64,
}

const _: () = {
    assert!(size_of::<Counters>() == 8 * (23 + 4 * HISTOGRAM_BUCKETS));
    assert!(size_of::<Shared>() == 24);
    assert!(size_of::<OnCpu>() == 56);
    assert!(size_of::<ProcessExit>() == 24);
    assert!(size_of::<Losses>() == 16);
};
