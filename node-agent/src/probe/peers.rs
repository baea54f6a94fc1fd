//! Whom a tracked cgroup talks to: closed connections summed by peer in the kernel, and those that are open.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use aya::Pod;

use super::{Probes, Slot};
use crate::fingerprint;
use crate::host;

/// "Only where there is an entry", of include/uapi/linux/bpf.h.
const BPF_EXIST: u64 = 2;

/// `AF_INET6` of include/linux/socket.h.
const AF_INET6: u16 = 10;

/// Map keys and values of the kernel side under a name that `Pod` can be given to.
macro_rules! pod {
    ($($name:ident),+) => {$(
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        pub(super) struct $name(ebpf_probes::$name);

        // SAFETY: repr(C), integers only, no padding.
        unsafe impl Pod for $name {}
    )+};
}

pod!(Connection, Peer, PeerKey);

impl Probes {
    pub(super) fn has_connections(&self, slot: Slot) -> bool {
        let counters = self.read(slot).counters;
        counters.tcp_connects + counters.tcp_accepts + counters.tcp_connects_failed > 0
    }

    /// All peers that are known, the most bytes first. Looks at every connection that is followed, unless the cgroup
    /// had none.
    pub fn peers(&self, slot: Slot) -> Vec<fingerprint::Peer> {
        if !self.has_connections(slot) {
            return Vec::new();
        }
        let mut peers: HashMap<ebpf_probes::PeerKey, ebpf_probes::Peer> = HashMap::new();
        for (key, peer) in self.peers.iter().flatten().filter(|(key, _)| key.0.slot == slot.0) {
            peers.insert(key.0, peer.0);
        }
        let now_ns = host::monotonic_ns();
        let open = self.connections.iter().flatten().map(|(_, connection)| connection.0);
        for connection in open.filter(|connection| connection.peer.slot == slot.0) {
            let peer = peers.entry(connection.peer).or_insert(ebpf_probes::Peer {
                first_ns: connection.opened_ns,
                ..ebpf_probes::Peer::default()
            });
            peer.connections += 1;
            peer.sent_bytes += connection.sent_bytes;
            peer.received_bytes += connection.received_bytes;
            peer.connect_ns += connection.connect_ns;
            peer.answer_ns += connection.answer_ns;
            peer.held_ns += now_ns.saturating_sub(connection.opened_ns);
        }
        let mut all: Vec<_> = peers.iter().map(|(key, peer)| in_words(key, peer, now_ns)).collect();
        all.sort_by_key(|peer| std::cmp::Reverse((peer.sent_bytes + peer.received_bytes, peer.connections)));
        all
    }

    /// Has the open connections of a slot count for another one, from zero. What goes over them at this very moment
    /// may be missing in both.
    pub fn pass_connections(&mut self, from: Slot, to: Slot) {
        if !self.has_connections(from) {
            return;
        }
        let now_ns = host::monotonic_ns();
        let open: Vec<_> =
            self.connections.iter().flatten().filter(|(_, one)| one.0.peer.slot == from.0).collect();
        for (sock, Connection(before)) in open {
            let peer = ebpf_probes::PeerKey { slot: to.0, ..before.peer };
            let (connect_ns, answer_ns) = (before.connect_ns.min(1), before.answer_ns.min(1));
            let request_ns = before.request_ns;
            let anew = ebpf_probes::Connection {
                opened_ns: now_ns,
                request_ns,
                connect_ns,
                answer_ns,
                peer,
                ..ebpf_probes::Connection::default()
            };
            // Fails only where the connection is gone meanwhile.
            let _ = self.connections.insert(sock, Connection(anew), BPF_EXIST);
        }
    }

    /// Makes room for the peers and connections of others; the next cgroup in the slot has none of this one's.
    pub(super) fn forget_connections(&mut self, slot: Slot) {
        let open = self.connections.iter().flatten().filter(|(_, one)| one.0.peer.slot == slot.0);
        for (sock, _) in open.collect::<Vec<_>>() {
            // Fails only if it is closed meanwhile.
            let _ = self.connections.remove(&sock);
        }
        let own: Vec<PeerKey> = self.peers.keys().flatten().filter(|key| key.0.slot == slot.0).collect();
        for key in own {
            // Fails only if the entry is gone.
            let _ = self.peers.remove(&key);
        }
    }
}

fn in_words(key: &ebpf_probes::PeerKey, peer: &ebpf_probes::Peer, now_ns: u64) -> fingerprint::Peer {
    let [a, b, c, d, ..] = key.address;
    let address = if key.family == AF_INET6 {
        Ipv6Addr::from(key.address).to_canonical().to_string()
    } else {
        Ipv4Addr::new(a, b, c, d).to_string()
    };
    let ago_ms = now_ns.saturating_sub(peer.first_ns) / 1_000_000;
    fingerprint::Peer {
        address,
        port: (key.port != 0).then_some(key.port),
        connections: peer.connections,
        sent_bytes: peer.sent_bytes,
        received_bytes: peer.received_bytes,
        connect_ns: peer.connect_ns,
        held_ns: peer.held_ns,
        answer_ns: peer.answer_ns,
        open_max: peer.open_max,
        first_at_ms: host::now_ms() - i64::try_from(ago_ms).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_people_do() {
        let mut key = ebpf_probes::PeerKey { family: 2, port: 80, ..Default::default() };
        key.address[..4].copy_from_slice(&[10, 0, 0, 7]);
        let peer = ebpf_probes::Peer { connections: 2, ..Default::default() };
        let told = in_words(&key, &peer, 0);
        assert_eq!((told.address.as_str(), told.port, told.connections), ("10.0.0.7", Some(80), 2));
        // IPv4 over an IPv6 socket.
        key.family = AF_INET6;
        key.port = 0;
        key.address = Ipv4Addr::new(10, 0, 0, 7).to_ipv6_mapped().octets();
        assert_eq!(
            (in_words(&key, &peer, 0).address.as_str(), in_words(&key, &peer, 0).port),
            ("10.0.0.7", None)
        );
    }
}
