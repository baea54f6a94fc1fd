//! The maps of one service, and the few ways in which its programs use them.
//!
//! | map | key → value | written by |
//! |---|---|---|
//! | `CONTROL` | 0 → [`Control`] | user space; `active` also by `dying` |
//! | `INSTANCES` | v2 cgroup id → slot | user space |
//! | `WATCHED` | main process → slot | user space |
//! | `GROUPS` | [`GroupKey`] → group | `bind`, at the first bind of an address |
//! | `GROUPS_USED` | 0 → number of groups | `bind` |
//! | `MEMBERS` | slot and group → listeners registered | `listen`; zeroed by user space for a new instance |
//! | `TAGS` | socket → [`Tag`] | `bind` |
//! | `LISTENERS` | [`listener_key`](ebpf_probes::steer::listener_key) → socket | `listen`; UDP by user space |
//! | `WARMING` | source port → 1 | `listen`, user space |
//! | `SERVED` | port of the service → 1 | `bind` |
//! | `ASKED` | connection (its cookie) → time of its last request | `latency` |
//! | `STEERED` | 0 → [`Steered`] | all programs, atomically |
//! | `STEER_EVENTS` | ring of [`SteerEvent`] | `listen`, `dying` |
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, RingBuf, SkStorage, SockMap},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use ebpf_probes::steer::{Control, GROUPS_MAX, GroupKey, LISTENERS_MAX, SLOTS_MAX, SteerEvent, Steered, Tag};

/// Warming connections whose source ports are remembered at once.
const WARMING_MAX: usize = 1024;
/// Connections whose requests wait for an answer at once; more are not measured.
const ASKED_MAX: usize = 16 * 1024;
/// Room for 1,000 events; an instance makes a handful.
const EVENTS_BYTES: usize = 64 * 1024;

#[btf_map]
pub(crate) static CONTROL: Array<Control, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static INSTANCES: HashMap<u64, u32, { SLOTS_MAX as usize }> = HashMap::new();
#[btf_map]
pub(crate) static WATCHED: HashMap<u32, u32, { SLOTS_MAX as usize }> = HashMap::new();
#[btf_map]
pub(crate) static GROUPS: HashMap<GroupKey, u32, { GROUPS_MAX as usize }> = HashMap::new();
#[btf_map]
pub(crate) static GROUPS_USED: Array<u64, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
pub(crate) static MEMBERS: Array<u64, { (SLOTS_MAX * GROUPS_MAX) as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();
#[btf_map]
pub(crate) static TAGS: SkStorage<Tag> = SkStorage::new();
#[btf_map]
pub(crate) static LISTENERS: SockMap<{ LISTENERS_MAX as usize }> = SockMap::new();
#[btf_map]
pub(crate) static WARMING: LruHashMap<u32, u32, WARMING_MAX> = LruHashMap::new();
#[btf_map]
pub(crate) static SERVED: HashMap<u32, u32, { GROUPS_MAX as usize }> = HashMap::new();
#[btf_map]
pub(crate) static ASKED: LruHashMap<u64, u64, ASKED_MAX> = LruHashMap::new();
#[btf_map]
static STEERED: Array<Steered, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static STEER_EVENTS: RingBuf<SteerEvent, EVENTS_BYTES> = RingBuf::new();

/// What user space wants.
#[inline(always)]
pub(crate) fn control() -> Option<*mut Control> {
    CONTROL.get_ptr_mut(0)
}

/// Adds 1 to a field of [`Steered`].
macro_rules! count {
    ($field:ident) => {
        $crate::maps::count_at(core::mem::offset_of!(ebpf_probes::steer::Steered, $field))
    };
}
pub(crate) use count;

#[inline(always)]
pub(crate) fn count_at(offset: usize) {
    if let Some(steered) = STEERED.get_ptr_mut(0) {
        // SAFETY: a field of a map value; all are u64.
        unsafe {
            let field = steered.cast::<u8>().add(offset).cast::<u64>();
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(field, 1);
        }
    }
}

/// Adds 1 to a map value and tells what it was before.
///
/// # Safety
/// `counter` must point into a map value.
#[inline(always)]
pub(crate) unsafe fn fetch_increment(counter: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(counter, 1) }
}

/// Tells user space, at once.
#[inline(always)]
pub(crate) fn send(kind: u32, slot: u32, pid: u32, detail: u32, turned: bool) {
    let Some(mut event) = STEER_EVENTS.reserve(0) else {
        return count!(events_lost);
    };
    // SAFETY: a helper without arguments.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    event.write(SteerEvent { at_ns, kind, slot, pid, detail, turned: u32::from(turned), reserved: 0 });
    event.submit(0);
}
