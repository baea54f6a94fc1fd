//! The sockets that an instance serves on, held from outside: a duplicate keeps the queue alive when every
//! process of the instance is gone, tells how long the queue is, and can close it for an instance that hangs.
//!
//! Duplicates come from `pidfd_getfd` (Linux 5.6). Nothing here waits.

use ebpf_probes::steer::GroupKey;
use nix::errno::Errno;
use rustix::net::{SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Backlog that held listeners get; the kernel cuts it to `net.core.somaxconn`. A server may have asked for
/// as little as 5, and a queue that overflows while nobody accepts costs clients a second (SYN again).
const BACKLOG: i32 = 65_535;

/// `TCP_ESTABLISHED` of include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;

/// Sockets that are held of one instance.
const HELD_MAX: usize = 1024;

/// Where a service can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// UDP, not TCP.
    pub is_datagram: bool,
    /// Address and port.
    pub socket: SocketAddr,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_datagram { "udp " } else { "" }, self.socket)
    }
}

impl Address {
    /// The bytes of its [`GroupKey`].
    pub(super) fn key(&self) -> [u8; size_of::<GroupKey>()] {
        let (family, mut ip) = (if self.socket.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET }, [0; 16]);
        match self.socket.ip() {
            IpAddr::V4(v4) => ip[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => ip.copy_from_slice(&v6.octets()),
        }
        let protocol = if self.is_datagram { libc::IPPROTO_UDP } else { libc::IPPROTO_TCP };
        let mut key = [0; size_of::<GroupKey>()];
        key[0..4].copy_from_slice(&protocol.to_ne_bytes());
        key[4..8].copy_from_slice(&family.to_ne_bytes());
        key[8..12].copy_from_slice(&u32::from(self.socket.port()).to_ne_bytes());
        key[12..28].copy_from_slice(&ip);
        key
    }

    /// From the bytes of a [`GroupKey`].
    pub(super) fn from_key(bytes: &[u8; size_of::<GroupKey>()]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[index * 4..index * 4 + 4]);
            word
        };
        let mut v6 = [0; 16];
        v6.copy_from_slice(&bytes[12..28]);
        let ip = if u32::from_ne_bytes(word(1)) == libc::AF_INET6 as u32 {
            IpAddr::V6(Ipv6Addr::from(v6))
        } else {
            IpAddr::V4(Ipv4Addr::from(word(3)))
        };
        Self {
            is_datagram: u32::from_ne_bytes(word(0)) == libc::IPPROTO_UDP as u32,
            socket: SocketAddr::new(ip, u32::from_ne_bytes(word(2)) as u16),
        }
    }
}

/// A held duplicate of a socket that an instance serves on.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// The kernel's number of the socket (`SO_COOKIE`), the same for all duplicates.
    pub cookie: u64,
    /// Where it listens.
    pub address: Address,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Listener {
    /// `None` if the socket is none that serves.
    pub fn hold(socket: OwnedFd) -> Option<Self> {
        let is_datagram = sockopt::socket_type(&socket).ok()? == SocketType::DGRAM;
        if !is_datagram && !sockopt::socket_acceptconn(&socket).ok()? {
            return None;
        }
        let address = Address { is_datagram, socket: own_address(&socket)? };
        if is_datagram && rustix::net::getpeername(&socket).is_ok_and(|peer| peer.is_some()) {
            return None;
        }
        let cookie = sockopt::socket_cookie(&socket).ok()?;
        Some(Self { socket, cookie, address })
    }

    /// Lengthens the queue as far as the kernel allows.
    pub fn raise_backlog(&self) {
        if !self.address.is_datagram {
            // SAFETY: plain system call on an open descriptor.
            unsafe { libc::listen(self.socket.as_raw_fd(), BACKLOG) };
        }
    }

    /// Connections that wait to be accepted (`tcpi_unacked` of a listener is its queue,
    /// `tcp_get_info` in net/ipv4/tcp.c).
    pub fn queue(&self) -> u32 {
        if self.address.is_datagram {
            return 0;
        }
        tcp_info(self).map_or(0, |info| info.tcpi_unacked)
    }

    /// Closes the queue, for the instance as well: what waits in it moves to the listener that the steering
    /// picks, and the instance can accept nothing more.
    pub fn shut(&self) {
        // SAFETY: plain system call on an open descriptor.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RD) };
    }
}

/// The address that a socket is bound to, if it is one of the internet with a port.
fn own_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let address: SocketAddr = rustix::net::getsockname(socket).ok()?.try_into().ok()?;
    (address.port() != 0).then_some(address)
}

/// Duplicates the sockets that the processes `pids` serve on, without those that are `known` by their cookie.
///
/// # Errors
/// `EPERM` if `pidfd_getfd` is refused (the processes are another user's, or Yama forbids it).
pub fn find(pids: &[i32], known: &HashSet<u64>) -> Result<Vec<Listener>, Errno> {
    let mut known = known.clone();
    let mut found = Vec::new();
    for &pid in pids {
        let Some(process) = Pid::from_raw(pid) else { continue };
        let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        for number in sockets(pid) {
            let socket = match pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::PERM) => return Err(Errno::EPERM),
                Err(_) => continue,
            };
            if let Some(listener) = Listener::hold(socket)
                && found.len() < HELD_MAX
                && known.insert(listener.cookie)
            {
                found.push(listener);
            }
        }
    }
    Ok(found)
}

/// Numbers of the descriptors of a process that are sockets.
fn sockets(pid: i32) -> Vec<i32> {
    let directory = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = directory.into_iter().flatten().flatten();
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    entries
        .filter(|entry| is_socket(&entry.path()))
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .collect()
}

/// Established TCP connections that the processes `pids` hold. Asked of their own sockets, one by one: the host's
/// list of all connections may take seconds.
pub fn connections(pids: &[i32]) -> usize {
    let mut established = HashSet::new();
    for &pid in pids {
        let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            continue;
        };
        let taken = sockets(pid)
            .into_iter()
            .filter_map(|number| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok());
        let open = taken.filter(|socket| tcp_info(socket).is_some_and(|info| info.tcpi_state == ESTABLISHED));
        established.extend(open.filter_map(|socket| sockopt::socket_cookie(&socket).ok()));
    }
    established.len()
}

/// `None` if it is no TCP socket.
fn tcp_info(socket: impl AsFd) -> Option<libc::tcp_info> {
    // SAFETY: all-zero is a valid tcp_info; the kernel writes at most `length` bytes.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        let result = libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        );
        (result == 0).then_some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn own() -> Vec<Listener> {
        find(&[std::process::id().cast_signed()], &HashSet::new()).unwrap()
    }

    #[test]
    fn finds_what_serves_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let datagrams = UdpSocket::bind("[::1]:0").unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let found = own();
        let held = found.iter().find(|held| held.address.socket == address).unwrap();
        assert!(!held.address.is_datagram);
        assert_eq!(held.queue(), 1);
        let served = datagrams.local_addr().unwrap();
        assert!(found.iter().any(|held| held.address == Address { is_datagram: true, socket: served }));
        let known = found.iter().map(|held| held.cookie).collect();
        let again = find(&[std::process::id().cast_signed()], &known).unwrap();
        assert!(again.iter().all(|held| held.address.socket != address), "it is known");
    }

    #[test]
    fn counts_open_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let same = server.try_clone().unwrap();
        let end = |stream: TcpStream| std::process::Stdio::from(OwnedFd::from(stream));
        let mut holder = std::process::Command::new("sleep");
        let holder = holder.arg("100").stdin(end(client)).stdout(end(server)).stderr(end(same)).spawn();
        let mut holder = holder.unwrap();
        // While it executes its program it has what other tests hold as well.
        let (mut open, start) = (0, std::time::Instant::now());
        while open != 2 && start.elapsed().as_secs() < 30 {
            open = connections(&[holder.id().cast_signed()]);
        }
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(open, 2, "both ends are there, one of them twice");
    }

    #[test]
    fn a_held_listener_outlives_its_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let held = own().into_iter().find(|held| held.address.socket == address).unwrap();
        drop(listener);
        assert!(TcpStream::connect(address).is_ok());
        held.shut();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn keys_are_addresses() {
        for socket in ["127.0.0.1:8080", "[::1]:53"] {
            let address = Address { is_datagram: socket.ends_with(":53"), socket: socket.parse().unwrap() };
            assert_eq!(Address::from_key(&address.key()), address);
        }
        let text = Address { is_datagram: true, socket: "[::]:53".parse().unwrap() }.to_string();
        assert_eq!(text, "udp [::]:53");
    }
}
