//! The maps, and the few ways in which programs use them.
//!
//! | map | key → value | written by |
//! |---|---|---|
//! | `SLOTS` | v2 cgroup id → slot | user space |
//! | `COUNTERS` | `slot * cpus + cpu` → [`Counters`] | that CPU |
//! | `SHARED` | slot → [`Shared`] | all CPUs, atomically |
//! | `DEMAND` | slot → [`Demand`] | all CPUs and user space, atomically |
//! | `CPUS` | cpu → [`OnCpu`] | that CPU; user space writes `slots_version` |
//! | `DEPARTURES` | low bits of a thread's id → [`Departure`] | `sched` |
//! | `REQUESTS` | address of a block request → [`Request`] | `block_io` |
//! | `WRITERS` | address of an inode → v2 cgroup id of who dirtied it last | `block_io` |
//! | `CONNECTIONS` | address of a TCP socket → [`Connection`] | `socket` |
//! | `PEERS` | slot and address → [`Peer`] | `socket`, user space |
//! | `FAULTS` | low bits of a thread's id → [`Fault`] | `faults` |
//! | `EVENTS` | ring of [`ProcessExit`] | `lifecycle` |
//! | `FREE` | slots that new cgroups of the host may be given | user space; `host` takes them |
//! | `HOST` | 0 → process whose own new cgroups are not for `host`; 0: none are | user space |
//! | `CGROUPS` | ring of [`CgroupEvent`] | `host` |
//! | `LOSSES` | 0 → [`Losses`] | all CPUs, atomically |
//!
//! The arrays can be mapped into user space, which reads them without a system call. Entries of `SLOTS`,
//! `COUNTERS`, `SHARED`, `DEMAND` and `CPUS` are set at load.
use core::intrinsics::{AtomicOrdering, atomic_xadd, atomic_xchg};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, Queue, RingBuf},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use ebpf_probes::{
    CgroupEvent, Connection, Counters, Departure, Fault, Losses, NO_SLOT, OnCpu, Peer, PeerKey, ProcessExit,
    Request, Shared, demand::Demand,
};

use crate::kernel::{self, Pointer, offset};

/// Most block requests under way at once that are measured; more are counted in [`Losses`].
const REQUESTS_MAX: usize = 8192;
/// Files whose last writer is remembered; the least recently used one is forgotten.
const WRITERS_MAX: usize = 16_384;
/// Most TCP connections that are followed at once; more are counted in [`Losses`].
const CONNECTIONS_MAX: usize = 16_384;
/// Most pairs of cgroup and peer; more are counted in [`Losses`].
const PEERS_MAX: usize = 8192;
/// Threads whose last fault is remembered; a power of two.
pub(crate) const FAULTS_MAX: usize = 4096;
/// Threads whose last switch-out is remembered; a power of two.
const DEPARTURES_MAX: usize = 4096;
/// Room for the beginnings of 1,000 cgroups between two drains.
const CGROUPS_BYTES: usize = 256 * 1024;
/// Room for the exits of 8192 processes between two drains.
const EVENTS_BYTES: usize = 256 * 1024;

#[btf_map]
pub(crate) static SLOTS: HashMap<u64, u32, 1> = HashMap::new();
#[btf_map]
static COUNTERS: Array<Counters, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static SHARED: Array<Shared, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static DEMAND: Array<Demand, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static CPUS: Array<OnCpu, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static DEPARTURES: Array<Departure, DEPARTURES_MAX> = Array::new();
#[btf_map]
pub(crate) static REQUESTS: HashMap<u64, Request, REQUESTS_MAX> = HashMap::new();
#[btf_map]
pub(crate) static WRITERS: LruHashMap<u64, u64, WRITERS_MAX> = LruHashMap::new();
#[btf_map]
pub(crate) static CONNECTIONS: HashMap<u64, Connection, CONNECTIONS_MAX> = HashMap::new();
#[btf_map]
pub(crate) static PEERS: HashMap<PeerKey, Peer, PEERS_MAX> = HashMap::new();
#[btf_map]
pub(crate) static FAULTS: Array<Fault, FAULTS_MAX> = Array::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<ProcessExit, EVENTS_BYTES> = RingBuf::new();
#[btf_map]
pub(crate) static FREE: Queue<u32, 1> = Queue::new();
#[btf_map]
pub(crate) static HOST: Array<u64, 1> = Array::new();
#[btf_map]
pub(crate) static CGROUPS: RingBuf<CgroupEvent, CGROUPS_BYTES> = RingBuf::new();
#[btf_map]
static LOSSES: Array<Losses, 1> = Array::new();

/// The number of this CPU.
#[inline(always)]
pub(crate) fn this_cpu() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() }
}

/// The counters of a slot on a CPU.
#[inline(always)]
pub(crate) fn counters(slot: u32, cpu: u32) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(slot * offset!(cpus) + cpu)
}

/// What all CPUs share for a slot.
#[inline(always)]
pub(crate) fn shared(slot: u32) -> Option<*mut Shared> {
    SHARED.get_ptr_mut(slot)
}

/// The CPU demand of a slot.
#[inline(always)]
pub(crate) fn demand(slot: u32) -> Option<*mut Demand> {
    DEMAND.get_ptr_mut(slot)
}

/// The scheduler program's state of a CPU.
#[inline(always)]
pub(crate) fn on_cpu(cpu: u32) -> Option<*mut OnCpu> {
    CPUS.get_ptr_mut(cpu)
}

/// Where the last switch-out of a thread is remembered; another one's may be there.
#[inline(always)]
pub(crate) fn departure(thread: u64) -> Option<*mut Departure> {
    DEPARTURES.get_ptr_mut(thread as u32 & (DEPARTURES_MAX as u32 - 1))
}

/// Counts of what was lost.
#[inline(always)]
pub(crate) fn losses() -> Option<*mut Losses> {
    LOSSES.get_ptr_mut(0)
}

/// A tracked cgroup and its slot.
#[derive(Clone, Copy)]
pub(crate) struct Tracked {
    pub(crate) cgroup: u64,
    pub(crate) slot: u32,
}

impl Tracked {
    /// Its counters on this CPU.
    #[inline(always)]
    pub(crate) fn counters(self) -> Option<*mut Counters> {
        counters(self.slot, this_cpu())
    }
}

/// The tracked cgroup that something in `cgroup` is charged to: itself or its ancestor at `run_level`.
///
/// # Safety
/// `cgroup` must be a `struct cgroup` of the v2 hierarchy known to the verifier ([`kernel::load`]).
#[inline(always)]
pub(crate) unsafe fn tracked(cgroup: Pointer) -> Option<Tracked> {
    // SAFETY: the caller's promise.
    let id = unsafe { kernel::cgroup_id(cgroup) };
    if let Some(slot) = slot(id) {
        return Some(Tracked { cgroup: id, slot });
    }
    // SAFETY: as above.
    let id = unsafe { kernel::ancestor_id_at_run_level(cgroup) }?;
    slot(id).map(|slot| Tracked { cgroup: id, slot })
}

/// The slot that user space has given a cgroup.
#[inline(always)]
pub(crate) fn slot(cgroup: u64) -> Option<u32> {
    // SAFETY: entries are replaced by user space alone, and a slot is read at once.
    SLOTS.get_ptr(&cgroup).map(|slot| unsafe { *slot }).filter(|slot| *slot != NO_SLOT)
}

/// Adds to a counter that an interrupt on this CPU may add to as well.
///
/// # Safety
/// `counter` must point into a map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, value: u64) {
    // Relaxed, since the result is not used: one locked instruction.
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds to a counter that other CPUs add to as well, and tells what it was before.
///
/// # Safety
/// `counter` must point into a map value.
#[inline(always)]
pub(crate) unsafe fn fetch_add(counter: *mut u64, value: u64) -> u64 {
    // Not Relaxed: LLVM 22 then drops the fetch and gives back the addend, even where the result is used.
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(counter, value) }
}

/// Replaces a word, and tells what it was before.
///
/// # Safety
/// `word` must point into a map value.
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(word, value) }
}

/// Tries of [`raise_to`]; losing that often to other CPUs in a row does not happen in practice.
const RAISE_TRIES: u32 = 8;

/// Raises a maximum that other CPUs raise as well.
///
/// # Safety
/// `maximum` must point into a map value.
#[inline(always)]
pub(crate) unsafe fn raise_to(maximum: *mut u64, value: u64) {
    for _ in 0..RAISE_TRIES {
        // SAFETY: the caller's promise.
        let seen = unsafe { core::ptr::read_volatile(maximum) };
        if seen >= value {
            return;
        }
        // SAFETY: as above.
        let (_, replaced) = unsafe {
            core::intrinsics::atomic_cxchg::<u64, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(
                maximum, seen, value,
            )
        };
        if replaced {
            return;
        }
    }
}

/// Bucket of a histogram: the position of the highest bit, at most 31. The instruction set has no count of
/// leading zeros below v4.
#[inline(always)]
pub(crate) fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds >> 32 != 0 {
        return 31;
    }
    let mut rest = nanoseconds as u32;
    let mut bucket = 0;
    if rest >= 1 << 16 {
        rest >>= 16;
        bucket += 16;
    }
    if rest >= 1 << 8 {
        rest >>= 8;
        bucket += 8;
    }
    if rest >= 1 << 4 {
        rest >>= 4;
        bucket += 4;
    }
    if rest >= 1 << 2 {
        rest >>= 2;
        bucket += 2;
    }
    if rest >= 1 << 1 {
        bucket += 1;
    }
    bucket & 31
}
