//! Which sockets a copy must not share: those with a peer, which talks to the primary alone.

use super::unix_peer::Diagnosis;
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Standard descriptors, where a Unix connection is where output goes (journald): shared like a file.
const STANDARD_FD_MAX: i32 = 2;

/// A socket with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Connection {
    /// What can stand in for it.
    pub family: Family,
    /// `O_NONBLOCK` is set.
    pub nonblocking: bool,
}

/// Kinds of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// TCP over IPv4, and anything that is not named here.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// A Unix socket of this type.
    Unix(u32),
}

/// The sockets of one process.
pub(super) struct Sockets {
    inodes: HashSet<u64>,
    diagnosis: Option<Diagnosis>,
    primary: Pid,
}

impl Sockets {
    /// Those of `primary`, or of its copy: with these inodes.
    pub(super) fn new(primary: Pid, inodes: HashSet<u64>) -> Self {
        Self { inodes, diagnosis: Diagnosis::of(primary).ok(), primary }
    }

    /// Whether both ends of a Unix connection are here. Where the kernel does not tell (no `unix_diag`), one that
    /// the primary has made counts as such.
    fn are_both_ends(&self, socket: &OwnedFd, inode: u64) -> bool {
        match self.diagnosis.as_ref().map(|diagnosis| diagnosis.peer(inode)) {
            Some(Ok(peer)) => peer.is_some_and(|peer| self.inodes.contains(&peer.into())),
            _ => sockopt::socket_peercred(socket)
                .is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == self.primary.as_raw()),
        }
    }
}

/// The connection that `fd`, the socket with this inode, is; `None` for what the copy shares: listeners, datagram
/// sockets, unconnected ones, and pairs within the process.
///
/// To be asked while the primary stands still: a connection that it closes while another holds it stays open,
/// and in its epoll instances.
pub(super) fn connection(
    pidfd: BorrowedFd,
    (fd, inode): (i32, u64),
    sockets: &Sockets,
) -> io::Result<Option<Connection>> {
    let socket = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?;
    let kind = sockopt::socket_type(&socket)?;
    let is_connection = matches!(kind, SocketType::STREAM | SocketType::SEQPACKET);
    if !is_connection || sockopt::socket_acceptconn(&socket).unwrap_or(false) || !has_peer(&socket) {
        return Ok(None);
    }
    let family = match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX if fd <= STANDARD_FD_MAX || sockets.are_both_ends(&socket, inode) => {
            return Ok(None);
        }
        AddressFamily::UNIX => Family::Unix(kind.as_raw()),
        AddressFamily::INET6 => Family::Tcp6,
        _ => Family::Tcp4,
    };
    let nonblocking = rustix::fs::fcntl_getfl(&socket)?.contains(rustix::fs::OFlags::NONBLOCK);
    Ok(Some(Connection { family, nonblocking }))
}

/// Also for a TCP socket that is about to be connected, or about to be closed.
fn has_peer(socket: &OwnedFd) -> bool {
    const TCP_CLOSE: u8 = 7;
    tcp_state(socket.as_fd())
        .map_or_else(|| rustix::net::getpeername(socket).is_ok(), |state| state != TCP_CLOSE)
}

/// The first field of `struct tcp_info`.
fn tcp_state(socket: BorrowedFd) -> Option<u8> {
    let mut state = 0_u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `state`.
    let result = unsafe {
        let (level, state) = (libc::IPPROTO_TCP, (&raw mut state).cast());
        libc::getsockopt(socket.as_raw_fd(), level, libc::TCP_INFO, state, &raw mut length)
    };
    (result == 0 && length == 1).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, pidfd_open};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn inode(socket: &impl AsRawFd) -> u64 {
        std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino()
    }

    fn of(socket: &impl AsRawFd, inodes: &[u64]) -> Option<Family> {
        let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        let sockets = Sockets::new(Pid::this(), inodes.iter().copied().collect());
        let socket = (socket.as_raw_fd(), inode(socket));
        connection(myself.as_fd(), socket, &sockets).unwrap().map(|connection| connection.family)
    }

    #[test]
    fn only_connections_are_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(of(&listener, &[]), None);
        assert_eq!(of(&client, &[]), Some(Family::Tcp4));
        drop(listener.accept().unwrap());
        assert_eq!(of(&client, &[]), Some(Family::Tcp4), "the peer has closed, which was not read yet");
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(address).unwrap();
        assert_eq!(of(&datagrams, &[]), None);
    }

    #[test]
    fn a_unix_pair_is_shared_where_both_ends_are_the_processes_own() {
        let (end, other) = UnixStream::pair().unwrap();
        assert_eq!(of(&end, &[inode(&end), inode(&other)]), None);
        let stream = Family::Unix(libc::SOCK_STREAM.cast_unsigned());
        assert_eq!(of(&end, &[inode(&end)]), Some(stream));
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert_eq!(of(&listener, &[]), None);
    }
}
