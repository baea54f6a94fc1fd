//! How long the service takes to answer: from the last bytes of a request that reach a connection to the first
//! bytes that go back on it. Counted are answers, and those that took longer than allowed. Only loaded where the
//! user gave a latency to keep to.
//!
//! | | |
//! |---|---|
//! | hooks | `cgroup_skb/ingress`, `cgroup_skb/egress` on the service's cgroup |
//! | maps | `SERVED`, `CONTROL`; `ASKED`, `STEERED` |
//! | cost | about 0.1 µs per packet of the service's cgroup |
//! | floor | Linux 4.19 (socket cookies in cgroup_skb) |
//! | fallback | the ready probe |
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns},
    macros::cgroup_skb,
    programs::SkBuffContext,
};

use crate::maps::{self, count};

const ALLOW: i32 = 1;
const IPPROTO_TCP: u8 = 6;
const IPV6_HEADER_BYTES: usize = 40;

#[cgroup_skb(ingress)]
fn asked(context: SkBuffContext) -> i32 {
    if is_payload(&context) {
        // SAFETY: helpers that take the context or nothing.
        let (cookie, now_ns) = unsafe { (bpf_get_socket_cookie(context.as_ptr()), bpf_ktime_get_ns()) };
        _ = maps::ASKED.insert(&cookie, &now_ns, 0);
    }
    ALLOW
}

#[cgroup_skb(egress)]
fn answered(context: SkBuffContext) -> i32 {
    if !is_payload(&context) {
        return ALLOW;
    }
    // SAFETY: helpers that take the context or nothing; an entry is read at once.
    unsafe {
        let cookie = bpf_get_socket_cookie(context.as_ptr());
        let Some(asked_ns) = maps::ASKED.get_ptr(&cookie).map(|asked_ns| *asked_ns) else { return ALLOW };
        _ = maps::ASKED.remove(&cookie);
        let Some(control) = maps::control() else { return ALLOW };
        let allowed_ns = core::ptr::read_volatile(&raw const (*control).latency_max_ns);
        count!(answered);
        if bpf_ktime_get_ns().wrapping_sub(asked_ns) > allowed_ns {
            count!(answered_late);
        }
    }
    ALLOW
}

/// Whether the packet carries data of a connection to the service. What a server fetches from others goes by
/// other ports.
#[inline(always)]
fn is_payload(context: &SkBuffContext) -> bool {
    if maps::SERVED.get_ptr(&context.skb.local_port()).is_none() {
        return false;
    }
    payload_bytes(context).is_some_and(|bytes| bytes > 0)
}

#[inline(always)]
fn payload_bytes(context: &SkBuffContext) -> Option<u32> {
    let byte = |offset: usize| context.load::<u8>(offset).ok();
    let first = byte(0)?;
    let (header, protocol) = match first >> 4 {
        4 => (usize::from(first & 0xf) * 4, byte(9)?),
        6 => (IPV6_HEADER_BYTES, byte(6)?),
        _ => return None,
    };
    if protocol != IPPROTO_TCP {
        return None;
    }
    let tcp = usize::from(byte(header + 12)? >> 4) * 4;
    context.len().checked_sub((header + tcp) as u32)
}
