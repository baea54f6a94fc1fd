//! Which sockets a copy must not share: those with a peer, which talks to the primary alone.

use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
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

/// The connection that `fd` is; `None` for what the copy shares: listeners, datagram sockets, unconnected ones,
/// and pairs that the primary made for itself.
///
/// Whether both ends of a Unix pair are the primary's is told by who made it (`SO_PEERCRED`): a pair that a
/// parent made before it forked counts as a connection.
///
/// To be asked while the primary stands still: a connection that it closes while another holds it stays open,
/// and in its epoll instances.
pub(super) fn connection(pidfd: BorrowedFd, fd: i32, primary: Pid) -> io::Result<Option<Connection>> {
    let socket = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?;
    let kind = sockopt::socket_type(&socket)?;
    let is_connection = matches!(kind, SocketType::STREAM | SocketType::SEQPACKET);
    if !is_connection || sockopt::socket_acceptconn(&socket).unwrap_or(false) || !has_peer(&socket) {
        return Ok(None);
    }
    let family = match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX if fd <= STANDARD_FD_MAX || is_own_pair(&socket, primary) => return Ok(None),
        AddressFamily::UNIX => Family::Unix(kind.as_raw()),
        AddressFamily::INET6 => Family::Tcp6,
        _ => Family::Tcp4,
    };
    let nonblocking = rustix::fs::fcntl_getfl(&socket)?.contains(rustix::fs::OFlags::NONBLOCK);
    Ok(Some(Connection { family, nonblocking }))
}

fn is_own_pair(socket: &OwnedFd, primary: Pid) -> bool {
    sockopt::socket_peercred(socket).is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == primary.as_raw())
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
    use std::os::unix::net::{UnixListener, UnixStream};

    fn of(socket: &impl AsRawFd, primary: Pid) -> Option<Family> {
        let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        connection(myself.as_fd(), socket.as_raw_fd(), primary).unwrap().map(|connection| connection.family)
    }

    #[test]
    fn only_connections_are_replaced() {
        let me = Pid::this();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(of(&listener, me), None);
        assert_eq!(of(&client, me), Some(Family::Tcp4));
        drop(listener.accept().unwrap());
        assert_eq!(of(&client, me), Some(Family::Tcp4), "the peer has closed, which was not read yet");
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(address).unwrap();
        assert_eq!(of(&datagrams, me), None);
    }

    #[test]
    fn a_unix_pair_is_shared_only_with_whom_made_it() {
        let (end, _other) = UnixStream::pair().unwrap();
        assert_eq!(of(&end, Pid::this()), None);
        let stream = Family::Unix(libc::SOCK_STREAM.cast_unsigned());
        assert_eq!(of(&end, Pid::from_raw(1)), Some(stream));
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert_eq!(of(&listener, Pid::from_raw(1)), None);
    }
}
