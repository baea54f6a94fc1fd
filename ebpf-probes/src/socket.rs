//! TCP and UDP: payload bytes, connections and what became of them, retransmits, and how long a server takes to
//! answer.
//!
//! | | |
//! |---|---|
//! | hooks | `tp_btf/sock_send_length`, `sock_recv_length` (Linux 6.3), `sk_data_ready` (6.4), `inet_sock_set_state`, `tcp_retransmit_skb` |
//! | maps | `CONNECTIONS`, `PEERS`, `SLOTS`, `COUNTERS` |
//! | cost | two or three hash lookups and some atomic additions per call of send or receive; a lookup when data comes in; an insertion and two deletions per connection |
//! | floor | Linux 5.15; bytes 6.3 |
//! | fallback | bytes: none below 6.3, where tracing functions (fentry) may be forbidden |
//!
//! Charged to the cgroup of the socket, not of the running task: state changes and retransmits come in soft
//! interrupts. A socket belongs to the cgroup that made it, an accepted one to that of its listener. Bytes
//! that leave a socket by splice(2) are not seen; those that enter it are since Linux 6.5.
//!
//! *Service time* is measured on accepted connections, from when the last bytes came in before an answer to when
//! the first bytes of that answer were handed to the kernel. It has no part that the network takes. Where a
//! client sends its next request before it has the last answer, the time since the newest request is what counts.
use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext,
};
use ebpf_probes::{ABSENT, Connection, Counters, Peer, PeerKey};

use crate::{
    kernel::{Pointer, load, offset, read},
    maps::{self, CONNECTIONS, PEERS, Tracked, add, bucket, tracked},
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
const TCP_CLOSE: i32 = 7;

/// `srtt_us` of `struct tcp_sock` counts eighths of a microsecond.
const SRTT_SHIFT: u32 = 3;

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
            Protocol::Tcp => {
                answer(sock, counters, length as u64);
                &raw mut (*counters).tcp_sent_bytes
            }
            Protocol::Udp => &raw mut (*counters).udp_sent_bytes,
        };
        add(counter, length as u64);
    }
    0
}

/// Bytes leave a connection: if data had come in, this is the answer.
///
/// # Safety
/// `counters` must point to a map value.
#[inline(always)]
unsafe fn answer(sock: Pointer, counters: *mut Counters, length: u64) {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&(sock as u64)) else { return };
    // SAFETY: a map value; both sides of a race measure the same request.
    unsafe {
        add(&raw mut (*connection).sent_bytes, length);
        let asked = (*connection).request_ns;
        if asked != 0 {
            (*connection).request_ns = 0;
            let took = bpf_ktime_get_ns() - asked;
            add((&raw mut (*counters).tcp_service_ns).cast::<u64>().add(bucket(took)), 1);
        }
    }
}

#[btf_tracepoint(function = "sk_data_ready")]
fn sock_data_ready(context: BtfTracePointContext) -> i32 {
    let sock: Pointer = context.arg(0);
    if let Some(connection) = CONNECTIONS.get_ptr_mut(&(sock as u64)) {
        // SAFETY: a map value.
        unsafe {
            if (*connection).peer.port == 0 {
                (*connection).request_ns = bpf_ktime_get_ns();
            } else if (*connection).answer_ns == 0 {
                (*connection).answer_ns = since((*connection).opened_ns);
            }
        }
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
            Protocol::Tcp => {
                if let Some(connection) = CONNECTIONS.get_ptr_mut(&(sock as u64)) {
                    add(&raw mut (*connection).received_bytes, length as u64);
                }
                &raw mut (*counters).tcp_received_bytes
            }
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
    // SAFETY: a struct sock.
    unsafe {
        if load::<u16>(sock, offset!(sock_protocol)) != IPPROTO_TCP {
            return 0;
        }
        match (old, new) {
            (_, TCP_SYN_SENT) => open(sock, false),
            (TCP_SYN_SENT, TCP_ESTABLISHED) => established(sock),
            (TCP_SYN_RECV, TCP_ESTABLISHED) => open(sock, true),
            (_, TCP_CLOSE) => close(sock, old == TCP_SYN_SENT),
            _ => {}
        }
    }
    0
}

/// A connection begins: asked for, or accepted.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn open(sock: Pointer, accepted: bool) {
    // SAFETY: the caller's promise; the rest points into map values.
    unsafe {
        let Some(owner) = owner(sock) else { return };
        if accepted && let Some(counters) = owner.counters() {
            add(&raw mut (*counters).tcp_accepts, 1);
        }
        let connection =
            Connection { opened_ns: bpf_ktime_get_ns(), peer: peer(sock, owner.slot, accepted), ..EMPTY };
        if CONNECTIONS.insert(&(sock as u64), &connection, 0).is_err()
            && let Some(losses) = maps::losses()
        {
            add(&raw mut (*losses).connections, 1);
        }
    }
}

/// Nothing of a connection; without calls of `memset`, which cost a function of its own.
const EMPTY: Connection = Connection {
    opened_ns: 0,
    request_ns: 0,
    connect_ns: 0,
    answer_ns: 0,
    sent_bytes: 0,
    received_bytes: 0,
    peer: PeerKey { address: [0; 16], slot: 0, family: 0, port: 0 },
};

/// The other side of a socket.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn peer(sock: Pointer, slot: u32, accepted: bool) -> PeerKey {
    // SAFETY: the caller's promise.
    unsafe {
        let family = load::<u16>(sock, offset!(sock_family));
        let port = if accepted { 0 } else { u16::from_be(load(sock, offset!(sock_dport))) };
        let mut halves = [0u64; 2];
        if family == AF_INET {
            halves[0] = u64::from(load::<u32>(sock, offset!(sock_daddr)));
        } else if offset!(sock_v6_daddr) != ABSENT {
            halves = [load(sock, offset!(sock_v6_daddr)), load(sock, offset!(sock_v6_daddr) + 8)];
        }
        PeerKey { address: core::mem::transmute::<[u64; 2], [u8; 16]>(halves), slot, family, port }
    }
}

/// A connection that this side asked for is there.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn established(sock: Pointer) {
    // SAFETY: the caller's promise; the rest points into map values.
    unsafe {
        let Some(owner) = owner(sock) else { return };
        let Some(counters) = owner.counters() else { return };
        add(&raw mut (*counters).tcp_connects, 1);
        let Some(connection) = CONNECTIONS.get_ptr_mut(&(sock as u64)) else { return };
        // The address is known since the state before, as connect(2) sets it first; for IPv6 as well.
        (*connection).peer = peer(sock, owner.slot, false);
        let took = since((*connection).opened_ns);
        (*connection).connect_ns = took;
        count_open(&(*connection).peer, (*connection).opened_ns);
        add((&raw mut (*counters).tcp_connect_ns).cast::<u64>().add(bucket(took)), 1);
    }
}

/// One more connection to a peer is open.
///
/// # Safety
/// Nothing but map values is touched.
#[inline(always)]
unsafe fn count_open(key: &PeerKey, opened_ns: u64) {
    let Some(peer) = known(key, opened_ns) else { return };
    // SAFETY: a map value.
    unsafe {
        let open = maps::fetch_add(&raw mut (*peer).open, 1) + 1;
        maps::raise_to(&raw mut (*peer).open_max, open);
    }
}

/// What is known of a peer, from now on if nothing was; `None` where there is no room, which counts as a loss.
#[inline(always)]
fn known(key: &PeerKey, opened_ns: u64) -> Option<*mut Peer> {
    if let Some(peer) = PEERS.get_ptr_mut(key) {
        return Some(peer);
    }
    // Where another CPU was faster, this fails and its entry is found.
    let _ = PEERS.insert(key, &Peer { first_ns: opened_ns, ..NO_PEER }, u64::from(BPF_NOEXIST));
    let peer = PEERS.get_ptr_mut(key);
    if peer.is_none()
        && let Some(losses) = maps::losses()
    {
        // SAFETY: a map value.
        unsafe { add(&raw mut (*losses).peers, 1) };
    }
    peer
}

const NO_PEER: Peer = Peer {
    connections: 0,
    sent_bytes: 0,
    received_bytes: 0,
    connect_ns: 0,
    held_ns: 0,
    first_ns: 0,
    answer_ns: 0,
    open: 0,
    open_max: 0,
};

/// A connection is over: its numbers go to its peer.
///
/// # Safety
/// `sock` must be a `struct sock` known to the verifier.
#[inline(always)]
unsafe fn close(sock: Pointer, failed: bool) {
    let key = sock as u64;
    let Some(connection) = CONNECTIONS.get_ptr(&key) else { return };
    // SAFETY: map values; the helper checks what it reads.
    unsafe {
        let connection = *connection;
        let _ = CONNECTIONS.remove(&key);
        let Some(owner) = owner(sock) else { return };
        let Some(counters) = owner.counters() else { return };
        if failed {
            return add(&raw mut (*counters).tcp_connects_failed, 1);
        }
        if offset!(tcp_srtt_us) != ABSENT
            && let Some(srtt) = read::<u32>(sock, offset!(tcp_srtt_us))
            && srtt != 0
        {
            let rtt = u64::from(srtt >> SRTT_SHIFT) * 1000;
            add((&raw mut (*counters).tcp_rtt_ns).cast::<u64>().add(bucket(rtt)), 1);
        }
        // The slot can have passed to another cgroup meanwhile.
        if owner.slot == connection.peer.slot {
            keep(&connection);
        }
    }
}

/// Adds a closed connection to its peer.
///
/// # Safety
/// Nothing but map values is touched.
#[inline(always)]
unsafe fn keep(connection: &Connection) {
    let Some(peer) = known(&connection.peer, connection.opened_ns) else { return };
    // SAFETY: a map value.
    unsafe {
        add(&raw mut (*peer).connections, 1);
        add(&raw mut (*peer).sent_bytes, connection.sent_bytes);
        add(&raw mut (*peer).received_bytes, connection.received_bytes);
        add(&raw mut (*peer).connect_ns, connection.connect_ns);
        add(&raw mut (*peer).held_ns, since(connection.opened_ns));
        add(&raw mut (*peer).answer_ns, connection.answer_ns);
        if connection.connect_ns != 0 && (*peer).open != 0 {
            maps::fetch_add(&raw mut (*peer).open, u64::MAX);
        }
    }
}

#[inline(always)]
fn since(start: u64) -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() - start }
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
