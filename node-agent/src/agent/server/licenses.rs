//! Which licences a task really uses: its connections to the servers of the pools. A licence is held by a
//! connection to its server for as long as it is open; so the connections are what is counted.
//!
//! They are found in `/proc/PID/net/tcp` of the task's network namespace, by address and port, and are the
//! task's own if one of its processes has the socket open. Only done where a pool names its server.

use super::Agent;
use crate::cgroup::RunCgroup;
use crate::config::Config;
use crate::fingerprint::key::TaskKey;
use crate::host::ProcessId;
use crate::size::admission::Licenses;
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
    peaks: Licenses,
}

impl Uses {
    /// The most of each pool that was seen at once.
    pub(super) fn peaks(&self) -> &Licenses {
        &self.peaks
    }

    /// Looks, if it is time to; returns what the task uses now.
    pub(super) fn look(&mut self, pools: &Pools, main: &ProcessId, cgroup: &RunCgroup) -> Licenses {
        let pause = |first: Instant| (first.elapsed() / 4).clamp(LOOK_MIN, LOOK_MAX);
        let is_due = self.looked.is_none_or(|(first, last)| last.elapsed() >= pause(first));
        if pools.0.is_empty() || !is_due {
            return Licenses::new();
        }
        let now = Instant::now();
        self.looked = Some((self.looked.map_or(now, |(first, _)| first), now));
        let now = connections(pools, main.pid, &cgroup.processes());
        for (name, count) in &now {
            let peak = self.peaks.entry(name.clone()).or_default();
            *peak = (*peak).max(*count);
        }
        now
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
}
