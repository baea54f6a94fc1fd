//! Who is at the other end of a Unix socket: asked of the kernel's `sock_diag` (sock_diag(7)), which knows the
//! inode of the peer, wherever it is.

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Length of `struct unix_diag_msg`, behind which the attributes are.
const MESSAGE_BYTES: usize = 16;

/// A connection to the kernel's `sock_diag`.
pub(super) struct Diagnosis(OwnedFd);

impl Diagnosis {
    /// Opens it in the network namespace of `pid`, which the calling thread enters for good.
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        let theirs = format!("/proc/{pid}/ns/net");
        if fs::metadata(&theirs)?.ino() != fs::metadata("/proc/thread-self/ns/net")?.ino() {
            setns(File::open(theirs)?, CloneFlags::CLONE_NEWNET)?;
        }
        let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)?))
    }

    /// The inode of what the Unix socket with this inode is connected to.
    pub(super) fn peer(&self, inode: u64) -> io::Result<Option<u32>> {
        let inode = u32::try_from(inode).map_err(io::Error::other)?;
        send(self.0.as_raw_fd(), &request(inode), MsgFlags::empty())?;
        let mut answer = [0; 512];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        peer_in(&answer[..len])
    }
}

/// `struct nlmsghdr`, `struct unix_diag_req`
fn request(inode: u32) -> Vec<u8> {
    const LENGTH: u32 = HEADER_BYTES as u32 + 24;
    let kind = u32::from(SOCK_DIAG_BY_FAMILY) | u32::from(NLM_F_REQUEST) << 16;
    let (all_states, any_cookie) = (u32::MAX, u32::MAX);
    let family = libc::AF_UNIX.cast_unsigned();
    let words = [LENGTH, kind, 0, 0, family, all_states, inode, UDIAG_SHOW_PEER, any_cookie, any_cookie];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn peer_in(answer: &[u8]) -> io::Result<Option<u32>> {
    let half = |at: usize| answer.get(at..at + 2).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if half(4) != Some(SOCK_DIAG_BY_FAMILY) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut at = HEADER_BYTES + MESSAGE_BYTES;
    while let (Some(len @ 4..), Some(kind)) = (half(at), half(at + 2)) {
        if kind == UNIX_DIAG_PEER {
            let value = answer.get(at + 4..at + 8).and_then(|bytes| bytes.try_into().ok());
            // A peer that nobody has open any more has no inode.
            return Ok(value.map(u32::from_ne_bytes).filter(|inode| *inode != 0));
        }
        at += usize::from(len).next_multiple_of(4);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_ends_of_a_pair_are_each_others_peers() {
        let (one, other) = UnixStream::pair().unwrap();
        let inode =
            |end: &UnixStream| fs::metadata(format!("/proc/self/fd/{}", end.as_raw_fd())).unwrap().ino();
        let diagnosis = Diagnosis::of(Pid::this()).unwrap();
        assert_eq!(diagnosis.peer(inode(&one)).unwrap().map(u64::from), Some(inode(&other)));
        let inode_of_one = inode(&one);
        drop(other);
        assert_eq!(diagnosis.peer(inode_of_one).unwrap(), None);
    }
}
