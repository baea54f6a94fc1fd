//! Listeners register themselves inside `listen()`, so that a connection can never meet one that is not known;
//! established connections are counted; connections that warm an instance are told apart by their source port.
//!
//! | | |
//! |---|---|
//! | hooks | `sockops` on the service's cgroup (`sock_ops`) and on that of its warming (`warm_ops`) |
//! | maps | `TAGS`, `MEMBERS`; `LISTENERS`, `WARMING`, `STEER_EVENTS` |
//! | cost | four calls of about 60 ns per connection |
//! | floor | Linux 5.8 (TCP listeners in a sockmap for SK_REUSEPORT: 5.8) |
//! | fallback | none: the service is restarted without a shadow |
use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB,
        bpf_sock_ops,
    },
    helpers::bpf_sk_storage_get,
    macros::sock_ops,
    programs::SockOpsContext,
};
use ebpf_probes::steer::{GROUPS_MAX, LISTENS, MEMBERS_MAX, SLOTS_MAX, Tag, listener_key};

use crate::maps::{self, count, fetch_increment};

/// Goes on, whatever happens here.
const ALLOW: u32 = 1;

#[sock_ops]
fn service_ops(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => {
            // SAFETY: the kernel's context.
            unsafe { register(context.ops) };
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => count!(established),
        _ => {}
    }
    ALLOW
}

/// Puts the listener into the first free place of its instance and address.
///
/// # Safety
/// `ops` must be the kernel's context.
#[inline(always)]
unsafe fn register(ops: *mut bpf_sock_ops) {
    // SAFETY: the caller's promise; the rest points into map values.
    unsafe {
        let sock = (*ops).__bindgen_anon_2.sk;
        if sock.is_null() {
            return;
        }
        let storage = bpf_sk_storage_get(
            (&raw const maps::TAGS).cast_mut().cast(),
            sock.cast(),
            core::ptr::null_mut(),
            0,
        )
        .cast::<Tag>();
        if storage.is_null() {
            return;
        }
        let Tag { slot, group } = *storage;
        if slot >= SLOTS_MAX || group >= GROUPS_MAX {
            return;
        }
        let Some(members) = maps::MEMBERS.get_ptr_mut(slot * GROUPS_MAX + group) else { return };
        let member = fetch_increment(members);
        if member >= u64::from(MEMBERS_MAX) {
            return count!(listeners_lost);
        }
        let key = listener_key(slot, group, member as u32);
        match maps::LISTENERS.update(key, ops, 0) {
            Ok(()) => maps::send(LISTENS, slot, 0, group, false),
            Err(_) => count!(listeners_lost),
        }
    }
}

/// In the warming cgroup: the source port is chosen, the first packet not yet sent.
#[sock_ops]
fn warm_ops(context: SockOpsContext) -> u32 {
    if context.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        // Full only if more connections warm at once than are remembered: those go to the active instance.
        _ = maps::WARMING.insert(&context.local_port(), &1, 0);
    }
    ALLOW
}
