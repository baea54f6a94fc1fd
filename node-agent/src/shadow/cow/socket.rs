//! Which sockets a copy must not share: those with a peer, which talks to the primary alone.

use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Standard descriptors, where a Unix connection is where output goes (journald): shared like a file.
const STANDARD_FD_MAX: i32 = 2;

/// What the copy gets in place of a connected socket: one whose peer has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Replacement {
    /// A TCP connection over IPv4.
    Tcp4,
    /// A TCP connection over IPv6.
    Tcp6,
    /// A Unix socket of this type.
    Unix(u32),
}

/// What the copy needs in place of its socket `fd`; `None` for one that it shares: listeners, datagram sockets,
/// unconnected ones, and pairs that the primary made for itself.
///
/// Whether both ends of a Unix pair are the primary's is told by who made it (`SO_PEERCRED`): a pair that a
/// parent made before it forked counts as a connection.
pub(super) fn replacement(pidfd: BorrowedFd, fd: i32, primary: Pid) -> io::Result<Option<Replacement>> {
    let socket = pidfd_getfd(pidfd, fd, PidfdGetfdFlags::empty())?;
    let kind = sockopt::socket_type(&socket)?;
    let is_connection = matches!(kind, SocketType::STREAM | SocketType::SEQPACKET);
    if !is_connection || sockopt::socket_acceptconn(&socket).unwrap_or(false) {
        return Ok(None);
    }
    let replacement = match sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX if fd <= STANDARD_FD_MAX || is_own_pair(&socket, primary) => return Ok(None),
        AddressFamily::UNIX => Replacement::Unix(kind.as_raw()),
        AddressFamily::INET6 => Replacement::Tcp6,
        _ => Replacement::Tcp4,
    };
    Ok(has_peer(&socket).then_some(replacement))
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

    fn of(socket: &impl AsRawFd, primary: Pid) -> Option<Replacement> {
        let myself = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
        replacement(myself.as_fd(), socket.as_raw_fd(), primary).unwrap()
    }

    #[test]
    fn only_connections_are_replaced() {
        let me = Pid::this();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        assert_eq!(of(&listener, me), None);
        assert_eq!(of(&client, me), Some(Replacement::Tcp4));
        drop(listener.accept().unwrap());
        assert_eq!(of(&client, me), Some(Replacement::Tcp4), "the peer has closed, which was not read yet");
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(address).unwrap();
        assert_eq!(of(&datagrams, me), None);
    }

    #[test]
    fn a_unix_pair_is_shared_only_with_whom_made_it() {
        let (end, _other) = UnixStream::pair().unwrap();
        assert_eq!(of(&end, Pid::this()), None);
        let stream = Replacement::Unix(libc::SOCK_STREAM.cast_unsigned());
        assert_eq!(of(&end, Pid::from_raw(1)), Some(stream));
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert_eq!(of(&listener, Pid::from_raw(1)), None);
    }
}
