//! TCP and UDP: payload bytes, connections, retransmits.
//!
//! | | |
//! |---|---|
//! | hooks | `tp_btf/sock_send_length`, `sock_recv_length` (Linux 6.3), `inet_sock_set_state`, `tcp_retransmit_skb` |
//! | maps | `SLOTS`, `COUNTERS` |
//! | cost | a hash lookup or two and an atomic addition per call of send or receive |
//! | floor | Linux 5.15; bytes 6.3 |
//! | fallback | bytes: none below 6.3, where tracing functions (fentry) may be forbidden |
//!
//! Charged to the cgroup of the socket, not of the running task: state changes and retransmits come in soft
//! interrupts. A socket belongs to the cgroup that made it, an accepted one to that of its listener. Bytes
//! that leave a socket by splice(2) are not seen; those that enter it are since Linux 6.5.
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use ebpf_probes::Counters;

use crate::{
    kernel::{Pointer, load, offset},
    maps::{Tracked, add, tracked},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;
const MSG_PEEK: u32 = 0x2;
const MSG_ERRQUEUE: u32 = 0x2000;

/// Numbers of `include/net/tcp_states.h`.
const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_SYN_RECV: i32 = 3;

enum Protocol {
    Tcp,
    Udp,
}

#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(context: BtfTracePointContext) -> i32 {
    let (sock, length): (Pointer, i32) = (context.arg(0), context.arg(1));
    // SAFETY: a struct sock; the rest points into map values.
    unsafe {
        let Some((protocol, counters)) = transfer(sock, length) else {
            return 0;
        };
        let counter = match protocol {
            Protocol::Tcp => &raw mut (*counters).tcp_sent_bytes,
            Protocol::Udp => &raw mut (*counters).udp_sent_bytes,
        };
        add(counter, length as u64);
    }
    0
}

#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(context: BtfTracePointContext) -> i32 {
    let (sock, length, flags): (Pointer, i32, u32) = (context.arg(0), context.arg(1), context.arg(2));
    if flags & (MSG_PEEK | MSG_ERRQUEUE) != 0 {
        return 0;
    }
    // SAFETY: a struct sock; the rest points into map values.
    unsafe {
        let Some((protocol, counters)) = transfer(sock, length) else {
            return 0;
        };
        let counter = match protocol {
            Protocol::Tcp => &raw mut (*counters).tcp_received_bytes,
            Protocol::Udp => &raw mut (*counters).udp_received_bytes,
        };
        add(counter, length as u64);
    }
    0
}

/// Where a transfer over TCP or UDP counts; `None` for what failed, other sockets, and cgroups that nobody
/// tracks.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn transfer(sock: Pointer, length: i32) -> Option<(Protocol, *mut Counters)> {
    if length <= 0 {
        return None;
    }
    // SAFETY: the caller's promise.
    let (family, protocol): (u16, u16) =
        unsafe { (load(sock, offset!(sock_family)), load(sock, offset!(sock_protocol))) };
    if family != AF_INET && family != AF_INET6 {
        return None;
    }
    let protocol = match protocol {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    // SAFETY: as above.
    let counters = unsafe { owner(sock) }?.counters()?;
    Some((protocol, counters))
}

/// The tracked cgroup that a socket belongs to.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn owner(sock: Pointer) -> Option<Tracked> {
    // SAFETY: the caller's promise; the field points to a cgroup of the v2 hierarchy.
    unsafe { tracked(load(sock, offset!(sock_cgroup))) }
}

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(context: BtfTracePointContext) -> i32 {
    let (sock, old, new): (Pointer, i32, i32) = (context.arg(0), context.arg(1), context.arg(2));
    if new != TCP_ESTABLISHED || (old != TCP_SYN_SENT && old != TCP_SYN_RECV) {
        return 0;
    }
    // SAFETY: a struct sock; the rest points into map values.
    unsafe {
        if load::<u16>(sock, offset!(sock_protocol)) != IPPROTO_TCP {
            return 0;
        }
        let Some(counters) = owner(sock).and_then(Tracked::counters) else {
            return 0;
        };
        let counter = if old == TCP_SYN_SENT {
            &raw mut (*counters).tcp_connects
        } else {
            &raw mut (*counters).tcp_accepts
        };
        add(counter, 1);
    }
    0
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn tcp_retransmit_skb(context: BtfTracePointContext) -> i32 {
    // SAFETY: a struct sock; the rest points into map values.
    unsafe {
        if let Some(counters) = owner(context.arg(0)).and_then(Tracked::counters) {
            add(&raw mut (*counters).tcp_retransmits, 1);
        }
    }
    0
}
