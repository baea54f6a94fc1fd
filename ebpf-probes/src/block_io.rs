//! Block I/O: bytes, requests, time in the queue and in all, order, and who it is for.
//!
//! | | |
//! |---|---|
//! | hooks | start: `tp_btf/block_io_start` (Linux 6.5), else `block_rq_issue`; to the device: `block_rq_issue`; end: `block_rq_complete`; writers: `writeback_dirty_folio` (Linux 5.16) |
//! | maps | `REQUESTS`: address of the request → [`Request`]; `WRITERS`; `SLOTS`, `COUNTERS`, `SHARED` |
//! | cost | start: a hash lookup or two and an insertion; to the device: two lookups; end: two lookups and a deletion; requests of cgroups that nobody tracks: the lookups; a page that becomes dirty: a comparison, and a hash update where another file was dirtied before |
//! | floor | Linux 5.15 |
//! | fallback | `block_rq_issue` misses the time in the I/O scheduler and may run in a kernel thread, which hides who submitted; below that `io.stat` |
//!
//! Charged to the cgroup that owns the bio where the io controller is on the v2 hierarchy, buffered writes
//! included. Elsewhere to the task that submits; where that is a kernel thread which writes dirty pages back, to
//! the cgroup that dirtied the file last. Bytes are counted when the request goes to the device: until then it
//! grows while others are merged into it. Devices that take bios directly (brd, pmem, zram) have no requests and are not
//! seen.
//!
//! The end of a request is not always shown to programs: a sandbox's kernel (Linux 6.18) runs none while a thread of its
//! init is current, nor in an interrupt then. Such a request has no latency, and is counted in `LOSSES.ends` when its
//! memory is used for the next one.
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use ebpf_probes::{ABSENT, Counters, Request};

use crate::{
    kernel::{Pointer, cgroup_of_task, is_v2, load, offset, read},
    maps::{self, REQUESTS, WRITERS, add, bucket, exchange, slot, tracked},
};

/// Operations of `enum req_op` in the low 8 bits of `cmd_flags`.
const OPERATION_MASK: u32 = 0xff;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const DISCARD: u32 = 3;

/// Flags of `enum req_flag_bits` above the operation (include/linux/blk_types.h), the same since 4.10.
const SYNC: u32 = 1 << 11;
const FUA: u32 = 1 << 17;
const PREFLUSH: u32 = 1 << 18;
const AHEAD: u32 = 1 << 19;

/// `PF_KTHREAD` of include/linux/sched.h.
const KERNEL_THREAD: u32 = 0x20_0000;

/// `S_IFMT` and `S_IFBLK` of include/uapi/linux/stat.h.
const FILE_TYPE: u16 = 0xf000;
const BLOCK_DEVICE: u16 = 0x6000;

const SECTOR_SHIFT: u64 = 9;

#[btf_tracepoint(function = "block_io_start")]
fn block_io_start(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe { start(context.arg(0)) }
    0
}

/// Where there is no `block_io_start`.
#[btf_tracepoint(function = "block_rq_issue")]
fn block_rq_issue(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe {
        start(context.arg(0));
        send(context.arg(0));
    }
    0
}

#[btf_tracepoint(function = "block_rq_issue")]
fn block_rq_send(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe { send(context.arg(0)) }
    0
}

/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn start(request: Pointer) {
    // SAFETY: the caller's promise.
    unsafe {
        let flags = load::<u32>(request, offset!(request_cmd_flags));
        let operation = flags & OPERATION_MASK;
        if operation > DISCARD {
            return;
        }
        let (cgroup, writeback) = owner(request, operation);
        let Some(cgroup) = cgroup else { return };
        let value = Request {
            start_ns: bpf_ktime_get_ns(),
            cgroup,
            flags,
            writeback: u16::from(writeback),
            is_booked: 0,
            bytes: u64::from(load::<u32>(request, offset!(request_data_len))),
        };
        let key = request as u64;
        if REQUESTS.insert(&key, &value, u64::from(BPF_NOEXIST)).is_ok() {
            return;
        }
        if let Some(unended) = REQUESTS.get_ptr_mut(&key) {
            book(&mut *unended, (*unended).bytes);
            if let Some(losses) = maps::losses() {
                add(&raw mut (*losses).ends, 1);
            }
        }
        if REQUESTS.insert(&key, &value, 0).is_err()
            && let Some(losses) = maps::losses()
        {
            add(&raw mut (*losses).requests, 1);
        }
    }
}

/// The tracked cgroup that a request is charged to, and whether it writes back for it.
///
/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn owner(request: Pointer, operation: u32) -> (Option<u64>, bool) {
    // SAFETY: the caller's promise; each step gives the struct that the next offset belongs to.
    unsafe {
        let task = aya_ebpf::helpers::bpf_get_current_task_btf() as Pointer;
        let by_kernel = load::<u32>(task, offset!(task_flags)) & KERNEL_THREAD != 0;
        let writeback = by_kernel && operation == WRITE;
        let bio: Pointer = load(request, offset!(request_bio));
        if offset!(bio_blkg) != ABSENT {
            let blkg: Pointer = load(bio, offset!(bio_blkg));
            let blkcg: Pointer = load(blkg, offset!(blkg_blkcg));
            let cgroup: Pointer = load(blkcg, offset!(blkcg_cgroup));
            if !cgroup.is_null() && is_v2(cgroup) {
                return (tracked(cgroup).map(|tracked| tracked.cgroup), writeback);
            }
        }
        if writeback && offset!(mapping_host) != ABSENT {
            let writer = inode_of(bio).and_then(|inode| WRITERS.get_ptr(&inode).map(|writer| *writer));
            return (writer, true);
        }
        (tracked(cgroup_of_task(task)).map(|tracked| tracked.cgroup), false)
    }
}

/// The inode whose page a bio begins with.
///
/// # Safety
/// `bio` must be a `struct bio`; the helper checks the rest.
#[inline(always)]
unsafe fn inode_of(bio: Pointer) -> Option<u64> {
    // SAFETY: the caller's promise. Of a large folio the first page alone has the mapping; the others point to
    // it, with the lowest bit set (include/linux/page-flags.h).
    unsafe {
        let vector: Pointer = read(bio, offset!(bio_io_vec))?;
        let page: Pointer = read(vector, offset!(bio_vec_page))?;
        let head: u64 = read(page, offset!(page_compound_head))?;
        let page = if head & 1 != 0 { (head - 1) as Pointer } else { page };
        let mapping: Pointer = read(page, offset!(page_mapping))?;
        read(mapping, offset!(mapping_host))
    }
}

#[btf_tracepoint(function = "writeback_dirty_folio")]
fn page_dirtied(context: BtfTracePointContext) -> i32 {
    let mapping: Pointer = context.arg(1);
    // SAFETY: an address_space, whose host is an inode; the rest points into map values.
    unsafe {
        if mapping.is_null() {
            return 0;
        }
        let inode: Pointer = load(mapping, offset!(mapping_host));
        let Some(state) = maps::on_cpu(maps::this_cpu()) else { return 0 };
        let thread = bpf_get_current_pid_tgid();
        // Of the last file and thread all is known.
        if (*state).dirtied_inode == inode as u64 && (*state).dirtied_by == thread {
            return 0;
        }
        if load::<u16>(inode, offset!(inode_mode)) & FILE_TYPE == BLOCK_DEVICE {
            return 0;
        }
        let task = aya_ebpf::helpers::bpf_get_current_task_btf() as Pointer;
        let key = inode as u64;
        match tracked(cgroup_of_task(task)) {
            Some(writer) => {
                let _ = WRITERS.insert(&key, &writer.cgroup, 0);
                (*state).dirtied_inode = inode as u64;
                (*state).dirtied_by = thread;
            }
            // What others write to a file is not for who wrote it before.
            None => {
                if WRITERS.get_ptr(&key).is_some() {
                    let _ = WRITERS.remove(&key);
                }
            }
        }
    }
    0
}

/// A request goes to the device: it will not grow any more.
///
/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn send(request: Pointer) {
    // SAFETY: the caller's promise; an entry of `REQUESTS` stays until the request has ended.
    unsafe {
        let Some(entry) = REQUESTS.get_ptr_mut(&(request as u64)) else { return };
        // Others may have been merged into it.
        let bytes = u64::from(load::<u32>(request, offset!(request_data_len)));
        // A request that the device did not take comes once more.
        let Some((slot, counters)) = book(&mut *entry, bytes) else { return };
        let Some(shared) = maps::shared(slot) else { return };
        let begun = *entry;
        let waited = bpf_ktime_get_ns() - begun.start_ns;
        add((&raw mut (*counters).block_queue_ns).cast::<u64>().add(bucket(waited)), 1);
        let first: u64 = load(request, offset!(request_sector));
        let end = first + (bytes >> SECTOR_SHIFT);
        let ends = (&raw mut (*shared).block_ends).cast::<u64>();
        match begun.flags & OPERATION_MASK {
            READ if exchange(ends, end) == first => add(&raw mut (*counters).block_read_sequential, 1),
            WRITE if exchange(ends.add(1), end) == first => {
                add(&raw mut (*counters).block_write_sequential, 1);
            }
            _ => {}
        }
    }
}

#[btf_tracepoint(function = "block_rq_complete")]
fn block_rq_complete(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct request.
    unsafe { end(context.arg(0), context.arg(2)) }
    0
}

/// A request became part of another one, which will end for both.
#[btf_tracepoint(function = "block_rq_merge")]
fn block_rq_merge(context: BtfTracePointContext) -> i32 {
    let request: Pointer = context.arg(0);
    let _ = REQUESTS.remove(&(request as u64));
    0
}

/// # Safety
/// `request` must be a `struct request` known to the verifier.
#[inline(always)]
unsafe fn end(request: Pointer, bytes: u32) {
    let key = request as u64;
    // SAFETY: the caller's promise; nobody replaces the entry of a request before it has ended.
    unsafe {
        let Some(begun) = REQUESTS.get_ptr_mut(&key) else { return };
        let left = load::<u32>(request, offset!(request_data_len));
        book(&mut *begun, u64::from(left));
        // Part of a request can end by itself; what is left then stays in `__data_len`.
        if bytes < left {
            return;
        }
        let took = bpf_ktime_get_ns() - (*begun).start_ns;
        // Looked up again, as the slot can have passed to another cgroup meanwhile.
        if let Some(slot) = slot((*begun).cgroup)
            && let Some(counters) = maps::counters(slot, maps::this_cpu())
            && let Some(histogram) = match (*begun).flags & OPERATION_MASK {
                _ if (*begun).bytes == 0 => None,
                READ => Some(&raw mut (*counters).block_read_ns),
                WRITE => Some(&raw mut (*counters).block_write_ns),
                _ => None,
            }
        {
            add(histogram.cast::<u64>().add(bucket(took)), 1);
        }
        let _ = REQUESTS.remove(&key);
    }
}

/// Counts a request of `bytes`, unless that has been done; gives the slot and the counters where it was done now.
///
/// # Safety
/// `request` must be a value of `REQUESTS`.
#[inline(always)]
unsafe fn book(request: &mut Request, bytes: u64) -> Option<(u32, *mut Counters)> {
    if request.is_booked != 0 {
        return None;
    }
    request.is_booked = 1;
    request.bytes = bytes;
    // SAFETY: map values.
    unsafe {
        let slot = slot(request.cgroup)?;
        let counters = maps::counters(slot, maps::this_cpu())?;
        count(counters, request);
        Some((slot, counters))
    }
}

/// # Safety
/// `counters` must point to a map value.
#[inline(always)]
unsafe fn count(counters: *mut Counters, request: &Request) {
    // SAFETY: the caller's promise.
    unsafe {
        let operation = request.flags & OPERATION_MASK;
        if operation == FLUSH || request.flags & (PREFLUSH | FUA) != 0 {
            add(&raw mut (*counters).block_flush_ops, 1);
        }
        let (total, operations) = match operation {
            DISCARD => (&raw mut (*counters).block_discard_bytes, &raw mut (*counters).block_discard_ops),
            // A write of nothing is a flush.
            _ if request.bytes == 0 => return,
            READ => (&raw mut (*counters).block_read_bytes, &raw mut (*counters).block_read_ops),
            WRITE => (&raw mut (*counters).block_write_bytes, &raw mut (*counters).block_write_ops),
            _ => return,
        };
        add(total, request.bytes);
        add(operations, 1);
        if request.writeback != 0 {
            add(&raw mut (*counters).block_writeback_bytes, request.bytes);
        }
        // Every read is waited for, unless the kernel reads ahead.
        if (operation == READ && request.flags & AHEAD == 0)
            || (operation <= WRITE && request.flags & SYNC != 0)
        {
            add(&raw mut (*counters).block_sync_ops, 1);
        }
    }
}
