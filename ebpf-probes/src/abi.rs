//! The layout that BPF programs and user space share: map values, ring-buffer events and the offsets of
//! kernel fields. `no_std`, no dependency, every size asserted, so both sides compile the same bytes.
//!
//! All counters only grow while a slot is in use; user space takes differences.
#![no_std]

#[path = "abi/demand.rs"]
pub mod demand;
#[path = "steer/abi.rs"]
pub mod steer;

/// Buckets of every histogram. Bucket `i` counts values in `[2^i, 2^(i+1))` nanoseconds; bucket 0 also
/// holds 0 and the last one everything from 2^31 ns (2.1 s) up.
pub const HISTOGRAM_BUCKETS: usize = 32;

/// A log2 histogram of nanoseconds, see [`HISTOGRAM_BUCKETS`].
pub type Histogram = [u64; HISTOGRAM_BUCKETS];

/// What is counted for one cgroup on one CPU. Entry `slot * cpus + cpu` of the map `COUNTERS`; only that
/// CPU writes it. The scheduler's program runs with interrupts off and adds plainly; the others can be
/// interrupted by one another, so they add atomically.
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
    /// Where the window of [`demand`] begins that this CPU was in last, on the scheduler's clock.
    pub window_start_ns: u64,
    /// What this CPU used in it and has not settled yet, see [`demand::pack`].
    pub window: u64,
    /// Of all switches, those of tasks that had not been seen to get the CPU and whose last switch is not known
    /// either: the faults and the wait of that stretch are missing. One per CPU can be when the probe is attached;
    /// more come where a kernel does not show every switch to programs.
    pub switches_unseen: u64,
    /// Lengths of the stretches between switch-in and switch-out.
    pub burst_ns: Histogram,
    /// Waits before each of those stretches.
    pub wait_ns_histogram: Histogram,

    /// Block reads that went to the device: bytes.
    pub block_read_bytes: u64,
    /// Block writes that went to the device: bytes.
    pub block_write_bytes: u64,
    /// Block reads that went to the device: requests.
    pub block_read_ops: u64,
    /// Block writes that went to the device: requests.
    pub block_write_ops: u64,
    /// Reads that began where the cgroup's last read ended.
    pub block_read_sequential: u64,
    /// Writes that began where the cgroup's last write ended.
    pub block_write_sequential: u64,
    /// Requests that somebody waits for (`REQ_SYNC`): reads, and writes by fsync, O_SYNC or O_DIRECT.
    pub block_sync_ops: u64,
    /// Requests to flush the device's cache, or writes past it (`REQ_OP_FLUSH`, `REQ_PREFLUSH`, `REQ_FUA`).
    pub block_flush_ops: u64,
    /// Requests to discard blocks.
    pub block_discard_ops: u64,
    /// Blocks discarded, bytes.
    pub block_discard_bytes: u64,
    /// Of the bytes written, those that the kernel wrote back for the cgroup's tasks later.
    pub block_writeback_bytes: u64,
    /// Time from start of a request until it went to the device.
    pub block_queue_ns: Histogram,
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
    /// Connections that were asked for and refused, or given up.
    pub tcp_connects_failed: u64,
    /// Time from SYN to established, for connections that this side opened.
    pub tcp_connect_ns: Histogram,
    /// Time from the last byte of a request to the first byte of its answer, on accepted connections.
    pub tcp_service_ns: Histogram,
    /// Smoothed round-trip time of connections when they closed.
    pub tcp_rtt_ns: Histogram,

    /// User page faults right behind the thread's last one.
    pub faults_sequential: u64,
    /// User page faults as far from the thread's last one as that was from the one before.
    pub faults_strided: u64,
    /// All other user page faults but each thread's first.
    pub faults_random: u64,

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
    /// Bytes that ended tasks had dirtied towards storage (`task_io_accounting.write_bytes`). What was
    /// truncated before it got there counts all the same: it may have been another task's.
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
    /// Tasks that have begun to end but whose last stretch on a CPU is not booked yet.
    pub ending: i64,
    /// Set by user space: the process whose end is sent to `EVENTS`; 0 has every process sent.
    pub main_pid: u64,
    /// Sectors behind the last read and the last write.
    pub block_ends: [u64; 2],
}

/// What the kernel has counted for a task since its beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// `se.sum_exec_runtime`.
    pub exec_ns: u64,
    /// `sched_info.run_delay`; 0 where the kernel has none.
    pub delay_ns: u64,
    /// `min_flt`.
    pub faults_minor: u64,
    /// `maj_flt`.
    pub faults_major: u64,
}

impl Accounts {
    /// Whether the same task can have had `later` afterwards: none of them ever shrinks.
    #[inline(always)]
    pub const fn precede(&self, later: &Self) -> bool {
        self.exec_ns <= later.exec_ns
            && self.delay_ns <= later.delay_ns
            && self.faults_minor <= later.faults_minor
            && self.faults_major <= later.faults_major
    }
}

/// The last switch-out of a thread: value of the map `DEPARTURES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departure {
    /// The thread's id; 0 after its end.
    pub thread: u64,
    /// Its accounts then.
    pub accounts: Accounts,
}

/// Entries of the cache of cgroups in [`OnCpu`]; a power of two.
pub const CACHE_ENTRIES: usize = 8;

/// Per-CPU state of the scheduler program: the task that is on this CPU, and which slots the last cgroups
/// had. Entry `cpu` of the map `CPUS`. The first cache line is what every switch touches.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnCpu {
    /// Address of the `task_struct`; 0 when the CPU idles or nothing is known.
    pub task: u64,
    /// Its accounts at switch-in.
    pub accounts: Accounts,
    /// How often user space has changed `SLOTS`; it writes this after each change.
    pub slots_version: u64,
    /// The `slots_version` that the cache below belongs to; differs: the cache is emptied first.
    pub cache_version: u64,
    /// Of `block_io`: the inode that was dirtied on this CPU last.
    pub dirtied_inode: u64,
    /// Cache of cgroup ids (0: empty), at the place that [`cache_index`] gives.
    pub cgroups: [u64; CACHE_ENTRIES],
    /// Their slots, [`NO_SLOT`] for a cgroup that is not tracked.
    pub slots: [u32; CACHE_ENTRIES],
    /// Of `block_io`: the thread that dirtied [`OnCpu::dirtied_inode`], as `bpf_get_current_pid_tgid` has it.
    pub dirtied_by: u64,
}

/// Where in the cache of [`OnCpu`] a cgroup has its place. Ids are numbers of kernfs nodes, and a cgroup
/// takes some dozens of them in a row for its files.
#[inline(always)]
pub const fn cache_index(cgroup: u64) -> usize {
    ((cgroup ^ (cgroup >> 3)) & (CACHE_ENTRIES as u64 - 1)) as usize
}

/// Slot of a cgroup that nobody tracks.
pub const NO_SLOT: u32 = u32::MAX;

/// A process ended (its last thread did): the one event of the ring buffer `EVENTS`. Sent for the main
/// process of a tracked cgroup, or for all where [`Shared::main_pid`] is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessExit {
    /// v2 id of the tracked cgroup that it is charged to (its own or the one it descends from).
    pub cgroup: u64,
    /// Process id (`tgid`).
    pub pid: u32,
    /// Status as `wait(2)` reports it: exit code in bits 8–15, signal in bits 0–6, core-dump flag 0x80.
    pub status: i32,
    /// Peak resident set, pages.
    pub rss_peak_pages: u64,
    /// When, on `CLOCK_BOOTTIME`.
    pub at_ns: u64,
}

/// Longest path of a cgroup that [`CgroupEvent`] holds, bytes; longer ones are cut off.
pub const CGROUP_PATH_BYTES: usize = 232;

/// A cgroup of the host was made or removed: the event of the ring buffer `CGROUPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupEvent {
    /// Its v2 id.
    pub cgroup: u64,
    /// When, on `CLOCK_BOOTTIME`.
    pub at_ns: u64,
    /// The slot that it was given at once, [`NO_SLOT`] if there was none.
    pub slot: u32,
    /// 1: made, 0: removed.
    pub made: u32,
    /// Its path below the v2 root, ended by 0; empty when removed.
    pub path: [u8; CGROUP_PATH_BYTES],
}

/// A block request under way: value of the map `REQUESTS`, whose key is the address of the `request`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `bpf_ktime_get_ns` when it started.
    pub start_ns: u64,
    /// The tracked cgroup that it is charged to.
    pub cgroup: u64,
    /// Operation and flags (`cmd_flags`).
    pub flags: u32,
    /// 1 if the kernel writes back what tasks of the cgroup wrote before.
    pub writeback: u16,
    /// 1 once its bytes are counted: when it goes to the device.
    pub is_booked: u16,
    /// Its bytes; they grow until it goes to the device.
    pub bytes: u64,
}

/// A TCP connection of a tracked cgroup: value of the map `CONNECTIONS`, whose key is the address of the
/// `sock`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// `bpf_ktime_get_ns` when it was asked for, or accepted.
    pub opened_ns: u64,
    /// When data came in that has not been answered yet; 0: none.
    pub request_ns: u64,
    /// Time until it was established, for one that this side opened.
    pub connect_ns: u64,
    /// Time from asking for it to the first bytes of the other side; 0: none came, or the other side opened it.
    pub answer_ns: u64,
    /// Payload sent.
    pub sent_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
    /// The other side.
    pub peer: PeerKey,
}

/// Whom a cgroup talks to: key of the map `PEERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerKey {
    /// Address, network order; the first 4 bytes for IPv4.
    pub address: [u8; 16],
    /// Slot of the cgroup.
    pub slot: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Its port where this side opened the connection; 0 for a client.
    pub port: u16,
}

/// Closed connections to one peer: value of the map `PEERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// How many.
    pub connections: u64,
    /// Payload sent.
    pub sent_bytes: u64,
    /// Payload received.
    pub received_bytes: u64,
    /// Time until they were established, in all.
    pub connect_ns: u64,
    /// How long they were open, in all.
    pub held_ns: u64,
    /// When the first was opened, on `CLOCK_MONOTONIC`.
    pub first_ns: u64,
    /// Time from asking for a connection to the first bytes of the other side, in all. None for clients.
    pub answer_ns: u64,
    /// Connections that are open now, of those that this side opened; also where `connections` is 0 still.
    pub open: u64,
    /// Most of them at once.
    pub open_max: u64,
}

/// The last page fault of a thread: value of the map `FAULTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The thread, as `bpf_get_current_pid_tgid` has it.
    pub thread: u64,
    /// Number of the page.
    pub page: u64,
    /// Pages between it and the fault before.
    pub step: i64,
}

/// Where the fields are that the programs read, in bytes from the start of their struct, as this kernel's
/// BTF has it; [`ABSENT`] if the kernel has no such field. Rust emits no CO-RE relocations, so user space
/// looks them up before loading and puts them into the read-only global `OFFSETS`. The verifier knows the
/// content of frozen read-only data: it checks each load against the real struct, and drops branches that
/// test for `ABSENT`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is named `struct_field` after the kernel's")]
pub struct Offsets {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_state: u32,
    pub task_prio: u32,
    pub task_sum_exec_runtime: u32,
    pub task_prev_sum_exec_runtime: u32,
    pub task_run_delay: u32,
    pub task_pcount: u32,
    pub task_last_arrival: u32,
    pub task_min_flt: u32,
    pub task_maj_flt: u32,
    pub task_cgroups: u32,
    pub task_signal: u32,
    pub task_group_leader: u32,
    pub task_exit_code: u32,
    pub task_read_bytes: u32,
    pub task_write_bytes: u32,
    pub signal_live: u32,
    pub signal_flags: u32,
    pub signal_group_exit_code: u32,
    pub signal_maxrss: u32,
    pub css_set_dfl_cgrp: u32,
    pub cgroup_kn: u32,
    pub cgroup_level: u32,
    pub cgroup_ancestors: u32,
    pub cgroup_ancestor_ids: u32,
    pub cgroup_root: u32,
    pub cgroup_root_hierarchy_id: u32,
    pub kernfs_node_id: u32,
    pub request_bio: u32,
    pub request_data_len: u32,
    pub request_cmd_flags: u32,
    pub bio_blkg: u32,
    pub blkg_blkcg: u32,
    pub blkcg_cgroup: u32,
    pub sock_cgroup: u32,
    pub sock_family: u32,
    pub sock_protocol: u32,
    pub task_flags: u32,
    pub request_sector: u32,
    pub bio_io_vec: u32,
    pub bio_vec_page: u32,
    pub page_compound_head: u32,
    pub page_mapping: u32,
    pub mapping_host: u32,
    pub inode_mode: u32,
    pub sock_dport: u32,
    pub sock_daddr: u32,
    pub sock_v6_daddr: u32,
    pub tcp_srtt_us: u32,
    /// Not an offset: 1 if `sched_process_exit` tells in its second argument whether the process ended
    /// (Linux 6.16), else 0.
    pub exit_tells_group_dead: u32,
    /// Not an offset: entries per slot of `COUNTERS`, the highest CPU number plus 1.
    pub cpus: u32,
    /// Not an offset: level below the v2 root where tracked cgroups are. A task deeper down, in a cgroup
    /// without a slot of its own, is charged to its ancestor at this level.
    pub run_level: u32,
}

/// In [`Offsets`]: this kernel has no such field.
pub const ABSENT: u32 = u32::MAX;

/// What should have been counted and was not: the single entry of the map `LOSSES`, added atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Exit events lost because the ring buffer was full.
    pub events: u64,
    /// Block requests not measured because `REQUESTS` was full.
    pub requests: u64,
    /// Block requests whose end was not shown: their bytes are counted, but their latency is not.
    pub ends: u64,
    /// Cgroups of the host that were made unseen because the ring `CGROUPS` was full.
    pub cgroups: u64,
    /// Connections not followed because `CONNECTIONS` was full.
    pub connections: u64,
    /// Connections whose peer was not kept because `PEERS` was full.
    pub peers: u64,
}

const _: () = {
    assert!(size_of::<Counters>() == 8 * (37 + 8 * HISTOGRAM_BUCKETS));
    assert!(size_of::<Shared>() == 56);
    assert!(size_of::<OnCpu>() == 192);
    assert!(size_of::<Departure>() == 40);
    assert!(size_of::<Request>() == 32);
    assert!(size_of::<Offsets>() == 4 * 53);
    assert!(size_of::<ProcessExit>() == 32);
    assert!(size_of::<Losses>() == 48);
    assert!(size_of::<CgroupEvent>() == 256);
    assert!(size_of::<Connection>() == 72);
    assert!(size_of::<PeerKey>() == 24);
};
