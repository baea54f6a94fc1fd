//! Which licences a task really uses: its connections to the servers of the pools. A licence is held by a
//! connection to its server for as long as it is open; so the connections are what is counted.
//!
//! The socket probe counts them by address and port, also those that are gone again between two looks. Without it
//! they are found in `/proc/PID/net/tcp` of the task's network namespace, and are the task's own if one of its
//! processes has the socket open. Only done where a pool names its server.

use super::Agent;
use crate::agent::task::Task;
use crate::config::Config;
use crate::fingerprint::Peer;
use crate::fingerprint::key::TaskKey;
use crate::host::{self, ProcessId};
use crate::size::admission::Licenses;
use crate::store::record::{LicenseUse, LicensesUsed};
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Shortest and longest pause between two looks at a task: it grows with the run.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Most processes of a task that are looked into.
const PROCESSES_MAX: usize = 256;

/// The servers of the pools, by the name of the pool.
#[derive(Debug, Default)]
pub(super) struct Pools(BTreeMap<String, Vec<SocketAddr>>);

impl Pools {
    /// Looks the names of the servers up, once.
    pub(super) fn new(config: &Config) -> Self {
        let servers = config.license.iter().filter_map(|(name, pool)| {
            let server = pool.server.as_ref()?;
            match server.to_socket_addrs() {
                Ok(addresses) => Some((name.clone(), addresses.collect())),
                Err(error) => {
                    tracing::warn!("licences {name}: use is not learnt, {server} is not known: {error}");
                    None
                }
            }
        });
        Self(servers.collect())
    }
}

/// What one task was seen to use.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// The first look and the last.
    looked: Option<(Instant, Instant)>,
    used: LicensesUsed,
}

impl Uses {
    /// What was seen up to now.
    pub(super) fn used(&self) -> &LicensesUsed {
        &self.used
    }

    /// Looks, if it is time to.
    pub(super) fn look(&mut self, agent: &Agent, task: &Task, main: &ProcessId) {
        let pause = |first: Instant| (first.elapsed() / 4).clamp(LOOK_MIN, LOOK_MAX);
        let is_due = self.looked.is_none_or(|(first, last)| last.elapsed() >= pause(first));
        if agent.pools.borrow().0.is_empty() || !is_due {
            return;
        }
        let now = Instant::now();
        let since_last = self.looked.map_or(Duration::ZERO, |(_, last)| now - last);
        self.looked = Some((self.looked.map_or(now, |(first, _)| first), now));
        if !self.look_at_peers(agent, task) {
            let open = connections(&agent.pools.borrow(), main.pid, &task.cgroup().processes());
            open.iter().for_each(|(name, count)| self.seen_open(name, *count, since_last));
        }
    }

    /// Takes what the socket probe has counted of each server; false if it has not.
    pub(super) fn look_at_peers(&mut self, agent: &Agent, task: &Task) -> bool {
        let peers = task.slot().and_then(|slot| agent.engine.borrow().all_peers(slot));
        let Some(peers) = peers else { return false };
        for (name, servers) in &agent.pools.borrow().0 {
            let used = peers.iter().filter(|peer| is_one_of(peer, servers)).map(use_of).reduce(both);
            self.used.extend(used.map(|used| (name.clone(), used)));
        }
        true
    }

    /// Without that probe: so many were open at a look, and the last one was `since_last` ago.
    fn seen_open(&mut self, name: &str, count: u32, since_last: Duration) {
        let first = LicenseUse { first_at_ms: host::now_ms(), ..LicenseUse::default() };
        let used = self.used.entry(name.to_owned()).or_insert(first);
        used.peak = used.peak.max(count);
        used.held_ms += since_last.as_millis() as u64 * u64::from(count);
    }
}

fn is_one_of(peer: &Peer, servers: &[SocketAddr]) -> bool {
    let address = peer.address.parse::<IpAddr>().ok().zip(peer.port).map(SocketAddr::from);
    address.is_some_and(|address| servers.iter().any(|server| plain(*server) == address))
}

fn use_of(peer: &Peer) -> LicenseUse {
    LicenseUse {
        peak: u32::try_from(peer.open_max).unwrap_or(u32::MAX),
        first_at_ms: peer.first_at_ms,
        waited_ms: Some(peer.answer_ns / 1_000_000),
        held_ms: peer.held_ns / 1_000_000,
    }
}

/// The use of two servers of a pool. Their peaks need not have been at the same time; the sum is the safe side.
fn both(one: LicenseUse, other: LicenseUse) -> LicenseUse {
    LicenseUse {
        peak: one.peak.saturating_add(other.peak),
        first_at_ms: one.first_at_ms.min(other.first_at_ms),
        waited_ms: one.waited_ms.zip(other.waited_ms).map(|(one, other)| one + other),
        held_ms: one.held_ms + other.held_ms,
    }
}

/// The connections of some processes to each pool's servers.
fn connections(pools: &Pools, main: i32, processes: &[i32]) -> Licenses {
    let Some(process) = processes.iter().chain([&main]).find_map(|pid| Process::new(*pid).ok()) else {
        return Licenses::new();
    };
    let open: Vec<TcpNetEntry> =
        [process.tcp().unwrap_or_default(), process.tcp6().unwrap_or_default()].concat();
    let to = |servers: &[SocketAddr]| -> Vec<u64> {
        let is_served = |entry: &&TcpNetEntry| {
            entry.state == TcpState::Established && servers.contains(&plain(entry.remote_address))
        };
        open.iter().filter(is_served).map(|entry| entry.inode).collect()
    };
    let candidates: Vec<_> = pools
        .0
        .iter()
        .map(|(name, servers)| (name, to(servers)))
        .filter(|(_, inodes)| !inodes.is_empty())
        .collect();
    if candidates.is_empty() {
        return Licenses::new();
    }
    let own = sockets(processes);
    let count = |inodes: Vec<u64>| inodes.iter().filter(|inode| own.contains(inode)).count();
    candidates
        .into_iter()
        .map(|(name, inodes)| (name.clone(), u32::try_from(count(inodes)).unwrap_or(u32::MAX)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// An IPv4 address in IPv6's clothes is that address.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => {
            SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), address.port())
        }
        IpAddr::V4(_) => address,
    }
}

/// The sockets that some processes have open, by inode.
fn sockets(processes: &[i32]) -> HashSet<u64> {
    let of = |pid: &i32| Process::new(*pid).and_then(|process| process.fd()).into_iter().flatten().flatten();
    processes
        .iter()
        .take(PROCESSES_MAX)
        .flat_map(of)
        .filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
}

impl Agent {
    /// What past runs of a task were seen to use, as far as the pools have it.
    pub(super) fn learned_licenses(&self, key: &TaskKey) -> Licenses {
        let learned = self.reader.borrow().licenses_learned(key).unwrap_or_default();
        let config = self.config();
        let pools = &config.license;
        let of_pool = |(name, used): (String, u32)| pools.get(&name).map(|pool| (name, used.min(pool.total)));
        learned.into_iter().filter_map(of_pool).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn open_connections_to_the_server_are_counted_and_others_are_not() {
        let (server, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = server.local_addr().unwrap();
        let pools = Pools(BTreeMap::from([("cad".to_owned(), vec![address])]));
        let own = std::process::id().cast_signed();
        assert!(connections(&pools, own, &[own]).is_empty());
        let first = TcpStream::connect(address).unwrap();
        let _second = TcpStream::connect(address).unwrap();
        let _third = TcpStream::connect(other.local_addr().unwrap()).unwrap();
        assert_eq!(connections(&pools, own, &[own]), Licenses::from([("cad".into(), 2)]));
        assert!(connections(&pools, own, &[]).is_empty(), "another process has them");
        drop(first);
        assert_eq!(connections(&pools, own, &[own]), Licenses::from([("cad".into(), 1)]));
    }
    #[test]
    fn what_was_seen_at_looks_adds_up() {
        let mut uses = Uses::default();
        uses.seen_open("cad", 2, Duration::ZERO);
        uses.seen_open("cad", 1, Duration::from_secs(1));
        let used = uses.used()["cad"];
        assert_eq!((used.peak, used.held_ms, used.waited_ms), (2, 1000, None));
        assert!(used.first_at_ms > 0);
    }

    #[test]
    fn a_peer_is_a_server_if_address_and_port_are_its() {
        let server = "[::ffff:10.0.0.7]:27000".parse().unwrap();
        let peer = |address: &str, port| Peer {
            address: address.into(),
            port,
            answer_ns: 2_000_000,
            held_ns: 5_000_000,
            open_max: 3,
            first_at_ms: 9,
            ..Peer::default()
        };
        assert!(is_one_of(&peer("10.0.0.7", Some(27000)), &[server]));
        assert!(!is_one_of(&peer("10.0.0.7", Some(27001)), &[server]));
        assert!(!is_one_of(&peer("10.0.0.7", None), &[server]), "a client");
        let used = use_of(&peer("10.0.0.7", Some(27000)));
        assert_eq!(used, LicenseUse { peak: 3, first_at_ms: 9, waited_ms: Some(2), held_ms: 5 });
        let two = both(used, LicenseUse { peak: 1, first_at_ms: 4, waited_ms: None, held_ms: 1 });
        assert_eq!(two, LicenseUse { peak: 4, first_at_ms: 4, waited_ms: None, held_ms: 6 });
    }
}
