//! Sockets for services that take them: bound here, handed over as `LISTEN_FDS` (sd_listen_fds(3)). Where
//! connections are steered every instance has its own; else all share one, and the queue outlives them all.

use super::supervisor::{Service, ServiceError};
use crate::launch::DESCRIPTORS_MAX;
use crate::steer::Listener;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::{Duration, Instant};

/// The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Opens a listener; `shared` with others of this service.
fn open(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if address.is_ipv6() {
        // The unspecified address serves both families, as with most servers.
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Opens all of them.
///
/// # Errors
/// [`ServiceError::Listen`], which names the one that is refused.
pub(super) fn open_all(addresses: &[SocketAddr], shared: bool) -> Result<Vec<OwnedFd>, ServiceError> {
    if addresses.len() > DESCRIPTORS_MAX {
        return Err(ServiceError::TooMany(DESCRIPTORS_MAX));
    }
    let open = |address: &SocketAddr| {
        open(*address, shared).map_err(|source| ServiceError::Listen { address: *address, source })
    };
    addresses.iter().map(open).collect()
}

impl Service {
    /// The sockets of a new instance.
    pub(super) fn sockets(&self) -> Result<Vec<OwnedFd>, String> {
        if !self.is_steered {
            let copies: io::Result<Vec<OwnedFd>> = self.sockets.iter().map(OwnedFd::try_clone).collect();
            return copies.map_err(|error| error.to_string());
        }
        open_all(&self.options.listen, true).map_err(|error| error.to_string())
    }
}

/// What the steering has to know of them.
pub(super) fn listeners(sockets: &[OwnedFd]) -> Vec<Listener> {
    sockets.iter().filter_map(|socket| Listener::hold(socket.try_clone().ok()?)).collect()
}

/// The variables that go with them; `LISTEN_PID` is known in the child only.
pub(super) fn variables(sockets: &[OwnedFd]) -> Vec<(&'static str, OsString)> {
    if sockets.is_empty() { Vec::new() } else { vec![("LISTEN_FDS", sockets.len().to_string().into())] }
}

/// Where an instance says that it is ready.
pub(super) struct Notice {
    socket: UnixDatagram,
    name: String,
}

impl Notice {
    /// One that is heard by this instance's number.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new(number: u64) -> io::Result<Self> {
        let name = format!("standin-{}-{number}", std::process::id());
        let socket = UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, name })
    }

    /// For `NOTIFY_SOCKET`; `@` stands for an abstract name (sd_notify(3)).
    pub(super) fn variable(&self) -> (&'static str, OsString) {
        ("NOTIFY_SOCKET", format!("@{}", self.name).into())
    }

    /// Waits for `READY=1`; `false` if `goes_on` says so or `patience` is over before.
    pub(super) async fn ready(&self, patience: Option<Duration>, goes_on: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        let mut text = [0; 4096];
        while goes_on() {
            while let Ok(length) = self.socket.recv(&mut text) {
                if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    return true;
                }
            }
            if patience.is_some_and(|patience| began.elapsed() >= patience) {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}
