//! Block I/O: bytes, requests and latency.
//!
//! | | |
//! |---|---|
//! | hooks | start: `tp_btf/block_io_start` (Linux 6.5), else `block_rq_issue`; end: `block_rq_complete` |
//! | maps | `REQUESTS`: address of the request → [`Request`]; `SLOTS`, `COUNTERS` |
//! | cost | start: a hash lookup or two and an insertion; end: two lookups and a deletion; requests of cgroups that nobody tracks: the lookups |
//! | floor | Linux 5.15 |
//! | fallback | `block_rq_issue` misses the time in the I/O scheduler and may run in a kernel thread, which hides who submitted; below that `io.stat` |
//!
//! Charged to the cgroup that owns the bio where the io controller is on the v2 hierarchy, buffered writes
//! included; elsewhere to the task that submits, which for buffered writes is a kernel thread. Bytes are
//! counted at the end, not at the start: a request grows while others are merged into it. Devices that take
//! bios directly (brd, pmem, zram) have no requests and are not seen.
use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_probes::{ABSENT, Counters, Request};

use crate::{
    kernel::{Pointer, cgroup_of_task, is_v2, load, offset},
    maps::{self, REQUESTS, add, bucket, slot, tracked},
};

/// Operations of `enum req_op` in the low 8 bits of `cmd_flags`.
const OPERATION_MASK: u32 = 0xff;
const READ: u32 = 0;
const WRITE: u32 = 1;

#[btf_tracepoint(function = "block_io_start")]
fn block_io_start(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe { start(context.arg(0)) }
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
fn block_rq_issue(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe { start(context.arg(0)) }
    0
}

/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn start(request: Pointer) {
    // SAFETY: the caller's promise.
    unsafe {
        let operation = load::<u32>(request, offset!(request_cmd_flags)) & OPERATION_MASK;
        let is_transfer = operation == READ || operation == WRITE;
        if !is_transfer || load::<u32>(request, offset!(request_data_len)) == 0 {
            return;
        }
        let Some(tracked) = tracked(owner(request)) else {
            return;
        };
        let value = Request {
            start_ns: bpf_ktime_get_ns(),
            cgroup: tracked.cgroup,
            write: u64::from(operation == WRITE),
        };
        if REQUESTS.insert(&(request as u64), &value, 0).is_err()
            && let Some(losses) = maps::losses()
        {
            add(&raw mut (*losses).requests, 1);
        }
    }
}

/// The v2 cgroup that a request is charged to.
///
/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn owner(request: Pointer) -> Pointer {
    // SAFETY: the caller's promise; each step gives the struct that the next offset belongs to.
    unsafe {
        if offset!(bio_blkg) != ABSENT {
            let bio: Pointer = load(request, offset!(request_bio));
            let blkg: Pointer = load(bio, offset!(bio_blkg));
            let blkcg: Pointer = load(blkg, offset!(blkg_blkcg));
            let cgroup: Pointer = load(blkcg, offset!(blkcg_cgroup));
            if !cgroup.is_null() && is_v2(cgroup) {
                return cgroup;
            }
        }
        cgroup_of_task(aya_ebpf::helpers::bpf_get_current_task_btf() as Pointer)
    }
}

#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(context: BtfTracePointContext) -> i32 {
    let (request, bytes): (Pointer, u32) = (context.arg(0), context.arg(2));
    let key = request as u64;
    // SAFETY: a struct request, whose entry nobody replaces before it has ended.
    unsafe {
        let Some(begun) = REQUESTS.get_ptr(&key).map(|begun| *begun) else {
            return 0;
        };
        // Part of a request can end by itself; what is left then stays in `__data_len`.
        let is_last = bytes >= load::<u32>(request, offset!(request_data_len));
        // Looked up again, as the slot can have passed to another cgroup meanwhile.
        if let Some(slot) = slot(begun.cgroup)
            && let Some(counters) = maps::counters(slot, maps::this_cpu())
        {
            book(counters, &begun, u64::from(bytes), is_last);
        }
        if is_last {
            let _ = REQUESTS.remove(&key);
        }
    }
    0
}

/// # Safety
/// `counters` must point to a map value.
#[inline(always)]
unsafe fn book(counters: *mut Counters, request: &Request, bytes: u64, is_last: bool) {
    // SAFETY: the caller's promise; a bucket is inside its histogram.
    unsafe {
        let (total, operations, histogram) = if request.write != 0 {
            let histogram = (&raw mut (*counters).block_write_ns).cast::<u64>();
            (&raw mut (*counters).block_write_bytes, &raw mut (*counters).block_write_ops, histogram)
        } else {
            let histogram = (&raw mut (*counters).block_read_ns).cast::<u64>();
            (&raw mut (*counters).block_read_bytes, &raw mut (*counters).block_read_ops, histogram)
        };
        add(total, bytes);
        if is_last {
            add(operations, 1);
            add(histogram.add(bucket(bpf_ktime_get_ns() - request.start_ns)), 1);
        }
    }
}
