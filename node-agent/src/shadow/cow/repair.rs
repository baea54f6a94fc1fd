//! Makes a stopped copy self-contained: what a fork would leave shared with the primary, or drops, is made anew
//! in the copy, under the same descriptors.
//!
//! - A connection becomes one whose peer has closed: the program reads end-of-file and clears up by itself, and
//!   the primary's peers talk to the primary alone.
//! - epoll instances, event counters and timers get the state they had when the primary stood still.
//! - The list of robust mutexes and the parent-death signal are set again.
//!
//! Pipes and Unix pairs within the primary (what it wakes itself with) stay shared: a frozen copy does not read.

use super::descriptor::{Kind, Object, State, Watched};
use super::socket::{self, Connection, Family, Sockets};
use super::tracee::Tracee;
use super::{CowError, Repairs};
use libc::{SYS_close, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl, SYS_eventfd2, SYS_fcntl};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What is read of the primary while it stands still.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    /// Objects that the copy needs anew.
    pub objects: Vec<Object>,
    /// Address and length of the list of robust mutexes.
    pub robust_list: (u64, u64),
    /// Signal at the parent's death; 0 for none.
    pub parent_death_signal: u64,
}

/// Connections of the copy that it does not have any more, by their kind.
pub(super) type Connections = BTreeMap<Connection, Vec<i32>>;

/// Closes what the copy gets anew, and says which connections there were. To be done before the primary goes on:
/// what it closes while the copy has it stays open, and in the primary's epoll instances.
pub(super) fn close_what_is_made_anew(
    copy: &Tracee,
    primary: Pid,
    kinds: &[(i32, Kind)],
) -> Result<Connections, CowError> {
    let inode = |(_, kind): &(i32, Kind)| if let Kind::Socket(inode) = kind { Some(*inode) } else { None };
    let sockets = Sockets::new(primary, kinds.iter().filter_map(inode).collect());
    let mut connections = Connections::new();
    let mut is_closed = Vec::new();
    for (fd, kind) in kinds {
        let connection = match kind {
            Kind::Socket(inode) => socket::connection(copy.pidfd(), (*fd, *inode), &sockets)
                .map_err(CowError::failed(format!("look at the copy's socket {fd}")))?,
            _ => None,
        };
        is_closed.push(connection.is_some() || matches!(kind, Kind::Epoll | Kind::Event | Kind::Timer));
        if let Some(connection) = connection {
            connections.entry(connection).or_default().push(*fd);
        }
    }
    let open: Vec<_> = kinds.iter().map(|(fd, _)| *fd).zip(is_closed).collect();
    // One call closes a run of them.
    for run in open.chunk_by(|one, next| one.1 == next.1).filter(|run| run[0].1) {
        let (first, last) = (run[0].0, run[run.len() - 1].0);
        copy.call("close_range", libc::SYS_close_range, [number(first), number(last), 0, 0, 0, 0])?;
    }
    Ok(connections)
}

/// Repairs the copy, after [`close_what_is_made_anew`].
pub(super) fn repair(
    copy: &Tracee,
    connections: &Connections,
    snapshot: &Snapshot,
) -> Result<Repairs, CowError> {
    let epolls = epolls(copy.pid(), &snapshot.objects, connections);
    for (connection, descriptors) in connections {
        stand_in(copy, *connection, descriptors)?;
    }
    for object in &snapshot.objects {
        make_anew(copy, object)?;
    }
    for (epoll, watched) in epolls {
        watch_again(copy, epoll, &watched)?;
    }
    restore_attributes(copy, snapshot)?;
    let connections = connections.values().map(Vec::len).sum();
    Ok(Repairs { connections, objects: snapshot.objects.len() })
}

/// Puts one connection whose peer has closed under all `descriptors`.
fn stand_in(copy: &Tracee, connection: Connection, descriptors: &[i32]) -> Result<(), CowError> {
    let dead = match connection.family {
        Family::Unix(kind) => dead_unix(copy, kind)?,
        // Without a loopback device.
        family => dead_tcp(copy, family == Family::Tcp6).or_else(|_| dead_unix(copy, STREAM))?,
    };
    if connection.nonblocking {
        let flags = (libc::O_RDWR | libc::O_NONBLOCK).cast_unsigned();
        copy.call("fcntl", SYS_fcntl, [dead, libc::F_SETFL as u64, flags.into(), 0, 0, 0])?;
    }
    let descriptors: Vec<_> = descriptors.iter().map(|fd| (*fd, true)).collect();
    put_in_place(copy, dead, &descriptors)
}

/// What each epoll instance watches.
fn epolls(pid: Pid, objects: &[Object], connections: &Connections) -> Vec<(i32, Vec<Watched>)> {
    let made_anew = objects.iter().flat_map(|object| &object.descriptors).map(|(fd, _)| fd);
    let closed: BTreeSet<i32> = connections.values().flatten().chain(made_anew).copied().collect();
    let epoll = |object: &Object| match &object.state {
        State::Epoll(watched) => Some((object.descriptors[0].0, still_open(pid, watched, &closed))),
        State::Event { .. } | State::Timer { .. } => None,
    };
    objects.iter().filter_map(epoll).collect()
}

const STREAM: u32 = libc::SOCK_STREAM.cast_unsigned();

/// A Unix socket whose peer has closed.
fn dead_unix(copy: &Tracee, kind: u32) -> Result<u64, CowError> {
    let kind = u64::from(kind) | libc::SOCK_CLOEXEC as u64;
    copy.call("socketpair", libc::SYS_socketpair, [libc::AF_UNIX as u64, kind, 0, copy.scratch(), 0, 0])?;
    let pair = copy.take::<8>()?;
    let end = |at: usize| u64::from(u32::from_ne_bytes([pair[at], pair[at + 1], pair[at + 2], pair[at + 3]]));
    copy.call("close", SYS_close, [end(4), 0, 0, 0, 0, 0])?;
    Ok(end(0))
}

/// A TCP connection over the loopback device whose peer has closed.
fn dead_tcp(copy: &Tracee, over_ipv6: bool) -> Result<u64, CowError> {
    /// Room for a socket address; its length is kept behind it.
    const LENGTH_AT: u64 = 32;
    let (family, length) = if over_ipv6 { (libc::AF_INET6, 28_u32) } else { (libc::AF_INET, 16) };
    let mut address = [0; LENGTH_AT as usize + 4];
    address[..2].copy_from_slice(&family.to_ne_bytes()[..2]);
    // 127.0.0.1 or ::1, port 0
    if over_ipv6 {
        address[23] = 1;
    } else {
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    }
    address[LENGTH_AT as usize..].copy_from_slice(&length.to_ne_bytes());
    let (at, length_at, length) = (copy.scratch(), copy.scratch() + LENGTH_AT, u64::from(length));
    let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
    let close = |fd| copy.call("close", SYS_close, [fd, 0, 0, 0, 0, 0]);
    let socket = || copy.call("socket", libc::SYS_socket, [family as u64, kind, 0, 0, 0, 0]);
    let listener = socket()?;
    let connect = || {
        copy.put(&address)?;
        copy.call("bind", libc::SYS_bind, [listener, at, length, 0, 0, 0])?;
        copy.call("listen", libc::SYS_listen, [listener, 1, 0, 0, 0, 0])?;
        copy.call("getsockname", libc::SYS_getsockname, [listener, at, length_at, 0, 0, 0])?;
        let client = socket()?;
        let connected = copy.call("connect", libc::SYS_connect, [client, at, length, 0, 0, 0]);
        if let Err(error) = connected {
            close(client)?;
            return Err(error);
        }
        close(copy.call("accept", libc::SYS_accept, [listener, 0, 0, 0, 0, 0])?)?;
        Ok(client)
    };
    let client = connect();
    close(listener)?;
    client
}

/// Puts `new`, which is closed by `execve`, under the given descriptors alone; it may be one of them.
fn put_in_place(copy: &Tracee, new: u64, descriptors: &[(i32, bool)]) -> Result<(), CowError> {
    let mut is_in_place = false;
    for (fd, closes_at_execute) in descriptors {
        if number(*fd) == new {
            is_in_place = true;
            let flags = if *closes_at_execute { libc::FD_CLOEXEC as u64 } else { 0 };
            copy.call("fcntl", SYS_fcntl, [new, libc::F_SETFD as u64, flags, 0, 0, 0])?;
        } else {
            let flags = if *closes_at_execute { libc::O_CLOEXEC as u64 } else { 0 };
            copy.call("dup3", SYS_dup3, [new, number(*fd), flags, 0, 0, 0])?;
        }
    }
    if !is_in_place {
        copy.call("close", SYS_close, [new, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn number(fd: i32) -> u64 {
    u64::from(fd.cast_unsigned())
}

fn make_anew(copy: &Tracee, object: &Object) -> Result<(), CowError> {
    let flags = if object.nonblocking { libc::O_NONBLOCK as u64 } else { 0 };
    let new = match &object.state {
        State::Epoll(_) => copy.call("epoll_create1", SYS_epoll_create1, [0; 6])?,
        State::Event { count, semaphore } => {
            let flags = flags | if *semaphore { libc::EFD_SEMAPHORE as u64 } else { 0 };
            // The initial value has 32 bits.
            let small = u32::try_from(*count).unwrap_or(u32::MAX);
            let new = copy.call("eventfd2", SYS_eventfd2, [small.into(), flags, 0, 0, 0, 0])?;
            let rest = count - u64::from(small);
            if rest > 0 {
                copy.put(&rest.to_ne_bytes())?;
                copy.call("write", libc::SYS_write, [new, copy.scratch(), 8, 0, 0, 0])?;
            }
            new
        }
        State::Timer { clock, ticks, left, interval } => {
            let clock = number(*clock);
            let new = copy.call("timerfd_create", libc::SYS_timerfd_create, [clock, flags, 0, 0, 0, 0])?;
            // One that has expired and was not read is to be readable at once.
            let left = if *ticks > 0 { (0, 1) } else { *left };
            let times = [interval.0, interval.1, left.0, left.1];
            copy.put(&times.map(i64::to_ne_bytes).concat())?;
            copy.call("timerfd_settime", libc::SYS_timerfd_settime, [new, 0, copy.scratch(), 0, 0, 0])?;
            new
        }
    };
    put_in_place(copy, new, &object.descriptors)
}

/// Adds to the copy's new epoll instance what the primary's watches.
fn watch_again(copy: &Tracee, epoll: i32, watched: &[Watched]) -> Result<(), CowError> {
    for entry in watched {
        let mut event = [0; 12];
        event[..4].copy_from_slice(&entry.events.to_ne_bytes());
        event[4..].copy_from_slice(&entry.data.to_ne_bytes());
        copy.put(&event)?;
        let add = libc::EPOLL_CTL_ADD as u64;
        copy.call("epoll_ctl", SYS_epoll_ctl, [number(epoll), add, number(entry.fd), copy.scratch(), 0, 0])?;
    }
    Ok(())
}

/// What an epoll instance watches that is still under its number: a file that was closed while a duplicate
/// keeps it open stays registered, and can't be added again. To be asked before descriptors are replaced.
fn still_open(pid: Pid, watched: &[Watched], closed: &BTreeSet<i32>) -> Vec<Watched> {
    let inode = |fd| fs::metadata(format!("/proc/{pid}/fd/{fd}")).map(|file| file.ino()).ok();
    let is_open = |entry: &Watched| closed.contains(&entry.fd) || inode(entry.fd) == Some(entry.inode);
    watched.iter().copied().filter(is_open).collect()
}

fn restore_attributes(copy: &Tracee, snapshot: &Snapshot) -> Result<(), CowError> {
    let (head, length) = snapshot.robust_list;
    if head != 0 {
        copy.call("set_robust_list", libc::SYS_set_robust_list, [head, length, 0, 0, 0, 0])?;
    }
    if snapshot.parent_death_signal != 0 {
        let set = libc::PR_SET_PDEATHSIG as u64;
        copy.call("prctl", libc::SYS_prctl, [set, snapshot.parent_death_signal, 0, 0, 0, 0])?;
    }
    Ok(())
}
