//! Cgroups that others make: they are given a slot the moment they are there, so that nothing of them is missed,
//! however short they live.
//!
//! | | |
//! |---|---|
//! | hooks | `tp_btf/cgroup_mkdir`, `cgroup_rmdir` |
//! | maps | `HOST`, `FREE` (slots to give), `SLOTS`, `CGROUPS` (a [`CgroupEvent`] each) |
//! | cost | microseconds per cgroup made or removed |
//! | floor | Linux 5.15 |
//! | fallback | what is there when the agent starts |
use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::{
        bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel_str,
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use ebpf_probes::{CGROUP_PATH_BYTES, CgroupEvent, NO_SLOT};

use crate::{
    kernel::{Pointer, cgroup_id, is_v2},
    maps::{self, CGROUPS, FREE, HOST, SLOTS, add},
};

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_made(context: BtfTracePointContext) -> i32 {
    let (cgroup, path): (Pointer, *const u8) = (context.arg(0), context.arg(1));
    // SAFETY: a struct cgroup; map values.
    unsafe {
        let agent = HOST.get_ptr(0).map_or(0, |agent| *agent);
        // The agent tracks its own by itself.
        if agent == 0 || agent == bpf_get_current_pid_tgid() >> 32 || !is_v2(cgroup) {
            return 0;
        }
        let id = cgroup_id(cgroup);
        let mut slot = FREE.pop().ok().flatten().unwrap_or(NO_SLOT);
        if slot != NO_SLOT && SLOTS.insert(&id, &slot, 0).is_err() {
            let _ = FREE.push(&slot, 0);
            slot = NO_SLOT;
        }
        report(id, slot, 1, path);
    }
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_removed(context: BtfTracePointContext) -> i32 {
    let cgroup: Pointer = context.arg(0);
    // SAFETY: a struct cgroup; map values.
    unsafe {
        if HOST.get_ptr(0).is_none_or(|agent| *agent == 0) || !is_v2(cgroup) {
            return 0;
        }
        let id = cgroup_id(cgroup);
        if let Some(slot) = maps::slot(id) {
            report(id, slot, 0, core::ptr::null());
        }
    }
    0
}

/// # Safety
/// The helper checks `path`.
#[inline(always)]
unsafe fn report(cgroup: u64, slot: u32, made: u32, path: *const u8) {
    let Some(mut event) = CGROUPS.reserve(0) else {
        if let Some(losses) = maps::losses() {
            // SAFETY: a map value.
            unsafe { add(&raw mut (*losses).cgroups, 1) };
        }
        return;
    };
    // SAFETY: room for a whole event, of which every part is written.
    unsafe {
        let event: *mut CgroupEvent = event.as_mut_ptr();
        (*event).cgroup = cgroup;
        (*event).at_ns = bpf_ktime_get_boot_ns();
        (*event).slot = slot;
        (*event).made = made;
        let text = (&raw mut (*event).path).cast::<u8>();
        *text = 0;
        if made != 0 {
            bpf_probe_read_kernel_str(text.cast(), CGROUP_PATH_BYTES as u32, path.cast());
        }
    }
    event.submit(u64::from(BPF_RB_NO_WAKEUP));
}
